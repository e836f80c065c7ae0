"""The responses of a policy's evaluation on disk, and the numbers that are derived from them.

An evaluation's folder holds `responses-t*.parquet`, a file for each temperature. What is derived
from them later is in a folder of its own beneath it, with a row for each temperature in
`rows.json`; rows of other responses are not read.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax import files
from vbon_jax.data import batching
from vbon_jax.evaluation.bootstrap import Estimate
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.evaluation.measured_responses import MeasuredResponses, token_lists
from vbon_jax.sampling import reference_cache
from vbon_jax.types import Responses

ROWS_FILE = "rows.json"
LENGTH_CONTROL = "length_control"  # the folder of a policy's length-controlled win rate
JUDGES = "judges"  # the folder of the judges' rewards, of an evaluation and of the cache
ENDS = {"": "value", "_lo": "lo", "_hi": "hi"}  # of a number's columns


class Stored(NamedTuple):
    """The K responses of a policy to each of B prompts, at one temperature."""

    temperature: float
    prompts: list[str]
    texts: list[list[str]]
    responses: Responses  # with rewards, without log-probabilities
    kl_bn: np.ndarray  # float32, nats


def path(folder: pathlib.Path, temperature: float) -> pathlib.Path:
    """The file of an evaluation's responses at one temperature."""
    return folder / f"responses-t{temperature:g}.parquet"


def paths(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files of an evaluation's responses."""
    return sorted(folder.glob("responses-t*.parquet"))


def write(
    path: pathlib.Path,
    measured: MeasuredResponses,
    *,
    prompts: Sequence[str],
    texts: Sequence[Sequence[str]],
) -> None:
    """Write every response with its reward, KL and length: a row for each prompt."""
    responses = measured.responses
    columns = {
        "prompt": prompts,
        "responses": texts,
        "rewards": list(np.asarray(responses.rewards_bn)),
        "kl": list(np.asarray(measured.kl_bn)),
        "lengths": list(np.asarray(responses.lengths_bn)),
        "finished": list(np.asarray(responses.finished_bn)),
        "tokens": pa.array(token_lists(responses), pa.list_(pa.list_(pa.int32()))),
    }
    pq.write_table(pa.table(columns), path)


def read(path: pathlib.Path) -> Stored:
    """The responses of one file. Raises Damaged."""
    names = ("prompt", "responses", "rewards", "kl", "lengths", "finished", "tokens")
    table = files.read_parquet(path, names)
    columns = {name: table[name].to_pylist() for name in names}
    lengths_bn = np.asarray(columns["lengths"], np.int32)
    ids = [ids for of_prompt in columns["tokens"] for ids in of_prompt]
    tokens_sg = batching.pad_rows(ids, lengths_bn.reshape(-1), int(lengths_bn.max()))
    tokens_bng = tokens_sg.reshape(*lengths_bn.shape, -1)
    responses = Responses(
        tokens_bng=tokens_bng,
        lengths_bn=lengths_bn,
        finished_bn=np.asarray(columns["finished"], bool),
        log_probs_bng=np.zeros(tokens_bng.shape, np.float32),
        rewards_bn=np.asarray(columns["rewards"], np.float32),
        prompt_index_b=np.arange(len(lengths_bn)),
    )
    return Stored(
        temperature=float(path.stem.removeprefix("responses-t")),
        prompts=columns["prompt"],
        texts=columns["responses"],
        responses=responses,
        kl_bn=np.asarray(columns["kl"], np.float32),
    )


# ------------------------------------------------------------------------------- derived rows


def _inputs(folder: pathlib.Path, cache: reference_cache.References | None) -> dict[str, Any]:
    """The inputs of every row that is derived from an evaluation's responses."""
    digests = {file.name: files.digest(file.read_bytes()) for file in paths(folder)}
    return digests | ({} if cache is None else cache.provenance.inputs())


def derive(
    folder: pathlib.Path,
    name: str,
    cache: reference_cache.References,
    inputs: dict[str, Any],
    compute: Callable[[Stored, pathlib.Path], dict[str, Any]],
) -> None:
    """Write `folder/name/rows.json` unless it exists: a row `compute(stored, folder/name)` each.

    `inputs` are what its rows depend on besides the responses and the cache. Raises InputError
    where it was made from others.
    """
    artifact = files.Artifact(folder / name, inputs | _inputs(folder, cache))
    if not artifact.begin():
        return
    rows = []
    for stored in map(read, paths(folder)):
        rows.append({"temperature": stored.temperature} | compute(stored, artifact.folder))
    files.write_json(artifact.folder / ROWS_FILE, rows)
    artifact.finish()


def rows(
    folder: pathlib.Path, name: str, cache: reference_cache.References | None
) -> dict[float, dict[str, Any]]:
    """The derived rows by temperature; none where there are none, or they are of other responses.

    Raises Damaged.
    """
    record = files.recorded(folder / name)
    if record is None or not record["finished"]:
        return {}
    if any(record["inputs"].get(key) != value for key, value in _inputs(folder, cache).items()):
        return {}
    return {row["temperature"]: row for row in files.read_json(folder / name / ROWS_FILE)}


def columns(name: str, estimate: Estimate) -> dict[str, float | None]:
    """A number and its interval by their columns' names; None where they are not defined."""
    values = {f"{name}{end}": getattr(estimate, field) for end, field in ENDS.items()}
    return {key: value if np.isfinite(value) else None for key, value in values.items()}


def length_control(
    folder: pathlib.Path, cache: reference_cache.References, *, seed: int, resamples: int
) -> None:
    """The length-controlled win rate of a policy, in `folder/length_control`, unless it exists."""
    options = {"seed": seed, "resamples": resamples}

    def compute(stored: Stored, stage: pathlib.Path) -> dict[str, Any]:
        responses = stored.responses
        controlled = length_controlled_win_rate(
            responses.rewards_bn,
            responses.lengths_bn,
            cache.rewards_pm,
            cache.lengths_pm,
            **options,
        )
        return columns("lc_win_rate", controlled)

    derive(folder, LENGTH_CONTROL, cache, options, compute)
