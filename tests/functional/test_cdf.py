"""Estimates of log F: hand-worked ranks, the binomial law of the estimators, invariance, fits."""

import math

import jax
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from vbon_jax.functional import bon, cdf

# One program is compiled faster than its operations one by one.
log_cdf = jax.jit(cdf.log_cdf, static_argnames=("estimator", "ties"))
log_cdf_inclusive = jax.jit(cdf.log_cdf_inclusive, static_argnames="estimator")


def by_rank(estimator, m):
    """The estimate at k = 0 .. M strictly smaller references, through the public function."""
    rewards, references = np.arange(m + 1)[None, :] - 0.5, np.arange(m, dtype=float)[None, :]
    return np.asarray(log_cdf(rewards, references, estimator=estimator), np.float64)[0]


def test_harmonic_and_add_one_by_hand():
    rewards = np.array([2.5, 0.0, 9.0])
    references = np.array([[1.0, 2.0, 3.0, 4.0]] * 3)
    harmonic = [1 + 1 / 2, 0.0, 1 + 1 / 2 + 1 / 3 + 1 / 4]
    for function in (cdf.log_cdf, log_cdf):
        ours = function(rewards, references)
        np.testing.assert_allclose(ours, np.array(harmonic) - 25 / 12, rtol=1e-6, atol=1e-7)
        ours = function(rewards, references, estimator="add_one")
        np.testing.assert_allclose(ours, np.log([3 / 5, 1 / 5, 1.0]), rtol=1e-6)
        assert ours.dtype == np.float32


def test_ties_by_hand():
    rewards, references = np.array([2.0]), np.array([[1.0, 2.0, 2.0, 2.0, 3.0]])
    # one below, three equal: k = 2.5 by halves, 1 excluded, 4 included
    half = scipy.special.digamma(3.5) + np.euler_gamma - 137 / 60
    np.testing.assert_allclose(log_cdf(rewards, references), [half], rtol=1e-6)
    below = log_cdf(rewards, references, ties="exclude")
    np.testing.assert_allclose(below, [1 - 137 / 60], rtol=1e-6)
    inclusive = log_cdf_inclusive(rewards, references)
    np.testing.assert_allclose(inclusive, [25 / 12 - 137 / 60], rtol=1e-6)
    add_one = {"estimator": "add_one"}
    np.testing.assert_allclose(
        [
            log_cdf(rewards, references, **add_one),
            log_cdf(rewards, references, ties="exclude", **add_one),
            log_cdf_inclusive(rewards, references, **add_one),
        ],
        np.log([[3.5 / 6], [2 / 6], [5 / 6]]),
        rtol=1e-6,
    )


def test_half_ranks_are_the_digamma_function():
    m = 300
    references = np.arange(m, dtype=float)[None, :]
    ours = np.asarray(log_cdf(references, references))[0]  # each meets itself: k = j + 1/2
    k = np.arange(m) + 0.5
    expected = scipy.special.digamma(k + 1) - scipy.special.digamma(m + 1)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_a_reference_among_the_others_by_hand():
    rewards = np.array([[3.0, 1.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0, 5.0]])
    # of 4 others: the twos have 1 below and 2 equal, the zeros 0 below and 3 equal
    expected = [[1.0, 0.0, 0.5, 0.5, 0.5], [0.375, 0.375, 0.375, 0.375, 1.0]]
    cdf_of_references = jax.jit(cdf.cdf_of_references)
    np.testing.assert_array_equal(cdf_of_references(rewards), expected)
    np.testing.assert_array_equal(cdf_of_references(np.array([[7.0, 7.0]])), [[0.5, 0.5]])
    with pytest.raises(ValueError, match="at least 2"):
        cdf.cdf_of_references(rewards[:, :1])


# ------------------------------------------------------- the table of the design, by summation


@pytest.mark.parametrize("m", [1, 2, 16, 64, 256])
@pytest.mark.parametrize("true_cdf", [0.05, 0.3, 0.5, 0.9])
def test_mean_of_harmonic_is_the_log_series_cut_at_m(m, true_cdf):
    law = scipy.stats.binom.pmf(np.arange(m + 1), m, true_cdf)
    mean = law @ by_rank("harmonic", m)
    j = np.arange(1, m + 1)
    assert mean == pytest.approx(-np.sum((1 - true_cdf) ** j / j), abs=1e-6)


