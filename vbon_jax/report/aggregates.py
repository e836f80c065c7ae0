"""Numbers that no run has by itself: Best-of-N's own rows, Pareto shares, means over seeds.

Policies are compared at one temperature, prompt by prompt: a resample of prompts is the same for
all of them and for the Best-of-N curve.
"""

import collections
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.evaluation import bon_curve, measures, pareto
from vbon_jax.evaluation.bootstrap import ENDS, columns
from vbon_jax.report import judge_rows
from vbon_jax.workdir import layout, results

LANGUAGE_MODEL_FILE = "llm_judge.csv"

QUALITIES = ("win_rate", "reward")
MEASURES = ("kl", "win_rate", "reward", "deficit", "efficiency")
PARETO_COLUMNS = ("quality", "method", "points", "share", "share_lo", "share_hi")
MEANS_COLUMNS = (
    *("method", "n", "seeds"),
    *(name + end for name in MEASURES for end in ENDS),
    *("deficit_least", "deficit_most"),
)


class Numbers(NamedTuple):
    """The rows of every table of a working directory."""

    rows: list[dict[str, Any]]  # `results.csv`
    means: list[dict[str, Any]]  # `means.csv`
    shares: list[dict[str, Any]]  # `pareto.csv`
    judged: judge_rows.Judged  # `judges.csv`
    verdicts: list[dict[str, Any]]  # `llm_judge.csv`


def compute(work: layout.Work) -> Numbers:
    """Everything that a report has of a working directory; what is damaged is left out."""
    ruler, policies, verdicts = ruler_rows(work), prompt_means(work), []
    path = work.path / LANGUAGE_MODEL_FILE
    if path.is_file():
        with layout.skipping(work.problems):
            verdicts = results.read_results(path)
    return Numbers(
        rows=work.reference_rows + ruler + [row for run in work.runs for row in run.rows],
        means=seed_means(work, policies),
        shares=pareto_shares(work, policies),
        judged=judge_rows.read(work, ruler),
        verdicts=verdicts,
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
    cells = {"temperature": work.temperature, "prompts": prompts, "reference_samples": most}
    n_values = [n for n in settings["ruler_n"] if n < most]
    ruler = bon_curve.ruler(rewards_pm, n_values, work.bootstrap)
    rows = [results.make_row(results.BEST_OF_N, law, n=n, **cells) for n, law in ruler.items()]
    whole = [int(n) for n in n_values if n == int(n) and n > 1]
    for temperature in settings["soft_temperatures"]:
        ruler = bon_curve.ruler(rewards_pm, whole, work.bootstrap, temperature=temperature)
        cells["run"] = f"{results.SOFT}-temperature={temperature:g}"
        rows += [results.make_row(results.SOFT, law, n=n, **cells) for n, law in ruler.items()]
    return rows


# ------------------------------------------------------------------------------- policies


class PromptMeans(NamedTuple):
    """For each held-out prompt and each of P policies, means over the policy's K responses."""

    rows: list[dict[str, Any]]  # of the results, one for each policy
    means: dict[str, np.ndarray]  # kl, win_rate and reward, [B, P] each


def prompt_means(work: layout.Work) -> PromptMeans | None:
    """Every evaluated policy at the sampling temperature, prompt by prompt.

    None without such a policy, and for one prompt, which has no interval. A run whose responses
    cannot be read, or are to other prompts, is left out and becomes one of `work.problems`.
    """
    rows, of_policies = [], []
    for run, row in work.evaluated:
        title = f"{run.name} is in neither the Pareto shares nor the means over seeds: "
        with layout.skipping(work.problems, title):
            rewards_pm = work.cache.rewards_pm
            rewards_bk, kl_bk = layout.response_arrays(
                run.folder / "evaluation", row, ("rewards", "kl"), len(rewards_pm)
            )
            wins_bk = measures.win_rates(rewards_bk, rewards_pm)
            of_policies.append([of_bk.mean(axis=1) for of_bk in (kl_bk, wins_bk, rewards_bk)])
            rows.append(row)
    if not rows or len(work.cache.rewards_pm) < 2:
        return None
    means = np.asarray(of_policies, np.float64).transpose(1, 2, 0)
    return PromptMeans(rows, dict(zip(("kl", "win_rate", "reward"), means, strict=True)))


def pareto_shares(work: layout.Work, policies: PromptMeans | None) -> list[dict[str, Any]]:
    """Each method's membership of the fronts of (KL, win rate) and (KL, reward)."""
    if policies is None:
        return []
    groups = [row["label"] for row in policies.rows]
    points, means = collections.Counter(groups), policies.means
    return [
        {"quality": quality, "method": method, "points": points[method], **columns(share=share)}
        for quality in QUALITIES
        for method, share in pareto.membership(
            means["kl"], means[quality], groups, work.bootstrap
        ).items()
    ]


def seed_means(work: layout.Work, policies: PromptMeans | None) -> list[dict[str, Any]]:
    """Each method at each N over its seeds: means with their intervals over prompts.

    `deficit_least` and `deficit_most` are the least and the greatest deficit of a seed.
    """
    if policies is None:
        return []
    deficits = collections.defaultdict(list)
    groups = [(row["label"], row["n"]) for row in policies.rows]
    for group, row in zip(groups, policies.rows, strict=True):
        deficits[group].append(row["deficit"])
    best = bon_curve.curve(work.cache.rewards_pm)
    estimates = measures.group_means(policies.means, groups, best, work.bootstrap)
    return [
        {"method": group[0], "n": group[1], "seeds": len(deficits[group])}
        | columns(**estimates[group])
        | {"deficit_least": min(deficits[group]), "deficit_most": max(deficits[group])}
        for group in estimates
    ]
