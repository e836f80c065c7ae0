"""Objectives of whole responses: hand-worked numbers, minimisers, finite differences."""

import functools
import math

import jax
import numpy as np
import pytest
import scipy.special

from tests.numerics import check_gradient
from vbon_jax.functional import bon, objectives

# log pi and log pi_ref of two pairs: h = (-1 + 2) - (-3 + 2.5) = 1.5 and 0.5 - 1 = -0.5
BEST, WORST = np.array([-1.0, -4.0]), np.array([-3.0, -1.0])
REFERENCE = np.array([-2.0, -4.5]), np.array([-2.5, -2.0])
H = np.array([1.5, -0.5])


def compiled(name, *arrays, weight_b=None, **constants):
    """An objective as one program, which is compiled faster than its operations one by one."""
    objective = functools.partial(getattr(objectives, name), **constants)
    return jax.jit(objective)(*arrays, weight_b=weight_b)


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
    loss, metrics = compiled(name, BEST, WORST, *REFERENCE, **constants)
    assert loss.total == pytest.approx(expected.sum(), rel=1e-6)
    assert loss.weight == 2
    assert metrics["margin"].value() == pytest.approx(0.5)
    assert metrics["accuracy"].value() == pytest.approx(0.5)
    # a tied pair counts for nothing, whatever its values are
    mask = np.array([1.0, 0.0])
    dirty = [np.array([x[0], np.nan]) for x in (BEST, WORST, *REFERENCE)]

    @jax.jit
    @jax.value_and_grad
    def masked(x):
        return getattr(objectives, name)(x, *dirty[1:], **constants, weight_b=mask)[0].total

    total, gradient = masked(dirty[0])
    assert total == pytest.approx(expected[0], rel=1e-6)
    assert np.asarray(gradient)[1] == 0.0
    loss, _ = compiled(name, *dirty, **constants, weight_b=mask)
    assert loss.total == pytest.approx(expected[0], rel=1e-6)
    assert loss.weight == 1
    with pytest.raises(ValueError, match="worst_b"):
        getattr(objectives, name)(BEST, WORST[:1], *REFERENCE, **constants)


