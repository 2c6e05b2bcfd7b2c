"""How each method is built for the conformance test: a function or a folder per part, a Case per entry of its METHODS.

A method without a case fails ``test_every_method_has_a_case``. Keep a case tiny (a few hundred rows, a network of some
ten units, batches that eight devices divide): its time is compilation.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

from jaxkit import methods
from jaxkit.learner import Data, Network
from jaxkit.networks import gcn, mlp
from jaxkit.training import optimizer
from tests.conformance import class_incremental, long_tailed, proofs
from tests.conformance.case import Case
from tests.graphs import toy


@functools.lru_cache
def digits() -> Data:
    """512 of scikit-learn's digits, x in [0, 1], ten classes."""
    x, y = load_digits(return_X_y=True)
    return {"x": jnp.asarray(x[:512] / 16.0, jnp.float32), "y": jnp.asarray(y[:512], jnp.int32)}


@functools.lru_cache
def line() -> Data:
    """256 rows of y = 2 x_0 - x_1 + 0.5 + noise."""
    keys = jax.random.split(jax.random.key(3))
    x = jax.random.normal(keys[0], (256, 4))
    return {"x": x, "y": x @ jnp.array([2.0, -1.0, 0.0, 0.0]) + 0.5 + 0.1 * jax.random.normal(keys[1], (256,))}


def cases_supervised() -> tuple[Case, ...]:
    erm, least_squares = (methods.find(f"supervised.{name}").method.make for name in ("erm", "least_squares"))
    return (
        Case(
            "supervised.erm",
            lambda **settings: erm(mlp(10, hidden=(16,), norm="batch"), optimizer("momentum", 0.1), **settings),
            digits,
            swept={"label_smoothing": (0.0, 0.2)},
            family="supervised",
        ),
        Case(
            "supervised.least_squares",
            lambda **settings: least_squares(mlp(1, hidden=(), output="mean"), optimizer("sgd", 0.1), **settings),
            line,
            family="supervised",
        ),
    )


def cases_graphs() -> tuple[Case, ...]:
    """On a graph with as many stopping nodes as labelled ones (24): what goes by length alone mixes them up."""
    hidden, linear = mlp(toy.CLASSES, hidden=(32,), bias=False), mlp(toy.CLASSES, hidden=())
    warm, cold = (0.3, 0.02), (0.3, 0.2)  # a hop that starts from the one before has little left to learn

    def one(name: str, network: Network, fall: tuple[float, ...] = (0.3,), **fixed: Any) -> Case:
        make = methods.find(f"graphs.{name}").method.make
        return Case(
            f"graphs.{name}",
            lambda **settings: make(network, optax.adam(0.05), **fixed, **settings),
            toy.data,
            fall=fall,
            swept={"l2": (1e-3, 1e-2), "weight_decay": (1e-4, 1e-2)},
            family="graphs",
        )

    return (
        one("adagcn", hidden, warm, layers=2),
        one("uniform_sum", hidden, warm, layers=2),
        one("best_hop", hidden, cold, layers=2, warm_start=False),
        one("node_mlp", hidden),
        one("hop_regression", linear),
        one("sgc", linear),
        one("node_classification", gcn(toy.CLASSES, hidden=8, dropout=0.0)),
    )


def cases_proofs() -> tuple[Case, ...]:
    return (
        Case("proof.two_stage", proofs.two_stage, proofs.imbalanced_digits, fall=(0.3, 0.3), family="proof"),
        Case(
            "proof.domain_adversarial",
            lambda **settings: proofs.domain_adversarial(
                mlp(2, hidden=(16,)), 2, optax.adam(0.01), optax.adam(0.01), **settings
            ),
            proofs.marked_environments,
            proofs.environments(),
            swept={"penalty": (0.0, 1.0)},
            family="proof",
        ),
        Case(
            "proof.reinforce",
            lambda **settings: proofs.reinforce(mlp(4, hidden=(16,)), optax.adam(0.03), **settings),
            proofs.contexts,
            proofs.bandit,
            measure=lambda metrics: 1.0 - metrics["reward"],
            swept={"decay": (0.5, 0.9)},
            family="proof",
        ),
    )


CASES: dict[str, Case] = {
    case.name: case
    for case in (
        *cases_supervised(),
        *cases_graphs(),
        *long_tailed.cases(),
        *class_incremental.cases(),
        *cases_proofs(),
    )
}


def traced_settings(case: Case) -> tuple[str, ...]:
    """The settings that a case's record says may be traced; a proof has no record and sweeps what its case lists."""
    if case.name.startswith("proof."):
        return tuple(case.swept)
    return methods.find(case.name).method.traced


def registered(name: str, cases: dict[str, Case]) -> Case:
    """The case of a method; AssertionError if there is none."""
    assert name in cases, f"method {name} has no conformance case; add one to tests/conformance/cases.py"
    return cases[name]


def first_of_family(case: Case, cases: dict[str, Case]) -> bool:
    """Whether a case stands for its family in ``make test``."""
    family: dict[str, Any] = {}
    for other in cases.values():
        family.setdefault(other.family or other.name.split(".")[0], other.name)
    return family[case.family or case.name.split(".")[0]] == case.name
