"""A model to keep: it learns a task from arrays, answers in the user's labels, is saved and loaded, and estimates what
it has forgotten."""

from __future__ import annotations

import functools
import inspect
from dataclasses import replace

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.datasets import load_digits

from jaxkit.check import UsageError
from jaxkit.class_incremental import METHODS, Keep
from jaxkit.class_incremental import model as models
from jaxkit.class_incremental.given import MOST_PROBES, probe_mask
from jaxkit.class_incremental.model import load, start
from jaxkit.class_incremental.open_ended import (
    CLOSED,
    GROWING,
    SHARING,
    compiled,
    first_state,
    next_stages,
    quota,
    reader,
    shapes_of,
    widened,
    with_room,
)
from jaxkit.class_incremental.report import forgetting_interval
from jaxkit.evaluation import wilson_interval
from jaxkit.networks import mlp
from jaxkit.training import NonFiniteError, program

NAMES = np.asarray("zero one two three four five six seven eight nine".split())
SMALL = {"network": "mlp", "network_options": {"hidden": (16,)}, "learning_rate": 1e-2, "batch_size": 32}


@functools.lru_cache
def digits():
    x, y = load_digits(return_X_y=True)
    return (x / 16.0).astype(np.float32), y


def rows(*classes, first=0, count=40, names=True):
    """Rows ``first`` and following of each of these digits, by name."""
    x, y = digits()
    at = np.concatenate([np.flatnonzero(y == c)[first : first + count] for c in classes])
    return x[at], NAMES[y[at]] if names else y[at]


@functools.lru_cache
def learnt(tasks):
    """The model after some of the tasks 0..3, 4..5, 6..7."""
    if tasks == 1:
        return start("icarl", *rows(0, 1, 2, 3), memory=40, epochs=6, **SMALL)
    return learnt(tasks - 1).learn(*rows(2 * tasks, 2 * tasks + 1))


def same(one, other):
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_it_answers_in_the_users_labels():
    model = learnt(3)
    assert model.classes == ("one", "three", "two", "zero", "five", "four", "seven", "six")
    assert model.bounds == (4, 6, 8)
    x, y = rows(*range(8), first=100)
    predicted = model.predict(x)
    assert predicted.dtype.kind == "U" and set(predicted) <= set(model.classes)
    assert model.accuracy(x, y) == np.mean(predicted == y)
    assert wilson_interval(int((predicted == y).sum()), len(y)).low > 1 / 8  # better than a guess among eight
    outputs = model.outputs(x)
    assert outputs["logits"].shape == outputs["logits_ncm"].shape == (len(x), 8)
    for read_out, logits in (("classifier", "logits"), ("nearest_mean", "logits_ncm")):
        by_hand = np.asarray(model.classes)[outputs[logits].argmax(-1)]
        np.testing.assert_array_equal(model.predict(x, read_out=read_out), by_hand)
    np.testing.assert_array_equal(model.predict(x), model.predict(x, read_out="nearest mean"))  # iCaRL's own
    exponentials = np.exp(outputs["logits_ncm"].astype(np.float64))
    np.testing.assert_allclose(model.predict_proba(x), exponentials / exponentials.sum(1, keepdims=True), rtol=1e-6)


def test_more_rows_than_a_chunk_are_the_same_rows():
    x = rows(*range(8), first=60, count=30)[0]
    many = learnt(3).outputs(np.tile(x, (5, 1)))  # 1,200 rows
    for name, values in learnt(3).outputs(x).items():
        np.testing.assert_allclose(many[name], np.tile(values, (5, 1)), rtol=1e-4, atol=1e-5)


def test_rows_that_fill_up_a_chunk_are_not_valid(monkeypatch):
    """Where the rows of a batch vote (L2P) they would count."""
    seen = []

    def answer(state, x, valid):
        seen.append(valid)
        return {name: np.zeros((len(x), 10)) for name in ("features", "logits", "logits_ncm")}

    monkeypatch.setattr(models.open_ended, "compiled", lambda predict: answer)
    assert learnt(1).outputs(rows(0, count=5)[0])["logits"].shape == (5, 4)
    np.testing.assert_array_equal(seen[0], [True] * 5 + [False] * 3)


