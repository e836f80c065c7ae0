"""BOND and J-BOND: Best-of-N by both KLs, from its draws and from the policy's.

Sessa et al., ICLR 2025, arXiv 2407.14622. With beta = `bond.backward` they minimise

    (1 - beta) KL(pi_BoN || pi_theta) + beta KL(pi_theta || pi_BoN),

the first by -log pi_theta of draws from Best-of-N, the second by a policy gradient with the score
(N-1) log F(y) - log[pi_theta(y) / pi_ref(y)] minus that of the prompt's other responses. `bond`
takes Best-of-N from the reference cache; `j_bond` takes it from N draws of an anchor, the policy's
moving average, which takes the place of pi_ref; `bond.anchor_kl` weighs a further KL to it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import FrozenConfigDict

from vbon_jax.data import batching
from vbon_jax.functional import advantages, cdf, objectives, streams
from vbon_jax.training import cached_batches, rollouts
from vbon_jax.training.methods import vbon
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import RESPONSES, Task, joined, policy_log_probs
from vbon_jax.types import Array, InputError, Params, Responses, Sequences

CONSTANTS = (*RESPONSES, "bond.backward", "ppo.clip")


class BondBatch(NamedTuple):
    """Draws from Best-of-N and from the policy, [S] each."""

    best: Sequences
    sampled: Sequences
    old_log_probs_s: Array  # of `sampled` when it was drawn, nats
    advantage_s: Array  # times the weight of the backward KL


def check(config) -> None:
    """Refuse a step of one response, which has no other to be compared with."""
    if config.train.batch_size * config.train.samples_per_prompt < 2:
        raise InputError(
            f"{config.method} compares responses with each other: train.batch_size x "
            "train.samples_per_prompt must be at least 2"
        )


def batch(task: Task, state: TrainState, step: int, key: Array):
    """Best-of-N of the reference cache, and samples of the policy with log F from the cache."""
    config, params = task.config, state.params["decoder"]
    cached = cached_batches.cached_responses(task, step)
    draws = _draw(task, params, task.reference_params, cached.prompt_index_b, key)
    u_bn = vbon.transform(draws.responses.rewards_bn, cached.rewards_bn, config)
    score_s = (int(config.n) - 1) * np.asarray(u_bn).reshape(-1) - draws.log_ratio_s
    best = batching.take(cached, cached_batches.best_of_n(task, cached, step))
    advantage_s = minus_others(score_s, config.train.samples_per_prompt)
    bond_batch = BondBatch(
        rollouts.sequences(task, best),
        draws.sequences,
        draws.log_probs_s,
        config.bond.backward * advantage_s,
    )
    metrics = rollouts.metrics(draws.responses) | {
        "rollout/kl_sampled": float(draws.log_ratio_s.mean()),
        "objective/mean": float(score_s.mean()),
    }
    return state, bond_batch, metrics


def anchored_batch(task: Task, state: TrainState, step: int, key: Array):
    """Best-of-N of a moving anchor, and the policy's draws ranked among N draws of the anchor."""
    config, params = task.config, state.params["decoder"]
    n, count = int(config.n), config.train.samples_per_prompt
    anchor = _moved(state.anchor, params, np.float32(config.bond.anchor_rate))
    index_b = rollouts.prompts_of(task, step)
    anchor_key = streams.key("anchor", config.seed, step)
    draws = _draw(task, params, anchor, index_b, key)
    of_anchor = rollouts.rollout(task, anchor, index_b, anchor_key, num_samples=count * n)
    groups_sn = of_anchor.rewards_bn.reshape(-1, n)
    first_s = n * np.tile(np.arange(count), len(index_b))  # of each group, among its prompt's draws
    best_bs = (groups_sn.argmax(axis=1) + first_s).reshape(-1, count)
    rewards_s = draws.responses.rewards_bn.reshape(-1)
    log_cdf_s = np.asarray(cdf.log_cdf(rewards_s, groups_sn, estimator=config.cdf.estimator))
    backward, anchor_kl = config.bond.backward, config.bond.anchor_kl
    score_s = backward * ((n - 1) * log_cdf_s - draws.log_ratio_s) - anchor_kl * draws.log_ratio_s
    bond_batch = BondBatch(
        rollouts.sequences(task, batching.take(of_anchor, best_bs)),
        draws.sequences,
        draws.log_probs_s,
        minus_others(score_s, count),
    )
    metrics = rollouts.metrics(draws.responses) | {
        "rollout/kl_to_anchor": float(draws.log_ratio_s.mean()),
        "objective/mean": float(score_s.mean()),
    }
    for name in ("budget/sampled_tokens", "budget/reward_calls"):
        metrics[name] += rollouts.metrics(of_anchor)[name]
    return state._replace(anchor=anchor), bond_batch, metrics


class _Draws(NamedTuple):
    """Samples of the policy, [S] rows, their log pi and their log-ratio to a reference, nats."""

    responses: Responses
    sequences: Sequences
    log_probs_s: np.ndarray
    log_ratio_s: np.ndarray


def _draw(task: Task, params: Params, reference: Params, index_b: np.ndarray, key: Array) -> _Draws:
    count = task.config.train.samples_per_prompt
    responses = rollouts.rollout(task, params, index_b, key, num_samples=count)
    sequences = rollouts.sequences(task, responses)
    log_probs_s = rollouts.sequence_log_probs(task, params, sequences)
    reference_s = rollouts.sequence_log_probs(task, reference, sequences)
    return _Draws(responses, sequences, log_probs_s, log_probs_s - reference_s)


@jax.jit
def _moved(anchor: Params, params: Params, rate: Array) -> Params:
    """The anchor, a step of the moving average later."""
    return optax.incremental_update(params, anchor, rate)


def minus_others(score_s: np.ndarray, count: int) -> np.ndarray:
    """Minus the mean of the prompt's other responses; of the batch's, where a prompt has one."""
    groups = score_s.reshape(-1, count) if count > 1 else score_s.reshape(1, -1)
    return np.asarray(advantages.rloo(groups)).reshape(-1)


def objective(model, constants: FrozenConfigDict, params: Params, batch: BondBatch):
    """The Jeffreys mix: forward KL by draws from Best-of-N, backward KL by the policy's own."""
    log_probs_s = policy_log_probs(model, constants, params, joined(batch.best, batch.sampled))
    best_s, sampled_s = jnp.split(log_probs_s, 2)
    forward, _ = objectives.bon_sft(best_s)
    backward, metrics = objectives.policy_gradient(
        sampled_s, batch.old_log_probs_s, batch.advantage_s, clip=constants.ppo.clip
    )
    terms = {"forward": (1.0 - constants.bond.backward, forward), "backward": (1.0, backward)}
    return terms, {f"response/{name}": mean for name, mean in metrics.items()}
