"""The methods: a row each, that says how to make a batch and which objective reads it.

`METHODS` is the one dictionary from a method's name to its functions. To add a method is to write
an objective or a transform of the reward, and a row.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vbon_jax import data
from vbon_jax.functional import advantages, bon, cdf, logprobs, objectives
from vbon_jax.models import decoder, encoder, responses
from vbon_jax.rollout import references, sampler
from vbon_jax.train import offline, parallel
from vbon_jax.train.step import TrainState
from vbon_jax.types import Array, InputError, Mean, Params, Sequences


class Task(NamedTuple):
    """What a run works on; made once, never changed. What a method does not use is None."""

    config: Any  # ml_collections.ConfigDict
    model: decoder.DecoderConfig | encoder.EncoderConfig
    mesh: Mesh
    rows: tuple[np.ndarray, ...] = ()  # text methods: tokens, lengths (and labels), first axis rows
    prompts: data.PromptSet | None = None
    prompt_width: int = 0  # P, the same in every batch
    reference_params: Params | None = None
    reference_rewards_pm: np.ndarray | None = None  # [prompts, M] float32
    cache: references.References | None = None  # offline methods: all of the reference cache,
    cache_tokens_pmg: np.ndarray | None = None  # and its tokens [prompts, M, G] int32
    score: Callable | None = None  # (prompt ids, response ids) -> float32 rewards
    sampling: sampler.Sampling | None = None


class Method(NamedTuple):
    """A row of METHODS."""

    make_batch: Callable  # (task, state, step, key) -> (state, batch, metrics)
    objective: Callable  # (model, settings, params, batch) -> (terms, metrics)
    settings: Callable  # (config) -> a frozen dataclass, the objective's constants
    kind: str = "decoder"  # which network it trains
    source: str = "text"  # of its batches: text | rollouts (it samples) | references (the cache)
    uses_references: bool = False  # reads the reference cache

    @property
    def on_policy(self) -> bool:
        """Whether it samples, so that it needs prompts and a reward in the loop."""
        return self.source == "rollouts"


# ---------------------------------------------------------------------------- supervised methods


class TextBatch(NamedTuple):
    """Rows of text: tokens [R, T], lengths [R], and for a classifier labels [R]."""

    tokens_rt: Array
    lengths_r: Array
    labels_r: Array | None = None


def text_batch(task: Task, state: TrainState, step: int, key: Array):
    """The rows of this step: a pure function of (seed, step)."""
    rows = data.batch_indices(
        len(task.rows[0]), task.config.train.batch_size, seed=task.config.seed, step=step
    )
    batch = TextBatch(*(array[rows] for array in task.rows))
    return state, batch, {}


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """For objectives without constants."""


def sft_objective(model, settings: NoSettings, params: Params, batch: TextBatch):
    """Negative log-likelihood of every token behind the first, in nats a token."""
    logits = decoder.forward(model, params["decoder"], batch.tokens_rt[:, :-1])
    targets = batch.tokens_rt[:, 1:]
    mask = jnp.arange(targets.shape[1]) < batch.lengths_r[:, None] - 1
    loss = objectives.nll(logprobs.token_log_probs(logits, targets), mask)
    return {"nll": (1.0, loss)}, {"objective/mean": Mean(-loss.total, loss.weight)}


def reward_model_objective(model, settings: NoSettings, params: Params, batch: TextBatch):
    """Cross-entropy of a text classifier on labels."""
    logits_rc = encoder.classify(model, params["encoder"], batch.tokens_rt, batch.lengths_r)
    loss, metrics = objectives.cross_entropy(logits_rc, batch.labels_r)
    metrics = {f"classifier/{name}": mean for name, mean in metrics.items()}
    return {"cross_entropy": (1.0, loss)}, metrics | {
        "objective/mean": Mean(-loss.total, loss.weight)
    }


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
    log_probs, mask, hidden = responses.said(
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
        responses.said,
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


# ---------------------------------------------------------------------------- rollouts


class Rollout(NamedTuple):
    """What was sampled for a step: sequences (numpy), rewards [B, N], ids of the prompts [B]."""

    prompt_index_b: np.ndarray
    sequences: Sequences
    samples: Any
    rewards_bn: np.ndarray


def rollout(task: Task, params: Params, step: int, key: Array) -> Rollout:
    """Sample N responses to each prompt of this step and score their text."""
    train = task.config.train
    index = data.batch_indices(
        len(task.prompts.token_ids), train.batch_size, seed=task.config.seed, step=step
    )
    prompt_ids = [task.prompts.token_ids[i] for i in index]
    prompts = data.pad_prompts(prompt_ids, width=task.prompt_width)
    samples = jax.device_get(
        sampler.generate(
            task.model,
            params,
            parallel.shard_rows(prompts, task.mesh),
            parallel.shard_rows(sampler.prompt_keys(key, np.arange(len(index))), task.mesh),
            num_samples=train.samples_per_prompt,
            sampling=task.sampling,
        )
    )
    width = task.prompt_width + task.sampling.max_new_tokens
    responses_ids = [
        tokens[:length].tolist()
        for tokens, length in zip(
            samples.tokens_bng.reshape(-1, samples.tokens_bng.shape[-1]),
            samples.lengths_bn.reshape(-1),
            strict=True,
        )
    ]
    repeated = [ids for ids in prompt_ids for _ in range(train.samples_per_prompt)]
    rewards = task.score(repeated, responses_ids)
    return Rollout(
        index,
        data.sequences(prompts, samples, width=width),
        samples,
        rewards.reshape(samples.lengths_bn.shape),
    )


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
    fresh = rollout(task, state.params["decoder"], step, key)
    reference_bm = None
    if task.reference_rewards_pm is not None:
        reference_bm = task.reference_rewards_pm[fresh.prompt_index_b]
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
            parallel.shard_rows(fresh.sequences, task.mesh),
            parallel.shard_rows(score.reshape(-1).astype(np.float32), task.mesh),
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
        "budget/sampled_tokens": int(fresh.samples.lengths_bn.sum()),
        "budget/reward_calls": int(fresh.rewards_bn.size),
    }
    if config.gradient == "ppo":
        metrics["rollout/explained_variance"] = explained_variance(batch)
    return state._replace(kl_multiplier=jnp.float32(multiplier)), batch, metrics


def _offline(make_batch: Callable, objective: Callable) -> Method:
    return Method(
        make_batch=make_batch,
        objective=objective,
        settings=offline.settings,
        source="references",
        uses_references=True,
    )


METHODS = {
    "vbon": Method(
        make_batch=functools.partial(ppo_rollout_batch, transform=vbon_transform),
        objective=ppo_objective,
        settings=ppo_settings,
        source="rollouts",
        uses_references=True,
    ),
    "kl_rl": Method(
        make_batch=functools.partial(ppo_rollout_batch, transform=raw_transform),
        objective=ppo_objective,
        settings=ppo_settings,
        source="rollouts",
    ),
    "vbon_regression": _offline(offline.response_batch, offline.vbon_regression_objective),
    "bon_sft": _offline(offline.best_response_batch, offline.bon_sft_objective),
    "bonbon": _offline(offline.pair_batch, offline.bonbon_objective),
    "bonbon_released": _offline(offline.pair_batch, offline.bonbon_released_objective),
    "bonbon_calibrated": _offline(offline.pair_batch, offline.bonbon_calibrated_objective),
    "dpo": _offline(offline.pair_batch, offline.dpo_objective),
    "ipo": _offline(offline.pair_batch, offline.ipo_objective),
    "sft": Method(
        make_batch=text_batch, objective=sft_objective, settings=lambda config: NoSettings()
    ),
    "reward_model": Method(
        make_batch=text_batch,
        objective=reward_model_objective,
        settings=lambda config: NoSettings(),
        kind="encoder",
    ),
}


def method(name: str) -> Method:
    """The row of METHODS, or an InputError that lists them."""
    if name not in METHODS:
        raise InputError(f"method={name!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[name]
