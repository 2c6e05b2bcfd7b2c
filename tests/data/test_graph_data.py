"""Cards of graphs: published counts on real files, and what the readers say of files that are something else."""

from __future__ import annotations

import collections
import io
import pickle

import numpy as np
import pytest
import scipy.sparse

from jaxkit.check import UsageError
from jaxkit.data import CARDS, graph_readers, load, loading
from jaxkit.data.__main__ import main

PPNP = (("adj_matrix.", "attr_matrix."), ("adj.", "attr."), ("adj_", "attr_"))


def real(name, data_folder, monkeypatch):
    """The arrays and card of a data set whose files are in the folder; skipped where one is not."""
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS[name]):
        pytest.skip(f"{name} is not in the data folder")
    return load(name, download=False)


def well_formed(data, card):
    """The form that every card of a graph promises."""
    x, y = data["x"], data["y"]
    nodes = len(y)
    assert y.dtype == np.int32 and nodes == card.rows["all"]
    assert x["senders"].dtype == x["receivers"].dtype == np.int32 and x["weights"].dtype == np.float32
    assert len(x["senders"]) == len(x["receivers"]) == len(x["weights"]) > 0
    for ends in (x["senders"], x["receivers"]):
        assert ends.min() >= 0 and ends.max() < nodes
    assert set(np.unique(y)) - {-1} == set(range(len(card.classes)))
    if isinstance(x["nodes"], dict):
        values, rows, columns, shape = (x["nodes"][key] for key in ("values", "rows", "columns", "shape"))
        assert values.dtype == np.float32 and rows.dtype == columns.dtype == np.int32 and shape.dtype == np.int64
        assert tuple(shape) == (nodes, *card.shape)
        assert (np.diff(rows.astype(np.int64) * shape[1] + columns) > 0).all()  # sorted, and no place twice
        assert columns.max() < shape[1] and rows.max() < nodes and (values != 0).all()
    else:
        assert x["nodes"].dtype == np.float32 and x["nodes"].shape == (nodes, *card.shape)


def undirected(x):
    """The different pairs of different nodes that an edge joins."""
    low, high = np.minimum(x["senders"], x["receivers"]), np.maximum(x["senders"], x["receivers"])
    return {(a, b) for a, b in zip(low.tolist(), high.tolist()) if a != b}


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "nodes", "features", "counts"),
    [
        ("citeseer", 3312, 3703, [249, 596, 701, 508, 668, 590]),
        ("cora_ml", 2995, 2879, [354, 402, 452, 442, 857, 193, 295]),
        ("cora", 2708, 1433, [298, 418, 818, 426, 217, 180, 351]),  # Sen et al. 2008, by name
    ],
)
def test_real_graphs(name, nodes, features, counts, data_folder, monkeypatch):
    data, card = real(name, data_folder, monkeypatch)
    well_formed(data, card)
    assert (len(data["y"]), *card.shape) == (nodes, features)
    np.testing.assert_array_equal(np.bincount(data["y"]), counts)
    assert (data["x"]["weights"] == 1).all() and (data["x"]["nodes"]["values"] > 0).all()
    assert set(data) == {"x", "y"}


@pytest.mark.data
def test_classes_are_named_as_in_the_file(data_folder, monkeypatch):
    for name in ("citeseer", "cora_ml", "cora"):
        if not loading.missing(CARDS[name]):
            with np.load(data_folder / f"adagcn/{name}.npz", allow_pickle=False) as archive:
                assert CARDS[name].classes == tuple(archive["class_names"])


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "nodes", "features", "classes", "links", "unlabelled"),
    [
        ("planetoid_cora", 2708, 1433, 7, 5429, 0),
        ("planetoid_citeseer", 3327, 3703, 6, 4732, 15),
        ("planetoid_pubmed", 19717, 500, 3, 44338, 0),
    ],
)
def test_planetoid_has_the_published_counts(
    name, nodes, features, classes, links, unlabelled, data_folder, monkeypatch
):
    """Nodes, links, features and classes: table 1 of Kipf and Welling (2017); every link stands in both directions."""
    data, card = real(name, data_folder, monkeypatch)
    well_formed(data, card)
    assert (len(data["y"]), card.shape[0], len(card.classes)) == (nodes, features, classes)
    assert len(data["x"]["senders"]) == 2 * links
    split, y = data["split"], data["y"]
    assert split.dtype == np.int32 and (y == -1).sum() == unlabelled and (split[y == -1] == -1).all()
    np.testing.assert_array_equal(np.bincount(split + 1)[1:], [20 * classes, 500, 1000])
    np.testing.assert_array_equal(np.bincount(y[split == 0]), [20] * classes)
    np.testing.assert_array_equal(np.flatnonzero(split == 1), np.arange(20 * classes, 20 * classes + 500))
    assert (np.bincount(data["x"]["nodes"]["rows"], minlength=nodes)[y == -1] == 0).all()
    if name == "planetoid_cora":
        assert len(undirected(data["x"])) == 5278


