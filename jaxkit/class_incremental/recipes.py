"""How long and at which rates the survey trains: the recipe of its text, and those of its released code.

>>> plan, steps = by_recipe("wa", "code", network, stream=stream, memory=2000)
>>> fitted = jaxkit.training.fit(plan, {"x": x, "y": y}, key=0, steps=steps)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from jaxkit import check
from jaxkit.learner import Network, Params, Plan, PyTree, Stage, TrainState

MOMENTUM = 0.9
FALL = 0.1


class Stretch(NamedTuple):
    """Descent during a phase of a task.

    Attributes:
      epochs: over the rows of the phase.
      milestones: the epochs after which the rate is a tenth; without any it falls as half a cosine.
      weight_decay: added to the gradient times the parameter.
      learning_rate: at the start.
    """

    epochs: int
    milestones: tuple[int, ...] = ()
    weight_decay: float = 2e-4
    learning_rate: float = 0.1


class Recipe(NamedTuple):
    """What holds in the first task and in the later ones; ``phases``: of a later phase that has its own, by its
    name."""

    first: Stretch
    later: Stretch
    phases: tuple[tuple[str, Stretch], ...] = ()

    def of(self, task: int, phase: str) -> Stretch:
        """The stretch of a phase of a task, counted from 0."""
        return dict(self.phases).get(phase, self.later if task else self.first)


_TEXT = Stretch(170, (80, 120), 5e-4)
_FIRST = Stretch(200, (60, 120, 170), 5e-4)
_SECOND = {
    "foster": (("compress", Stretch(130, (), 0.0)),),
    "rmm": (("compress", Stretch(130, (), 0.0)),),
    "podnet": (("finetune", Stretch(20, (), 5e-4, 0.005)),),
}
_BOOSTED = Recipe(Stretch(200, (), 5e-4), Stretch(170, (), 5e-4), _SECOND["foster"])
CODE = {
    "finetune": Recipe(_FIRST, Stretch(80, (40, 70))),
    "ewc": Recipe(_FIRST, Stretch(180, (70, 120, 150))),
    "lwf": Recipe(Stretch(200, (60, 120, 160), 5e-4), Stretch(250, (60, 120, 180, 220))),
    "gem": Recipe(_FIRST, Stretch(100, (30, 60, 80))),
    "replay": Recipe(_FIRST, Stretch(70, (30, 50))),
    "icarl": Recipe(_FIRST, Stretch(170, (80, 120))),
    "wa": Recipe(_FIRST, Stretch(170, (60, 100, 140))),
    "bic": Recipe(Stretch(170, (60, 100, 140)), Stretch(170, (60, 100, 140))),
    "podnet": Recipe(Stretch(160, (), 5e-4), Stretch(160, (), 5e-4), _SECOND["podnet"]),
    "coil": Recipe(Stretch(160, (80, 120), 5e-4), Stretch(160, (80, 120), 5e-4)),
    "der": Recipe(_FIRST, Stretch(170, (80, 120, 150))),
    "foster": _BOOSTED,
    "rmm": _BOOSTED,
    "memo": Recipe(_FIRST, Stretch(170)),
}
"""Zhou et al. 2024, released code and its scripts for CIFAR-100."""
RECIPES = ("paper", "code")


def recipe_of(kind: str, method: str) -> Recipe:
    """A method's recipe.

    Args:
      kind: ``paper``, the text of the survey: SGD with momentum 0.9 at 0.1, batches of 128, 170 epochs of every task,
        the rate a tenth after 80 and 120; it gives no weight decay, so that of the code's first tasks, and nothing on
        the second phases of FOSTER and PODNet, so the code's rates, and lengths in the code's proportion. ``code``:
        ``CODE``, for the methods that are in it.
      method: its name.

    Raises:
      UsageError: an unknown kind, or a method without such a recipe.
    """
    if check.choose("recipe", kind, RECIPES) == "paper":
        return Recipe(_TEXT, _TEXT, _SECOND.get(method, ()))
    if method not in CODE:
        raise check.UsageError(f"the survey's code has no recipe for {method}, but for {', '.join(CODE)}; take paper")
    return CODE[method]


class Paced(NamedTuple):
    """The state of ``paced``: updates done in the phase, those that it has, which stretch holds, and the momentum."""

    step: Array
    steps: Array
    place: Array
    trace: Params


def rate(stretch: Stretch, progress: Array) -> Array:
    """The learning rate after the share ``progress`` of a phase; it changes from epoch to epoch."""
    epoch = jnp.floor(progress * stretch.epochs + 1e-4)
    if stretch.milestones:
        fallen = (epoch >= jnp.asarray(stretch.milestones)).sum()
        return stretch.learning_rate * FALL**fallen
    return stretch.learning_rate * (1 + jnp.cos(jnp.pi * epoch / stretch.epochs)) / 2


def paced(stretches: tuple[Stretch, ...]) -> optax.GradientTransformation:
    """SGD with momentum at the rate of one of the stretches: v <- 0.9 v + (g + decay theta), theta <- theta - rate v.

    Which one, and how many steps it has, stands in the state (``Paced``), where ``by_recipe`` puts it.
    """

    def init(params: Params) -> Paced:
        zero = jnp.zeros((), jnp.int32)
        return Paced(zero, zero + 1, zero, jax.tree.map(jnp.zeros_like, params))

    def update(grads: Params, state: Paced, params: Params | None = None) -> tuple[Params, Paced]:
        progress = state.step / state.steps
        now = jnp.stack([rate(stretch, progress) for stretch in stretches])[state.place]
        decay = jnp.asarray([stretch.weight_decay for stretch in stretches])[state.place]
        trace = jax.tree.map(lambda v, g, p: MOMENTUM * v + g + decay * p, state.trace, grads, params)
        updates = jax.tree.map(lambda v: (-now * v).astype(v.dtype), trace)
        return updates, state._replace(step=state.step + 1, trace=trace)

    return optax.GradientTransformation(init, update)


def by_recipe(
    method: str,
    kind: str,
    network: Network,
    *,
    batch_size: int = 128,
    epochs: float | None = None,
    **settings: Any,
) -> tuple[Plan, int]:
    """The plan of a method with the steps and rates of a recipe, and its steps in all.

    Args:
      method: of ``METHODS``, trained by descent.
      kind: ``paper`` or ``code``, see ``recipe_of``.
      network: of every task.
      batch_size: rows of a step, 128 in both recipes.
      epochs: of a later task, in place of the recipe's; every phase is shorter or longer by the same factor.
      settings: of the method, see ``Settings``.

    Raises:
      UsageError: no such method or recipe, or settings that the method does not take.
    """
    from jaxkit.class_incremental import METHODS  # the registry stands above this file

    method = check.choose("method", method, METHODS)
    recipe = recipe_of(kind, method)
    factor = 1.0 if epochs is None else float(check.positive("epochs", epochs)) / recipe.later.epochs
    stretches = tuple(dict.fromkeys((recipe.first, recipe.later, *dict(recipe.phases).values())))
    optimizer = paced(stretches)
    own: dict[str, Any] = {"finetune_optimizer": optimizer} if method == "podnet" else {}
    if method == "coil":  # its weights change over the epochs
        own = {"epochs": factor * recipe.later.epochs}
    plan = METHODS[method].make(network, optimizer, batch_size=batch_size, **own, **settings)
    if any(stage.steps is not None for stage in plan):
        raise check.UsageError(f"{method} has no phases of descent; a recipe is for methods that train a network")
    lengths, places = [], []
    for stage in plan:
        task, phase = task_and_phase(stage)
        of_task = factor * recipe.of(task, "").epochs
        lengths.append(max(math.ceil(of_task * stage.share / batch_size), 1))  # its share has the second phases' too
        places.append(stretches.index(recipe.of(task, phase)))
    return paced_plan(plan, lengths, places), sum(lengths)


def task_and_phase(stage: Stage) -> tuple[int, str]:
    """The task of a stage, from 0, and its phase's name; empty where a method has one phase."""
    task, _, phase = stage.name.partition(": ")
    return int(task.removeprefix("task ")) - 1, phase


