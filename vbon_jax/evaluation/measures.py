"""The numbers of a policy and its distance to Best-of-N: the same for every method.

Every number is a function of means over prompts, and prompts are what its interval is over: the
K samples of a prompt are one cluster, never K independent observations.

    K  samples per prompt of the policy under evaluation      G  (in curves) values of N
"""

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from vbon_jax.evaluation.best_of_n import wins
from vbon_jax.evaluation.bon_curve import Curve, curve, kl_at, win_rate_at
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate, ratio
from vbon_jax.types import Responses


class MeasuredResponses(NamedTuple):
    """K responses to each of B prompts, with rewards, and what else is measured on them."""

    responses: Responses
    kl_bn: np.ndarray  # float32, nats a response, see `sampled_policy.score_sequences`
    reference_log_probs_bn: np.ndarray  # float32, nats a response


def win_rates(rewards_bk: np.ndarray, reference_bm: np.ndarray) -> np.ndarray:
    """The share of ALL M cached rewards of its prompt that each reward beats, [B, K] float64.

    A tie counts one half. Raises ValueError when the prompts are not the same ones.
    """
    rewards_bk, reference_bm = np.asarray(rewards_bk), np.asarray(reference_bm)
    if len(rewards_bk) != len(reference_bm):
        raise ValueError(f"{len(rewards_bk)} prompts, and cached rewards of {len(reference_bm)}")
    both = zip(rewards_bk, reference_bm, strict=True)
    return np.stack(
        [wins(rewards_k[:, None], rewards_m).mean(axis=1) for rewards_k, rewards_m in both]
    )


def token_lists(responses: Responses) -> list[list[list[int]]]:
    """The token ids of each prompt's responses, without padding."""
    prompts, samples = responses.lengths_bn.shape
    ids = responses.token_ids()
    return [ids[b * samples : (b + 1) * samples] for b in range(prompts)]


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
    measured: MeasuredResponses, reference_bm: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Estimate]:
    """Every number about a policy, each with its standard error and 95 % interval over prompts.

    reward · win_rate (against all M cached rewards [B, M]) · kl (nats a response) · length (tokens)
    · eos_rate · distinct2 · perplexity (of the responses under the reference at its temperature:
    exp of total negative log-likelihood over total tokens) · bon_win_rate_at_kl (Best-of-N's win
    rate at this policy's KL) · deficit (that minus this policy's win rate: 0 on the curve, positive
    below it). The last two and perplexity resample prompts jointly: win rate, KL and the Best-of-N
    curve are those of the same prompts.
    """
    best, responses = curve(reference_bm), measured.responses
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
    summary = {name: bootstrap.estimate(value) for name, value in values.items()}
    sums = [measured.reference_log_probs_bn.sum(axis=1), responses.lengths_bn.sum(axis=1)]
    summary["perplexity"] = bootstrap.estimate_of_means(np.stack(sums, axis=1), perplexity)
    means_b2 = np.stack([kl_bk.mean(axis=1), win_bk.mean(axis=1)], axis=1)
    columns_bc = np.concatenate([means_b2, best.kl_bg, best.win_rate_bg], axis=1)
    return summary | bootstrap.estimates_of_means(columns_bc, _distance)


def _distance(means_rc: np.ndarray) -> dict[str, np.ndarray]:
    """Best-of-N's win rate at a policy's KL, from means (KL, win rate, the curve's two)."""
    kl_r, win_rate_r = means_rc[:, 0], means_rc[:, 1]
    best_r = _on_curve(win_rate_at, kl_r, *np.split(means_rc[:, 2:], 2, axis=1))
    return {"bon_win_rate_at_kl": best_r, "deficit": best_r - win_rate_r}


def group_means(
    means: Mapping[str, np.ndarray], groups: Sequence[Hashable], best: Curve, bootstrap: Bootstrap
) -> dict[Hashable, dict[str, Estimate]]:
    """KL, win rate, reward, deficit and efficiency of groups of policies (a method over its seeds).

    `means` has the kl, win_rate and reward of each prompt for each of P policies, [B, P] each,
    `groups` which group each policy is in, `best` is the curve of the same B prompts. All are means
    over the group; a deficit is a policy's own, at its own KL. The efficiency is the KL that
    Best-of-N needs for the policies' win rates over the KL that they have: 1 on the curve, 0 where
    nothing is won, NaN where there is no KL. Near the reference a step twice as long wins twice as
    much for four times the KL, which leaves it as it is, so it compares policies that have gone
    unequally far. Intervals resample prompts, the same for all policies and the curve, and leave
    out the spread over seeds. Groups in order of first appearance.
    """
    columns = [means[name] for name in ("kl", "win_rate", "reward")]
    columns_bc = np.concatenate([*columns, best.kl_bg, best.win_rate_bg], axis=1)
    members = {
        name: [p for p, group in enumerate(groups) if group == name]
        for name in dict.fromkeys(groups)
    }

    def statistics(means_rc: np.ndarray) -> dict[Hashable, np.ndarray]:
        of_policies, curve_rc = np.split(means_rc, [3 * len(groups)], axis=1)
        kl_rp, win_rp, reward_rp = np.split(of_policies, 3, axis=1)
        curve = np.split(curve_rc, 2, axis=1)
        deficit_rp = _on_curve(win_rate_at, kl_rp, *curve) - win_rp
        values = {"kl": kl_rp, "win_rate": win_rp, "reward": reward_rp, "deficit": deficit_rp}
        needed_rp = _on_curve(kl_at, win_rp, *curve)
        numbers = {}
        for name, of_group in members.items():
            for key, value_rp in values.items():
                numbers[name, key] = value_rp[:, of_group].mean(axis=1)
            both = needed_rp[:, of_group].mean(axis=1), numbers[name, "kl"]
            numbers[name, "efficiency"] = ratio(np.stack(both, axis=1))
        return numbers

    estimates = bootstrap.estimates_of_means(columns_bc, statistics)
    return {
        name: {key: value for (group, key), value in estimates.items() if group == name}
        for name in members
    }


def _on_curve(read: Callable, values_rp, kl_rg, win_rate_rg) -> np.ndarray:
    """`read` (`win_rate_at` or `kl_at`) of each resample's values, on its own curve."""
    return np.stack([read(*row) for row in zip(values_rp, kl_rg, win_rate_rg, strict=True)])
