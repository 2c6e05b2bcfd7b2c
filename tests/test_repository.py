"""The repository as a stranger meets it: locked versions, documented commands, a light import, import contracts."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PARTS = "graphs long_tailed class_incremental ood quantization large_scale reprogramming extremes rl compiler".split()

pytestmark = pytest.mark.skipif(not (ROOT / "Makefile").is_file(), reason="not in a checkout")


def tracked() -> list[Path]:
    found = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if found.returncode:
        pytest.skip("not in a git checkout")
    return [ROOT / name for name in found.stdout.split("\0") if name and (ROOT / name).is_file()]


def locked(python: str) -> dict[str, str]:
    """The versions of the lock for a Python on Linux, by canonical name."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": "linux"}
    versions = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            (specifier,) = requirement.specifier
            assert specifier.operator == "==", f"not an exact version: {line}"
            name = canonicalize_name(requirement.name)
            assert name not in versions, f"{name} is locked twice for Python {python}"
            versions[name] = specifier.version
    return versions


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_lock_meets_every_requirement(python):
    versions = locked(python)
    extras = PROJECT["project"]["optional-dependencies"]
    for line in [*PROJECT["project"]["dependencies"], *extras["dev"], *extras["notebooks"]]:
        requirement = Requirement(line)
        version = versions.get(canonicalize_name(requirement.name))
        assert version, f"{requirement.name} is not in requirements.lock; run make lock"
        assert requirement.specifier.contains(version, prereleases=True), f"{line}, but locked is {version}"


def test_the_lock_serves_two_generations_of_jax():
    assert locked("3.11")["jax"].startswith("0.10.")
    newest = locked("3.13")["jax"]
    assert tuple(map(int, newest.split(".")[:2])) >= (0, 12)
    assert locked("3.12")["jax"] == newest


def test_the_extras_that_the_documentation_names_exist():
    extras = PROJECT["project"]["optional-dependencies"]
    assert set(extras) == {"gpu", "gpu-cuda12", "rl", "data", "bench", "notebooks", "dev"}
    assert any(line.startswith("jax[cuda13]") for line in extras["gpu"])
    assert any(line.startswith("jax[cuda12]") for line in extras["gpu-cuda12"])


def test_nothing_large_is_tracked():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked() if path.stat().st_size > 1_000_000}
    assert not large


# A folder of one machine, or an address in a private network; written so that this file does not match itself.
ONE_MACHINE = re.compile(
    r"(?<![\w.~$}/-])/(?:home/[a-z]|Users/[A-Za-z]|ro[o]t/|wor[k]/|fa[r]m/|tm[p]/)"
    r"|(?<![\d.])(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}(?![\d.])"
)
# The lock names versions, never where they come from; other files name no index but the public one.
INDEX = re.compile(r"--(?:extra-)?index-url|--find-links|--trusted-host")


def test_no_tracked_file_names_one_machine():
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if ONE_MACHINE.search(line) or (INDEX.search(line) and path != Path(__file__).resolve()):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join(found)


def test_the_lock_names_no_host():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|@|--", text)


def test_every_make_target_is_in_the_readme():
    targets = re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    readme = (ROOT / "README.md").read_text()
    assert {"run", "test", "test-all", "lint", "bench", "notebooks", "gpu", "lock"} <= set(targets)
    assert [target for target in targets if f"`make {target}`" not in readme] == []


