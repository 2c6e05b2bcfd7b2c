"""The notebook's door: what it returns, and the one line for everything that can be wrong."""

from __future__ import annotations

import typing

import matplotlib.figure
import numpy as np
import pytest

import jaxkit
import jaxkit.networks
import jaxkit.supervised
from jaxkit import check, door, methods
from jaxkit.methods import find


@pytest.fixture(scope="module")
def blobs():
    """Two clusters that a line separates; the Bayes error is Phi(-5) = 3e-7."""
    generator = np.random.default_rng(0)
    y = np.arange(200) % 2
    return (generator.normal(size=(200, 2)) + 10 / np.sqrt(2) * y[:, None] * [1, 1]).astype(np.float32), y


@pytest.fixture(scope="module")
def fitted(blobs):
    return jaxkit.train("erm", blobs, "mlp", steps=60, seeds=2, learning_rate=1e-2, progress=False)


def test_a_result_predicts_and_tells(blobs, fitted):
    x, y = blobs
    assert fitted.method == "supervised.erm"
    labels = fitted.predict(x)
    assert labels.shape == (200,) and labels.dtype == np.int32 and (labels == y).mean() > 0.97
    np.testing.assert_allclose(fitted.probabilities(x).sum(-1), 1, rtol=1e-5)
    assert fitted.outputs(x)["logits"].shape == (2, 200, 2)
    assert fitted.history.metrics["loss"].shape == (2, 60)
    assert {leaf.shape[0] for leaf in __import__("jax").tree.leaves(fitted.state)} == {2}


def test_the_table_says_how_the_test_rows_were_held_out(fitted):
    table = fitted.table()
    accuracy = next(row for row in table.rows if row.metric == "accuracy")
    assert accuracy.value > 0.97 and accuracy.n == 2
    assert "tested on 40 of 200 rows, a fifth of each class held out" in repr(table) and "accuracy" in repr(table)
    page = fitted._repr_html_()
    assert (
        "<table" in page
        and "data:image/png;base64," in page
        and "tested on 40 of 200 rows, a fifth of each class held out" in page
    )
    assert isinstance(fitted.plot(), matplotlib.figure.Figure)


def test_uint8_images_are_scaled_and_stay_uint8_at_predict():
    generator = np.random.default_rng(0)
    y = np.arange(100) % 2
    x = np.clip(generator.normal(60 + 120 * y[:, None, None, None], 20, (100, 4, 4, 1)), 0, 255).astype(np.uint8)
    result = jaxkit.train(
        data={"x": x[:80], "y": y[:80]}, test=(x[80:], y[80:]), steps=60, learning_rate=1e-2, progress=False
    )
    assert (result.predict(x) == y).all() and "the 20 rows given" in repr(result)
    with pytest.raises(check.UsageError, match=r"x is float32; the training data was uint8"):
        result.predict(x.astype(np.float32))


def test_float_targets_by_least_squares():
    x = np.linspace(-1, 1, 200, dtype=np.float32)[:, None]
    result = jaxkit.train("least-squares", (x, 3 * x[:, 0] - 1), steps=400, learning_rate=1e-2, progress=False)
    np.testing.assert_allclose(result.predict(x), 3 * x[:, 0] - 1, atol=0.3)
    assert next(row.value for row in result.table().rows if row.metric == "r2") > 0.98
    with pytest.raises(check.UsageError, match="no class probabilities"):
        result.probabilities(x)


def test_text_labels_are_numbered_and_named(blobs):
    x, y = blobs
    result = jaxkit.train(data=(x, np.array(["cat", "dog"])[y]), steps=40, learning_rate=1e-2, progress=False)
    assert result.task.classes == ("cat", "dog")
    assert (np.array(result.task.classes)[result.predict(x)] == np.array(["cat", "dog"])[y]).mean() > 0.97


def test_a_data_set_by_name_brings_its_own_test_rows():
    result = jaxkit.train(data="digits", steps=1, progress=False)
    assert result.task.shape == (8, 8, 1) and result.task.outputs == 10
    assert "tested on the 500 test rows of digits" in repr(result.table())


