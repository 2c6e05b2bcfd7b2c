"""``--search-policy``: RMM's rates, searched for in each order on pseudo-tasks of that order's training rows.

Validation rows of the pseudo-tasks are training rows too, and those of one order never judge another, whose test rows
they may be. So nothing is chosen on test rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from experiments import run_folder
from experiments.runner import Cell, Outcome
from jaxkit import check

if TYPE_CHECKING:
    from experiments._class_incremental_data import Task
    from jaxkit.class_incremental import Stream

ITERATIONS, EPISODES = 12, 8
EPOCHS, RECIPE_EPOCHS = 0.25, 170
"""Of a training on a pseudo-task, as a share of the cell's; and those of a cell that leaves them to its recipe."""
HELD = 0.2

Make = Callable[..., tuple[Any, int]]
"""``(options, stream, **rates) -> (plan, steps)`` of RMM in its setting."""


def asked(config: Any, method: str) -> dict[str, bool]:
    """The option of a cell whose policy is searched for; empty for another."""
    return {"search_policy": True} if config.search_policy and method == "rmm" else {}


def check_methods(config: Any, methods: Sequence[str], setting: str) -> None:
    """Whether there is a policy to search for.

    Raises:
      UsageError: ``--search-policy`` without RMM.
    """
    if config.search_policy and "rmm" not in methods:
        raise check.UsageError(f"--search-policy is of rmm, which is not among the methods on {setting}; name it too")


def said(todo: Sequence[Cell]) -> list[str]:
    """What is printed before the first cell of what the searches cost."""
    count = ITERATIONS * EPISODES
    return [
        f"{cell.setting}: rmm first searches its policy: for each of {cell.options['seeds']} orders {count} trainings "
        f"of {epochs_of(cell.options['epochs']):g} epochs on pseudo-tasks of its training rows, some {times(cell):.0f} "
        "times the steps of its training"
        for cell in todo
        if "search_policy" in cell.options
    ]


def times(cell: Cell) -> float:
    """How many times the steps of a cell's training its search has; 0 without one."""
    return ITERATIONS * EPISODES * EPOCHS * (1 - HELD) if "search_policy" in cell.options else 0.0


def epochs_of(epochs: float | None) -> float:
    """Of a training on a pseudo-task."""
    return EPOCHS * (RECIPE_EPOCHS if epochs is None else epochs)


def classes_of(stream: Stream) -> int:
    """The classes of pseudo-tasks: those of the first task, as in the paper, where they make tasks of two classes or
    more; else all."""
    first = stream.bounds[0]
    return first if first >= 2 * stream.num_tasks else stream.num_classes


def searched(make: Make, task: Task, options: Any, folder: Path | None = None, resume: bool = False) -> dict[str, Any]:
    """The rates of each order, and how the search went.

    Args:
      make: makes the plan; one plan on the pseudo-stream serves all orders.
      task: of which the training rows are read.
      options: of the cell.
      folder: where what was found is kept until the cell is done; None: nowhere.
      resume: whether to take what is kept there.

    Returns m_rates and c_rates [orders][tasks], rewards [orders][iterations], classes, of, epochs, steps and seconds.
    """
    import numpy as np

    from jaxkit.class_incremental.policy_search import M_ACTIONS, search_policy, trainings
    from jaxkit.class_incremental.pseudo import pseudo_stream, pseudo_task

    kept = None if folder is None else folder / "policy.json"
    if kept is not None and resume and kept.exists():
        return run_folder.read_json(kept)
    begin, stream, classes = time.perf_counter(), task.stream, classes_of(task.stream)
    pseudo = pseudo_stream(stream, classes, HELD)
    memory = max(options.memory * classes // stream.num_classes, classes)
    smaller = SimpleNamespace(**{**vars(options), "memory": memory, "epochs": epochs_of(options.epochs)})
    plan, steps = make(smaller, pseudo, **without(stream), highest=max(M_ACTIONS))
    found = []
    for number in range(len(task.orders)):
        rows = {name: part[number] for name, part in task.train.items()}
        draw = lambda iteration, rows=rows, number=number: pseudo_task(
            rows, number * ITERATIONS + iteration, classes=classes, held=HELD
        )
        score = trainings(plan, pseudo, memory, draw, steps=steps, key=number)
        found.append(search_policy(score, stream.num_tasks, iterations=ITERATIONS, episodes=EPISODES, key=number))
    result = {
        "m_rates": [list(one.m_rates) for one in found],
        "c_rates": [list(one.c_rates) for one in found],
        "rewards": [np.round(one.history, 5).tolist() for one in found],
        "classes": classes,
        "of": stream.num_classes,
        "epochs": smaller.epochs,
        "steps": steps,
        "seconds": round(time.perf_counter() - begin, 2),
    }
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        run_folder.write_json(kept, result)
    return result


def without(stream: Stream) -> dict[str, tuple[float, ...]]:
    """Rates of 0, by which a plan has the steps of the base method."""
    zeros = (0.0,) * stream.num_tasks
    return {"m_rates": zeros, "c_rates": zeros}


def plan_and_start(make: Make, task: Task, options: Any, policy: dict[str, Any]) -> tuple[Any, int, Any]:
    """The plan that trains each order with its own rates, its steps, and the state that it starts from."""
    from jaxkit.class_incremental.rmm import shares_of, stacked

    rates = list(zip(policy["m_rates"], policy["c_rates"], strict=True))
    plan, steps = make(options, task.stream, **without(task.stream), highest=max(max(m) for m, _ in rates))
    return plan, steps, stacked([shares_of(task.stream, options.memory, tuple(m), tuple(c)) for m, c in rates])


def sentence(done: Sequence[Outcome]) -> str:
    """What was found, of each memory and order; empty where nothing was searched for."""
    parts = []
    for one in done:
        policy = one.result.get("policy") if one.result is not None else None
        if policy is None:
            continue
        rate = lambda values: " ".join(f"{value:g}" for value in values)
        rates = [f"m {rate(m)}, c {rate(c)}" for m, c in zip(policy["m_rates"], policy["c_rates"], strict=True)]
        first, last = (100 * sum(rewards[at] for rewards in policy["rewards"]) / len(rates) for at in (0, -1))
        rows = "of the classes of the first task" if policy["classes"] < policy["of"] else (
            "of all classes, so that it has seen rows of classes that come later"
        )  # fmt: skip
        parts.append(
            f"{one.cell.setting}: the rates of RMM were searched for in each order by REINFORCE, {ITERATIONS} updates "
            f"of {EPISODES} trainings of {policy['epochs']:g} epochs, on pseudo-tasks of training rows {rows}; their "
            f"mean accuracy went from {first:.1f} to {last:.1f} %. Found, by order: {'; '.join(rates)}."
        )
    return " ".join(parts)
