"""How many reference samples a prompt needs: `python -m experiments.cdf_study --workdir DIR`.

Of every prompt's M cached rewards one half is held out, a large sample of the true law; the other
gives sub-samples of size m. It writes `cdf_study.csv` and `cdf_study.svg` in the workdir, for each
cache in `DIR/references`, and prints the table.
"""

import altair as alt
import numpy as np
import scipy.stats
import tqdm

from vbon_jax.evaluation import bootstrap
from vbon_jax.functional import cdf
from vbon_jax.report import style
from vbon_jax.types import InputError

SIZES = (5, 10, 20, 50, 100, 200, 400)
LEVEL = 0.05
SAMPLE = "sample"  # the sub-sample itself, by the test of two samples


def study(rewards_pm: np.ndarray, *, seed: int) -> list[dict]:
    """A row for each size m and law: rejection rate and distance, with intervals over prompts.

    law        what is held against the held-out rewards: the sub-sample itself (`sample`, by the
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
    shuffled_pm = np.random.default_rng(seed).permuted(rewards_pm, axis=1).astype(np.float32)
    half = total // 2
    held_ph, rest_pm = shuffled_pm[:, half:], shuffled_pm[:, :half]
    rows = []
    for m in tqdm.tqdm(sorted({size for size in SIZES if size < half} | {half}), unit="size"):
        for law, (rejected_p, distance_p) in _tests(rest_pm[:, :m], held_ph).items():
            row = {"m": m, "law": law}
            for name, values_p in (("rejected", rejected_p), ("distance", distance_p)):
                mean = bootstrap.estimate(values_p, seed=seed)
                row |= {name: mean.value, f"{name}_lo": mean.lo, f"{name}_hi": mean.hi}
            rows.append(row | {"held_out": total - half, "prompts": prompts})
    return rows


def _tests(sample_pm: np.ndarray, held_ph: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """law -> whether it is rejected [P], and its distance [P]."""
    pairs = zip(sample_pm, held_ph, strict=True)
    found = [scipy.stats.ks_2samp(sample_m, held_h) for sample_m, held_h in pairs]
    tests = {
        SAMPLE: (
            np.array([test.pvalue < LEVEL for test in found], np.float64),
            np.array([test.statistic for test in found]),
        )
    }
    points_pk = np.concatenate([sample_pm, held_ph], axis=1)
    below_pk, up_to_pk = (_share(held_ph, points_pk, side) for side in ("left", "right"))
    for estimator in cdf.ESTIMATORS:
        under_pk = cdf.log_cdf(points_pk, sample_pm, estimator=estimator, ties="exclude")
        most_pk = cdf.log_cdf_inclusive(points_pk, sample_pm, estimator=estimator)
        distance_p = np.maximum(
            np.abs(np.exp(under_pk) - below_pk).max(axis=1),
            np.abs(np.exp(most_pk) - up_to_pk).max(axis=1),
        ).astype(np.float64)
        chance_p = scipy.stats.kstwo.sf(distance_p, held_ph.shape[1])
        tests[estimator] = ((chance_p < LEVEL).astype(np.float64), distance_p)
    return tests


def _share(held_ph: np.ndarray, points_pk: np.ndarray, side: str) -> np.ndarray:
    """The share of held-out rewards below ("left") or at or below ("right") each point."""
    pairs = zip(np.sort(held_ph, axis=1), points_pk, strict=True)
    counts = np.stack([np.searchsorted(held, points, side) for held, points in pairs])
    return counts / held_ph.shape[1]


def figure(rows: list[dict]) -> alt.Chart:
    """Rejection rate and distance against m, a panel for each cache and measure."""
    points = [
        {"cache": row["cache"], "law": row["law"], "m": row["m"], "measure": name}
        | {"value": row[name], "lo": row[f"{name}_lo"], "hi": row[f"{name}_hi"]}
        for row in rows
        for name in ("rejected", "distance")
    ]
    base = alt.Chart(alt.Data(values=points), width=260, height=200).encode(
        x=alt.X(
            "m:Q", title="rewards of a sub-sample (m)", scale=alt.Scale(type="log", nice=False)
        ),
        color=alt.Color("law:N", title=None, scale=alt.Scale(range=list(style.PALETTE))),
    )
    lines = base.mark_line(point=True).encode(y=alt.Y("value:Q", title=None))
    bars = base.mark_rule().encode(y="lo:Q", y2="hi:Q")
    panels = (lines + bars).facet(
        row=alt.Row("cache:N", title=None), column=alt.Column("measure:N", title=None)
    )
    return panels.resolve_scale(y="independent")
