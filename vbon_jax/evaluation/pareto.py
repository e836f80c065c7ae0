"""Pareto fronts of cost against quality, and the share of a method's points that lie on one.

Host arithmetic in numpy's float64, next to the bootstrap that gives it its intervals.

    B  prompts     P  points (policies)     R  resamples     G  groups of points (methods)
"""

import collections
from collections.abc import Sequence

import numpy as np

from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate


def on_front(cost: np.ndarray, quality: np.ndarray) -> np.ndarray:
    """Which points no other point beats, `[..., P]` bool for costs and qualities `[..., P]`.

    A point is off the front when another one costs no more and is no worse, one of them strictly;
    equal points do not beat each other. A point with a coordinate that is not finite is off the
    front and beats none. Every leading index is a front of its own; O(P log P) each. Raises
    ValueError for two shapes.
    """
    cost, quality = np.asarray(cost, np.float64), np.asarray(quality, np.float64)
    if cost.shape != quality.shape or not cost.ndim:
        raise ValueError(f"costs of shape {cost.shape} and qualities of shape {quality.shape}")
    known = np.isfinite(cost) & np.isfinite(quality)
    cost, quality = np.where(known, cost, np.inf), np.where(known, quality, -np.inf)
    # By cost, the best first among equals: only an earlier point can beat another, and it
    # does where it is as good; the first of equal points decides for all of them.
    order = np.lexsort((-quality, cost), axis=-1)
    cost, quality = (np.take_along_axis(x, order, axis=-1) for x in (cost, quality))
    best = np.maximum.accumulate(quality, axis=-1)
    before = np.concatenate([np.full_like(best[..., :1], -np.inf), best[..., :-1]], axis=-1)
    differs = np.ones(cost.shape, bool)
    differs[..., 1:] = (cost[..., 1:] != cost[..., :-1]) | (quality[..., 1:] != quality[..., :-1])
    first = np.maximum.accumulate(np.where(differs, np.arange(cost.shape[-1]), 0), axis=-1)
    front = np.empty(cost.shape, bool)
    np.put_along_axis(front, order, np.take_along_axis(quality > before, first, axis=-1), axis=-1)
    return front & known


def membership(
    cost_bp: np.ndarray,
    quality_bp: np.ndarray,
    groups: Sequence[str],
    bootstrap: Bootstrap,
) -> dict[str, Estimate]:
    """The share of each group's points on the front of all P points, with its interval.

    cost_bp, quality_bp [B, P]: of each point for each prompt; a point is the mean over prompts.
    `groups` names the group of each point. Every resample of prompts moves all points together and
    has a front of its own. A point with a value that is not finite counts as one off the front.
    Groups in order of first appearance. Raises ValueError where the shapes do not agree.
    """
    cost_bp, quality_bp = np.asarray(cost_bp, np.float64), np.asarray(quality_bp, np.float64)
    if cost_bp.shape != quality_bp.shape or cost_bp.shape[1:] != (len(groups),):
        raise ValueError(
            f"{len(groups)} groups, costs {cost_bp.shape} and qualities {quality_bp.shape}"
        )
    known_p = np.isfinite(cost_bp).all(axis=0) & np.isfinite(quality_bp).all(axis=0)
    columns_bc = np.concatenate([cost_bp[:, known_p], quality_bp[:, known_p]], axis=1)
    sizes = collections.Counter(groups)
    members = {
        name: np.asarray([group == name for group in groups], bool)[known_p] for name in sizes
    }

    def shares(means_rc: np.ndarray) -> dict[str, np.ndarray]:
        front_rp = on_front(*np.split(means_rc, 2, axis=1))
        return {name: front_rp[:, members[name]].sum(axis=1) / sizes[name] for name in sizes}

    return bootstrap.estimates_of_means(columns_bc, shares)
