"""Own data: what is understood, and one line for each thing that can be wrong with it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jaxkit.check import UsageError
from jaxkit.data import from_arrays, from_csv, from_file, from_folder, from_npz

X = np.arange(12.0).reshape(6, 2)


def write(folder, text, name="table.csv"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_arrays_of_every_kind():
    data, card = from_arrays(X, ["b", "a", "c", "a", "b", "b"], env=["x", "y", "x", "y", "x", "y"], weight=np.ones(6))
    np.testing.assert_array_equal(data["y"], [1, 0, 2, 0, 1, 1])
    np.testing.assert_array_equal(data["env"], [0, 1, 0, 1, 0, 1])
    assert card.classes == ("a", "b", "c") and card.task == "classification" and card.rows == {"all": 6}
    assert {name: values.dtype.name for name, values in data.items()} == {
        "x": "float32", "y": "int32", "env": "int32", "weight": "float32",
    }  # fmt: skip
    assert from_arrays(X, X[:, 0] + 0.5)[1].task == "regression"
    assert from_arrays(X, np.arange(6), task="regression")[0]["y"].dtype == np.float32
    image = np.array([[[0, 255]]], np.uint8)
    np.testing.assert_array_equal(from_arrays(image)[0]["x"], [[[0, 1]]])
    assert from_arrays(X, X[:, 0] > 3)[1].classes == ("0", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, np.arange(5)), "'x' has 6 rows and 'y' has 5"),
        ((X, np.array([0.0, 1, 1, 0, 1, 0])), "whole numbers stored as floats"),
        ((X, np.array([0, 1, np.nan, 0, 1, 0])), "y has NaN or infinity, first in row 2"),
        ((X, [-1, 1, 1, -1, 1, 1]), "label -1"),
        ((np.where(X == 7, np.nan, X), None), "NaN or infinity in 1 of 6 rows"),
        ((np.array([["a", "b"]]), None), "x must hold numbers"),
        ((np.zeros((0, 3)), None), "no rows"),
        ((3.0, None), "single number"),
        ((X, [None] * 6), "must hold numbers or text"),
        ((X, np.eye(6, dtype=int)), r"one label for each row, shape \[rows\], got \[6, 6\]; of one-hot rows"),
        ((X, [["a", "b"]] * 6), "one label for each row"),
        ((X, [0, 1, 2, 3, 4, 2**40]), "has the label 1099511627776; labels number the classes"),
        ((X, [[1], [2, 3]] * 3), "y has rows of different lengths"),
        (([[1], [2, 3]], None), "x has rows of different lengths"),
        ((X[:, :0], None), r"x has no features, its shape is \[6, 0\]"),
        ((X.astype(np.float64) * 1e300, None), "beyond float32"),
    ],
)
def test_wrong_arrays(arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        from_arrays(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (list("abcdef"), "must hold numbers"),
        (np.ones((6, 2)), r"shape \[rows\], got \[6, 2\]"),
        ([1, 1, -1, 1, 1, 1], "is -1 in row 2"),
        (np.zeros(6), "0 in every row"),
    ],
)
def test_wrong_weights(weight, message):
    with pytest.raises(UsageError, match=message):
        from_arrays(X, np.arange(6), weight=weight)


def test_the_task_says_what_whole_floats_are(tmp_path):
    y = np.array([0.0, 1, 1, 0, 1, 0])
    data, card = from_arrays(X, y, task="classification")
    assert data["y"].dtype == np.int32 and card.classes == ("0", "1")
    assert from_csv(write(tmp_path, "a,y\n1,0.0\n2,1.0\n"), task="classification")[1].classes == ("0", "1")
    assert from_arrays(X, y, task="regression")[0]["y"].dtype == np.float32
    double_minus = from_csv(write(tmp_path, "a,y\n1,--1\n2,2\n3,--1\n"))  # no number, so text
    assert double_minus[1].classes == ("--1", "2")


def test_wrong_task():
    with pytest.raises(UsageError, match="floats such as 0.5"):
        from_arrays(X, X[:, 0] + 0.5, task="classification")
    with pytest.raises(UsageError, match="holds text"):
        from_arrays(X, list("abcabc"), task="regression")


def test_csv(tmp_path):
    path = write(tmp_path, "\ufeffa; species ;b\n1;cat;2.5\n\n3;dog;4\n5;cat;6e1\n7;dog;8\n")
    data, card = from_csv(path, "species")
    np.testing.assert_array_equal(data["x"], [[1, 2.5], [3, 4], [5, 60], [7, 8]])
    np.testing.assert_array_equal(data["y"], [0, 1, 0, 1])
    assert card.classes == ("cat", "dog")
    chosen, _ = from_csv(path, "species", ["b"])
    assert chosen["x"].shape == (4, 1)
    train, card = from_csv(path, "species", split="train", test_fraction=0.5)
    test, _ = from_csv(path, "species", split="test", test_fraction=0.5)
    assert card.rows == {"train": 2, "test": 2}
    np.testing.assert_array_equal(np.sort(np.concatenate([train["x"], test["x"]]), 0), np.sort(data["x"], 0))
    np.testing.assert_array_equal(np.sort(test["y"]), [0, 1])


def test_csv_targets(tmp_path):
    numbered, card = from_csv(
        write(tmp_path, "x,label,e\n" + "".join(f"{i},{(7, 10)[i % 2]},{i % 2}\n" for i in range(6))), env="e"
    )
    np.testing.assert_array_equal(numbered["y"], [0, 1] * 3)  # 7 before 10, by value
    assert card.classes == ("7", "10") and numbered["x"].shape == (6, 1)
    np.testing.assert_array_equal(numbered["env"], [0, 1] * 3)
    path = write(tmp_path, "x,price\n" + "".join(f"{i},{i}.5\n" for i in range(6)))
    data, card = from_csv(path)
    assert card.task == "regression" and data["y"][2] == 2.5
    ages = write(tmp_path, "x,age\n" + "".join(f"{i},{i}\n" for i in range(60)))
    with pytest.raises(UsageError, match="60 different values in 60 rows"):
        from_csv(ages)
    assert from_csv(ages, task="regression")[0]["y"].dtype == np.float32
    assert from_file(write(tmp_path, "x\ty\n1\ta\n2\tb\n", "t.tsv"))[1].classes == ("a", "b")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("", {}, "is empty"),
        ("\n \n", {}, "is empty"),
        ("a,b\n", {}, "column names and no rows"),
        ("1,2\n3,4\n", {}, "no column names"),
        ("a,a\n1,2\n", {}, "column 'a' twice"),
        ("a,b\n1,2\n3\n", {}, "line 3 has 1 cells, expected 2"),
        ("age,label\n1,0\n2,1\n", {"target": "lable"}, "no column 'lable'; did you mean 'label'"),
        ("a,b,y\n1,2,0\nx,4,1\n", {}, "line 3: column 'a' holds 'x', expected a number \\(1 such cells\\)"),
        ("a,y\n1,0\n,1\n", {}, "line 3: column 'a' holds ''"),
        ("a,y\n1,0\nnan,1\n", {}, "line 3: column 'a' holds 'nan'"),
        ("a,y\n1,0.5\n2,oops\n3,0.7\n", {}, "line 3: column 'y' holds 'oops'"),
        ("a,y\n1,cat\n2,\n3,dog\n", {}, "line 3: the label in column 'y' is empty"),
        ("a,y\n1,0.0\n2,1.0\n", {}, "column 'y' holds whole numbers written as '0.0'; write labels as 0, 1"),
        ("y\n0\n1\n", {}, "no feature columns beside 'y'"),
        ("a,y\n1,0\n2,1\n", {"features": ["y"]}, "target 'y' is among the features"),
        (
            "a,y\n1,0\n2,1\n",
            {"split": "test"},
            ".csv: class 0 has 1 row; 1 row for testing would leave none to train on",
        ),
        ("a,y\n1,cat\n2,dog\n3,dog\n", {"split": "test"}, "class cat has 1 row"),
        ('a,y\n1,"cat\n2,dog\n', {}, "near line 3: unexpected end of data; check that every quotation mark"),
        ("a,y\n1,cat\n1e300,dog\n", {}, "x has 1e\\+300 in row 1, beyond float32"),
        ("a,y\n1,0\n2,1\n", {"split": "train", "test_fraction": 0.0}, "test_fraction must lie"),
    ],
)
def test_wrong_csv(tmp_path, text, options, message):
    path = write(tmp_path, text)
    with pytest.raises(UsageError, match=message) as caught:
        from_csv(path, **options)
    assert "\n" not in str(caught.value)


def test_npz(tmp_path):
    path = tmp_path / "own.npz"
    np.savez(path, x=X, y=np.arange(6) % 2)
    assert from_file(path)[1].classes == ("0", "1")
    for content, message in (({"a": X}, "no array 'x'; it has a"), ({"x": X, "q": X}, "has the array 'q'")):
        np.savez(path, **content)
        with pytest.raises(UsageError, match=message):
            from_npz(path)
    np.savez(path, x=np.array([{}, {}], object))
    with pytest.raises(UsageError, match="cannot be read as an npz file of plain arrays"):
        from_npz(path)
    with path.open("wb") as file:
        np.save(file, X)
    with pytest.raises(UsageError, match="holds one array without a name"):
        from_npz(path)
    path.write_bytes(b"nothing")
    with pytest.raises(UsageError, match="cannot be read as an npz"):
        from_npz(path)


def picture(path, color, size=(4, 3), mode="RGB"):
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, color).save(path)


def test_folder(tmp_path):
    for i in range(2):
        picture(tmp_path / "red" / f"{i}.png", (255, 0, 0))
        picture(tmp_path / "green" / f"{i}.PNG", (0, 255, 0))
    (tmp_path / "red" / "notes.txt").write_text("ignored")
    data, card = from_file(tmp_path)
    assert data["x"].shape == (4, 3, 4, 3) and card.classes == ("green", "red") and card.shape == (3, 4, 3)
    np.testing.assert_array_equal(data["y"], [0, 0, 1, 1])
    np.testing.assert_array_equal(data["x"][:, 0, 0], [[0, 1, 0]] * 2 + [[1, 0, 0]] * 2)
    assert from_folder(tmp_path, size=(8, 6), channels=1)[0]["x"].shape == (4, 8, 6, 1)
    assert from_folder(tmp_path, split="test", test_fraction=0.5)[0]["x"].shape[0] == 2

    picture(tmp_path / "red" / "9.png", 0, size=(5, 5), mode="L")
    with pytest.raises(UsageError, match="9.png is 5x5, the images before it 3x4; give size="):
        from_folder(tmp_path)
    assert from_folder(tmp_path, size=(2, 2))[0]["x"].shape == (5, 2, 2, 3)
    (tmp_path / "red" / "8.png").write_bytes(b"no image")
    with pytest.raises(UsageError, match="8.png cannot be read as an image"):
        from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="class 'empty': .* has no images"):
        from_folder(tmp_path)


def test_files_that_are_not_there(tmp_path):
    for call, message in (
        (lambda: from_file(tmp_path / "a.csv"), "no such file or folder"),
        (lambda: from_csv(tmp_path / "a.csv"), "no such file"),
        (lambda: from_npz(tmp_path / "a.npz"), "no such file"),
        (lambda: from_folder(tmp_path / "a"), "no such folder"),
        (lambda: from_folder(tmp_path), "no subfolders"),
        (lambda: from_file(write(tmp_path, "", "a.xlsx")), "unknown kind '.xlsx'"),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    (tmp_path / "latin.csv").write_bytes(b"a,y\n\xff,1\n")
    with pytest.raises(UsageError, match="cannot be read as UTF-8"):
        from_csv(tmp_path / "latin.csv")
