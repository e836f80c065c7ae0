"""Maximum likelihood on the best of N: of the reference cache, or of the policy's own draws.

    bon_sft       -log pi_theta(b), b ~ Best-of-N of the cache
    bon_sft_kl    the same, plus lambda KL(pi_theta || pi_ref) estimated from cached responses
    raft          -log pi_theta(b), b the best of N draws of the policy (Dong et al., 2304.06767)

The j-th smallest of M cached rewards is the best of N of them with a chance of
C(j-1, N-1) / C(M, N), by which b is drawn; `bon_sft.select="best"` draws N and takes their best.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from vbon_jax.data import batching
from vbon_jax.functional import objectives
from vbon_jax.training import cached_batches, rollouts
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import RESPONSES, Task, joined, minimise, policy_log_probs
from vbon_jax.types import Array, Mean, Params, Responses, Sequences

CONSTANTS = RESPONSES
KL_CONSTANTS = (*RESPONSES, "bon_sft.kl_weight")


class BestAndAnyBatch(NamedTuple):
    """Draws from Best-of-N and as many of the reference, [S] rows each."""

    best: Sequences
    others: Sequences
    reference_s: np.ndarray  # log pi_ref of the others, nats


# ---------------------------------------------------------------------------- batches


def batch(task: Task, state: TrainState, step: int, key: Array):
    """S responses to each prompt, drawn from Best-of-N of its cached ones."""
    best = _best(task, cached_batches.cached_responses(task, step), step)
    return state, rollouts.sequences(task, best), cached_batches.metrics(best)


def kl_batch(task: Task, state: TrainState, step: int, key: Array):
    """S responses drawn from Best-of-N, and S of the reference, to each prompt."""
    responses = cached_batches.cached_responses(task, step)
    best = _best(task, responses, step)
    others = batching.take(responses, cached_batches.any_of(task, responses, step, draw=1))
    two = BestAndAnyBatch(
        *(rollouts.sequences(task, side) for side in (best, others)),
        others.log_probs_bng.sum(axis=-1).reshape(-1),
    )
    return state, two, cached_batches.metrics(best)


def raft_batch(task: Task, state: TrainState, step: int, key: Array):
    """The best of N draws of the policy to each prompt."""
    index_b, n = rollouts.prompts_of(task, step), int(task.config.n)
    responses = rollouts.rollout(task, state.params["decoder"], index_b, key, num_samples=n)
    best = batching.take(responses, responses.rewards_bn.argmax(axis=1)[:, None])
    metrics = rollouts.metrics(responses) | {"rollout/best_reward": float(best.rewards_bn.mean())}
    return state, rollouts.sequences(task, best), metrics


def _best(task: Task, responses: Responses, step: int) -> Responses:
    """By the weights of the order statistics, or as the best of N that are drawn."""
    if task.config.bon_sft.select == "best":
        places_bs = cached_batches.best_and_worst(task, responses, step)[0]
    else:
        places_bs = cached_batches.best_of_n(task, responses, step)
    return batching.take(responses, places_bs)


# ---------------------------------------------------------------------------- objectives


def objective(model, constants: FrozenConfigDict, params: Params, batch: Sequences):
    """Negative log-likelihood of the responses, nats each."""
    return minimise(*objectives.bon_sft(policy_log_probs(model, constants, params, batch)))


def kl_objective(model, constants: FrozenConfigDict, params: Params, batch: BestAndAnyBatch):
    """`objective`, and a KL to the reference, estimated from responses of the reference."""
    sequences = joined(batch.best, batch.others)
    best_s, other_s = jnp.split(policy_log_probs(model, constants, params, sequences), 2)
    nll, _ = objectives.bon_sft(best_s)
    kl, _ = objectives.kl_to_reference(other_s, batch.reference_s)
    weight = constants.bon_sft.kl_weight
    metrics = {"objective/mean": Mean(-nll.total - weight * kl.total, nll.weight)}
    return {"nll": (1.0, nll), "kl": (weight, kl)}, metrics
