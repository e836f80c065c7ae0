"""The losses: hand-worked numbers, gradients, and nothing that leaks out of the padding."""

import functools
import math

import jax
import numpy as np
import pytest

from tests.numerics import both_ways, check_gradient
from vbon_jax.functional import objectives

NAN = np.nan
MASK = np.array([[True, True], [True, False]])
# One program is compiled faster than its operations one by one.
nll = jax.jit(objectives.nll)
clipped_value_loss = jax.jit(objectives.clipped_value_loss)


def slope(loss):
    """The compiled gradient of the total that a loss begins with."""
    return jax.jit(jax.grad(lambda x: loss(x)[0].total))


def test_ppo_clip_by_hand():
    old = np.array([[-1.0, -2.0], [-3.0, NAN]])
    ratio = np.array([[1.5, 0.9], [0.5, 1.0]])
    new = old + np.log(ratio)
    advantages = np.array([[2.0, 1.0], [-3.0, NAN]])

    def loss(new):
        return objectives.ppo_clip(new, old, advantages, MASK, clip=0.2)

    mean, metrics = both_ways(loss, new)
    # −min(1.5·2, 1.2·2), −min(0.9, 0.9), −min(−1.5, 0.8·−3)
    np.testing.assert_allclose(mean.total, -2.4 - 0.9 + 2.4, rtol=1e-5)
    assert mean.weight == 3 and mean.total.dtype == np.float32
    np.testing.assert_allclose(metrics["clip_fraction"].value(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio"].value(), (1.5 + 0.9 + 0.5) / 3, rtol=1e-6)
    k3 = sum(r - 1 - math.log(r) for r in (1.5, 0.9, 0.5))
    np.testing.assert_allclose(metrics["approx_kl"].total, k3, rtol=1e-5)
    # only the unclipped token has a gradient, −ρ·A; the padding has none
    gradient = slope(loss)(new)
    np.testing.assert_allclose(gradient, [[0.0, -0.9], [0.0, 0.0]], rtol=1e-5, atol=1e-7)


def test_ppo_clip_at_the_sampling_policy_is_the_policy_gradient():
    generator = np.random.default_rng(0)
    log_probs, advantages = (np.float32(generator.normal(size=(2, 2))) for _ in "ab")

    def loss(x):
        return objectives.ppo_clip(x, log_probs, advantages, MASK, clip=0.2)

    np.testing.assert_allclose(slope(loss)(log_probs), -np.where(MASK, advantages, 0), rtol=1e-6)


def test_ppo_clip_survives_an_absurd_ratio():
    old, new = np.full((2, 2), -200.0), np.array([[0.0, -900.0], [0.0, 0.0]])

    @jax.jit
    @jax.value_and_grad
    def loss(x, advantages):
        return objectives.ppo_clip(x, old, advantages, MASK, clip=0.2)[0].total

    for sign in (1.0, -1.0):
        total, gradient = loss(new, np.full((2, 2), sign))
        assert np.isfinite(total) and np.all(np.isfinite(gradient))


def test_clipped_value_loss_by_hand():
    old = np.array([[0.0, 0.0], [0.0, NAN]])
    values = np.array([[0.1, 1.0], [1.0, NAN]])
    returns = np.array([[1.0, 1.0], [-1.0, NAN]])

    def loss(values):
        return objectives.clipped_value_loss(values, old, returns, MASK, clip=0.2)

    mean, metrics = both_ways(loss, values)
    # ½·0.9²; ½·max(0, 0.8²): clipped; ½·max(2², 1.2²)
    np.testing.assert_allclose(mean.total, 0.5 * (0.81 + 0.64 + 4.0), rtol=1e-6)
    assert mean.weight == 3
    np.testing.assert_allclose(metrics["clip_fraction"].value(), 1 / 3, rtol=1e-6)
    gradient = slope(loss)(values)
    np.testing.assert_allclose(gradient, [[-0.9, 0.0], [2.0, 0.0]], rtol=1e-6)
    plain, _ = clipped_value_loss(values, old, returns, MASK, clip=np.inf)
    np.testing.assert_allclose(plain.total, 0.5 * (0.81 + 0.0 + 4.0), rtol=1e-6)


def test_nll_by_hand():
    log_probs = np.array([[-1.0, -2.0], [-4.0, -np.inf]])
    mean = both_ways(lambda x: objectives.nll(x, MASK), log_probs)
    assert (mean.total, mean.weight, mean.value()) == (7.0, 3.0, pytest.approx(7 / 3))
    gradient = slope(lambda x: (nll(x, MASK),))(log_probs)
    np.testing.assert_array_equal(gradient, -np.asarray(MASK, np.float32))
    nothing = nll(log_probs, np.zeros((2, 2), bool))
    assert (nothing.total, nothing.weight, nothing.value()) == (0.0, 0.0, 0.0)


def test_cross_entropy_by_hand():
    logits = np.log([[1.0, 3.0], [4.0, 1.0], [1.0, 1.5]])
    labels = np.array([1, 1, 1])
    mean, metrics = both_ways(objectives.cross_entropy, logits, labels)
    expected = -math.log(3 / 4) - math.log(1 / 5) - math.log(3 / 5)
    np.testing.assert_allclose(mean.total, expected, rtol=1e-6)
    assert mean.weight == 3
    np.testing.assert_allclose(metrics["accuracy"].value(), 2 / 3, rtol=1e-6)
    gradient = slope(lambda x: objectives.cross_entropy(x, labels))(logits)
    np.testing.assert_allclose(gradient[1], [0.8, -0.8], rtol=1e-6)


def test_means_add_up_where_means_of_means_do_not():
    log_probs = np.random.default_rng(1).normal(size=(4, 6))
    mask = np.arange(6)[None, :] < np.array([6, 1, 3, 0])[:, None]
    parts = [nll(log_probs[i : i + 1], mask[i : i + 1]) for i in range(4)]
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    np.testing.assert_allclose(total / weight, nll(log_probs, mask).value(), rtol=1e-6)


def test_gradients_against_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(2)
        x, old, other = (generator.normal(size=(3, 4)) for _ in range(3))
        mask = np.arange(4)[None, :] < np.array([4, 2, 1])[:, None]
        labels = np.array([0, 3, 1])
        check_gradient(lambda x: objectives.ppo_clip(x, old, other, mask, clip=0.3)[0].total, x)
        check_gradient(
            lambda x: objectives.clipped_value_loss(x, old, other, mask, clip=0.3)[0].total, x
        )
        check_gradient(lambda x: objectives.nll(x, mask).total, x)
        check_gradient(lambda x: objectives.cross_entropy(x, labels)[0].total, x)
        assert nll(x, mask).total.dtype == np.float64


def test_padding_never_leaks():
    def with_padding(number):
        return [np.array([[0.1, 0.2], [0.3, number]])] * 3

    for function in (objectives.ppo_clip, objectives.clipped_value_loss):

        def loss(*arrays, function=function):
            mean, metrics = function(*arrays, MASK, clip=0.2)
            return mean.total, (mean, metrics)

        slopes = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        clean = slopes(*with_padding(0.0))[0]
        for number in (NAN, np.inf, -np.inf, 3e38):
            dirty, gradients = slopes(*with_padding(number))
            jax.tree.map(np.testing.assert_array_equal, dirty, clean)
            for gradient in map(np.asarray, gradients):
                assert np.all(np.isfinite(gradient)) and gradient[1, 1] == 0


def test_metrics_carry_no_gradient():
    x = np.array([[-1.0, -2.0], [-3.0, -1.0]])

    @jax.jit
    @jax.jacrev
    def slopes(x):
        metrics = objectives.ppo_clip(x, x - 0.3, x, MASK, clip=0.2)[1]
        return {name: mean.total for name, mean in metrics.items()}

    for name, slope_of_name in slopes(x).items():
        assert np.all(np.asarray(slope_of_name) == 0), name


def test_bad_arguments_are_refused_by_name():
    x = np.zeros((2, 2))
    clip = functools.partial(objectives.ppo_clip, clip=0.2)
    value = functools.partial(objectives.clipped_value_loss, clip=0.2)
    for kind, name, function, *arguments in (
        (TypeError, "advantages_sg", clip, x, x, x.astype(int), MASK),
        (ValueError, "old_log_probs_sg", clip, x, x[:1], x, MASK),
        (TypeError, "mask_sg", value, x, x, x, x),
        (ValueError, "mask_st", objectives.nll, x, MASK[:1]),
        (ValueError, "token_log_probs_st", objectives.nll, x[0], MASK),
        (TypeError, "labels_b", objectives.cross_entropy, x, x[0]),
        (ValueError, "logits_bc", objectives.cross_entropy, x[0], np.zeros(2, int)),
    ):
        with pytest.raises(kind, match=name):
            function(*arguments)
