"""What an estimate of log F from M samples costs, where the truth is known."""

import functools
from collections.abc import Sequence

import jax
import numpy as np

from vbon_jax.exact import enumeration, optima
from vbon_jax.exact.enumeration import Law
from vbon_jax.functional import cdf


def errors(
    law: Law,
    n_values: Sequence[float],
    sizes: Sequence[int],
    *,
    ties: bool,
    seed: int,
    draws: int,
) -> list[dict]:
    """A row for each estimator, M and N: means over prompts and `draws` caches.

    A smaller cache is the beginning of a larger one; `_se` are standard errors over caches.

    bias, rmse  of log F at a response of the reference policy, nats
    ks          the largest distance of the law's estimated distribution function from the true one
    kl_to_bon   of the policy that vBoN's exact bound is best at with the estimate in F's place:
                pi_ref * estimated ratio / Z, no training in between
    """
    generator = np.random.default_rng([seed, 2])
    shape = (draws, max(sizes))
    drawn_pdm = [generator.choice(len(p_k), shape, p=p_k) for p_k in law.reference_pk]
    drawn_dpm = np.moveaxis(np.stack(drawn_pdm), 0, 1)
    caches_dpm = np.take_along_axis(law.rewards_pk[None], drawn_dpm, axis=2).astype(np.float32)
    return [
        row
        for estimator in cdf.ESTIMATORS
        for m in sizes
        for row in _rows(law, caches_dpm[..., :m], estimator, n_values, ties)
    ]


def _rows(law: Law, caches_dpm: np.ndarray, estimator: str, n_values, ties: bool) -> list[dict]:
    """The rows of one estimator at one M."""
    draws, prompts, m = caches_dpm.shape
    rewards = np.tile(law.rewards_pk.astype(np.float32), (draws, 1))
    references = caches_dpm.reshape(-1, m)
    half, below, up_to = (
        np.asarray(part, np.float64) for part in _estimates(rewards, references, estimator)
    )
    shape = (draws, prompts, -1)
    error_dpk = half.reshape(shape) - np.log(law.middle_pk)
    far_dpk = np.abs(np.exp(up_to).reshape(shape) - law.at_or_below_pk)
    cell = {"m": m, "estimator": estimator, "ties": ties}
    spread = {
        "bias": (law.reference_pk * error_dpk).sum(axis=2).mean(axis=1),
        "rmse": np.sqrt((law.reference_pk * error_dpk**2).sum(axis=2).mean(axis=1)),
        "ks": far_dpk.max(axis=2).mean(axis=1),
    }
    rows = []
    for n in n_values:
        ratio_dpk = enumeration.log_ratio(below, up_to, n).reshape(shape)
        kl_d = [
            enumeration.kl(optima.gibbs(law, ratio_pk, 1.0), enumeration.best_of_n(law, n))
            for ratio_pk in ratio_dpk
        ]
        row = cell | {"n": int(n)}
        for name, values_d in (spread | {"kl_to_bon": np.array(kl_d)}).items():
            row |= {name: float(values_d.mean()), f"{name}_se": _se(values_d)}
        rows.append(row)
    return rows


@functools.partial(jax.jit, static_argnames="estimator")
def _estimates(rewards: np.ndarray, references: np.ndarray, estimator: str) -> tuple:
    """log F with half of the ties, with none, and log F+; all of one compilation."""
    return (
        cdf.log_cdf(rewards, references, estimator=estimator),
        cdf.log_cdf(rewards, references, estimator=estimator, ties="exclude"),
        cdf.log_cdf_inclusive(rewards, references, estimator=estimator),
    )


def _se(values_d: np.ndarray) -> float:
    return float(values_d.std(ddof=1) / len(values_d) ** 0.5)
