"""Own graphs: what is understood of two text tables, and one line for each thing that can be wrong with them."""

from __future__ import annotations

import numpy as np
import pytest

from jaxkit.check import UsageError
from jaxkit.data import from_edges
from jaxkit.graphs.standardize import standardize

NODES = "id,height,width,y\nann,1,2,red\nbob,3,4,\ncid,5,6,blue\ndan,-7,8.5,red\n"
EDGES = "source,target\nann,bob\ncid,ann\nbob,bob\n"


@pytest.fixture
def files(tmp_path):
    def write(edges=EDGES, nodes=NODES):
        (tmp_path / "edges.csv").write_text(edges, encoding="utf-8")
        (tmp_path / "people.csv").write_text(nodes, encoding="utf-8")
        return tmp_path / "edges.csv", tmp_path / "people.csv"

    return write


def test_two_tables_become_the_arrays_of_a_card(files):
    data, card = from_edges(*files())
    x = data["x"]
    np.testing.assert_array_equal(x["nodes"], np.array([[1, 2], [3, 4], [5, 6], [-7, 8.5]], np.float32))
    np.testing.assert_array_equal([x["senders"], x["receivers"]], [[0, 2, 1], [1, 0, 1]])
    np.testing.assert_array_equal(x["weights"], [1, 1, 1])
    np.testing.assert_array_equal(data["y"], [1, -1, 0, 1])
    assert {name: values.dtype.name for name, values in {**x, "y": data["y"]}.items()} == {
        "nodes": "float32", "senders": "int32", "receivers": "int32", "weights": "float32", "y": "int32",
    }  # fmt: skip
    assert card.classes == ("blue", "red") and card.shape == (2,) and card.rows == {"all": 4}
    assert card.task == "node classification" and card.name == "people" and "3 of 4 nodes have one" in card.note
    arrays, kept, _ = standardize(data)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    assert len(arrays["x"]["senders"]) == 4


@pytest.mark.parametrize(
    "edges",
    [
        "weight,receiver,sender\n2,bob,ann\n0,ann,cid\n0.5,bob,bob\n",
        "Sender;Receiver;Weight\nann;bob;2\ncid;ann;0\n\nbob;bob;.5\n",
        "from\tto\tweight\nann\tbob\t2\ncid\tann\t0\nbob\tbob\t5e-1\n",
        "\ufeffsource,target,weight\nann , bob,2\ncid,ann,0\n'bob',bob,0.5\n".replace("'bob'", '"bob"'),
    ],
)
def test_columns_are_known_by_name_else_by_place(files, edges):
    x = from_edges(*files(edges))[0]["x"]
    np.testing.assert_array_equal([x["senders"], x["receivers"]], [[0, 2, 1], [1, 0, 1]])
    np.testing.assert_array_equal(x["weights"], [2, 0, 0.5])


@pytest.mark.parametrize(
    ("nodes", "options"),
    [
        ("y,height,node\n10,1,a\n,2,b\n9,3,c\n", {}),
        ("name,height,Label\na,1,10\nb,2,\nc,3,9\n", {}),
        ("class,height,key\n10,1,a\n,2,b\n9,3,c\n", {"id": "key"}),
        ("id,group,height\na,10,1\nb,,2\nc,9,3\n", {"target": "group"}),
    ],
)
def test_nodes_are_known_by_their_id_and_whole_numbers_are_numbered_in_their_order(files, nodes, options):
    data, card = from_edges(*files("a,b\nc,a\n", nodes), **options)
    np.testing.assert_array_equal(data["x"]["nodes"], [[1], [2], [3]])
    np.testing.assert_array_equal(data["y"], [1, -1, 0])
    assert card.classes == ("9", "10")


def test_ids_may_be_numbers_and_are_compared_as_text(files):
    data, _ = from_edges(*files("source,target\n7,07\n", "id,f,y\n07,1,0\n7,2,1\n"))
    assert (data["x"]["senders"].tolist(), data["x"]["receivers"].tolist()) == ([1], [0])


