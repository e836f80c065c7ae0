"""Rows and curves of the other judges, from the rewards that evaluation has stored."""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from vbon_jax import files
from vbon_jax.evaluation import best_of_n, bon_curve, judges, stored_responses
from vbon_jax.evaluation.bootstrap import estimate
from vbon_jax.evaluation.stored_responses import columns
from vbon_jax.files import Damaged
from vbon_jax.sampling import reference_cache
from vbon_jax.workdir import layout, results

CACHE = "cache"  # the method of a judge's row about the cached reference responses
MEASURES = ("reward", "win_rate", "lc_win_rate", "agreement", "tau_b", "ordered")
COLUMNS = (
    *("judge", "method", "n", "bound", "seed", "temperature"),
    *(name + end for name in MEASURES for end in stored_responses.ENDS),
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
    folder = work.path / "references" / "eval" / stored_responses.JUDGES
    rows, curves = [], {}
    names = sorted(path.name for path in folder.glob("*")) if work.cache is not None else []
    policies = [(work.path / "reference", work.reference_rows)]
    policies += [(run.folder / "evaluation", run.rows) for run in work.runs]
    for name in names:
        try:
            cached_pm = _cached_rewards(folder / name, work.cache)
        except Damaged as error:
            work.problems.append(f"The judge {name} is not shown: {error}.")
            continue
        if cached_pm is None:
            continue
        rows += _cache_rows(work, name, cached_pm, ruler)
        curves[name] = _curve(work.cache.rewards_pm, cached_pm)
        for place, policy_rows in policies:
            try:
                rows += _policy_rows(place, name, work.cache, policy_rows)
            except Damaged as error:
                work.problems.append(f"The rows of {name} about {place} are not shown: {error}.")
    return Judged(rows, curves)


def _cached_rewards(folder: pathlib.Path, cache: reference_cache.References) -> np.ndarray | None:
    """A judge's rewards of the cached responses; None where unfinished, or of another cache."""
    stage = files.recorded(folder)
    inputs = cache.provenance.inputs()
    if stage is None or not stage["finished"] or not inputs.items() <= stage["inputs"].items():
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
    rewards_pm = work.cache.rewards_pm
    prompts, most = rewards_pm.shape
    if prompts < 2:
        return []
    options = {"seed": work.settings["seed"], "resamples": work.settings["resamples"]}
    common = dict.fromkeys(COLUMNS) | {
        "judge": name,
        "temperature": work.temperature,
        "prompts": prompts,
        "samples_per_prompt": most,
    }
    cells = {"label": CACHE, "method": CACHE, "run": CACHE, "n": 1.0}
    cells |= columns(reward=estimate(cached_pm, **options))
    cells |= judges.agreement_columns(rewards_pm, cached_pm, **options)
    rows = [common | cells]
    for row in ruler:
        if row["method"] != results.BEST_OF_N or row["n"] != int(row["n"]) or row["n"] > most - 1:
            continue
        both = rewards_pm, cached_pm, int(row["n"])
        cells = {key: row[key] for key in ("label", "method", "n", "run", "kl", "kl_lo", "kl_hi")}
        cells |= columns(
            reward=estimate(best_of_n.expected_best(*both), **options),
            win_rate=estimate(best_of_n.best_of_n_win_rate(*both), **options),
        )
        rows.append(common | cells | {"training_win_rate": row["win_rate"]})
    return rows


def _curve(rewards_pm: np.ndarray, cached_pm: np.ndarray) -> bon_curve.Curve:
    """Best-of-N by the training reward as a judge sees it, for a grid of N: means over prompts."""
    return bon_curve.mean_curve(bon_curve.curve(rewards_pm, judge_bm=cached_pm))
