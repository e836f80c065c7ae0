"""Folders that are made from inputs."""

import pytest

from vbon_jax import files
from vbon_jax.types import InputError


def test_an_artifact_is_made_resumed_or_refused(tmp_path):
    folder = tmp_path / "stage"
    assert files.Artifact(folder, {"a": 1, "b": (1, 2)}).begin()
    second = files.Artifact(folder, {"a": 2, "b": (1, 2)})
    assert second.begin()  # nothing was made yet
    with pytest.raises(InputError, match="a was 2 and is 3"):
        files.Artifact(folder, {"a": 3, "b": (1, 2)}).begin(resumes=True)
    second.finish()
    assert not second.begin()
    with pytest.raises(InputError, match=r"b was \[1, 2\] and is None"):
        files.Artifact(folder, {"a": 2}).begin()