MANY = "id,f,y\n" + "".join(f"n{i},{i},t{i}\n" for i in range(30))


@pytest.mark.parametrize(
    ("edges", "nodes", "options", "message"),
    [
        (EDGES + "eve,ann\n", NODES, {}, r"edges.csv line 5: node 'eve' in column 'source' is not in .*people.csv"),
        ("a\nann\n", NODES, {}, "edges.csv has one column, 'a'; expected the ids of two nodes"),
        ("1,2\n2,3\n", NODES, {}, "edges.csv has no column names; its first line is numbers"),
        ("", NODES, {}, "edges.csv is empty"),
        ("source,target\n", NODES, {}, "edges.csv has column names and no rows"),
        ("source,target\nann,bob,1\n", NODES, {}, "edges.csv line 2 has 3 cells, expected 2"),
        ("source,target,wieght\nann,bob,1\n", NODES, {}, "has the column 'wieght'; expected two columns .* 'weight'"),
        ("weight,target\n1,bob\n", NODES, {}, "has 'weight' among its first two columns"),
        ("source,target,weight\nann,bob,-1\n", NODES, {}, "edges.csv line 2: the weight is -1; weights are finite"),
        ("source,target,weight\nann,bob,inf\n", NODES, {}, "line 2: column 'weight' holds 'inf', expected a number"),
        ("source,target,weight\nann,bob,\n", NODES, {}, "line 2: column 'weight' holds '', expected a number"),
        (EDGES, "", {}, "people.csv is empty"),
        (EDGES, NODES + "ann,0,0,red\n", {}, "people.csv line 6: node 'ann' stands there again, after line 2"),
        (EDGES, NODES + ",0,0,red\n", {}, "people.csv line 6: the id in column 'id' is empty"),
        (EDGES, NODES + "eve,tall,0,red\n", {}, "people.csv line 6: column 'height' holds 'tall', expected a number"),
        (
            EDGES,
            NODES + "eve,,0,red\n",
            {},
            "line 6: column 'height' holds '', expected a number .*take the column out",
        ),
        (EDGES, NODES, {"target": "yy"}, "people.csv has no column 'yy'; did you mean 'y'"),
        (EDGES, NODES, {"id": "name"}, "people.csv has no column 'name'"),
        (EDGES, NODES, {"target": "id"}, "column 'id' cannot be both the id and the label"),
        (EDGES, "id,a,b\nann,1,2\n", {}, "people.csv has no column of labels .*; it has id, a, b; name one by target="),
        (EDGES, "id,y\nann,1\n", {}, "people.csv has no feature columns beside 'id' and 'y'"),
        (EDGES, "id,a,y\nann,1,\nbob,2,\n", {}, "no node has a label in column 'y'"),
        (EDGES, "id,a,y\nann,1,0\nbob,2,-1\n", {}, "line 3: column 'y' holds the label -1; leave the cell empty"),
        (EDGES, "id,a,y\nann,1,0.0\nbob,2,1.0\n", {}, "line 2: column 'y' holds '0.0'; labels are text or whole"),
        (EDGES, "id,a,y\nann,1,0\nbob,2,0\ncid,3,\n", {}, "all labels in column 'y' are '0'; a classifier needs two"),
        ("a,b\nn1,n2\n", MANY, {}, "column 'y' has 30 different values for 30 labelled nodes"),
        (EDGES, "id,a,y\nann,1e300,0\nbob,2,1\ncid,1,1\n", {}, "the feature table has 1e.300 in row 0, beyond float32"),
    ],
)
def test_what_is_wrong_is_one_line(files, edges, nodes, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        from_edges(*files(edges, nodes), **options)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(files):
    edges, nodes = files()
    with pytest.raises(UsageError, match="nowhere.csv: no such file"):
        from_edges(edges.with_name("nowhere.csv"), nodes)
    with pytest.raises(UsageError, match="nowhere.csv: no such file"):
        from_edges(edges, str(nodes.with_name("nowhere.csv")))
