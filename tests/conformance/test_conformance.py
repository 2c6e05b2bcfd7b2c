"""Every method of every part, and three learners that prove the interface, keep what a Learner promises."""

import functools

import pytest

from jaxkit import methods
from tests.conformance import checks
from tests.conformance.cases import CASES, first_of_family, registered


@functools.lru_cache(maxsize=2)
def subject(name: str) -> checks.Subject:
    """Both tiers of a method share what was compiled."""
    return checks.Subject(CASES[name])


def tiers():
    """(case, tier) in the order of the cases; the second tier is slow but for the first of a family."""
    for name, case in CASES.items():
        yield pytest.param(name, checks.TIER_1, id=f"{name}-tier1")
        # Some fit eight devices to four programs: on a busy machine that takes longer than the limit of other tests.
        marks = () if first_of_family(case, CASES) else (pytest.mark.slow, pytest.mark.timeout(400))
        yield pytest.param(name, checks.TIER_2, id=f"{name}-tier2", marks=marks)


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_a_case(name):
    assert registered(name, CASES).name == name


def test_every_case_is_of_a_method():
    named = set(CASES) - {name for name in CASES if name.startswith("proof.")}
    assert named == set(methods.names())


@pytest.mark.parametrize(("name", "tier"), list(tiers()))
def test_conforms(name, tier):
    checks.conforms(subject(name), tier)
