"""Pareto fronts: hand-worked numbers, ties, and every pair compared."""

import time

import numpy as np
import pytest

from vbon_jax.evaluation import pareto
from vbon_jax.evaluation.bootstrap import Bootstrap

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 0.6), (2, 0.5), (2, 0.8), (3, 0.8), (4, 0.9), (0.5, 0.6)], [0, 0, 1, 0, 1, 1]),
        ([(3.0, -1.0)], [1]),
        # equal points are on it together or not at all
        ([(1.0, 0.5), (1.0, 0.5), (2.0, 0.7), (2.0, 0.7)], [1, 1, 1, 1]),
        ([(1.0, 0.5), (0.5, 0.5), (1.0, 0.5)], [0, 1, 0]),
        ([(1.0, 0.5), (1.0, 0.6), (1.0, 0.6)], [0, 1, 1]),
        # a point that is not finite is off it and beats none
        ([(NAN, 9.0), (1.0, NAN), (-INF, 2.0), (1.0, 0.5)], [0, 0, 0, 1]),
        ([(NAN, NAN)], [0]),
    ],
)
def test_fronts_by_hand(points, front):
    assert pareto.on_front(*zip(*points, strict=True)).tolist() == front


def test_no_points():
    assert pareto.on_front(np.zeros((4, 0)), np.zeros((4, 0))).shape == (4, 0)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shape"):
        pareto.on_front([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="3 groups"):
        pareto.membership(np.zeros((5, 2)), np.zeros((5, 2)), ["a", "b", "b"], Bootstrap(0))


def test_against_every_pair():
    random = np.random.default_rng(0)
    cost, quality = random.integers(6, size=(2, 300, 12)).astype(float)  # many ties
    no_worse = (cost[:, None] <= cost[:, :, None]) & (quality[:, None] >= quality[:, :, None])
    better = (cost[:, None] < cost[:, :, None]) | (quality[:, None] > quality[:, :, None])
    expected = ~(no_worse & better).any(axis=-1)
    np.testing.assert_array_equal(pareto.on_front(cost, quality), expected)


def test_membership_by_hand():
    """b's first point beats a's second by a margin that no resample of prompts turns."""
    noise_b = np.asarray([-0.01, 0.0, 0.01, 0.0])[:, None]
    cost_bp = np.asarray([1.0, 3.0, 2.0, 4.0]) + noise_b
    quality_bp = np.asarray([0.5, 0.6, 0.7, 0.9]) + noise_b
    members = pareto.membership(cost_bp, quality_bp, ["a", "a", "b", "b"], Bootstrap(0, 200))
    assert list(members) == ["a", "b"]
    assert members["a"] == (0.5, 0.0, 0.5, 0.5)
    assert members["b"] == (1.0, 0.0, 1.0, 1.0)


def test_a_tie_within_noise_has_an_interval():
    """One prompt in two prefers a's point, at one cost: each wins about half of the resamples."""
    quality_bp = np.asarray([[0.4, 0.6], [0.6, 0.4]] * 8)
    members = pareto.membership(np.ones((16, 2)), quality_bp, ["a", "b"], Bootstrap(1))
    for share in members.values():
        assert share.value == 1.0  # equal means: both are on the front
        assert (share.lo, share.hi) == (0.0, 1.0)
        assert share.se == pytest.approx(0.49, abs=0.02)


def test_a_point_that_is_not_finite_counts_among_its_group():
    cost_bp = np.ones((4, 2))
    quality_bp = np.asarray([[0.5, 0.5], [0.5, np.nan], [0.5, 0.5], [0.5, 0.5]])
    members = pareto.membership(cost_bp, quality_bp, ["a", "a"], Bootstrap(0, 50))
    assert members["a"] == (0.5, 0.0, 0.5, 0.5)


def test_200_runs_and_2000_resamples_take_seconds():
    random = np.random.default_rng(0)
    cost_bp, quality_bp = random.random((2, 256, 200))
    started = time.perf_counter()
    pareto.membership(cost_bp, quality_bp, [f"m{i % 16}" for i in range(200)], Bootstrap(0))
    assert time.perf_counter() - started < 10
