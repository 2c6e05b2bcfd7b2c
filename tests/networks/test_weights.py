"""Weights of other libraries: both torch containers built by hand, what a malicious file gets, and damaged ones."""

import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxkit.check import UsageError
from jaxkit.networks import weights

MAGIC, PROTOCOL, SYSTEM = (
    0x1950A86A20F9469CFC6C,
    1001,
    {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
)
KINDS = {
    "<f4": "FloatStorage",
    "<f2": "HalfStorage",
    "<i8": "LongStorage",
    "|b1": "BoolStorage",
    "<V2": "BFloat16Storage",
}


class Name:
    """Pickled as the global ``module.name``, which need not exist here."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as the call of a global."""

    def __init__(self, module, name, *args):
        self.function, self.args = Name(module, name), args


class Stored:
    """Pickled as a persistent storage."""

    def __init__(self, pid):
        self.pid = pid


class Writer(pickle._Pickler):
    """A pickler in Python, which writes globals by name alone."""

    def persistent_id(self, obj):
        return obj.pid if isinstance(obj, Stored) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Name):
            return self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        if isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.args)
            return self.write(pickle.REDUCE)
        return super().save(obj, save_persistent_id)


def dumps(obj):
    file = io.BytesIO()
    Writer(file, 2).dump(obj)
    return file.getvalue()


def tensor(key, flat, shape=None, strides=None, offset=0, view=(), legacy=True):
    kind = Name("torch", KINDS[flat.dtype.str])
    pid = ("storage", kind, key, "cpu", flat.size, *((None,) if legacy else ()))
    shape = flat.shape if shape is None else shape
    strides = (1,) if strides is None else strides
    return Call("torch._utils", "_rebuild_tensor_v2", Stored(pid), offset, shape, strides, False, OrderedDict())


def write_legacy(path, content, storages):
    parts = [dumps(part) for part in (MAGIC, PROTOCOL, SYSTEM, content, list(storages))]
    for values in storages.values():
        parts += [struct.pack("<q", values.size), values.tobytes()]
    path.write_bytes(b"".join(parts))


def write_zip(path, content, storages):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", dumps(content))
        archive.writestr("model/byteorder", "little")
        for key, values in storages.items():
            archive.writestr(f"model/data/{key}", values.tobytes())


WRITERS = {"legacy": write_legacy, "zip": write_zip}
STORAGES = {
    "0": np.arange(12, dtype="<f4"),
    "1": np.array([3, 4], "<i8"),
    "2": np.array([1.5, -2.0], ml_dtypes.bfloat16),
    "3": np.array([True, False]),
}


@pytest.fixture(params=WRITERS)
def written(request, tmp_path):
    legacy = request.param == "legacy"

    def write(content=None, storages=STORAGES, name="model.pth"):
        make = lambda key, *args, **more: tensor(key, storages[key], *args, legacy=legacy, **more)
        WRITERS[request.param](tmp_path / name, content(make) if callable(content) else content, storages)
        return tmp_path / name

    return write


def test_reads_tensors(written):
    content = lambda make: {
        "epoch": 3,
        "state_dict": OrderedDict(
            [
                ("whole", make("0", (3, 4), (4, 1))),
                ("transposed", make("0", (4, 3), (1, 4))),
                ("part", make("0", (2,), (3,), offset=5)),
                ("scalar", make("1", (), (), offset=1)),
                ("empty", make("0", (0, 3), (3, 1))),
                ("low", make("2")),
                ("flags", make("3")),
            ]
        ),
    }
    arrays = dict(weights.read(written(content)))
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = {
        "state_dict.whole": matrix,
        "state_dict.transposed": matrix.T,
        "state_dict.part": np.array([5, 8], np.float32),
        "state_dict.scalar": np.array(4),
        "state_dict.empty": np.zeros((0, 3), np.float32),
        "state_dict.low": np.array([1.5, -2.0], ml_dtypes.bfloat16),
        "state_dict.flags": np.array([True, False]),
    }
    assert list(arrays) == list(expected)
    for name, values in expected.items():
        assert arrays[name].dtype == values.dtype
        np.testing.assert_array_equal(arrays[name], values)


@pytest.mark.parametrize(
    "module, name", [("os", "system"), ("posix", "system"), ("builtins", "eval"), ("torch", "load")]
)
def test_malicious_pickle_does_not_run(written, tmp_path, module, name):
    """Python's own unpickler would run the command; this reader names what the file asked for and runs nothing."""
    mark = tmp_path / "it-ran"
    command = f"touch {mark}" if name == "system" else f"__import__('os').system('touch {mark}')"
    path = written(lambda make: {"weight": make("0"), "evil": Call(module, name, command)})
    with pytest.raises(UsageError, match=f"asks for {module}.{name}") as error:
        list(weights.read(path))
    assert not mark.exists() and "\n" not in str(error.value)
    pickle.loads(dumps(Call("os", "system", f"touch {mark}")))  # the file's call is a real one
    assert mark.exists()
    os.unlink(mark)


@pytest.mark.parametrize(
    "content",
    [
        lambda make: {"w": make("0", (13,), (1,))},
        lambda make: {"w": make("0", (2,), (1,), offset=11)},
        lambda make: {"w": make("0", (2,), (-1,))},
        lambda make: {"w": make("0", (2, 2), (1,))},
        lambda make: {"w": Call("torch._utils", "_rebuild_tensor_v2", 5, 0, (1,), (1,))},
    ],
)
def test_impossible_tensors(written, content):
    with pytest.raises(UsageError, match="damaged"):
        list(weights.read(written(content)))


def test_cut_short(written):
    path = written(lambda make: {"w": make("0")}, {"0": STORAGES["0"]})
    data = path.read_bytes()
    for length in (0, 1, 40, len(data) // 2, len(data) - 8):
        path.write_bytes(data[:length])
        with pytest.raises(UsageError):
            list(weights.read(path))


def test_other_files(tmp_path):
    with pytest.raises(UsageError, match="No such file"):
        list(weights.read(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="ends in .npz"):
        weights.read(tmp_path / "x.gif")
    (tmp_path / "x.pth").write_bytes(b"this is text")
    with pytest.raises(UsageError, match="not a torch file"):
        list(weights.read(tmp_path / "x.pth"))
    np.savez(tmp_path / "objects.npz", a=np.array([{}], dtype=object))
    with pytest.raises(UsageError, match="NumPy archive"):
        list(weights.read(tmp_path / "objects.npz"))


def test_safetensors(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([1.5, 2.0], ml_dtypes.bfloat16)}
    save_file(arrays, tmp_path / "x.safetensors")
    given = dict(weights.read(tmp_path / "x.safetensors"))
    for name, values in arrays.items():
        assert given[name].dtype == values.dtype
        np.testing.assert_array_equal(given[name], values)
    (tmp_path / "y.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-4])
    for name in ("y", "none"):
        with pytest.raises(UsageError, match="as safetensors"):
            list(weights.read(tmp_path / f"{name}.safetensors"))