def test_the_old_model_is_as_it_was():
    model = learnt(1)
    x = rows(0, 1, 2, 3, first=100)[0]
    state, answers = jax.tree.map(np.array, model.state), model.predict_proba(x)
    after = model.learn(*rows(8, 9))
    assert after.classes == (*model.classes, "eight", "nine") and model.bounds == (4,)
    assert same(model.state, state)
    np.testing.assert_array_equal(model.predict_proba(x), answers)
    with pytest.raises(AttributeError):
        model.classes = ()


def test_saved_and_loaded_it_goes_on_bit_for_bit(tmp_path):
    model = learnt(2)
    again = load(model.save(tmp_path / "model.npz"))
    for field in ("program", "format", "epochs", "key", "probe", "read_out", "growing", "classes", "bounds", "right"):
        assert getattr(again, field) == getattr(model, field), field
    assert same((again.state, again.probe_x, again.probe_y), (model.state, model.probe_x, model.probe_y))
    x = rows(*range(6), first=100)[0]
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    on, whole = again.learn(*rows(6, 7)), learnt(3)
    assert same(on.state, whole.state) and on.right == whole.right
    assert repr(on) == repr(whole)


NETWORK = lambda classes: mlp(classes, hidden=(8,))
MIRROR = lambda x, key: x[..., ::-1]


@functools.lru_cache
def of_images():
    """A model of bytes with numbers for labels, started with functions."""
    x, y = rows(0, 1, names=False)
    images = np.round(x * 255).astype(np.uint8)
    return images, start("replay", images, y.tolist(), network=NETWORK, epochs=1, augment=MIRROR)


def test_functions_are_given_again(tmp_path):
    images, model = of_images()
    path = model.save(tmp_path / "model.npz")
    with pytest.raises(UsageError, match=r"load takes network=\.\.\., augment=\.\.\., as at the start, got nothing"):
        load(path)
    again = load(path, network=NETWORK, augment=MIRROR)
    assert again.program == model.program and same(again.state, model.state)
    np.testing.assert_array_equal(again.predict(images), model.predict(images))
    with pytest.raises(UsageError, match=r"does not fit its program: .* in the file"):
        load(path, network=lambda classes: mlp(classes, hidden=(9,)), augment=MIRROR)


def wilson(right, total):
    """Wilson 1927: the two roots."""
    p, n, z = right / total, total, scipy.stats.norm.ppf(0.975)
    centre, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (centre - half) / (1 + z**2 / n), (centre + half) / (1 + z**2 / n)


def test_forgetting_is_that_of_the_rows_held_back():
    model = learnt(3)
    task = np.searchsorted(model.bounds, model.probe_y, side="right")
    assert np.bincount(model.probe_y).tolist() == [4] * 8  # a tenth of 40
    a = np.zeros((3, 3))
    for b in range(3):
        truth = np.asarray(model.classes)[model.probe_y]
        right = learnt(b + 1).predict(model.probe_x) == truth
        a[b] = [right[task == j].mean() if j <= b else 0.0 for j in range(3)]
    np.testing.assert_allclose(
        np.asarray([model.right[b][j] for b in range(3) for j in range(b + 1)]),
        [a[b, j] * (task == j).sum() for b in range(3) for j in range(b + 1)],
    )
    found = model.forgetting()
    np.testing.assert_allclose(found.value, ((max(a[0, 0], a[1, 0]) - a[2, 0]) + (a[1, 1] - a[2, 1])) / 2)
    assert found.n == (task < 2).sum() and found.low < found.value < found.high
    assert learnt(1).forgetting() is None
    report = model.report()
    np.testing.assert_allclose(report.learnt, np.diag(a))
    np.testing.assert_allclose([now.value for now in report.now], a[2])
    assert report.accuracy.n == len(model.probe_y)
    assert f"an estimate from {found.n} rows that were held back and never trained on" in report.text


