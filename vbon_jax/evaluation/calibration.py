"""Whether a model's probabilities are as often right as they say."""

import numpy as np


def calibration_gaps(probability_b, correct_b, *, bins: int = 10) -> np.ndarray:
    """Each example's confidence less whether it was right, in the column of its bin: [B, bins].

    Their means over examples, in absolute value and summed, are the expected calibration error
    (`calibration_error`). Bins are of equal width from 0 to 1; the top of a bin belongs to it.

    Args:
        probability_b: of the class that was chosen, [B], in [0, 1].
        correct_b: whether it was right, [B] bool, or 0, 1 and one half for a tie.
        bins: how many.

    Raises:
        ValueError: different shapes, or a probability outside [0, 1].
    """
    probability_b = np.asarray(probability_b, np.float64)
    correct_b = np.asarray(correct_b, np.float64)
    if probability_b.ndim != 1 or probability_b.shape != correct_b.shape:
        raise ValueError(
            f"probability_b {probability_b.shape}, correct_b {correct_b.shape}: both are [B]"
        )
    if not ((probability_b >= 0) & (probability_b <= 1)).all():
        raise ValueError("probability_b has a number outside [0, 1]")
    bin_b = np.clip(np.ceil(probability_b * bins).astype(int) - 1, 0, bins - 1)
    gaps_bk = np.zeros((len(probability_b), bins))
    gaps_bk[np.arange(len(bin_b)), bin_b] = probability_b - correct_b
    return gaps_bk


def calibration_error(means_k: np.ndarray) -> np.ndarray:
    """The expected calibration error from the mean gaps [..., bins]: [...].

    Naeini et al. 2015 (AAAI), eq. 3; Guo et al. 2017, arXiv 1706.04599, eq. 3.
    """
    return np.abs(means_k).sum(axis=-1)
