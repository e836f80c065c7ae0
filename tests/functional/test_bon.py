"""The Best-of-N law against 50-digit arithmetic, the rewards made from it, and its rulers."""

import itertools
import math

import jax
import mpmath
import numpy as np
import pytest
from scipy.special import xlogy

from vbon_jax.functional import bon

# One program is compiled faster than its operations one by one.
log_ratio = jax.jit(bon.log_ratio)
slopes = jax.jit(jax.vmap(jax.grad(bon.log_ratio, argnums=(0, 1, 2)), (0, 0, None)))
vbon_reward = jax.jit(bon.vbon_reward, static_argnames="bound")
empirical_best_of_n = jax.jit(bon.empirical_best_of_n)
empirical_soft_best_of_n = jax.jit(
    bon.empirical_soft_best_of_n, static_argnames=("n", "temperature", "draws")
)

N_VALUES = (1.0, 1.5, 2.0, 8.0, 100.0, 1030.0, 1e4, 1e6)
CDF_VALUES = (0.0, 1e-30, 1e-3, 0.5, 1 - 1e-7, 1.0)
LOG_P = np.concatenate([-np.geomspace(1e-3, 500, 60), -np.linspace(0.4, 1.0, 25)]).astype("f4")


def log32(value):
    return np.float32(-np.inf) if value == 0 else np.float32(math.log(value))


def number(value):
    """The number a float32 holds, exactly."""
    return value if isinstance(value, mpmath.mpf) else mpmath.mpf(float(value))


def exact_power(log_value):
    """e to that number; 0 at −inf."""
    return mpmath.exp(number(log_value))


def true_log_ratio(log_cdf, log_cdf_inclusive, n):
    # F of order 1 beside a mass of e^-500 needs 220 digits before the 50 that are wanted
    with mpmath.workdps(300):
        low, high, n = exact_power(log_cdf), exact_power(log_cdf_inclusive), number(n)
        if low == high:
            return mpmath.log(n) + (n - 1) * number(log_cdf_inclusive)
        return mpmath.log((high**n - low**n) / (high - low))


def true_slope(truth, arguments, index):
    """The derivative by one argument: a central difference with a step of 1e-60."""
    with mpmath.workdps(300):
        step = mpmath.mpf(10) ** -60
        values = [number(x) for x in arguments]
        up, down = (
            truth(*values[:index], values[index] + s, *values[index + 1 :]) for s in (step, -step)
        )
        return (up - down) / (2 * step)


def relative_error(ours, truth):
    """|ours − truth| / |truth|, and |ours| where the truth is 0."""
    return float(abs(mpmath.mpf(float(ours)) - truth) / (abs(truth) if truth != 0 else 1))


# ---------------------------------------------------------------------------------- the law


def test_log_ratio_by_hand():
    # F = 1/2, F+ = 3/4, N = 2: (9/16 − 4/16) / (1/4) = 5/4
    low, high = np.log([0.5]), np.log([0.75])
    for function in (bon.log_ratio, log_ratio):
        ours = function(low, high, 2)
        np.testing.assert_allclose(ours, [math.log(5 / 4)], rtol=1e-6)
        assert ours.dtype == np.float32


def test_limits_by_hand():
    # F = 0: (N−1) log F+;  F = F+: log N + (N−1) log F+;  N = 1: 0
    low = np.array([-np.inf, -0.3, -0.7])
    high = np.array([-0.5, -0.3, -0.2])
    ours = np.asarray(log_ratio(low, high, 3.0))
    np.testing.assert_allclose(ours[:2], [-1.0, math.log(3) - 0.6], rtol=1e-6)
    np.testing.assert_array_equal(log_ratio(low, high, 1.0), [0.0, 0.0, 0.0])


