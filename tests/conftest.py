"""Fixtures that more than one test module uses."""

import pathlib

import pytest


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
    from tests.tiny import make_policy, make_reviews

    folder = tmp_path_factory.mktemp("tiny")
    make_policy(folder / "policy")
    make_reviews(folder / "reviews")
    return folder
