"""The short door for a notebook: ``jaxkit.train(method="erm", data=(x, y), network="mlp", steps=1000)``."""

from __future__ import annotations

import base64
import hashlib
import html
import inspect
import io
import typing
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from jaxkit import check, evaluation, methods, networks, training
from jaxkit.data import Card, check_data, for_layout, from_arrays, from_file, load, rows
from jaxkit.data.entries import array_of, float32_of
from jaxkit.data.splits import test_mask
from jaxkit.learner import Data, Learner, Network

HELD_OUT = 0.2
ENTRIES = ("x", "y", "env", "attribute", "weight")


class Table(NamedTuple):
    """Table rows that show themselves: as text when printed, as a table in a notebook."""

    rows: tuple[evaluation.Row, ...]
    note: str

    def __repr__(self) -> str:
        return evaluation.to_markdown(self.rows) + "\n" + self.note

    def _repr_html_(self) -> str:
        return evaluation.to_html(self.rows) + f"<p>{html.escape(self.note)}</p>"


class Task(NamedTuple):
    """What the data says about the problem.

    Attributes:
      regression: whether ``y`` are float targets.
      outputs: the number of classes, or of targets.
      classes: the names of the classes, in the order of the labels.
      shape: of one example.
      scaled: whether x came as uint8 and is divided by 255.
      note: how many rows were trained on, and where those for testing come from.
    """

    regression: bool
    outputs: int
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    scaled: bool
    note: str


class Result:
    """A fitted method.

    Attributes:
      method: its full name, ``part.method``.
      state: the final state; with ``seeds`` every leaf has the seeds as its first axis.
      history: metrics of every step and evaluations on the test rows (``jaxkit.training.History``).
      task: what the data said about the problem.
    """

    def __init__(
        self,
        method: str,
        learner: Learner,
        state: Any,
        history: training.History,
        task: Task,
        seeds: int | None,
        name: str,
    ):
        self.method, self.state, self.history, self.task = method, state, history, task
        self._seeds, self._name = seeds, name
        one = lambda state, x: training.predict_all(learner.predict, state, x)
        self._outputs = jax.jit(
            one if seeds is None else lambda states, x: jax.lax.map(lambda state: one(state, x), states)
        )

    def outputs(self, x: Any) -> dict[str, Any]:
        """The network's outputs for new rows, ``[rows, ...]`` each; with seeds ``[seeds, rows, ...]``.

        Raises:
          UsageError: x has another shape or number type than the training data, or holds NaN.
        """
        outputs = self._outputs(self.state, _like_training(x, self.task))
        return {name: np.asarray(value) for name, value in outputs.items()}

    def probabilities(self, x: Any) -> np.ndarray:
        """Class probabilities ``[rows, classes]``: the softmax of the logits, averaged over the seeds."""
        if self.task.regression:
            raise check.UsageError(
                f"{self.method} was trained on float targets; it has no class probabilities, use predict"
            )
        probabilities = np.asarray(jax.nn.softmax(self.outputs(x)["logits"]))
        return probabilities if self._seeds is None else probabilities.mean(0)

    def predict(self, x: Any) -> np.ndarray:
        """Labels ``[rows]`` (int32; ``task.classes`` names them), or targets in the units of y; seeds are averaged."""
        if not self.task.regression:
            return self.probabilities(x).argmax(-1).astype(np.int32)
        mean = self.outputs(x)["mean"]
        return mean if self._seeds is None else mean.mean(0)

    def table(self) -> Table:
        """The metrics on the test rows after the last step, 95 % intervals over the seeds, and what was held out."""
        made = [
            evaluation.make_row("train", self._name, self.method, metric, np.atleast_1d(values[..., -1]))
            for metric, values in self.history.evals.items()
        ]
        return Table(tuple(made), self.task.note)

    def plot(self) -> Any:
        """The learning curve on the test rows (accuracy, or r2 of a regression) as a matplotlib figure."""
        metric = "r2" if self.task.regression else "accuracy"
        curves = {self.method: (self.history.eval_steps, self.history.evals[metric])}
        return evaluation.learning_curves(curves, f"test {metric}", title=self._name)

    def _repr_html_(self) -> str:
        buffer = io.BytesIO()
        self.plot().savefig(buffer, format="png", bbox_inches="tight")
        picture = base64.b64encode(buffer.getvalue()).decode("ascii")
        return f'{self.table()._repr_html_()}<img alt="learning curves" src="data:image/png;base64,{picture}">'

    def __repr__(self) -> str:
        return f"Result({self.method} on {self._name})\n{self.table()!r}"


