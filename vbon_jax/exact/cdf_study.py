"""The error of log F from M reference rewards: against the truth, and on any reference cache.

P prompts    K responses    M rewards of a cache    D caches    H held-out rewards
"""

import functools
from collections.abc import Sequence

import altair as alt
import jax
import numpy as np
import scipy.stats
import tqdm

from vbon_jax.evaluation.bootstrap import Bootstrap, columns
from vbon_jax.exact import enumeration, optima
from vbon_jax.exact.enumeration import Law
from vbon_jax.functional import cdf, streams
from vbon_jax.report import style
from vbon_jax.types import InputError

SIZES = (5, 10, 20, 50, 100, 200, 400)
LEVEL = 0.05
SAMPLE = "sample"  # the sub-sample itself, by the test of two samples


@functools.partial(jax.jit, static_argnames="estimator")
def _estimates(rewards, references, estimator: str) -> tuple:
    """log F with half of the ties and with none, and log F+."""
    return (
        cdf.log_cdf(rewards, references, estimator=estimator),
        cdf.log_cdf(rewards, references, estimator=estimator, ties="exclude"),
        cdf.log_cdf_inclusive(rewards, references, estimator=estimator),
    )


# ------------------------------------------------------------------ where the truth is known


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
    generator = streams.generator("caches of the lab", seed)
    shape = (draws, max(sizes))
    drawn_pdm = [generator.choice(len(p_k), shape, p=p_k) for p_k in law.reference_pk]
    drawn_dpm = np.moveaxis(np.stack(drawn_pdm), 0, 1)
    caches_dpm = np.take_along_axis(law.rewards_pk[None], drawn_dpm, axis=2).astype(np.float32)
    return [
        {"m": m, "estimator": estimator, "ties": ties} | row
        for estimator in cdf.ESTIMATORS
        for m in sizes
        for row in _errors(law, caches_dpm[..., :m], estimator, n_values)
    ]


def _errors(law: Law, caches_dpm: np.ndarray, estimator: str, n_values) -> list[dict]:
    """The measures of one estimator at one M, a row for each N."""
    draws, prompts, m = caches_dpm.shape
    rewards = np.tile(law.rewards_pk.astype(np.float32), (draws, 1))
    half, below, up_to = (
        np.asarray(part, np.float64).reshape(draws, prompts, -1)
        for part in _estimates(rewards, caches_dpm.reshape(-1, m), estimator)
    )
    error_dpk = half - np.log(law.middle_pk)
    distance_dpk = np.abs(np.exp(up_to) - law.at_or_below_pk)
    measures = {
        "bias": (law.reference_pk * error_dpk).sum(axis=2).mean(axis=1),
        "rmse": np.sqrt((law.reference_pk * error_dpk**2).sum(axis=2).mean(axis=1)),
        "ks": distance_dpk.max(axis=2).mean(axis=1),
    }
    rows = []
    for n in n_values:
        best_pk, ratio_dpk = enumeration.best_of_n(law, n), enumeration.log_ratio(below, up_to, n)
        kl_d = [enumeration.kl(optima.gibbs(law, ratio_pk, 1.0), best_pk) for ratio_pk in ratio_dpk]
        row = {"n": int(n)}
        for name, values_d in (measures | {"kl_to_bon": np.array(kl_d)}).items():
            error = float(values_d.std(ddof=1) / draws**0.5)
            row |= {name: float(values_d.mean()), f"{name}_se": error}
        rows.append(row)
    return rows


# ------------------------------------------------------------------ on a cache


def study(rewards_pm: np.ndarray, *, seed: int) -> list[dict]:
    """A row for each size m and law: rejection rate and distance, with intervals over prompts.

    Of every prompt's rewards one half is held out; sub-samples of size m are taken of the other.

    law        what is compared with the held-out rewards: the sub-sample itself (`sample`, by the
               two-sample test of Kolmogorov and Smirnov), or the law that an estimator of log F
               makes of it (by the one-sample test, as if that law were the true one)
    rejected   share of prompts at which the test rejects at level 0.05. Two samples of one law are
               rejected no more often than that, whatever m is; a law that was estimated from m
               rewards is, until m is large beside what is held out
    distance   the statistic, the largest distance of the two distribution functions

    Raises InputError for fewer than 2 prompts, or fewer than 10 rewards of each.
    """
    prompts, total = rewards_pm.shape
    if prompts < 2 or total < 2 * SIZES[0]:
        raise InputError(
            f"the cache has {total} rewards of {prompts} prompts; the study needs at least "
            f"{2 * SIZES[0]} (references.samples_per_prompt) of 2 (data.train_limit, eval_limit)"
        )
    generator = streams.generator("halves of a cache", seed)
    shuffled_pm = generator.permuted(rewards_pm, axis=1).astype(np.float32)
    half = total // 2
    held_out_ph, rest_pm = shuffled_pm[:, half:], shuffled_pm[:, :half]
    rows = []
    for m in tqdm.tqdm(sorted({size for size in SIZES if size < half} | {half}), unit="size"):
        for law, (distance_p, p_value_p) in _tests(rest_pm[:, :m], held_out_ph).items():
            row = {"m": m, "law": law}
            for name, values_p in (("rejected", p_value_p < LEVEL), ("distance", distance_p)):
                row |= columns(**{name: Bootstrap(seed).estimate(values_p)})
            rows.append(row | {"held_out": total - half, "prompts": prompts})
    return rows