def test_the_interval_is_newcombes():
    # One earlier task: Newcombe's method 10. Sums of squares for more (Zou and Donner 2008, eq. 10).
    right, count = np.asarray([[18, 0, 0], [19, 9, 0], [14, 9, 5]]), np.asarray([20, 10, 5])
    found = forgetting_interval(right[[0, 2]][:, :2], count[:2])
    (l1, u1), (l2, u2) = wilson(18, 20), wilson(14, 20)
    np.testing.assert_allclose(found.value, 0.2)
    np.testing.assert_allclose(found.low, 0.2 - np.hypot(0.9 - l1, u2 - 0.7), rtol=1e-6)
    np.testing.assert_allclose(found.high, 0.2 + np.hypot(u1 - 0.9, 0.7 - l2), rtol=1e-6)
    found = forgetting_interval(right, count)
    parts = [(0.95, wilson(19, 20), 0.7, wilson(14, 20)), (0.9, wilson(9, 10), 0.9, wilson(9, 10))]
    below = sum((p - own[0]) ** 2 + (now[1] - q) ** 2 for p, own, q, now in parts)
    above = sum((own[1] - p) ** 2 + (q - now[0]) ** 2 for p, own, q, now in parts)
    np.testing.assert_allclose(found[:3], [0.125, 0.125 - below**0.5 / 2, 0.125 + above**0.5 / 2], rtol=1e-6)
    assert forgetting_interval(right, np.asarray([0, 10, 5])) is None


def test_rows_held_back_are_not_trained_on(monkeypatch):
    seen = []

    def watched(stages, data, **settings):
        seen.append(data["x"])
        return fit(stages, data, **settings)

    fit = models.fit
    monkeypatch.setattr(models, "fit", watched)
    model = learnt(1).learn(*rows(8, 9))
    fresh = model.probe_x[len(learnt(1).probe_x) :]
    assert len(fresh) == 8 and len(seen[0]) == 72
    whole = np.concatenate([seen[0], fresh])
    given = rows(8, 9)[0]
    np.testing.assert_array_equal(whole[np.lexsort(whole.T)], given[np.lexsort(given.T)])


def test_of_each_class_a_share_is_held_back():
    y = np.repeat([0, 1, 2], [3, 35, 400])
    mask = probe_mask(y, 0.1, (0, 0))
    assert [int(mask[y == c].sum()) for c in range(3)] == [1, 4, MOST_PROBES]
    assert not np.array_equal(mask, probe_mask(y, 0.1, (0, 1))) and not probe_mask(y, 0.0, (0, 0)).any()
    np.testing.assert_array_equal(mask, probe_mask(y, 0.1, (0, 0)))


def test_bytes_are_those_of_the_arrays():
    model = learnt(3)
    used, task = model.report().bytes, model.state.extra
    size = lambda tree: sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))
    assert used["exemplars"] == size(task.memory) and task.memory.x.dtype == np.uint8
    assert used["model"] == size((model.state.params, model.state.variables))
    assert used["teacher"] == size(task.teacher) == used["model"]
    assert used["probes"] == model.probe_x.nbytes + model.probe_y.nbytes
    assert sum(used.values()) == size(model.state) + used["probes"]


def test_tasks_of_equal_shapes_share_their_programs():
    model = learnt(3)
    counts = np.asarray([36, 36])
    stage = next_stages(model.program, (4, 6), counts)[0]
    after = next_stages(model.program, (4, 6, 8), counts)[0]
    assert all(getattr(stage, part) == getattr(after, part) for part in ("learner", "source", "begin", "end"))
    steps = program.compile_steps(stage.learner, stage.source, None, None, None, False)
    misses, traced = program.compile_steps.cache_info().misses, steps._cache_size()
    assert traced == 1  # of tasks 2 and 3
    model.learn(*rows(8, 9))
    assert program.compile_steps.cache_info().misses == misses and steps._cache_size() == traced


