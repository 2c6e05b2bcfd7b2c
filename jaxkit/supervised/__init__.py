"""The textbook baselines that every part is compared with: empirical risk minimisation and least squares."""

from jaxkit.learner import Method
from jaxkit.supervised.erm import erm
from jaxkit.supervised.least_squares import least_squares

METHODS = {
    "erm": Method(
        make=erm,
        title="Empirical risk minimisation",
        paper="V. Vapnik. Principles of risk minimization for learning theory. NeurIPS",
        year=1991,
        categories=("baseline",),
        evidence="definition; label smoothing after Szegedy et al. 2016, section 7",
        traced=("label_smoothing",),
    ),
    "least_squares": Method(
        make=least_squares,
        title="Least squares",
        paper="C. F. Gauss. Theoria motus corporum coelestium",
        year=1809,
        categories=("baseline", "regression"),
        evidence="definition",
    ),
}

__all__ = ["METHODS", "erm", "least_squares"]
