"""`vbon` and `kl_rl`: PPO, RLOO or GRPO on a reward of the policy's own draws.

The KL to the reference enters the reward, here and nowhere else.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import advantages, bon, cdf, logprobs, objectives
from vbon_jax.models import decoder
from vbon_jax.models.log_probs import response_log_probs
from vbon_jax.training import sharding
from vbon_jax.training.rollouts import prompts_of, rollout
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import Method, Task
from vbon_jax.types import Array, InputError, Params, Sequences

# ---------------------------------------------------------------------------- PPO, RLOO, GRPO


@dataclasses.dataclass(frozen=True)
class PPO:
    """Constants of PPO's surrogate, and of what its advantages are made from."""

    gradient: str  # ppo: GAE with a value head | rloo, grpo: against the prompt's other responses
    group_size: int  # responses to each prompt
    new_tokens: int
    temperature: float
    discount: float
    gae_lambda: float
    clip: float
    value_clip: float
    value_coefficient: float
    whiten_advantages: bool


class PPOBatch(NamedTuple):
    """Sequences, and what the policy that sampled them thought of them, [S, G] float32 each."""

    sequences: Sequences
    log_probs_sg: Array
    advantages_sg: Array
    values_sg: Array | None = None  # with a value head
    returns_sg: Array | None = None


def ppo_settings(config) -> PPO:
    """PPO's constants from `config.gradient`, `config.ppo`, `config.train` and `config.sampling`.

    Raises InputError for an unknown gradient, and for a group of one.
    """
    if config.gradient not in ("ppo", "rloo", "grpo"):
        raise InputError(f"gradient={config.gradient!r}; choose one of ppo, rloo, grpo")
    if config.gradient != "ppo" and config.train.samples_per_prompt < 2:
        raise InputError(
            f"gradient={config.gradient!r} compares the responses to one prompt: "
            f"train.samples_per_prompt={config.train.samples_per_prompt} must be at least 2"
        )
    return PPO(
        gradient=config.gradient,
        group_size=config.train.samples_per_prompt,
        new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        discount=config.ppo.discount,
        gae_lambda=config.ppo.gae_lambda,
        clip=config.ppo.clip,
        value_clip=config.ppo.value_clip,
        value_coefficient=config.ppo.value_coefficient,
        whiten_advantages=config.ppo.whiten_advantages,
    )


def ppo_objective(model, settings: PPO, params: Params, batch: PPOBatch):
    """The clipped surrogate, and with a value head its clipped loss; means over response tokens."""
    log_probs, mask, hidden = response_log_probs(
        model,
        params["decoder"],
        batch.sequences,
        new_tokens=settings.new_tokens,
        temperature=settings.temperature,
    )
    policy, metrics = objectives.ppo_clip(
        log_probs, batch.log_probs_sg, batch.advantages_sg, mask, clip=settings.clip
    )
    terms = {"policy": (1.0, policy)}
    named = {f"ppo/{name}": mean for name, mean in metrics.items()}
    if settings.gradient == "ppo":
        value, metrics = objectives.clipped_value_loss(
            decoder.values(params["value"], hidden),
            batch.values_sg,
            batch.returns_sg,
            mask,
            clip=settings.value_clip,
        )
        terms["value"] = settings.value_coefficient, value
        named |= {f"value/{name}": mean for name, mean in metrics.items()}
    return terms, named


@functools.partial(jax.jit, static_argnames=("model", "settings"))
def ppo_batch(
    params: Params,
    reference_params: Params,
    sequences: Sequences,
    score_s: Array,
    reward_weight: Array,
    kl_weight: Array,
    *,
    model: decoder.DecoderConfig,
    settings: PPO,
) -> tuple[PPOBatch, Array]:
    """Log-probabilities and advantages (and values) of fresh samples; KL enters the reward here.

    score_s [S] is the (transformed) reward of each response. Returns the batch and each
    response's log pi_theta - log pi_ref, [S].
    """
    said = functools.partial(
        response_log_probs,
        model,
        sequences=sequences,
        new_tokens=settings.new_tokens,
        temperature=settings.temperature,
    )
    log_probs, mask, hidden = said(params["decoder"])
    reference_log_probs, _, _ = said(reference_params)
    rewards = advantages.shaped_rewards(
        score_s,
        log_probs,
        reference_log_probs,
        mask,
        reward_weight=reward_weight,
        kl_weight=kl_weight,
    )
    log_ratio_s = logprobs.sequence_log_probs(log_probs - reference_log_probs, mask)
    if settings.gradient != "ppo":
        compare = {"rloo": advantages.rloo, "grpo": advantages.group_normalised}[settings.gradient]
        advantages_s = compare(rewards.sum(axis=1).reshape(-1, settings.group_size)).reshape(-1, 1)
        return PPOBatch(sequences, log_probs, jnp.where(mask, advantages_s, 0.0)), log_ratio_s
    values = jnp.where(mask, decoder.values(params["value"], hidden), 0.0)
    advantages_sg, returns_sg = advantages.gae(
        rewards, values, mask, discount=settings.discount, gae_lambda=settings.gae_lambda
    )
    if settings.whiten_advantages:
        advantages_sg = advantages.whiten(advantages_sg, mask)
    return PPOBatch(sequences, log_probs, advantages_sg, values, returns_sg), log_ratio_s


# ---------------------------------------------------------------------------- rewards of a method


