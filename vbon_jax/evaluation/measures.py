"""The numbers of a policy and its distance to Best-of-N: the same for every method.

Every number is a function of means over prompts, and prompts are what its interval is over: the
K samples of a prompt are one cluster, never K independent observations.

    K  samples per prompt of the policy under evaluation      G  (in curves) values of N
"""

import functools
import itertools
from collections.abc import Hashable, Sequence

import numpy as np

from vbon_jax.evaluation.bon_curve import Curve, curve, kl_at, win_rate_at
from vbon_jax.evaluation.bootstrap import (
    RESAMPLES,
    Estimate,
    estimate,
    estimate_of_means,
    from_resamples,
    resampled_means,
)
from vbon_jax.evaluation.measured_responses import MeasuredResponses, token_lists


def win_rates(rewards_bk: np.ndarray, reference_bm: np.ndarray) -> np.ndarray:
    """The share of ALL M cached rewards of its prompt that each reward beats, [B, K] float64.

    A tie counts one half. Raises ValueError when the prompts are not the same ones.
    """
    rewards_bk, reference_bm = np.asarray(rewards_bk), np.asarray(reference_bm)
    if len(rewards_bk) != len(reference_bm):
        raise ValueError(f"{len(rewards_bk)} prompts, and cached rewards of {len(reference_bm)}")
    sorted_bm = np.sort(reference_bm, axis=1)
    twice_bk = [
        np.searchsorted(sorted_m, rewards_k, "left") + np.searchsorted(sorted_m, rewards_k, "right")
        for sorted_m, rewards_k in zip(sorted_bm, rewards_bk, strict=True)
    ]
    return np.stack(twice_bk) / (2.0 * reference_bm.shape[1])


def distinct_2(responses: Sequence[Sequence[int]]) -> float:
    """Distinct bigrams of one prompt's K responses over all their bigrams (Li et al. 2016).

    `responses` are lists of token ids; no bigram reaches across two of them. 0 where there is no
    bigram at all: one-token responses have no variety.
    """
    bigrams = [pair for ids in responses for pair in itertools.pairwise(ids)]
    return len(set(bigrams)) / len(bigrams) if bigrams else 0.0


def perplexity(means_r2: np.ndarray) -> np.ndarray:
    """exp(nats per token) of means (log-likelihood, tokens), [R, 2] -> [R]."""
    return np.exp(-means_r2[:, 0] / means_r2[:, 1])


