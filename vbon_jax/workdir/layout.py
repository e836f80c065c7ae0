"""What stands in a working directory, read from its files alone: runs, results, the cache.

Nothing here fails because a run is not finished, not evaluated, or damaged: it says so instead.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.evaluation import bon_curve, measures, stored_responses
from vbon_jax.evaluation.bootstrap import Estimate
from vbon_jax.sampling import reference_cache
from vbon_jax.training import logs
from vbon_jax.types import InputError
from vbon_jax.workdir import results
from vbon_jax.workdir.run import Record, columns
from vbon_jax.workdir.run import read as read_record

COMPARE_FILE = "compare.json"  # the command and the configuration of the last comparison
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, InputError)


class Run(NamedTuple):
    """One folder under `runs/`."""

    name: str
    record: Record | None  # None where it cannot be read
    folder: pathlib.Path
    config: dict[str, Any]  # empty where it cannot be read
    state: str  # "evaluated", or what is left to do
    step: int  # steps that are logged
    steps: int | None  # of the whole run
    rows: list[dict[str, Any]]  # of the results, a temperature each; none before its evaluation
    metrics: list[dict[str, Any]]  # a row a logged step


class Work(NamedTuple):
    """A working directory."""

    path: pathlib.Path
    runs: list[Run]
    reference_rows: list[dict[str, Any]]  # the reference policy's, then Best-of-N's
    cache: reference_cache.References | None  # the held-out one, where it is whole
    settings: dict[str, Any]  # of the evaluation
    config: dict[str, Any]  # of the comparison, else of a run, else empty
    command: str
    problems: list[str]  # what could not be read, a sentence each

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every row of the results."""
        return self.reference_rows + [row for run in self.runs for row in run.rows]

    @property
    def temperature(self) -> float | None:
        """The one that policies are trained and, unless asked otherwise, evaluated at."""
        return None if self.cache is None else self.cache.provenance.temperature


def read(path: pathlib.Path) -> Work:
    """Everything that a report shows of a folder; InputError where it is no working directory."""
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; give the --workdir of a comparison")
    folders = sorted(folder for folder in (path / "runs").glob("*") if folder.is_dir())
    if not folders and not (path / "references").is_dir():
        raise InputError(
            f"{path}: it holds neither runs nor a reference cache; give the --workdir of collect, "
            "train or compare"
        )
    problems: list[str] = []
    cache = _cache(path / "references" / "eval", problems)
    runs = sorted((_run(folder, cache) for folder in folders), key=_place)
    said = _json(path / COMPARE_FILE, {})
    config = said.get("config") or next((run.config for run in runs if run.config), {})
    settings = defaults().evaluation.to_dict() | config.get("evaluation", {})
    return Work(
        path=path,
        runs=runs,
        reference_rows=_reference_rows(path / "reference", cache, settings, problems),
        cache=cache,
        settings=settings,
        config=config,
        command=said.get("command", ""),
        problems=problems,
    )


def _place(run: Run) -> tuple:
    """Runs are sorted by method, N and seed; those that cannot be read come last."""
    record = run.record
    if record is None:
        return True, run.name
    return False, record.order, record.label, record.n, record.seed, run.name


def _json(path: pathlib.Path, default: Any) -> Any:
    """A JSON file, or `default` where there is none that can be read."""
    try:
        return json.loads(path.read_text())
    except UNREADABLE:
        return default


def _cache(folder: pathlib.Path, problems: list[str]) -> reference_cache.References | None:
    if not folder.is_dir():
        return None
    try:
        return reference_cache.load(folder)
    except UNREADABLE as error:
        problems.append(f"The reference cache is not used: {error}.")
        return None


# ------------------------------------------------------------------------------- runs


def _run(folder: pathlib.Path, cache) -> Run:
    try:
        record = read_record(folder)
        config = json.loads((folder / "config.json").read_text())
        finished = json.loads((folder / files.RECORD_FILE).read_text())["finished"]
        metrics = logs.read_rows(folder / "metrics.jsonl")
        step = metrics[-1]["step"] + 1 if metrics else 0
        budget = any(config.get("budget", {}).values())  # then it is as long as that lasts
        steps = None if budget else int(config["train"]["steps"])
    except UNREADABLE as error:
        why = " ".join(str(error).split())
        return Run(folder.name, None, folder, {}, f"cannot be read ({why})", 0, None, [], [])
    rows: list[dict[str, Any]] = []
    state = "training" if steps is None or step < steps else "being finished"
    if finished:
        rows, state = _evaluated(folder, record, cache)
    return Run(folder.name, record, folder, config, state, step, steps, rows, metrics)


def _evaluated(folder: pathlib.Path, record: Record, cache) -> tuple[list[dict], str]:
    """The rows of a finished run, and its state."""
    if not record.measured:
        return [], "finished; this method has no evaluation against Best-of-N"
    stage = _json(folder / "evaluation" / files.RECORD_FILE, {})
    if not stage.get("finished"):
        return [], "trained, not evaluated yet"
    if cache is None:
        return [], "evaluated, but there is no reference cache to hold it against"
    inputs = stage.get("inputs", {})
    for key, value in cache.provenance._asdict().items():
        if inputs.get(f"references {key}", value) != value:
            return [], f"evaluated against another reference cache (its {key} differs)"
    try:
        return run_rows(folder, record, cache), "evaluated"
    except UNREADABLE as error:
        return [], f"its evaluation cannot be read ({' '.join(str(error).split())})"


