"""The metrics of all runs over their steps, thinned to what a page can carry."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vbon_jax.report.texts import rounded
from vbon_jax.workdir import layout

NUMBERS = 200_000  # of all training curves of a page, at most about
POINTS = 200  # of one curve, at most
FIRST_METRICS = ("eval/win_rate", "objective/mean", "loss/total")  # the page begins with one


def thin(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list, list]:
    """A curve of at most `most` points: means over equal stretches of steps, each at its last."""
    if len(steps) <= most:
        return list(steps), [rounded(value) for value in values]
    parts = np.array_split(np.arange(len(steps)), most)
    means = [rounded(float(np.mean([values[at] for at in part]))) for part in parts]
    return [int(steps[part[-1]]) for part in parts], means


def of_runs(runs: Sequence[layout.Run]) -> dict[str, Any]:
    """Every metric of every run: `metrics` has (run, place in `grids`, values) for each name.

    `grids` are lists of steps, `methods` the runs' labels, `first` the metric to begin with,
    `points` how many points a curve may have, `thinned` whether any had more.
    """
    runs = [run for run in runs if run.metrics]
    names = sorted({name for run in runs for row in run.metrics for name in row} - {"step"})
    most = int(np.clip(NUMBERS // max(1, len(runs) * len(names)), 10, POINTS))
    grids: dict[tuple, int] = {}
    metrics: dict[str, list] = {name: [] for name in names}
    thinned = False
    for run in runs:
        for name in names:
            pairs = [(row["step"], row[name]) for row in run.metrics if row.get(name) is not None]
            if not pairs:
                continue
            thinned |= len(pairs) > most
            steps, values = thin(*zip(*pairs, strict=True), most)
            place = grids.setdefault(tuple(steps), len(grids))
            metrics[name].append([run.name, place, values])
    return {
        "metrics": metrics,
        "grids": [list(steps) for steps in grids],
        "methods": {run.name: run.record.label for run in runs},
        "first": next((name for name in FIRST_METRICS if name in names), names[0] if names else ""),
        "points": most,
        "thinned": thinned,
    }
