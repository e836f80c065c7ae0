"""The reference cache: M samples of the reference policy to every prompt, with their rewards.

A folder of Parquet shards, one row a prompt, and a `provenance.json` that says what they are
samples of. Shards appear whole or not at all, so a build that was interrupted goes on where it
stopped; a folder that was built for anything else is refused. Samples that were made elsewhere
(`imports.py`) are kept in the same way, and their provenance says that they were.
"""

import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.types import InputError, Responses

VERSION = 1  # of the files' layout and of what their columns mean
PROVENANCE_FILE = "provenance.json"
SCHEMA = pa.schema(
    {
        "prompt_id": pa.int32(),
        "prompt": pa.string(),
        "prompt_tokens": pa.list_(pa.int32()),
        "responses": pa.list_(pa.string()),
        "response_tokens": pa.list_(pa.list_(pa.int32())),  # the EOS is the last one, if any
        "finished": pa.list_(pa.bool_()),  # ended by an EOS
        "log_probs": pa.list_(pa.float32()),  # nats, summed over a response's tokens
        "rewards": pa.list_(pa.float32()),
    }
)


class Provenance(NamedTuple):
    """What a cache is samples of; two caches with equal provenance hold equal rewards."""

    policy: str  # fingerprint
    reward: str  # fingerprint
    prompts: str  # fingerprint
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

    rewards_pm: np.ndarray  # [prompts, M] float32
    lengths_pm: np.ndarray  # [prompts, M] int32, response tokens, the EOS counted
    finished_pm: np.ndarray  # [prompts, M] bool
    log_probs_pm: np.ndarray  # [prompts, M] float32, nats a response
    provenance: Provenance
    files: tuple[pathlib.Path, ...]
    prompts_per_shard: int

    @property
    def sampled_tokens(self) -> int:
        """How many tokens were sampled for this cache; its rewards were `rewards_pm.size` calls."""
        return int(self.lengths_pm.sum(dtype=np.int64))

    @property
    def has_responses(self) -> bool:
        """Whether there are responses: rewards can be imported without them."""
        return bool((self.lengths_pm > 0).all())