def paced_plan(plan: Plan, lengths: list[int], places: list[int]) -> Plan:
    """The plan whose stages have these lengths, and tell ``Paced`` of them when they begin.

    Stages that share their ``begin`` still do: it looks its numbers up by the task.
    """
    tables: dict[int, dict[int, tuple[int, int]]] = {}
    for stage, length, place in zip(plan, lengths, places, strict=True):
        tables.setdefault(id(stage.begin), {})[task_and_phase(stage)[0]] = length, place
    begins = {}
    for stage in plan:
        if id(stage.begin) not in begins:
            begins[id(stage.begin)] = _telling(stage.begin, tables[id(stage.begin)])
    return tuple(
        stage._replace(steps=length, begin=begins[id(stage.begin)]) for stage, length in zip(plan, lengths, strict=True)
    )


def _telling(begin: Any, table: dict[int, tuple[int, int]]) -> Any:
    """``begin``, and then the task's length and stretch in every ``Paced`` of the state."""
    rows = [table.get(task, (1, 0)) for task in range(max(table) + 1)]
    lengths, places = (jnp.asarray(column, jnp.int32) for column in zip(*rows, strict=True))

    def told(state: TrainState | None, data: PyTree, key: Array) -> TrainState:
        after = begin(state, data, key)
        number = after.extra.number
        tell = lambda part: part._replace(steps=lengths[number], place=places[number]) if _is_paced(part) else part
        return after._replace(opt_state=jax.tree.map(tell, after.opt_state, is_leaf=_is_paced))

    return told


def _is_paced(part: Any) -> bool:
    return isinstance(part, Paced)
