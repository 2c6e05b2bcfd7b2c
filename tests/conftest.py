"""What holds for every test: which devices JAX sees, checked array annotations, one compilation cache, and markers.

Everything is set before the first import of jax or jaxkit. Without ``-m gpu`` JAX has eight simulated CPU devices, so
that sharded code is tested everywhere.
"""

import faulthandler
import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

FINISHED = pytest.StashKey[int]()  # tests that this process has run


def _gpu_asked(config: pytest.Config) -> bool:
    expression = config.getoption("markexpr", "")
    return re.search(r"\bgpu\b", expression) is not None and re.search(r"\bnot\s+gpu\b", expression) is None


def pytest_configure(config: pytest.Config) -> None:
    assert "jax" not in sys.modules, "a pytest plugin imported jax before conftest.py could choose its devices"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache" / "jaxkit" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    if not _gpu_asked(config):
        os.environ["JAX_PLATFORMS"] = "cpu"
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_force_host_platform_device_count" not in flags:
            # Eight devices share a few cores: on a busy machine they may wait for each other longer than XLA's 40 s.
            patient = "--xla_cpu_collective_call_terminate_timeout_seconds=100"
            flags = f"{flags} --xla_force_host_platform_device_count=8 {patient}".strip()
        # The fast tests are small programs whose time is their compilation; the slow tests compile as users do.
        if "not slow" in config.getoption("markexpr", "") and "xla_backend_optimization_level" not in flags:
            flags += " --xla_backend_optimization_level=0"
        os.environ["XLA_FLAGS"] = flags
    os.environ.setdefault("MPLBACKEND", "agg")
    faulthandler.enable()

    # The same examples in every run, and no time limit for one of them: the first one compiles.
    settings.register_profile("jaxkit", deadline=None, max_examples=50, derandomize=True, database=None)
    settings.load_profile("jaxkit")
    install_import_hook(["jaxkit"], "annotations.checked")


TESTS_BETWEEN_LOOKS = 5  # a test of the conformance's second tier makes some 4,000 memory mappings


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Thousands of tests share a process: let go of the compiled programs when there are too many."""
    finished = item.config.stash[FINISHED] = item.config.stash.get(FINISHED, 0) + 1
    if nextitem is not None and finished % TESTS_BETWEEN_LOOKS == 0 and "jax" in sys.modules:
        from jaxkit.training import release_programs

        release_programs()


def _data_folder() -> Path | None:
    folder = os.environ.get("JAXKIT_DATA", "")
    return Path(folder).resolve() if folder and Path(folder).is_dir() else None


def _gpu_found() -> bool:
    import jax

    return jax.default_backend() == "gpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if _data_folder() is None:
        reason = "needs real data: set JAXKIT_DATA to the folder that holds it"
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(pytest.mark.skip(reason=reason))
    with_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if with_gpu and not (_gpu_asked(config) and _gpu_found()):
        for item in with_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a GPU that JAX sees; run: python -m pytest -m gpu"))


@pytest.fixture
def data_folder() -> Path:
    """The folder of real data; a test that asks for it is skipped where there is none."""
    folder = _data_folder()
    if folder is None:
        pytest.skip("needs real data: set JAXKIT_DATA to the folder that holds it")
    return folder