def test_a_calibrated_pair_with_the_mean_target_is_bonbon():
    target = np.full(2, bon.bonbon_target(4))
    ours = compiled("bonbon_calibrated", BEST, WORST, *REFERENCE, target, alpha=0.3)
    theirs = compiled("bonbon", BEST, WORST, *REFERENCE, n=4, alpha=0.3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_regression_by_hand_and_at_its_minimiser():
    log_cdf = np.array([-0.5, -2.0])
    # N = 3: targets 2 (-0.5) + log 3 and 2 (-2) + log 3; log-ratios 1 and 0.5
    errors = np.array([1.0, 0.5]) - (2 * np.array([-0.5, -2.0]) + math.log(3))
    loss, metrics = compiled("vbon_regression", BEST, REFERENCE[0], log_cdf, n=3)
    assert loss.total == pytest.approx((errors**2).sum(), rel=1e-6)
    assert metrics["log_ratio"].value() == pytest.approx(0.75)
    # pi_BoN itself, of a million equally likely responses: N F^(N-1) has mean 1, and no loss
    log_cdf = np.log((np.arange(1e6) + 0.5) / 1e6)
    best = np.log(3) + 2 * log_cdf
    assert np.exp(best).mean() == pytest.approx(1.0, abs=1e-6)
    loss, _ = compiled("vbon_regression", best, np.zeros(10**6), log_cdf, n=3)
    assert loss.value() < 1e-9


def test_quantile_regression_by_hand_and_at_its_minimiser():
    # beta 0.5: the normaliser is log[0.5 (e^2 - 1)], the targets 2 F minus it; log-ratios 1 and 0.5
    normaliser = math.log(0.5 * (math.e**2 - 1))
    errors = np.array([1.0, 0.5]) - (2 * np.array([0.25, 1.0]) - normaliser)
    quantile = np.array([0.25, 1.0])
    loss, _ = compiled("qrpo", BEST, REFERENCE[0], quantile, beta=0.5)
    assert loss.total == pytest.approx((errors**2).sum(), rel=1e-6)
    # pi_ref e^{F / beta} / Z, of a million equally likely responses, is a law and has no loss
    quantile = (np.arange(1e6) + 0.5) / 1e6
    for beta in (0.02, 0.5, 30.0):
        tilted = quantile / beta - (1 / beta + np.log(-beta * np.expm1(-1 / beta)))
        assert np.exp(tilted).mean() == pytest.approx(1.0, abs=1e-6)
        loss, _ = compiled("qrpo", tilted, np.zeros(10**6), quantile, beta=beta)
        assert loss.value() < 1e-8


def test_likelihood_of_the_best_by_hand():
    loss, metrics = compiled("bon_sft", BEST, weight_b=np.array([0.5, 2.0]))
    assert (loss.total, loss.weight, metrics) == (0.5 * 1 + 2 * 4, 2.5, {})
    loss, _ = compiled("bon_sft", np.array([-1.0, np.nan]), weight_b=np.array([1.0, 0.0]))
    assert (loss.total, loss.weight) == (1.0, 1.0)


def test_the_kl_from_draws_of_the_reference_by_hand():
    # log-ratios 1 and 0.5: rho log rho - rho + 1 is 1 at the first, and at the second
    second = 0.5 * math.exp(0.5) - math.exp(0.5) + 1
    loss, _ = compiled("kl_to_reference", BEST, REFERENCE[0])
    assert loss.total == pytest.approx(1 + second, rel=1e-6)
    # its mean over the reference law is the KL: p = (0.2, 0.3, 0.5) to q = (0.6, 0.3, 0.1)
    p, q = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    loss, _ = compiled("kl_to_reference", np.log(q), np.log(p), weight_b=p)
    assert loss.value() == pytest.approx((q * np.log(q / p)).sum(), rel=1e-5)
    far, _ = compiled("kl_to_reference", np.array([0.0]), np.array([-500.0]))
    assert far.value() == pytest.approx(19 * math.exp(20), rel=1e-4)  # cut at 20, and finite


def test_the_policy_gradient_by_hand():
    # ratios e^1 and e^0.5 of advantages 2 and -1
    advantage = np.array([2.0, -1.0])
    loss, metrics = compiled("policy_gradient", BEST, REFERENCE[0], advantage)
    assert loss.total == pytest.approx(-2 * math.e + math.exp(0.5), rel=1e-6)
    assert metrics["ratio"].total == pytest.approx(math.e + math.exp(0.5), rel=1e-6)
    slope = jax.jit(jax.grad(lambda x: objectives.policy_gradient(x, BEST, advantage)[0].total))
    np.testing.assert_allclose(slope(BEST), [-2.0, 1.0], rtol=1e-6)


def test_the_clip_of_the_policy_gradient_by_hand():
    # ratios 2, 2, 1/2, 1/2: what would gain beyond 1 +- 0.2 gets no gradient, what loses does
    ratios, advantage = np.array([2.0, 2.0, 0.5, 0.5]), np.array([1.0, -1.0, 1.0, -1.0])

    @jax.jit
    @jax.value_and_grad
    def loss(x):
        return objectives.policy_gradient(x, np.zeros(4), advantage, clip=0.2)[0].total

    total, gradient = loss(np.log(ratios))
    assert total == pytest.approx(-1.2 + 2.0 - 0.5 + 0.8, rel=1e-6)
    np.testing.assert_allclose(gradient, [0, 2, -0.5, 0], rtol=1e-6)


def test_bonbon_and_its_release_differ():
    """The paper's loss is least at h = 18.15 (n = 8); the released one falls for ever."""
    h, zero = np.linspace(0.0, 60.0, 6001), np.zeros((3, 1))
    losses = []
    for function in (objectives.bonbon, objectives.bonbon_released):
        of_pair = functools.partial(function, n=8, alpha=0.0)
        total = jax.jit(jax.vmap(lambda h, f=of_pair: f(h, *zero)[0].total))
        losses.append(np.asarray(total(h[:, None])))
    paper, release = losses
    assert h[paper.argmin()] == pytest.approx(18.15, abs=0.01)
    assert (np.diff(release) < 0).all()


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
        x = np.array([-1.0, -4.0, -2.2])
        constants, count = GRADIENTS[name]
        others = [x + shift for shift in (-0.7, 0.4, 0.2, 5.0)[:count]]
        weight = np.array([0.5, 2.0, 1.0])

        def loss(x):
            return getattr(objectives, name)(x, *others, **constants, weight_b=weight)[0].total

        check_gradient(loss, x)
