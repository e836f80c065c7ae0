"""Objectives of whole responses: hand-worked numbers, minimisers, finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.numerics import check_gradient
from vbon_jax.functional import bon, objectives

# log pi and log pi_ref of two pairs: h = (-1 + 2) - (-3 + 2.5) = 1.5 and 0.5 - 1 = -0.5
BEST, WORST = jnp.array([-1.0, -4.0]), jnp.array([-3.0, -1.0])
REFERENCE = jnp.array([-2.0, -4.5]), jnp.array([-2.5, -2.0])
H = np.array([1.5, -0.5])


@pytest.mark.parametrize(
    ("n", "target"), [(2, 1), (4, 5.5), (8, 18.15), (16, 49.77), (32, 124.84), (64, 297.88)]
)
def test_the_target_of_a_pair(n, target):
    assert bon.bonbon_target(n) == pytest.approx(target, abs=5e-3)
    # E log F(best) = -1/N and E log F(worst) = -H_N of N uniform draws
    uniform = -1 / n + scipy.special.digamma(n + 1) + np.euler_gamma
    assert bon.bonbon_target(n) == pytest.approx((n - 1) * uniform, rel=1e-12)


def test_the_beta_of_the_paper():
    assert bon.bonbon_beta(8) == pytest.approx(0.0275482094, abs=5e-11)
    assert bon.bonbon_target(1) == 0.0
    with pytest.raises(ValueError, match="at least 2"):
        bon.bonbon_beta(1)
    with pytest.raises(ValueError, match="integer"):
        bon.bonbon_target(2.5)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


# pair objectives: constants, and the two losses
BY_HAND = {
    "bonbon": ({"n": 4, "alpha": 0.25}, 0.25 * np.array([1.0, 4.0]) + 0.75 * (H - 5.5) ** 2),
    "bonbon_released": (
        {"n": 4, "alpha": 0.25},
        0.25 * np.array([1.0, 4.0]) - 0.75 * log_sigmoid(H / 11),
    ),
    "dpo": ({"beta": 0.5}, -log_sigmoid(0.5 * H)),
    "ipo": ({"beta": 0.5}, (H - 1.0) ** 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pairs_by_hand(name):
    constants, expected = BY_HAND[name]
    objective = getattr(objectives, name)
    loss, metrics = objective(BEST, WORST, *REFERENCE, **constants)
    assert loss.total == pytest.approx(expected.sum(), rel=1e-6)
    assert loss.weight == 2
    assert metrics["margin"].value() == pytest.approx(0.5)
    assert metrics["accuracy"].value() == pytest.approx(0.5)
    # a tied pair counts for nothing, whatever its values are
    mask = jnp.array([1.0, 0.0])
    dirty = [x.at[1].set(jnp.nan) for x in (BEST, WORST, *REFERENCE)]
    loss, _ = objective(*dirty, **constants, weight_b=mask)
    assert loss.total == pytest.approx(expected[0], rel=1e-6)
    assert loss.weight == 1
    gradient = jax.grad(lambda x: objective(x, *dirty[1:], **constants, weight_b=mask)[0].total)
    assert gradient(dirty[0])[1] == 0.0
    with pytest.raises(ValueError, match="worst_b"):
        objective(BEST, WORST[:1], *REFERENCE, **constants)


def test_a_calibrated_pair_with_the_mean_target_is_bonbon():
    target = jnp.full(2, bon.bonbon_target(4))
    ours = objectives.bonbon_calibrated(BEST, WORST, *REFERENCE, target, alpha=0.3)
    theirs = objectives.bonbon(BEST, WORST, *REFERENCE, n=4, alpha=0.3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_regression_by_hand_and_at_its_minimiser():
    log_cdf = jnp.array([-0.5, -2.0])
    # N = 3: targets 2 (-0.5) + log 3 and 2 (-2) + log 3; log-ratios 1 and 0.5
    errors = np.array([1.0, 0.5]) - (2 * np.array([-0.5, -2.0]) + math.log(3))
    loss, metrics = objectives.vbon_regression(BEST, REFERENCE[0], log_cdf, n=3)
    assert loss.total == pytest.approx((errors**2).sum(), rel=1e-6)
    assert metrics["log_ratio"].value() == pytest.approx(0.75)
    # pi_BoN itself, of a million equally likely responses: N F^(N-1) has mean 1, and no loss
    log_cdf = np.log((np.arange(1e6) + 0.5) / 1e6)
    best = np.log(3) + 2 * log_cdf
    assert np.exp(best).mean() == pytest.approx(1.0, abs=1e-6)
    loss, _ = objectives.vbon_regression(
        jnp.asarray(best, jnp.float32), jnp.zeros(10**6), jnp.asarray(log_cdf, jnp.float32), n=3
    )
    assert loss.value() < 1e-9


def test_quantile_regression_by_hand_and_at_its_minimiser():
    # beta 0.5: the normaliser is log[0.5 (e^2 - 1)], the targets 2 F minus it; log-ratios 1 and 0.5
    normaliser = math.log(0.5 * (math.e**2 - 1))
    errors = np.array([1.0, 0.5]) - (2 * np.array([0.25, 1.0]) - normaliser)
    quantile = jnp.array([0.25, 1.0])
    loss, _ = objectives.qrpo(BEST, REFERENCE[0], quantile, beta=0.5)
    assert loss.total == pytest.approx((errors**2).sum(), rel=1e-6)
    # pi_ref e^{F / beta} / Z, of a million equally likely responses, is a law and has no loss
    quantile = (np.arange(1e6) + 0.5) / 1e6
    for beta in (0.02, 0.5, 30.0):
        tilted = quantile / beta - (1 / beta + np.log(-beta * np.expm1(-1 / beta)))
        assert np.exp(tilted).mean() == pytest.approx(1.0, abs=1e-6)
        arrays = (jnp.asarray(x, jnp.float32) for x in (tilted, np.zeros(10**6), quantile))
        assert objectives.qrpo(*arrays, beta=beta)[0].value() < 1e-8


def test_likelihood_of_the_best_by_hand():
    loss, metrics = objectives.bon_sft(BEST, weight_b=jnp.array([0.5, 2.0]))
    assert (loss.total, loss.weight, metrics) == (0.5 * 1 + 2 * 4, 2.5, {})
    loss, _ = objectives.bon_sft(jnp.array([-1.0, jnp.nan]), weight_b=jnp.array([1.0, 0.0]))
    assert (loss.total, loss.weight) == (1.0, 1.0)


def test_the_kl_from_draws_of_the_reference_by_hand():
    # log-ratios 1 and 0.5: rho log rho - rho + 1 is 1 at the first, and at the second
    second = 0.5 * math.exp(0.5) - math.exp(0.5) + 1
    loss, _ = objectives.kl_to_reference(BEST, REFERENCE[0])
    assert loss.total == pytest.approx(1 + second, rel=1e-6)
    # its mean over the reference law is the KL: p = (0.2, 0.3, 0.5) to q = (0.6, 0.3, 0.1)
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    logs = (jnp.asarray(np.log(x), jnp.float32) for x in (q, p))
    loss, _ = objectives.kl_to_reference(*logs, weight_b=jnp.asarray(p, jnp.float32))
    assert loss.value() == pytest.approx((q * np.log(q / p)).sum(), rel=1e-5)
    far = objectives.kl_to_reference(jnp.array([0.0]), jnp.array([-500.0]))[0].value()
    assert far == pytest.approx(19 * math.exp(20), rel=1e-4)  # cut at 20, and finite


def test_the_policy_gradient_by_hand():
    # ratios e^1 and e^0.5 of advantages 2 and -1
    advantage = jnp.array([2.0, -1.0])
    loss, metrics = objectives.policy_gradient(BEST, REFERENCE[0], advantage)
    assert loss.total == pytest.approx(-2 * math.e + math.exp(0.5), rel=1e-6)
    assert metrics["ratio"].total == pytest.approx(math.e + math.exp(0.5), rel=1e-6)
    gradient = jax.grad(lambda x: objectives.policy_gradient(x, BEST, advantage)[0].total)(BEST)
    np.testing.assert_allclose(gradient, [-2.0, 1.0], rtol=1e-6)


def test_the_clip_of_the_policy_gradient_by_hand():
    # ratios 2, 2, 1/2, 1/2: what would gain beyond 1 +- 0.2 gets no gradient, what loses does
    ratios, advantage = jnp.array([2.0, 2.0, 0.5, 0.5]), jnp.array([1.0, -1.0, 1.0, -1.0])

    def loss(x):
        return objectives.policy_gradient(x, jnp.zeros(4), advantage, clip=0.2)[0].total

    assert loss(jnp.log(ratios)) == pytest.approx(-1.2 + 2.0 - 0.5 + 0.8, rel=1e-6)
    np.testing.assert_allclose(jax.grad(loss)(jnp.log(ratios)), [0, 2, -0.5, 0], rtol=1e-6)


def test_bonbon_and_its_release_differ():
    """The paper's loss is least at h = 18.15 (n = 8); the released one falls for ever."""
    h = jnp.linspace(0.0, 60.0, 6001)
    zero = jnp.zeros_like(h)
    paper = jax.vmap(lambda h: objectives.bonbon(h, *zero[:3, None], n=8, alpha=0.0)[0].total)
    release = jax.vmap(
        lambda h: objectives.bonbon_released(h, *zero[:3, None], n=8, alpha=0.0)[0].total
    )
    assert h[paper(h[:, None]).argmin()] == pytest.approx(18.15, abs=0.01)
    assert (jnp.diff(release(h[:, None])) < 0).all()


GRADIENTS = {name: (constants, 3) for name, (constants, _) in BY_HAND.items()} | {
    "bonbon_calibrated": ({"alpha": 0.25}, 4),
    "vbon_regression": ({"n": 3}, 2),
    "qrpo": ({"beta": 0.5}, 2),
    "bon_sft": ({}, 0),
    "kl_to_reference": ({}, 1),
    "policy_gradient": ({}, 2),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_against_finite_differences(name):
    with jax.enable_x64(True):
        x = jnp.array([-1.0, -4.0, -2.2], jnp.float64)
        constants, count = GRADIENTS[name]
        others = [x + shift for shift in (-0.7, 0.4, 0.2, 5.0)[:count]]
        weight = jnp.array([0.5, 2.0, 1.0], jnp.float64)

        def loss(x):
            return getattr(objectives, name)(x, *others, **constants, weight_b=weight)[0].total

        check_gradient(loss, x)
