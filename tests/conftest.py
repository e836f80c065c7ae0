"""Fixtures that more than one test module uses, and a cache of compiled programs for all tests."""

import os
import pathlib
import shutil
import tempfile

import pytest

# Programs that tests run, and other tests, compile much the same: the second one reads what the
# first has compiled. Set before jax is imported; workers and programs inherit it.
# And compiling takes longer than running, so that LLVM does not optimise: a third of the time.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
    )
MADE = COMPILED not in os.environ
if MADE:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="vbon_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def pytest_unconfigure():
    """The process that made the cache takes it away."""
    if MADE:
        shutil.rmtree(os.environ[COMPILED], ignore_errors=True)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of real checkpoints and reviews beside the checkout; a clone without it skips."""
    folder = pathlib.Path(__file__).parents[2] / "shared"
    if not (folder / "models").is_dir():
        pytest.skip("no ../shared beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> pathlib.Path:
    """A folder with a tiny random policy and reviews; see `tests/tiny.py`."""
    from tests.tiny_config import make_policy, make_reviews

    folder = tmp_path_factory.mktemp("tiny")
    make_policy(folder / "policy")
    make_reviews(folder / "reviews")
    return folder