@pytest.mark.parametrize("n", N_VALUES)
def test_log_ratio_against_mpmath(n):
    # No absolute floor: near the points where the ratio crosses 0 the float64 inside carries it,
    # down to true values of 1e-9 (N = 2 at F = 1/2).
    for cdf in CDF_VALUES:
        log_cdf = log32(cdf)
        top = np.logaddexp(LOG_P.astype("f8"), float(log_cdf)).astype("f4")
        top = np.clip(top, log_cdf, 0.0).astype("f4")
        ours = np.asarray(log_ratio(log_cdf, top, np.float32(n)))
        for inclusive, value in zip(top, ours, strict=True):
            truth = true_log_ratio(log_cdf, inclusive, n)
            assert relative_error(value, truth) < 2e-7, (cdf, inclusive)


def test_gradients_are_finite_on_the_whole_grid():
    log_p, log_cdf, n = (
        np.float32(x).ravel()
        for x in np.meshgrid(LOG_P, [log32(f) for f in CDF_VALUES], N_VALUES, indexing="ij")
    )
    top = np.maximum(np.minimum(np.logaddexp(log_p, log_cdf), 0.0), log_cdf)

    def exact(low, high, n):
        return bon.vbon_reward(low, n=n, bound="exact", log_cdf_inclusive=high)

    for function, first, second in (
        (bon.log_ratio, log_cdf, top),
        (bon.log_ratio, top, top),
        (exact, log_cdf, top),
    ):
        gradients = jax.jit(jax.grad(lambda *a, f=function: f(*a).sum(), argnums=(0, 1, 2)))(
            first, second, n
        )
        assert all(np.all(np.isfinite(gradient)) for gradient in gradients)
        assert all(gradient.dtype == np.float32 for gradient in gradients)


def test_gradients_against_mpmath():
    gradient = jax.jit(jax.grad(bon.log_ratio, argnums=(0, 1, 2)))
    points = itertools.product((-1e-3, -0.7, -5.0, -60.0), (1e-30, 1e-3, 0.5), (1.0, 1.5, 8.0, 1e4))
    for log_p, cdf, n in points:
        log_cdf = log32(cdf)
        top = np.float32(min(0.0, np.logaddexp(log_p, float(log_cdf))))
        if top == log_cdf:
            continue  # F = F+ in float32; its slopes are worked out by hand below
        arguments = log_cdf, top, n
        ours = gradient(*map(np.float32, arguments))
        for index in range(3):
            slope = true_slope(true_log_ratio, arguments, index)
            # a slope in N that is a difference of equal numbers is 0 and not 1e-24
            error = abs(number(ours[index]) - slope)
            assert error <= 1e-6 * abs(slope) + 1e-15, (arguments, index)


def test_gradients_at_the_limits_by_hand():
    equal, nothing = np.transpose(slopes(np.array([-0.3, -np.inf]), np.full(2, -0.3), 4.0))
    # F = F+: symmetric in both, m/2 each; in N: log F + 1/N
    np.testing.assert_allclose(equal, [1.5, 1.5, -0.3 + 0.25], rtol=1e-5)
    # F = 0: nothing through F, m through F+, log F+ through N
    np.testing.assert_allclose(nothing, [0.0, 3.0, -0.3], rtol=1e-6)


@pytest.mark.slow
def test_second_derivatives_exist():
    hessian = jax.jit(jax.hessian(lambda x: bon.log_ratio(x[0], x[1], x[2])))
    for point in ([-0.7, -0.3, 4.0], [-0.3, -0.3, 4.0], [-60.0, -0.3, 1.0], [-np.inf, -0.1, 2.0]):
        assert np.all(np.isfinite(hessian(np.array(point)))), point