class _Layout(NamedTuple):
    """How a cache is cut into files."""

    folder: pathlib.Path
    prompts: int
    prompts_per_shard: int
    samples_per_prompt: int

    @property
    def shards(self) -> int:
        return -(-self.prompts // self.prompts_per_shard)

    def file(self, shard: int) -> pathlib.Path:
        return self.folder / f"shard-{shard:05d}-of-{self.shards:05d}.parquet"

    def prompt_ids(self, shard: int) -> np.ndarray:
        first = shard * self.prompts_per_shard
        return np.arange(first, min(first + self.prompts_per_shard, self.prompts), dtype=np.int32)

    def missing(self) -> list[int]:
        return [shard for shard in range(self.shards) if not self.file(shard).exists()]


# Building -----------------------------------------------------------------------------------------


def build(
    folder: str | pathlib.Path,
    provenance: Provenance,
    prompts: PromptSet,
    *,
    sample: Callable[[np.ndarray], Responses],
    score: Callable[[np.ndarray, list[list[int]]], np.ndarray],
    decode: Callable[[list[list[int]]], list[str]],
    prompts_per_shard: int,
    progress: Callable[[int, int], None] | None = None,
    rewards_pm: np.ndarray | None = None,
) -> None:
    """Writes the shards that are missing in `folder`, which may hold a part of the same cache.

    `sample` maps prompt ids [b] to their M samples each, a function of the id alone, so that the
    cut into shards changes nothing; `score` maps prompt ids [b * M] and their responses' token ids
    to rewards [b * M], unless all of them are known, `rewards_pm` [prompts, M]; `decode` maps
    response token ids to the texts to show. `progress` is called with (prompts done, prompts)
    before the first shard and after each. A folder that was begun keeps the shard size that it was
    begun with.
    Raises InputError for another cache in the folder and a damaged shard.
    """
    if not prompts.token_ids:
        raise InputError(f"{folder}: there are no prompts to sample for; give at least one")
    if prompts_per_shard < 1:
        raise InputError(f"prompts_per_shard is {prompts_per_shard}; give at least 1")
    folder = pathlib.Path(folder)
    if (folder / PROVENANCE_FILE).exists():
        layout = _begun(folder, provenance)
        if layout.prompts != len(prompts.token_ids):
            raise InputError(
                f"{folder}: a cache of {layout.prompts} prompts, and now there are "
                f"{len(prompts.token_ids)}; use another workdir, or delete {folder}"
            )
    else:
        layout = _begin(folder, provenance, len(prompts.token_ids), prompts_per_shard)
    missing = layout.missing()
    for shard in sorted(set(range(layout.shards)) - set(missing)):
        _check_shard(layout, shard)

    done = layout.prompts - sum(len(layout.prompt_ids(shard)) for shard in missing)
    if progress:
        progress(done, layout.prompts)
    for shard in missing:
        prompt_ids = layout.prompt_ids(shard)
        samples = jax.tree.map(np.asarray, sample(prompt_ids))
        known = None if rewards_pm is None else rewards_pm[prompt_ids].reshape(-1)
        table = _table(
            prompts, prompt_ids, samples, provenance, score=score, decode=decode, known=known
        )
        with _whole(layout.file(shard)) as temporary:
            pq.write_table(table, temporary)
        done += len(prompt_ids)
        if progress:
            progress(done, layout.prompts)


def _begin(
    folder: pathlib.Path, provenance: Provenance, prompts: int, prompts_per_shard: int
) -> _Layout:
    """Claims a folder for a cache."""
    if any(folder.glob("shard-*.parquet")):
        raise InputError(
            f"{folder}: it holds shards but no {PROVENANCE_FILE}; delete the folder or take another"
        )
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "provenance": provenance._asdict(),
        "prompts": prompts,
        "prompts_per_shard": prompts_per_shard,
    }
    with _whole(folder / PROVENANCE_FILE) as temporary:
        temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return _Layout(folder, prompts, prompts_per_shard, provenance.samples_per_prompt)


def _begun(folder: pathlib.Path, expected: Provenance | None) -> _Layout:
    """The layout of a folder that is claimed, for the cache that is expected or else refused."""
    provenance, prompts, prompts_per_shard = _read_record(folder)
    differences = [
        f"{field} = {found!r} (now {wanted!r})"
        for field, found, wanted in zip(
            Provenance._fields, provenance, expected or provenance, strict=True
        )
        if found != wanted
    ]
    if differences:
        raise InputError(
            f"{folder / PROVENANCE_FILE}: the reference cache was built with "
            f"{', '.join(differences)}; use another workdir, or delete {folder}"
        )
    return _Layout(folder, prompts, prompts_per_shard, provenance.samples_per_prompt)


def _read_record(folder: pathlib.Path) -> tuple[Provenance, int, int]:
    """Provenance, prompts and prompts a shard from a cache's record."""
    file = folder / PROVENANCE_FILE
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        provenance = Provenance(**record["provenance"])
        prompts, prompts_per_shard = int(record["prompts"]), int(record["prompts_per_shard"])
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"{file}: no record of a reference cache ({error}); delete {folder} and build again"
        ) from error
    return provenance, prompts, prompts_per_shard


