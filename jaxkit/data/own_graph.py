"""Your own graph: a list of edges and a table of nodes, checked on the way in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxkit import check
from jaxkit.data.entries import float32_of
from jaxkit.data.own import TARGETS
from jaxkit.data.records import Arrays, Card
from jaxkit.data.tables import column_of, is_whole, number_of, numbers_of, read_table

ENDS = (("source", "target"), ("sender", "receiver"), ("senders", "receivers"))
IDS = ("id", "node", "node_id")
WEIGHT = "weight"


def from_edges(
    edges: str | Path, nodes: str | Path, *, target: str | None = None, id: str | None = None
) -> tuple[Arrays, Card]:
    """A graph from two text tables with column names in their first line (comma, semicolon or tab; UTF-8).

    Args:
      edges: one line per edge: the ids of two nodes in the columns source and target, sender and receiver, or else the
        first two, and where there a column weight (0 or more). Edges are taken as they stand;
        ``jaxkit.graphs.standardize`` gives each both directions.
      nodes: one line per node: its id, features (numbers), and a label (whole number or text; empty where it is not
        known).
      target: the column of labels; None: the one called y, label, target or class.
      id: the column of ids in ``nodes``; None: the one called id, node or node_id, else the first. Ids are
        text: 1 and 01 are two nodes.

    Returns:
      ``{"x": {"nodes" [N, F], "senders", "receivers", "weights" [E]}, "y" [N]}`` as ``jaxkit.data.load`` gives a graph,
      labels numbered 0.. in their order and -1 where there is none; a card that says what was understood.

    Raises:
      UsageError: an empty file, a missing column, two nodes with one id, an edge to an unknown node, features or
        weights that are not numbers, no label at all, or labels that are none (each with its line).
    """
    edges, nodes = Path(edges), Path(nodes)
    names, cells, lines = read_table(nodes)
    folded = [check.fold(name) for name in names]
    if id is not None:
        id_at = column_of(names, id, nodes)
    else:
        id_at = next((folded.index(name) for name in IDS if name in folded), 0)
    if target is not None:
        target_at = column_of(names, target, nodes)
    else:
        found = [folded.index(name) for name in TARGETS if name in folded and folded.index(name) != id_at]
        if not found:
            raise check.UsageError(
                f"{nodes} has no column of labels (y, label, target or class); it has {', '.join(names[:12])}; "
                "name one by target="
            )
        target_at = found[0]
    if target_at == id_at:
        raise check.UsageError(f"{nodes}: column {names[id_at]!r} cannot be both the id and the label of a node")
    chosen = [i for i in range(len(names)) if i not in (id_at, target_at)]
    if not chosen:
        raise check.UsageError(
            f"{nodes} has no feature columns beside {names[id_at]!r} and {names[target_at]!r}; add one, for example "
            "the number of edges of each node"
        )
    ids = _ids([row[id_at] for row in cells], names[id_at], nodes, lines)
    mend = "fill or drop them, or take the column out of the file"
    features = [numbers_of([row[i] for row in cells], names[i], nodes, lines, mend) for i in chosen]
    y, classes = _labels([row[target_at] for row in cells], names[target_at], nodes, lines)
    senders, receivers, weights, used = _edges(edges, ids, nodes)
    graph = {
        "nodes": float32_of(np.stack(features, axis=1), f"{nodes}: the feature table"),
        "senders": senders,
        "receivers": receivers,
        "weights": weights,
    }
    card = Card(
        name=nodes.stem,
        title=f"{len(y)} nodes with {len(chosen)} features, {len(senders)} edges",
        task="node classification",
        shape=(len(chosen),),
        classes=classes,
        rows={"all": len(y)},
        source=f"{edges} and {nodes}",
        licence="the user's own",
        citation="",
        note=(
            f"edges: columns {used}; node ids: column {names[id_at]!r}; labels: column {names[target_at]!r}, "
            f"{int((y >= 0).sum())} of {len(y)} nodes have one"
        ),
    )
    return {"x": graph, "y": y}, card


def _ids(cells: Sequence[str], name: str, path: Path, lines: Sequence[int]) -> dict[str, int]:
    """Id -> node number, in the order of the table."""
    ids: dict[str, int] = {}
    for node, cell in enumerate(cells):
        if not cell:
            raise check.UsageError(f"{path} line {lines[node]}: the id in column {name!r} is empty")
        if cell in ids:
            raise check.UsageError(
                f"{path} line {lines[node]}: node {cell!r} stands there again, after line {lines[ids[cell]]}; "
                "give each node one line"
            )
        ids[cell] = node
    return ids


def _labels(cells: Sequence[str], name: str, path: Path, lines: Sequence[int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(int32 labels, -1 for an empty cell; class names): whole numbers in their order, text in alphabetical order."""
    given = [cell for cell in cells if cell]
    if not given:
        raise check.UsageError(f"{path}: no node has a label in column {name!r}; give some of them one")
    whole = all(map(is_whole, given))
    for cell, line in zip(cells, lines):
        if is_whole(cell) and int(cell) < 0:
            raise check.UsageError(
                f"{path} line {line}: column {name!r} holds the label {cell}; leave the cell empty where a label is "
                "not known, and number classes 0, 1, 2, ..."
            )
        if cell and not whole and not math.isnan(number_of(cell)) and not is_whole(cell):
            raise check.UsageError(
                f"{path} line {line}: column {name!r} holds {cell!r}; labels are text or whole numbers written without "
                "a point"
            )
    order: list[str] = sorted(set(given), key=int) if whole else sorted(set(given))
    if len(order) > max(20, len(given) // 2):
        raise check.UsageError(
            f"{path}: column {name!r} has {len(order)} different values for {len(given)} labelled nodes; "
            "name another column by target="
        )
    if len(order) == 1:
        raise check.UsageError(
            f"{path}: all labels in column {name!r} are {order[0]!r}; a classifier needs two classes"
        )
    numbered = {cell: label for label, cell in enumerate(order)}
    return np.asarray([numbered.get(cell, -1) for cell in cells], np.int32), tuple(order)


def _edges(path: Path, ids: dict[str, int], nodes: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str]:
    """(senders, receivers, weights, names of the columns that were read)."""
    names, cells, lines = read_table(path)
    if len(names) < 2:
        raise check.UsageError(
            f"{path} has one column, {names[0]!r}; expected the ids of two nodes in each line, separated by a comma, "
            "semicolon or tab"
        )
    folded = [check.fold(name) for name in names]
    ends = next(((folded.index(a), folded.index(b)) for a, b in ENDS if a in folded and b in folded), (0, 1))
    weight_at = folded.index(WEIGHT) if WEIGHT in folded else None
    strange = [name for i, name in enumerate(names) if i not in (*ends, weight_at)]
    if strange or weight_at in ends:
        said = f"the column {strange[0]!r}" if strange else "'weight' among its first two columns"
        raise check.UsageError(
            f"{path} has {said}; expected two columns of node ids (source and target, or the first two) and perhaps "
            "'weight'"
        )
    for row, line in zip(cells, lines):
        for end in ends:
            if row[end] not in ids:
                examples = ", ".join(map(repr, list(ids)[:3]))
                raise check.UsageError(
                    f"{path} line {line}: node {row[end]!r} in column {names[end]!r} is not in {nodes} (its ids are "
                    f"{examples}, ...); add the node or drop the edge"
                )
    senders, receivers = (np.asarray([ids[row[end]] for row in cells], np.int32) for end in ends)
    used = ", ".join(repr(names[end]) for end in ends)
    if weight_at is None:
        return senders, receivers, np.ones(len(cells), np.float32), used
    mend = "weights are finite and 0 or more"
    weights = numbers_of([row[weight_at] for row in cells], names[weight_at], path, lines, mend)
    negative = np.flatnonzero(weights < 0)
    if negative.size:
        raise check.UsageError(f"{path} line {lines[negative[0]]}: the weight is {weights[negative[0]]:g}; {mend}")
    return senders, receivers, float32_of(weights, f"{path}: the weights"), f"{used}, {names[weight_at]!r}"