def test_more_room_changes_nothing_of_what_is_known():
    model, x = learnt(2), rows(*range(6), first=100)[0]
    wide = with_room(model.program, model.format.shape, 25, 2, True)
    assert wide == model.program._replace(capacity=40)  # 10, 20, 40
    state = widened(model.state, first_state(wide, model.format.shape, jax.random.key(0)))
    assert jax.tree.map(np.shape, state) == jax.tree.map(np.shape, shapes_of(wide, model.format.shape))
    found = compiled(reader(wide, model.bounds).predict)(state, x)
    for name, values in model.outputs(x).items():
        np.testing.assert_allclose(np.asarray(found[name])[:, : values.shape[1]], values, rtol=1e-4, atol=1e-5)
    with pytest.raises(UsageError, match=r"room for 10 classes, as it was started, and there would be 11; .*=22"):
        with_room(model.program, model.format.shape, 11, 2, False)


@pytest.mark.slow
def test_room_for_classes_doubles(monkeypatch):
    monkeypatch.setattr(models, "LEAST_CAPACITY", 2)
    model = start("icarl", *rows(0), memory=Keep(None, 3), epochs=1, **SMALL)
    assert model.program.capacity == 2
    grown = model.learn(*rows(1, 2))
    assert grown.program.capacity == 4 and grown.state.extra.memory.x.shape[0] == 12
    assert set(grown.predict(rows(0, 1, 2, first=100)[0])) <= {"zero", "one", "two"}


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["bic", "der"])
def test_methods_that_know_tasks_have_room_for_so_many(name):
    model = start(name, *rows(0, 1), memory=Keep(None, 5), epochs=1, tasks=2, capacity=4, **SMALL)
    model = model.learn(*rows(2, 3))
    assert int(model.state.extra.number) == 1 and model.outputs(rows(0)[0])["logits"].shape == (40, 4)
    with pytest.raises(UsageError, match=f"{name} has arrays for 2 tasks, and this is one more; start with tasks=4"):
        model.learn(*rows(4))
    with pytest.raises(UsageError, match=f"room for 4 classes, and {name} does not grow"):
        replace(model, program=model.program._replace(tasks=3)).learn(*rows(4))


OWN = {
    "ranpac": {"width": 200},
    "acil": {"width": 200},
    "l2p": {"pool": 4, "length": 2, "top_k": 2},
    "dytox": {"heads": 2},
}
"""Settings of methods that would be slow with the sizes of their papers."""

LAYERS = {**SMALL, "network_options": {"hidden": (16, 16)}}
PATCHES = {**SMALL, "network": "vit", "network_options": {"patch": 4, "width": 8, "depth": 1, "heads": 2}}


