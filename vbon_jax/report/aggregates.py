"""Numbers that no run has by itself: Best-of-N's own rows, Pareto shares, means over seeds.

Policies are compared at one temperature, prompt by prompt: a resample of prompts is the same for
all of them and for the Best-of-N curve.
"""

from typing import Any, NamedTuple

import numpy as np

from vbon_jax.evaluation import bon_curve, measures, pareto
from vbon_jax.files import Damaged
from vbon_jax.workdir import layout, results

QUALITIES = ("win_rate", "reward")
MEASURES = ("kl", "win_rate", "reward", "deficit", "efficiency")
PARETO_COLUMNS = ("quality", "method", "points", "share", "share_lo", "share_hi")
MEANS_COLUMNS = (
    *("method", "n", "seeds"),
    *(name + end for name in MEASURES for end in ("", "_lo", "_hi")),
    *("deficit_least", "deficit_most"),
)


# ------------------------------------------------------------------------------- Best-of-N


def ruler_rows(work: layout.Work) -> list[dict[str, Any]]:
    """Rows of the results for Best-of-N and soft Best-of-N, from the reference cache alone.

    One held-out prompt has no interval: there are no rows then, and one of `work.problems`.
    """
    if work.cache is None:
        return []
    rewards_pm, settings = work.cache.rewards_pm, work.settings
    prompts, most = rewards_pm.shape
    if prompts < 2:
        work.problems.append("One held-out prompt: nothing has an interval over prompts.")
        return []
    bootstrap = {"seed": settings["seed"], "resamples": settings["resamples"]}
    n_values = [n for n in settings["ruler_n"] if n < most]
    ruler = bon_curve.ruler(rewards_pm, n_values, **bootstrap)
    rows = [_ruler_row(work, best, results.BEST_OF_N) for best in ruler]
    for temperature in settings["soft_temperatures"]:
        whole = [int(n) for n in n_values if n == int(n) and n > 1]
        ruler = bon_curve.soft_ruler(rewards_pm, whole, temperature=temperature, **bootstrap)
        name = f"{results.SOFT}-temperature={temperature:g}"
        rows += [_ruler_row(work, best, results.SOFT, run=name) for best in ruler]
    return rows


def _ruler_row(
    work: layout.Work, best: bon_curve.RulerRow, method: str, **cells: Any
) -> dict[str, Any]:
    """Best-of-N at one N as a row of the results, without a deficit."""
    prompts, most = work.cache.rewards_pm.shape
    return results.make_row(
        method,
        {"reward": best.reward, "win_rate": best.win_rate, "kl": best.kl},
        n=best.n,
        temperature=work.temperature,
        prompts=prompts,
        reference_samples=most,
        **cells,
    )


# ------------------------------------------------------------------------------- policies


class PromptMeans(NamedTuple):
    """For each held-out prompt and each of P policies, means over the policy's K responses."""

    rows: list[dict[str, Any]]  # of the results, one for each policy
    kl_bp: np.ndarray
    win_rate_bp: np.ndarray
    reward_bp: np.ndarray


def prompt_means(work: layout.Work) -> PromptMeans:
    """Every evaluated policy at the sampling temperature, prompt by prompt.

    A run whose responses cannot be read, or are to other prompts, is left out and becomes one of
    `work.problems`.
    """
    rows, columns = [], []
    for run in work.runs:
        for row in layout.main_rows(run.rows, work.temperature):
            folder, rewards_pm = run.folder / "evaluation", work.cache.rewards_pm
            try:
                rewards_bk, kl_bk = layout.response_arrays(
                    folder, row, ("rewards", "kl"), len(rewards_pm)
                )
            except Damaged as error:
                work.problems.append(
                    f"{run.name} is in neither the Pareto shares nor the means over seeds: {error}."
                )
                continue
            wins_bk = measures.win_rates(rewards_bk, rewards_pm)
            rows.append(row)
            columns.append([of_bk.mean(axis=1) for of_bk in (kl_bk, wins_bk, rewards_bk)])
    if not rows:
        return PromptMeans([], *np.zeros((3, 0, 0)))
    return PromptMeans(rows, *np.asarray(columns, np.float64).transpose(1, 2, 0))


def pareto_shares(work: layout.Work, means: PromptMeans) -> list[dict[str, Any]]:
    """Each method's membership of the fronts of (KL, win rate) and (KL, reward)."""
    if not means.rows or len(means.kl_bp) < 2:
        return []
    shares = []
    for quality in QUALITIES:
        members = pareto.membership(
            means.kl_bp,
            getattr(means, f"{quality}_bp"),
            [row["label"] for row in means.rows],
            seed=work.settings["seed"],
            resamples=work.settings["resamples"],
        )
        for method, (points, share) in members.items():
            ends = {"share": share.value, "share_lo": share.lo, "share_hi": share.hi}
            shares.append({"quality": quality, "method": method, "points": points, **ends})
    return shares


def seed_means(work: layout.Work, means: PromptMeans) -> list[dict[str, Any]]:
    """Each method at each N over its seeds: means with their intervals over prompts.

    `deficit_least` and `deficit_most` are the least and the greatest deficit of a seed.
    """
    if not means.rows or len(means.kl_bp) < 2:
        return []
    groups = [(row["label"], row["n"]) for row in means.rows]
    estimates = measures.group_means(
        means.kl_bp,
        means.win_rate_bp,
        means.reward_bp,
        groups,
        bon_curve.curve(work.cache.rewards_pm),
        seed=work.settings["seed"],
        resamples=work.settings["resamples"],
    )
    rows = []
    for (method, n), of_group in estimates.items():
        deficits = [
            row["deficit"]
            for row, group in zip(means.rows, groups, strict=True)
            if group == (method, n)
        ]
        row = {"method": method, "n": n, "seeds": len(deficits)}
        for name in MEASURES:
            mean = of_group[name]
            row |= {name: mean.value, f"{name}_lo": mean.lo, f"{name}_hi": mean.hi}
        rows.append(row | {"deficit_least": min(deficits), "deficit_most": max(deficits)})
    return rows