def test_the_law_is_a_law_ties_included():
    # atoms of probability 1/8, 3/8 (two responses tie: 1/8 + 2/8), 4/8
    groups = np.array([1 / 8, 3 / 8, 4 / 8])
    high = np.cumsum(groups)
    low = high - groups
    log_low, log_high = (np.array([log32(x) for x in xs]) for xs in (low, high))
    for n in (1.0, 1.5, 4.0, 100.0):
        mass = np.exp(log_ratio(log_low, log_high, n)) * groups
        np.testing.assert_allclose(mass, high**n - low**n, rtol=1e-5, atol=1e-12)
        assert mass.sum() == pytest.approx(1.0, rel=1e-6)


def test_the_law_is_the_binomial_sum_of_the_paper():
    p, cdf, n = 0.2, 0.3, 5
    total = sum(math.comb(n, i) * cdf ** (n - i) * p**i for i in range(1, n + 1))
    ours = log_ratio(math.log(cdf), math.log(cdf + p), n)
    assert float(ours) == pytest.approx(math.log(total / p), rel=1e-6)


def test_float64_stays_float64_and_a_traced_n_does_not_compile_again():
    with jax.enable_x64(True):
        ours = log_ratio(np.log(0.3), np.log(0.35), 7.5)
        assert ours.dtype == np.float64
        truth = math.log((0.35**7.5 - 0.3**7.5) / 0.05)
        assert float(ours) == pytest.approx(truth, rel=1e-12)
        gradient = slopes(np.array([-3.0]), np.array([-1.0]), 7.5)
        assert all(g.dtype == np.float64 for g in gradient)
    traces = []

    @jax.jit
    def counted(low, high, n):
        traces.append(n)
        return bon.log_ratio(low, high, n)

    for n in (1.0, 2.0, 8.5, 1e6):
        counted(np.full(3, -1.0), np.zeros(3), n)
    assert len(traces) == 1
    by_row = log_ratio(np.full(2, -1.0), np.zeros(2), np.array([2.0, 8.0]))
    np.testing.assert_allclose(np.asarray(by_row)[1], log_ratio(-1.0, 0.0, 8.0), rtol=1e-6)


def test_vmap_scan_and_checkpoint_take_it():
    low, high = np.linspace(-3.0, -1.0, 4), np.linspace(-1.0, 0.0, 4)

    @jax.jit
    def everywhere(low, high):
        one_by_one = jax.lax.scan(lambda c, x: (c, bon.log_ratio(*x, 4)), 0, (low, high))[1]
        kept = jax.grad(lambda x: jax.checkpoint(bon.log_ratio)(x, high, 4.0).sum())(low)
        return jax.vmap(bon.log_ratio, (0, 0, None))(low, high, 4.0), one_by_one, kept

    together, one_by_one, kept = everywhere(low, high)
    expected = log_ratio(low, high, 4.0)
    np.testing.assert_allclose(together, expected, rtol=1e-6)
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-6)
    np.testing.assert_allclose(kept, slopes(low, high, 4.0)[0], rtol=1e-6)


# ------------------------------------------------------------------------------- the rewards


def test_vbon_reward_by_hand():
    low, high = np.float32(np.log([0.5])), np.log([0.75])
    np.testing.assert_array_equal(bon.vbon_reward(low, n=4), low)
    exact = vbon_reward(low, n=3, bound="exact", log_cdf_inclusive=high)
    # (27/64 − 8/64) / (1/4) = 19/16, halved in the logarithm as N − 1 = 2
    np.testing.assert_allclose(exact, [math.log(19 / 16) / 2], rtol=1e-6)


def test_exact_reward_has_its_limit_at_n_of_one():
    cases = [(0.5, 0.75), (1e-3, 0.9), (0.3, 0.3), (0.0, 0.6), (0.0, 1.0), (1.0, 1.0)]
    low, high = (np.array([log32(x) for x in xs]) for xs in zip(*cases, strict=True))
    for one in (1, 1.0, np.float32(1.0)):
        ours = bon.vbon_reward(low, n=one, bound="exact", log_cdf_inclusive=high)
        # d/dN at N = 1 of log(F+^N − F^N): (F+ log F+ − F log F) / (F+ − F)
        expected = [
            math.log(g) + 1 if f == g else (xlogy(g, g) - xlogy(f, f)) / (g - f) for f, g in cases
        ]
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(slopes(low, high, 1.0)[2], ours, rtol=1e-5, atol=1e-6)
    near = vbon_reward(low, n=1 + 2**-20, bound="exact", log_cdf_inclusive=high)
    np.testing.assert_allclose(near, ours, rtol=1e-4, atol=1e-5)