@pytest.mark.slow
@pytest.mark.timeout(400)  # three tasks, each compiled anew where a method reads the bounds of its tasks
@pytest.mark.parametrize("name", [name for name in METHODS if name not in CLOSED])
def test_every_method_learns_one_task_more(name, monkeypatch, tmp_path):
    """Two classes, then three, for which the room of a method that grows is doubled, then three."""
    monkeypatch.setattr(models, "LEAST_CAPACITY", 2)
    image, grows = name in ("l2p", "dytox"), name in GROWING
    formed = lambda x, y: (x.reshape(-1, 8, 8, 1) if image else x, y)
    settings = {**(PATCHES if image else LAYERS), **OWN.get(name, {}), **({} if grows else {"tasks": 3, "capacity": 8})}
    model = start(name, *formed(*rows(0, 1)), memory=Keep(None, 5), epochs=2, **settings)
    x, state = formed(*rows(*range(8), first=100))[0], jax.tree.map(np.array, model.state)
    outputs = model.outputs(x)
    if grows:
        wider, wide = model._with_room(5)
        assert (model.program.capacity, wider.capacity) == (4, 8)
        found = compiled(reader(wider, model.bounds).predict)(wide, x)
        for read_out, values in outputs.items():
            np.testing.assert_allclose(found[read_out][:, : values.shape[1]], values, rtol=1e-4, atol=1e-5)
    few = 5 if quota(model.program, model.format.shape, 3) else 1
    for refused, message in (
        (rows(1, 2), "class 'one' was learnt in task 1"),
        (rows(2, count=few), f"class 'two' has {few} row.*1 is held back"),
        ((np.zeros((8, 9), np.float32), ["two"] * 8), "x must have the shape"),
    ):
        with pytest.raises(UsageError, match=message):
            model.learn(*(refused if len(refused[0][0]) == 9 else formed(*refused)))
    second = model.learn(*formed(*rows(2, 3, 4)))
    assert same(model.state, state) and model.bounds == (2,)
    for read_out, values in model.outputs(x).items():
        np.testing.assert_array_equal(values, outputs[read_out])
    compiled_before = program.compile_steps.cache_info().misses
    third = second.learn(*formed(*rows(5, 6, 7)))
    assert (program.compile_steps.cache_info().misses == compiled_before) == (name in SHARING)
    assert third.program.capacity == 8 and third.bounds == (2, 5, 8) and third.forgetting().n == 20
    assert set(third.predict(x)) <= set(NAMES[:8])
    again = load(third.save(tmp_path / "model.npz"))
    assert same(again.state, third.state)
    np.testing.assert_array_equal(again.predict(x), third.predict(x))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("joint", "joint needs the rows of all classes .* train it by fit on make_stream, or start .* replay"),
        ("rmm", "rmm's policy is for tasks that are known in advance; train it by fit .* or start foster or icarl"),
    ],
)
def test_methods_that_cannot_learn_so_say_what_to_do_instead(name, message):
    with pytest.raises(UsageError, match=message) as caught:
        start(name, *rows(0, 1), memory=20, **SMALL)
    assert "\n" not in str(caught.value)


def test_images_of_bytes_and_numbers_beyond_one():
    images, model = of_images()
    assert model.state.extra.memory.x.dtype == np.uint8 and model.probe_x.dtype == np.uint8
    assert model.predict(images).dtype == np.int64 and set(model.predict(images).tolist()) <= {0, 1}
    assert {tuple(row) for row in model.probe_x} <= {tuple(row) for row in images}
    with pytest.raises(UsageError, match="x is float32; the rows learnt so far were uint8"):
        model.predict(rows(0)[0])
    x, y = rows(0, 1)
    model = start("replay", 16 * x, y, network=NETWORK, epochs=1)
    memory = model.state.extra.memory
    assert memory.x.dtype == np.float32
    assert {tuple(row) for row in np.asarray(memory.x)[: int(memory.counts.sum())]} <= {tuple(row) for row in 16 * x}


@functools.lru_cache
def without_probes():
    return start("finetune", *rows(0, 1), probe=0, epochs=1, **SMALL)


def test_it_shows_itself():
    text, page = repr(learnt(2)), learnt(2)._repr_html_()
    assert "| task 1 | one, three, two, zero |" in text and "estimated forgetting" in text and "bytes:" in text
    assert page.startswith('<table class="results">') and "one, three, two, zero" in page
    assert "nothing to forget yet" in repr(learnt(1))
    none = without_probes()
    assert none.forgetting() is None and none.report().accuracy is None and none.report().bytes["exemplars"] == 0
    after = none.learn(*rows(2), epochs=1)
    assert "no rows of earlier tasks were held back" in repr(after) and after.right == ((0,), (0, 0))


def begin(*classes, **settings):
    name = settings.pop("method", "icarl")
    return inspect.unwrap(start)(name, *rows(*classes), **{**SMALL, "epochs": 1, **settings})


def small_memory():
    """Four classes, and as many exemplars in all."""
    model = learnt(1)
    return replace(model, program=model.program._replace(keep=Keep(4), capacity=4))


