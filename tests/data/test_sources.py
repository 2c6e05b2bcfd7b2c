"""Sources: the permutation is a bijection and uniform, epochs cover every row, draws have the stated probabilities."""

from __future__ import annotations

import collections
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxkit import data as jd
from jaxkit.check import UsageError
from jaxkit.learner import HostSource, Source

KEY = jax.random.key(7)


def toy(n=50, classes=3, envs=2):
    row = np.arange(n)
    return {
        "x": {"a": jnp.asarray(row[:, None] * [1.0, 2.0], jnp.float32), "b": jnp.asarray(row, jnp.int32)},
        "y": jnp.asarray(row % classes, jnp.int32),
        "env": jnp.asarray(row % 5 >= 2, jnp.int32) if envs == 2 else jnp.asarray(row % envs, jnp.int32),
    }


def steps_of(source, data, steps, key=KEY, state=None):
    """The batches of the first steps, run as the trainer runs them: init, then a scan inside one jit."""

    @jax.jit
    def run(data, key):
        def one(source_state, step):
            return source.next(data, source_state, state, step, key)

        return jax.lax.scan(one, source.init(data, key), jnp.arange(steps, dtype=jnp.int32))[1]

    return jax.tree.map(np.asarray, run(data, key))


def matches(data, batch):
    """Every leaf of the batch is the row that ``index`` says."""
    index = batch.pop("index")
    assert index.dtype == np.int32
    chex.assert_trees_all_equal(batch, jax.tree.map(lambda leaf: np.asarray(leaf)[index], data))
    return index


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 17, 1000, 1797, 4096, 60000])
def test_permuted_is_a_bijection(size):
    image = jax.jit(jd.permuted, static_argnums=2)(jnp.arange(size), KEY, size)
    assert image.dtype == jnp.int32
    np.testing.assert_array_equal(np.sort(image), np.arange(size))
    traced = jax.jit(jd.permuted)(jnp.arange(size), KEY, size)
    np.testing.assert_array_equal(np.sort(traced), np.arange(size))
    other = jax.jit(jd.permuted, static_argnums=2)(np.arange(size), jax.random.key(8), size)
    if size > 16:
        assert (image == other).mean() < 0.1  # 1/size of the places agree by chance
        assert abs(np.corrcoef(np.arange(size), image)[0, 1]) < 4.5 / np.sqrt(size)


def test_permuted_large_sizes_do_not_overflow():
    for size in (2**31 - 1, 2**30 + 1):
        image = np.asarray(jax.jit(jd.permuted)(jnp.arange(size - 5000, size, dtype=jnp.int32), KEY, size))
        assert (image >= 0).all() and (image < size).all() and len(np.unique(image)) == 5000


@pytest.mark.parametrize(("size", "draws"), [(3, 6000), (4, 12000), (5, 24000)])
def test_permuted_every_order_is_equally_likely(size, draws):
    orders = jax.jit(jax.vmap(lambda key: jd.permuted(jnp.arange(size), key, size)))(jax.random.split(KEY, draws))
    counts = collections.Counter(map(tuple, np.asarray(orders).tolist()))
    observed = [counts[order] for order in itertools.permutations(range(size))]
    assert stats.chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("size", [10, 23])
def test_permuted_pairs_of_images_are_uniform(size):
    image = np.asarray(
        jax.jit(jax.vmap(lambda key: jd.permuted(jnp.arange(size), key, size)))(jax.random.split(KEY, 20000))
    )
    for one, two in ((0, 1), (3, size - 1)):
        joint = np.bincount(image[:, one] * size + image[:, two], minlength=size * size)
        different = ~np.eye(size, dtype=bool).ravel()
        assert joint[~different].sum() == 0
        assert stats.chisquare(joint[different]).pvalue > 1e-3


@pytest.mark.parametrize(("n", "batch"), [(50, 7), (12, 4), (9, 9), (1, 1)])
def test_epochs_take_every_row_once_and_reshuffle(n, batch):
    per_epoch = n // batch
    index = matches(toy(n), steps_of(jd.epochs(batch), toy(n), 3 * per_epoch))
    for epoch in np.split(index, 3):
        assert len(np.unique(epoch)) == per_epoch * batch
    if n > 9:
        first, second, third = (epoch.tolist() for epoch in np.split(index, 3))
        assert first != second and second != third and first != third