exact_slopes = jax.jit(
    jax.grad(
        lambda low, high, n: bon.vbon_reward(low, n=n, bound="exact", log_cdf_inclusive=high),
        argnums=(0, 1),
    )
)


@pytest.mark.parametrize("n", [1.0000001, 1.5, 8.0, 1030.0, 1e6])
def test_exact_reward_is_the_ratio_over_n_minus_one(n):
    n = float(np.float32(n))
    low, high = np.float32(math.log(0.3)), np.float32(math.log(0.35))
    ours = vbon_reward(low, n=n, bound="exact", log_cdf_inclusive=high)
    truth = true_log_ratio(low, high, n) / (mpmath.mpf(n) - 1)
    assert relative_error(ours, truth) < 1e-6
    gradient = exact_slopes(low, high, n)
    # a larger law everywhere: both derivatives are weights of a mean, and they sum to 1
    assert float(sum(gradient)) == pytest.approx(1.0, rel=1e-5)


def test_kl_coefficient_win_rate_and_kl_by_hand():
    assert bon.kl_coefficient(1) == math.inf
    assert bon.kl_coefficient(5) == 0.25
    assert bon.win_rate(4) == 0.8
    assert bon.kl(4) == pytest.approx(math.log(4) - 0.75, rel=1e-14)
    assert bon.kl(1) == 0.0
    np.testing.assert_allclose(bon.win_rate([1.0, 5.0]), [0.5, 5 / 6], rtol=1e-15)


def test_kl_keeps_its_digits_near_one():
    n = np.array([1 + 1e-9, 1 + 2**-23, 1 + 1e-4, 1.1, 1.3, 1.33, 1.34, 2.0, 8.0, 1e6])
    for value, at_once in zip(n, bon.kl(n), strict=True):
        with mpmath.workdps(50):
            exact = mpmath.mpf(float(value))
            truth = mpmath.log(exact) - (exact - 1) / exact
        assert relative_error(bon.kl(float(value)), truth) < 1e-13
        assert bon.kl(float(value)) == at_once


# -------------------------------------------------------------------------------- the rulers


def test_order_statistic_weights_by_hand():
    np.testing.assert_allclose(bon.order_statistic_weights(4, 2), [0, 1 / 6, 2 / 6, 3 / 6])
    np.testing.assert_allclose(bon.order_statistic_weights(3, 1), [1 / 3] * 3)
    np.testing.assert_array_equal(bon.order_statistic_weights(3, 3), [0, 0, 1])


def test_order_statistic_weights_at_sizes_where_binomials_overflow():
    for m, n in ((2000, 1030), (10_000, 8), (10_000, 9_999), (10_000, 10_000)):
        weights = bon.order_statistic_weights(m, n)
        assert weights.dtype == np.float64
        assert weights.sum() == pytest.approx(1.0, rel=1e-11)
        assert np.all(np.diff(weights) >= 0)
        for j in (m, m - 1, m - 50 if m - 50 >= n else m):
            truth = mpmath.binomial(j - 1, n - 1) / mpmath.binomial(m, n)
            assert relative_error(weights[j - 1], truth) < 1e-9