def train(
    method: str = "erm",
    data: Any = None,
    network: str | Network = "mlp",
    *,
    steps: int = 1000,
    seeds: int | None = None,
    key: int | jax.Array = 0,
    test: Any = None,
    batch_size: int = 128,
    optimizer: str | optax.GradientTransformation = "adam",
    learning_rate: float = 1e-3,
    every: int | None = None,
    workdir: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Train a method on data and return the fitted result.

    Args:
      method: ``part.method``, or the bare name where one part alone has it; ``jaxkit.methods.names()`` lists them.
      data: ``(x, y)``, ``(x, y, env)``, a dict of these, the name of a data set (``python -m jaxkit.data`` lists
        them), or the path of a file or folder. Float x is taken as it is; uint8 x (images) is divided by 255. y holds
        labels (0..C-1, or text, which is numbered) or float targets (``method="least_squares"``).
      network: a name of the registry, or a Network.
      steps: updates in all.
      seeds: train this many seeds and give intervals over them; None trains one.
      key: the random seed of everything.
      test: rows to measure on, as arrays; None takes the data set's own, or a fifth (of each class).
      batch_size: rows of a step, at most the rows there are.
      optimizer: a name (``jaxkit.training.OPTIMIZERS``) or an optax transformation.
      learning_rate: for an optimizer given by name.
      every: steps between measurements on the test rows; default 20 measurements.
      workdir: where checkpoints go; None keeps none.
      resume: go on from the newest checkpoint in workdir; refused if it is of another method, network by name,
        optimizer, learning rate or setting.
      progress: show a display.
      settings: the method's own. Numbers of classes and environments, and class counts, are read from the data where a
        method asks for them.

    Raises:
      UsageError: whatever of this cannot be; one line that says what was expected.

    Example:
      >>> result = jaxkit.train("erm", (x, y), "mlp", steps=500, seeds=4)
      >>> result.predict(x[:5])
    """
    name, found = methods.find(method)
    check.count("steps", steps), check.count("batch_size", batch_size)
    if found.layout == "graph":
        raise check.UsageError(
            f"{name} trains on the nodes of a graph, and train takes rows; use jaxkit.fit with graphs.node_data, as in "
            "notebooks/graphs.ipynb"
        )
    given = _read(data, test, "regression" if "regression" in found.categories else None)
    arrays, held_out = given.train, given.test
    if given.card.task == "regression" and "regression" not in found.categories:
        raise check.UsageError(f"{name} needs labels, y holds floats; for float targets use method='least_squares'")
    regression = given.card.task == "regression"
    outputs = int(np.prod(arrays["y"].shape[1:], dtype=int)) if regression else len(given.card.classes)
    _check_parts(arrays, held_out, None if regression else outputs)
    note = f"trained on {rows(arrays)} rows for {steps} steps; {given.note}"
    task = Task(regression, outputs, given.card.classes, arrays["x"].shape[1:], given.scaled, note)
    net = network if isinstance(network, Network) else networks.make(network, num_classes=outputs)
    is_optax = isinstance(optimizer, optax.GradientTransformation)
    descent = optimizer if is_optax else training.optimizer(optimizer, learning_rate)
    chosen = _settings(name, found.make, settings, arrays, task, batch_size)
    made = found.make(net, descent, **chosen)
    source = for_layout(found.layout, batch_size, arrays) if isinstance(made, Learner) else None
    measure = evaluation.regression if regression else evaluation.classification
    every = max(1, steps // 20) if every is None else check.count("every", every)
    watch = training.Evaluation(held_out, measure, every)
    net_text = check.choose("network", network, networks.NETWORKS) if isinstance(network, str) else "own network"
    descent_text = "own optimizer"
    if not is_optax:
        descent_text = f"{check.choose('optimizer', optimizer, training.OPTIMIZERS)} {learning_rate}"
    parts = [name, net_text, descent_text, *(f"{word}={_text(chosen[word])}" for word in sorted(chosen))]
    how = {"seeds": seeds, "workdir": workdir, "resume": resume, "progress": progress, "tag": ", ".join(parts)}
    fitted = training.fit(made, arrays, key=key, steps=steps, source=source, eval=watch, **how)
    learner = made if isinstance(made, Learner) else tuple(made)[-1].learner
    return Result(name, learner, fitted.state, fitted.history, task, seeds, given.card.name)


class _Given(NamedTuple):
    """What was asked to be trained on, and what to measure on."""

    train: Data
    test: Data
    card: Card
    scaled: bool
    note: str


def _read(data: Any, test: Any, task: str | None) -> _Given:
    """Training and test rows from whatever ``data`` and ``test`` are."""
    scaled = False
    if not isinstance(data, (str, Path)):
        arrays, card, scaled = _arrays(data, "data", task)
    elif Path(data).exists():
        options = {} if task is None or Path(data).is_dir() else {"task": task}
        arrays, card = from_file(data, **options)
        _can_be_trained_on(arrays, card, task)
    elif isinstance(data, Path) or "/" in data or "." in data:
        raise check.UsageError(f"{data}: no such file or folder")
    else:
        arrays, card = load(str(data), "train")
        _can_be_trained_on(arrays, card, task)
        if test is None and "test" in card.rows:
            held_out = load(str(data), "test")[0]
            return _Given(arrays, held_out, card, False, f"tested on the {rows(held_out)} test rows of {card.name}")
    if test is not None:
        held_out, _, test_scaled = _arrays(test, "test", task or card.task, card.classes)
        if not isinstance(data, (str, Path)) and test_scaled != scaled:
            raise check.UsageError("of data and test, one x is uint8 and the other is not; give both alike")
        return _Given(arrays, held_out, card, scaled, f"tested on the {rows(held_out)} rows given")
    mask = test_mask(arrays["y"], HELD_OUT, card.task == "classification", card.classes)
    part = lambda chosen: {name: values[chosen] for name, values in arrays.items()}
    each = " of each class" if card.task == "classification" else ""
    note = f"tested on {mask.sum()} of {len(mask)} rows, a fifth{each} held out, evenly spaced"
    return _Given(part(~mask), part(mask), card, scaled, note)


def _can_be_trained_on(arrays: Data, card: Card, task: str | None) -> None:
    """What is read by name has one array x, y beside it, and the targets that the method needs."""
    if "y" not in arrays:
        raise check.UsageError(f"{card.name} has no 'y' to train on")
    if isinstance(arrays["x"], dict):
        raise check.UsageError(
            f"data set {card.name!r} is a graph ({', '.join(arrays['x'])}); train takes rows of one array, "
            "for a graph use jaxkit.fit"
        )
    if task == "regression" and card.task == "classification":
        raise check.UsageError(
            f"{card.name} has classes, a regression needs float targets; take a classifier such as method='erm'"
        )


def _arrays(data: Any, name: str, task: str | None, classes: tuple[str, ...] = ()) -> tuple[Data, Card, bool]:
    """Checked arrays from (x, y), (x, y, env) or a dict, their card, and whether x came as uint8.

    ``classes`` are the training data's, whose numbers text labels get.
    """
    if isinstance(data, dict):
        given = {check.choose(f"entry of {name}", word, ENTRIES): values for word, values in data.items()}
    elif isinstance(data, (tuple, list)) and len(data) in (2, 3):
        given = dict(zip(("x", "y", "env"), data, strict=False))
    else:
        more = ", or a name" if name == "data" else ""
        raise check.UsageError(f"{name} must be (x, y), (x, y, env), a dict with 'x' and 'y'{more}, got {_kind(data)}")
    given = {word: values for word, values in given.items() if values is not None}
    if "x" not in given or "y" not in given:
        raise check.UsageError(f"{name} must hold 'x' and 'y', it has {', '.join(given) or 'nothing'}")
    given["x"] = array_of(given["x"], f"{name}: x")
    if classes:
        given["y"] = _numbered(given["y"], classes, name)
    arrays, card = from_arrays(**given, task=task, name="own data" if name == "data" else name)
    return arrays, card, given["x"].dtype == np.uint8


def _numbered(y: Any, classes: tuple[str, ...], name: str) -> np.ndarray:
    """Text labels with the numbers that the training data gave them; other labels as they are."""
    y = array_of(y, f"{name}: y")
    if y.dtype.kind not in "US" and not (y.dtype == object and all(isinstance(value, str) for value in y.ravel())):
        return y
    numbers = {word: number for number, word in enumerate(classes)}
    unknown = next((word for word in y.ravel().tolist() if word not in numbers), None)
    if unknown is not None:
        listed = ", ".join(map(repr, classes[:8])) + (", ..." if len(classes) > 8 else "")
        raise check.UsageError(f"{name}: y has the label {unknown!r}, the training data has {listed}")
    return np.asarray([numbers[word] for word in y.ravel().tolist()], np.int32).reshape(y.shape)


def _kind(value: Any) -> str:
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__


def _check_parts(arrays: Data, held_out: Data, classes: int | None) -> None:
    """Every class and environment has rows to train on, and the test rows are of the training rows' kind."""
    check_data(arrays, classes, int(arrays["env"].max()) + 1 if "env" in arrays else None)
    for name in ("x", "y"):
        mine, theirs = arrays[name].shape[1:], held_out[name].shape[1:]
        if mine != theirs:
            raise check.UsageError(f"test {name} has rows of shape {theirs}, the training data has {mine}")
    if classes is not None and held_out["y"].max() >= classes:
        raise check.UsageError(f"test labels must lie in 0..{classes - 1} as in training, got {held_out['y'].max()}")


def _like_training(x: Any, task: Task) -> np.ndarray:
    """New rows as the network saw them in training."""
    x = array_of(x, "x")
    if x.dtype.kind not in "biuf":
        raise check.UsageError(f"x must hold numbers, got dtype {x.dtype}")
    if x.ndim == 0 or x.shape[1:] != task.shape:
        hint = "; for one example pass x[None]" if x.shape == task.shape else ""
        raise check.UsageError(f"x must have shape (rows, {', '.join(map(str, task.shape))}), got {x.shape}{hint}")
    if len(x) == 0:
        raise check.UsageError("x has no rows")
    if task.scaled != (x.dtype == np.uint8):
        wanted = "uint8 (0..255)" if task.scaled else "not uint8; scale x as it was then"
        raise check.UsageError(f"x is {x.dtype}; the training data was {wanted}")
    bad = np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(1))
    if bad.size:
        raise check.UsageError(f"x has NaN or infinity, first in row {bad[0]}")
    return float32_of(x, "x") / np.float32(255 if task.scaled else 1)


