"""BoNBoN: the policy learns from the best and the worst of N reference responses.

Gui, Garbacea, Veitch, NeurIPS 2024, arXiv 2406.00832. With b and w the best and the worst of N
responses of pi_ref to a prompt, and

    h = log[ pi_theta(b) / pi_ref(b) ] - log[ pi_theta(w) / pi_ref(w) ],

`bonbon` minimises    -alpha log pi_theta(b) + (1 - alpha) (h - (N-1) H_{N-1})^2

where (N-1) H_{N-1} = 1 / (2 beta*_N) is the mean of h under Best-of-N. Log-probabilities are summed
over a response's tokens. The variants: `bonbon_released` has the logistic loss of the released
code, -log sigma(beta*_N h), in place of the square; `bonbon_calibrated` aims at the h of each pair,
(N-1) (log F(b) - log F(w)); `online_bonbon` draws its pairs from the policy as it is.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from vbon_jax.data import batching
from vbon_jax.functional import objectives
from vbon_jax.training import cached_batches, rollouts
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import RESPONSES, Task, joined, minimise, policy_log_probs
from vbon_jax.types import Array, InputError, Params, Responses, Sequences

CONSTANTS = (*RESPONSES, "n", "pairs.alpha")


class PairBatch(NamedTuple):
    """The better and the worse of two responses, [S] pairs."""

    best: Sequences
    worst: Sequences
    reference_best_s: np.ndarray  # log pi_ref, nats
    reference_worst_s: np.ndarray
    target_s: np.ndarray  # (N-1) (log F(best) - log F(worst)), nats; 0 where F is not known
    weight_s: np.ndarray  # float32, 0 where both have the same reward


def check_calibrated(config) -> None:
    """Refuse given pairs for the variant whose targets are made from reference rewards."""
    if config.pairs.path:
        raise InputError(
            "pairs.path: bonbon_calibrated needs rewards, which given pairs do not have; use "
            "bonbon, dpo or ipo"
        )


# ---------------------------------------------------------------------------- batches


def batch(task: Task, state: TrainState, step: int, key: Array, *, targets: bool = False):
    """S pairs for each prompt: best and worst of N of its cached responses, or given pairs.

    With `targets` each pair's own gap under Best-of-N comes along.
    """
    if task.pairs is not None:
        return state, given_pairs(task, step), {}
    responses = cached_batches.cached_responses(task, step)
    best_bs, worst_bs, tied_bs = cached_batches.best_and_worst(task, responses, step)
    best, worst = (batching.take(responses, places) for places in (best_bs, worst_bs))
    target_bs = np.zeros(best_bs.shape)
    if targets:
        log_cdf_bm = cached_batches.log_cdf(task, responses)
        above_bs, below_bs = (
            np.take_along_axis(log_cdf_bm, places, axis=1) for places in (best_bs, worst_bs)
        )
        target_bs = (task.config.n - 1) * (above_bs - below_bs)
    pairs = PairBatch(
        *(rollouts.sequences(task, side) for side in (best, worst)),
        *(side.log_probs_bng.sum(axis=-1).reshape(-1) for side in (best, worst)),
        target_s=target_bs.astype(np.float32).reshape(-1),
        weight_s=(~tied_bs).astype(np.float32).reshape(-1),
    )
    return state, pairs, {"pairs/tied": float(tied_bs.mean())}


calibrated_batch = functools.partial(batch, targets=True)


def online_batch(task: Task, state: TrainState, step: int, key: Array):
    """One pair for each prompt: the best and the worst of N draws of the policy."""
    index_b, n = rollouts.prompts_of(task, step), int(task.config.n)
    responses = rollouts.rollout(task, state.params["decoder"], index_b, key, num_samples=n)
    rewards_bn = responses.rewards_bn
    sides = [
        rollouts.sequences(task, batching.take(responses, place_b[:, None]))
        for place_b in (rewards_bn.argmax(axis=1), rewards_bn.argmin(axis=1))
    ]
    tied_b = rewards_bn.max(axis=1) == rewards_bn.min(axis=1)
    pairs = _pairs(task, sides, weight_s=(~tied_b).astype(np.float32))
    return state, pairs, rollouts.metrics(responses) | {"pairs/tied": float(tied_b.mean())}


def given_pairs(task: Task, step: int) -> PairBatch:
    """The preferences of `pairs.path` that a step takes."""
    train, pairs, seed = task.config.train, task.pairs, task.config.seed
    rows = train.batch_size * train.samples_per_prompt
    index_s = batching.batch_indices(len(pairs.prompt_ids), rows, seed=seed, step=step)

    def padded(ids: list[tuple[int, ...]], width: int):
        return batching.pad_prompts([ids[i] for i in index_s], width=width)

    def side(ids: list[tuple[int, ...]]) -> Sequences:
        tokens_sg, lengths_s = padded(ids, task.sampling.max_new_tokens)
        responses = Responses(tokens_sg[:, None], lengths_s[:, None], None, None)
        return batching.sequences(padded(pairs.prompt_ids, task.prompt_width), responses)

    sides = [side(pairs.chosen_ids), side(pairs.rejected_ids)]
    return _pairs(task, sides, weight_s=np.ones(len(index_s), np.float32))


def _pairs(task: Task, sides: list[Sequences], *, weight_s: np.ndarray) -> PairBatch:
    """Pairs that are not of the cache: their log pi_ref is computed here."""
    reference = [rollouts.sequence_log_probs(task, task.reference_params, side) for side in sides]
    return PairBatch(*sides, *reference, target_s=np.zeros_like(weight_s), weight_s=weight_s)


# ---------------------------------------------------------------------------- objectives


def pair_log_probs(
    model, constants: FrozenConfigDict, params: Params, batch: PairBatch
) -> list[Array]:
    """log pi of best and worst, log pi_ref of best and worst: [S] each, nats."""
    log_probs_s = policy_log_probs(model, constants, params, joined(batch.best, batch.worst))
    return [*jnp.split(log_probs_s, 2), batch.reference_best_s, batch.reference_worst_s]


def objective(model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    """The paper's: the best's likelihood, and the square around the mean gap."""
    return _of_n(objectives.bonbon, model, constants, params, batch)


def released_objective(model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    """The released code's: DPO's loss at beta*_N in place of the square."""
    return _of_n(objectives.bonbon_released, model, constants, params, batch)


def _of_n(loss, model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    log_probs = pair_log_probs(model, constants, params, batch)
    n, alpha = int(constants.n), constants.pairs.alpha
    return minimise(*loss(*log_probs, n=n, alpha=alpha, weight_b=batch.weight_s))


def calibrated_objective(model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    """The square around the gap that Best-of-N itself has for each pair."""
    log_probs = pair_log_probs(model, constants, params, batch)
    alpha, weight_s = constants.pairs.alpha, batch.weight_s
    loss = objectives.bonbon_calibrated(*log_probs, batch.target_s, alpha=alpha, weight_b=weight_s)
    return minimise(*loss)
