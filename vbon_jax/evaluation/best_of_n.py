"""The best of N cached responses by one reward, measured by another, without resampling.

Both are U-statistics over every choice of N of the M responses: unbiased for the law that the cache
was drawn from. With the same reward twice they are Best-of-N's own reward and win rate. Ties of the
reward that chooses are broken uniformly. Host arithmetic in numpy's float64.

    B  prompts     M  cached responses to each
"""

import numpy as np

from vbon_jax.functional import bon, checks


def expected_best(rewards_bm: np.ndarray, judge_bm: np.ndarray, n: int) -> np.ndarray:
    """The judge's expected reward of the best of N by `rewards_bm`, [B] float64.

    rewards_bm, judge_bm: [B, M], two rewards of the same responses. Raises ValueError for N outside
    1..M and shapes that differ.
    """
    rewards_bm, judge_bm = _checked(rewards_bm, judge_bm)
    in_lowest_l = _cumulated(rewards_bm.shape[1], n)
    ordered_bm = np.sort(rewards_bm, axis=1)
    expected_b = np.empty(len(rewards_bm))
    for b, (rewards_m, ordered_m) in enumerate(zip(rewards_bm, ordered_bm, strict=True)):
        below_m, up_to_m = (np.searchsorted(ordered_m, rewards_m, s) for s in ("left", "right"))
        weight_m = (in_lowest_l[up_to_m] - in_lowest_l[below_m]) / (up_to_m - below_m)
        expected_b[b] = weight_m @ judge_bm[b]
    return expected_b


def best_of_n_win_rate(rewards_bm: np.ndarray, judge_bm: np.ndarray, n: int) -> np.ndarray:
    """The chance, by the judge, that the best of N by `rewards_bm` beats one more draw, [B].

    A tie of the judge's rewards counts one half. N are drawn and one more as the opponent. Raises
    ValueError for N outside 1..M−1 and shapes that differ.
    """
    rewards_bm, judge_bm = _checked(rewards_bm, judge_bm)
    m = rewards_bm.shape[1]
    in_lowest_l = _cumulated(m - 1, checks.whole("n", n, m - 1))  # one of M is the opponent
    win_rate_b = np.empty(len(rewards_bm))
    for b, (rewards_m, judge_m) in enumerate(zip(rewards_bm, judge_bm, strict=True)):
        wins_mm = wins(judge_m[:, None], judge_m[None, :])  # [i, j]: i against its opponent j
        worse_mm = rewards_m[None, :] < rewards_m[:, None]
        tied_mm = (rewards_m[None, :] == rewards_m[:, None]) & ~np.eye(m, dtype=bool)
        better_mm = rewards_m[None, :] > rewards_m[:, None]
        below_m, tied_m = worse_mm.sum(axis=1), tied_mm.sum(axis=1)
        win_m = np.zeros(m)
        # the chance that i is the best of N of all but j, whose place is below i, tied or above
        for opponents_mm, low_m, width_m in (
            (worse_mm, below_m - 1, tied_m + 1), (tied_mm, below_m, tied_m),
            (better_mm, below_m, tied_m + 1),
        ):  # fmt: skip
            low_m, width_m = np.maximum(low_m, 0), np.maximum(width_m, 1)
            high_m = np.minimum(low_m + width_m, m - 1)  # beyond, there is no such opponent
            weight_m = (in_lowest_l[high_m] - in_lowest_l[low_m]) / width_m
            win_m += weight_m * (wins_mm * opponents_mm).sum(axis=1)
        win_rate_b[b] = win_m.sum() / m
    return win_rate_b


def wins(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 where the first is greater, 0 where the second is, one half for a tie."""
    return (np.sign(first - second) + 1) / 2


def _cumulated(m: int, n: int) -> np.ndarray:
    """The chance that N of M draws all lie among the l lowest, l = 0..M."""
    return np.concatenate([[0.0], np.cumsum(bon.order_statistic_weights(m, n))])


def _checked(rewards_bm: np.ndarray, judge_bm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    rewards_bm, judge_bm = np.asarray(rewards_bm), np.asarray(judge_bm, np.float64)
    if rewards_bm.shape != judge_bm.shape or rewards_bm.ndim != 2:
        raise ValueError(f"rewards of shapes {rewards_bm.shape} and {judge_bm.shape}")
    return rewards_bm, judge_bm
