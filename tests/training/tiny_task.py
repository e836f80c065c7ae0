"""A task on a random policy of one layer, for tests that call the functions of a run."""

import jax
import numpy as np

from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets
from vbon_jax.models import decoder, sharding
from vbon_jax.sampling import sampler
from vbon_jax.training import loop, methods, rollouts, step
from vbon_jax.training.optimizer import Rates

RATES = Rates(np.float32(1e-3), np.float32(1e-3))
MODEL = decoder.DecoderConfig(
    vocab_size=30, width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=16,
    initializer_std=0.4,
)  # fmt: skip
THREE_LAYERS = decoder.DecoderConfig(
    vocab_size=11, width=8, num_layers=3, num_heads=2, mlp_width=12, max_positions=9
)
PROMPTS, M, G, K = 6, 8, 5, 2


def with_value_head() -> dict:
    """Random parameters of THREE_LAYERS and a value head, as a PPO run has them."""
    network = decoder.init(THREE_LAYERS, jax.random.key(0))
    return {"decoder": network, "value": decoder.init_value_head(THREE_LAYERS)}


def make_task(method: str, keys=(), **changes) -> methods.Task:
    """A task whose cache is M samples of the reference; a response's reward is its mean token."""
    config = defaults(keys)
    config.update(method=method, n=3.0)
    config.sampling.max_new_tokens = G
    config.references.samples_per_prompt = M
    config.train.batch_size, config.train.samples_per_prompt = 4, K
    config.train.epochs = config.train.minibatches = 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    ids = [(1 + p, 2 + p) for p in range(PROMPTS)]
    params = decoder.init(MODEL, jax.random.key(0))
    task = methods.Task(
        config=config,
        model=MODEL,
        mesh=mesh,
        prompts=prompt_sets.PromptSet(token_ids=ids, texts=[""] * PROMPTS),
        prompt_width=2,
        reference_params=params,
        score=lambda prompts, responses: np.asarray(
            [np.mean(ids) if ids else 0.0 for ids in responses], np.float32
        ),
        sampling=sampler.Sampling(max_new_tokens=G, eos_token_ids=(0, 7)),
    )
    cache = rollouts.rollout(task, params, np.arange(PROMPTS), jax.random.key(5), num_samples=M)
    return task._replace(cache=cache)


def start(task: methods.Task, seed: int = 1):
    """A learner and a state whose network is not the reference."""
    method = methods.method(task.config.method)
    learner = loop.make_learner(task.config, task)
    network = decoder.init(MODEL, jax.random.key(seed))
    params = loop.initial_params(task.config, task, network)
    return learner, step.init_state(learner, params, anchor=method.anchor)


def responses(sequences) -> list[tuple[int, ...]]:
    """The response tokens of each row."""
    bounds = zip(sequences.tokens_st, sequences.prompt_lengths_s, sequences.lengths_s, strict=True)
    return [tuple(row[a:b].tolist()) for row, a, b in bounds]


def rewards(task, sequences) -> np.ndarray:
    return task.score(None, responses(sequences))