def test_empirical_best_of_n_by_hand():
    # rewards 0, 1, 1, 2 with N = 2: groups of mass 1/16, 8/16, 7/16
    ours = empirical_best_of_n(np.array([[1.0, 0.0, 2.0, 1.0]]), 2)
    mass, middle, q = np.array([1, 8, 7]) / 16, np.array([1, 4, 7]) / 8, np.array([1, 2, 1]) / 4
    np.testing.assert_allclose(ours.reward_b, [22 / 16], rtol=1e-6)
    np.testing.assert_allclose(ours.win_rate_b, [mass @ middle], rtol=1e-6)
    np.testing.assert_allclose(ours.kl_b, [mass @ np.log(mass / q)], rtol=1e-6)


def test_empirical_best_of_n_against_float64_groups_up_to_large_n():
    rewards_bm = np.random.default_rng(3).integers(0, 30, size=(5, 128)).astype("f4")
    rewards_bm[4] = 3.0
    for n in (1, 1.5, 4, 100, 1e4):
        ours = empirical_best_of_n(rewards_bm, n)
        for row, *measures in zip(rewards_bm, *ours, strict=True):
            values, counts = np.unique(row.astype("f8"), return_counts=True)
            high = np.cumsum(counts) / 128
            low = high - counts / 128
            mass = high**n - low**n
            kl = np.sum(mass * np.log(np.where(mass > 0, mass, 1) * 128 / counts))
            expected = [mass @ values, mass @ (low + high) / 2, kl]
            np.testing.assert_allclose(measures, expected, rtol=2e-6, atol=1e-6)


def test_empirical_law_tends_to_the_continuous_curves():
    rewards_bm = np.linspace(0.0, 1.0, 4096)[None, :]
    for n in (1.5, 4.0, 16.0):
        ours = empirical_best_of_n(rewards_bm, n)
        assert ours.win_rate_b.item() == pytest.approx(bon.win_rate(n), abs=1e-5)
        assert ours.kl_b.item() == pytest.approx(bon.kl(n), abs=1e-4)
        assert ours.kl_b.item() <= bon.kl(n) + 1e-6
    # and where the best of two responses has p = 1/2, N = 16: win rate 0.75, KL 0.69
    two = empirical_best_of_n(np.array([[0.0, 1.0]]), 16.0)
    assert two.win_rate_b.item() == pytest.approx(0.75, abs=1e-4)
    assert two.kl_b.item() == pytest.approx(0.693, abs=1e-3)


SOFT = np.array([[0.0, 1.0, 1.0, 3.0], [2.0, -1.0, 0.5, 0.0]], np.float32)


def every_choice(rewards_m: np.ndarray, n: int, temperature: float) -> tuple[float, float, float]:
    """Reward, win rate and KL over all N-tuples of draws with replacement."""
    m = len(rewards_m)
    mass = np.zeros(m)
    for drawn in itertools.product(range(m), repeat=n):
        weights = np.exp(rewards_m[list(drawn)] / temperature)
        np.add.at(mass, list(drawn), weights / weights.sum() / m**n)
    below = (rewards_m[None] < rewards_m[:, None]).mean(axis=1)
    tied = (rewards_m[None] == rewards_m[:, None]).mean(axis=1)
    return (
        (mass * rewards_m).sum(),
        (mass * (below + tied / 2)).sum(),
        (mass * np.log(mass * m)).sum(),
    )


@pytest.mark.parametrize("n", [1, 2, 4])
def test_soft_best_of_n_against_every_choice_of_draws(n):
    law = empirical_soft_best_of_n(SOFT, n, jax.random.key(0), temperature=0.7, draws=20_000)
    for row, rewards_m in enumerate(SOFT):
        expected = every_choice(rewards_m, n, 0.7)
        np.testing.assert_allclose(np.asarray(law)[:, row], expected, atol=0.01)


