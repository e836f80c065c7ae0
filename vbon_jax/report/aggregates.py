"""What is said across policies: shares of Pareto fronts, and means over the seeds of a method.

Both are of policies at one temperature, prompt by prompt: every resample of prompts moves all of
them and the Best-of-N curve together.
"""

import csv
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from vbon_jax.evaluation import bon_curve, measures, pareto
from vbon_jax.workdir import layout, results

QUALITIES = ("win_rate", "reward")
MEASURES = ("kl", "win_rate", "reward", "deficit", "efficiency")
PARETO_COLUMNS = ("quality", "method", "points", "share", "share_lo", "share_hi")
MEANS_COLUMNS = (
    *("method", "n", "seeds"),
    *(name + end for name in MEASURES for end in ("", "_lo", "_hi")),
    *("deficit_least", "deficit_most"),
)


def pareto_shares(work: layout.Work, means: layout.PromptMeans) -> list[dict[str, Any]]:
    """Each method's membership of the fronts of (KL, win rate) and (KL, reward)."""
    if not means.rows or len(means.kl_bp) < 2:
        return []
    groups = [row["label"] for row in means.rows]
    shares = []
    for quality in QUALITIES:
        found = pareto.membership(
            means.kl_bp,
            getattr(means, f"{quality}_bp"),
            groups,
            seed=work.settings["seed"],
            resamples=work.settings["resamples"],
        )
        for method, (points, share) in found.items():
            ends = {"share": share.value, "share_lo": share.lo, "share_hi": share.hi}
            shares.append({"quality": quality, "method": method, "points": points, **ends})
    return shares


def seed_means(work: layout.Work, means: layout.PromptMeans) -> list[dict[str, Any]]:
    """Each method at each N over its seeds: means, their intervals over prompts, the seeds' ends.

    `deficit_least` and `deficit_most` are those of the seeds, each by itself.
    """
    if not means.rows or len(means.kl_bp) < 2:
        return []
    groups = [(row["label"], row["n"]) for row in means.rows]
    found = measures.group_means(
        means.kl_bp,
        means.win_rate_bp,
        means.reward_bp,
        groups,
        bon_curve.curve(work.cache.rewards_pm),
        seed=work.settings["seed"],
        resamples=work.settings["resamples"],
    )
    rows = []
    for (method, n), estimates in found.items():
        own = [row for row, group in zip(means.rows, groups, strict=True) if group == (method, n)]
        deficits = [row["deficit"] for row in own]
        row = {"method": method, "n": n, "seeds": len(own)}
        for name in MEASURES:
            estimate = estimates[name]
            row |= {name: estimate.value, f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
        rows.append(row | {"deficit_least": min(deficits), "deficit_most": max(deficits)})
    return rows


def write(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: pathlib.Path) -> None:
    """Writes one of the two as a CSV file: a header and a line a row."""
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    results.write_text(path, lines.getvalue())
