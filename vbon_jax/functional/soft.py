"""Soft Best-of-N: one of N draws by a softmax of their rewards (arXiv 2505.03156).

Temperature 0 is Best-of-N and an infinite one the reference itself.
"""

import math

import jax
import jax.numpy as jnp

from vbon_jax.functional import checks
from vbon_jax.functional.bon import EmpiricalBest
from vbon_jax.types import Array


def select(rewards_bn, key: Array, *, temperature: float) -> Array:
    """Which of a prompt's N samples is returned: i with a chance of softmax(r / temperature)_i.

    Args:
        rewards_bn: [B, N] floating, N >= 1.
        key: of jax.random.
        temperature: above 0, in the rewards' unit.

    Returns:
        [B] int32 indices into N.

    Raises:
        TypeError: rewards_bn is not floating. ValueError: its rank is not 2, or the temperature.
    """
    rewards_bn = checks.floats("rewards_bn", rewards_bn, rank=2)
    _check(temperature)
    return jax.random.categorical(key, rewards_bn / temperature, axis=1).astype(jnp.int32)


def empirical_soft_best_of_n(
    rewards_bm, n: int, key: Array, *, temperature: float, draws: int = 256
) -> EmpiricalBest:
    """What soft Best-of-N gives on a prompt whose reference law is the sample itself.

    Its density against the reference is ρ(y) = E[N·e^{r/τ} / (e^{r/τ} + Σ_{j<N} e^{r_j/τ})] over
    N − 1 further draws, here the mean over `draws` of them from the M rewards, the same for every
    y; it is divided by its own mean, which is 1 in expectation.

    Args:
        rewards_bm: [B, M] floating.
        n: integer of at least 1.
        key: of jax.random; one key gives the same draws again.
        temperature: τ above 0, in the rewards' unit. draws: at least 1.

    Returns:
        EmpiricalBest: reward, win rate against one reference draw (a tie is half), KL; [B] each.

    Raises:
        TypeError: rewards_bm is not floating. ValueError: its rank is not 2, or n, or temperature.
    """
    rewards_bm = checks.floats("rewards_bm", rewards_bm, rank=2)
    _check(temperature)
    n = checks.whole_best_of(n, math.inf, "soft Best-of-N chooses among whole draws")
    b, m = rewards_bm.shape
    logits_bm = rewards_bm / temperature
    others_bkn = jax.random.randint(key, (b, draws, n - 1), 0, m)
    others_bkn = jnp.take_along_axis(logits_bm[:, None], others_bkn, axis=2)
    rest_bk = jax.nn.logsumexp(others_bkn, axis=2)  # -inf for N = 1: then ρ is 1
    density_bm = jnp.mean(jax.nn.sigmoid(logits_bm[:, :, None] - rest_bk[:, None]), axis=2)
    density_bm /= jnp.mean(density_bm, axis=1, keepdims=True)
    below_bm = jnp.sum(rewards_bm[:, None] < rewards_bm[:, :, None], axis=2)
    tied_bm = jnp.sum(rewards_bm[:, None] == rewards_bm[:, :, None], axis=2)
    middle_bm = (below_bm + 0.5 * tied_bm) / m
    return EmpiricalBest(
        reward_b=jnp.mean(density_bm * rewards_bm, axis=1),
        win_rate_b=jnp.mean(density_bm * middle_bm, axis=1),
        kl_b=jnp.mean(jax.scipy.special.xlogy(density_bm, density_bm), axis=1),
    )


def _check(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
