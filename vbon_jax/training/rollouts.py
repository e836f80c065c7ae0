"""Responses sampled inside a run: to the prompts of a step, with rewards."""

import numpy as np

from vbon_jax.data import batching
from vbon_jax.models import log_probs
from vbon_jax.sampling import sampler
from vbon_jax.training.task import Task
from vbon_jax.types import Array, Params, Responses, Sequences


def prompts_of(task: Task, step: int) -> np.ndarray:
    """Which prompts a step takes, [B]: a pure function of (seed, step)."""
    train = task.config.train
    return batching.batch_indices(
        len(task.prompts.token_ids), train.batch_size, seed=task.config.seed, step=step
    )


def rollout(
    task: Task, params: Params, index_b: np.ndarray, key: Array, *, num_samples: int
) -> Responses:
    """Sample `num_samples` responses to each prompt and score their text: numpy, [B, N].

    Row i of the batch draws from `key` and i.
    """
    prompt_ids = [task.prompts.token_ids[i] for i in index_b]
    prompts = batching.pad_prompts(prompt_ids, width=task.prompt_width)
    responses = log_probs.on_host(
        sampler.generate(
            task.model,
            params,
            prompts,
            sampler.prompt_keys(key, np.arange(len(index_b))),
            num_samples=num_samples,
            sampling=task.sampling,
        ),
        "the policy in training",
    )
    rewards = task.score(np.repeat(index_b, num_samples), responses.token_ids())
    return responses._replace(
        rewards_bn=rewards.reshape(responses.lengths_bn.shape), prompt_index_b=index_b
    )


def metrics(responses: Responses) -> dict[str, float]:
    """Metrics of the responses of a step, by which the budget counts them."""
    return {
        "rollout/reward": float(responses.rewards_bn.mean()),
        "rollout/length": float(responses.lengths_bn.mean()),
        "budget/sampled_tokens": int(responses.lengths_bn.sum()),
        "budget/reward_calls": int(responses.rewards_bn.size),
    }


def sequences(task: Task, responses: Responses) -> Sequences:
    """The responses behind their prompts, [B * N] rows of one width."""
    prompt_ids = [task.prompts.token_ids[i] for i in responses.prompt_index_b]
    prompts = batching.pad_prompts(prompt_ids, width=task.prompt_width)
    return batching.sequences(prompts, responses)


def sequence_log_probs(task: Task, params: Params, sequences: Sequences) -> np.ndarray:
    """log pi of whole responses under the network `params`, [S] float32, nats."""
    log_probs_s = log_probs.sequence_log_probs(
        task.model,
        params,
        sequences,
        new_tokens=task.sampling.max_new_tokens,
        temperature=task.sampling.temperature,
    )
    return log_probs.on_host(log_probs_s, "a network of this run")
