"""CONTRIBUTING's worked example: its blocks run in order, its method conforms, its tests pass, its files exist."""

import re
from pathlib import Path

import pytest

from jaxkit import methods, supervised
from tests.conformance import cases, checks

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
NAME = "supervised.generalized_cross_entropy"

pytestmark = pytest.mark.skipif(not PAGE.is_file(), reason="not in a checkout")


def blocks() -> list[str]:
    """The Python blocks of the page, each behind as many empty lines as stand before it: errors then name its lines."""
    text = PAGE.read_text()
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in found]


@pytest.fixture(scope="module")
def page():
    """What the page's blocks define, run in one namespace; the register of methods is put back afterwards."""
    known = supervised.METHODS
    supervised.METHODS = dict(known)
    names = {"__name__": "contributing"}
    try:
        for block in blocks():
            exec(compile(block, str(PAGE), "exec", dont_inherit=True), names)
        yield names
    finally:
        supervised.METHODS = known


def test_the_page_adds_a_method_that_conforms(page):
    found = methods.find("Generalized-Cross-Entropy")
    assert found.name == NAME and found.method.make is page["generalized_cross_entropy"]
    assert NAME not in cases.CASES  # a page that adds what is there already teaches nothing
    with pytest.raises(AssertionError, match="has no conformance case"):
        cases.registered(NAME, cases.CASES)
    checks.conforms(checks.Subject(page["case"]), checks.TIER_1)
    tests = [value for name, value in page.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()
    # Of the training labels 27 % are wrong; a classifier that had learnt them would be right on 73 % of right ones.
    assert page["result"].history.evals["accuracy"][-1] > 0.85


@pytest.mark.slow
def test_the_method_conforms_in_the_second_tier(page):
    checks.conforms(checks.Subject(page["case"]), checks.TIER_2)


def test_the_files_and_targets_that_the_page_names_exist():
    text = PAGE.read_text()
    for name in re.findall(r"`((?:jaxkit|tests|experiments)/[\w/]+\.py)`", text):
        invented = ("generalized_cross_entropy.py", "irm.py", "/NAME.py")
        assert name.endswith(invented) or (ROOT / name).is_file(), f"{name} does not exist"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets
