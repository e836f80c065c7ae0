"""How far two rewards agree about which of two responses to a prompt is the better one.

Only pairs of responses to the same prompt are compared, so that a reward's offset for a prompt
changes nothing. Host arithmetic in numpy's float64.

    B  prompts     K  responses to each     R  resamples
"""

import numpy as np

from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate, ratio


def pair_counts(first_bk: np.ndarray, second_bk: np.ndarray) -> np.ndarray:
    """Counts of each prompt's K(K−1)/2 pairs, for two rewards [B, K] of the same responses.

    Returns [4, B] float64: pairs that both order the same way (concordant), one the other way round
    (discordant), pairs that the first reward orders (no tie), and that the second one does. Raises
    ValueError for shapes that differ or are not of rank 2.
    """
    if np.shape(first_bk) != np.shape(second_bk) or np.ndim(first_bk) != 2:
        raise ValueError(f"two rewards of shapes {np.shape(first_bk)} and {np.shape(second_bk)}")
    one, other = np.triu_indices(np.shape(first_bk)[1], 1)
    counts = []
    for rewards_2k in zip(first_bk, second_bk, strict=True):
        first, second = (np.sign(rewards_k[one] - rewards_k[other]) for rewards_k in rewards_2k)
        both = first * second
        counts.append([(both > 0).sum(), (both < 0).sum(), *map(np.count_nonzero, (first, second))])
    return np.asarray(counts, np.float64).reshape(-1, 4).T


def agreement(
    first_bk: np.ndarray, second_bk: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """The agreement of two rewards [B, K] of the same responses; nothing for K = 1.

    With C concordant and D discordant pairs of a prompt, and X and Y those that the first and the
    second reward order (do not tie): `agreement` is sum C / sum (C + D), over all prompts' pairs;
    `tau_b` (Kendall 1945, Biometrika 33) is (C − D) / sqrt(X·Y) of a prompt, averaged over the
    prompts with X·Y > 0; `ordered` is the share of pairs that both order. The first two are NaN
    where there is no such pair or prompt. Raises ValueError as `pair_counts` does.
    """
    c_b, d_b, x_b, y_b = pair_counts(first_bk, second_bk)
    pairs = np.shape(first_bk)[1] * (np.shape(first_bk)[1] - 1) / 2
    if not pairs:
        return {}
    known_b = x_b * y_b > 0
    tau_b = np.where(known_b, (c_b - d_b) / np.sqrt(np.where(known_b, x_b * y_b, 1.0)), 0.0)
    return {
        "agreement": bootstrap.estimate_of_means(np.stack([c_b, c_b + d_b], axis=1), ratio),
        "tau_b": bootstrap.estimate_of_means(np.stack([tau_b, known_b], axis=1), ratio),
        "ordered": bootstrap.estimate((c_b + d_b) / pairs),
    }
