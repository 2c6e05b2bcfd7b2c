"""Your own data: arrays, a CSV file, an npz file, or a folder of images, checked on the way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxkit import check
from jaxkit.data import tables
from jaxkit.data.checks import check_data
from jaxkit.data.entries import array_of, float32_of, labels_of, weights_of
from jaxkit.data.records import Arrays, Card
from jaxkit.data.splits import test_mask

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
LEAVE_OUT = "fill or drop them, or leave the column out by from_csv(features=[...])"
TARGETS = ("y", "label", "labels", "target", "class")


def from_arrays(
    x: Any,
    y: Any = None,
    env: Any = None,
    *,
    attribute: Any = None,
    weight: Any = None,
    task: str | None = None,
    name: str = "own data",
) -> tuple[Arrays, Card]:
    """Data from arrays, with a card that says what was understood.

    Args:
      x: features, [rows, ...]; uint8 is read as an image and divided by 255, everything else becomes float32.
      y: labels (whole numbers, or text, which is numbered) or float targets.
      env: environment of each row, whole numbers or text.
      attribute: spurious attribute of each row, whole numbers or text.
      weight: loss weight of each row.
      task: ``classification`` or ``regression``, where y leaves it open.
      name: in the card and in error messages.

    Raises:
      UsageError: no rows, unequal lengths, features that are not numbers, NaN, or targets that do not fit the task.
    """
    x = array_of(x, f"{name}: x")
    if x.dtype.kind not in "biuf":
        raise check.UsageError(f"{name}: x must hold numbers, got dtype {x.dtype}; encode text as numbers first")
    if x.ndim == 0:
        raise check.UsageError(f"{name}: x must have shape [rows, ...], got a single number")
    if x.ndim > 1 and len(x) and x.size == 0:
        raise check.UsageError(f"{name}: x has no features, its shape is {list(x.shape)}; give at least one column")
    scale = np.float32(255 if x.dtype == np.uint8 else 1)
    arrays: Arrays = {"x": float32_of(x, f"{name}: x") / scale}
    classes: tuple[str, ...] = ()
    kind = "none"
    if y is not None:
        arrays["y"], classes, kind = labels_of(y, task, f"{name}: y")
    for column, values in (("env", env), ("attribute", attribute)):
        if values is not None:
            arrays[column] = labels_of(values, "classification", f"{name}: {column}")[0]
    if weight is not None:
        arrays["weight"] = weights_of(weight, f"{name}: weight")
    try:
        check_data(arrays)
    except check.UsageError as error:
        raise check.UsageError(str(error) if name == "own data" else f"{name}: {error}") from None
    card = Card(
        name=name,
        title=f"{len(x)} rows of shape {x.shape[1:]}",
        task=kind,
        shape=x.shape[1:],
        classes=classes,
        rows={"all": len(x)},
        source="given by the user",
        licence="the user's own",
        citation="",
    )
    return arrays, card


def _part(arrays: Arrays, card: Card, split: str | None, fraction: float) -> tuple[Arrays, Card]:
    """The rows of a split that is made from the labels alone (``splits.test_mask``)."""
    split = check.choose("split", "all" if split is None else split, ("train", "test", "all"))
    if split == "all":
        return arrays, card
    try:
        mask = test_mask(arrays["y"], fraction, card.task == "classification", card.classes)
    except check.UsageError as error:
        raise check.UsageError(f"{card.name}: {error}") from None
    rows = {"train": int((~mask).sum()), "test": int(mask.sum())}
    chosen = mask if split == "test" else ~mask
    return {name: values[chosen] for name, values in arrays.items()}, card._replace(rows=rows)


def from_csv(
    path: str | Path,
    target: str | None = None,
    features: Sequence[str] | None = None,
    *,
    env: str | None = None,
    task: str | None = None,
    split: str | None = None,
    test_fraction: float = 0.2,
) -> tuple[Arrays, Card]:
    """Data from a text table with column names in its first line; comma, semicolon or tab.

    Args:
      path: the file, UTF-8.
      target: the column of labels or targets; None: the column called y, label, target or class, else the last one.
        Text and whole numbers are labels, numbered 0.. in their order, with the values kept as class names; other
        numbers are targets.
      features: the columns of x, in this order; None: all others.
      env: a column of environments.
      task: ``regression`` where the targets are whole numbers.
      split: ``train``, ``test`` or None for all rows; the test rows are evenly spaced within each class.
      test_fraction: of the rows (of each class).

    Raises:
      UsageError: an empty file, a missing column (the nearest are named), a cell that is not a number (its line is
        named), a line of another length, or nearly as many classes as rows.
    """
    path = Path(path)
    names, cells, lines = tables.read_table(path)
    if target is None:
        target = next((name for name in names if check.fold(name) in TARGETS), names[-1])
    at = tables.column_of(names, target, path)
    env_at = None if env is None else tables.column_of(names, env, path)
    if features is None:
        chosen = [i for i in range(len(names)) if i not in (at, env_at)]
    else:
        chosen = [tables.column_of(names, name, path) for name in features]
        if at in chosen:
            raise check.UsageError(f"{path}: the target {target!r} is among the features")
    if not chosen:
        raise check.UsageError(f"{path} has no feature columns beside {target!r}")
    column = lambda i: [row[i] for row in cells]
    x = np.stack([tables.numbers_of(column(i), names[i], path, lines, LEAVE_OUT) for i in chosen], axis=1)

    values: Any = column(at)
    order: list[str] = []
    if task == "regression" or not all(tables.is_whole(cell) for cell in values):
        if task == "regression" or sum(not math.isnan(tables.number_of(cell)) for cell in values) > len(values) // 2:
            values = tables.numbers_of(values, target, path, lines, LEAVE_OUT)
            if task is None and (values == np.round(values)).all():
                raise check.UsageError(
                    f"{path}: column {target!r} holds whole numbers written as {column(at)[0]!r}; write labels as "
                    "0, 1, 2, ..., or for a regression say task='regression'"
                )
        elif "" in values:
            raise check.UsageError(f"{path} line {lines[values.index('')]}: the label in column {target!r} is empty")
    else:
        order = sorted(set(values), key=int)
        values = np.asarray([order.index(cell) for cell in values], np.int32)
    environment = None if env_at is None else np.asarray(column(env_at))
    arrays, card = from_arrays(x, values, environment, task=task, name=str(path))
    card = card._replace(classes=tuple(order) or card.classes, note=f"target: column {target!r}")
    if card.task == "classification" and len(card.classes) > max(20, len(cells) // 2):
        raise check.UsageError(
            f"{path}: column {target!r} has {len(card.classes)} different values in {len(cells)} rows; "
            "name another target, or give task='regression'"
        )
    return _part(arrays, card, split, test_fraction)


def from_npz(
    path: str | Path, *, task: str | None = None, split: str | None = None, test_fraction: float = 0.2
) -> tuple[Arrays, Card]:
    """Data from an npz file with the arrays ``x`` and, where there, ``y``, ``env``, ``attribute``, ``weight``.

    Raises:
      UsageError: not an npz file, no ``x``, or arrays of Python objects (they would have to be unpickled).
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            given = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise check.UsageError(f"{path}: no such file") from None
    except (TypeError, AttributeError):  # np.load gave a single array
        raise check.UsageError(
            f"{path} cannot be read as an npz file of plain arrays: it holds one array without a name; "
            "write it by np.savez(path, x=x, y=y)"
        ) from None
    except Exception as error:  # zipfile, zlib and NumPy raise errors of their own
        # NumPy takes what is no zip file for a pickle and recommends to trust it; that is not our advice.
        why = "it is damaged or another kind of file" if "allow_pickle=`" in str(error) else error
        raise check.UsageError(f"{path} cannot be read as an npz file of plain arrays: {why}") from None
    if "x" not in given:
        raise check.UsageError(f"{path} has no array 'x'; it has {', '.join(given) or 'nothing'}")
    known = ("x", "y", "env", "attribute", "weight")
    strange = sorted(set(given) - set(known))
    if strange:
        raise check.UsageError(f"{path} has the array {strange[0]!r}; known are {', '.join(known)}")
    arrays, card = from_arrays(**given, task=task, name=str(path))
    if "y" not in arrays and split not in (None, "all"):
        raise check.UsageError(f"{path} has no 'y' to make a split from")
    return _part(arrays, card, split, test_fraction)


