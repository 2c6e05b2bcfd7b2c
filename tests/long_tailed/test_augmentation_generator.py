"""RSG: its losses and pairs against NumPy, and LDAM-DRW where nothing is generated and its losses weigh nothing."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import log_softmax, softmax

from jaxkit import fit
from jaxkit import long_tailed as lt
from jaxkit.check import UsageError
from jaxkit.long_tailed import augmentation as a
from jaxkit.long_tailed.augmentation import generator as g
from jaxkit.networks import heads, mlp

RNG = np.random.default_rng(2)
COUNTS = np.array([24, 8, 4, 2, 2])
Y = np.repeat(np.arange(5), COUNTS).astype(np.int32)
ROWS, WIDTH, FEATURES, CENTRES = len(Y), 6, 4, 3
X = (np.eye(5, 7)[Y] + 0.5 * RNG.normal(size=(ROWS, 7))).astype(np.float32)
ORDER = RNG.permutation(ROWS)
DATA = {"x": jnp.asarray(X[ORDER]), "y": jnp.asarray(Y[ORDER])}
KEY = jax.random.key(3)
SGD = optax.sgd(1.0)


def network(**options):
    return mlp(5, hidden=(FEATURES,), **options)


def parameters():
    """A module with centres away from 0, as training leaves it."""
    made = g.init_generator(KEY, 5, FEATURES, CENTRES, WIDTH)
    return {**made, "centres": 0.5 * jax.random.normal(jax.random.key(9), made["centres"].shape)}


F = jnp.asarray(RNG.normal(size=(ROWS, FEATURES)), jnp.float32)
LABELS, ALL = DATA["y"], jnp.ones(ROWS, bool)
HEAD = np.asarray(LABELS) == 0
P = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters())


def gamma(f, y):
    return softmax(f @ P["gate"]["kernel"][y] + P["gate"]["bias"][y])


def pair_logits(one, two):
    layers = P["pair"]["backbone"]["dense_0"], P["pair"]["head"]
    hidden = np.maximum(np.concatenate([one, two]) @ layers[0]["kernel"] + layers[0]["bias"], 0)
    return hidden @ layers[1]["kernel"] + layers[1]["bias"]


def test_head_classes_are_the_largest():
    np.testing.assert_array_equal(a.head_classes(COUNTS), [True, False, False, False, False])
    np.testing.assert_array_equal(a.head_classes(COUNTS[::-1], 0.4), [False, False, False, True, True])
    np.testing.assert_array_equal(
        jax.jit(lambda n: a.head_classes(n, 0.5))(jnp.asarray([3.0, 9.0, 5.0, 1.0])), [0, 1, 1, 0]
    )


def test_the_module_starts_as_released():
    made = g.init_generator(KEY, 5, FEATURES, CENTRES, WIDTH)
    assert not made["centres"].any() and (made["gate"]["bias"] == 1).all() and not made["transfer"]["bias"].any()
    assert made["centres"].shape == (5, CENTRES, FEATURES) and made["gate"]["kernel"].shape == (5, FEATURES, CENTRES)
    assert abs(made["gate"]["kernel"].std() - 1) < 4.9 / np.sqrt(2 * made["gate"]["kernel"].size)


def test_centre_loss_is_its_formula():
    f, y = np.asarray(F, np.float64), np.asarray(LABELS)
    expected = np.mean([gamma(f[i], y[i]) @ ((f[i] - P["centres"][y[i]]) ** 2).sum(1) for i in range(ROWS)])
    np.testing.assert_allclose(g.centre_loss(parameters(), F, LABELS, ALL), expected, rtol=1e-5)
    np.testing.assert_allclose(g.gates(parameters(), F, LABELS)[7], gamma(f[7], y[7]), rtol=1e-4)
    nearest = P["centres"][y[7]][gamma(f[7], y[7]).argmax()]
    np.testing.assert_allclose(g.nearest_centre(parameters(), F, LABELS)[7], nearest, rtol=1e-5)


@pytest.mark.parametrize("missing", [0, 5])
def test_pair_loss_compares_the_halves_of_the_valid_rows(missing):
    valid = np.ones(ROWS, bool)
    valid[RNG.permutation(ROWS)[:missing]] = False
    rows = np.flatnonzero(valid)
    half, f, y = len(rows) // 2, np.asarray(F, np.float64), np.asarray(LABELS)
    pairs = list(zip(rows[:half], rows[half : 2 * half], strict=True))
    expected = np.mean([-log_softmax(pair_logits(f[i], f[j]))[int(y[i] == y[j])] for i, j in pairs])
    made = g.pair_loss(parameters(), F, LABELS, jnp.asarray(valid), WIDTH)
    np.testing.assert_allclose(made, expected, rtol=1e-5)


def released_pairs(is_head, is_tail):
    """(head row, tail row) as the released loops go through the batch."""
    head, tail = np.flatnonzero(is_head), np.flatnonzero(is_tail)
    if not len(head) or not len(tail):
        return []
    if len(head) >= len(tail):
        chunks = [(head[j * len(tail) : (j + 1) * len(tail)], tail) for j in range(len(head) // len(tail))]
    else:
        chunks = [(head, tail[j * len(head) : (j + 1) * len(head)]) for j in range(len(tail) // len(head))]
    return [pair for one, two in chunks for pair in zip(one.tolist(), two.tolist(), strict=True)]


@pytest.mark.parametrize("heads_and_tails", [(24, 16), (5, 17), (9, 3), (4, 4), (0, 7), (7, 0), (1, 12)])
def test_pairs_are_those_of_the_released_loops(heads_and_tails):
    kinds = np.repeat([1, 2, 0], [*heads_and_tails, ROWS - sum(heads_and_tails)])
    kinds = np.random.default_rng(0).permutation(kinds)
    head, tail, used = jax.jit(g.partners)(jnp.asarray(kinds == 1), jnp.asarray(kinds == 2))
    made = [(int(h), int(t)) for h, t, given in zip(head, tail, used, strict=True) if given]
    assert made == released_pairs(kinds == 1, kinds == 2)


def test_generated_rows_and_their_loss_are_their_formulas():
    made = g.generate(parameters(), F, LABELS, jnp.asarray(HEAD), jnp.asarray(~HEAD), WIDTH)
    f, y, values = np.asarray(F, np.float64), np.asarray(LABELS), []
    pairs = released_pairs(HEAD, ~HEAD)
    assert int(made.used.sum()) == len(pairs) == 16  # 24 head rows, 16 tail rows
    for number, (h, t) in enumerate(pairs):
        nearest = lambda i: P["centres"][y[i]][gamma(f[i], y[i]).argmax()]
        v, away = f[h] - nearest(h), f[t] - nearest(t)
        moved = v @ P["transfer"]["kernel"] + P["transfer"]["bias"]
        np.testing.assert_allclose(made.features[number], f[t] + moved, rtol=1e-4, atol=1e-5)
        unit = lambda vector: vector / np.linalg.norm(vector)
        released = np.abs(unit(away) * unit(moved) - 1).sum() - (FEATURES - 1)  # the code's, less its constant
        told = -log_softmax(pair_logits(f[h], moved))[0]
        values.append(told + abs(np.linalg.norm(moved) - np.linalg.norm(v)) + released)
    np.testing.assert_allclose(made.loss, np.mean(values), rtol=1e-4)


def test_the_losses_train_what_they_should():
    """L_CESC the gates, centres and pair network; L_MV the map of displacements alone; neither the features."""
    masks = jnp.asarray(HEAD), jnp.asarray(~HEAD)
    vector = lambda p, f: g.generate(p, f, LABELS, *masks, WIDTH).loss
    cesc = lambda p, f: g.centre_loss(p, f, LABELS, ALL) + g.pair_loss(p, f, LABELS, ALL, WIDTH)
    moves = lambda tree: any(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(tree))
    by_vector, features = jax.jit(jax.grad(vector, (0, 1)))(parameters(), F)
    assert {name for name, tree in by_vector.items() if moves(tree)} == {"transfer"} and not moves(features)
    by_cesc = jax.jit(jax.grad(cesc))(parameters(), F)
    assert {name for name, tree in by_cesc.items() if moves(tree)} == {"gate", "centres", "pair"}
    chex.assert_tree_all_finite((by_vector, by_cesc))
    # Where a displacement is 0 its length has no slope, and none is taken.
    still = {**parameters(), "centres": jnp.broadcast_to(F[0], (5, CENTRES, FEATURES))}
    same = jnp.broadcast_to(F[0], F.shape)
    chex.assert_tree_all_finite(jax.grad(lambda p: vector(p, same))(still))


def step(learner, batch=DATA, params=None):
    """(loss, how the network's parameters move) in one step."""
    state = learner.init(jax.random.key(0), batch)
    state = state if params is None else state._replace(params=params)
    after, metrics = jax.jit(learner.update)(state, batch, KEY)
    part = lambda params: {name: params[name] for name in ("backbone", "head")}
    return metrics["loss"], jax.tree.map(lambda one, two: one - two, part(state.params), part(after.params))


def plan(**options):
    return a.rsg(network(), SGD, class_counts=COUNTS, width=WIDTH, batch_size=20, **options)


def test_without_its_losses_and_rows_it_is_ldam_drw():
    ours = plan(centre_weight=0.0, vector_weight=0.0)
    theirs = lt.METHODS["ldam_drw"].make(network(), SGD, class_counts=COUNTS, max_margin=0.3, batch_size=20)
    assert [stage.share for stage in ours] == [stage.share for stage in theirs]
    chex.assert_trees_all_close(step(ours[0].learner), step(theirs[0].learner), rtol=1e-5, atol=1e-6)
    for rows in (HEAD, ~HEAD):  # a batch that lacks either kind
        batch = {name: leaf[np.flatnonzero(rows)] for name, leaf in DATA.items()}
        chex.assert_trees_all_close(step(ours[1].learner, batch), step(theirs[1].learner, batch), rtol=1e-4, atol=1e-6)


def test_generated_rows_count_like_others_of_their_class():
    """Stage 2 against the weighted loss of the rows and of the generated ones, put together by hand."""
    learner = plan(centre_weight=0.0, vector_weight=0.0)[1].learner
    state = learner.init(jax.random.key(0), DATA)
    features = learner.predict(state, DATA)["features"]
    made = g.generate(state.params["generator"], features, LABELS, jnp.asarray(HEAD), jnp.asarray(~HEAD), WIDTH)
    both = np.concatenate([np.asarray(features), np.asarray(made.features)[np.asarray(made.used)]])
    labels = np.concatenate([LABELS, np.asarray(LABELS)[np.asarray(made.tail)[np.asarray(made.used)]]])
    assert not (labels[ROWS:] == 0).any()
    z = both @ np.asarray(state.params["head"]["kernel"]) + np.asarray(state.params["head"]["bias"])
    margins = 0.3 * (COUNTS.min() / COUNTS) ** 0.25
    z[np.arange(len(z)), labels] -= 30.0 * margins[labels]
    weights = (1 - 0.9999) / (1 - 0.9999 ** COUNTS.astype(float))
    values = -log_softmax(z.astype(np.float64), axis=1)[np.arange(len(z)), labels]
    expected = (weights[labels] * values).sum() / weights[labels].sum()
    metrics = jax.jit(learner.update)(state, DATA, KEY)[1]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
    assert metrics["generated"] == 16
    # With its losses, in their weights.
    metrics = jax.jit(plan()[1].learner.update)(state, DATA, KEY)[1]
    centre = g.centre_loss(state.params["generator"], features, LABELS, ALL)
    np.testing.assert_allclose(metrics["loss"], expected + 0.1 * centre + 0.01 * made.loss, rtol=1e-4)


def test_row_weights_double_the_loss():
    learner = plan(centre_weight=0.0, vector_weight=0.0)[1].learner
    doubled = step(learner, {**DATA, "weight": jnp.full(ROWS, 2.0)})
    chex.assert_trees_all_close(doubled, jax.tree.map(lambda leaf: 2 * leaf, step(learner)), rtol=1e-4, atol=1e-5)


def test_it_runs_with_the_papers_head_and_predicts_without_the_module():
    head = heads.cosine(scale=30.0, learn_scale=False)
    made = a.rsg(network(head=head), optax.sgd(0.05), class_counts=COUNTS, head=head, width=WIDTH, batch_size=20)
    run = fit(made, DATA, key=KEY, steps=20, progress=False)
    assert np.bincount(run.history.stage).tolist() == [16, 4] and (run.history.metrics["finite"] == 1).all()
    params = {name: leaf for name, leaf in run.state.params.items() if name != "generator"}
    alone = network(head=head).apply(params, run.state.variables, DATA["x"])[0]["logits"]
    np.testing.assert_array_equal(made[1].learner.predict(run.state, DATA)["logits"], alone)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plan(head_tail_ratio=0.1), "makes 0 of 5 classes head classes"),
        (lambda: plan(head_tail_ratio=1.0), "makes 5 of 5 classes head classes"),
        (lambda: plan(centres=0), "centres must be at least 1"),
        (lambda: plan(centre_weight=-1.0), "centre_weight must lie"),
        (lambda: plan(max_margin=-0.1), "max_margin must lie"),
        (lambda: plan(deferred=1.0), "deferred must lie between 0 and 1"),
        (lambda: plan(head="cosines"), "did you mean 'cosine'"),
        (lambda: plan(head="cosine")[0].learner.init(KEY, DATA), "give rsg.head=.... the head"),
        (lambda: a.rsg(network(), SGD, class_counts=np.ones(3)), "makes 0 of 3"),
        (lambda: a.rsg(network(), SGD, class_counts=np.ones(6))[0].learner.init(KEY, DATA), "has 6 entries"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(UsageError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
