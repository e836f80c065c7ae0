"""vBoN: the policy is fitted to Best-of-N by backward KL, from its own samples.

Amini, Vieira, Ash, Cotterell, ICLR 2025, arXiv 2407.06057. With F(r) the share of the prompt's
reference responses whose reward is below r, it maximises

    E_{y ~ pi_theta}[ u(y) ] - beta KL(pi_theta || pi_ref),   beta = 1 / (N - 1),

    u(y) = log F(r(y))                                    bound "l1"
    u(y) = log[ pi_BoN(y) / pi_ref(y) ] / (N - 1)         bound "exact", whose optimum is pi_BoN

A step samples responses of the policy, scores them, takes u from their ranks among the cached
reference rewards of their prompt, lets the KL enter the reward of each token, makes advantages
(GAE with a value head, RLOO or GRPO: `config.gradient`), and minimises PPO's clipped surrogate.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import FrozenConfigDict

from vbon_jax.config import constants
from vbon_jax.functional import advantages, bon, cdf, logprobs, objectives
from vbon_jax.models import decoder
from vbon_jax.training import rollouts, value_head
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import RESPONSES, Task, token_log_probs
from vbon_jax.types import Array, InputError, Params, Sequences

CONSTANTS = (
    *RESPONSES,
    "gradient",
    "train.samples_per_prompt",
    "ppo.discount",
    "ppo.gae_lambda",
    "ppo.whiten_advantages",
    "ppo.clip",
    "ppo.value_clip",
    "ppo.value_coefficient",
)


class PPOBatch(NamedTuple):
    """Sampled responses, and log pi, advantages and values when they were sampled: [S, G]."""

    sequences: Sequences
    log_probs_sg: Array
    advantages_sg: Array
    values_sg: Array | None = None  # with a value head
    returns_sg: Array | None = None


def check(config) -> None:
    """Refuse a group of one where responses to one prompt are compared."""
    if config.gradient != "ppo" and config.train.samples_per_prompt < 2:
        raise InputError(
            f"gradient={config.gradient!r} compares the responses to one prompt: "
            f"train.samples_per_prompt={config.train.samples_per_prompt} must be at least 2"
        )


def transform(reward_bn: Array, reference_bm: Array, config) -> Array:
    """u: a function of a response's rank among its prompt's reference rewards. [B, N] float32."""
    law = {"reference_bm": reference_bm, "estimator": config.cdf.estimator}
    if config.bound == "l1":
        return bon.vbon_reward(cdf.log_cdf(reward_bn, **law), n=config.n, bound="l1")
    log_cdf = cdf.log_cdf(reward_bn, **law, ties="exclude")
    inclusive = cdf.log_cdf_inclusive(reward_bn, **law)
    return bon.vbon_reward(log_cdf, n=config.n, bound="exact", log_cdf_inclusive=inclusive)


def objective_weights(n: float) -> tuple[float, float]:
    """The weights of the reward and of the KL: (1, 1/(N-1)), or (N-1, 1) for N below 2.

    Both state the same objective; the larger weight is 1, so that N = 1 (stay at the reference)
    needs no infinite coefficient.
    """
    return (1.0, float(bon.kl_coefficient(n))) if n >= 2 else (n - 1.0, 1.0)


def batch(task: Task, state: TrainState, step: int, key: Array, *, transform=transform):
    """Sample, score, transform the reward, and weigh it against the KL: a batch for PPO."""
    config, index_b = task.config, rollouts.prompts_of(task, step)
    count = config.train.samples_per_prompt
    responses = rollouts.rollout(task, state.params["decoder"], index_b, key, num_samples=count)
    reference_bm = None if task.cache is None else task.cache.rewards_bn[index_b]
    transformed = np.asarray(transform(responses.rewards_bn, reference_bm, config))
    score = transformed
    if config.ppo.reward_clip:
        score = np.clip(score, -config.ppo.reward_clip, config.ppo.reward_clip)
    reward_weight, kl_weight = objective_weights(config.n)
    if step == 0 and config.gradient == "ppo":
        state = value_head.init_bias(state, reward_weight * float(score.mean()))
    ppo_batch, log_ratio_s = jax.device_get(
        with_advantages(
            state.params,
            task.reference_params,
            rollouts.sequences(task, responses),
            score.reshape(-1).astype(np.float32),
            np.float32(reward_weight),
            np.float32(kl_weight),
            model=task.model,
            constants=constants(config, CONSTANTS),
        )
    )
    kl = float(log_ratio_s.mean())
    metrics = rollouts.metrics(responses) | {
        "rollout/transformed_reward": float(transformed.mean()),
        "rollout/eos_rate": float(responses.finished_bn.mean()),
        "rollout/kl_sampled": kl,
        "rollout/kl_weight": kl_weight,
        "objective/mean": float(reward_weight * score.mean() - kl_weight * kl),
    }
    if config.gradient == "ppo":
        metrics["rollout/explained_variance"] = value_head.explained_variance(
            ppo_batch.sequences, ppo_batch.values_sg, ppo_batch.returns_sg
        )
    return state, ppo_batch, metrics


@functools.partial(jax.jit, static_argnames=("model", "constants"))
def with_advantages(
    params: Params,
    reference_params: Params,
    sequences: Sequences,
    score_s: Array,
    reward_weight: Array,
    kl_weight: Array,
    *,
    model: decoder.DecoderConfig,
    constants: FrozenConfigDict,
) -> tuple[PPOBatch, Array]:
    """Log-probabilities and advantages of fresh samples; the KL enters the reward here alone.

    `score_s` [S] is the (transformed) reward of each response. Returns the batch and each
    response's log pi_theta - log pi_ref, [S].
    """
    log_probs_sg, mask_sg, hidden_sgd = token_log_probs(
        model, constants, params["decoder"], sequences
    )
    reference_sg, _, _ = token_log_probs(model, constants, reference_params, sequences)
    weights = {"reward_weight": reward_weight, "kl_weight": kl_weight}
    rewards_sg = advantages.shaped_rewards(score_s, log_probs_sg, reference_sg, mask_sg, **weights)
    log_ratio_s = logprobs.sequence_log_probs(log_probs_sg - reference_sg, mask_sg)
    if constants.gradient != "ppo":
        groups = -1, constants.train.samples_per_prompt
        return_bn = rewards_sg.sum(axis=1).reshape(groups)
        if constants.gradient == "rloo":
            advantage_bn = advantages.rloo(return_bn)
        else:
            penalty_bn = (kl_weight * log_ratio_s).reshape(groups)
            advantage_bn = advantages.group_normalised(return_bn, penalty_bn)
        advantages_sg = jnp.where(mask_sg, advantage_bn.reshape(-1, 1), 0.0)
        return PPOBatch(sequences, log_probs_sg, advantages_sg), log_ratio_s
    ppo = constants.ppo
    values_sg = jnp.where(mask_sg, decoder.values(params["value"], hidden_sgd), 0.0)
    advantages_sg, returns_sg = advantages.gae(
        rewards_sg, values_sg, mask_sg, discount=ppo.discount, gae_lambda=ppo.gae_lambda
    )
    if ppo.whiten_advantages:
        advantages_sg = advantages.whiten(advantages_sg, mask_sg)
    return PPOBatch(sequences, log_probs_sg, advantages_sg, values_sg, returns_sg), log_ratio_s


def objective(model, constants: FrozenConfigDict, params: Params, batch: PPOBatch):
    """The clipped surrogate, and with a value head its clipped loss; means over response tokens."""
    log_probs_sg, mask_sg, hidden_sgd = token_log_probs(
        model, constants, params["decoder"], batch.sequences
    )
    policy, metrics = objectives.ppo_clip(
        log_probs_sg, batch.log_probs_sg, batch.advantages_sg, mask_sg, clip=constants.ppo.clip
    )
    terms = {"policy": (1.0, policy)}
    logged = {f"ppo/{name}": mean for name, mean in metrics.items()}
    if constants.gradient == "ppo":
        values_sg, clip = decoder.values(params["value"], hidden_sgd), constants.ppo.value_clip
        value, metrics = objectives.clipped_value_loss(
            values_sg, batch.values_sg, batch.returns_sg, mask_sg, clip=clip
        )
        terms["value"] = constants.ppo.value_coefficient, value
        logged |= {f"value/{name}": mean for name, mean in metrics.items()}
    return terms, logged
