"""What a cell of the class-incremental study computes: one method on all orders of a setting, and its measures."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import _class_incremental_search as search
from experiments._class_incremental_budget import STUDY_METHODS, network_of, parts_of
from experiments._class_incremental_data import Task
from experiments.runner import Cell, Skip
from jaxkit import check, training
from jaxkit import class_incremental as cil
from jaxkit.class_incremental import budget, flops
from jaxkit.class_incremental import task as tasks
from jaxkit.class_incremental.incremental import plan_of
from jaxkit.class_incremental.phases import Phase, View, make_run
from jaxkit.data import transforms
from jaxkit.learner import Batch, Data, Key, Network, Plan, TrainState, batch_mean
from jaxkit.losses import balanced_cross_entropy

QUICK = ("mlp", "linear")
"""Networks whose trainings take so short that they are not saved after every task."""
AGEM_ROWS = 256
PICTURES = transforms.chain(transforms.random_crop(4), transforms.horizontal_flip(), transforms.brightness(63 / 255))
"""The augmentation of the survey's code for CIFAR."""
SMALL: dict[str, dict[str, Any]] = {
    "l2p": {"length": 4, "top_k": 2},
    "ranpac": {"width": 2000},
    "acil": {"width": 2000},
}
"""Settings for some thousands of rows."""


SLOWER = {"derpp": 0.1, "mas": 0.1}
"""The share of the study's learning rate for a method that it would throw off: a squared error of logits, and an
importance that the squared size of the logits gives."""


def optimizer_of(options: Any, method: str = "") -> optax.GradientTransformation:
    """SGD with momentum 0.9 and weight decay, anew at each phase of each task; of transformers Adam."""
    if options.network.startswith("vit"):
        return optax.chain(optax.clip_by_global_norm(1.0), training.optimizer("adam", 1e-3))
    decay = optax.add_decayed_weights(options.weight_decay)
    return optax.chain(decay, training.optimizer("momentum", SLOWER.get(method, 1.0) * options.learning_rate))


def balanced_replay(network: Network, optimizer: optax.GradientTransformation, **settings: Any) -> Plan:
    """Replay by ``balanced_cross_entropy`` with the rows that each class has in the pool: of a new class its training
    rows, of an old one its exemplars."""
    run = make_run(**settings)
    classes = run.stream.num_classes

    def counted(state: TrainState, data: Data, key: Key) -> TrainState:
        rows, _, _ = tasks.pool_counts("replay", state.extra, tasks.grouped(data["y"], classes))
        return state._replace(extra=state.extra._replace(own=rows.astype(jnp.float32)))

    def loss(view: View, batch: Batch):
        return batch_mean(balanced_cross_entropy(view.outputs["logits"], batch["y"], view.task.own), batch), {}

    nothing = lambda params, variables: jnp.ones((classes,), jnp.float32)
    return plan_of(network, optimizer, (Phase("train", loss, begin=counted),), run, own=nothing)


def make_of(method: str) -> Any:
    """What makes the plan of a method."""
    return balanced_replay if method in STUDY_METHODS else cil.METHODS[method].make


def make_plan(method: str, options: Any, stream: cil.Stream, storage: str, **more: Any) -> tuple[Plan, int]:
    """The method as a plan on the network of its setting, and its steps; ``more`` are settings of its own.

    ``options`` has network, width, memory (None: the method keeps no exemplars), partial, epochs, batch_size,
    learning_rate and weight_decay; with ``recipe`` the last two are not read.
    """
    settings: dict[str, Any] = {"stream": stream, "batch_size": options.batch_size}
    if options.memory is not None:
        settings["memory"] = cil.Keep(options.memory, storage=storage, partial=options.partial)
    if options.network == "resnet32":
        settings["augment"] = PICTURES
    network = network_of(options.network, stream.num_classes, options.width)
    own, kind = {**SMALL.get(method, {}), **more}, getattr(options, "recipe", "study")
    if kind != "study":
        return cil.by_recipe(method, kind, network, epochs=options.epochs, **settings, **own)
    own = {"epochs": options.epochs} if method == "coil" else own
    plan = make_of(method)(network, optimizer_of(options, method), **settings, **own)
    return plan, cil.steps_of(plan, options.epochs, options.batch_size)


def watched(stream: cil.Stream) -> Any:
    """``cil.measure``, and the shares of the rows of each task that the classifier puts into each task."""
    measure = cil.measure(stream)
    task_of = jnp.asarray(stream.task_of())
    number = stream.num_tasks

    def measured(outputs: Any, data: Data) -> dict[str, jax.Array]:
        found, truth = measure(outputs, data), task_of[jnp.asarray(data["y"])]
        pairs = truth * number + task_of[outputs["logits"].argmax(-1)]
        table = jnp.bincount(pairs, length=number * number).reshape(number, number)
        table = table / jnp.maximum(table.sum(1, keepdims=True), 1)
        return found | {f"put_{i}_{j}": table[i, j] for i in range(number) for j in range(number)}

    return measured


