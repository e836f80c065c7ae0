"""Responses sampled inside a run: to the prompts of a step, with rewards."""

from typing import NamedTuple

import jax
import numpy as np

from vbon_jax.data import batching
from vbon_jax.models.log_probs import sequence_log_probs
from vbon_jax.sampling import sampler
from vbon_jax.training import sharding
from vbon_jax.training.task import Task
from vbon_jax.types import Array, Params, Responses, Sequences


class Rollout(NamedTuple):
    """N responses to each of B prompts: sequences (numpy), samples, rewards."""

    prompt_index_b: np.ndarray  # [B] int64
    sequences: Sequences  # [B * N] rows
    samples: Responses  # numpy
    rewards_bn: np.ndarray  # [B, N] float32

    @property
    def cost(self) -> dict[str, int]:
        """What was spent, as metrics of a step."""
        return {
            "budget/sampled_tokens": int(self.samples.lengths_bn.sum()),
            "budget/reward_calls": int(self.rewards_bn.size),
        }


def prompts_of(task: Task, step: int) -> np.ndarray:
    """Which prompts a step takes, [B]: a pure function of (seed, step)."""
    train = task.config.train
    return batching.batch_indices(
        len(task.prompts.token_ids), train.batch_size, seed=task.config.seed, step=step
    )


def rollout(
    task: Task, params: Params, index_b: np.ndarray, key: Array, *, num_samples: int, rows=None
) -> Rollout:
    """Sample `num_samples` responses to each prompt and score their text.

    Row i of the batch draws from `key` and `rows[i]`, its place unless it is given.
    """
    prompt_ids = [task.prompts.token_ids[i] for i in index_b]
    prompts = batching.pad_prompts(prompt_ids, width=task.prompt_width)
    rows = np.arange(len(index_b)) if rows is None else rows
    samples = jax.device_get(
        sampler.generate(
            task.model,
            params,
            sharding.shard_rows(prompts, task.mesh),
            sharding.shard_rows(sampler.prompt_keys(key, rows), task.mesh),
            num_samples=num_samples,
            sampling=task.sampling,
        )
    )
    response_ids = [
        tokens[:length].tolist()
        for tokens, length in zip(
            samples.tokens_bng.reshape(-1, samples.tokens_bng.shape[-1]),
            samples.lengths_bn.reshape(-1),
            strict=True,
        )
    ]
    rewards = task.score(np.repeat(index_b, num_samples), response_ids)
    width = task.prompt_width + task.sampling.max_new_tokens
    return Rollout(
        index_b,
        batching.sequences(prompts, samples, width=width),
        samples,
        rewards.reshape(samples.lengths_bn.shape),
    )


def log_probs(task: Task, params: Params, sequences: Sequences) -> np.ndarray:
    """log pi of whole responses under the network `params`, [S] float32, nats."""
    log_probs_s = sequence_log_probs(
        task.model,
        params,
        sharding.shard_rows(sequences, task.mesh),
        new_tokens=task.sampling.max_new_tokens,
        temperature=task.sampling.temperature,
    )
    return jax.device_get(log_probs_s)