def test_the_limits_of_soft_best_of_n_are_best_of_n_and_the_reference():
    cold = empirical_soft_best_of_n(SOFT, 3, jax.random.key(1), temperature=1e-3, draws=20_000)
    for ours, best in zip(cold, empirical_best_of_n(SOFT, 3.0), strict=True):
        np.testing.assert_allclose(ours, best, atol=0.02)
    hot = empirical_soft_best_of_n(SOFT, 3, jax.random.key(1), temperature=1e6)
    np.testing.assert_allclose(hot.reward_b, SOFT.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(hot.win_rate_b, 0.5, atol=1e-4)
    np.testing.assert_allclose(hot.kl_b, 0.0, atol=1e-4)


def test_one_soft_draw_is_the_reference_whatever_the_temperature():
    law = empirical_soft_best_of_n(SOFT, 1, jax.random.key(2), temperature=0.1)
    np.testing.assert_allclose(law.reward_b, SOFT.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(law.kl_b, 0.0, atol=1e-6)


def test_bad_arguments_of_soft_best_of_n_are_refused():
    for kind, words, rewards_bm, n, temperature in (
        (ValueError, "temperature", SOFT, 2, 0.0),
        (ValueError, "temperature", SOFT, 2, -1.0),
        (ValueError, "integer", SOFT, 1.5, 1.0),
        (TypeError, "rewards_bm", SOFT.astype(int), 2, 1.0),
    ):
        with pytest.raises(kind, match=words):
            bon.empirical_soft_best_of_n(rewards_bm, n, jax.random.key(0), temperature=temperature)


def test_select_best_worst_by_hand():
    rewards_bn = np.array([[1.0, 3.0, 0.0], [2.0, 2.0, 1.0], [5.0, 5.0, 5.0]])
    for wrap in (lambda f: f, jax.jit):
        best, worst, tied = wrap(bon.select_best_worst)(rewards_bn)
        np.testing.assert_array_equal(best, [1, 0, 0])
        np.testing.assert_array_equal(worst, [2, 2, 0])
        np.testing.assert_array_equal(tied, [False, False, True])
    one = jax.jit(bon.select_best_worst)(np.array([[4.0]]))
    assert [value.item() for value in one] == [0, 0, True]


# --------------------------------------------------------------------------------- bad input


def test_integer_rewards_are_refused():
    integers = np.array([[1, 2, 3]])
    for function in (bon.select_best_worst, lambda r: bon.empirical_best_of_n(r, 2)):
        with pytest.raises(TypeError, match="rewards_b"):
            function(integers)
        with pytest.raises(ValueError, match="rewards_b"):
            function(np.zeros(3))
    with pytest.raises(TypeError, match="log_cdf"):
        bon.log_ratio(integers, integers, 2)
    with pytest.raises(TypeError, match="log_cdf"):
        bon.vbon_reward(integers, n=2)


@pytest.mark.parametrize("n", [0, 0.99, -1, math.nan, math.inf, np.float32(0.5)])
def test_n_below_one_is_refused(n):
    zeros, matrix = np.zeros(3), np.zeros((2, 3))
    for function in (
        lambda: bon.log_ratio(zeros, zeros, n),
        lambda: bon.vbon_reward(zeros, n=n),
        lambda: bon.kl_coefficient(n),
        lambda: bon.win_rate(n),
        lambda: bon.kl(n),
        lambda: bon.order_statistic_weights(3, n),
        lambda: bon.empirical_best_of_n(matrix, n),
    ):
        with pytest.raises(ValueError, match="n must be"):
            function()


def test_other_bad_arguments_are_refused_by_name():
    zeros = np.zeros(3)
    with pytest.raises(ValueError, match="log_cdf_inclusive"):
        bon.vbon_reward(zeros, n=2, bound="exact")
    with pytest.raises(ValueError, match="l1, exact"):
        bon.vbon_reward(zeros, n=2, bound="l2")
    with pytest.raises(ValueError, match=r"log_cdf \(3,\)"):
        bon.log_ratio(zeros, np.zeros(4), 2)
    with pytest.raises(TypeError, match="n must be"):
        bon.log_ratio(zeros, zeros, True)
