"""The reference cache: M responses of the reference policy to every prompt, with their rewards.

An artifact of Parquet shards, one row a prompt; the inputs in its record are the provenance that
says what it holds samples of. Shards appear whole or not at all, so a build that was interrupted
continues, and a folder that was built for anything else is refused. Samples that were made
elsewhere (`external_samples`) are kept in the same way, and their provenance says that they were.
"""

import bisect
import pathlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vbon_jax import files
from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.types import InputError, Responses

VERSION = 3  # of the files' layout and of what their columns mean
SCHEMA = pa.schema(
    {
        "prompt_id": pa.int32(),
        "prompt": pa.string(),
        "prompt_tokens": pa.list_(pa.int32()),
        "responses": pa.list_(pa.string()),
        "response_tokens": pa.list_(pa.list_(pa.int32())),  # the EOS is the last one, if any
        "finished": pa.list_(pa.bool_()),  # ended by an EOS
        "log_probs": pa.list_(pa.list_(pa.float32())),  # `scoring.with_log_probs`, of each token
        "rewards": pa.list_(pa.float32()),
    }
)


class Provenance(NamedTuple):
    """The origin of a cache's samples; caches with equal provenance hold equal rewards."""

    policy: str  # fingerprint
    reward: str  # fingerprint
    prompts: str  # fingerprint, of their columns that the reward reads too
    num_prompts: int
    samples_per_prompt: int
    max_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    seed: int
    version: int = VERSION
    imported: str | None = None  # fingerprint of samples that were made elsewhere; None = sampled

    def inputs(self) -> dict[str, Any]:
        """As inputs of whatever is computed from the cache."""
        return {f"references {name}": value for name, value in self._asdict().items()}


class References(NamedTuple):
    """A whole cache without its texts, which `read` fetches. Row `p` is prompt `p`."""

    responses: Responses  # numpy, [prompts, M] and [prompts, M, G], G = max_new_tokens
    provenance: Provenance
    shards: tuple[pathlib.Path, ...] = ()
    seconds: float = 0.0  # that sampling and scoring took; 0 where samples were imported

    @property
    def rewards_pm(self) -> np.ndarray:
        """The reference rewards, [prompts, M] float32."""
        return self.responses.rewards_bn

    @property
    def lengths_pm(self) -> np.ndarray:
        """Response tokens, the EOS counted, [prompts, M] int32."""
        return self.responses.lengths_bn

    @property
    def sampled_tokens(self) -> int:
        """How many tokens were sampled for this cache; its rewards were `rewards_pm.size` calls."""
        return int(self.lengths_pm.sum(dtype=np.int64))

    @property
    def has_responses(self) -> bool:
        """Whether there are responses: rewards can be imported without them."""
        return bool((self.lengths_pm > 0).all())


# Shards -------------------------------------------------------------------------------------------


def _shard(folder: pathlib.Path, rows: range) -> pathlib.Path:
    """The file of the prompts from `rows.start` up to, not including, `rows.stop`."""
    return folder / f"shard-{rows.start:06d}-{rows.stop:06d}.parquet"


def _rows_of(file: pathlib.Path) -> range:
    """The prompts of a shard, from its name."""
    first, end = re.fullmatch(r"shard-(\d+)-(\d+)\.parquet", file.name).groups()
    return range(int(first), int(end))


def _shards(folder: pathlib.Path) -> list[pathlib.Path]:
    """The shards of a folder, in the order of their prompts."""
    return sorted(folder.glob("shard-*.parquet"), key=lambda file: _rows_of(file).start)


def _missing(folder: pathlib.Path, prompts: int, size: int) -> list[range]:
    """The prompts that have no shard yet, cut into at most `size` each."""
    missing, first = [], 0
    for rows in (*map(_rows_of, _shards(folder)), range(prompts, prompts)):
        starts = range(first, rows.start, size)
        missing += [range(start, min(start + size, rows.start)) for start in starts]
        first = rows.stop
    return missing


# Building -----------------------------------------------------------------------------------------


