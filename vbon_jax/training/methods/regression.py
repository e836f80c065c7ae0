"""Pointwise regression of log-ratios: any cached responses, no pairs, no value head, any real N.

    vbon_regression   (log[pi_theta(y) / pi_ref(y)] - (N-1) log F(y) - log N)^2
    qrpo              (log[pi_theta(y) / pi_ref(y)] - F(y) / beta + log[beta (e^{1/beta} - 1)])^2

The first has Best-of-N as its minimiser, since E[F^{N-1}] = 1/N where rewards are continuous. The
second is Matrenok et al., arXiv 2507.08068, whose target is pi_ref e^{F/beta} / Z.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from ml_collections import FrozenConfigDict

from vbon_jax.data import batching
from vbon_jax.functional import objectives
from vbon_jax.training import cached_batches, rollouts
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import RESPONSES, Task, minimise, policy_log_probs
from vbon_jax.types import Array, InputError, Params, Sequences

VBON_CONSTANTS = (*RESPONSES, "n")
QRPO_CONSTANTS = (*RESPONSES, "n", "pairs.beta")


class ResponseBatch(NamedTuple):
    """Cached responses, [S] each: log pi_ref, and the rank of their rewards among the others'."""

    sequences: Sequences
    reference_s: np.ndarray
    rank_s: np.ndarray  # F (qrpo) or log F (vbon_regression)


def check_qrpo(config) -> None:
    """Refuse N = 1 without a beta: 1 / (N - 1) is infinite."""
    if config.n <= 1 and not config.pairs.beta:
        raise InputError("n=1: qrpo takes beta = 1/(N-1); give pairs.beta or a larger N")


def batch(task: Task, state: TrainState, step: int, key: Array, *, rank: Callable):
    """S responses to each prompt of a step, any of its cached ones with equal chances.

    `rank(task, responses)` gives F or log F of all cached responses, [B, M].
    """
    responses = cached_batches.cached_responses(task, step)
    places_bs = cached_batches.any_of(task, responses, step)
    chosen = batching.take(responses, places_bs)
    response_batch = ResponseBatch(
        rollouts.sequences(task, chosen),
        chosen.log_probs_bng.sum(axis=-1).reshape(-1),
        np.take_along_axis(rank(task, responses), places_bs, axis=1).reshape(-1),
    )
    return state, response_batch, cached_batches.metrics(chosen)


vbon_batch = functools.partial(batch, rank=cached_batches.log_cdf)
qrpo_batch = functools.partial(batch, rank=cached_batches.cdf_of)


def vbon_objective(model, constants: FrozenConfigDict, params: Params, batch: ResponseBatch):
    """The squared distance of each response's log-ratio to Best-of-N's own."""
    log_probs_s = policy_log_probs(model, constants, params, batch.sequences)
    law = batch.reference_s, batch.rank_s
    return minimise(*objectives.vbon_regression(log_probs_s, *law, n=constants.n))


def beta(constants: FrozenConfigDict) -> float:
    """`pairs.beta`, or 1 / (N - 1)."""
    return constants.pairs.beta or 1.0 / (constants.n - 1.0)


def qrpo_objective(model, constants: FrozenConfigDict, params: Params, batch: ResponseBatch):
    """The squared distance of each response's log-ratio to that of its quantile."""
    log_probs_s = policy_log_probs(model, constants, params, batch.sequences)
    law = batch.reference_s, batch.rank_s
    return minimise(*objectives.qrpo(log_probs_s, *law, beta=beta(constants)))
