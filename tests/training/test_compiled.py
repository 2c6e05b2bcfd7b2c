"""A long process lets go of its compiled programs before it has too many memory mappings."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxkit.training import compiled, release_programs

ROOT = Path(__file__).parents[2]


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


TRAINING = """
import jax
from jaxkit import training
from tests.training import toy

least = lambda: print(getattr(jax.config, training.compiled.LEAST_TIME))
least()
mesh = training.make_mesh(data={devices}, devices=jax.devices()[:{devices}])
training.fit(toy.classifier(), toy.make_data(), key=0, steps=2, mesh=mesh, progress=False)
least()
"""


@pytest.mark.slow
def test_programs_for_several_cpu_devices_stay_out_of_the_cache(tmp_path):
    """Read from the cache they hang on JAX before 0.12; a new process, since the cache's folder is set once."""
    for devices, written in ((1, True), (8, not compiled.HANGS_FROM_THE_CACHE)):
        folder = tmp_path / str(devices)
        done = subprocess.run(
            [sys.executable, "-c", TRAINING.format(devices=devices)],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder)}
            | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["0.0", "0.0"], "the setting is not what it was"
        assert any(path.name.startswith("jit_dispatch-") for path in folder.iterdir()) == written, devices