def build(
    artifact: files.Artifact,
    prompts: PromptSet,
    *,
    sample: Callable[[np.ndarray], Responses],
    score: Callable[[np.ndarray, list[list[int]]], np.ndarray],
    decode: Callable[[list[list[int]]], list[str]],
    prompts_per_shard: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the shards that a folder lacks, which may hold a part of the same cache.

    The inputs of `artifact` are the cache's provenance.

    `sample` maps prompt ids [b] to M responses each, a function of the id alone, so that the cut
    into shards changes nothing; where it leaves rewards out, `score` maps prompt ids [b * M] and
    their responses' token ids to rewards. `decode` maps response token ids to the texts to show.
    `progress` is called with (prompts done, prompts) before the first shard and after each. Raises
    InputError for another cache in the folder.
    """
    folder, provenance = artifact.folder, Provenance(**artifact.inputs)
    if not prompts.token_ids:
        raise InputError(f"{folder}: there are no prompts to sample for; give at least one")
    if files.recorded(folder) is None and any(folder.glob("shard-*.parquet")):
        raise InputError(
            f"{folder} has shards but no {files.RECORD_FILE}; delete the folder or take another"
        )
    with artifact.work(waits=True) as left:
        if not left:
            return
        for file in _shards(folder):
            if file.name not in artifact.files:  # a kill came before it was listed as whole
                file.unlink()
        missing = _missing(folder, provenance.num_prompts, prompts_per_shard)
        done = provenance.num_prompts - sum(map(len, missing))
        if progress:
            progress(done, provenance.num_prompts)
        for rows in missing:
            started = time.perf_counter()
            prompt_ids = np.asarray(rows, np.int32)
            responses = jax.tree.map(np.asarray, sample(prompt_ids))
            table = _table(prompts, prompt_ids, responses, score=score, decode=decode)
            seconds = 0.0 if provenance.imported else time.perf_counter() - started
            table = table.replace_schema_metadata({"seconds": str(seconds)})
            files.write_parquet(_shard(folder, rows), table)
            artifact.add(_shard(folder, rows).name)
            done += len(rows)
            if progress:
                progress(done, provenance.num_prompts)
        artifact.finish(*artifact.files)


def _table(
    prompts: PromptSet,
    prompt_ids: np.ndarray,
    responses: Responses,
    *,
    score: Callable,
    decode: Callable,
) -> pa.Table:
    """One shard's rows: the responses to some prompts, scored unless they have rewards."""
    token_ids, rewards_bn = responses.token_ids(), responses.rewards_bn
    num_prompts, num_samples = responses.lengths_bn.shape
    if rewards_bn is None:
        scored_s = score(np.repeat(prompt_ids, num_samples), token_ids)
        rewards_bn = np.asarray(scored_s).reshape(num_prompts, num_samples)

    def by_prompt(values: list) -> list[list]:
        """Values of all responses as one list a prompt."""
        return [values[i * num_samples : (i + 1) * num_samples] for i in range(num_prompts)]

    log_probs_sg = responses.log_probs_bng.reshape(len(token_ids), -1)
    columns = {
        "prompt_id": prompt_ids,
        "prompt": [prompts.texts[prompt_id] for prompt_id in prompt_ids],
        "prompt_tokens": [list(prompts.token_ids[prompt_id]) for prompt_id in prompt_ids],
        "responses": by_prompt(decode(token_ids)),
        "response_tokens": by_prompt(token_ids),
        "finished": responses.finished_bn.tolist(),
        "log_probs": by_prompt(
            [row[: len(ids)].tolist() for row, ids in zip(log_probs_sg, token_ids, strict=True)]
        ),
        "rewards": rewards_bn.tolist(),
    }
    return pa.table(columns, schema=SCHEMA)


# Reading ------------------------------------------------------------------------------------------


def recorded(folder: str | pathlib.Path) -> Provenance | None:
    """The provenance of the cache in a folder, whole or not; None where there is none.

    Raises Damaged for a record that cannot be read.
    """
    record = files.recorded(folder)
    try:
        return None if record is None else Provenance(**record["inputs"])
    except TypeError:
        path = pathlib.Path(folder) / files.RECORD_FILE
        raise files.Damaged(
            path, f"it is not the record of a reference cache; delete {folder} and build again"
        ) from None


def complete(folder: str | pathlib.Path) -> bool:
    """Whether a folder holds a cache with all its shards, as they were written."""
    provenance = recorded(folder)
    return provenance is not None and not files.Artifact(folder, provenance._asdict()).is_left()


def imported(folder: str | pathlib.Path) -> str | None:
    """The fingerprint of the imported samples that a folder holds, or None where it holds none."""
    provenance = recorded(folder)
    return None if provenance is None else provenance.imported


def load(
    folder: str | pathlib.Path,
    expected: Provenance | None = None,
    origins: Mapping[str, Any] | None = None,
) -> References:
    """The cache in `folder`; with `expected`, only if it is that cache (see `files.Artifact`).

    Raises InputError for another cache or missing shards, Damaged for one that cannot be read.
    """
    folder, provenance = pathlib.Path(folder), recorded(folder)
    if provenance is None:
        raise InputError(f"{folder}: there is no reference cache; build it with collect")
    if expected is not None:
        files.Artifact(folder, expected._asdict(), origins).check()
    missing = _missing(folder, provenance.num_prompts, provenance.num_prompts)
    if missing:
        raise InputError(
            f"{folder}: {sum(map(len, missing))} of {provenance.num_prompts} prompts have no "
            f"responses yet (the first: {missing[0].start}); run the command that builds it again "
            "to complete it"
        )
    shards = tuple(_shards(folder))
    parts, seconds = zip(*(_read_shard(file, provenance) for file in shards), strict=True)
    responses = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    return References(responses, provenance, shards, sum(seconds))


def read(
    references: References, prompt_ids: Sequence[int], *, column: str = "responses"
) -> list[Any]:
    """One column of the cache for some prompts, in their order: M texts, or M token lists, each.

    `column` is one of the schema's ("prompt", "responses", "response_tokens", ...). Only the shards
    that hold the prompts are read.
    """
    starts = [_rows_of(file).start for file in references.shards]
    places = [(bisect.bisect(starts, int(prompt)) - 1, int(prompt)) for prompt in prompt_ids]
    columns = {
        shard: files.read_parquet(references.shards[shard], [column])[column]
        for shard in sorted({shard for shard, _ in places})
    }
    return [columns[shard][prompt - starts[shard]].as_py() for shard, prompt in places]


def _damaged(file: pathlib.Path, why: object) -> files.Damaged:
    return files.Damaged(file, f"{why}; delete it and run the same command again")


def _check_shard(file: pathlib.Path) -> None:
    """Raises Damaged for a shard that cannot be kept, from its footer alone."""
    try:
        with file.open("rb") as content:
            metadata = pq.read_metadata(content)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, error) from error
    rows = _rows_of(file)
    if metadata.num_rows != len(rows):
        raise _damaged(file, f"it has {metadata.num_rows} rows instead of {len(rows)}")
    if not metadata.schema.to_arrow_schema().equals(SCHEMA):
        raise _damaged(file, "it has other columns than this version writes")