@pytest.mark.data
def test_cora_is_one_graph_in_both_collections(data_folder, monkeypatch):
    """Class sizes and the number of words and links are the same though the order of the nodes is not."""
    one, _ = real("cora", data_folder, monkeypatch)
    two, _ = real("planetoid_cora", data_folder, monkeypatch)
    assert sorted(np.bincount(one["y"])) == sorted(np.bincount(two["y"]))
    degrees = lambda x: sorted(collections.Counter(node for pair in undirected(x) for node in pair).values())
    assert degrees(one["x"]) == degrees(two["x"])


def test_digits_are_joined_to_their_nearest():
    from sklearn.datasets import load_digits
    from sklearn.neighbors import NearestNeighbors

    data, card = load("digits_knn")
    well_formed(data, card)
    x = data["x"]
    pixels = load_digits().data
    np.testing.assert_array_equal(data["y"], load_digits().target)
    np.testing.assert_array_equal(x["nodes"] * 16, pixels)
    assert (np.bincount(x["senders"]) == 5).all() and (x["senders"] != x["receivers"]).all()
    ours = np.linalg.norm(pixels[x["senders"]] - pixels[x["receivers"]], axis=1).reshape(-1, 5)
    theirs, _ = NearestNeighbors(n_neighbors=5).fit(pixels).kneighbors()  # of the rows themselves, each left out
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert len(set(zip(x["senders"].tolist(), x["receivers"].tolist()))) == 5 * 1797


def test_list_and_get(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("JAXKIT_DATA", str(tmp_path / "data"))
    assert main(["list"]) == 0 and "planetoid_pubmed" in capsys.readouterr().out
    assert main(["get", "digits_knn"]) == 0 and "inside a dependency" in capsys.readouterr().out


@pytest.mark.data
def test_get_finds_what_is_in_the_folder(data_folder, monkeypatch, capsys):
    monkeypatch.setenv("JAXKIT_DATA", str(data_folder))
    if loading.missing(CARDS["citeseer"]):
        pytest.skip("citeseer is not in the data folder")
    assert main(["get", "citeseer"]) == 0
    assert capsys.readouterr().out.strip() == str(data_folder / "adagcn/citeseer.npz")


def test_a_file_is_checked_by_its_git_blob_id(tmp_path, monkeypatch):
    """e69de29... is what git calls the empty file."""
    monkeypatch.setenv("JAXKIT_DATA", str(tmp_path))
    file = CARDS["pubmed"].files[0]._replace(git_blob="e69de29bb2d1d6434b8b29ae775ad8c2e48c5391")
    monkeypatch.setitem(CARDS, "pubmed", CARDS["pubmed"]._replace(files=(file,)))
    path = tmp_path / file.path
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="pubmed.npz cannot be read as an npz file"):  # the sum is right, the rest not
        load("pubmed", download=False)
    path.write_bytes(b"hello\n")
    with pytest.raises(UsageError, match="was removed: expected git blob id e69de29.*, got git blob id ce013625"):
        load("pubmed", download=False)
    assert not path.exists()


ADJACENCY = scipy.sparse.csr_matrix(np.array([[0, 1, 0], [0, 0, 2], [1, 0, 0]], np.float64))
FEATURES = scipy.sparse.csr_matrix(np.array([[0, 1.5], [2, 0], [0, 0]]))


def npz(adjacency=ADJACENCY, features=FEATURES, prefixes=PPNP[0], labels=(1, 0, 1), **more):
    members = {
        prefix + part: np.asarray(getattr(matrix, part))
        for prefix, matrix in zip(prefixes, (adjacency, features))
        for part in ("data", "indices", "indptr", "shape")
    }
    file = io.BytesIO()
    np.savez(file, **members, labels=np.asarray(labels), metadata=np.array({"a": object}, dtype=object), **more)
    return file.getvalue()


