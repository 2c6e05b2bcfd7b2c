"""ERM and least squares against scikit-learn and closed forms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.linear_model import LogisticRegression

from jaxkit import check
from jaxkit.data import full_batch
from jaxkit.learner import Network
from jaxkit.supervised import METHODS, erm, least_squares
from jaxkit.training import fit


def linear(outputs):
    """A linear map from zero parameters, so that an optimum is comparable with a closed form."""

    def init(key, x):
        return {"w": jnp.zeros((x.shape[-1], outputs)), "b": jnp.zeros(outputs)}, {}

    def apply(params, variables, x, *, train=False, key=None, valid=None):
        return {"logits": x @ params["w"] + params["b"]}, variables

    return Network(init, apply)


def test_erm_reaches_the_maximum_likelihood_of_logistic_regression():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 3)).astype(np.float32)
    y = (x @ [1.0, -0.5, 0.2] + generator.logistic(size=300) > 0).astype(np.int32)
    learner = erm(linear(2), optax.sgd(1.0))
    state = fit(learner, {"x": x, "y": y}, key=0, steps=400, source=full_batch(), progress=False).state
    theirs = LogisticRegression(C=np.inf, tol=1e-8).fit(x, y)
    ours = np.asarray(state.params["w"][:, 1] - state.params["w"][:, 0])
    np.testing.assert_allclose(ours, theirs.coef_[0], atol=2e-3)
    np.testing.assert_allclose(
        jax.nn.softmax(learner.predict(state, {"x": x})["logits"]), theirs.predict_proba(x), atol=2e-3
    )


def test_label_smoothing_moves_the_optimum_to_the_smoothed_target():
    # With one constant feature, the optimum's probabilities are the smoothed frequencies: (1 - s) p + s / K.
    y = np.array([0] * 6 + [1] * 3 + [2] * 1, np.int32)
    data = {"x": np.zeros((10, 1), np.float32), "y": y}
    learner = erm(linear(3), optax.sgd(1.0), label_smoothing=0.3)
    state = fit(learner, data, key=0, steps=300, source=full_batch(), progress=False).state
    found = jax.nn.softmax(learner.predict(state, {"x": data["x"][:1]})["logits"])[0]
    np.testing.assert_allclose(found, 0.7 * np.array([0.6, 0.3, 0.1]) + 0.1, atol=1e-4)


def test_least_squares_reaches_the_normal_equations():
    generator = np.random.default_rng(1)
    x = generator.normal(size=(100, 2)).astype(np.float32)
    y = (x @ np.array([[1.0, 2.0], [-3.0, 0.5]]) + [0.5, -1] + generator.normal(size=(100, 2))).astype(np.float32)
    learner = least_squares(linear(2), optax.sgd(0.2))
    state = fit(learner, {"x": x, "y": y}, key=0, steps=200, source=full_batch(), progress=False).state
    solution = np.linalg.lstsq(np.c_[x, np.ones(100)], y, rcond=None)[0]
    np.testing.assert_allclose(np.r_[state.params["w"], state.params["b"][None]], solution, atol=1e-4)
    assert learner.predict(state, {"x": x})["mean"].shape == (100, 2)


def test_least_squares_of_one_target_predicts_one_number_a_row():
    x, y = np.ones((8, 1), np.float32), np.arange(8, dtype=np.float32)
    learner = least_squares(linear(1), optax.sgd(0.1))
    fitted = fit(learner, {"x": x, "y": y}, key=0, steps=200, source=full_batch(), progress=False)
    mean = learner.predict(fitted.state, {"x": x})["mean"]
    assert mean.shape == (8,) and float(mean[0]) == pytest.approx(3.5, abs=1e-4)
    assert fitted.history.metrics["loss"][0] == pytest.approx(np.mean(y**2))
    with pytest.raises(check.UsageError, match=r"predicts \[\] for each row, y has \[2\]"):
        fit(learner, {"x": x, "y": np.zeros((8, 2), np.float32)}, key=0, steps=1, source=full_batch(), progress=False)


def test_a_batch_without_labels_is_refused():
    x, plain = np.ones((8, 1), np.float32), {"key": 0, "steps": 1, "source": full_batch(), "progress": False}
    for data in ({"x": x}, {"x": x, "y": np.zeros(8, np.float32)}):
        with pytest.raises(check.UsageError, match="erm needs whole-number labels 'y'"):
            fit(erm(linear(2), optax.sgd(0.1)), data, **plain)
    with pytest.raises(check.UsageError, match="least_squares needs targets 'y'"):
        fit(least_squares(linear(1), optax.sgd(0.1)), {"x": x}, **plain)


def test_bad_smoothing_is_refused():
    with pytest.raises(check.UsageError, match="label_smoothing"):
        erm(linear(2), optax.sgd(0.1), label_smoothing=1.5)


def test_the_records_name_what_they_make():
    assert METHODS["erm"].make is erm and METHODS["least_squares"].make is least_squares
    assert all(record.title and record.paper and record.evidence for record in METHODS.values())
