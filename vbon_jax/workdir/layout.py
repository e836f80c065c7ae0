"""A working directory, read from its files alone: runs, results, the reference cache.

Nothing here fails because a run is unfinished, not evaluated or damaged: the state of the run, or
one of `Work.problems`, says so.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.evaluation import stored_responses
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate, columns
from vbon_jax.files import Damaged
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError
from vbon_jax.workdir import results
from vbon_jax.workdir.run import Record

COMPARE_FILE = "compare.json"  # the command and the configuration of the last comparison


class Run(NamedTuple):
    """One folder under `runs/`."""

    name: str
    folder: pathlib.Path
    state: str  # "evaluated", or what is left to do
    record: Record | None  # None where the run cannot be read
    config: dict[str, Any]  # empty where it cannot be read
    step: int  # steps that are logged
    steps: int | None  # of the whole run; None where a budget decides
    rows: list[dict[str, Any]]  # of the results, one for each temperature
    metrics: list[dict[str, Any]]  # one for each logged step


class Work(NamedTuple):
    """A working directory."""

    path: pathlib.Path
    runs: list[Run]
    reference_rows: list[dict[str, Any]]  # of the results: the reference policy's own
    cache: reference_cache.References | None  # for the held-out prompts, where it is complete
    config: dict[str, Any]  # of the comparison, else of a run, else empty
    command: str
    problems: list[str]  # what could not be read, a sentence each

    @property
    def temperature(self) -> float | None:
        """The one that policies are trained at and, unless others are given, evaluated at."""
        return None if self.cache is None else self.cache.provenance.temperature

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the evaluation."""
        return defaults().evaluation.to_dict() | self.config.get("evaluation", {})

    @property
    def bootstrap(self) -> Bootstrap:
        """The one that every interval is made with."""
        return Bootstrap(self.settings["seed"], self.settings["resamples"])

    @property
    def evaluated(self) -> list[tuple[Run, dict[str, Any]]]:
        """The evaluated runs, each with the row that it is compared by."""
        groups = ((run, main_rows(run.rows, self.temperature)) for run in self.runs)
        return [(run, row) for run, rows in groups for row in rows]


@contextlib.contextmanager
def skipping(problems: list[str], what: str = "") -> Iterator[None]:
    """Leave a block at a file that cannot be read: `problems` then says `what` is not used, why."""
    try:
        yield
    except InputError as error:
        problems.append(f"{what}{error}.")


def read(path: pathlib.Path) -> Work:
    """Everything that a report shows of a working directory.

    Raises InputError where the folder is not one.
    """
    if not path.is_dir():
        raise InputError(f"{path}: there is no such folder; give the --workdir of a comparison")
    folders = sorted(folder for folder in (path / "runs").glob("*") if folder.is_dir())
    if not folders and not (path / "references").is_dir():
        raise InputError(
            f"{path}: it holds neither runs nor a reference cache; give the --workdir of collect, "
            "train or compare"
        )
    work = Work(path, [], [], None, {}, "", [])
    held_out = path / "references" / "eval"
    if held_out.is_dir():
        with skipping(work.problems, "The reference cache is not used: "):
            work = work._replace(cache=reference_cache.load(held_out))
    runs = sorted((_run(folder, work.cache) for folder in folders), key=_place)
    comparison = {"command": "", "config": {}}
    if (path / COMPARE_FILE).exists():
        with skipping(work.problems):
            comparison = files.read_json(path / COMPARE_FILE, *comparison)
    return work._replace(
        runs=runs,
        reference_rows=_reference_rows(path / "reference", work.cache, work.problems),
        config=comparison["config"] or next((run.config for run in runs if run.config), {}),
        command=comparison["command"],
    )


def _place(run: Run) -> tuple:
    """Runs are sorted by method, N and seed; those that cannot be read come last."""
    record = run.record
    if record is None:
        return True, run.name
    return False, record.order, record.label, record.n, record.seed, run.name


# ------------------------------------------------------------------------------- runs


