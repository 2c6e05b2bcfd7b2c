"""The list of studies, and the tour's page when a study fails."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import catalogue, tour
from jaxkit import check

STUDY = """
import sys, time
STUDY = Study(name={name!r}, title="The {name} study", one_line="What {name} shows.", Config=None, presets={{}},
              cells=None, run_cell=None, rows=None, figures=None)
"""


def test_studies_are_listed_without_being_imported(tmp_path):
    (tmp_path / "one.py").write_text("raise RuntimeError('imported')\n" + STUDY.format(name="one"))
    (tmp_path / "helper.py").write_text("VALUE = 1\n")
    assert catalogue.studies(tmp_path) == {"one": catalogue.Entry("one", "The one study", "What one shows.")}


def test_every_study_bears_its_modules_name_and_says_what_it_shows():
    known = catalogue.studies()
    assert "first_steps" in known
    for name, entry in known.items():
        module = __import__(f"experiments.{name}", fromlist=["STUDY"])
        assert module.STUDY.name == name and entry.title == module.STUDY.title and len(entry.one_line) > 20
        assert {"tour", "quick"} <= set(module.STUDY.presets)


def test_an_unknown_study_offers_the_nearest():
    with pytest.raises(check.UsageError, match="did you mean 'first_steps'"):
        catalogue.find("first-step")
    answer = subprocess.run(
        [sys.executable, "-m", "experiments", "frist_steps"], capture_output=True, text=True, timeout=60
    )
    assert (
        answer.returncode == 2 and "did you mean 'first_steps'?" in answer.stderr and "Traceback" not in answer.stderr
    )


@pytest.fixture
def two_studies(tmp_path, monkeypatch):
    """A tour of two studies: the tiny one, and one that crashes."""
    tiny = Path(__file__).with_name("tiny_study.py")
    entries = {name: catalogue.Entry(name, name, "") for name in ("broken", "tiny_study")}
    monkeypatch.setattr(catalogue, "studies", lambda folder=None: entries)
    (tmp_path / "experiments").mkdir()
    runs = lambda words: (
        [str(tiny), *words[2:]] if words[1] == "experiments.tiny_study" else ["-c", "raise OSError('no such luck')"]
    )
    real = subprocess.Popen
    monkeypatch.setattr(tour.subprocess, "Popen", lambda words, **more: real([words[0], *runs(words[1:])], **more))
    monkeypatch.setenv("PYTHONPATH", str(tiny.parents[2]))
    monkeypatch.chdir(tmp_path)


def test_one_failing_study_does_not_stop_the_others(two_studies, tmp_path, capsys):
    assert tour.main(["--out", str(tmp_path / "all")]) == 1
    page = (tmp_path / "all" / "report.html").read_text()
    assert page.index("broken failed") < page.index("A tiny study")
    assert "OSError: no such luck" in page and page.count("data:image/png") == 1
    assert "<td>alpha</td>" in page and "<caption>What the &lt;names&gt; hold</caption>" in page
    assert "The sum is [bold] arithmetic, and not &lt;magic&gt;." in page
    out, errors = capsys.readouterr()
    assert "failed: broken (exit code 1)" in errors and "1 of 2 studies" in out
    assert tour.main(["--studies", "brokn", "--out", str(tmp_path / "again")]) == 2


def test_a_study_with_a_diverged_cell_stands_on_top_and_keeps_its_section(two_studies, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TINY", "nan")
    monkeypatch.setenv("TINY_METHOD", "alpha")
    assert tour.main(["--studies", "tiny_study", "--out", "all"]) == 1
    page = (tmp_path / "all" / "report.html").read_text()
    top, section = page.split('<section id="tiny_study">')
    assert "<b>tiny_study diverged</b> (exit code 3)" in top and 'href="#tiny_study"' in top and "failed</b>" not in top
    assert "plain · alpha: diverged: the loss is not finite at step 7" in section
    # 1 x (4, 4.1): beta's mean of two seeds; and the further tables and the figure of what is there
    assert "4.05" in section and "What the &lt;names&gt; hold" in section and section.count("data:image/png") == 1
    out, errors = capsys.readouterr()
    assert "diverged: tiny_study (exit code 3), see all/tiny_study.log" in errors and "0 of 1 studies" in out
