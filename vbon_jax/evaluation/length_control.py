"""The win rate that remains when responses are as long as the reference's.

The method is the length control of AlpacaEval 2.0 without its terms for each instruction (Dubois,
Galambosi, Liang, Hashimoto, 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475): a logistic
regression of the win on the difference of lengths, read off where that difference is 0.

    logit P(win) = intercept + slope * tanh(difference / its standard deviation)

    B  prompts   K  responses of the policy   M  of the reference   D  differences   R  resamples
"""

import functools

import numpy as np
from scipy.special import expit, logit

from vbon_jax.evaluation.best_of_n import wins
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate

RIDGE = (1e-9, 1e-4)  # half of it times intercept^2 and slope^2 is added to the mean log-loss
ITERATIONS = 100  # of Newton's method, at most
LONGEST_STEP = 2.0  # of one iteration, in either coefficient


def length_controlled_win_rate(
    rewards_bk: np.ndarray,
    lengths_bk: np.ndarray,
    reference_bm: np.ndarray,
    reference_lengths_bm: np.ndarray,
    bootstrap: Bootstrap,
) -> Estimate:
    """P(win) at no difference of length, with a 95 % bootstrap interval over prompts.

    Every response is compared with ALL M reference responses to its prompt, a tie counting one
    half: the pairs of `measures.win_rates`, so that a slope of 0 gives the plain win rate. Lengths
    are whole numbers (tokens). Each resample of prompts has a standard deviation and a regression
    of its own. The regression is the maximum of the mean log-likelihood less `RIDGE`, which keeps
    it finite where length alone decides who wins. NaN where all responses of the policy are longer
    than all of the reference's, or all shorter: equal length lies outside of what was seen. Raises
    ValueError for shapes that do not agree and for lengths that are not integers.
    """
    differences_d, count_bd, wins_bd = pairs_by_difference(
        rewards_bk, lengths_bk, reference_bm, reference_lengths_bm
    )
    columns_bc = np.concatenate([count_bd, wins_bd], axis=1)
    statistic = functools.partial(_at_no_difference, differences_d)
    return bootstrap.estimate_of_means(columns_bc, statistic)


def pairs_by_difference(
    rewards_bk: np.ndarray,
    lengths_bk: np.ndarray,
    reference_bm: np.ndarray,
    reference_lengths_bm: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A prompt's K * M pairs, gathered by their difference of lengths: nothing else is needed.

    Returns `differences_d` [D] float64, those that occur, `count_bd` and `wins_bd` [B, D], the
    shares of the prompt's pairs that have the difference and, of all its pairs, that have it and
    are won.
    """
    rewards_bk, reference_bm = np.asarray(rewards_bk), np.asarray(reference_bm)
    lengths_bk, reference_lengths_bm = np.asarray(lengths_bk), np.asarray(reference_lengths_bm)
    shapes = [each.shape for each in (rewards_bk, lengths_bk, reference_bm, reference_lengths_bm)]
    if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][:1] != shapes[2][:1]:
        raise ValueError(f"rewards and lengths of shapes {shapes} are not of the same prompts")
    if not all(np.issubdtype(a.dtype, np.integer) for a in (lengths_bk, reference_lengths_bm)):
        raise ValueError(f"lengths are {lengths_bk.dtype} and {reference_lengths_bm.dtype}")
    lowest = int(lengths_bk.min()) - int(reference_lengths_bm.max())
    width = int(lengths_bk.max()) - int(reference_lengths_bm.min()) - lowest + 1
    pairs = rewards_bk.shape[1] * reference_bm.shape[1]
    count_bd, wins_bd = np.zeros((2, len(rewards_bk), width))
    for b, rewards_k in enumerate(rewards_bk):
        place_km = lengths_bk[b][:, None].astype(np.int64) - reference_lengths_bm[b] - lowest
        win_km = wins(rewards_k[:, None], reference_bm[b])
        count_bd[b] = np.bincount(place_km.ravel(), minlength=width) / pairs
        wins_bd[b] = np.bincount(place_km.ravel(), win_km.ravel(), minlength=width) / pairs
    occurs = count_bd.any(axis=0)
    differences_d = np.arange(lowest, lowest + width)[occurs] * 1.0
    return differences_d, count_bd[:, occurs], wins_bd[:, occurs]


def _at_no_difference(differences_d: np.ndarray, means_rc: np.ndarray) -> np.ndarray:
    """P(win) at no difference [R] of means (counts, wins)."""
    count_rd, wins_rd = np.split(means_rc, 2, axis=1)
    mean_r = count_rd @ differences_d
    variance_r = count_rd @ differences_d**2 - mean_r**2
    spread = variance_r > 1e-9 * (1 + mean_r**2)
    scale_r = np.sqrt(np.where(spread, variance_r, 1.0))
    x_rd = np.tanh(differences_d / scale_r[:, None]) * spread[:, None]
    intercept_r = _regressions(x_rd, count_rd, wins_rd)[:, 0]
    inside = (count_rd[:, differences_d <= 0] > 0).any(axis=1)
    inside &= (count_rd[:, differences_d >= 0] > 0).any(axis=1)
    return np.where(inside, expit(intercept_r), np.nan)


def _regressions(x_rd, count_rd, wins_rd) -> np.ndarray:
    """theta: intercept and slope [R, 2] of each row's logistic regression, by Newton's method."""
    share_r = np.clip(wins_rd.sum(axis=1), 1e-6, 1 - 1e-6)
    theta_r2 = np.stack([logit(share_r), np.zeros_like(share_r)], axis=1)
    for _ in range(ITERATIONS):
        p_rd = expit(theta_r2[:, :1] + theta_r2[:, 1:] * x_rd)
        residual_rd, weight_rd = wins_rd - count_rd * p_rd, count_rd * p_rd * (1 - p_rd)
        slope_a = residual_rd.sum(axis=1) - RIDGE[0] * theta_r2[:, 0]
        slope_s = (residual_rd * x_rd).sum(axis=1) - RIDGE[1] * theta_r2[:, 1]
        bend_aa = weight_rd.sum(axis=1) + RIDGE[0]
        bend_as = (weight_rd * x_rd).sum(axis=1)
        bend_ss = (weight_rd * x_rd**2).sum(axis=1) + RIDGE[1]
        steps_r2 = np.stack(
            [bend_ss * slope_a - bend_as * slope_s, bend_aa * slope_s - bend_as * slope_a], axis=1
        ) / (bend_aa * bend_ss - bend_as**2)[:, None]  # fmt: skip
        largest_r1 = np.abs(steps_r2).max(axis=1, keepdims=True)
        theta_r2 += steps_r2 * np.minimum(1.0, LONGEST_STEP / np.maximum(largest_r1, 1e-300))
        if largest_r1.max() < 1e-9:
            break
    return theta_r2
