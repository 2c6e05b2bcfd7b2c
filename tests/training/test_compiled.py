"""A long process lets go of its compiled programs before it has too many memory mappings."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from jaxkit.training import compiled, release_programs


@pytest.mark.skipif(not compiled.MAPPINGS.exists(), reason="needs Linux's /proc")
def test_programs_are_released_when_there_are_too_many():
    function = jax.jit(lambda x: x + 1)
    function(jnp.zeros(3))
    have = compiled.MAPPINGS.read_bytes().count(b"\n")
    assert not release_programs(most=10 * have)
    assert function._cache_size() == 1
    assert release_programs(most=have // 2)
    assert function._cache_size() == 0
    assert float(function(jnp.zeros(()))) == 1.0


def test_without_a_list_of_mappings_nothing_is_done(monkeypatch, tmp_path):
    monkeypatch.setattr(compiled, "MAPPINGS", tmp_path / "absent")
    assert not release_programs(most=0)
