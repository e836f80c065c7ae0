"""The responses of a policy's evaluation on disk, and the numbers that are derived from them.

An evaluation's folder holds `responses-t*.parquet`, a file for each temperature. What is derived
from them later is in a folder of its own beneath it, with a row for each temperature in
`rows.json`; rows of other responses are not read.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from vbon_jax import files
from vbon_jax.data import batching
from vbon_jax.evaluation.bootstrap import Bootstrap, columns
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.evaluation.measures import MeasuredResponses, token_lists
from vbon_jax.sampling import reference_cache
from vbon_jax.types import Responses

ROWS_FILE = "rows.json"
LENGTH_CONTROL = "length_control"  # the folder of a policy's length-controlled win rate
JUDGES = "judges"  # the folder of the judges' rewards, of an evaluation and of the cache


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
    files.write_parquet(path, pa.table(columns))


def read(path: pathlib.Path) -> Responses:
    """The responses of one file, with rewards and without log-probabilities. Raises Damaged."""
    table = files.read_parquet(path, ("rewards", "lengths", "finished", "tokens"))
    columns = {name: table[name].to_pylist() for name in table.column_names}
    lengths_bn = np.asarray(columns["lengths"], np.int32)
    ids = [ids for of_prompt in columns["tokens"] for ids in of_prompt]
    tokens_sg = batching.pad_rows(ids, lengths_bn.reshape(-1), int(lengths_bn.max()))
    tokens_bng = tokens_sg.reshape(*lengths_bn.shape, -1)
    return Responses(
        tokens_bng=tokens_bng,
        lengths_bn=lengths_bn,
        finished_bn=np.asarray(columns["finished"], bool),
        log_probs_bng=np.zeros(tokens_bng.shape, np.float32),
        rewards_bn=np.asarray(columns["rewards"], np.float32),
        prompt_index_b=np.arange(len(lengths_bn)),
    )


# ------------------------------------------------------------------------------- derived rows


def _inputs(folder: pathlib.Path, cache: reference_cache.References) -> dict[str, Any]:
    """The inputs of every row that is derived from an evaluation's responses."""
    digests = {file.name: files.digest(file.read_bytes()) for file in paths(folder)}
    return digests | cache.provenance.inputs()


def derive(
    folder: pathlib.Path,
    name: str,
    cache: reference_cache.References,
    inputs: dict[str, Any],
    compute: Callable[[Responses, float], dict[str, Any]],
) -> None:
    """Write `folder/name/rows.json` unless it exists: `compute(responses, temperature)` each.

    `inputs` are what its rows depend on besides the responses and the cache. Raises InputError
    where it was made from others.
    """
    artifact = files.Artifact(folder / name, inputs | _inputs(folder, cache))
    with artifact.work(waits=True) as left:
        if not left:
            return
        rows = []
        for path in paths(folder):
            temperature = float(path.stem.removeprefix("responses-t"))
            rows.append({"temperature": temperature} | compute(read(path), temperature))
        files.write_json(artifact.folder / ROWS_FILE, rows)
        more = sorted(path.name for path in artifact.folder.glob("*.parquet"))
        artifact.finish(ROWS_FILE, *more)


def rows(
    folder: pathlib.Path, name: str, cache: reference_cache.References
) -> dict[float, dict[str, Any]]:
    """The derived rows by temperature; none where there are none, or they are of other responses.

    Raises Damaged.
    """
    if not files.is_made_from(folder / name, _inputs(folder, cache)):
        return {}
    return {row["temperature"]: row for row in files.read_json(folder / name / ROWS_FILE)}


def length_control(
    folder: pathlib.Path, cache: reference_cache.References, bootstrap: Bootstrap
) -> None:
    """Write a policy's length-controlled win rate in `folder/length_control`, unless it exists."""

    def compute(responses: Responses, temperature: float) -> dict[str, Any]:
        policy = responses.rewards_bn, responses.lengths_bn
        reference = cache.rewards_pm, cache.lengths_pm
        return columns(lc_win_rate=length_controlled_win_rate(*policy, *reference, bootstrap))

    derive(folder, LENGTH_CONTROL, cache, bootstrap._asdict(), compute)