@pytest.mark.parametrize("prefixes", PPNP)
def test_npz_is_read_in_each_spelling_and_its_objects_are_left_alone(prefixes):
    graph, y = graph_readers.graph_npz(npz(prefixes=prefixes), "a")
    np.testing.assert_array_equal(y, [1, 0, 1])
    edges = list(zip(graph["senders"].tolist(), graph["receivers"].tolist(), graph["weights"].tolist()))
    assert edges == [(0, 1, 1.0), (1, 2, 2.0), (2, 0, 1.0)]
    nodes = graph["nodes"]
    assert (nodes["rows"].tolist(), nodes["columns"].tolist(), nodes["values"].tolist()) == ([0, 1], [1, 0], [1.5, 2.0])
    assert nodes["shape"].tolist() == [3, 2]


def outside():
    matrix = FEATURES.copy()
    matrix.indices = np.array([1, 7], np.int32)
    return matrix


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: b"not a zip file", "a cannot be read as an npz file of plain arrays: it is damaged, another kind"),
        (lambda: npz()[:-30], "a cannot be read as an npz file"),
        (lambda: npz(labels=(0, 1)), "a has 2 labels, an adjacency of \\(3, 3\\) and features of \\(3, 2\\)"),
        (lambda: npz(prefixes=("edges_", "attr_")), "a has no matrix 'adj' in compressed rows; it has attr_data"),
        (lambda: npz(features=outside()), "a: attr_matrix is not a sparse matrix in compressed rows"),
        (lambda: npz(labels=np.array([{}, {}, {}])), "holds Python objects"),
    ],
)
def test_an_npz_that_is_none(content, message):
    with pytest.raises(UsageError, match=message) as caught:
        graph_readers.graph_npz(content(), "a")
    assert "\n" not in str(caught.value)


def planetoid_files(**other):
    """600 nodes with a text each in Planetoid's form; the test rows 597, 599 and 598, and 601 behind a missing 600."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 602)
    features = scipy.sparse.random(602, 5, 0.4, "csr", np.float32, rng)
    first, index = 597, [597, 599, 598, 601]
    neighbours = collections.defaultdict(list, {i: [(i + 1) % 600] for i in range(600)})
    neighbours[3] = [4, 4]
    whole = {
        "x": features[:60],
        "y": np.eye(3, dtype=np.int32)[labels[:60]],
        "allx": features[:first],
        "ally": np.eye(3, dtype=np.int32)[labels[:first]],
        "tx": features[index],
        "ty": np.eye(3, dtype=np.int32)[labels[index]],
        "graph": neighbours,
    }
    files = {part: pickle.dumps(value, protocol=2) for part, value in {**whole, **other}.items()}
    files["test.index"] = "\n".join(map(str, index)).encode()
    return files, features, labels


def test_planetoid_puts_test_rows_at_their_place():
    files, features, labels = planetoid_files()
    graph, y, more = graph_readers.planetoid(files, "small")
    expected = features.toarray()
    expected[600] = 0
    nodes = graph["nodes"]
    dense = np.zeros(nodes["shape"], np.float32)
    dense[nodes["rows"], nodes["columns"]] = nodes["values"]
    np.testing.assert_array_equal(dense, expected)
    np.testing.assert_array_equal(y, np.where(np.arange(602) == 600, -1, labels))
    np.testing.assert_array_equal(more["split"], [0] * 60 + [1] * 500 + [-1] * 37 + [2, 2, 2, -1, 2])
    assert len(graph["senders"]) == 601 and graph["receivers"][:6].tolist() == [1, 2, 3, 4, 4, 5]


class Harm:
    def __reduce__(self):
        return print, ("harm",)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"graph": Harm()}, "asks for __builtin__.print, which is not allowed"),
        ({"graph": {0: [999]}}, "small.graph has an edge to node 999; there are 602 nodes"),
        ({"graph": {0: ["a"]}}, "small.graph must be a dict from each node"),
        ({"graph": [[1]]}, "small.graph must be a dict from each node"),
        ({"ty": np.eye(3, dtype=np.int32)}, "the sizes of small.* do not agree"),
        ({"y": np.zeros((60, 3), np.int32)}, "the sizes of small.* do not agree"),
        ({"tx": np.zeros((4, 5))}, "small.tx holds a ndarray"),
    ],
)
def test_planetoid_files_that_are_none(other, message, capsys):
    with pytest.raises(UsageError, match=message):
        graph_readers.planetoid(planetoid_files(**other)[0], "small")
    assert "harm" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("test.index", b"a\nb", "small.test.index must hold one whole number in each line"),
        ("test.index", b"597 597 598 599", "small.test.index must hold different numbers"),
        ("allx", b"\x80\x02junk", "the pickle is damaged"),
    ],
)
def test_damaged_planetoid_files(part, content, message):
    with pytest.raises(UsageError, match=message):
        graph_readers.planetoid({**planetoid_files()[0], part: content}, "small")
