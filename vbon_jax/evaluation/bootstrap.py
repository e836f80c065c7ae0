"""Standard errors and bootstrap intervals over prompts, the clusters of every evaluation.

Host arithmetic in numpy's float64: arrays in, numbers out. Everything here raises ValueError for
fewer than 2 prompts, which have no spread, and for a value that is not finite.

    B  prompts     C  columns to average over them     R  resamples
"""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import numpy as np

from vbon_jax.functional import streams

CHUNK = 1 << 20  # entries of the bootstrap weights that exist at once
ENDS = {"": "value", "_lo": "lo", "_hi": "hi"}  # of a number's columns in a table


class Estimate(NamedTuple):
    """A number with its uncertainty over prompts."""

    value: float
    se: float  # standard error
    lo: float  # 95 % percentile bootstrap interval over prompts
    hi: float


class Bootstrap(NamedTuple):
    """The resamples of prompts that intervals are made from; equal ones see the same prompts."""

    seed: int
    resamples: int = 2000

    def means(self, columns_bc: np.ndarray) -> np.ndarray:
        """Means of each column over resamples of B prompts with replacement, [R, C] float64.

        Every column sees the same prompts in a resample, so that statistics of several columns
        keep their correlation.
        """
        columns_bc = np.asarray(columns_bc, np.float64)
        prompts = len(columns_bc)
        if prompts < 2:
            raise ValueError(f"{prompts} prompt(s): an interval over prompts needs at least 2")
        if not np.isfinite(columns_bc).all():
            where = np.argwhere(~np.isfinite(columns_bc))[0]
            raise ValueError(f"the value of prompt {where[0]} is not finite: {columns_bc[*where]}")
        random = streams.generator("bootstrap", self.seed)
        rows = max(1, CHUNK // prompts)
        means = []
        for first in range(0, self.resamples, rows):
            count = min(rows, self.resamples - first)
            place_r1 = prompts * np.arange(count)[:, None]
            drawn_rb = random.integers(prompts, size=(count, prompts)) + place_r1
            weights_rb = np.bincount(drawn_rb.ravel(), minlength=count * prompts)
            weights_rb = weights_rb.reshape(count, prompts).astype(np.float64)
            means.append(weights_rb @ columns_bc / prompts)
        return np.concatenate(means)

    def estimate(self, values: np.ndarray) -> Estimate:
        """The mean over prompts of `values` [B] or [B, K], prompts being the clusters.

        value is the mean of the prompts' means; se their standard deviation over sqrt(B); lo and
        hi the 2.5th and 97.5th percentile of that mean over resamples of whole prompts.
        """
        values = np.asarray(values, np.float64)
        means_b = values if values.ndim == 1 else values.mean(axis=1)
        means_r = self.means(means_b[:, None])[:, 0]
        standard_error = means_b.std(ddof=1) / len(means_b) ** 0.5
        return _from_resamples(means_b.mean(), means_r)._replace(se=float(standard_error))

    def estimate_of_means(
        self, columns_bc: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]
    ) -> Estimate:
        """A smooth function of several means over prompts: a ratio, a deficit.

        `statistic` maps means [R, C] to numbers [R]. value is the statistic of the means, se the
        standard deviation over bootstrap resamples, lo and hi their percentiles.
        """
        return self.estimates_of_means(columns_bc, lambda rc: {"": statistic(rc)})[""]

    def estimates_of_means(
        self,
        columns_bc: np.ndarray,
        statistics: Callable[[np.ndarray], dict[Hashable, np.ndarray]],
    ) -> dict[Hashable, Estimate]:
        """`estimate_of_means` of several functions of the same means, by name."""
        columns_bc = np.asarray(columns_bc, np.float64)
        resampled = statistics(self.means(columns_bc))
        observed = statistics(columns_bc.mean(axis=0, keepdims=True))
        return {
            name: _from_resamples(value[0], resampled[name]) for name, value in observed.items()
        }


def _from_resamples(value: float, resampled_r: np.ndarray) -> Estimate:
    """A number with the spread and the interval of its values [R] on resamples of prompts."""
    lo, hi = np.percentile(resampled_r, [2.5, 97.5])
    return Estimate(float(value), float(resampled_r.std(ddof=1)), float(lo), float(hi))


def ratio(means_r2: np.ndarray) -> np.ndarray:
    """First over second mean, [R, 2] -> [R]; NaN where the second is 0."""
    over_r, under_r = means_r2.T
    return np.where(under_r > 0, over_r / np.where(under_r > 0, under_r, 1.0), np.nan)


def columns(**estimates: Estimate) -> dict[str, float | None]:
    """Numbers and their intervals by their columns' names; None where they are not defined."""
    values = {
        name + end: getattr(estimate, field)
        for name, estimate in estimates.items()
        for end, field in ENDS.items()
    }
    return {key: value if np.isfinite(value) else None for key, value in values.items()}
