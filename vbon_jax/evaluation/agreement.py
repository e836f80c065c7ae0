"""How far two rewards agree about which of two responses to a prompt is the better one.

Only pairs of responses to the same prompt are compared, so that a reward's offset for a prompt
changes nothing. Host arithmetic in numpy's float64.

    B  prompts     K  responses to each     R  resamples
"""

from typing import NamedTuple

import numpy as np

from vbon_jax.evaluation.bootstrap import RESAMPLES, Estimate, estimate, estimate_of_means


class Agreement(NamedTuple):
    """The agreement of two rewards of the same responses, with intervals over prompts."""

    agreement: Estimate  # share of the pairs that both order which both order the same way
    tau_b: Estimate  # Kendall's tau-b within a prompt, the mean over prompts that have one
    ordered: Estimate  # share of all pairs that both order: neither reward ties


class PairCounts(NamedTuple):
    """Counts of the K(K−1)/2 pairs of each prompt, [B] float64 each."""

    concordant_b: np.ndarray  # both order them, the same way
    discordant_b: np.ndarray  # both order them, one the other way round
    first_b: np.ndarray  # the first reward orders them: no tie
    second_b: np.ndarray  # the second one does


def pair_counts(first_bk: np.ndarray, second_bk: np.ndarray) -> PairCounts:
    """Concordant, discordant and ordered pairs of two rewards [B, K] of the same responses.

    Raises ValueError for shapes that differ or are not of rank 2.
    """
    first_bk, second_bk = np.asarray(first_bk), np.asarray(second_bk)
    if first_bk.shape != second_bk.shape or first_bk.ndim != 2:
        raise ValueError(f"two rewards of shapes {first_bk.shape} and {second_bk.shape}")
    one, other = np.triu_indices(first_bk.shape[1], 1)
    counts = []
    for first_k, second_k in zip(first_bk, second_bk, strict=True):
        first, second = (
            np.sign(first_k[one] - first_k[other]),
            np.sign(second_k[one] - second_k[other]),
        )
        both = first * second
        ordered = np.count_nonzero(first), np.count_nonzero(second)
        counts.append(((both > 0).sum(), (both < 0).sum(), *ordered))
    return PairCounts(*np.asarray(counts, np.float64).reshape(-1, 4).T)


def agreement(
    first_bk: np.ndarray, second_bk: np.ndarray, *, seed: int, resamples: int = RESAMPLES
) -> Agreement:
    """The agreement of two rewards [B, K] of the same responses, K >= 2.

    With C concordant and D discordant pairs of a prompt, and X and Y those that the first and the
    second reward order (do not tie): agreement is sum C / sum (C + D), over all prompts' pairs;
    tau-b (Kendall 1945, Biometrika 33) is (C − D) / sqrt(X·Y) of a prompt, averaged over the
    prompts with X·Y > 0. Either is NaN where there is no such pair or prompt. Intervals resample
    prompts. Raises ValueError for K < 2, and as `pair_counts` and `resampled_means` do.
    """
    pairs = np.shape(first_bk)[1] * (np.shape(first_bk)[1] - 1) / 2
    if not pairs:
        raise ValueError("one response to each prompt: agreement is about pairs of them")
    c_b, d_b, x_b, y_b = pair_counts(first_bk, second_bk)
    known_b = x_b * y_b > 0
    tau_b = np.where(known_b, (c_b - d_b) / np.sqrt(np.where(known_b, x_b * y_b, 1.0)), 0.0)
    options = {"seed": seed, "resamples": resamples}
    return Agreement(
        agreement=estimate_of_means(np.stack([c_b, c_b + d_b], axis=1), ratio, **options),
        tau_b=estimate_of_means(np.stack([tau_b, known_b], axis=1), ratio, **options),
        ordered=estimate((c_b + d_b) / pairs, **options),
    )


def ratio(means_r2: np.ndarray) -> np.ndarray:
    """First over second mean, [R, 2] -> [R]; NaN where the second is 0."""
    over_r = means_r2[:, 1]
    return np.where(over_r > 0, means_r2[:, 0] / np.where(over_r > 0, over_r, 1.0), np.nan)