def _read_shard(file: pathlib.Path, provenance: Provenance) -> tuple[Responses, float]:
    """The responses of a shard, and how many seconds they took."""
    _check_shard(file)
    names = ["prompt_id", "response_tokens", "finished", "log_probs", "rewards"]
    table = files.read_parquet(file, names)
    if table["prompt_id"].to_pylist() != list(_rows_of(file)):
        raise _damaged(file, "it has other prompts")
    tokens, finished, log_probs, rewards = (
        _values(file, table, name, provenance.samples_per_prompt) for name in names[1:]
    )
    lengths_s = pc.list_value_length(tokens).to_numpy()
    inside_sg = np.arange(provenance.max_new_tokens) < lengths_s[:, None]
    shape = len(table), provenance.samples_per_prompt

    def padded(lists: pa.ListArray) -> np.ndarray:
        """Values of tokens, 0 behind a response's end, [rows, M, G]."""
        flat = lists.flatten().to_numpy()
        padded_sg = np.zeros(inside_sg.shape, flat.dtype)
        padded_sg[inside_sg] = flat
        return padded_sg.reshape(*shape, -1)

    rewards_bn = rewards.to_numpy().reshape(shape)
    if not np.isfinite(rewards_bn).all():
        raise _damaged(file, "it has rewards that are not finite")
    responses = Responses(
        tokens_bng=padded(tokens),
        lengths_bn=lengths_s.astype(np.int32).reshape(shape),
        finished_bn=finished.to_numpy(zero_copy_only=False).reshape(shape),
        log_probs_bng=padded(log_probs),
        rewards_bn=rewards_bn,
    )
    return responses, float((table.schema.metadata or {}).get(b"seconds", 0.0))


def _values(file: pathlib.Path, table: pa.Table, name: str, num_samples: int) -> pa.Array:
    """The values of all responses of a shard, which are M for each prompt."""
    counts = pc.list_value_length(table[name]).to_numpy()
    if (wrong := np.flatnonzero(counts != num_samples)).size:
        prompt, count = _rows_of(file)[wrong[0]], counts[wrong[0]]
        raise _damaged(file, f"prompt {prompt} has {count} {name}, not {num_samples}")
    return pc.list_flatten(table[name]).combine_chunks()