class _whole:
    """`with _whole(file) as temporary`: what is written there becomes `file` in one move."""

    def __init__(self, file: pathlib.Path):
        self.file = file
        self.temporary = file.with_name(f".{file.name}.tmp")

    def __enter__(self) -> pathlib.Path:
        return self.temporary

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is None:
            with open(self.temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(self.temporary, self.file)
        else:
            self.temporary.unlink(missing_ok=True)


def _table(
    prompts: PromptSet,
    prompt_ids: np.ndarray,
    samples: Responses,
    provenance: Provenance,
    *,
    score: Callable,
    decode: Callable,
    known: np.ndarray | None,
) -> pa.Table:
    """One shard's rows: the samples to some prompts, scored unless their rewards are known."""
    num_samples = provenance.samples_per_prompt
    expected_shape = (len(prompt_ids), num_samples)
    if samples.lengths_bn.shape != expected_shape:
        raise ValueError(f"sampled {samples.lengths_bn.shape}, expected {expected_shape}")
    width = samples.tokens_bng.shape[-1]
    lengths_s = samples.lengths_bn.reshape(-1)
    inside_sg = np.arange(width) < lengths_s[:, None]
    tokens_sg = samples.tokens_bng.reshape(-1, width)
    responses = [row[:n].tolist() for row, n in zip(tokens_sg, lengths_s, strict=True)]
    prompt_tokens = [prompts.token_ids[prompt_id] for prompt_id in prompt_ids]

    if known is None:
        known = score(np.repeat(prompt_ids, num_samples), responses)
    rewards_s = np.asarray(known, np.float32)
    log_probs_s = samples.log_probs_bng.astype(np.float64).sum(axis=-1).reshape(-1)
    tokens = _lists(pa.array(tokens_sg[inside_sg].astype(np.int32)), lengths_s)
    columns = {
        "prompt_id": pa.array(prompt_ids.astype(np.int32)),
        "prompt": pa.array([prompts.texts[prompt_id] for prompt_id in prompt_ids], pa.string()),
        "prompt_tokens": pa.array([list(ids) for ids in prompt_tokens], pa.list_(pa.int32())),
        "responses": _rows(pa.array(decode(responses), pa.string()), num_samples),
        "response_tokens": _rows(tokens, num_samples),
        "finished": _rows(pa.array(samples.finished_bn.reshape(-1)), num_samples),
        "log_probs": _rows(pa.array(log_probs_s.astype(np.float32)), num_samples),
        "rewards": _rows(pa.array(rewards_s), num_samples),
    }
    return pa.table(columns, schema=SCHEMA)


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """Values cut into lists of the given lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _rows(values: pa.Array, num_samples: int) -> pa.ListArray:
    """Values of all samples as one list a prompt."""
    return _lists(values, np.full(len(values) // num_samples, num_samples))


# Reading ------------------------------------------------------------------------------------------


def complete(folder: str | pathlib.Path) -> bool:
    """Whether a folder holds a cache with all its shards (they are not read)."""
    folder = pathlib.Path(folder)
    return (folder / PROVENANCE_FILE).exists() and not _begun(folder, None).missing()


def imported(folder: str | pathlib.Path) -> str | None:
    """The fingerprint of the imported samples that a folder holds, or None where it holds none."""
    folder = pathlib.Path(folder)
    if not (folder / PROVENANCE_FILE).exists():
        return None
    return _read_record(folder)[0].imported


def load(folder: str | pathlib.Path, expected: Provenance | None = None) -> References:
    """The cache in `folder`; with `expected`, only if it is that cache.

    Raises InputError for another cache, missing or damaged shards, and a prompt without rewards.
    """
    folder = pathlib.Path(folder)
    if not (folder / PROVENANCE_FILE).exists():
        raise InputError(f"{folder}: no reference cache ({PROVENANCE_FILE}); build it with collect")
    layout = _begun(folder, expected)
    missing = layout.missing()
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {layout.shards} shards are missing (the first: "
            f"{layout.file(missing[0]).name}); run the command that builds it again to complete it"
        )
    parts = [_read_shard(layout, shard) for shard in range(layout.shards)]
    return References(
        *(np.concatenate(arrays) for arrays in zip(*parts, strict=True)),
        provenance=_read_record(folder)[0],
        files=tuple(layout.file(shard) for shard in range(layout.shards)),
        prompts_per_shard=layout.prompts_per_shard,
    )


def read(
    references: References, prompt_ids: Sequence[int], *, column: str = "responses"
) -> list[Any]:
    """One column of the cache for some prompts, in their order: M texts, or M token lists, each.

    `column` is one of the schema's ("prompt", "responses", "response_tokens", ...). Only the shards
    that hold the prompts are read.
    """
    size = references.prompts_per_shard
    ids = [int(prompt_id) for prompt_id in prompt_ids]
    tables = {
        shard: _open(references.files[shard], columns=[column])[column]
        for shard in sorted({prompt_id // size for prompt_id in ids})
    }
    return [tables[prompt_id // size][prompt_id % size].as_py() for prompt_id in ids]


def tokens(references: References) -> np.ndarray:
    """All response tokens [prompts, M, G] int32, 0 behind a response's end; G = max_new_tokens."""
    longest = references.provenance.max_new_tokens
    tokens_pmg = np.zeros((*references.lengths_pm.shape, longest), np.int32)
    inside_pmg = np.arange(longest) < references.lengths_pm[..., None]
    columns = [
        _open(file, columns=["response_tokens"])["response_tokens"] for file in references.files
    ]
    lists = pa.chunked_array([chunk for column in columns for chunk in column.chunks])
    tokens_pmg[inside_pmg] = lists.combine_chunks().flatten().flatten().to_numpy()
    return tokens_pmg


def _open(file: pathlib.Path, *, columns: list[str]) -> pa.Table:
    """Some columns of a shard."""
    try:
        return pq.read_table(file, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, str(error).partition("\n")[0]) from error


def _damaged(file: pathlib.Path, why: str) -> InputError:
    return InputError(f"{file}: damaged shard ({why}); delete it and run the same command again")


def _check_shard(layout: _Layout, shard: int) -> None:
    """Raises InputError for a shard that cannot be kept, from its footer alone."""
    file = layout.file(shard)
    try:
        metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise _damaged(file, str(error).partition("\n")[0]) from error
    if metadata.num_rows != len(layout.prompt_ids(shard)):
        raise _damaged(file, f"{metadata.num_rows} rows instead of {len(layout.prompt_ids(shard))}")
    if not metadata.schema.to_arrow_schema().equals(SCHEMA):
        raise _damaged(file, "it has other columns than this version writes")


def _read_shard(layout: _Layout, shard: int) -> tuple[np.ndarray, ...]:
    """Rewards, lengths, finished and log-probabilities of a shard, each [rows, M]."""
    _check_shard(layout, shard)
    file, rows = layout.file(shard), len(layout.prompt_ids(shard))
    names = ["prompt_id", "response_tokens", "finished", "log_probs", "rewards"]
    table = _open(file, columns=names).combine_chunks()
    if table["prompt_id"].to_pylist() != layout.prompt_ids(shard).tolist():
        raise _damaged(file, "it holds other prompts")

    def samples(name: str) -> pa.Array:
        column = table[name].combine_chunks()
        counts = np.diff(column.offsets.to_numpy())
        wrong = np.flatnonzero(counts != layout.samples_per_prompt)
        if wrong.size:
            prompt, wanted = layout.prompt_ids(shard)[wrong[0]], layout.samples_per_prompt
            raise _damaged(file, f"prompt {prompt} has {counts[wrong[0]]} {name}, not {wanted}")
        return column.flatten()

    def matrix(name: str) -> np.ndarray:
        return samples(name).to_numpy(zero_copy_only=False).reshape(rows, -1)

    rewards_pm = matrix("rewards")
    if not np.isfinite(rewards_pm).all():
        raise _damaged(file, "it has rewards that are not finite")
    lengths_s = np.diff(samples("response_tokens").offsets.to_numpy()).astype(np.int32)
    return rewards_pm, lengths_s.reshape(rows, -1), matrix("finished"), matrix("log_probs")