def _run(folder: pathlib.Path, cache: reference_cache.References | None) -> Run:
    """A run, whatever its state."""
    try:
        record = Record.read(folder)
        config = files.read_json(folder / "config.json", "train", "budget")
        stage = files.recorded(folder) or {"finished": False}
        metrics = files.read_jsonl(folder / "metrics.jsonl", "step")
    except Damaged as error:
        state = f"cannot be read ({error.path.name}: {error.why})"
        return Run(folder.name, folder, state, None, {}, 0, None, [], [])
    step = metrics[-1]["step"] + 1 if metrics else 0
    steps = None if any(config["budget"].values()) else int(config["train"]["steps"])
    state, rows = "training" if steps is None or step < steps else "being finished", []
    if stage["finished"]:
        try:
            state, rows = _evaluated(folder, record, cache)
        except Damaged as error:
            state = f"its evaluation cannot be read ({error.path.name}: {error.why})"
    return Run(folder.name, folder, state, record, config, step, steps, rows, metrics)


def _evaluated(folder: pathlib.Path, record: Record, cache) -> tuple[str, list[dict[str, Any]]]:
    """The state of a finished run, and its rows. Raises Damaged."""
    if not record.measured:
        return "finished; this method has no evaluation against Best-of-N", []
    stage = files.recorded(folder / "evaluation")
    if stage is None or not stage["finished"]:
        return "trained, not evaluated yet", []
    if cache is None:
        return "evaluated, but there is no reference cache to compare it with", []
    for key, value in cache.provenance.inputs().items():
        if stage["inputs"].get(key) != value:
            name = key.removeprefix("references ")
            return f"evaluated against another reference cache (its {name} differs)", []
    return "evaluated", run_rows(folder, record, cache)


def run_rows(
    folder: pathlib.Path, record: Record, cache: reference_cache.References
) -> list[dict[str, Any]]:
    """The rows of an evaluated run, with what names it and what it cost. Raises Damaged."""
    ledger = files.read_json(folder / "ledger.json", *results.BUDGET)
    budget = {name: ledger[name] for name in results.BUDGET}
    rows = policy_rows(folder / "evaluation", cache)
    return [row | record.columns() | budget for row in rows]


def policy_rows(
    folder: pathlib.Path, cache: reference_cache.References | None
) -> list[dict[str, Any]]:
    """The rows of an evaluation, with what was derived from its responses. Raises Damaged."""
    derived = stored_responses.rows(folder, stored_responses.LENGTH_CONTROL, cache)
    rows = results.read_rows(folder / "evaluation.json")
    return [row | derived.get(row["temperature"], {}) for row in rows]


def _reference_rows(folder: pathlib.Path, cache, problems: list[str]) -> list[dict[str, Any]]:
    """The reference policy's own rows, where it was evaluated against the cache."""
    if cache is None:
        return []
    with skipping(problems, "The reference's evaluation cannot be read: "):
        if files.is_made_from(folder, cache.provenance.inputs()):
            return policy_rows(folder, cache)
    problems.append("The reference policy itself has not been evaluated yet.")
    return []


def main_rows(rows: Sequence[dict[str, Any]], temperature: float | None) -> list[dict[str, Any]]:
    """Of one policy's rows, the one at the temperature of the cache, else its first."""
    same = [row for row in rows if row["temperature"] == temperature]
    return list(same or rows)[:1]


# ------------------------------------------------------------------------------- stages, responses


def stages(work: Work) -> list[dict[str, Any]]:
    """Rows about the models of stages, each measured on held-out rows."""
    rows = []
    for path in sorted(work.path.glob("stages/*/evaluation.json")):
        with skipping(work.problems):
            measured = files.read_json(path, "stage", "method", "rows")
            row = {name: measured.pop(name) for name in ("stage", "method", "rows")}
            estimates = {name: Estimate(**value) for name, value in measured.items()}
            rows.append(row | columns(**estimates))
    return rows


def responses(
    folder: pathlib.Path, row: Mapping[str, Any], names: Sequence[str]
) -> list[dict[str, Any]]:
    """Some columns of the responses behind a row: for each prompt a list of K values each.

    `folder` is a run's `evaluation`, or `reference`. Raises Damaged.
    """
    path = stored_responses.path(folder, row["temperature"])
    return files.read_parquet(path, names).to_pylist()


def response_arrays(
    folder: pathlib.Path, row: Mapping[str, Any], names: Sequence[str], prompts: int
) -> list[np.ndarray]:
    """Some columns of numbers as arrays [B, K] float32. Raises Damaged, for other prompts too."""
    lines = responses(folder, row, names)
    if len(lines) != prompts:
        raise Damaged(folder, f"responses to {len(lines)} prompts, and the cache has {prompts}")
    return [np.asarray([line[name] for line in lines], np.float32) for name in names]
