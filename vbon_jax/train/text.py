"""Supervised methods on text: `sft` for a decoder, `reward_model` for a classifier."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp

from vbon_jax import data
from vbon_jax.functional import logprobs, objectives
from vbon_jax.models import decoder, encoder
from vbon_jax.train.step import TrainState
from vbon_jax.train.task import Method, Task
from vbon_jax.types import Array, Mean, Params


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


def _settings(config) -> NoSettings:
    return NoSettings()


ROWS = {
    "sft": Method(make_batch=text_batch, objective=sft_objective, settings=_settings),
    "reward_model": Method(
        make_batch=text_batch,
        objective=reward_model_objective,
        settings=_settings,
        kind="encoder",
    ),
}