def summarise(
    measured: MeasuredResponses,
    reference_bm: np.ndarray,
    best: Curve | None = None,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[str, Estimate]:
    """Every number about a policy, each with its standard error and 95 % interval over prompts.

    reward · win_rate (against all M cached rewards [B, M]) · kl (nats a response) · length (tokens)
    · eos_rate · distinct2 · perplexity (of the responses under the reference at its temperature:
    exp of total negative log-likelihood over total tokens) · bon_win_rate_at_kl (Best-of-N's win
    rate at this policy's KL) · deficit (that minus this policy's win rate: 0 on the curve, positive
    below it). The last two and perplexity resample prompts jointly: win rate, KL and the Best-of-N
    curve are those of the same prompts. `best` is `curve(reference_bm)`, where it is at hand.
    Raises ValueError as `resampled_means` does.
    """
    best = curve(reference_bm) if best is None else best
    responses = measured.responses
    kl_bk = np.asarray(measured.kl_bn, np.float64)
    win_bk = win_rates(responses.rewards_bn, reference_bm)
    values = {
        "reward": responses.rewards_bn,
        "win_rate": win_bk,
        "kl": kl_bk,
        "length": responses.lengths_bn,
        "eos_rate": responses.finished_bn,
        "distinct2": [distinct_2(of_prompt) for of_prompt in token_lists(responses)],
    }
    measure = functools.partial(estimate, seed=seed, resamples=resamples)
    summary = {name: measure(value) for name, value in values.items()}

    joint = functools.partial(estimate_of_means, seed=seed, resamples=resamples)
    sums = [measured.reference_log_probs_bn.sum(axis=1), responses.lengths_bn.sum(axis=1)]
    summary["perplexity"] = joint(np.stack(sums, axis=1), perplexity)
    means_b2 = np.stack([kl_bk.mean(axis=1), win_bk.mean(axis=1)], axis=1)
    columns_bc = np.concatenate([means_b2, best.kl_bg, best.win_rate_bg], axis=1)
    summary["bon_win_rate_at_kl"] = joint(columns_bc, _best_win_rate)
    summary["deficit"] = joint(columns_bc, lambda rc: _best_win_rate(rc) - rc[:, 1])
    return summary


def group_means(
    kl_bp: np.ndarray,
    win_rate_bp: np.ndarray,
    reward_bp: np.ndarray,
    groups: Sequence[Hashable],
    best: Curve,
    *,
    seed: int,
    resamples: int = RESAMPLES,
) -> dict[Hashable, dict[str, Estimate]]:
    """KL, win rate, reward, deficit and efficiency of groups of policies (a method over its seeds).

    kl_bp, win_rate_bp, reward_bp [B, P]: the means of each prompt for each of P policies, `groups`
    which group each is in, `best` the curve of the same B prompts. All are means over the group; a
    deficit is a policy's own, at its own KL. The efficiency is the KL that Best-of-N needs for the
    policies' win rates over the KL that they have: 1 on the curve, 0 where nothing is won. Near the
    reference a step twice as long wins twice as much for four times the KL, which leaves it as it
    is, so it compares policies that have gone unequally far. Intervals resample prompts, the same
    for all policies and the curve, and leave out the spread over seeds. Groups in order of
    first appearance. Raises ValueError as `resampled_means` does.
    """
    policies, points = len(groups), len(best.n_g)
    columns_bc = np.concatenate(
        [kl_bp, win_rate_bp, reward_bp, best.kl_bg, best.win_rate_bg], axis=1
    )
    ends = np.cumsum([policies, policies, policies, points])

    def statistics(means_rc: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Each group's numbers, [R] each."""
        kl_rp, win_rp, reward_rp, kl_rg, win_rg = np.split(means_rc, ends, axis=1)
        best_rp = [win_rate_at(*row) for row in zip(kl_rp, kl_rg, win_rg, strict=True)]
        needed_rp = [kl_at(*row) for row in zip(win_rp, kl_rg, win_rg, strict=True)]
        values = {
            "kl": kl_rp,
            "win_rate": win_rp,
            "reward": reward_rp,
            "deficit": np.asarray(best_rp) - win_rp,
            "needed": np.asarray(needed_rp),
        }
        means_g = []
        for members in members_g:
            mean = {name: value_rp[:, members].mean(axis=1) for name, value_rp in values.items()}
            needed_r = mean.pop("needed")
            means_g.append(mean | {"efficiency": needed_r / mean["kl"]})
        return means_g

    names = list(dict.fromkeys(groups))
    members_g = [[p for p, group in enumerate(groups) if group == name] for name in names]
    observed = statistics(columns_bc.mean(axis=0, keepdims=True))
    resampled = statistics(resampled_means(columns_bc, seed=seed, resamples=resamples))
    return {
        name: {key: from_resamples(value[key][0], value_r[key]) for key in value}
        for name, value, value_r in zip(names, observed, resampled, strict=True)
    }


def _best_win_rate(means_rc: np.ndarray) -> np.ndarray:
    """Best-of-N's win rate at the KL of means (KL, win rate, curve's KLs, its win rates)."""
    points = (means_rc.shape[1] - 2) // 2
    split = means_rc[:, 2 : 2 + points], means_rc[:, 2 + points :]
    return np.asarray(
        [win_rate_at(kl, *points) for kl, *points in zip(means_rc[:, 0], *split, strict=True)]
    )
