"""Soft Best-of-N by hand, at its two limits, and against every choice of draws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vbon_jax.functional import bon, soft

REWARDS = np.array([[0.0, 1.0, 1.0, 3.0], [2.0, -1.0, 0.5, 0.0]], np.float32)


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
def test_against_every_choice_of_draws(n):
    law = soft.empirical_soft_best_of_n(
        REWARDS, n, jax.random.key(0), temperature=0.7, draws=20_000
    )
    for row, rewards_m in enumerate(REWARDS):
        expected = every_choice(rewards_m, n, 0.7)
        np.testing.assert_allclose([of[row] for of in law], expected, atol=0.01)


def test_its_limits_are_best_of_n_and_the_reference():
    cold = soft.empirical_soft_best_of_n(
        REWARDS, 3, jax.random.key(1), temperature=1e-3, draws=20_000
    )
    for ours, best in zip(cold, bon.empirical_best_of_n(REWARDS, 3), strict=True):
        np.testing.assert_allclose(ours, best, atol=0.02)
    hot = soft.empirical_soft_best_of_n(REWARDS, 3, jax.random.key(1), temperature=1e6)
    np.testing.assert_allclose(hot.reward_b, REWARDS.mean(axis=1), atol=1e-4)
    np.testing.assert_allclose(hot.win_rate_b, 0.5, atol=1e-4)
    np.testing.assert_allclose(hot.kl_b, 0.0, atol=1e-4)


def test_one_draw_is_the_reference_whatever_the_temperature():
    law = soft.empirical_soft_best_of_n(REWARDS, 1, jax.random.key(2), temperature=0.1)
    np.testing.assert_allclose(law.reward_b, REWARDS.mean(axis=1), rtol=1e-6)
    np.testing.assert_allclose(law.kl_b, 0.0, atol=1e-6)


def test_select_draws_by_the_softmax():
    rewards = jnp.tile(jnp.array([[0.0, 1.0, 2.0]]), (30_000, 1))
    counts = np.bincount(soft.select(rewards, jax.random.key(3), temperature=2.0), minlength=3)
    law = np.asarray(jax.nn.softmax(jnp.array([0.0, 0.5, 1.0])))
    np.testing.assert_allclose(counts / 30_000, law, atol=0.01)
    best = soft.select(REWARDS, jax.random.key(3), temperature=1e-6)
    assert REWARDS[np.arange(2), best].tolist() == REWARDS.max(axis=1).tolist()


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="temperature"):
        soft.select(REWARDS, jax.random.key(0), temperature=0.0)
    with pytest.raises(ValueError, match="temperature"):
        soft.empirical_soft_best_of_n(REWARDS, 2, jax.random.key(0), temperature=-1.0)
    with pytest.raises(ValueError, match="integer"):
        soft.empirical_soft_best_of_n(REWARDS, 1.5, jax.random.key(0), temperature=1.0)
    with pytest.raises(TypeError, match="rewards_bm"):
        soft.empirical_soft_best_of_n(REWARDS.astype(int), 2, jax.random.key(0), temperature=1.0)