def run_rows(folder: pathlib.Path, record: Record, cache) -> list[dict[str, Any]]:
    """The rows of an evaluated run, with what names it and what it cost."""
    ledger = json.loads((folder / "ledger.json").read_text())
    budget = {name: ledger[name] for name in results.BUDGET}
    rows = policy_rows(folder / "evaluation", cache)
    return [row | columns(record) | budget for row in rows]


def policy_rows(folder: pathlib.Path, cache) -> list[dict[str, Any]]:
    """The rows of an evaluation, every column a key, with what was derived from its responses."""
    measured = json.loads((folder / "evaluation.json").read_text())
    rows = [dict.fromkeys(results.COLUMNS) | row for row in measured]
    controlled = stored_responses.rows(folder, stored_responses.LENGTH_CONTROL, cache)
    return [row | controlled.get(row["temperature"], {}) for row in rows]


def stages(work: Work) -> list[dict[str, Any]]:
    """What each model that was made on the way is worth on held-out rows, where it was measured."""
    rows = []
    for path in sorted(work.path.glob("stages/*/evaluation.json")):
        try:
            found = json.loads(path.read_text())
            row = {name: found.pop(name) for name in ("stage", "method", "rows")}
            for name, value in found.items():
                row |= stored_responses.columns(name, Estimate(**value))
        except UNREADABLE as error:
            work.problems.append(f"{path} cannot be read: {error}.")
            continue
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------- the reference


def _reference_rows(folder: pathlib.Path, cache, settings: dict, problems) -> list[dict]:
    """The reference policy's own rows, where they stand, and those that its cache gives."""
    if cache is None:
        return []
    rows = []
    if _json(folder / files.RECORD_FILE, {}).get("finished"):
        try:
            rows = policy_rows(folder, cache)
        except UNREADABLE as error:
            problems.append(f"The reference's evaluation cannot be read: {error}.")
    if not rows:
        problems.append("The reference policy itself has not been evaluated yet.")
    prompts, most = cache.rewards_pm.shape
    if prompts < 2:
        problems.append("One held-out prompt: nothing has an interval over prompts.")
        return rows
    ruler = bon_curve.ruler(
        cache.rewards_pm,
        [n for n in settings["ruler_n"] if n < most],
        seed=settings["seed"],
        resamples=settings["resamples"],
    )
    cells = {
        "temperature": cache.provenance.temperature,
        "prompts": prompts,
        "reference_samples": most,
    }
    rows += results.ruler_rows(ruler, run=results.BEST_OF_N, **cells)
    for temperature in settings["soft_temperatures"]:
        softer = bon_curve.soft_ruler(
            cache.rewards_pm,
            [int(n) for n in settings["ruler_n"] if n == int(n) and 1 < n < most],
            temperature=temperature,
            seed=settings["seed"],
            resamples=settings["resamples"],
        )
        run = f"{results.SOFT}-temperature={temperature:g}"
        rows += results.ruler_rows(softer, method=results.SOFT, run=run, **cells)
    return rows


# ------------------------------------------------------------------------------- responses


def responses(folder: pathlib.Path, row: Mapping[str, Any], columns: list[str]) -> pa.Table:
    """Some columns of the responses behind a row: a line a prompt, a list of K values each.

    `folder` is a run's `evaluation`, or `reference`. Raises OSError or pyarrow's errors (a kind of
    ValueError or KeyError) where they cannot be read.
    """
    return pq.read_table(folder / f"responses-t{row['temperature']:g}.parquet", columns=columns)


class PromptMeans(NamedTuple):
    """What each held-out prompt says of each policy: means over its K responses."""

    rows: list[dict[str, Any]]  # P policies
    kl_bp: np.ndarray
    win_rate_bp: np.ndarray
    reward_bp: np.ndarray


def prompt_means(work: Work) -> PromptMeans:
    """Every evaluated policy at the sampling temperature, prompt by prompt.

    A run whose responses cannot be read, or are to other prompts, is left out and becomes one of
    `work.problems`.
    """
    rows, columns = [], []
    for run in work.runs:
        for row in main_rows(run.rows, work.temperature):
            try:
                table = responses(run.folder / "evaluation", row, ["rewards", "kl"])
                rewards_bk, kl_bk = (
                    np.asarray(table[name].to_pylist(), np.float32) for name in ("rewards", "kl")
                )
                win_rates_bk = measures.win_rates(rewards_bk, work.cache.rewards_pm)
            except UNREADABLE as error:
                why = " ".join(str(error).split())
                work.problems.append(
                    f"{run.name} is in neither the Pareto shares nor the means over seeds: {why}."
                )
                continue
            rows.append(row)
            columns.append([of.mean(axis=1) for of in (kl_bk, win_rates_bk, rewards_bk)])
    if not rows:
        return PromptMeans([], *np.zeros((3, 0, 0)))
    return PromptMeans(rows, *np.asarray(columns, np.float64).transpose(1, 2, 0))


def main_rows(rows: list[dict[str, Any]], temperature: float | None) -> list[dict[str, Any]]:
    """Of one policy's rows, the one at the temperature of the cache, else its first."""
    same = [row for row in rows if row["temperature"] == temperature]
    return (same or rows)[:1]
