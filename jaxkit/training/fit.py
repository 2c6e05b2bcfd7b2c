"""``fit``: a learner or a plan, data, steps; sharded, resumable, measured, in as few dispatches as a person can
follow."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxkit import check
from jaxkit.learner import Data, HostSource, Learner, Plan, Source, Stage, State
from jaxkit.training import distributed, history, program
from jaxkit.training import moment as moments
from jaxkit.training.arguments import as_plan, by_seed, check_arguments, check_rows, check_state
from jaxkit.training.checkpoints import Checkpoints
from jaxkit.training.compiled import several_devices_uncached
from jaxkit.training.evaluate import Evaluation, compile_evaluation
from jaxkit.training.history import History
from jaxkit.training.keys import as_key
from jaxkit.training.layout import Layout
from jaxkit.training.moment import Best, Moment
from jaxkit.training.optimizers import learning_rate_of
from jaxkit.training.program import Carry
from jaxkit.training.progress import Display, RunLog, mean_of, trace
from jaxkit.training.schedule import stage_steps
from jaxkit.training.sharding import DEFAULT, Rules
from jaxkit.training.signals import Stop, leave, stop_signals
from jaxkit.training.watchdog import Watchdog, watchdog

PyTree = Any
DISPATCH_S = 1.0
HOST_STEPS = 32  # batches of a HostSource sent at once
PROFILED_STEPS = 20


class NonFiniteError(RuntimeError):
    """The loss or the state is not finite; nothing of it was saved (exit code 3)."""


class Fit(NamedTuple):
    """What ``fit`` gives back; with seeds every leaf of ``state`` has a leading seed axis."""

    state: State
    history: History
    best: Best | None


class Event(NamedTuple):
    """What a callback gets after each dispatch: names and counts, the mean of each metric over the dispatch, the live
    state.

    The state's arrays are donated to the next dispatch: copy what must outlive the call.
    """

    stage: str
    step: int
    steps: int
    metrics: dict[str, float]
    state: State


def fit(
    learner_or_plan: Learner | Plan | Sequence[Stage],
    data: Data,
    *,
    key: jax.Array | int,
    steps: int,
    source: Source | HostSource | None = None,
    state: State | None = None,
    mesh: Mesh | None = None,
    rules: Rules = DEFAULT,
    seeds: int | None = None,
    per_seed: bool = False,
    eval: Evaluation | None = None,
    callbacks: Sequence[Callable[[Event], None]] = (),
    workdir: str | Path | None = None,
    resume: bool = False,
    checkpoint_every_s: float = 300.0,
    steps_per_dispatch: int | None = None,
    progress: bool = True,
    profile: str | Path | None = None,
    tag: str = "",
) -> Fit:
    """Train.

    Args:
      learner_or_plan: a Learner with its ``source``, or a plan (a tuple of Stages).
      data: dict of arrays; an argument of the compiled step, so its size costs no program text.
      key: ``jax.random.key(...)`` or an integer seed; everything random follows from it.
      steps: updates in all, split over the stages by their shares.
      source: for a Learner; None is every row once per epoch, 128 a batch. A method that wants another layout (batches
        by environment, pairs of views) says so.
      state: what the first stage begins with, as a fit before it left it: its begin gets it; without a begin it is gone
        on from as it is. With seeds its leaves have them as their first axis. None is the start. It stays as it is.
      mesh: from ``make_mesh``; None trains on one device.
      rules: which leaves of State are split how (``training.sharding``).
      seeds: train this many seeds at once; seed i equals a run with ``key=jax.random.fold_in(key, i)``.
      per_seed: every seed has its own data: the leaves of ``data`` and of ``eval.data`` have a leading axis of seeds
        (splits, subsets, orders of classes, of one size).
      eval: what to measure between dispatches; always measured at the end of a stage.
      callbacks: called with an Event after each dispatch.
      workdir: where checkpoints and metrics.jsonl go; None saves nothing.
      resume: go on from the newest checkpoint in ``workdir`` (from the start when there is none).
      checkpoint_every_s: seconds between checkpoints; one is always taken at the end of a stage, on SIGTERM and on
        Ctrl-C.
      steps_per_dispatch: None lets a dispatch last about a second, or 1024 steps.
      progress: show a display.
      profile: a folder for a ``jax.profiler`` trace of 20 steps after the compilation.
      tag: settings that the plan's shapes do not show (a method's name, a learning rate), as text; a checkpoint with
        another tag is refused.

    Returns:
      Fit(state, history, best).

    Raises:
      UsageError: what the caller can mend.
      NonFiniteError: training diverged; names the step, the learning rate and the last good checkpoint.
      SystemExit: code 143 after SIGTERM, with a checkpoint saved when there is a workdir.
      KeyboardInterrupt: after Ctrl-C, likewise.
    """
    each = by_seed(data, seeds, eval) if per_seed else [data]
    for one in each:
        check_rows(one)
    plan = as_plan(learner_or_plan, source, each[0])
    check_arguments(plan, each, steps, seeds, mesh, eval, callbacks, checkpoint_every_s, steps_per_dispatch)
    layout = Layout(plan, data, as_key(key), mesh, tuple(rules), seeds, tag, per_seed, check_state(state, seeds))
    layout.check_start()
    if mesh is not None:
        _ = layout.batches  # says at once where a batch does not divide over the mesh
    counts = stage_steps(plan, steps)
    run = _Run(
        layout, counts, eval, callbacks, workdir, every_s=checkpoint_every_s, pace=steps_per_dispatch, profile=profile
    )
    display = Display(steps, progress and distributed.is_first())
    with several_devices_uncached(mesh), stop_signals() as stop, watchdog() as dog, display:
        try:
            return run.train(run.first(resume), stop, dog, display)
        finally:
            run.close()


class _Run:
    """One call of ``fit``."""

    def __init__(
        self,
        layout: Layout,
        counts: list[int],
        evaluation: Evaluation | None,
        callbacks: Sequence[Callable[[Event], None]],
        workdir: str | Path | None,
        *,
        every_s: float,
        pace: int | None,
        profile: str | Path | None,
    ):
        self.layout, self.counts, self.evaluation, self.callbacks = layout, counts, evaluation, callbacks
        self.workdir = None if workdir is None else Path(workdir)
        self.every_s, self.fixed_pace, self.profile = every_s, pace, None if profile is None else Path(profile)
        self.eval_data = None if evaluation is None else layout.put(evaluation.data)
        self._check_evaluation()
        self.checkpoints = None if self.workdir is None else Checkpoints(self.workdir / "checkpoints")
        self.log = RunLog(None, 0)

    def _measure(self, number: int) -> Callable:
        """The compiled evaluation of a stage."""
        asked = self.evaluation
        assert asked is not None
        predict = self.layout.plan[number].learner.predict
        return compile_evaluation(predict, asked.measure, asked.batch_size, self.layout.seeds, self.layout.per_seed)

    def _check_evaluation(self) -> None:
        """What is wrong with an evaluation is said before the first step."""
        if self.evaluation is None:
            return
        for number, state in enumerate(self.layout.ends):
            names = jax.eval_shape(self._measure(number), state, self.eval_data)
            if self.evaluation.best is not None:
                check.choose("metric", self.evaluation.best, names)

    def first(self, resume: bool) -> Moment:
        """Where to start: the beginning, or the newest checkpoint."""
        latest = None if self.checkpoints is None else self.checkpoints.latest()
        if resume and self.checkpoints is None:
            raise check.UsageError("resume=True needs a workdir")
        if latest is None or self.checkpoints is None:
            return moments.beginning(self.layout.start)
        if not resume:
            raise check.UsageError(
                f"{self.workdir} already holds a checkpoint of step {latest}; "
                "go on with resume=True or choose another workdir"
            )
        moment, changed = moments.restore(self.checkpoints, self.layout, self.counts, latest)
        if changed and distributed.is_first():
            print(
                f"jaxkit: resumed on another machine ({', '.join(changed)}); results may differ in the last bits",
                file=sys.stderr,
            )
        return moment

    def train(self, moment: Moment, stop: Stop, dog: Watchdog, display: Display) -> Fit:
        """Every stage that is left."""
        path = self.workdir / "metrics.jsonl" if self.workdir is not None and distributed.is_first() else None
        self.log = RunLog(path, moment.done)
        held = [moment]
        del moment
        while held[0].stage < len(self.layout.plan):
            held.append(self._stage(held, stop, dog, display))
            self._save(held[0])
            _, stop.signal, _ = distributed.agree(0, stop.signal, False)
            if stop.signal is not None:
                self._leave(stop.signal)
        if self.checkpoints is not None:
            self.checkpoints.wait()
        return Fit(held[0].state, held[0].history, held[0].best)

    def _stage(self, held: list[Moment], stop: Stop, dog: Watchdog, display: Display) -> Moment:
        """The rest of one stage, up to and with its end; takes the moment out of ``held``, so that nobody else holds
        the state from before its begin."""
        moment = held.pop()
        number = moment.stage
        stage, total, keys = self.layout.plan[number], self.counts[number], self.layout.keys(number)
        dog.alive(f"begin of stage {stage.name!r}")
        if not moment.begun:
            carry = self.layout.begin(number, moment.state)
            moment = moment._replace(state=carry.state, source_state=carry.source_state, begun=True)
        run = self.layout.steps(number)
        batches = self.layout.open(number, moment.step) if isinstance(stage.source, HostSource) else None
        pace, saved_at, first = self.fixed_pace or 1, time.monotonic(), True
        while moment.step < total:
            due = self.checkpoints is not None and not first and time.monotonic() - saved_at >= self.every_s
            traced, self.profile = (None, self.profile) if first else (self.profile, None)
            wanted = min(pace if traced is None else PROFILED_STEPS, self._room(moment, total, batches is not None))
            count, stop.signal, due = distributed.agree(wanted, stop.signal, due)
            if due or stop.signal is not None:
                self._save(moment)
                saved_at = time.monotonic()
            if stop.signal is not None:
                self._leave(stop.signal)
            dog.alive(f"steps {moment.step}..{moment.step + count} of stage {stage.name!r}")
            began = time.monotonic()
            feed = self.layout.data if batches is None else _stack(batches, count)
            with trace(traced):
                carry = Carry(moment.state, moment.source_state)
                carry, metrics = run(carry, feed, keys, np.int32(moment.step), np.int32(count))
                metrics = {name: np.asarray(values)[..., :count] for name, values in metrics.items()}
            took = time.monotonic() - began
            moment = moment._replace(state=carry.state, source_state=carry.source_state)
            moment = self._advance(moment, count, metrics)
            if self.fixed_pace is None and not first:  # the first dispatch has the compilation in it
                pace = int(np.clip(count * DISPATCH_S / max(took, 1e-6), max(1, pace // 2), pace * 16))
            first = False
            self._tell(moment, mean_of(metrics), count / took, display)
            if (
                self.evaluation is not None
                and moment.done % (self.evaluation.every or self._total + 1) == 0
                and moment.step < total
            ):
                moment = self._evaluate(moment, dog)
        if batches is not None:
            batches.close()
        dog.alive(f"end of stage {stage.name!r}")
        moment = moment._replace(state=self.layout.end(number, moment.state))
        if self.evaluation is not None:
            moment = self._evaluate(moment, dog)
        return moment._replace(stage=number + 1, step=0, begun=False, source_state=())

    @property
    def _total(self) -> int:
        return sum(self.counts)

    def _room(self, moment: Moment, total: int, on_host: bool) -> int:
        """How many steps may pass until something else must be done."""
        room = min(total - moment.step, HOST_STEPS if on_host else program.CAPACITY)
        if self.evaluation is not None and self.evaluation.every is not None:
            room = min(room, self.evaluation.every - moment.done % self.evaluation.every)
        return room

    def _advance(self, moment: Moment, count: int, metrics: dict[str, np.ndarray]) -> Moment:
        """The moment after a dispatch; raises if any of its steps was not finite."""
        for name in ("loss", "finite"):
            if name not in metrics:
                stage = self.layout.plan[moment.stage].name
                raise check.UsageError(
                    f"the learner of stage {stage!r} gives no metric {name!r}; update must return 'loss' and 'finite'"
                )
        bad = np.flatnonzero(~(metrics["finite"] >= 0.5).reshape(-1, count).all(0))
        if bad.size:
            raise self._diverged(moment._replace(step=moment.step + int(bad[0])), "the loss or the state is not finite")
        measured = history.add_steps(moment.history, moment.stage, metrics)
        return moment._replace(step=moment.step + count, done=moment.done + count, history=measured)

    def _tell(self, moment: Moment, means: dict[str, float], rate: float, display: Display) -> None:
        """Show, log and call back what a dispatch gave."""
        stage = self.layout.plan[moment.stage].name
        display.update(stage, moment.done, means["loss"], rate)
        self.log.write(stage=stage, step=moment.done, **means)
        for callback in self.callbacks:
            callback(Event(stage, moment.done, self._total, means, moment.state))

    def _evaluate(self, moment: Moment, dog: Watchdog) -> Moment:
        asked = self.evaluation
        assert asked is not None
        dog.alive(f"evaluation after step {moment.done}")
        measured = self._measure(moment.stage)(moment.state, self.eval_data)
        values = {name: np.asarray(value) for name, value in measured.items()}
        self.log.write(stage=self.layout.plan[moment.stage].name, step=moment.done, evaluation=values)
        moment = moment._replace(history=history.add_evaluation(moment.history, moment.done, values))
        if asked.best is None:
            return moment
        return moments.keep_best(moment, values[check.choose("metric", asked.best, values)], asked.higher)

    def _save(self, moment: Moment) -> None:
        """Save a moment unless it is saved already; an unsound one raises instead."""
        if self.checkpoints is None or self.checkpoints.latest() == moment.done:
            return
        if not bool(program.healthy((moment.state, moment.source_state))):
            raise self._diverged(moment, "the state has a NaN or an infinite parameter")
        moments.save(self.checkpoints, self.layout, self.counts, moment)

    def _diverged(self, moment: Moment, what: str) -> NonFiniteError:
        stage = self.layout.plan[moment.stage if moment.begun else moment.stage - 1]
        rate, saved = learning_rate_of(moment.state), None
        if self.checkpoints is not None:
            self.checkpoints.wait()
            saved = self.checkpoints.latest()
        rate_text = "" if rate is None else f" at learning rate {rate:.3g}"
        kept = (
            "there is no checkpoint"
            if saved is None
            else f"the last good checkpoint is of step {saved}, in {self.workdir}"
        )
        bad = [name for name, values in self.layout.data.items() if not bool(program.healthy({"params": values}))]
        data_text = "".join(f"; data[{name!r}] has NaN or infinity in it" for name in bad)
        if moment.step == 0 and not bad:
            data_text = (
                "; at the first step, look for labels out of range, then for the scale of x and the learning rate"
            )
        return NonFiniteError(f"{what} after {moment.step} steps of stage {stage.name!r}{rate_text}; {kept}{data_text}")

    def _leave(self, signal: int) -> None:
        if self.checkpoints is not None:
            self.checkpoints.wait()
        leave(signal)

    def close(self) -> None:
        """Let go of the files."""
        if self.checkpoints is not None:
            self.checkpoints.close()
        self.log.close()


def _stack(batches: Iterator[PyTree], count: int) -> PyTree:
    """``count`` batches of a HostSource, stacked to the fixed length that the compiled step expects."""
    taken = []
    for batch in batches:
        taken.append(jax.tree.map(np.asarray, batch))
        if len(taken) == count:
            break
    else:
        raise check.UsageError(f"the HostSource ended {count - len(taken)} batches early; its iterator must not end")
    taken += taken[-1:] * (HOST_STEPS - count)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *taken)
