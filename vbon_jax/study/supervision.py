"""Measures of a supervised network on held-out rows."""

from collections.abc import Callable

import jax
import numpy as np

from vbon_jax.data import batching, sft_rows
from vbon_jax.evaluation.best_of_n import wins
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate
from vbon_jax.evaluation.measures import perplexity
from vbon_jax.models import log_probs
from vbon_jax.sampling.rewards import class_logits
from vbon_jax.types import Params, Sequences


def measure(
    model, params: Params, rows: sft_rows.Rows, *, batch_size: int, seed: int
) -> dict[str, Estimate]:
    """The measures of a network on rows, each with its interval over them.

    Language models: `nll` (nats a token that is learned) and `perplexity`. Classifiers: `accuracy`,
    a tie counting one half; on preferences also the `margin` of the logits that are the rewards,
    which are bit for bit those that `rewards.classifier` gives the same pairs.
    """
    bootstrap = Bootstrap(seed)
    if isinstance(rows, Sequences):
        sums_rc = _in_batches(_log_likelihoods, model, params, rows, batch_size)
        return {
            "nll": bootstrap.estimate_of_means(sums_rc, _nll),
            "perplexity": bootstrap.estimate_of_means(sums_rc, perplexity),
        }
    if isinstance(rows, sft_rows.PreferenceRows):
        sides = rows[:2], rows[2:4]
        logits = [class_logits(model, params, batching.unpadded(*side)) for side in sides]
        rewards_rc = np.stack([side[np.arange(len(side)), rows.label_r] for side in logits], axis=1)
        return {
            "accuracy": bootstrap.estimate(wins(*rewards_rc.T)),
            "margin": bootstrap.estimate(rewards_rc[:, 0] - rewards_rc[:, 1]),
        }
    logits_rc = class_logits(model, params, batching.unpadded(*rows[:2]))
    return {"accuracy": bootstrap.estimate(logits_rc.argmax(axis=1) == rows.labels_r)}


def _log_likelihoods(model, params: Params, rows: Sequences) -> jax.Array:
    """Of each row the log-likelihood of what is learned, and of how many tokens. [R, 2]."""
    log_probs_rt, mask_rt, _ = log_probs.response_log_probs(
        model, params, rows, new_tokens=rows.tokens_st.shape[1] - 1, temperature=1.0
    )
    return jax.numpy.stack([log_probs_rt.sum(axis=1), mask_rt.sum(axis=1)], axis=1)


def _nll(means_c: np.ndarray) -> np.ndarray:
    """Nats a token from means [..., 2] of log-likelihoods and token counts."""
    return -means_c[..., 0] / means_c[..., 1]


def _in_batches(function: Callable, model, params, rows, batch_size: int) -> np.ndarray:
    """`function(model, params, part)` [R, C] of parts of one size, joined without fillers."""
    jitted = jax.jit(function, static_argnums=0)
    parts = []
    for index_r, count in batching.filled_batches(len(rows[0]), batch_size):
        part = type(rows)(*(array[index_r] for array in rows))
        values_rc = log_probs.on_host(jitted(model, params, part), "the trained network")
        parts.append(values_rc[:count])
    return np.concatenate(parts)
