"""The published networks: their sizes, and their weights on real pictures."""

import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from jaxkit import fetch, networks
from jaxkit.check import UsageError
from jaxkit.networks import heads, layers
from jaxkit.networks.vision import efficientnet, resnet


def shapes(network, size):
    return jax.eval_shape(network.init, jax.random.key(0), jax.ShapeDtypeStruct((2, size, size, 3), jnp.float32))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name, published", [("resnet20", 269_722), ("resnet32", 464_154)])
def test_resnet_parameters(name, published):
    params, variables = shapes(networks.make(name, 10), 32)
    assert count(params) == published
    assert set(params) == {"backbone", "head"} and set(variables["batch_stats"]) == {"backbone"}


def test_efficientnet_parameters():
    """4,694,024 values with the batch statistics, as in the published file."""
    params, variables = shapes(networks.make("EfficientNet-Lite0", 1000), 224)
    assert count((params, variables)) == 4_694_024
    assert params["head"]["kernel"].shape == (1280, 1000)


def test_shortcut_is_option_a():
    """With the residual branch at zero, a block of stride 2 gives every second pixel, and zeros in the new channels."""
    block = resnet.Block(32, 2, "lax", jnp.float32)
    x = jax.random.uniform(jax.random.key(0), (2, 8, 8, 16))
    variables = jax.jit(functools.partial(block.init, train=False))(jax.random.key(1), x)
    params = {**variables["params"], "bn2": jax.tree.map(jnp.zeros_like, variables["params"]["bn2"])}
    y = block.apply({**variables, "params": params}, x, train=False)
    np.testing.assert_array_equal(y[..., 8:24], x[:, ::2, ::2])
    assert not y[..., :8].any() and not y[..., 24:].any()


def test_preprocess():
    picture = np.zeros((30, 50, 3), np.uint8)
    picture[:, 10:40] = 255  # the centre square is white
    given = efficientnet.preprocess([picture])
    assert given.shape == (1, 224, 224, 3) and given.dtype == np.float32
    np.testing.assert_allclose(
        given[0, 100, 100], (1 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], rtol=1e-6
    )
    assert np.ptp(given, axis=(0, 1, 2)).max() == 0
    for wrong in (picture[..., 0], picture / 255.0):
        with pytest.raises(UsageError, match="uint8"):
            efficientnet.preprocess([wrong])


def test_new_head():
    params, variables = networks.mlp(3, (8,)).init(jax.random.key(0), jnp.zeros((1, 4)))
    fresh = heads.new_head(params, 6, jax.random.key(1), "cosine")
    outputs, _ = networks.mlp(6, (8,), "cosine").apply(fresh, variables, jnp.ones((2, 4)))
    assert outputs["logits"].shape == (2, 6) and fresh["backbone"] is params["backbone"]


def test_weights_that_do_not_fit(tmp_path):
    np.savez(tmp_path / "small.npz", **{"conv1.weight": np.zeros((16, 3, 3, 3), np.float32)})
    with pytest.raises(UsageError, match="the weights lack"):
        resnet.cifar_weights(networks.resnet20(10), tmp_path / "small.npz")
    np.savez(tmp_path / "other.npz", **{"conv1.weight": np.zeros((16, 3, 5, 5), np.float32)})
    with pytest.raises(UsageError, match=r"conv1.weight gives \(5, 5, 3, 16\)"):
        resnet.cifar_weights(networks.resnet20(10), tmp_path / "other.npz")


@pytest.mark.data
def test_cifar_resnet20_weights(data_folder):
    """81.03 % of all 10,000 JPEG test images are right; the number among 500 lies in a binomial interval."""
    network = networks.resnet20(10)
    params, variables = resnet.cifar_weights(network, data_folder / "cifar_resnet_weights" / "resnet20-12fca82f.npz")
    with np.load(data_folder / "cifar10" / "cifar10_test_jpeg.npz") as file:
        jpeg, offsets, labels = file["jpeg"], file["offsets"], file["labels"]
    rows = (
        np.random.default_rng(0).permuted(np.argsort(labels, kind="stable").reshape(10, 1000), axis=1)[:, :50].ravel()
    )
    pixels = [np.asarray(Image.open(io.BytesIO(jpeg[offsets[i] : offsets[i + 1]].tobytes()))) for i in rows]
    x = (np.stack(pixels).astype(np.float32) / 255 - resnet.MEAN) / resnet.STD
    predict = jax.jit(lambda x: network.apply(params, variables, x)[0]["logits"].argmax(-1))
    right = sum(int((predict(x[i : i + 100]) == labels[rows[i : i + 100]]).sum()) for i in range(0, 500, 100))
    low, high = stats.binom.interval(0.999, 500, 0.8103)
    assert low <= right <= high


@pytest.mark.slow
def test_efficientnet_on_photographs():
    """A daisy is class 985 of ImageNet; a pagoda is taken for a bell cote (442) or a palace (698)."""
    from sklearn.datasets import load_sample_image

    if fetch.find(f"efficientnet_lite0/{efficientnet.FILE}") is None:
        try:
            efficientnet.imagenet_weights()
        except UsageError as error:
            pytest.skip(f"the weights of EfficientNet-Lite0 are not in the data folder, and no network: {error}")
    params, variables = efficientnet.imagenet_weights()
    network = networks.efficientnet_lite0(1000)
    x = efficientnet.preprocess([load_sample_image("flower.jpg"), load_sample_image("china.jpg")])
    flower, china = jax.jit(lambda x: network.apply(params, variables, x)[0]["logits"])(x)
    assert int(flower.argmax()) == 985
    assert set(np.argsort(-china)[:2].tolist()) == {442, 698}


def test_slices_need_one_group_or_all():
    x = jnp.zeros((1, 4, 4, 4))
    with pytest.raises(UsageError, match="method='lax'"):
        layers.convolve(x, jnp.zeros((3, 3, 2, 4)), 1, ((1, 1), (1, 1)), groups=2, method="slices")
