"""Best-of-N by one reward, seen by another: what a judge says of it, from the cache alone.

B  prompts     M  cached responses to each     G  values of N
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import bon


class JudgedBest(NamedTuple):
    """Best-of-N by the training reward; [B] float64 each."""

    reward_b: np.ndarray  # the judge's reward of it, in the judge's unit
    win_rate_b: np.ndarray  # against one reference draw, by the judge; a tie is half


def best_of_n(rewards_bm: np.ndarray, judge_bm: np.ndarray, n: int) -> JudgedBest:
    """The judge's reward and win rate of the best of N by `rewards_bm`, without resampling.

    rewards_bm, judge_bm: [B, M], both rewards of the same cached responses, M >= 2. Ties between
    equal training rewards are broken uniformly. Both are U-statistics, over every choice of N of M
    responses and, for the win rate, one more as the opponent: unbiased, and where the judge is the
    training reward they are `bon.expected_best` and `bon.best_of_n_win_rate`. Raises ValueError
    for N outside 1..M−1 and shapes that differ.
    """
    rewards_bm, judge_bm = np.asarray(rewards_bm), np.asarray(judge_bm, np.float64)
    if rewards_bm.shape != judge_bm.shape or rewards_bm.ndim != 2:
        raise ValueError(f"rewards of shapes {rewards_bm.shape} and {judge_bm.shape}")
    m = rewards_bm.shape[1]
    if n != int(n) or not 1 <= n <= m - 1:
        raise ValueError(f"N is {n}; give a whole number from 1 to {m - 1}, one below M")
    alone_l, beside_l = (
        np.concatenate([[0.0], np.cumsum(bon.order_statistic_weights(size, int(n)))])
        for size in (m, m - 1)
    )  # the chance that all N lie among the l lowest of M, and of the M − 1 that are no opponent
    reward_b, win_rate_b = np.empty((2, len(rewards_bm)))
    for at, (rewards_m, judge_m) in enumerate(zip(rewards_bm, judge_bm, strict=True)):
        below_mm = rewards_m[None, :] < rewards_m[:, None]  # [i, j]: j is worse than i
        up_to_mm = rewards_m[None, :] <= rewards_m[:, None]
        below_m, up_to_m = below_mm.sum(axis=1), up_to_mm.sum(axis=1)
        weight_m = (alone_l[up_to_m] - alone_l[below_m]) / (up_to_m - below_m)
        reward_b[at] = weight_m @ judge_m
        # i is the best of N that are drawn from all but the opponent j
        low_mm, high_mm = below_m[:, None] - below_mm, up_to_m[:, None] - up_to_mm
        np.fill_diagonal(high_mm, low_mm.diagonal() + 1)  # of no use: i is not its own opponent
        weight_mm = (beside_l[np.minimum(high_mm, m - 1)] - beside_l[low_mm]) / (high_mm - low_mm)
        np.fill_diagonal(weight_mm, 0.0)
        wins_mm = (np.sign(judge_m[:, None] - judge_m[None, :]) + 1) / 2
        win_rate_b[at] = (weight_mm * wins_mm).sum() / m
    return JudgedBest(reward_b, win_rate_b)


def empirical_curve(
    rewards_bm: np.ndarray, judge_bm: np.ndarray, n_g: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """Best-of-N of the empirical law for real N >= 1: the judge's reward and win rate, [B, G] each.

    As `bon.empirical_best_of_n`, whose KL is that of the same law: M equally likely responses, N
    drawn with replacement; what a figure draws between the points of `best_of_n`.
    """
    rewards_bm = jnp.asarray(rewards_bm)
    middle_bm = np.stack([_middle_ranks(of_prompt) for of_prompt in np.asarray(judge_bm)])
    found = _empirical_curve(
        rewards_bm,
        jnp.asarray(judge_bm, jnp.float32),
        jnp.asarray(middle_bm, jnp.float32),
        jnp.asarray(n_g, jnp.float32),
    )
    return tuple(np.asarray(of_gb, np.float64).T for of_gb in found)


def _middle_ranks(values_m: np.ndarray) -> np.ndarray:
    """P(below) + P(tie) / 2 of each value among all M, itself included."""
    ordered = np.sort(values_m)
    sides = (np.searchsorted(ordered, values_m, side) for side in ("left", "right"))
    return sum(sides) / (2 * len(values_m))


@jax.jit
def _empirical_curve(rewards_bm, judge_bm, middle_bm, n_g):
    m = rewards_bm.shape[1]
    sorted_bm = jnp.sort(rewards_bm, axis=1)
    below_bm, up_to_bm = (
        jax.vmap(lambda a, v, side=side: jnp.searchsorted(a, v, side=side))(sorted_bm, rewards_bm)
        for side in ("left", "right")
    )

    def at(n):
        log_f = [jnp.log(counts / m).astype(rewards_bm.dtype) for counts in (below_bm, up_to_bm)]
        mass_bm = jnp.exp(bon.log_ratio(*log_f, n)) / m
        return (mass_bm * judge_bm).sum(axis=1), (mass_bm * middle_bm).sum(axis=1)

    return jax.lax.map(at, n_g)
