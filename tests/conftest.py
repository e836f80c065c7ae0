"""Fixtures that more than one test module uses, and a cache of compiled programs for all tests."""

import os
import pathlib
import shutil
import tempfile

import pytest

# Compiling takes longer than running: LLVM does not optimise, and small programs skip the fusions
# that are set up at length. Programs that tests start, and other tests, compile much the same: the
# second one reads what the first has compiled, but for what is compiled as fast as it is read.
# Set before jax is imported; workers and programs inherit it.
COMPILED = "JAX_COMPILATION_CACHE_DIR"
FLAGS = ("--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false")
given = os.environ.get("XLA_FLAGS", "")
missing = [flag for flag in FLAGS if flag.partition("=")[0] not in given]
os.environ["XLA_FLAGS"] = " ".join([given, *missing]).strip()
MADE = COMPILED not in os.environ
if MADE:
    os.environ[COMPILED] = tempfile.mkdtemp(prefix="vbon_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"


# Modules that take minutes begin first, so that no worker is left with one of them at the end.
LONGEST = ("test_stages", "test_parallel", "test_programs", "test_interruptions", "test_budgets")


def pytest_collection_modifyitems(items):
    """The longest modules first; the order within a module stays."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


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
