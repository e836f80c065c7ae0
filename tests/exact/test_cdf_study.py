"""The sample-size study: rejection at its level, distances that shrink, and the program."""

import csv
import re

import numpy as np
import pytest

from tests import fake_models
from tests.tiny_config import ROOT, program, succeed
from vbon_jax.exact import cdf_study
from vbon_jax.types import InputError


def test_the_share_below_by_hand():
    held_out = np.array([[1.0, 2.0, 2.0, 4.0]])
    points = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]])
    below, up_to = (cdf_study._share(held_out, points, side) for side in ("left", "right"))
    np.testing.assert_array_equal(below, [[0, 0, 0.25, 0.75, 0.75]])
    np.testing.assert_array_equal(up_to, [[0, 0.25, 0.75, 0.75, 1]])


@pytest.mark.slow
def test_samples_of_one_law_are_rejected_at_the_level_and_estimates_come_nearer():
    rewards = np.random.default_rng(0).normal(size=(120, 100))
    by_key = {(row["law"], row["m"]): row for row in cdf_study.study(rewards, seed=0)}
    sizes = sorted({m for _, m in by_key})
    assert sizes == [5, 10, 20, 50]
    for m in sizes:
        row = by_key["sample", m]
        assert row["rejected"] <= 0.13  # 0.05 and 4 standard errors
        assert row["rejected_lo"] <= row["rejected"] <= row["rejected_hi"]
        assert (row["held_out"], row["prompts"]) == (50, 120)
    for law in ("sample", "harmonic", "add_one"):
        distances = [by_key[law, m]["distance"] for m in sizes]
        assert distances == sorted(distances, reverse=True)
    assert by_key["harmonic", 5]["rejected"] > 0.9 > 0.6 > by_key["harmonic", 50]["rejected"]


def test_two_laws_are_told_apart():
    generator = np.random.default_rng(0)
    one, other = generator.normal(size=(30, 60)), generator.normal(2.0, 1.0, size=(30, 60))
    distance, p_value = cdf_study._tests(one, other)["sample"]
    assert (p_value < cdf_study.LEVEL).all()
    assert (distance > 0.5).all()


def test_a_cache_that_is_too_small_is_refused():
    with pytest.raises(InputError, match=r"9 rewards of 3 prompts.*at least 10"):
        cdf_study.study(np.zeros((3, 9)), seed=0)


@pytest.mark.slow
def test_the_documented_command_on_a_cache(tmp_path):
    fake_models.write_cache(tmp_path / "references" / "eval", prompts=8)
    page = (ROOT / "docs" / "exact.md").read_text()
    command = re.search(r"^python -m experiments\.cdf_study (.*)$", page, re.MULTILINE)[1]
    flag, folder = command.split()
    assert folder == "runs/imdb"
    done = succeed("cdf_study", flag, tmp_path)
    with (tmp_path / "cdf_study.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["cache"], row["m"]) for row in rows] == [("eval", "5")] * 4 + [("eval", "8")] * 4
    assert (tmp_path / "cdf_study.svg").stat().st_size > 1000
    assert "sample" in done.stdout
    assert program("cdf_study", "--workdir", tmp_path / "empty").returncode == 2