def _text(value: Any) -> str:
    """A setting as text that is the same in the next process: arrays by their content, functions by their name.

    What carries no such name is told by its type alone, so that two of a type are not told apart.
    """
    if isinstance(value, Network):
        return "own network"
    if value is None or isinstance(value, (str, bool, int, float)):
        return str(value)
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(value)
        if array.size <= 8:
            return str(array.tolist())
        return f"{array.dtype}{list(array.shape)} {hashlib.sha256(array.tobytes()).hexdigest()[:12]}"
    if isinstance(value, dict):
        return "{" + ", ".join(sorted(f"{_text(key)}: {_text(entry)}" for key, entry in value.items())) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_text, value)) + "]"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def _required(make: Any) -> dict[str, bool]:
    """A method's settings, and whether each must be given: keyword-only parameters, and the keys of the typed dict of
    its ``**settings: Unpack[...]``."""
    parameters = inspect.signature(make).parameters.values()
    known = {one.name: one.default is one.empty for one in parameters if one.kind is one.KEYWORD_ONLY}
    for one in parameters:
        if one.kind is one.VAR_KEYWORD:
            (shared,) = typing.get_args(typing.get_type_hints(make)[one.name])
            hints = typing.get_type_hints(shared, include_extras=True)
            known |= {word: typing.get_origin(hint) is typing.Required for word, hint in hints.items()}
    return known


def _settings(name: str, make: Any, given: dict[str, Any], arrays: Data, task: Task, batch_size: int) -> dict[str, Any]:
    """The method's settings: those given, and the numbers it asks for that the data answers."""
    known = _required(make)
    chosen = {check.choose(f"setting of {name}", word, known): value for word, value in given.items()}
    answers = {"batch_size": lambda: min(batch_size, rows(arrays))}
    if not task.regression:
        answers["num_classes"] = lambda: task.outputs
        answers["class_counts"] = lambda: np.bincount(arrays["y"], minlength=task.outputs).astype(np.float32)
    if "env" in arrays:
        answers["num_envs"] = lambda: int(arrays["env"].max()) + 1
    for word, required in known.items():
        if word not in chosen and word in answers:
            chosen[word] = answers[word]()
        elif word not in chosen and required:
            hint = "give environments by data=(x, y, env)" if word == "num_envs" else f"pass {word}=..."
            raise check.UsageError(f"{name} needs {word}; {hint}")
    return chosen