SOURCES = {
    "epochs": jd.epochs(8),
    "class_balanced": jd.class_balanced(8, 3),
    "by_environment": jd.by_environment(4, 2),
    "full_batch": jd.full_batch(),
    "weighted": jd.weighted(8, lambda data: data["y"]),
    "pair of views": jd.pair(jd.views(jd.epochs(8), lambda x, key: x), jd.class_balanced(4, 3)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_functions_of_key_and_step(name):
    data, source = toy(), SOURCES[name]
    single = jax.jit(lambda data, step, key: source.next(data, source.init(data, key), None, step, key)[1])
    whole = steps_of(source, data, 6)
    from_the_middle = single(data, 4, KEY)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[4], whole), jax.tree.map(np.asarray, from_the_middle))
    example = jax.eval_shape(lambda: jd.example_of(source, data, source.init(data, KEY), KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(example, from_the_middle)
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(lambda key: source.next(data, source.init(data, key), None, 4, key)[1]))(keys)
    chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[1], many), single(data, 4, keys[1]))


def test_class_balanced_is_uniform_over_classes_present_and_rows_within():
    y = np.repeat([0, 1, 3], [40, 8, 2])  # class 2 has no row
    data = {"x": jnp.zeros((50, 1)), "y": jnp.asarray(np.random.default_rng(0).permutation(y), jnp.int32)}
    batch = steps_of(jd.class_balanced(64, 4), data, 300)
    index = batch["index"]
    np.testing.assert_array_equal(batch["y"], np.asarray(data["y"])[index])
    by_class = np.bincount(batch["y"].ravel(), minlength=4)
    assert by_class[2] == 0
    assert stats.chisquare(by_class[[0, 1, 3]]).pvalue > 1e-3
    for label in (0, 1, 3):
        drawn = np.bincount(index[batch["y"] == label], minlength=50)[np.asarray(data["y"]) == label]
        assert stats.chisquare(drawn).pvalue > 1e-3


def test_class_balanced_step_does_not_grow_with_the_data():
    source = jd.class_balanced(8, 3)

    def largest(n):
        data = toy(n)
        source_state = source.init(data, KEY)
        jaxpr = jax.make_jaxpr(lambda step: source.next(data, source_state, None, step, KEY))(jnp.int32(0))
        return max(np.prod(v.aval.shape, initial=1) for e in jaxpr.eqns for v in e.outvars if hasattr(v.aval, "shape"))

    assert largest(5000) == largest(50)


