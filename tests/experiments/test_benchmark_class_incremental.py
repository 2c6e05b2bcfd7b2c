"""The benchmark of class-incremental learning: what each side computes, never how fast it is."""

from __future__ import annotations

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments.benchmarks import _torch_class_incremental as peer
from experiments.benchmarks import class_incremental as benchmark
from jaxkit import class_incremental as cil
from jaxkit import networks
from jaxkit.class_incremental.projected import gem_projection
from jaxkit.losses import cross_entropy

RANDOM = np.random.default_rng(0)


def test_both_herd_alike():
    features = RANDOM.normal(size=(60, 8)).astype(np.float32)
    assert jax.jit(cil.herding)(features, 12)[:12].tolist() == peer.herd(features, 12).tolist()


@pytest.mark.parametrize("tasks", [1, 4])
def test_both_project_alike(tasks):
    grad, earlier = RANDOM.normal(size=(50,)), RANDOM.normal(size=(tasks, 50))
    for turned in (grad - 3.0 * earlier.sum(0), -earlier[0]):
        found = peer.project(turned, earlier)
        assert (earlier @ found > -1e-3).all()
        np.testing.assert_allclose(found, gem_projection(jnp.asarray(turned), jnp.asarray(earlier)), atol=2e-3)
    np.testing.assert_array_equal(peer.project(earlier.sum(0) * 9, earlier), np.float32(earlier.sum(0) * 9))


def test_the_step_with_the_program_on_the_host_is_ours():
    works = benchmark.gem_works()["gem"]
    task = benchmark.gem_task()
    assert task.state.extra.memory.counts.tolist() == [6] * 8 + [0, 0] and int(task.state.extra.number) == 4
    ours, (theirs, _) = works.ours()[0].params, works.other()
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-4)


def test_a_ratio_below_the_promise_is_said():
    of = lambda ratio: {"herding": {"other_over_ours": {"ratio": ratio}}}
    assert benchmark.short_of_promise(of(5.0)) is None
    assert benchmark.short_of_promise(of(3.9)) == "below the promised 5x of the loop of np.delete: 3.9x"


@pytest.mark.slow
def test_without_torch_the_result_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(benchmark, "CALLS", dict.fromkeys(benchmark.CALLS, 1))
    benchmark.main(benchmark.Config(out=tmp_path, quick=True))
    (written,) = tmp_path.glob("class_incremental-*.json")
    results = json.loads(written.read_text())
    assert results == json.loads(capsys.readouterr().out)
    assert results["icarl"] == benchmark.WITHOUT_TORCH and results["herding"]["other_over_ours"]["rounds"] == 2
    assert set(benchmark.CALLS) <= set(results)


@pytest.mark.slow
def test_both_sides_of_icarl_have_one_loss():
    torch = pytest.importorskip("torch", reason="the PyTorch peer needs torch: python -m pip install -e '.[bench]'")
    settings, (x, y) = peer.Settings(width=4), benchmark.icarl_rows()
    x, y = x[1990:2010], y[1990:2010]
    theirs = peer.Icarl(x, y, settings)
    with torch.no_grad():
        for value in theirs.before.parameters():
            value.add_(0.01 * torch.randn(value.shape, generator=theirs.generator))
    student, teacher = (jnp.asarray(model(theirs.x).detach().numpy()) for model in (theirs.model, theirs.before))
    z = cil.among(student, 0, settings.seen)
    ours = (cross_entropy(z, y) + cil.distillation(z, teacher, settings.old, settings.temperature)).mean()
    assert float(theirs.loss(slice(None))) == pytest.approx(float(ours), rel=1e-5)
    network = networks.convnet(settings.classes, width=settings.width)
    parameters = ravel_pytree(network.init(jax.random.key(0), x)[0])[0].size
    assert parameters == sum(value.numel() for value in theirs.model.parameters())
