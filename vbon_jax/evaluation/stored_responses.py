"""What stored responses say beyond their rewards, worked out once and kept beside them.

An evaluation's folder holds `responses-t*.parquet`. Whatever is derived from them stands in a
folder of its own beneath it, with the digests of what it was derived from: a row for each
temperature in `rows.json`. What no longer fits the responses is not read.
"""

import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from vbon_jax import files as workspace
from vbon_jax.evaluation.bootstrap import Estimate
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.sampling import reference_cache

ROWS_FILE = "rows.json"
LENGTH_CONTROL = "length_control"  # the folder of a policy's length-controlled win rate
JUDGES = "judges"  # the folder of the judges' rewards, of an evaluation and of the cache
ENDS = {"": "value", "_lo": "lo", "_hi": "hi"}  # of a number's columns


class Stored(NamedTuple):
    """The K responses of a policy to each of B prompts, at one temperature."""

    temperature: float
    prompts: list[str]
    texts: list[list[str]]
    rewards_bk: np.ndarray  # float32
    lengths_bk: np.ndarray | None  # int32, tokens; None in a folder that has none
    tokens: list[list[list[int]]] | None  # the EOS included; None in a folder that has none


def read(path: pathlib.Path) -> Stored:
    """The responses of one file; OSError, or pyarrow's errors, where they cannot be read."""
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.column_names if name != "kl"}
    lengths = columns.get("lengths")
    return Stored(
        temperature=float(path.stem.removeprefix("responses-t")),
        prompts=columns["prompt"],
        texts=columns["responses"],
        rewards_bk=np.asarray(columns["rewards"], np.float32),
        lengths_bk=None if lengths is None else np.asarray(lengths, np.int32),
        tokens=columns.get("tokens"),
    )


def path(folder: pathlib.Path, temperature: float) -> pathlib.Path:
    """The file of an evaluation's responses at one temperature."""
    return folder / f"responses-t{temperature:g}.parquet"


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of responses of an evaluation, a temperature each."""
    return sorted(folder.glob("responses-t*.parquet"))


def digests(folder: pathlib.Path) -> dict[str, str]:
    """What a stage that is derived from an evaluation's responses depends on."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder)}


def derive(
    folder: pathlib.Path,
    name: str,
    cache: reference_cache.References,
    inputs: dict[str, Any],
    work_out: Callable[[Stored, pathlib.Path], dict[str, Any]],
) -> None:
    """Writes `folder/name/rows.json` where it is missing: `work_out(responses, folder/name)` each.

    `inputs` are what its rows depend on besides the responses and the cache. Raises InputError
    where they stand and were made from others.
    """
    stage = folder / name
    held = {f"references {k}": v for k, v in cache.provenance._asdict().items()}
    if not workspace.begin(stage, inputs | digests(folder) | held):
        return
    rows = []
    for path in files(folder):
        responses = read(path)
        rows.append({"temperature": responses.temperature} | work_out(responses, stage))
    workspace.write_json(stage / ROWS_FILE, rows)
    workspace.finish(stage)


def rows(
    folder: pathlib.Path, name: str, cache: reference_cache.References | None
) -> dict[float, dict[str, Any]]:
    """The derived rows by temperature; none where they are missing or of other responses.

    Raises Damaged where they cannot be read.
    """
    stage = folder / name
    record = workspace.recorded(stage)
    if record is None or not record["finished"]:
        return {}
    current = digests(folder)
    if cache is not None:
        current |= {f"references {k}": v for k, v in cache.provenance._asdict().items()}
    if any(record["inputs"].get(key) != value for key, value in current.items()):
        return {}
    return {row["temperature"]: row for row in workspace.read_json(stage / ROWS_FILE)}


def columns(name: str, found: Estimate) -> dict[str, float | None]:
    """A number and its interval by their columns' names; None where they are not defined."""
    values = {f"{name}{end}": getattr(found, field) for end, field in ENDS.items()}
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def length_control(
    config: ConfigDict, folder: pathlib.Path, cache: reference_cache.References
) -> None:
    """The length-controlled win rate of a policy, in `folder/length_control`, where it is missing.

    Nothing is written for responses that were stored without their lengths.
    """
    options = {"seed": config.evaluation.seed, "resamples": config.evaluation.resamples}

    def work_out(responses: Stored, stage: pathlib.Path) -> dict[str, Any]:
        if responses.lengths_bk is None:
            return {}
        found = length_controlled_win_rate(
            responses.rewards_bk,
            responses.lengths_bk,
            cache.rewards_pm,
            cache.lengths_pm,
            **options,
        )
        return columns("lc_win_rate", found)

    derive(folder, LENGTH_CONTROL, cache, options, work_out)
