"""Whatever a user gives by mistake ends in one line that names it, before anything is computed."""

import pathlib

import pytest

from tests.cases import bad_inputs
from tests.tiny_config import overrides, program


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> pathlib.Path:
    """The files of `bad_inputs.FILES`, and models once they are made."""
    folder = tmp_path_factory.mktemp("bad")
    bad_inputs.write_files(folder)
    return folder


def words_of(text: str, places: pathlib.Path, tiny: pathlib.Path, empty: pathlib.Path) -> list[str]:
    """The arguments of a case, with its placeholders filled in."""
    words = []
    for word in text.split():
        if word == "RUN":
            words += overrides(tiny)
            continue
        name, at, place = word.partition("@")
        if at and (not place or place.startswith("/")):
            word = f"{name}{empty}{place}"
        elif at:
            folder = places / place
            if place.startswith("model/") and not folder.exists():
                bad_inputs.make_model(tiny / "policy", folder.name, folder)
            word = f"{name}{folder}"
        words.append(word.replace("TINY", str(tiny / "policy")))
    return words


@pytest.mark.parametrize(
    ("name", "arguments", "wanted"),
    bad_inputs.CASES,
    ids=[f"{name} {arguments}"[:90] for name, arguments, _ in bad_inputs.CASES],
)
def test_one_line_says_what_is_wrong(name, arguments, wanted, places, tiny, tmp_path):
    done = program(name, *words_of(arguments, places, tiny, tmp_path))
    assert "Traceback" not in done.stderr, done.stderr[-1500:]
    assert done.returncode == 2, (done.stdout + done.stderr)[-500:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert [word for word in wanted if word not in last] == [], last
    assert not list(tmp_path.rglob("*.parquet"))  # nothing was sampled


def test_there_are_many():
    assert len({case[:2] for case in bad_inputs.CASES}) >= 150