def confusion(history: Any, number: int) -> list[list[float]]:
    """After the last task: the share of task i's rows that the classifier puts into task j, means over orders."""
    at_end = lambda i, j: float(np.asarray(history.evals[f"put_{i}_{j}"])[..., -1].mean())
    return [[round(at_end(i, j), 5) for j in range(number)] for i in range(number)]


_POOL = ThreadPoolExecutor(2)
_BEGUN: dict[str, Future] = {}


def in_pairs(cell: Cell, following: Cell | None, task_of: Callable[[Cell], Task], context: Any) -> dict[str, Any]:
    """``train_and_measure`` of a cell, while the following one begins already: most of a short training is compiling,
    which leaves a core of two idle. Only trainings that are not saved go so, on a CPU; they cannot be interrupted."""

    def run(one: Cell) -> dict[str, Any]:
        return train_and_measure(one.method, task_of(one), SimpleNamespace(**one.options), context)

    def begin(one: Cell) -> Future:
        key = repr(one)
        if key not in _BEGUN:
            _BEGUN[key] = _POOL.submit(run, one)
        return _BEGUN[key]

    short = lambda one: one.options["network"] in QUICK
    if jax.default_backend() != "cpu" or not short(cell):
        return run(cell)
    mine = begin(cell)
    if following is not None and short(following) and following.options["stream"] == cell.options["stream"]:
        begin(following)
    try:
        return mine.result()
    finally:
        del _BEGUN[repr(cell)]


def train_and_measure(method: str, task: Task, options: Any, context: Any) -> dict[str, Any]:
    """Train a method on all orders at once, and measure both read-outs after each task.

    Returns curves (read-out -> ``seen`` [orders][tasks] and ``by_task`` [orders][tasks][tasks], fractions), the
    confusion of tasks, what the model keeps, the operations of an order's training, steps and seconds; and the policy
    if one was searched for.
    """
    orders, stream, start, found = len(task.orders), task.stream, None, {}
    make = lambda options, stream, **rates: make_plan(method, options, stream, task.storage, **rates)
    try:
        if getattr(options, "search_policy", False):
            folder = None if options.network in QUICK else context.workdir
            found = {"policy": search.searched(make, task, options, folder, context.resume)}
            plan, steps, start = search.plan_and_start(make, task, options, found["policy"])
        else:
            plan, steps = make(options, stream)
    except check.UsageError as error:
        raise Skip(f"{method} does not apply here: {error}") from None
    begin = time.perf_counter()
    kept = {} if options.network in QUICK else {"workdir": context.workdir, "resume": context.resume}
    fitted = training.fit(
        plan, task.train, key=0, steps=steps, seeds=orders, per_seed=True, state=start, progress=False,
        eval=training.Evaluation(task.test, watched(stream)), profile=context.profile,
        tag=f"{method} {options}", **kept,
    )  # fmt: skip
    seconds = round(time.perf_counter() - begin, 2)
    curves = cil.curves(fitted.history, plan, stream)
    return {
        "curves": {name: {part: np.round(values, 6).tolist() for part, values in curve._asdict().items()}
                   for name, curve in curves.items()},
        "confusion": confusion(fitted.history, stream.num_tasks),
        "kept": kept_of(method, fitted.state, task, options),
        "tflops": operations(method, plan, task, options, steps),
        "steps": steps,
        "seconds": seconds,
        **found,
    }  # fmt: skip


def kept_of(method: str, states: Any, task: Task, options: Any) -> dict[str, float]:
    """What the model keeps after the last task, of one order: exemplars, bytes by the survey's rule and by the full
    one."""
    orders, shape = len(task.orders), task.train["x"].shape[2:]
    counts = getattr(states.extra.memory, "counts", None)
    exemplars = 0.0 if counts is None else float(np.asarray(counts).sum(-1).mean())
    parts, own = parts_of(options.network, shape, options.width), STUDY_METHODS.get(method, method)
    return {
        "exemplars": exemplars,
        "model_bytes": budget.kept_bytes(own, task.stream.num_tasks, parts, 0, 1),
        "exemplar_bytes": exemplars * budget.exemplar_bytes(shape, task.storage),
        "full_bytes": budget.full_bytes(states).total / orders,
    }


def operations(method: str, plan: Plan, task: Task, options: Any, steps: int) -> float | None:
    """Training operations of one order in TFLOP, of the backbones; None for a linear model, which has none."""
    if options.network == "linear":
        return None
    epochs = options.epochs or steps * options.batch_size / sum(stage.share for stage in plan)  # a recipe's, on average
    x = jax.ShapeDtypeStruct((1, *task.train["x"].shape[2:]), jnp.float32)
    rows = {"gem": options.memory, "agem": AGEM_ROWS}.get(method, 0) / options.batch_size
    network = network_of(options.network, task.stream.num_classes, options.width)
    own = STUDY_METHODS.get(method, method)
    return flops.training_flops(own, plan, network, x, epochs, memory_rows=rows).total / 1e12
