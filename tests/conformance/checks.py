"""What every learner promises, as checks on a Case: ``conforms(Subject(case), TIER_1)``.

The first tier costs some two seconds a method and runs for all of them in ``make test``; the second compiles the method
anew for seeds, devices and sweeps, and runs in ``make test-all``.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkit import methods
from jaxkit.data import example_of, for_layout
from jaxkit.learner import Batch, Data, HostSource, Learner, Plan, Source, Stage, path_name
from jaxkit.training import Fit, fit, fsdp, make_mesh
from tests.conformance.cases import Case, traced_settings

PyTree = Any
OUTPUTS = ("logits", "mean", "features", "value", "carry")
HUGE = 1e6  # what padding may hold: far outside any data, but its square is no infinity
ROUNDING = 1e-7  # of float32 at 1
DISPATCHES = 3  # of each stage
SWEPT_STEPS = 8
DEVICE_STEPS = 20


class View(NamedTuple):
    """One stage before its first step: its first state, and a batch."""

    stage: Stage
    state: PyTree
    batch: Batch


class Subject:
    """A case and what its checks share, so that nothing is compiled twice."""

    def __init__(self, case: Case):
        self.case, self.data, self.key = case, case.data(), jax.random.key(11)
        self.traces = 0
        plan = plan_of(case)
        # Stages that share a learner still do.
        counted = {learner: self._counted(learner) for learner in {stage.learner for stage in plan}}
        self.plan = tuple(stage._replace(learner=counted[stage.learner]) for stage in plan)

    def _counted(self, learner: Learner) -> Learner:
        def update(state, batch, key):
            self.traces += 1
            return learner.update(state, batch, key)

        return learner._replace(update=update)

    def fit(self, steps: int | None = None, **options: Any) -> Fit:
        """Train as ``jaxkit.fit`` does."""
        options = {"key": self.key, **options}
        return fit(self.plan, self.data, steps=steps or self.case.steps, progress=False, **options)

    @functools.cached_property
    def pace(self) -> int:
        """Steps of a dispatch, so that each stage has about three."""
        return max(1, self.case.steps // (DISPATCHES * len(self.plan)))

    @functools.cached_property
    def first_run(self) -> tuple[Fit, list[tuple[str, int]]]:
        """A run, and after each of its dispatches the stage and how often update was traced until then."""
        seen: list[tuple[str, int]] = []
        count = lambda event: seen.append((event.stage, self.traces))
        return self.fit(steps_per_dispatch=self.pace, callbacks=(count,)), seen

    @functools.cached_property
    def views(self) -> list[View]:
        """Each stage before its first step; between the stages no step is made."""
        found, state = [], None
        for number, stage in enumerate(self.plan):
            key = jax.random.fold_in(self.key, number)
            state = jax.jit(functools.partial(first_state, stage))(state, self.data, key)
            found.append(View(stage, state, jax.jit(functools.partial(first_batch, stage))(state, self.data, key)))
            if stage.end is not None:
                state = jax.jit(stage.end)(state, self.data, key)
        return found

    def updater(self, stage: Stage) -> Callable:
        """The stage's update, compiled once for each learner and layout of a batch."""
        cache = self.__dict__.setdefault("_updaters", {})
        return cache.setdefault(stage.learner, jax.jit(stage.learner.update))


def plan_of(case: Case, **settings: Any) -> Plan:
    """What a case builds, as a plan."""
    made = case.build(**settings)
    if not isinstance(made, Learner):
        return tuple(made)
    source = case.source
    if source is None:
        source = for_layout(methods.find(case.name).method.layout, case.batch_size, case.data())
    elif not isinstance(source, Source | HostSource):
        source = source(made)
    return (Stage("train", made, source),)


def first_state(stage: Stage, state: PyTree | None, data: Data, key: jax.Array) -> PyTree:
    """The state with which a stage starts."""
    if stage.begin is not None:
        return stage.begin(state, data, key)
    return stage.learner.init(key, first_batch(stage, None, data, key)) if state is None else state


def first_batch(stage: Stage, state: PyTree | None, data: Data, key: jax.Array) -> Batch:
    """A batch of a stage: an example where there is no state, and else what ``next`` gives."""
    if isinstance(stage.source, HostSource):
        return next(iter(stage.source.open(data, key, 0)))
    source_state = stage.source.init(data, key)
    if state is None:
        return example_of(stage.source, data, source_state, key)
    return stage.source.next(data, source_state, state, jnp.zeros((), jnp.int32), key)[1]