def test_a_method_that_asks_for_numbers_gets_them_from_the_data(monkeypatch):
    asked = {}

    def make(network, optimizer, *, num_classes, class_counts, num_envs, gradient=None):
        asked.update(num_classes=num_classes, class_counts=class_counts.tolist(), num_envs=num_envs)
        return jaxkit.supervised.erm(network, optimizer)

    curious = methods.Found("part.curious", methods.find("erm").method._replace(make=make))
    monkeypatch.setattr(methods, "find", lambda name: curious)
    y = np.repeat([0, 1, 2], [10, 20, 30])
    x = np.zeros((60, 2), np.float32)
    jaxkit.train("curious", (x, y, np.arange(60) % 4), steps=1, progress=False)
    assert asked == {"num_classes": 3, "class_counts": [8, 16, 24], "num_envs": 4}
    with pytest.raises(check.UsageError, match="needs num_envs; give environments by"):
        jaxkit.train("curious", (x, y), steps=1, progress=False)


class Shared(typing.TypedDict, total=False):
    stream: typing.Required[int]
    memory: int


def test_a_plan_gets_the_size_of_its_batches_and_shared_settings(monkeypatch):
    asked = {}

    def make(network, optimizer, *, batch_size=128, **settings: typing.Unpack[Shared]):
        asked.update(settings, batch_size=batch_size)
        learner = jaxkit.supervised.erm(network, optimizer)
        return (jaxkit.learner.Stage("train", learner, jaxkit.data.epochs(batch_size)),)

    monkeypatch.setattr(
        methods, "find", lambda name: methods.Found("part.shared", find("erm").method._replace(make=make))
    )
    data = np.zeros((60, 2), np.float32), np.arange(60) % 3
    jaxkit.train("shared", data, steps=1, batch_size=16, stream=1, progress=False)
    assert asked == {"batch_size": 16, "stream": 1}
    with pytest.raises(check.UsageError, match="needs stream; pass stream="):
        jaxkit.train("shared", data, steps=1, progress=False)
    with pytest.raises(check.UsageError, match="did you mean 'memory'"):
        jaxkit.train("shared", data, steps=1, stream=1, memroy=2, progress=False)


def test_text_labels_of_test_rows_get_the_numbers_of_the_training_data():
    y = np.arange(60) % 3
    x, names = np.eye(3, dtype=np.float32)[y], np.array(["ant", "bee", "cow"])[y]
    some = y > 0  # no ant: numbered by themselves, bee would be 0
    result = jaxkit.train(data=(x, names), test=(x[some], names[some]), steps=100, batch_size=32, progress=False)
    assert result.history.evals["accuracy"][-1] == 1.0


def test_one_target_may_be_a_column():
    x = np.linspace(-1, 1, 40, dtype=np.float32)[:, None]
    result = jaxkit.train("least_squares", (x, 2 * x + 0.1), steps=2, batch_size=16, progress=False)
    assert result.predict(x[:5]).shape == (5,) and np.isfinite(result.history.evals["mse"]).all()


def test_only_the_same_run_is_resumed(blobs, tmp_path):
    plain = {"method": "erm", "data": blobs, "steps": 2, "workdir": tmp_path, "progress": False}
    first = jaxkit.train(**plain, label_smoothing=0.1)
    again = jaxkit.train(**plain, label_smoothing=0.1, resume=True)
    np.testing.assert_array_equal(again.outputs(blobs[0])["logits"], first.outputs(blobs[0])["logits"])
    for other in (
        {"label_smoothing": 0.2},
        {"label_smoothing": 0.1, "learning_rate": 1e-2},
        {"label_smoothing": 0.1, "optimizer": "sgd"},
        {"label_smoothing": 0.1, "network": jaxkit.networks.mlp(num_classes=2)},
    ):
        with pytest.raises(check.UsageError, match="is of another run: its tag is") as caught:
            jaxkit.train(**plain, **other, resume=True)
        assert "\n" not in str(caught.value) and "label_smoothing=0.1" in str(caught.value)


def test_settings_as_text_name_no_address():
    network = jaxkit.networks.mlp(2)
    given = {"network": network, "f": np.tanh, "x": np.arange(20), "few": (1.5, None), "object": object()}
    text = door._text(given)
    assert "0x" not in text and text == door._text(dict(reversed(given.items())))
    assert door._text(np.arange(20)) != door._text(np.arange(20)[::-1])