def test_by_environment_layout_and_epochs():
    data = toy(50)  # env 0: 20 rows, env 1: 30 rows
    batch = steps_of(jd.by_environment(4, 2), data, 35)
    assert batch["index"].shape == (35, 2, 4) and batch["x"]["a"].shape == (35, 2, 4, 2)
    assert (batch["env"] == np.arange(2)[None, :, None]).all()
    index = matches(data, batch)
    for env, size in ((0, 20), (1, 30)):
        per_epoch = size // 4
        for epoch in range(35 // per_epoch):
            seen = index[epoch * per_epoch : (epoch + 1) * per_epoch, env]
            assert len(np.unique(seen)) == per_epoch * 4
    assert jd.by_environment(4, 2).axis == 1


def test_by_environment_smaller_than_the_batch_goes_round():
    data = {"x": jnp.arange(10.0), "env": jnp.asarray([0] * 7 + [1] * 3)}
    index = steps_of(jd.by_environment(6, 2), data, 4)["index"]
    counts = np.stack([np.bincount(step, minlength=10)[7:] for step in index[:, 1]])
    np.testing.assert_array_equal(counts, np.full((4, 3), 2))


@pytest.mark.parametrize("n", [10, 37])
def test_weighted_draws_in_proportion(n):
    weights = np.arange(n) % 4
    data = {"x": jnp.arange(n), "w": jnp.asarray(weights, jnp.float32)}
    for source, columns in (
        (jd.weighted(100, "w"), {"x", "index"}),
        (jd.weighted(100, lambda d: d["w"]), {"x", "w", "index"}),
    ):
        batch = steps_of(source, data, 200)
        assert set(batch) == columns
        drawn = np.bincount(batch["index"].ravel(), minlength=n)
        assert drawn[weights == 0].sum() == 0
        expected = weights[weights > 0] / weights.sum() * drawn.sum()
        assert stats.chisquare(drawn[weights > 0], expected).pvalue > 1e-3


def test_pair_and_views():
    data = toy()
    batch = steps_of(jd.pair(jd.epochs(8), jd.class_balanced(4, 3)), data, 3)
    second = batch.pop("second")
    matches(data, batch)
    assert second["y"].shape == (3, 4)
    matches(data, second)

    noise = lambda x, key: x + jax.random.normal(key, x.shape)
    data = {"x": jnp.zeros((50, 3)), "y": data["y"], "env": data["env"]}
    batch = steps_of(jd.views(jd.epochs(8), noise, noise), data, 3)
    assert set(batch) == {"x", "y", "env", "index", "second"} and set(batch["second"]) == {"x", "y", "env", "index"}
    np.testing.assert_array_equal(batch["index"], batch["second"]["index"])
    views = np.concatenate([batch["x"].reshape(3, -1), batch["second"]["x"].reshape(3, -1)])
    assert len(np.unique(views)) == views.size  # a fresh key for each view and step
    single = steps_of(jd.views(jd.by_environment(4, 2), noise), data, 1)
    assert single["x"].shape == (1, 2, 4, 3) and "second" not in single
    assert not np.array_equal(single["x"][0, 0], single["x"][0, 1])


def test_full_batch_and_host():
    data = toy(9)
    batch = steps_of(jd.full_batch(), data, 2)
    np.testing.assert_array_equal(matches(data, jax.tree.map(lambda leaf: leaf[1], batch)), np.arange(9))
    graph = {"x": {"nodes": jnp.ones((4, 2)), "senders": jnp.asarray([0, 1])}, "y": jnp.zeros(4, jnp.int32)}
    assert jd.full_batch().next(graph, (), None, 0, KEY)[1]["index"].shape == (4,)

    source = jd.host(lambda data, key, step: iter(range(step, 3)))
    assert isinstance(source, HostSource) and list(source.open({}, KEY, 1)) == [1, 2]


def test_sources_do_not_promote_under_x64():
    with jax.enable_x64(True):
        data = {"x": jnp.zeros((20, 2), jnp.float32), "y": jnp.zeros(20, jnp.int32), "env": jnp.zeros(20, jnp.int32)}
        for source in (
            jd.epochs(4),
            jd.class_balanced(4, 1),
            jd.by_environment(4, 1),
            jd.weighted(4, lambda d: d["y"] + 1),
        ):
            batch = jax.eval_shape(lambda source=source: source.next(data, source.init(data, KEY), None, 0, KEY)[1])
            assert batch["index"].dtype == jnp.int32 and batch["x"].dtype == jnp.float32


# A corridor 0..3: action 1 goes right, 0 stays; the end terminates with reward 1, six steps truncate.
def corridor_reset(key, params):
    return jnp.zeros(2), {"place": 0, "time": 0}


def corridor_step(key, state, action, params):
    place, time = state["place"] + action, state["time"] + 1
    terminated = place >= params["end"]
    observation = jnp.stack([place, time]).astype(jnp.float32)
    return (
        observation,
        {"place": place, "time": time},
        jnp.where(terminated, 1.0, 0.0),
        terminated,
        (time >= 6) & ~terminated,
    )


def corridor(act, **options):
    return jd.rollouts(corridor_reset, corridor_step, act, 3, 12, params={"end": 4}, **options)


def test_rollouts_read_the_policy_and_keep_ends_apart():
    # The learner's state says which environments walk: 0 and 2 do, 1 stays for ever.
    act = lambda state, x, key: (state["walk"], {"log_prob": jnp.zeros(3)})
    source = corridor(act, extras={"log_prob": 0.0})
    state = {"walk": jnp.asarray([1, 0, 1], jnp.int32)}
    batch = steps_of(source, {}, 2, state=state)
    assert batch["x"].shape == (2, 3, 12, 2) and batch["reward"].shape == (2, 3, 12)
    steps = np.arange(1, 13)
    np.testing.assert_array_equal(batch["terminated"][0], np.stack([steps % 4 == 0, steps < 0, steps % 4 == 0]))
    np.testing.assert_array_equal(batch["truncated"][0], np.stack([steps < 0, steps % 6 == 0, steps < 0]))
    np.testing.assert_array_equal(batch["reward"], batch["terminated"].astype(np.float32))
    # Before an end next_x is the next x; at an end it is the last observation of the episode, and x starts anew.
    ended = batch["terminated"] | batch["truncated"]
    np.testing.assert_array_equal(
        batch["x"][:, :, 1:][~ended[:, :, :-1]], batch["next_x"][:, :, :-1][~ended[:, :, :-1]]
    )
    assert (batch["x"][:, :, 1:][ended[:, :, :-1]] == 0).all()
    np.testing.assert_array_equal(batch["next_x"][0, 0, 3], [4, 4])
    np.testing.assert_array_equal(batch["x"][1, :, 0], np.zeros((3, 2)))  # 12 steps end both kinds of episode
    source_state = source.init({}, KEY)
    shapes = jax.eval_shape(lambda: source.next({}, source_state, state, 0, KEY))
    chex.assert_trees_all_equal_shapes_and_dtypes(source.example({}, source_state, KEY), shapes[1])
    after = jax.eval_shape(lambda s: s, source_state)
    assert jax.tree.map(lambda leaf: leaf.weak_type, shapes[0]) == jax.tree.map(lambda leaf: leaf.weak_type, after)


def test_rollouts_say_what_act_must_return():
    wrong = corridor(lambda state, x, key: (jnp.zeros(3), {}))
    with pytest.raises(UsageError, match="act returned action float32"):
        wrong.next({}, wrong.init({}, KEY), None, 0, KEY)
    with pytest.raises(UsageError, match="extras may not be called reward"):
        corridor(lambda state, x, key: None, extras={"reward": 0.0})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: jd.epochs(51).next(d, (), None, 0, KEY), "batch_size=51 is larger than the data \\(50 rows\\)"),
        (lambda d: jd.epochs(0), "batch_size must be at least 1"),
        (lambda d: jd.class_balanced(4, 3).init({"x": d["y"]}, KEY), "class_balanced needs data\\['y'\\]"),
        (lambda d: jd.by_environment(4, 3).init({"x": d["y"]}, KEY), "by_environment needs data\\['env'\\]"),
        (lambda d: jd.weighted(4, lambda d: d["y"] * 0).init(d, KEY), "not all of them 0"),
        (lambda d: jd.weighted(4, lambda d: d["y"] - 1).init(d, KEY), "at least 0"),
        (lambda d: jd.weighted(4, lambda d: d["y"][:3]).init(d, KEY), "one weight per row"),
        (lambda d: jd.pair(jd.epochs(4), jd.by_environment(4, 2)), "same batch axis"),
        (lambda d: jd.views(jd.epochs(4)), "one or two transforms"),
        (lambda d: jd.host(3), "host needs a function"),
        (
            lambda d: jd.epochs(4).next({"x": jnp.ones(3), "y": jnp.ones(4)}, (), None, 0, KEY),
            "'x' has 3 rows and 'y' has 4",
        ),
    ],
)
def test_mistakes_are_one_clear_line(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make(toy())
    assert "\n" not in str(caught.value)


def test_sources_fit_the_protocol():
    assert all(isinstance(s, Source) for s in (jd.epochs(1), jd.full_batch(), corridor(lambda *a: None)))


def test_for_layout_gives_the_shapes_that_a_method_asks_for():
    data = {"x": jnp.zeros((60, 3)), "y": jnp.zeros(60, jnp.int32), "env": jnp.arange(60, dtype=jnp.int32) % 3}
    shapes = {}
    for layout in ("rows", "environments", "all"):
        source = jd.for_layout(layout, 24, data)
        key = jax.random.key(0)
        shapes[layout] = jd.example_of(source, data, source.init(data, key), key)["x"].shape
    assert shapes == {"rows": (24, 3), "environments": (3, 8, 3), "all": (60, 3)}
    with pytest.raises(UsageError, match="did you mean 'environments'"):
        jd.for_layout("enviroment", 24, data)
    with pytest.raises(UsageError, match="needs data\\['env'\\]"):
        jd.for_layout("environments", 24, {"x": data["x"]})


def test_a_weight_of_zero_is_never_drawn_among_a_million_rows():
    weights = np.zeros(1_000_000, np.float32)
    weights[::1000] = np.random.default_rng(0).random(1000, np.float32) + 0.1
    data = {"x": weights, "w": weights}
    source = jd.weighted(4096, "w")
    state = jax.jit(source.init)(data, jax.random.key(0))
    rises = np.diff(np.asarray(state["inner"]), axis=1) > 0
    side = state["inner"].shape[1]
    padded = np.pad(weights, (0, side * side - len(weights))).reshape(side, side)
    assert not (rises & (padded[:, 1:] == 0)).any() and (np.diff(np.asarray(state["outer"])) >= 0).all()
    drawn = jax.jit(jax.vmap(lambda step: source.next(data, state, None, step, jax.random.key(1))[1]["x"]))(
        jnp.arange(64)
    )
    assert (np.asarray(drawn) > 0).all()


def test_views_give_their_source_the_same_key_in_init_and_next():
    seen = Source(
        lambda data, key: jax.random.key_data(key),
        lambda d, s, state, step, key: (s, {"x": s == jax.random.key_data(key)}),
    )
    source = jd.views(seen, lambda x, key: x)
    key = jax.random.key(3)
    assert source.next({}, source.init({}, key), None, 0, key)[1]["x"].all()