def test_bias_at_64_references_and_one_third():
    law = scipy.stats.binom.pmf(np.arange(65), 64, 0.3)
    harmonic = law @ by_rank("harmonic", 64) - math.log(0.3)
    add_one = law @ by_rank("add_one", 64) - math.log(0.3)
    assert abs(harmonic) < 1e-4
    assert round(add_one, 3) == 0.018


# ------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("estimator", ["harmonic", "add_one"])
@pytest.mark.parametrize("ties", ["half", "exclude"])
def test_a_strictly_increasing_map_changes_nothing(estimator, ties):
    generator = np.random.default_rng(0)
    rewards = generator.integers(-20, 20, (3, 50)).astype("f4") / 4
    references = generator.integers(-20, 20, (3, 40)).astype("f4") / 4
    before = log_cdf(rewards, references, estimator=estimator, ties=ties)
    inclusive = log_cdf_inclusive(rewards, references, estimator=estimator)
    for change in (np.exp, np.arctan, lambda x: x**3, lambda x: 1e6 * x - 7):
        mapped, mapped_references = (change(x).astype("f4") for x in (rewards, references))
        after = log_cdf(mapped, mapped_references, estimator=estimator, ties=ties)
        np.testing.assert_array_equal(before, after)
        after = log_cdf_inclusive(mapped, mapped_references, estimator=estimator)
        np.testing.assert_array_equal(inclusive, after)


@pytest.mark.parametrize("estimator", cdf.ESTIMATORS)
def test_finite_non_positive_monotone_whatever_the_references(estimator):
    normal = np.random.default_rng(1).normal(size=32)
    cases = {
        "all equal": np.full(32, -3.0),
        "two atoms": np.repeat([0.0, 1.0], [20, 12]),
        "normal": normal,
        "outlier": np.append(normal[1:], 1e4),
        "low outlier": np.append(normal[1:], -1e4),
        "tiny range": 5 + 1e-6 * normal,
        "huge": 1e20 * normal,
    }
    references = np.stack(list(cases.values())).astype("f4")
    low, high = references.min(1, keepdims=True), references.max(1, keepdims=True)
    width = np.maximum(high - low, 1.0)
    far = [low - 1e6 * width, low - width, high + width, high + 1e6 * width]
    inside = np.linspace(low[:, 0], high[:, 0], 40, axis=1)
    rewards = np.sort(np.concatenate([*far, inside], axis=1), axis=1).astype("f4")
    pairs = [(rewards, references), (rewards[:1], references[:1, :1])]  # and M = 1
    for r, x in pairs:
        for value in (
            log_cdf(r, x, estimator=estimator),
            log_cdf(r, x, estimator=estimator, ties="exclude"),
            log_cdf_inclusive(r, x, estimator=estimator),
        ):
            value = np.asarray(value)
            assert value.dtype == np.float32
            assert np.all(np.isfinite(value)) and np.all(value <= 0)
            assert np.all(np.diff(value, axis=1) >= 0) and np.all(value[:, 0] < value[:, -1])
        slope = jax.jit(jax.grad(lambda r, x: cdf.log_cdf(r, x, estimator=estimator).sum()))
        assert np.all(np.isfinite(slope(r, x)))


@pytest.mark.parametrize("estimator", cdf.ESTIMATORS)
def test_exact_law_takes_the_estimates(estimator):
    references = np.array([[0.0, 1.0, 1.0, 2.0]])
    rewards = np.array([[-1.0, 0.0, 0.5, 1.0, 2.0, 3.0]])

    @jax.jit
    def estimates(rewards, references):
        low = cdf.log_cdf(rewards, references, estimator=estimator, ties="exclude")
        high = cdf.log_cdf_inclusive(rewards, references, estimator=estimator)
        return low, bon.vbon_reward(low, n=4, bound="exact", log_cdf_inclusive=high)

    low, exact = map(np.asarray, estimates(rewards, references))
    assert np.all(np.isfinite(exact))
    assert np.all(np.diff(exact) > 0)
    np.testing.assert_allclose(  # 0.5 is not a reference: the limit
        exact[0, 2], (math.log(4) + 3 * low[0, 2]) / 3, rtol=1e-6
    )