X, Y = np.zeros((20, 3), np.float32), np.arange(20) % 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"method": "erms", "data": (X, Y)}, "unknown method 'erms'; did you mean 'erm'"),
        ({"method": "supervized.erm", "data": (X, Y)}, "unknown part 'supervized'; did you mean 'supervised'"),
        ({"method": "supervised.er", "data": (X, Y)}, "did you mean 'erm'"),
        ({"network": "mpl", "data": (X, Y)}, "did you mean 'mlp'"),
        ({"data": "digit"}, "did you mean 'digits'"),
        ({"data": (X, Y), "label_smothing": 0.1}, "did you mean 'label_smoothing'"),
        ({"data": (X, Y), "optimizer": "adamm"}, "did you mean 'adam'"),
        ({"data": (X, Y[:10])}, "20 rows and 'y' has 10"),
        ({"data": (X, Y - 1)}, "labels are 0, 1, 2"),
        ({"data": (X, Y * 2)}, "classes without a row: 1"),
        ({"data": (X, Y, Y * 2)}, "environments without a row: 1"),
        ({"data": (X, Y + 0.5)}, "use method='least_squares'"),
        ({"data": (X, Y.astype(float))}, "pass integers (y.astype"),
        ({"data": (np.where(X == 0, np.nan, X), Y)}, "NaN or infinity"),
        ({"data": X}, "data must be"),
        ({"data": {"x": X}}, "must hold 'x' and 'y'"),
        ({"data": {"x": X, "labels": Y}}, "unknown entry of data 'labels'"),
        ({"data": (X, Y), "test": (X[:, :2], Y)}, "rows of shape"),
        ({"data": (X, Y), "test": (X, Y + 1)}, "test labels must lie in 0..1 as in training, got 2"),
        (
            {"data": (X, Y), "test": (X, np.array(["a", "b"])[Y])},
            "test: y has the label 'a', the training data has '0'",
        ),
        ({"data": (X, Y), "test": "digits"}, "test must be (x, y), (x, y, env), a dict with 'x' and 'y', got str"),
        ({"data": (X, None)}, "must hold 'x' and 'y', it has x"),
        ({"data": (X, Y * 0)}, "one class only"),
        ({"data": "mine.csv"}, "mine.csv: no such file or folder"),
        ({"data": "karate"}, "is a graph"),
        ({"data": (X, Y), "method": "adagcn"}, "trains on the nodes of a graph"),
        ({"data": (X, Y), "network": "gcn"}, "a graph network takes x = Nodes(rows, graph)"),
        ({"data": "digits", "method": "least_squares"}, "digits has classes, a regression needs float targets"),
        ({"data": (X, Y), "steps": 0}, "steps must be at least 1"),
        ({"data": (X[:2], Y[:2])}, "1 row for testing would leave none to train on"),
    ],
)
def test_what_can_be_wrong_is_said_in_one_line(arguments, says):
    with pytest.raises(check.UsageError) as caught:
        jaxkit.train(**{"steps": 1, "progress": False, **arguments})
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("x", "says"),
    [
        (np.zeros((5, 3), np.float32), "x must have shape (rows, 2), got (5, 3)"),
        (np.zeros(2, np.float32), "for one example pass x[None]"),
        (np.full((5, 2), np.nan, np.float32), "NaN or infinity, first in row 0"),
        (np.zeros((0, 2), np.float32), "no rows"),
        ([[1.0, 2.0], [3.0]], "rows of different lengths"),
        (np.full((5, 2), 1e300), "beyond float32"),
        (np.zeros((5, 2), np.uint8), "the training data was not uint8"),
    ],
)
def test_what_can_be_wrong_at_predict(fitted, x, says):
    with pytest.raises(check.UsageError) as caught:
        fitted.predict(x)
    assert says in str(caught.value)


def test_methods_are_found_by_full_and_by_bare_name():
    assert methods.find("ERM").name == methods.find("supervised.erm").name == "supervised.erm"
    assert methods.find("least-squares").name == "supervised.least_squares"
    assert {"supervised.erm", "supervised.least_squares"} <= set(methods.names())


def test_a_bare_name_of_two_parts_asks_which(monkeypatch):
    known = {"erm": methods.find("erm").method}
    monkeypatch.setattr(methods, "_importable", lambda: {"supervised": known, "ood": known})
    with pytest.raises(check.UsageError, match=r"take one of supervised\.erm, ood\.erm"):
        methods.find("erm")