def vbon_transform(score_bn: Array, reference_bm: Array | None, config) -> Array:
    """vBoN's reward: a function of a response's rank among its prompt's reference rewards.

    arXiv 2407.06057, the L1 bound (log F) or the exact log-ratio over N - 1. [B, N] float32.
    """
    estimator = config.cdf.estimator
    if config.bound == "l1":
        log_cdf = cdf.log_cdf(score_bn, reference_bm, estimator=estimator)
        return bon.vbon_reward(log_cdf, n=config.n, bound="l1")
    return bon.vbon_reward(
        cdf.log_cdf(score_bn, reference_bm, estimator=estimator, ties="exclude"),
        n=config.n,
        bound=config.bound,
        log_cdf_inclusive=cdf.log_cdf_inclusive(score_bn, reference_bm, estimator=estimator),
    )


def raw_transform(score_bn: Array, reference_bm: Array | None, config) -> Array:
    """KL-constrained RL's reward: the reward itself."""
    return score_bn


def objective_weights(n: float) -> tuple[float, float]:
    """The weights of the reward and of the KL: (1, 1/(N-1)), or (N-1, 1) for N below 2.

    Both state the same objective; the larger weight is 1, so that N = 1 (stay at the reference)
    needs no infinite coefficient.
    """
    return (1.0, float(bon.kl_coefficient(n))) if n >= 2 else (n - 1.0, 1.0)


def controlled(multiplier: float, kl: float, rows: int, *, target: float, horizon: float) -> float:
    """The adaptive KL controller of Ziegler et al. (arXiv 1909.08593, section 2.2).

    `kl` and `target` in nats a response, `horizon` in responses. A target of 0 turns it off.
    """
    if not target:
        return multiplier
    return multiplier * (1.0 + float(np.clip(kl / target - 1.0, -0.2, 0.2)) * rows / horizon)


def _centred(state: TrainState, mean_return: float) -> TrainState:
    """The value head starts at the mean return of the first batch.

    From zero, GAE's first advantages would be a function of a token's position alone, and the
    policy would spend KL on the length of its responses before it learns anything of the reward.
    """
    value = state.params["value"]
    bias = jax.device_put(np.full_like(value["bias"], mean_return), value["bias"].sharding)
    return state._replace(params=state.params | {"value": value | {"bias": bias}})


def explained_variance(batch: PPOBatch) -> float:
    """1 - Var(R - V) / Var(R) over response tokens: 1 is a perfect value head, 0 a constant."""
    lengths_s = batch.sequences.lengths_s - batch.sequences.prompt_lengths_s
    inside_sg = np.arange(batch.returns_sg.shape[1]) < lengths_s[:, None]
    returns, values = batch.returns_sg[inside_sg], batch.values_sg[inside_sg]
    spread = float(np.var(returns))
    return 1.0 - float(np.var(returns - values)) / spread if spread else 0.0


def ppo_rollout_batch(task: Task, state: TrainState, step: int, key: Array, *, transform):
    """Sample, score, transform the reward, and weigh against the reference: a batch for PPO."""
    config = task.config
    fresh = rollout(
        task,
        state.params["decoder"],
        prompts_of(task, step),
        key,
        num_samples=config.train.samples_per_prompt,
    )
    reference_bm = None
    if task.cache is not None:
        reference_bm = task.cache.rewards_pm[fresh.prompt_index_b]
    transformed = np.asarray(transform(fresh.rewards_bn, reference_bm, config))
    score = transformed - config.ppo.missing_eos_penalty * ~fresh.samples.finished_bn
    if config.ppo.reward_clip:
        score = np.clip(score, -config.ppo.reward_clip, config.ppo.reward_clip)
    reward_weight, kl_weight = objective_weights(config.n)
    if step == 0 and config.gradient == "ppo":
        state = _centred(state, reward_weight * float(score.mean()))
    kl_weight = kl_weight * float(state.kl_multiplier)
    batch, log_ratio = jax.device_get(
        ppo_batch(
            state.params,
            task.reference_params,
            sharding.shard_rows(fresh.sequences, task.mesh),
            sharding.shard_rows(score.reshape(-1).astype(np.float32), task.mesh),
            np.float32(reward_weight),
            np.float32(kl_weight),
            model=task.model,
            settings=ppo_settings(config),
        )
    )
    kl = float(log_ratio.mean())
    multiplier = controlled(
        float(state.kl_multiplier),
        kl,
        log_ratio.size,
        target=config.ppo.kl_target,
        horizon=config.ppo.kl_horizon,
    )
    metrics = {
        "rollout/reward": float(fresh.rewards_bn.mean()),
        "rollout/transformed_reward": float(transformed.mean()),
        "rollout/kl": kl,
        "rollout/length": float(fresh.samples.lengths_bn.mean()),
        "rollout/eos_rate": float(fresh.samples.finished_bn.mean()),
        "rollout/kl_weight": kl_weight,
        "objective/mean": float(reward_weight * score.mean() - kl_weight * kl),
    } | fresh.cost
    if config.gradient == "ppo":
        metrics["rollout/explained_variance"] = explained_variance(batch)
    return state._replace(kl_multiplier=jnp.float32(multiplier)), batch, metrics


ROWS = {
    "vbon": Method(
        make_batch=functools.partial(ppo_rollout_batch, transform=vbon_transform),
        objective=ppo_objective,
        settings=ppo_settings,
        source="rollouts",
        reads="rewards",
        by_gradient=True,
    ),
    "kl_rl": Method(
        make_batch=functools.partial(ppo_rollout_batch, transform=raw_transform),
        objective=ppo_objective,
        settings=ppo_settings,
        source="rollouts",
        by_gradient=True,
    ),
}