def from_folder(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    channels: int | None = None,
    split: str | None = None,
    test_fraction: float = 0.2,
) -> tuple[Arrays, Card]:
    """Images from a folder with one subfolder per class, which gives the class its name.

    Args:
      path: the folder.
      size: (height, width) to which every image is resized (bilinear, with antialiasing); None: all must have one size.
      channels: 1 (grey) or 3 (RGB); None: 1 if every image is grey, else 3.
      split: ``train``, ``test`` or None for all rows; the test rows are evenly spaced within each class.
      test_fraction: of the rows of each class.

    Returns:
      x float32 [rows, height, width, channels] in [0, 1], y int32; class by class, files in alphabetical order.

    Raises:
      UsageError: no subfolders, a class without images, a file that cannot be read, or different sizes where none was
        given.
    """
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    if not path.is_dir():
        raise check.UsageError(f"{path}: no such folder")
    if channels not in (None, 1, 3):
        raise check.UsageError(f"channels must be 1 or 3, got {channels!r}")
    folders = sorted(entry for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise check.UsageError(f"{path} has no subfolders; expected one folder of images per class")
    images: list[Image.Image] = []
    labels: list[int] = []
    for label, folder in enumerate(folders):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGES)
        if not files:
            raise check.UsageError(f"class {folder.name!r}: {folder} has no images ({', '.join(IMAGES[:4])}, ...)")
        for file in files:
            try:
                with Image.open(file) as opened:
                    image = opened.convert("L" if opened.mode in ("1", "L", "LA", "I;16", "I") else "RGB")
            except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
                raise check.UsageError(f"{file} cannot be read as an image: {error}") from None
            if size is not None:
                image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            elif images and image.size != images[0].size:
                shape = lambda picture: f"{picture.height}x{picture.width}"
                raise check.UsageError(
                    f"{file} is {shape(image)}, the images before it {shape(images[0])}; give size=(height, width) "
                    "to from_folder, or resize the files"
                )
            images.append(image)
            labels.append(label)
    grey = channels == 1 or (channels is None and all(image.mode == "L" for image in images))
    x = np.stack([np.asarray(image.convert("L" if grey else "RGB")) for image in images])
    arrays, card = from_arrays(x[..., None] if grey else x, np.asarray(labels, np.int32), name=str(path))
    return _part(arrays, card._replace(classes=tuple(folder.name for folder in folders)), split, test_fraction)


def from_file(path: str | Path, **options: Any) -> tuple[Arrays, Card]:
    """Data from a folder of images, a .csv or .tsv table, or an .npz file, by what ``path`` is; options go to its
    reader.

    Raises:
      UsageError: nothing is there, or it is of another kind.
    """
    path = Path(path)
    if path.is_dir():
        return from_folder(path, **options)
    readers = {".csv": from_csv, ".tsv": from_csv, ".npz": from_npz}
    if not path.exists():
        raise check.UsageError(f"{path}: no such file or folder")
    if path.suffix.lower() not in readers:
        raise check.UsageError(
            f"{path}: unknown kind {path.suffix!r}; expected .csv, .tsv, .npz, or a folder of images"
        )
    return readers[path.suffix.lower()](path, **options)