X = np.zeros((4, 64), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learnt(2).learn(*rows(1, 8)), "class 'one' was learnt in task 1; learn.. takes new classes only"),
        (lambda: learnt(2).learn(*rows(5)), "class 'five' was learnt in task 2"),
        (lambda: learnt(1).learn(X[:0], []), "no rows"),
        (lambda: learnt(1).learn(X[:, :9], ["a"] * 4), r"x must have the shape \(rows, 64\) .*, got \(4, 9\)"),
        (lambda: learnt(1).predict(X[0]), r"got \(64,\); for one row pass x\[None\]"),
        (lambda: learnt(1).learn(X, ["a"] * 3), "one label for each of 4 rows"),
        (
            lambda: learnt(1).learn(X, [4, 4, 5, 5]),
            "labels learnt so far are text such as 'one'; y holds whole numbers",
        ),
        (lambda: learnt(1).learn(X * np.nan, ["a"] * 4), "NaN or infinity in 4 of 4 rows"),
        (lambda: learnt(1).learn(X, np.ones(4)), "got dtype float64; of whole numbers stored as floats"),
        (
            lambda: learnt(1).learn(*rows(4, count=8)),
            "class 'four' has 8 rows; 1 is held back and 8 are kept as exemplars: give more rows of it",
        ),
        (lambda: learnt(1).learn(X[:1], ["a"]), "class 'a' has 1 row; 1 is held back and 8 are kept"),
        (
            lambda: replace(without_probes(), probe=0.5).learn(X[:1], ["a"]),
            "1 is held back and one at least is",
        ),
        (lambda: begin(0, 1, 2, capacity=2), "room for 2 classes, as it was started, and there would be 3"),
        (lambda: small_memory().learn(*rows(4)), "memory of 4 exemplars is less than one for each of 5 classes"),
        (lambda: begin(0, 1, 2, memory=2), "a memory of 2 exemplars is less than one"),
        (lambda: begin(0, 1, method="icral"), "did you mean 'icarl'"),
        (lambda: begin(0, 1, network=mlp(4)), "a name or a function of the number of classes"),
        (lambda: begin(0, 1, network=lambda n: None), "it gave a NoneType"),
        (lambda: begin(0, 1, temprature=1.0), "unknown setting 'temprature'"),
        (lambda: begin(0, 1, stream=None), "stream follows from the rows"),
        (lambda: begin(0, 1, temperature=np.ones(2)), "must be numbers, text, tuples or functions"),
        (lambda: begin(0, 1, probe=10), r"probe must lie in \[0, 0.5\]"),
        (lambda: start("icarl", X[:, 0], ["a", "b"] * 2), r"x must have the shape \(rows, ...\)"),
        (lambda: learnt(1).accuracy(X, ["one", "four", "one", "one"]), "class 'four' is not known"),
        (lambda: learnt(1).predict(X, read_out="mean"), "unknown read_out 'mean'; did you mean 'nearest_mean'"),
        (lambda: learnt(1).save("/proc/none/model.npz"), "cannot save the model to /proc/none"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_task_that_fails_leaves_the_model_as_it_was(monkeypatch):
    model, fit = learnt(1), models.fit
    state = jax.tree.map(np.array, model.state)

    def diverges(*args, **settings):
        fit(*args, **settings)
        raise NonFiniteError("the loss is not finite")

    monkeypatch.setattr(models, "fit", diverges)
    with pytest.raises(NonFiniteError):
        model.learn(*rows(4, 5))
    assert same(model.state, state) and model.bounds == (4,) and len(model.classes) == 4


def test_a_file_that_is_no_model(tmp_path):
    path = learnt(1).save(tmp_path / "model.npz")
    whole = path.read_bytes()
    with pytest.raises(UsageError, match="no such file"):
        load(tmp_path / "none.npz")
    for damage in (whole[: len(whole) // 2], b"", b"text", whole[:200] + bytes(64) + whole[264:]):
        path.write_bytes(damage)
        with pytest.raises(UsageError, match="damaged or another kind of file"):
            load(path)
    np.savez(path, x=np.zeros(3))
    with pytest.raises(UsageError, match="damaged or another kind of file"):
        load(path)
    np.savez(path, record=np.asarray(["a"], object))  # would have to be unpickled
    with pytest.raises(UsageError, match="damaged or another kind of file"):
        load(path)
    assert not list(tmp_path.glob(".*"))  # nothing half written is left
