"""Best-of-N itself, from the reference cache alone: its curve of win rate against KL, its ruler.

G  values of N on a curve
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.evaluation import best_of_n
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate
from vbon_jax.functional import bon, streams
from vbon_jax.types import Array

CURVE_POINTS = 96
CURVE_END = 64  # the curve ends at N = CURVE_END * M, where Best-of-N has all but reached the top


class Curve(NamedTuple):
    """Best-of-N on the cache, for G values of N, of each prompt or (no B axis) their mean."""

    n_g: np.ndarray  # real N, ascending from 1
    reward_bg: np.ndarray  # float64, the reward's unit
    win_rate_bg: np.ndarray
    kl_bg: np.ndarray  # nats


def curve(
    reference_bm: np.ndarray,
    n_g: Sequence[float] | None = None,
    judge_bm: np.ndarray | None = None,
) -> Curve:
    """The exact Best-of-N law of each prompt's empirical reference law, for every N of a grid.

    reference_bm [B, M] floating: the cached rewards. Reward and win rate are those of another
    reward `judge_bm` [B, M] of the same responses where it is given. The default grid is geometric,
    from N = 1 to 64 * M, where Best-of-N has all but become the best cached response: ties are in,
    and no continuous formula is.
    """
    if n_g is None:
        n_g = np.geomspace(1, CURVE_END * reference_bm.shape[1], CURVE_POINTS)
    judge_bm = None if judge_bm is None else jnp.asarray(judge_bm)
    best = _empirical(jnp.asarray(reference_bm), jnp.asarray(n_g, jnp.float32), judge_bm)
    return Curve(
        np.asarray(n_g, np.float64), *(np.asarray(values_gb, np.float64).T for values_gb in best)
    )


@jax.jit
def _empirical(reference_bm, n_g, judge_bm):
    return jax.lax.map(lambda n: bon.empirical_best_of_n(reference_bm, n, judge_bm), n_g)


def mean_curve(best: Curve) -> Curve:
    """The mean over prompts, [G] each: the curve that policies are compared with."""
    return Curve(best.n_g, *(values_bg.mean(axis=0) for values_bg in best[1:]))


def win_rate_at(kl: Array, kl_g: np.ndarray, win_rate_g: np.ndarray) -> np.ndarray:
    """Best-of-N's win rate at each KL: linear between the points of a mean curve, never falling.

    1/2 at KL <= 0. Beyond the curve's last KL (near log M) it stays at its last win rate: what the
    best cached response of every prompt wins, half its own probability short of 1.
    """
    kl_g = np.maximum.accumulate(kl_g)
    win_rate_g = np.maximum.accumulate(win_rate_g)
    return np.where(np.asarray(kl) > 0, np.interp(kl, kl_g, win_rate_g), 0.5)


def kl_at(win_rate: Array, kl_g: np.ndarray, win_rate_g: np.ndarray) -> np.ndarray:
    """The KL at which Best-of-N has each win rate, the other way round: 0 up to one half."""
    kl_g = np.maximum.accumulate(kl_g)
    win_rate_g = np.maximum.accumulate(win_rate_g)
    return np.where(np.asarray(win_rate) > 0.5, np.interp(win_rate, win_rate_g, kl_g), 0.0)


def ruler(
    reference_bm: np.ndarray,
    n_values: Sequence[float],
    bootstrap: Bootstrap,
    *,
    temperature: float | None = None,
) -> dict[float, dict[str, Estimate]]:
    """Best-of-N's reward, win rate and KL for every N, from the cache [B, M] alone.

    Reward (N <= M) and win rate (N <= M - 1) are the U-statistics of whole N, unbiased for the law
    that the cache was drawn from; for other N, and for the KL always, they are those of the
    empirical law. With a `temperature`, in the reward's unit, they are those of soft Best-of-N,
    whose softmax has it, and N is whole. Raises ValueError for N < 1, and as
    `bon.empirical_soft_best_of_n` does.
    """
    reference_bm, key = np.asarray(reference_bm), streams.key("soft Best-of-N", bootstrap.seed)
    rows = {}
    for n in n_values:
        if temperature is None:
            law = _best_of_n(reference_bm, n)
        else:
            law = bon.empirical_soft_best_of_n(reference_bm, n, key, temperature=temperature)
        names = ("reward", "win_rate", "kl")
        rows[n] = {name: bootstrap.estimate(of_b) for name, of_b in zip(names, law, strict=True)}
    return rows


def _best_of_n(reference_bm: np.ndarray, n: float) -> bon.EmpiricalBest:
    """The law of Best-of-N on each prompt, its reward and win rate unbiased where they can be."""
    law, most = bon.empirical_best_of_n(reference_bm, n), reference_bm.shape[1]
    same = reference_bm, reference_bm, int(n)
    if n == int(n) and n <= most:
        law = law._replace(reward_b=best_of_n.expected_best(*same))
    if n == int(n) and n <= most - 1:
        law = law._replace(win_rate_b=best_of_n.best_of_n_win_rate(*same))
    return law