@pytest.mark.parametrize("estimator", cdf.ESTIMATORS)
def test_each_row_sees_its_own_prompt_only(estimator):
    generator = np.random.default_rng(2)
    rewards, references = (generator.normal(size=s).astype("f4") for s in ((3, 5), (3, 16)))
    whole = np.asarray(log_cdf(rewards, references, estimator=estimator))
    by_column = log_cdf(rewards[:, 1], references, estimator=estimator)  # [B]
    np.testing.assert_allclose(by_column, whole[:, 1], rtol=1e-5, atol=1e-7)
    for b in range(3):
        alone = log_cdf(rewards[b : b + 1], references[b : b + 1], estimator=estimator)
        np.testing.assert_allclose(alone, whole[b : b + 1], rtol=1e-5, atol=1e-7)


# ---------------------------------------------------------------------- the exponential fit


def fit_of_itself(references):
    """The exponential fit of references [M], where they are."""
    rewards = references[None, :].astype("f4")
    return np.asarray(log_cdf(rewards, rewards, estimator="exponential_fit"))[0]


def test_exponential_fit_finds_an_exponential_law():
    # references at the very quantiles of log F = −2 e^{−1.5 r}, so that the fit can be near perfect
    m = 400
    share = (np.arange(m) + 1.5) / (m + 1)
    references = -np.log(-np.log(share) / 2.0) / 1.5
    ours = fit_of_itself(references)
    np.testing.assert_allclose(ours, -2 * np.exp(-1.5 * references), atol=1e-2)


@pytest.mark.parametrize("seed", range(4))
def test_exponential_fit_is_the_least_squares_one(seed):
    references = np.random.default_rng(seed).normal(size=64)
    if seed == 3:
        references = np.round(2 * references)  # ties
    ours = fit_of_itself(references)
    k = np.array([np.sum(references < r) + np.sum(references == r) / 2 for r in references])
    target = np.log((k + 1) / 65)

    rates = np.geomspace(1e-3, 300, 3000) / np.ptp(references)
    basis = np.exp(-rates[:, None] * (references - references.min()))
    columns = [np.stack([u, np.ones_like(u)], axis=1) for u in basis]
    best = min(scipy.optimize.nnls(column, -target)[1] for column in columns) ** 2
    error = np.sum((np.asarray(ours, np.float64) - target) ** 2)
    assert error < 1.005 * best


def test_exponential_fit_follows_an_affine_map_of_the_rewards():
    generator = np.random.default_rng(5)
    rewards, references = (generator.normal(size=s).astype("f4") for s in ((1, 9), (1, 64)))
    before = log_cdf(rewards, references, estimator="exponential_fit")
    after = log_cdf(3 * rewards - 2, 3 * references - 2, estimator="exponential_fit")
    np.testing.assert_allclose(before, after, rtol=1e-3)


# --------------------------------------------------------------------------------- bad input


def test_bad_arguments_are_refused_by_name():
    rewards, references = np.zeros(2), np.zeros((2, 3))
    for function in (cdf.log_cdf, cdf.log_cdf_inclusive):
        for kind, words, *arguments in (
            (TypeError, "rewards_b", rewards.astype(int), references),
            (TypeError, "reference_bm", rewards, references.astype(int)),
            (ValueError, "reference_bm", rewards, references[0]),
            (ValueError, "at least 1", rewards, references[:, :0]),
            (ValueError, "rewards_b", np.zeros(3), references),
            (ValueError, "rewards_b", np.zeros((2, 3, 4)), references),
        ):
            with pytest.raises(kind, match=words):
                function(*arguments)
        with pytest.raises(ValueError, match="harmonic, add_one, exponential_fit"):
            function(rewards, references, estimator="ecdf")
    with pytest.raises(ValueError, match="half, exclude"):
        cdf.log_cdf(rewards, references, ties="include")
