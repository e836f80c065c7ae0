"""KL-shaped rewards, GAE, group baselines and whitening: hand-worked numbers first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.numerics import both_ways
from vbon_jax.functional import advantages

# One program is compiled faster than its operations one by one.
rloo, group_normalised = jax.jit(advantages.rloo), jax.jit(advantages.group_normalised)
shaped_rewards, gae = jax.jit(advantages.shaped_rewards), jax.jit(advantages.gae)
whiten = jax.jit(advantages.whiten, static_argnames="shift_mean")

NAN = np.nan
MASK = np.array([[True, True, True], [True, True, False], [False, False, False]])


def test_shaped_rewards_by_hand():
    log_probs = np.array([[-1.0, -2.0, -3.0], [-1.0, -1.0, NAN], [NAN, NAN, NAN]])
    reference = np.array([[-1.0, -1.0, -5.0], [-2.0, -1.0, NAN], [NAN, NAN, NAN]])
    score = np.array([10.0, 20.0, NAN])

    def shaped(score, log_probs, reference):
        return advantages.shaped_rewards(
            score, log_probs, reference, MASK, reward_weight=2.0, kl_weight=0.5
        )

    ours = both_ways(shaped, score, log_probs, reference)
    expected = [[0.0, 0.5, 20.0 - 1.0], [-0.5, 40.0, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(ours, expected, atol=1e-7)
    gradient = jax.jit(jax.grad(lambda *a: shaped(*a).sum(), argnums=(0, 1, 2)))(
        score, log_probs, reference
    )
    np.testing.assert_array_equal(gradient[0], [2.0, 2.0, 0.0])
    np.testing.assert_array_equal(gradient[1], -0.5 * np.asarray(MASK))
    np.testing.assert_array_equal(gradient[2], 0.5 * np.asarray(MASK))


def test_shaped_rewards_sum_to_the_objective():
    generator = np.random.default_rng(0)
    log_probs, reference = (np.float32(generator.normal(size=(4, 6))) for _ in "ab")
    mask = np.arange(6)[None, :] < np.array([6, 1, 3, 5])[:, None]
    score = np.float32(generator.normal(size=4))
    ours = shaped_rewards(score, log_probs, reference, mask, reward_weight=1.0, kl_weight=1 / 3)
    kl = np.where(mask, log_probs - reference, 0).sum(1)
    np.testing.assert_allclose(np.sum(ours, 1), score - kl / 3, rtol=1e-5, atol=1e-6)


def test_gae_by_hand():
    rewards = np.array([[1.0, 0.0, 2.0], [1.0, 4.0, NAN], [NAN, NAN, NAN]])
    values = np.array([[0.5, 1.0, 1.5], [2.0, 3.0, NAN], [NAN, NAN, NAN]])

    def estimate(rewards, values):
        return advantages.gae(rewards, values, MASK, discount=0.5, gae_lambda=0.5)

    ours, returns = both_ways(estimate, rewards, values)
    # δ = (1 + 0.5 − 0.5, 0 + 0.75 − 1, 2 − 1.5) = (1, −0.25, 0.5), γλ = 1/4
    first = [1 + (-0.25 + 0.125) / 4, -0.25 + 0.125, 0.5]
    second = [(1 + 1.5 - 2) + 1 / 4, 1.0, 0.0]
    np.testing.assert_allclose(ours, [first, second, [0, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(
        returns,
        [[first[0] + 0.5, first[1] + 1, 2.0], [second[0] + 2, 4.0, 0.0], [0, 0, 0]],
        rtol=1e-6,
    )
    gradient = jax.jit(jax.grad(lambda *a: estimate(*a)[0].sum(), argnums=(0, 1)))(rewards, values)
    assert all(np.all(np.isfinite(g)) for g in gradient)
    assert np.all(np.asarray(gradient[0])[~np.asarray(MASK)] == 0)


def test_gae_at_lambda_one_is_the_return_minus_the_value():
    generator = np.random.default_rng(1)
    rewards, values = (np.float32(generator.normal(size=(3, 7))) for _ in "ab")
    mask = np.arange(7)[None, :] < np.array([7, 4, 1])[:, None]
    ours, returns = gae(rewards, values, mask, discount=1.0, gae_lambda=1.0)
    to_go = np.cumsum(np.where(mask, rewards, 0)[:, ::-1], axis=1)[:, ::-1]
    np.testing.assert_allclose(returns, np.where(mask, to_go, 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours, np.where(mask, to_go - values, 0), rtol=1e-5, atol=1e-6)
    one_step = gae(rewards, values, mask, discount=0.9, gae_lambda=0.0)[0]
    after = np.append(np.where(mask, values, 0)[:, 1:], np.zeros((3, 1)), axis=1)
    expected = np.where(mask, rewards + 0.9 * after - values, 0)
    np.testing.assert_allclose(one_step, expected, rtol=1e-5, atol=1e-6)


def test_rloo_by_hand():
    scores = np.array([[1.0, 2.0, 6.0], [0.1, 0.1, 0.1]])
    ours = both_ways(advantages.rloo, scores)
    np.testing.assert_allclose(ours[0], [1 - 4, 2 - 3.5, 6 - 1.5], rtol=1e-6)
    np.testing.assert_array_equal(ours[1], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="2 samples per prompt"):
        advantages.rloo(np.zeros((3, 1)))


def test_group_normalised_by_hand():
    scores = np.array([[1.0, 2.0, 3.0], [0.1, 0.1, 0.1]])
    ours = both_ways(advantages.group_normalised, scores)
    np.testing.assert_allclose(ours[0], np.array([-1, 0, 1]) / 1.0001, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(ours[1], [0.0, 0.0, 0.0])
    gradient = jax.jit(jax.grad(lambda s: (group_normalised(s) ** 3).sum()))(scores)
    assert np.all(np.isfinite(gradient)) and np.all(np.asarray(gradient)[1] == 0)
    with pytest.raises(ValueError, match="2 samples per prompt"):
        advantages.group_normalised(np.zeros((3, 1)))


TIED, SPREAD = [1.5, 1.5, 1.5, 1.5], [0.25, -1.0, 2.0, 0.5]
NOISE = [0.02, -0.02, 0.01, -0.01]


@pytest.mark.parametrize(
    ("rewards", "penalties", "divided"),
    [
        (SPREAD, NOISE, True),  # the rewards say more than the KL: the numbers stay
        (SPREAD, [0.0] * 4, True),
        (TIED, NOISE, False),  # what is left is noise of the KL: as in rloo, less than 0.02
        ([1.5, 1.5, 1.5, 1.5 + 4e-7], NOISE, False),  # ties but for rounding
        ([1.5, 1.5, 1.501, 1.5], NOISE, False),
        (TIED, [3.0, -3.0, 2.0, -2.0], True),  # a KL of nats pulls a tied group with full weight
    ],
)
def test_the_kl_of_a_tied_group_is_not_blown_up(rewards, penalties, divided):
    scores = jnp.array([rewards]) - jnp.array([penalties])
    ours = both_ways(advantages.group_normalised, scores, jnp.array([penalties]))
    centred = scores - scores.mean()
    deviation = float(np.std(scores, ddof=1)) if divided else 1.0
    np.testing.assert_allclose(ours, centred / (deviation + 1e-4), rtol=1e-4, atol=1e-6)
    if divided and np.std(rewards) > np.std(penalties):
        np.testing.assert_array_equal(ours, both_ways(advantages.group_normalised, scores))
    assert (np.abs(ours).max() < 0.03) == (not divided)


def test_groups_of_a_batch_are_decided_apart():
    rewards, penalties = jnp.array([SPREAD, TIED]), jnp.array([NOISE, NOISE])
    ours = advantages.group_normalised(rewards - penalties, penalties)
    alone = advantages.group_normalised((rewards - penalties)[:1], penalties[:1])
    np.testing.assert_array_equal(ours[:1], alone)
    assert np.abs(ours[1]).max() < 0.03 < 0.5 < np.abs(ours[0]).max()


def test_group_advantages_do_not_see_a_shift():
    scores = np.float32(np.random.default_rng(2).integers(0, 9, (4, 8)))
    for function in (rloo, group_normalised):
        np.testing.assert_array_equal(function(scores), function(scores + 4096))
        np.testing.assert_allclose(np.sum(function(scores), 1), np.zeros(4), atol=1e-5)


def test_whiten_by_hand():
    values = np.array([[1.0, 2.0, 3.0], [6.0, 8.0, NAN], [NAN, NAN, NAN]])
    ours = both_ways(lambda v: advantages.whiten(v, MASK), values)
    # mean 4, squares (9, 4, 1, 4, 16), variance 34/5
    expected = np.array([[-3, -2, -1], [2, 4, 0], [0, 0, 0]]) / np.sqrt(34 / 5)
    np.testing.assert_allclose(ours, expected, rtol=1e-6)
    kept = whiten(values, MASK, shift_mean=False)
    np.testing.assert_allclose(kept, np.where(MASK, expected + 4, 0), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda v: (whiten(v, MASK) ** 3).sum()))(values)
    assert np.all(np.isfinite(gradient))


def test_whiten_is_safe_with_one_element_or_none():
    values = np.array([[3.0, NAN]])
    for mask, kept in (([[True, False]], [[3, 0]]), ([[False] * 2], [[0, 0]])):
        mask = np.array(mask)
        np.testing.assert_array_equal(whiten(values, mask), [[0, 0]])
        np.testing.assert_array_equal(whiten(values, mask, shift_mean=False), kept)
        gradient = jax.jit(jax.grad(lambda v, m: whiten(v, m).sum()))(values, mask)
        assert np.all(np.isfinite(gradient))


def test_float64_and_no_new_trace_for_new_weights():
    with jax.enable_x64(True):
        x = np.random.default_rng(3).normal(size=(3, 3))
        assert gae(x, x, MASK, discount=1.0, gae_lambda=0.95)[0].dtype == np.float64
        assert whiten(x, MASK).dtype == np.float64
    traces = []

    @jax.jit
    def counted(score, x, weight):
        traces.append(weight)
        return advantages.shaped_rewards(score, x, x, MASK, reward_weight=1.0, kl_weight=weight)

    for weight in (0.1, 0.2, 1.0):
        assert counted(np.zeros(3), np.zeros((3, 3)), weight).dtype == np.float32
    assert len(traces) == 1


def test_bad_arguments_are_refused_by_name():
    x, integers = np.zeros((3, 3)), np.zeros((3, 3), int)
    shaped = functools.partial(advantages.shaped_rewards, reward_weight=1.0, kl_weight=1.0)
    estimate = functools.partial(advantages.gae, discount=1.0, gae_lambda=1.0)
    for kind, name, function, *arguments in (
        (TypeError, "score_s", shaped, integers[0], x, x, MASK),
        (ValueError, "score_s", shaped, x[0, :2], x, x, MASK),
        (TypeError, "mask_sg", shaped, x[0], x, x, x),
        (ValueError, "mask_sg", estimate, x, x, MASK[:2]),
        (ValueError, "values_sg", estimate, x, x[0], MASK),
        (TypeError, "scores_bn", advantages.rloo, integers),
        (ValueError, "scores_bn", advantages.rloo, x[0]),
        (TypeError, "scores_bn", advantages.group_normalised, integers),
        (ValueError, "scores_bn", advantages.group_normalised, x[0]),
        (TypeError, "values_sg", advantages.whiten, integers, MASK),
    ):
        with pytest.raises(kind, match=name):
            function(*arguments)
