"""Weights that PyTorch saved, read without PyTorch and without running what the file says.

A torch file is a pickle that describes tensors, and raw storages; a pickle may call any function. The reader here
resolves an exact list of names, each to a stand-in of its own that only takes notes, and refuses the file at any
other name. Both containers are read: a zip archive (torch >= 1.6; ``NAME/data.pkl`` and ``NAME/data/KEY``) and the
older one (four pickles, a list of keys, then per key an int64 count and the raw values).
"""

from __future__ import annotations

import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from jaxkit.check import UsageError

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


class _StorageType(NamedTuple):
    dtype: np.dtype


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    size: int  # in elements
    offset: int  # in elements, of a view into its root storage


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, offset, tuple(shape), tuple(strides))


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    **{("torch", name): _StorageType(dtype) for name, dtype in _STORAGES.items()},
}


class _Unpickler(pickle.Unpickler):
    """An unpickler that knows the names of _NAMES and no other; ``roots`` are the storages that it met, by key."""

    def __init__(self, file: BufferedIOBase):
        super().__init__(file)
        self.roots: dict[str, tuple[np.dtype, int]] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _NAMES:
            raise UsageError(f"asks for {module}.{name}, which a file of tensors does not need")
        return _NAMES[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, size, *view = pid
        if kind != "storage" or not isinstance(storage, _StorageType) or not isinstance(size, int) or size < 0:
            raise pickle.UnpicklingError("an unknown kind of storage")
        self.roots[str(key)] = (storage.dtype, size)
        if view and view[0] is not None:
            _, offset, size = view[0]
            return _Storage(str(key), storage.dtype, size, offset)
        return _Storage(str(key), storage.dtype, size, 0)


def read_torch(path: str | Path) -> Iterator[tuple[str, np.ndarray]]:
    """The (name, array) pairs of a file by ``torch.save``, one at a time; names of nested dicts are joined by a dot.

    What is not a tensor (epoch, accuracy) is left out.

    Raises:
      UsageError: the file is missing, damaged or not a torch file, or its pickle asks for anything but tensors;
        nothing of it has run.
    """
    try:
        with open(path, "rb") as file:
            yield from (_read_zip if zipfile.is_zipfile(file) else _read_legacy)(file)
    except UsageError as error:
        raise UsageError(f"{path} was not read: it {error}") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a damaged pickle can raise anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{path} is damaged or not a torch file: {reason}") from None


def _read_legacy(file: BufferedIOBase) -> Iterator[tuple[str, np.ndarray]]:
    file.seek(0)
    if _Unpickler(file).load() != _LEGACY_MAGIC:
        raise pickle.UnpicklingError("the magic number is missing")
    version, system = _Unpickler(file).load(), _Unpickler(file).load()
    if version != 1001 or not system["little_endian"]:
        raise UsageError(f"has the protocol {version} or a byte order that is not little-endian")
    unpickler = _Unpickler(file)
    content = unpickler.load()
    places, keys = {}, _Unpickler(file).load()
    for key in keys:
        dtype, size = unpickler.roots[str(key)]
        if struct.unpack("<q", file.read(8))[0] != size:
            raise pickle.UnpicklingError(f"storage {key} has another size than announced")
        places[str(key)] = file.tell()
        file.seek(size * dtype.itemsize, 1)

    def raw(storage: _Storage) -> bytes:
        file.seek(places[storage.key] + storage.offset * storage.dtype.itemsize)
        return file.read(storage.size * storage.dtype.itemsize)

    yield from _arrays(content, raw)


def _read_zip(file: BufferedIOBase) -> Iterator[tuple[str, np.ndarray]]:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        inner = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(inner) != 1:
            raise pickle.UnpicklingError("no data.pkl in the archive")
        folder = inner[0].removesuffix("data.pkl")
        if folder + "byteorder" in names and archive.read(folder + "byteorder").strip() != b"little":
            raise UsageError("has a byte order that is not little-endian")
        with archive.open(inner[0]) as pickled:
            content = _Unpickler(pickled).load()

        def raw(storage: _Storage) -> bytes:
            first, last = (n * storage.dtype.itemsize for n in (storage.offset, storage.offset + storage.size))
            return archive.read(f"{folder}data/{storage.key}")[first:last]

        yield from _arrays(content, raw)


def _arrays(content: Any, raw: Callable[[_Storage], bytes], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(content, _Tensor):
        yield prefix, _array(content, raw(content.storage))
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _arrays(value, raw, f"{prefix}.{name}" if prefix else str(name))


def _array(tensor: _Tensor, data: bytes) -> np.ndarray:
    storage, shape, strides = tensor.storage, tensor.shape, tensor.strides
    if len(data) != storage.size * storage.dtype.itemsize:
        raise pickle.UnpicklingError(f"storage {storage.key} is cut short")
    if len(shape) != len(strides) or min((tensor.offset, *shape, *strides)) < 0:
        raise pickle.UnpicklingError("a tensor with impossible strides")
    last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, strides))
    if math.prod(shape) and last >= storage.size:
        raise pickle.UnpicklingError("a tensor that reaches beyond its storage")
    values = np.frombuffer(data, storage.dtype)[tensor.offset :]
    steps = tuple(step * storage.dtype.itemsize for step in strides)
    return np.lib.stride_tricks.as_strided(values, shape, steps).copy()
