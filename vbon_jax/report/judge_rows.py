"""Rows and curves of the other judges, from the rewards that evaluation has stored."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from vbon_jax import files
from vbon_jax.evaluation import agreement, best_of_n, bon_curve, judges, stored_responses
from vbon_jax.evaluation.bootstrap import ENDS, columns
from vbon_jax.files import Damaged
from vbon_jax.sampling import reference_cache
from vbon_jax.workdir import layout, results

CACHE = "cache"  # the method of a judge's row about the cached reference responses
MEASURES = ("reward", "win_rate", "lc_win_rate", "agreement", "tau_b", "ordered")
COLUMNS = (
    *("judge", "method", "n", "bound", "seed", "temperature"),
    *(name + end for name in MEASURES for end in ENDS),
    *("kl", "kl_lo", "kl_hi", "training_win_rate", "prompts", "samples_per_prompt"),
    *("run", "gradient", "label"),
)


class Judged(NamedTuple):
    """All judges of a working directory."""

    rows: list[dict[str, Any]]  # of `judges.csv`
    curves: dict[str, bon_curve.Curve]  # judge -> Best-of-N by the training reward, seen by it


def read(work: layout.Work, ruler: list[dict[str, Any]]) -> Judged:
    """All judges of a working directory; `ruler` are the rows of Best-of-N.

    A file that cannot be read becomes one of `work.problems`.
    """
    judged = Judged([], {})
    if work.cache is None:
        return judged
    policies = [(work.path / "reference", work.reference_rows)]
    policies += [(run.folder / "evaluation", run.rows) for run in work.runs]
    for folder in sorted((work.path / "references" / "eval" / stored_responses.JUDGES).glob("*")):
        name, cached_pm = folder.name, None
        with layout.skipping(work.problems, f"The judge {name} is not shown: "):
            cached_pm = _cached_rewards(folder, work.cache)
        if cached_pm is None:
            continue
        judged.rows.extend(_cache_rows(work, name, cached_pm, ruler))
        curve = bon_curve.curve(work.cache.rewards_pm, judge_bm=cached_pm)
        judged.curves[name] = bon_curve.mean_curve(curve)
        for place, rows in policies:
            title = f"The rows of {name} about {place} are not shown: "
            with layout.skipping(work.problems, title):
                judged.rows.extend(_policy_rows(place, name, work.cache, rows))
    return judged


def _cached_rewards(folder: pathlib.Path, cache: reference_cache.References) -> np.ndarray | None:
    """A judge's rewards of the cached responses; None where unfinished, or of another cache."""
    if not files.is_made_from(folder, cache.provenance.inputs()):
        return None
    path = folder / judges.REWARDS_FILE
    cached_pm = judges.read_rewards(path)
    if cached_pm.shape != cache.rewards_pm.shape:
        raise Damaged(path, f"its rewards have the shape {cached_pm.shape}; delete {folder}")
    return cached_pm


def _policy_rows(
    folder: pathlib.Path, name: str, cache, rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A judge's rows about one policy, with what names the policy and its KL. Raises Damaged."""
    by_temperature = stored_responses.rows(folder, f"{stored_responses.JUDGES}/{name}", cache)
    kept = ("label", "method", "n", "bound", "seed", "temperature", "run", "gradient", "kl")
    judged_rows = []
    for row in rows:
        if row["temperature"] in by_temperature:
            ends = results.interval(row, "kl") or (None, None)
            named = {key: row[key] for key in kept} | {"kl_lo": ends[0], "kl_hi": ends[1]}
            named |= {"judge": name, "training_win_rate": row["win_rate"]}
            measured = by_temperature[row["temperature"]]
            judged_rows.append(dict.fromkeys(COLUMNS) | named | measured)
    return judged_rows


def _cache_rows(
    work: layout.Work, name: str, cached_pm: np.ndarray, ruler: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """A judge's rows about the cached reference responses, and about the best of N of them."""
    rewards_pm, bootstrap = work.cache.rewards_pm, work.bootstrap
    prompts, most = rewards_pm.shape
    if prompts < 2:
        return []
    common = dict.fromkeys(COLUMNS) | {"judge": name, "temperature": work.temperature}
    common |= {"prompts": prompts, "samples_per_prompt": most}
    agreed = agreement.agreement(rewards_pm, cached_pm, bootstrap)
    cells = {"label": CACHE, "method": CACHE, "run": CACHE, "n": 1.0}
    rows = [common | cells | columns(reward=bootstrap.estimate(cached_pm), **agreed)]
    for row in ruler:
        n = row["n"]
        if row["method"] != results.BEST_OF_N or n != int(n) or n > most - 1:
            continue
        both = rewards_pm, cached_pm, int(n)
        cells = {key: row[key] for key in ("label", "method", "n", "run", "kl", "kl_lo", "kl_hi")}
        cells |= columns(
            reward=bootstrap.estimate(best_of_n.expected_best(*both)),
            win_rate=bootstrap.estimate(best_of_n.best_of_n_win_rate(*both)),
        )
        rows.append(common | cells | {"training_win_rate": row["win_rate"]})
    return rows
