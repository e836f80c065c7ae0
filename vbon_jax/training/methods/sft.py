"""Supervised methods on text: `sft` for a decoder, `reward_model` for a classifier."""

import jax
import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from vbon_jax.data import batching
from vbon_jax.data.sft_rows import LabelRows, PreferenceRows
from vbon_jax.functional import objectives
from vbon_jax.models import classifier, log_probs
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import Task, minimise
from vbon_jax.types import Array, Mean, Params, Sequences


def batch(task: Task, state: TrainState, step: int, key: Array):
    """The rows of this step: a pure function of (seed, step)."""
    config, size = task.config, len(task.rows[0])
    index = batching.batch_indices(size, config.train.batch_size, seed=config.seed, step=step)
    return state, jax.tree.map(lambda array: array[index], task.rows), {}


def sft_objective(model, constants: FrozenConfigDict, params: Params, batch: Sequences):
    """Negative log-likelihood of the response tokens, in nats a token."""
    new_tokens = batch.tokens_st.shape[1] - 1
    log_probs_sg, mask_sg, _ = log_probs.response_log_probs(
        model, params["decoder"], batch, new_tokens=new_tokens, temperature=1.0
    )
    return minimise(objectives.nll(log_probs_sg, mask_sg), {}, name="nll")


def margins(model, params: Params, batch: PreferenceRows) -> tuple[Array, Array]:
    """Rewards of the preferred and of the other texts, [R] float32 each: their label's logit."""
    sides = (
        (batch.chosen_rt, batch.chosen_lengths_r),
        (batch.rejected_rt, batch.rejected_lengths_r),
    )
    tokens_st, lengths_s = (jnp.concatenate(parts) for parts in zip(*sides, strict=True))
    logits_sc = classifier.classify(model, params["classifier"], tokens_st, lengths_s)
    label_s = jnp.concatenate([batch.label_r, batch.label_r])
    return tuple(jnp.split(jnp.take_along_axis(logits_sc, label_s[:, None], axis=1)[:, 0], 2))


def reward_model_objective(
    model, constants: FrozenConfigDict, params: Params, batch: LabelRows | PreferenceRows
):
    """Cross-entropy on labels, or Bradley and Terry's likelihood of preferences."""
    if isinstance(batch, PreferenceRows):
        centring = constants.reward_model.centring
        rewards = margins(model, params, batch)
        name = "preference"
        loss, metrics = objectives.bradley_terry(*rewards, centring=centring)
    else:
        texts = batch.tokens_rt, batch.lengths_r
        logits_rc = classifier.classify(model, params["classifier"], *texts)
        name = "cross_entropy"
        loss, metrics = objectives.cross_entropy(logits_rc, batch.labels_r)
    metrics = {f"classifier/{key}": mean for key, mean in metrics.items()}
    return {name: (1.0, loss)}, metrics | {"objective/mean": Mean(-loss.total, loss.weight)}
