"""DPO and IPO on BoNBoN's pairs: the best and the worst of N, or preferences that are given.

With h the gap of log-ratios between better and worse (see `bonbon`),

    dpo    -log sigma(beta h)          Rafailov et al., arXiv 2305.18290
    ipo    (h - 1 / (2 beta))^2        Azar et al., arXiv 2310.12036

`pairs.beta` is beta; 0 means beta*_N, at which IPO aims at Best-of-N.
"""

import jax.numpy as jnp
from ml_collections import FrozenConfigDict

from vbon_jax.functional import bon, objectives
from vbon_jax.training.methods.bonbon import PairBatch, pair_log_probs
from vbon_jax.training.task import RESPONSES, minimise
from vbon_jax.types import InputError, Params

DPO_CONSTANTS = (*RESPONSES, "n", "pairs.beta")
IPO_CONSTANTS = (*DPO_CONSTANTS, "pairs.average")


def check_ipo(config) -> None:
    """Refuse means over tokens without a beta of their own."""
    if config.pairs.average and not config.pairs.beta:
        raise InputError("pairs.average: beta*_n is for sums over tokens; give pairs.beta")


def beta(constants: FrozenConfigDict) -> float:
    """`pairs.beta`, or beta*_N."""
    return constants.pairs.beta or bon.bonbon_beta(int(constants.n))


def dpo_objective(model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    """The logistic loss of the gap."""
    log_probs = pair_log_probs(model, constants, params, batch)
    return minimise(*objectives.dpo(*log_probs, beta=beta(constants), weight_b=batch.weight_s))


def ipo_objective(model, constants: FrozenConfigDict, params: Params, batch: PairBatch):
    """The squared loss of the gap, of sums or of means over tokens."""
    log_probs = pair_log_probs(model, constants, params, batch)
    if constants.pairs.average:
        counts = [side.lengths_s - side.prompt_lengths_s for side in (batch.best, batch.worst)]
        log_probs = [
            side_s / jnp.maximum(count_s, 1)
            for side_s, count_s in zip(log_probs, counts * 2, strict=True)
        ]
    return minimise(*objectives.ipo(*log_probs, beta=beta(constants), weight_b=batch.weight_s))