def aval(leaf: Any) -> tuple:
    """Shape, dtype and weak type of a leaf."""
    aval = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else jax.typeof(leaf)
    return tuple(aval.shape), str(aval.dtype), bool(getattr(aval, "weak_type", False))


def avals(tree: PyTree) -> dict[str, tuple]:
    """path -> (shape, dtype, weak type)."""
    return {path_name(path): aval(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def host(leaf: Any) -> np.ndarray:
    """A leaf as NumPy; a random key as its data."""
    leaf = jnp.asarray(leaf)
    return np.asarray(jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf)


def leaves(tree: PyTree) -> dict[str, np.ndarray]:
    """path -> NumPy array."""
    return {path_name(path): host(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def assert_same(one: PyTree, two: PyTree, what: str, *, bits: bool = True) -> None:
    """Equal leaf by leaf: in every bit, or in every value (0 equals -0)."""
    one, two = leaves(one), leaves(two)
    assert one.keys() == two.keys(), f"{what}: {sorted(one.keys() ^ two.keys())} stand on one side only"
    for path, a in one.items():
        b = two[path]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), f"{what}: {path} is {a.dtype}{a.shape} and {b.dtype}{b.shape}"
        equal = a.tobytes() == b.tobytes() if bits else np.array_equal(a, b)
        assert equal, f"{what}: {path} differs"


def assert_close(one: PyTree, two: PyTree, tolerance: float, what: str) -> None:
    """Equal leaf by leaf up to ``tolerance`` times the leaf's largest magnitude, and to ``ROUNDING``; integers exactly.

    Without the second, a leaf that is zero but for rounding would never be equal.
    """
    one, two = leaves(one), leaves(two)
    assert one.keys() == two.keys(), f"{what}: {sorted(one.keys() ^ two.keys())} stand on one side only"
    for path, a in one.items():
        b = two[path]
        if not jnp.issubdtype(a.dtype, jnp.inexact):
            assert np.array_equal(a, b), f"{what}: {path} differs"
            continue
        error, largest = np.max(np.abs(a - b), initial=0.0), np.max(np.abs(a), initial=0.0)
        assert error <= tolerance * largest + ROUNDING, f"{what}: {path} differs by {error:.2g} of {largest:.2g}"


# The first tier ----------------------------------------------------------------------------------------------------


def check_state(subject: Subject) -> None:
    """State is arrays only, and update gives back the shapes, dtypes and weak types that it took."""
    for view in subject.views:
        kinds: list[type] = []

        def probe(function, *args):
            out = function(*args)
            kinds.extend(type(leaf) for leaf in jax.tree.leaves(out) if not isinstance(leaf, jax.Array | np.ndarray))
            return out

        before = jax.eval_shape(functools.partial(probe, view.stage.learner.init), subject.key, view.batch)
        assert not kinds, f"stage {view.stage.name!r}: init leaves {kinds[0].__name__} in the state, not an array"
        update = functools.partial(probe, lambda *args: view.stage.learner.update(*args)[0])
        after = jax.eval_shape(update, view.state, view.batch, subject.key)
        assert not kinds, f"stage {view.stage.name!r}: update leaves {kinds[0].__name__} in the state, not an array"
        assert jax.tree.structure(view.state) == jax.tree.structure(after), "update changes the structure of the state"
        for path, form in avals(view.state).items():
            assert avals(after)[path] == form, f"update turns {path} from {form} into {avals(after)[path]}"
        assert avals(before).keys() == avals(view.state).keys(), "init and begin give states of different structure"


def check_metrics(subject: Subject) -> None:
    """Metrics are a flat dict of float32 scalars with ``loss`` and ``finite``, the same keys at every step."""
    run, _ = subject.first_run
    for number, view in enumerate(subject.views):
        metrics = jax.eval_shape(lambda *args: view.stage.learner.update(*args)[1], view.state, view.batch, subject.key)
        assert isinstance(metrics, dict), f"metrics are a {type(metrics).__name__}, not a dict"
        assert {"loss", "finite"} <= metrics.keys(), f"metrics are {sorted(metrics)}; 'loss' and 'finite' are needed"
        for name, value in metrics.items():
            assert isinstance(value, jax.ShapeDtypeStruct), f"metric {name!r} is not one array"
            assert aval(value)[:2] == ((), "float32"), f"metric {name!r} is {value.dtype}{list(value.shape)}"
        steps = run.history.stage == number
        for name in metrics:
            assert np.isfinite(run.history.metrics[name][steps]).all(), f"metric {name!r} is not finite at every step"
        assert (run.history.metrics["finite"][steps] == 1).all(), "a step was not finite"


def check_retrace(subject: Subject) -> None:
    """After a stage's first dispatch update is not traced again."""
    _, seen = subject.first_run
    for stage in subject.plan:
        counts = [count for name, count in seen if name == stage.name]
        assert len(counts) > 1, f"stage {stage.name!r} had one dispatch; give the case more steps"
        assert counts[0] == counts[-1], f"stage {stage.name!r}: update was traced again after the first dispatch"


def check_repeat(subject: Subject) -> None:
    """A second run gives the same bits."""
    run, _ = subject.first_run
    again = subject.fit(steps_per_dispatch=subject.pace)
    assert_same(run.history.metrics, again.history.metrics, "the metrics of two runs")
    assert_same(run.state, again.state, "the states of two runs")


def check_falls(subject: Subject) -> None:
    """The measure (the loss, unless the case says otherwise) falls from the first tenth of a stage to the last."""
    history = subject.first_run[0].history
    falls = subject.case.fall
    assert len(falls) in (1, len(subject.plan)), "Case.fall needs one number, or one for each stage"
    for number, stage in enumerate(subject.plan):
        values = subject.case.measure(
            {name: series[history.stage == number] for name, series in history.metrics.items()}
        )
        window = max(3, len(values) // 10)
        first, last = values[:window].mean(), values[-window:].mean()
        least = falls[number % len(falls)]
        assert first - last >= least * abs(first), (
            f"stage {stage.name!r}: from {first:.4g} to {last:.4g}, not by {least:.0%}"
        )


def row_axis(source: Source | HostSource) -> int:
    """The axis of a batch along which rows lie; 0 where no axis is split over devices."""
    return source.axis or 0


def on_rows(change: Callable[[jax.Array], PyTree], batch: Batch, axis: int) -> Batch:
    """``change`` on each leaf that holds rows: the first of ``x``, and whatever has its leading axes.

    The other leaves of an ``x`` hold rows only where all of them do: else they are a graph, whose nodes and edges may
    be as many as the rows by chance. ``stopping`` holds no rows, and ``second`` is a batch of its own.
    """
    (first, *others), structure = jax.tree.flatten(batch["x"])
    holds = lambda leaf: leaf.shape[: axis + 1] == first.shape[: axis + 1]
    if all(holds(leaf) for leaf in others):
        others = [change(leaf) for leaf in others]
    changed = {"x": structure.unflatten([change(first), *others])}
    for name in batch.keys() - {"x", "second", "stopping"}:
        changed[name] = jax.tree.map(lambda leaf: change(leaf) if holds(leaf) else leaf, batch[name])
    return {**batch, **changed}


def with_padding(batch: Batch, axis: int, seed: int) -> Batch:
    """The batch with its last third of rows marked invalid and filled with garbage that ``seed`` names.

    Floats become huge (NaN for odd seeds), whole numbers are mixed among the leaf's own (wrong labels, in range),
    booleans are drawn.
    """
    random = np.random.default_rng(seed)
    lead = jax.tree.leaves(batch["x"])[0].shape[: axis + 1]
    valid = np.ones(lead, bool)
    valid[..., keep_rows(lead[-1]) :] = False
    if "valid" in batch:
        valid = valid & host(batch["valid"])

    def spoil(leaf: jax.Array) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        known = host(leaf)
        if known.dtype == bool:
            garbage = random.random(known.shape) < 0.5
        elif np.issubdtype(known.dtype, np.integer):
            garbage = random.choice(known.reshape(-1), known.shape)
        else:
            garbage = np.full(known.shape, np.nan) if seed % 2 else HUGE * random.normal(size=known.shape)
        mask = valid.reshape(lead + (1,) * (known.ndim - len(lead)))
        return jnp.asarray(np.where(mask, known, garbage), leaf.dtype)

    second = {"second": with_padding(batch["second"], axis, seed + 1)} if "second" in batch else {}
    return {**on_rows(spoil, batch, axis), **second, "valid": jnp.asarray(valid)}


def keep_rows(rows: int) -> int:
    """How many of the rows ``with_padding`` leaves valid."""
    return rows - max(1, rows // 3)


def without_padding(batch: Batch, axis: int) -> Batch:
    """The rows that ``with_padding`` leaves valid, by themselves."""
    cut = lambda leaf: jax.lax.slice_in_dim(leaf, 0, keep_rows(leaf.shape[axis]), axis=axis)
    second = {"second": without_padding(batch["second"], axis)} if "second" in batch else {}
    return {**on_rows(cut, batch, axis), **second}


def check_padding(subject: Subject) -> None:
    """What stands in invalid rows changes no value of state or metrics."""
    for view in subject.views:
        axis, update = row_axis(view.stage.source), subject.updater(view.stage)
        one, two = (update(view.state, with_padding(view.batch, axis, seed), subject.key) for seed in (1, 2))
        assert_same(one, two, f"stage {view.stage.name!r}, two fillings of padding", bits=False)


def check_padding_absent(subject: Subject) -> None:
    """A batch with padding is worth the batch of its valid rows.

    To be excepted where update draws random numbers for each row, which for fewer rows are others.
    """
    for view in subject.views:
        axis, update = row_axis(view.stage.source), subject.updater(view.stage)
        padded = update(view.state, with_padding(view.batch, axis, 1), subject.key)
        absent = update(view.state, without_padding(view.batch, axis), subject.key)
        assert_close(absent, padded, 1e-4, f"stage {view.stage.name!r}, valid rows alone and with padding")


def check_predict(subject: Subject) -> None:
    """predict needs no labels, is deterministic, and padding changes no valid row."""
    learner, state = subject.plan[-1].learner, subject.first_run[0].state
    x = on_rows(lambda leaf: leaf[:24], {"x": jax.tree.map(jnp.asarray, subject.data["x"])}, 0)["x"]
    rows = jax.tree.leaves(x)[0].shape[0]
    predict = jax.jit(learner.predict)
    outputs = predict(state, {"x": x})
    assert isinstance(outputs, dict) and outputs, "predict returns a dict that is not empty"
    for name, leaf in outputs.items():
        assert any(name == known or name.startswith(f"{known}_") for known in OUTPUTS), f"unknown output {name!r}"
        for part in jax.tree.leaves(leaf):
            assert part.shape[:1] == (rows,), f"output {name!r} has the shape {part.shape} for {rows} rows"
            assert np.isfinite(host(part)).all() or part.dtype == bool, f"output {name!r} is not finite"
    assert_same(outputs, predict(state, {"x": x}), "two predictions")
    one, two = (predict(state, with_padding({"x": x}, 0, seed)) for seed in (1, 2))
    kept = lambda tree: jax.tree.map(lambda leaf: leaf[: keep_rows(rows)], tree)
    assert_same(kept(one), kept(two), "predictions of valid rows, two fillings of padding", bits=False)
    assert_close(kept(outputs), kept(one), 1e-5, "predictions of valid rows with padding")


TIER_1: dict[str, Callable[[Subject], None]] = {
    "state": check_state,
    "metrics": check_metrics,
    "retrace": check_retrace,
    "repeat": check_repeat,
    "falls": check_falls,
    "padding": check_padding,
    "padding absent": check_padding_absent,
    "predict": check_predict,
}


# The second tier ---------------------------------------------------------------------------------------------------


def check_seeds(subject: Subject) -> None:
    """Two seeds at once equal two runs, bit for bit."""
    both = subject.fit(seeds=2)
    for seed in range(2):
        alone = subject.fit(key=jax.random.fold_in(subject.key, seed))
        assert_same(jax.tree.map(lambda leaf: leaf[seed], both.state), alone.state, f"seed {seed}, alone and mapped")
        series = {name: values[seed] for name, values in both.history.metrics.items()}
        assert_same(series, alone.history.metrics, f"the metrics of seed {seed}, alone and mapped")


class Interrupted(Exception):
    """Raised in the middle of a run."""


def check_resume(subject: Subject) -> None:
    """A run that is interrupted in every stage and between the stages ends with the bits of one that is not."""
    whole, _ = subject.first_run
    pace, stages = subject.pace, whole.history.stage
    starts = [0, *(np.flatnonzero(np.diff(stages)) + 1).tolist()]  # the first step of each stage
    # (where it is interrupted, where the newest checkpoint then lies): in the first dispatch of a later stage, the
    # checkpoint is the one between the stages; in the second dispatch of a stage, it lies inside.
    stops = [*((start + 1, start) for start in starts[1:]), *((start + 2 * pace, start + pace) for start in starts)]

    def interrupt(at: int) -> Callable:
        def callback(event):
            if event.step >= at:
                raise Interrupted

        return callback

    with tempfile.TemporaryDirectory() as folder:
        options = {"workdir": folder, "checkpoint_every_s": 0.0, "steps_per_dispatch": pace}
        for number, (stop, newest) in enumerate(sorted(stops)):
            try:
                subject.fit(callbacks=(interrupt(stop),), resume=number > 0, **options)
            except Interrupted:
                saved = [int(path.name) for path in (Path(folder) / "checkpoints").iterdir() if path.name.isdigit()]
                assert max(saved) == newest, f"interrupted at step {stop}, the newest checkpoint is of {max(saved)}"
                continue
            raise AssertionError(f"the run ended before step {stop}")
        resumed = subject.fit(resume=True, **options)
    assert_same(whole.state, resumed.state, "the state of a resumed run")
    assert_same(whole.history.metrics, resumed.history.metrics, "the metrics of a resumed run")


def check_devices(subject: Subject) -> None:
    """Eight devices (data 4 x fsdp 2) give what one gives, up to 1e-5 after 20 steps."""
    one = subject.fit(steps=DEVICE_STEPS)
    eight = subject.fit(steps=DEVICE_STEPS, mesh=make_mesh(data=4, fsdp=2), rules=((".*", fsdp(min_mb=0.0)),))
    assert_close(one.state, eight.state, 1e-5, "eight devices against one")


def train_purely(plan: Plan, data: Data, key: jax.Array, steps: int) -> PyTree:
    """``steps`` steps of each stage as one traced function."""
    state = None
    for number, stage in enumerate(plan):
        keys = jax.random.split(jax.random.fold_in(key, number), 3)
        state = first_state(stage, state, data, keys[0])

        def one(step, carry):
            state, source_state = carry
            source_state, batch = stage.source.next(data, source_state, state, step, keys[1])
            return stage.learner.update(state, batch, jax.random.fold_in(keys[2], step))[0], source_state

        state, _ = jax.lax.fori_loop(0, steps, one, (state, stage.source.init(data, keys[1])))
        state = state if stage.end is None else stage.end(state, data, keys[0])
    return state


def check_swept(subject: Subject) -> None:
    """Each traced setting, swept inside one program, gives what separate runs give."""
    case = subject.case
    wanted = set(traced_settings(case))
    assert wanted == set(case.swept), f"the record calls {sorted(wanted)} traced, the case sweeps {sorted(case.swept)}"

    def run(settings: dict[str, Any], data: Data) -> PyTree:
        return train_purely(plan_of(case, **settings), data, subject.key, SWEPT_STEPS)

    for name, values in case.swept.items():
        sweep = jax.jit(lambda values, data: jax.lax.map(lambda value: run({name: value}, data), values))
        first, second = unstack(sweep(jnp.asarray(values, jnp.float32), subject.data))
        alone = jax.jit(functools.partial(run, {name: values[1]}))(subject.data)
        assert_close(alone, second, 1e-5, f"{name}={values[1]}, alone and swept")
        differ = any(not np.array_equal(a, b) for a, b in zip(leaves(first).values(), leaves(second).values()))
        assert differ, f"{name}={values[0]} and {name}={values[1]} train to the same state"


def unstack(tree: PyTree) -> list[PyTree]:
    """The two trees that a tree with a leading axis of 2 holds."""
    return [jax.tree.map(lambda leaf: leaf[number], tree) for number in range(2)]


TIER_2: dict[str, Callable[[Subject], None]] = {
    "seeds": check_seeds,
    "resume": check_resume,
    "devices": check_devices,
    "swept": check_swept,
}


def conforms(subject: Subject, tier: dict[str, Callable[[Subject], None]]) -> None:
    """Make every check of a tier that the case does not except; what fails is raised, all of it together."""
    unknown = set(subject.case.exempt) - {*TIER_1, *TIER_2}
    assert not unknown, f"{subject.case.name} excepts unknown checks: {sorted(unknown)}"
    failures: list[Exception] = []
    for name, check in tier.items():
        if name in subject.case.exempt:
            continue
        try:
            check(subject)
        except Exception as error:
            error.add_note(f"{subject.case.name} fails the check {name!r}: {check.__doc__}")
            failures.append(error)
    if len(failures) == 1:
        raise failures[0]
    if failures:
        raise ExceptionGroup(f"{subject.case.name} fails {len(failures)} checks", failures)
