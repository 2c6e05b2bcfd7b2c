"""A class-incremental model to keep: it learns a task from arrays, predicts, is saved and loaded, and learns the next.

>>> model = start("icarl", x, y, network="convnet", memory=200)
>>> model = model.learn(x_new, y_new)
>>> model.predict(x_test)
>>> model.save("model.npz")
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import scipy.special

from jaxkit import check
from jaxkit.class_incremental import given, open_ended, saved
from jaxkit.class_incremental.given import Format
from jaxkit.class_incremental.memory import Keep, make_keep
from jaxkit.class_incremental.open_ended import Program
from jaxkit.class_incremental.protocol import READ_OUTS
from jaxkit.class_incremental.report import Report, bytes_of, forgetting_interval, make_report
from jaxkit.evaluation import Interval
from jaxkit.learner import Network, TrainState
from jaxkit.training import fit

PER_CLASS = Keep(None, 20)
LEAST_CAPACITY = 10
CHUNK = 1024


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Model:
    """What has been learnt so far. It never changes: ``learn`` gives a new one.

    Attributes:
      program: what it is made of.
      format: what its rows look like.
      epochs: of a task.
      key: the seed of everything random.
      probe: the share of the rows of each class that is held back.
      read_out: by which it predicts, of ``protocol.READ_OUTS``.
      growing: whether it makes its own room for more classes.
      classes: the user's labels, in the order in which they were learnt.
      bounds: the classes known after each task.
      state: of the learner, between tasks.
      probe_x, probe_y: the rows held back, as given, and their places in ``classes``.
      right: how many of the rows held back of each task were right after each task.
    """

    program: Program
    format: Format
    epochs: float
    key: int
    probe: float
    read_out: str
    growing: bool
    classes: tuple
    bounds: tuple[int, ...]
    state: TrainState | None
    probe_x: np.ndarray
    probe_y: np.ndarray
    right: tuple[tuple[int, ...], ...]

    def learn(self, x_new: Any, y_new: Any, *, epochs: float | None = None, progress: bool = False) -> Model:
        """The model that knows the classes of these rows too.

        Args:
          x_new: rows of new classes, like those before.
          y_new: their labels, of classes not yet known.
          epochs: over the rows of the task and the exemplars; None as at the start.
          progress: show a display.

        Raises:
          UsageError: a class learnt before; rows of another shape or kind, or none; fewer rows of a class than are held
            back and kept as exemplars; no room for the classes or the task.
          NonFiniteError: training diverged. This model is as it was in every case.
        """
        x = self.format.read(x_new)
        y = given.labels(y_new, len(x))
        classes, number = (*self.classes, *given.new_classes(y, self.classes, self.bounds)), len(self.bounds)
        program, state = self._with_room(len(classes))
        y = given.places(y, classes)
        held = given.probe_mask(y, self.probe, (self.key, number))
        given.check_rows(y, held, classes, open_ended.quota(program, self.format.shape, len(classes)))
        epochs = float(check.positive("epochs", self.epochs if epochs is None else epochs))
        counts = np.bincount(y[~held] - len(self.classes))
        stages = open_ended.next_stages(open_ended.with_epochs(program, epochs), self.bounds, counts)
        steps = open_ended.steps_for(stages, epochs, program.batch_size)
        key = jax.random.fold_in(jax.random.key(self.key), number)
        fitted = fit(stages, {"x": x[~held], "y": y[~held]}, key=key, steps=steps, state=state, progress=progress)
        after = dataclasses.replace(
            self,
            program=program,
            classes=classes,
            bounds=(*self.bounds, len(classes)),
            state=open_ended.between_tasks(fitted.state),
            probe_x=np.concatenate([self.probe_x, self.format.store(x[held])]),
            probe_y=np.concatenate([self.probe_y, y[held]]),
        )
        return dataclasses.replace(after, right=(*self.right, after._right_by_task()))

    def outputs(self, x: Any) -> dict[str, np.ndarray]:
        """For each row the ``logits`` of the classes known, those of the nearest mean (``logits_ncm``), and the
        ``features``.

        Raises:
          UsageError: rows of another shape or kind, or none.
        """
        x = self.format.read(x)
        answer = open_ended.compiled(open_ended.reader(self.program, self.bounds).predict)
        parts = []
        for rows in np.array_split(x, range(CHUNK, len(x), CHUNK)):
            place = np.arange(1 << (len(rows) - 1).bit_length())  # few shapes are compiled
            found = answer(self.state, rows[np.minimum(place, len(rows) - 1)], place < len(rows))
            parts.append({name: np.asarray(found[name])[: len(rows)] for name in ("features", *READ_OUTS.values())})
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: z if name == "features" else z[:, : len(self.classes)] for name, z in whole.items()}

    def predict(self, x: Any, *, read_out: str | None = None) -> np.ndarray:
        """The label of each row, as the user gave labels. (``read_out``: ``classifier`` or ``nearest_mean``; None is
        the model's own.)"""
        return np.asarray(self.classes)[self._scores(x, read_out).argmax(-1)]

    def predict_proba(self, x: Any, *, read_out: str | None = None) -> np.ndarray:
        """The softmax of the read-out's logits, [rows, classes], in the order of ``classes``."""
        return scipy.special.softmax(self._scores(x, read_out).astype(np.float64), axis=-1)

    def accuracy(self, x: Any, y: Any, *, read_out: str | None = None) -> float:
        """The share of rows whose label is predicted.

        Raises:
          UsageError: a label that is not known, or rows of another shape or kind.
        """
        scores = self._scores(x, read_out)
        return float(np.mean(scores.argmax(-1) == given.places(given.labels(y, len(scores)), self.classes)))

    def forgetting(self, level: float = 0.95) -> Interval | None:
        """The forgetting estimated on the rows held back (``report.forgetting_interval``); None without such rows of an
        earlier task."""
        return forgetting_interval(*self._counts(), level)

    def report(self) -> Report:
        """Classes and accuracy by task, the estimated forgetting, and the bytes used."""
        from jaxkit.class_incremental import METHODS  # the registry stands above this file

        starts = (0, *self.bounds)
        by_task = tuple(self.classes[low:high] for low, high in zip(starts, self.bounds))
        used = bytes_of(self.state, self.probe_x.nbytes + self.probe_y.nbytes)
        return make_report(METHODS[self.program.method].title, by_task, *self._counts(), used)

    def save(self, path: str | Path) -> Path:
        """Write the model to one file, whole or not at all: arrays and a JSON record (``load`` reads it).

        What JSON does not hold, a network or a setting that is a function, is named in the file and given to ``load``
        again.

        Raises:
          UsageError: the file cannot be written.
        """
        return saved.save(self, path)

    def __repr__(self) -> str:
        return repr(self.report())

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def _scores(self, x: Any, read_out: str | None) -> np.ndarray:
        name = check.choose("read_out", self.read_out if read_out is None else read_out, READ_OUTS)
        return self.outputs(x)[READ_OUTS[name]]

    def _counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Right rows of each task after each task, [tasks, tasks], and the rows of each."""
        tasks = len(self.bounds)
        right = np.asarray([[*counts, *[0] * (tasks - len(counts))] for counts in self.right], int)
        of_task = np.searchsorted(self.bounds, self.probe_y, side="right")
        return right, np.bincount(of_task, minlength=tasks)

    def _right_by_task(self) -> tuple[int, ...]:
        if not len(self.probe_y):
            return (0,) * len(self.bounds)
        right = self._scores(self.probe_x, None).argmax(-1) == self.probe_y
        of_task = np.searchsorted(self.bounds, self.probe_y, side="right")
        return tuple(np.bincount(of_task[right], minlength=len(self.bounds)).tolist())

    def _with_room(self, classes: int) -> tuple[Program, TrainState | None]:
        """The program and the state with room for so many classes and one more task."""
        program = open_ended.with_room(self.program, self.format.shape, classes, len(self.bounds), self.growing)
        if self.state is None or program.capacity == self.program.capacity:
            return program, self.state
        fresh = open_ended.first_state(program, self.format.shape, jax.random.key(self.key))
        return program, open_ended.widened(self.state, fresh)


def start(
    method: str,
    x: Any,
    y: Any,
    *,
    network: str | Callable[[int], Network] = "convnet",
    network_options: dict[str, Any] | None = None,
    memory: int | Keep = PER_CLASS,
    capacity: int | None = None,
    tasks: int = 10,
    epochs: float = 20,
    batch_size: int = 64,
    optimizer: str = "adam",
    learning_rate: float = 1e-3,
    key: int = 0,
    probe: float = 0.1,
    read_out: str | None = None,
    progress: bool = False,
    **settings: Any,
) -> Model:
    """The model that knows the classes of these rows; ``learn`` adds more.

    Args:
      method: a name in ``METHODS``, not of ``open_ended.CLOSED`` (``joint``, ``rmm``).
      x: rows; uint8 is divided by 255, other numbers are taken as they are.
      y: the label of each row, whole numbers or text.
      network: a name of ``jaxkit.networks``, or a function from the number of classes to a Network.
      network_options: of a network by name, such as ``{"hidden": (64,)}``.
      memory: exemplars in all, or a ``Keep``; 20 of each class by default. They are stored as uint8 where x is uint8 or
        lies in [0, 1], else as float32. Methods without exemplars take none.
      capacity: classes for which there is room, a bound then. None: twice those of the first task, or 10, doubled when
        they are used up, up to the exemplars in all; not for methods with arrays by task (those outside
        ``open_ended.GROWING``: ``bic``, ``der``, ``memo``, ``dytox``), which cannot grow.
      tasks: tasks for which those four have room; others take any number.
      epochs: of each task; methods in closed form (``simplecil``, ``ranpac``, ``acil``) take one step.
      batch_size: rows of a step.
      optimizer, learning_rate: by name.
      key: the seed of everything random.
      probe: the share of the rows of each class, at most 20 rows, that is held back and never trained on, by which
        forgetting is estimated; 0 holds none back.
      read_out: ``classifier`` or ``nearest_mean``; None is the nearest mean for iCaRL, else the classifier.
      progress: show a display.
      settings: the method's own.

    Raises:
      UsageError: whatever of this cannot be; see also ``Model.learn``.
    """
    form = given.format_of(x)
    rows = form.read(x)
    first = len(np.unique(given.labels(y, len(rows))))
    keep = make_keep(memory)
    if not isinstance(memory, Keep) or memory is PER_CLASS:
        inside = form.scaled or (rows.min() >= 0.0 and rows.max() <= 1.0)
        keep = keep._replace(storage="uint8" if inside else "float32")
    if capacity is None:
        room = max(2 * first, LEAST_CAPACITY)
        room = room if keep.total is None else max(min(room, keep.total), first)
    else:
        room = check.count("capacity", capacity)
    program = open_ended.make_program(
        method=method,
        network=network,
        options=network_options or {},
        capacity=room,
        tasks=tasks,
        keep=keep,
        batch_size=batch_size,
        optimizer=optimizer,
        learning_rate=learning_rate,
        settings=settings,
    )
    default = "nearest_mean" if program.method == "icarl" else "classifier"
    model = Model(
        program=program,
        format=form,
        epochs=float(check.positive("epochs", epochs)),
        key=check.seed("key", key),
        probe=float(check.number("probe", probe, 0.0, 0.5)),
        read_out=check.choose("read_out", default if read_out is None else read_out, READ_OUTS),
        growing=capacity is None and program.grows,
        classes=(),
        bounds=(),
        state=None,
        probe_x=form.store(rows[:0]),
        probe_y=np.zeros((0,), np.int32),
        right=(),
    )
    return model.learn(x, y, progress=progress)


def load(path: str | Path, *, network: Callable[[int], Network] | None = None, **settings: Any) -> Model:
    """The model that ``Model.save`` wrote.

    Args:
      path: the file.
      network, settings: where the model was started with functions, the same again.

    Raises:
      UsageError: no such file, a damaged or foreign one, or functions that are missing or do not fit.
    """
    return Model(**saved.load(path, settings if network is None else {**settings, "network": network}))
