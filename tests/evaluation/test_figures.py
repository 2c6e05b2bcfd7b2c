import io

import matplotlib
import numpy as np
import PIL.Image
import pytest

from jaxkit import evaluation as ev
from jaxkit.check import UsageError

STEPS = np.arange(0, 100, 10)
RUNS = np.random.default_rng(0).normal(0.9, 0.01, size=(5, 10))


def rows():
    return [
        ev.make_row("first steps", "digits", "mlp", "accuracy", RUNS[:, 0], published=0.95, tag="Table 2"),
        ev.make_row("first steps", "digits", "co$t_$", "accuracy", 0.92, published=0.9, tag="from memory"),
        ev.make_row("first steps", "mnist", "mlp", "accuracy", None),
    ]


CURVES = {"mlp": (STEPS, RUNS), "a $label$ that is no formula": (STEPS, RUNS[0])}
BINS = ev.Bins(np.array([np.nan, 0.4, 0.8]), np.array([np.nan, 0.5, 0.9]), np.array([0.0, 0.5, 0.5]))
FIGURES = {
    "curves": lambda: ev.learning_curves(CURVES, "test accuracy", title="First steps", reference={"published": 0.95}),
    "one point": lambda: ev.learning_curves({"one": ([5], [0.5])}, "loss", log_y=True),
    "dots": lambda: ev.bars_with_published(rows(), "accuracy", title="First steps"),
    "reliability": lambda: ev.reliability_diagram(BINS, ece=0.1),
}


def test_band_is_the_t_interval_of_each_step():
    mean, low, high = ev.band(RUNS)
    for i in range(10):
        np.testing.assert_allclose([mean[i], low[i], high[i]], ev.mean_interval(RUNS[:, i])[:3], rtol=1e-9)
    gaps = RUNS.copy()
    gaps[0, 3], gaps[:, 4], gaps[1:, 5] = np.nan, np.nan, np.nan
    mean, low, high = ev.band(gaps)
    np.testing.assert_allclose([mean[3], low[3], high[3]], ev.mean_interval(gaps[1:, 3])[:3], rtol=1e-9)
    assert np.isnan([mean[4], low[4], high[4], low[5], high[5]]).all() and mean[5] == RUNS[0, 5]


@pytest.mark.parametrize("name", FIGURES)
def test_save_writes_a_small_png_the_same_every_time(name, tmp_path):
    path = ev.save(FIGURES[name](), tmp_path / "figures" / "a.png")
    content = path.read_bytes()
    assert len(content) <= 200_000 and [p.name for p in path.parent.iterdir()] == ["a.png"]
    image = PIL.Image.open(io.BytesIO(content)).convert("L")
    assert min(image.size) >= 300
    pixels = np.asarray(image)
    # Something is drawn, and nothing is cut off: the outermost frame of pixels is blank.
    assert (pixels < 128).sum() > 500
    assert all((edge == 255).all() for edge in (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]))
    assert ev.save(FIGURES[name](), tmp_path / "b.png").read_bytes() == content


def test_global_settings_are_untouched_and_no_figure_is_kept():
    before = dict(matplotlib.rcParams)
    for make in (FIGURES["curves"], FIGURES["dots"]):
        assert make()._repr_png_().startswith(b"\x89PNG")  # what a notebook shows
    assert dict(matplotlib.rcParams) == before
    import matplotlib.pyplot as plt

    assert plt.get_fignums() == []


def test_dots_show_value_interval_published_and_missing():
    figure = ev.bars_with_published(rows(), "accuracy")
    digits, mnist = figure.axes
    drawn = {tuple(np.ravel(line.get_xdata())) for line in digits.lines}
    ours = rows()[0]
    assert {(0.95,), (0.9,), (ours.low, ours.high), (ours.value,), (0.92,)} == drawn
    assert [text.get_text() for text in mnist.texts] == ["missing"]
    labels = {text.get_text() for text in figure.legends[0].get_texts()}
    assert labels == {"ours, 95 % interval", "published", "published, from memory"}


def test_curves_show_the_mean_and_name_every_curve():
    (axes,) = ev.learning_curves({"mlp": (STEPS, RUNS), "other": (STEPS, RUNS - 0.5)}, "accuracy").axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), RUNS.mean(0))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mlp", "other"]
    assert len(axes.collections) == 2 and axes.get_ylabel() == "accuracy"


def test_of_two_runs_each_is_drawn():
    (axes,) = ev.learning_curves({"mlp": (STEPS, RUNS[:2])}, "accuracy", over="splits").axes
    assert not axes.collections  # no band
    for line, run in zip(axes.lines[1:], RUNS[:2], strict=True):
        np.testing.assert_array_equal(line.get_ydata(), run)
    assert axes.get_title(loc="left") == "(mean and each of 2 splits)"


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda path: ev.learning_curves({}, "loss"), "at least one curve"),
        (lambda path: ev.learning_curves({"erm": (STEPS, RUNS[:, 1:])}, "loss"), "curve 'erm'"),
        (lambda path: ev.bars_with_published(rows(), "acuracy"), "did you mean 'accuracy'"),
        (lambda path: ev.reliability_diagram(ev.Bins(np.ones(3), np.ones(2), np.ones(3))), "one length"),
        (lambda path: ev.save(ev.learning_curves({"a": (STEPS, RUNS)}, "loss"), path / "a.pdf"), "ends in .png"),
        (
            lambda path: ev.save(ev.learning_curves({"a": (STEPS, RUNS)}, "b"), path / "a.png", most_bytes=9),
            "draw less",
        ),
    ],
)
def test_mistakes(call, words, tmp_path):
    with pytest.raises(UsageError, match=words):
        call(tmp_path)


def test_many_curves_fit_the_limit(tmp_path):
    noise = np.random.default_rng(1).normal(size=(12, 8, 400))
    curves = {f"method {i}": (np.arange(400), noise[i]) for i in range(12)}
    path = ev.save(ev.learning_curves(curves, "noise"), tmp_path / "noise.png", dpi=150)
    assert path.stat().st_size <= 200_000