@pytest.mark.slow
def test_the_examples_of_the_readme_run(tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    check = "assert (outputs['logits'].argmax(-1) == y[:5]).all()"
    ran = run(sys.executable, "-c", "\n".join([*blocks, check]), cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert ran.returncode == 0, ran.stderr


def test_python_versions_agree():
    """What the package asks for, what the environment script accepts and what the linter assumes."""
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert "(3, 11)" in (ROOT / ".ci" / "venv").read_text()


def run(*command: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    clean = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    return subprocess.run(command, cwd=cwd, env=clean, capture_output=True, text=True, timeout=100)


def test_importing_jaxkit_imports_no_jax():
    code = (
        "import sys, time; start = time.perf_counter(); import jaxkit; seconds = time.perf_counter() - start\n"
        "heavy = {'jax', 'numpy', 'flax', 'optax', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert seconds < 0.1, seconds\n"
        "assert dir(jaxkit) == ['__version__', 'fit', 'load', 'train'], dir(jaxkit)\n"
        "print(jaxkit.__version__)"
    )
    ran = run(sys.executable, "-c", code)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == PROJECT["project"]["version"]


@pytest.mark.parametrize("python", ["no-such-python", "false"])
def test_a_python_that_does_not_answer_is_one_line(python, tmp_path):
    ran = run("bash", ".ci/venv", str(tmp_path / "venv"), python)
    assert ran.returncode == 2
    assert ran.stderr == f"make: PYTHON={python} does not answer; give the path of a Python of at least 3.11\n"
    assert not (tmp_path / "venv").exists()


def test_make_without_a_target_lists_all_targets():
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    ran = run("make")
    assert ran.returncode == 0, ran.stderr
    for target in re.findall(r"^([a-z][a-z-]*):(?!=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE):
        assert re.search(rf"^make {target} +\S", ran.stdout, flags=re.MULTILINE), target


def test_an_unknown_attribute_of_jaxkit_is_an_attribute_error():
    import jaxkit

    with pytest.raises(AttributeError, match="module 'jaxkit' has no attribute 'tarin'"):
        _ = jaxkit.tarin


@pytest.mark.parametrize("name", ["train", "fit", "load"])
def test_the_three_names_of_jaxkit_are_functions(name):
    import jaxkit

    assert callable(getattr(jaxkit, name))


# One import that each contract of pyproject.toml must refuse, in packages that may not exist yet.
FORBIDDEN = {
    "Arrows point down": {
        "jaxkit/learner.py": "import jaxkit.data",
        "jaxkit/training/x.py": "import jaxkit.evaluation",
    },
    "The library does not know": {"jaxkit/rl/y.py": "import experiments"},
    "kernels_pallas stands by itself": {"kernels_pallas/x.py": "import jaxkit.check"},
    "Of jaxkit only quantization": {"jaxkit/compiler/x.py": "import kernels_pallas"},
    "Flax only in": {"jaxkit/training/z.py": "import flax.linen"},
    "jraph only in": {"jaxkit/data/x.py": "import jraph"},
    "NumPyro only in": {"jaxkit/ood/x.py": "from numpyro import infer"},
    "Ray only in": {"jaxkit/rl/learners.py": "import ray"},
    "torch and its": {"jaxkit/networks/x.py": "import torch"},
}
ALLOWED = {
    "jaxkit/quantization/x.py": "import kernels_pallas\nimport jaxkit.training",
    "jaxkit/networks/y.py": "import flax.linen",
    "jaxkit/graphs/x.py": "import jraph",
    "jaxkit/extremes/x.py": "import numpyro",
    "jaxkit/rl/actors.py": "import ray",
    "experiments/x.py": "import torch, jaxkit.rl.actors, kernels_pallas",
    "jaxkit/door.py": "import jaxkit.rl, jaxkit.quantization.x, jaxkit.methods",
}


def tree(folder: Path, files: dict[str, str]) -> Path:
    """A project of empty packages with the rooms, all parts and the given files, under this project's contracts."""
    for package in ["training", "evaluation", "data", "networks", "losses", "supervised", *PARTS]:
        files = {f"jaxkit/{package}/__init__.py": "", **files}
    for name in ["jaxkit/__init__.py", "kernels_pallas/__init__.py", "experiments/__init__.py"]:
        files = {name: "", **files}
    for name in ["learner", "check", "fetch", "methods", "door"]:
        files = {f"jaxkit/{name}.py": "", **files}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def lint_imports(folder: Path) -> str:
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    ran = run(sys.executable, "-c", code, cwd=folder, PYTHONPATH=str(folder), COLUMNS="200")
    return re.sub(r"\x1b\[[0-9;]*m", "", ran.stdout + ran.stderr)


def test_the_import_contracts_refuse_what_they_name(tmp_path):
    files: dict[str, str] = {}
    for refused in FORBIDDEN.values():
        files |= refused
    output = lint_imports(tree(tmp_path, files))
    assert f"Contracts: 0 kept, {len(FORBIDDEN)} broken." in output, output
    for name in FORBIDDEN:
        assert re.search(rf"^{name}.* BROKEN$", output, flags=re.MULTILINE), output


def test_the_import_contracts_pass_what_the_design_allows(tmp_path):
    output = lint_imports(tree(tmp_path, ALLOWED))
    assert f"Contracts: {len(FORBIDDEN)} kept, 0 broken." in output, output


def test_no_part_may_import_another():
    """Read off the contract: all parts stand in one layer, joined by | (which makes them independent)."""
    (layers,) = [c["layers"] for c in PROJECT["tool"]["importlinter"]["contracts"] if c["type"] == "layers"]
    (line,) = [layer for layer in layers if "(graphs)" in layer]
    assert {f"({part})" for part in PARTS} <= set(line.split(" | "))


def test_a_package_without_a_place_is_refused(tmp_path):
    output = lint_imports(tree(tmp_path, {"jaxkit/utils/__init__.py": ""}))
    assert f"Contracts: {len(FORBIDDEN)} kept" not in output
    assert re.search(r"not listed as layers:\s+- jaxkit.utils", output), output


def test_the_installed_package_has_the_version_of_the_project():
    try:
        installed = importlib.metadata.version("jaxkit")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("jaxkit is not installed here")
    assert installed == PROJECT["project"]["version"]
