"""The losses: hand-worked numbers, gradients, and nothing that leaks out of the padding."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.numerics import both_ways, check_gradient
from vbon_jax.functional import objectives

NAN = np.nan
MASK = jnp.array([[True, True], [True, False]])


def test_ppo_clip_by_hand():
    old = jnp.array([[-1.0, -2.0], [-3.0, NAN]])
    ratio = np.array([[1.5, 0.9], [0.5, 1.0]])
    new = old + jnp.log(jnp.asarray(ratio, jnp.float32))
    advantages = jnp.array([[2.0, 1.0], [-3.0, NAN]])

    def loss(new):
        return objectives.ppo_clip(new, old, advantages, MASK, clip=0.2)

    mean, metrics = both_ways(loss, new)
    # −min(1.5·2, 1.2·2), −min(0.9, 0.9), −min(−1.5, 0.8·−3)
    np.testing.assert_allclose(mean.total, -2.4 - 0.9 + 2.4, rtol=1e-5)
    assert mean.weight == 3 and mean.total.dtype == jnp.float32
    np.testing.assert_allclose(metrics["clip_fraction"].value(), 2 / 3, rtol=1e-6)
    np.testing.assert_allclose(metrics["ratio"].value(), (1.5 + 0.9 + 0.5) / 3, rtol=1e-6)
    k3 = sum(r - 1 - math.log(r) for r in (1.5, 0.9, 0.5))
    np.testing.assert_allclose(metrics["approx_kl"].total, k3, rtol=1e-5)
    # only the unclipped token has a gradient, −ρ·A; the padding has none
    gradient = jax.grad(lambda x: loss(x)[0].total)(new)
    np.testing.assert_allclose(gradient, [[0.0, -0.9], [0.0, 0.0]], rtol=1e-5, atol=1e-7)


def test_ppo_clip_at_the_sampling_policy_is_the_policy_gradient():
    generator = np.random.default_rng(0)
    log_probs, advantages = (jnp.asarray(generator.normal(size=(2, 2)), jnp.float32) for _ in "ab")

    def loss(x):
        return objectives.ppo_clip(x, log_probs, advantages, MASK, clip=0.2)[0].total

    np.testing.assert_allclose(jax.grad(loss)(log_probs), -np.where(MASK, advantages, 0), rtol=1e-6)


def test_ppo_clip_survives_an_absurd_ratio():
    old, new = jnp.full((2, 2), -200.0), jnp.array([[0.0, -900.0], [0.0, 0.0]])
    for sign in (1.0, -1.0):

        def loss(x, sign=sign):
            advantages = jnp.full((2, 2), sign)
            return objectives.ppo_clip(x, old, advantages, MASK, clip=0.2)[0].total

        assert np.isfinite(loss(new)) and np.all(np.isfinite(jax.grad(loss)(new)))


def test_clipped_value_loss_by_hand():
    old = jnp.array([[0.0, 0.0], [0.0, NAN]])
    values = jnp.array([[0.1, 1.0], [1.0, NAN]])
    returns = jnp.array([[1.0, 1.0], [-1.0, NAN]])

    def loss(values):
        return objectives.clipped_value_loss(values, old, returns, MASK, clip=0.2)

    mean, metrics = both_ways(loss, values)
    # ½·0.9²; ½·max(0, 0.8²): clipped; ½·max(2², 1.2²)
    np.testing.assert_allclose(mean.total, 0.5 * (0.81 + 0.64 + 4.0), rtol=1e-6)
    assert mean.weight == 3
    np.testing.assert_allclose(metrics["clip_fraction"].value(), 1 / 3, rtol=1e-6)
    gradient = jax.grad(lambda x: loss(x)[0].total)(values)
    np.testing.assert_allclose(gradient, [[-0.9, 0.0], [2.0, 0.0]], rtol=1e-6)
    plain, _ = objectives.clipped_value_loss(values, old, returns, MASK, clip=np.inf)
    np.testing.assert_allclose(plain.total, 0.5 * (0.81 + 0.0 + 4.0), rtol=1e-6)


def test_nll_by_hand():
    log_probs = jnp.array([[-1.0, -2.0], [-4.0, -np.inf]])
    mean = both_ways(lambda x: objectives.nll(x, MASK), log_probs)
    assert (mean.total, mean.weight, mean.value()) == (7.0, 3.0, pytest.approx(7 / 3))
    gradient = jax.grad(lambda x: objectives.nll(x, MASK).total)(log_probs)
    np.testing.assert_array_equal(gradient, -np.asarray(MASK, np.float32))
    nothing = objectives.nll(log_probs, jnp.zeros((2, 2), bool))
    assert (nothing.total, nothing.weight, nothing.value()) == (0.0, 0.0, 0.0)


def test_cross_entropy_by_hand():
    logits = jnp.log(jnp.array([[1.0, 3.0], [4.0, 1.0], [1.0, 1.5]]))
    labels = jnp.array([1, 1, 1])
    mean, metrics = both_ways(objectives.cross_entropy, logits, labels)
    expected = -math.log(3 / 4) - math.log(1 / 5) - math.log(3 / 5)
    np.testing.assert_allclose(mean.total, expected, rtol=1e-6)
    assert mean.weight == 3
    np.testing.assert_allclose(metrics["accuracy"].value(), 2 / 3, rtol=1e-6)
    gradient = jax.grad(lambda x: objectives.cross_entropy(x, labels)[0].total)(logits)
    np.testing.assert_allclose(gradient[1], [0.8, -0.8], rtol=1e-6)


def test_means_add_up_where_means_of_means_do_not():
    log_probs = jnp.asarray(np.random.default_rng(1).normal(size=(4, 6)), jnp.float32)
    mask = jnp.arange(6)[None, :] < jnp.array([6, 1, 3, 0])[:, None]
    parts = [objectives.nll(log_probs[i : i + 1], mask[i : i + 1]) for i in range(4)]
    total, weight = (sum(column) for column in zip(*parts, strict=True))
    whole = objectives.nll(log_probs, mask)
    np.testing.assert_allclose(total / weight, whole.value(), rtol=1e-6)


@pytest.mark.slow
def test_gradients_against_finite_differences():
    with jax.enable_x64(True):
        generator = np.random.default_rng(2)
        x, old, other = (jnp.asarray(generator.normal(size=(3, 4))) for _ in range(3))
        mask = jnp.arange(4)[None, :] < jnp.array([4, 2, 1])[:, None]
        labels = jnp.array([0, 3, 1])
        check_gradient(lambda x: objectives.ppo_clip(x, old, other, mask, clip=0.3)[0].total, x)
        check_gradient(
            lambda x: objectives.clipped_value_loss(x, old, other, mask, clip=0.3)[0].total, x
        )
        check_gradient(lambda x: objectives.nll(x, mask).total, x)
        check_gradient(lambda x: objectives.cross_entropy(x, labels)[0].total, x)
        assert objectives.nll(x, mask).total.dtype == np.float64


def test_padding_never_leaks():
    garbage = jnp.array([[0.1, 0.2], [0.3, NAN]])
    for value in (NAN, np.inf, -np.inf, 3e38):
        garbage = garbage.at[1, 1].set(value)
        for loss in (
            lambda *a: objectives.ppo_clip(*a, MASK, clip=0.2),
            lambda *a: objectives.clipped_value_loss(*a, MASK, clip=0.2),
        ):
            clean = loss(*[garbage.at[1, 1].set(0.0)] * 3)
            dirty = loss(*[garbage] * 3)
            jax.tree.map(np.testing.assert_array_equal, dirty, clean)
            gradients = jax.grad(lambda *a, f=loss: f(*a)[0].total, argnums=(0, 1, 2))(
                *[garbage] * 3
            )
            assert all(np.all(np.isfinite(g)) and g[1, 1] == 0 for g in gradients)


def test_metrics_carry_no_gradient():
    x = jnp.array([[-1.0, -2.0], [-3.0, -1.0]])

    def metrics(x):
        return objectives.ppo_clip(x, x - 0.3, x, MASK, clip=0.2)[1]

    for name in metrics(x):
        assert np.all(np.asarray(jax.grad(lambda x, k=name: metrics(x)[k].total)(x)) == 0), name


def test_bad_arguments_are_refused_by_name():
    x = jnp.zeros((2, 2))
    clip = functools.partial(objectives.ppo_clip, clip=0.2)
    value = functools.partial(objectives.clipped_value_loss, clip=0.2)
    for kind, name, function, *arguments in (
        (TypeError, "advantages_sg", clip, x, x, x.astype(jnp.int32), MASK),
        (ValueError, "old_log_probs_sg", clip, x, x[:1], x, MASK),
        (TypeError, "mask_sg", value, x, x, x, x),
        (ValueError, "mask_st", objectives.nll, x, MASK[:1]),
        (ValueError, "token_log_probs_st", objectives.nll, x[0], MASK),
        (TypeError, "labels_b", objectives.cross_entropy, x, x[0]),
        (ValueError, "logits_bc", objectives.cross_entropy, x[0], jnp.zeros(2, jnp.int32)),
    ):
        with pytest.raises(kind, match=name):
            function(*arguments)
