"""The verdicts of a judge that compares two responses, on each pair in both orders.

A verdict is +1 where the judge takes the policy's response, −1 where it takes the baseline's, and
0 for a tie. Source of judging twice: Zheng et al. 2023 (MT-Bench, arXiv 2306.05685), section 3.4.

    B  prompts, one pair each
"""

import numpy as np

from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate, ratio


def scores(first_b: np.ndarray, second_b: np.ndarray) -> np.ndarray:
    """1, 0 or one half for each pair, [B] float64: the verdict of both orders, else one half.

    first_b are the verdicts with the policy's response in the first place, second_b those with it
    in the second, both in terms of the policy. Raises ValueError for anything but −1, 0 and 1.
    """
    first_b, second_b = np.asarray(first_b, np.float64), np.asarray(second_b, np.float64)
    if first_b.shape != second_b.shape or first_b.ndim != 1:
        raise ValueError(f"verdicts of shapes {first_b.shape} and {second_b.shape}")
    if not np.isin([first_b, second_b], (-1, 0, 1)).all():
        raise ValueError("a verdict is +1 (the policy), -1 (the baseline) or 0 (a tie)")
    return np.where(first_b == second_b, (first_b + 1) / 2, 0.5)


def summarise(
    first_b: np.ndarray, second_b: np.ndarray, margin_b: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Every number about B judged pairs, each with its interval over prompts.

    win_rate (the mean of `scores`) · ties (share that both orders call a tie) · disagreements
    (share whose orders differ; they count one half in the win rate) · position_bias
    (share of the 2B verdicts for the response in the first place minus the share for the one in
    the second: 1 for a judge that always takes the first, 0 for one that place does not move) ·
    reward_agreement (of the pairs that the judge decides and a reward orders, the share that both
    order the same way; NaN where there are none). margin_b is that reward of the policy's response
    minus that of the baseline's. Raises ValueError as `scores` does.
    """
    score_b = scores(first_b, second_b)
    first_b, second_b = np.asarray(first_b, np.float64), np.asarray(second_b, np.float64)
    values = {
        "win_rate": score_b,
        "ties": (first_b == 0) & (second_b == 0),
        "disagreements": first_b != second_b,
        "position_bias": (first_b - second_b) / 2,
    }
    summary = {name: bootstrap.estimate(value_b) for name, value_b in values.items()}
    both_b = (2 * score_b - 1) * np.sign(margin_b)
    columns_b2 = np.stack([both_b > 0, both_b != 0], axis=1)
    return summary | {"reward_agreement": bootstrap.estimate_of_means(columns_b2, ratio)}