def _tests(sample_pm: np.ndarray, held_out_ph: np.ndarray) -> dict[str, np.ndarray]:
    """For each law the distance from the held-out rewards and its p-value, [2, P]."""
    pairs = zip(sample_pm, held_out_ph, strict=True)
    results = [scipy.stats.ks_2samp(sample_m, held_out_h) for sample_m, held_out_h in pairs]
    tests = {SAMPLE: np.array([(result.statistic, result.pvalue) for result in results]).T}
    points_pk = np.concatenate([sample_pm, held_out_ph], axis=1)
    below_pk, up_to_pk = (_share(held_out_ph, points_pk, side) for side in ("left", "right"))
    for estimator in cdf.ESTIMATORS:
        _, log_below_pk, log_up_to_pk = _estimates(points_pk, sample_pm, estimator)
        distance_p = np.maximum(
            np.abs(np.exp(log_below_pk) - below_pk).max(axis=1),
            np.abs(np.exp(log_up_to_pk) - up_to_pk).max(axis=1),
        )
        p_value_p = scipy.stats.kstwo.sf(distance_p, held_out_ph.shape[1])
        tests[estimator] = np.stack([distance_p, p_value_p])
    return tests


def _share(held_out_ph: np.ndarray, points_pk: np.ndarray, side: str) -> np.ndarray:
    """The share of held-out rewards below ("left") or at or below ("right") each point."""
    pairs = zip(np.sort(held_out_ph, axis=1), points_pk, strict=True)
    counts = np.stack([np.searchsorted(ordered_h, points_k, side) for ordered_h, points_k in pairs])
    return counts / held_out_ph.shape[1]


# ------------------------------------------------------------------ figures


def error_figure(rows: list[dict]) -> alt.Chart:
    """Error of log F, distance of the laws, and what they cost at the largest N, against M."""
    most = max(row["n"] for row in rows)
    titles = {
        "rmse": "error of log F (nats, root mean square)",
        "ks": "Kolmogorov-Smirnov distance",
        "kl_to_bon": f"KL to Best-of-N of what is learnt, N={most} (nats)",
    }
    points = [
        {"law": row["estimator"], "m": row["m"], "measure": title, "value": row[name]}
        | {"panel": "ties" if row["ties"] else "distinct rewards"}
        for row in rows
        if row["n"] == most
        for name, title in titles.items()
    ]
    lines = _against_m(points, "reference samples (M)").mark_line(point=True)
    lines = lines.encode(y=alt.Y("value:Q", title=None, scale=alt.Scale(type="log")))
    return style.panels(lines, "panel", "measure")


def study_figure(rows: list[dict]) -> alt.Chart:
    """Rejection rate and distance against m, a panel for each cache and measure."""
    points = [
        {"panel": row["cache"], "law": row["law"], "m": row["m"], "measure": name}
        | {"value": row[name], "lo": row[f"{name}_lo"], "hi": row[f"{name}_hi"]}
        for row in rows
        for name in ("rejected", "distance")
    ]
    base = _against_m(points, "rewards of a sub-sample (m)")
    lines = base.mark_line(point=True).encode(y=alt.Y("value:Q", title=None))
    return style.panels(lines + base.mark_rule().encode(y="lo:Q", y2="hi:Q"), "panel", "measure")


def _against_m(points: list[dict], title: str) -> alt.Chart:
    """Points against m on a logarithmic axis, in the colours of their laws."""
    return alt.Chart(alt.Data(values=points), width=250, height=190).encode(
        x=alt.X("m:Q", title=title, scale=alt.Scale(type="log", nice=False)),
        color=alt.Color("law:N", title=None, scale=alt.Scale(range=list(style.PALETTE))),
    )
