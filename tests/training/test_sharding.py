"""Eight simulated devices against one, and where the bytes are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxkit import training
from jaxkit.check import UsageError
from jaxkit.data import sources
from tests.training import toy

DATA = toy.make_data()
LEARNER = toy.classifier(hidden=64)
EVERYTHING = ((".*", training.fsdp(0)),)


def fit(**settings):
    settings = {"key": 0, "steps": 20, "source": sources.epochs(32), "progress": False} | settings
    return training.fit(LEARNER, DATA, **settings)


def relative(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - y).max() / (np.abs(y).max() + 1e-12)) for x, y in pairs)


@pytest.fixture(scope="module")
def mesh():
    return training.make_mesh(data=4, fsdp=2)


@pytest.fixture(scope="module")
def sharded(mesh):
    return fit(mesh=mesh, rules=EVERYTHING)


def test_eight_devices_equal_one(sharded):
    assert relative(sharded.state.params, fit().state.params) < 1e-5


def test_bytes_on_a_device_are_what_the_rule_says(sharded):
    params = jax.tree_util.tree_leaves_with_path(sharded.state)
    for path, leaf in params:
        parts = 2 if any(size >= 2 and size % 2 == 0 for size in leaf.shape) else 1
        assert leaf.addressable_shards[0].data.nbytes == leaf.nbytes // parts, path
    text = training.describe_sharding(sharded.state)
    total = sum(leaf.nbytes for _, leaf in params) / 2**20
    assert f"MiB in all {total:.3f}" in text and "params/head/w" in text and "fsdp" in text


def test_small_arrays_are_whole_and_the_seed_axis_is_never_split(mesh):
    shapes = {
        "small": jax.ShapeDtypeStruct((8,), jnp.float32),
        "large": jax.ShapeDtypeStruct((8, 600, 512), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, training.state_shardings(shapes, mesh, lead=1))
    assert specs == {"small": P(), "large": P(None, "fsdp")}


def test_first_rule_wins_and_every_leaf_needs_one(mesh):
    shapes = {"params": {"head": jax.ShapeDtypeStruct((4, 8), jnp.float32)}}
    rules = (("head", P(None, "fsdp")), (".*", training.replicate))
    assert training.state_shardings(shapes, mesh, rules)["params"]["head"].spec == P(None, "fsdp")
    with pytest.raises(UsageError, match="no sharding rule matches 'params/head'"):
        training.state_shardings(shapes, mesh, (("tail", training.replicate),))
    with pytest.raises(UsageError, match="does not divide by 4"):
        training.state_shardings({"head": jax.ShapeDtypeStruct((6,), jnp.float32)}, mesh, (("head", P("data")),))
    with pytest.raises(UsageError, match="names 'tensor'"):
        training.state_shardings(shapes, mesh, (("head", P("tensor")),))


@pytest.mark.parametrize("sizes", [{"data": 3, "fsdp": 4}, {"fsdp": 3}])
def test_a_mesh_that_does_not_fit_the_devices(sizes):
    with pytest.raises(UsageError, match="there are 8"):
        training.make_mesh(**sizes)


def test_a_batch_that_does_not_divide(mesh):
    with pytest.raises(UsageError, match="50 rows, which do not divide over 8 devices .* e.g. 56"):
        fit(mesh=mesh, source=sources.epochs(50))


def test_seeds_on_a_mesh(mesh):
    many = fit(mesh=mesh, rules=EVERYTHING, seeds=2)
    one = fit(key=jax.random.fold_in(jax.random.key(0), 1))
    assert relative(jax.tree.map(lambda leaf: leaf[1], many.state.params), one.state.params) < 1e-5


def test_restore_onto_another_mesh(mesh, tmp_path, capfd):
    class Interrupt(Exception):
        pass

    def interrupt(event):
        if event.step >= 10:
            raise Interrupt

    with pytest.raises(Interrupt):
        fit(
            mesh=mesh,
            rules=EVERYTHING,
            workdir=tmp_path,
            checkpoint_every_s=0.0,
            steps_per_dispatch=5,
            callbacks=[interrupt],
        )
    other = training.make_mesh(data=1, fsdp=4)
    resumed = fit(mesh=other, rules=EVERYTHING, workdir=tmp_path, resume=True)
    assert relative(resumed.state.params, fit().state.params) < 1e-5
    weight = resumed.state.params["layer0"]["w"]
    assert weight.sharding.mesh.shape["fsdp"] == 4 and weight.addressable_shards[0].data.nbytes == weight.nbytes // 4
    assert "resumed on another machine (devices 8 -> 4)" in capfd.readouterr().err
