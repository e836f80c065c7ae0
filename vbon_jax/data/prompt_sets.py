"""Files of rows in, arrays of one shape out: JSON lines, prompts, batches and packed sequences.

Everything here runs on the host in numpy, and every order is a pure function of a seed and a step,
so that a run that is resumed needs to know only its step.
"""

import hashlib
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.types import InputError

# Rows of a file -----------------------------------------------------------------------------------


def read_jsonl(
    path: str | pathlib.Path, fields: Sequence[str], *, types: Mapping[str, type] | None = None
) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file, in order; row `i` stood on line `i + 1`.

    Every row must have every one of `fields`, a string unless `types` names another type for it.
    Blank lines are passed over at the end of the file only. Raises InputError, with the file, the
    line and the field, for everything else.
    """
    return list(iterate_jsonl(path, fields, types=types))


def iterate_jsonl(
    path: str | pathlib.Path, fields: Sequence[str] = (), *, types: Mapping[str, type] | None = None
) -> Iterator[dict[str, Any]]:
    """The rows of `read_jsonl` one by one: no line is read before it is asked for."""
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a file of JSON lines")
    expected = {field: (types or {}).get(field, str) for field in fields}
    number = blank = 0  # blank: the first of the blank lines that were passed over just now
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _row(path, blank or number, b"" if blank else line, expected)
            else:
                blank = blank or number
    if number == 0 or blank == 1:
        raise InputError(f"{path}: the file is empty; give at least one JSON object, one a line")


def _row(path: pathlib.Path, number: int, line: bytes, expected: dict[str, type]) -> dict[str, Any]:
    """One checked line of a JSON-lines file."""
    where = f"{path}: line {number}"
    try:
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        what = "is blank" if not line.strip() else f"is not JSON ({error.msg})"
        raise InputError(f"{where} {what}; write one JSON object a line") from None
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}, not an object; write {{...}} rows")
    for field, kind in expected.items():
        if field not in row:
            has = ", ".join(sorted(row)) or "none"
            raise InputError(f"{where} has no field {field!r} (it has: {has}); add the field")
        # bool is an int to Python, and no number to a reader of the file
        if not isinstance(row[field], kind) or (isinstance(row[field], bool) and kind is not bool):
            found = type(row[field]).__name__
            raise InputError(
                f"{where}: field {field!r} is {found}, not {kind.__name__}; correct the row"
            )
    return row


# Prompts ------------------------------------------------------------------------------------------


class PromptSet(NamedTuple):
    """Distinct prompts in the order of their file, and what was left out on the way."""

    token_ids: list[tuple[int, ...]]
    texts: list[str]  # decoded, without the BOS that the tokenizer puts in front, for display
    dropped: int = 0  # longer than there is room for, and left out
    truncated: int = 0  # longer than there is room for, and cut to their last tokens
    duplicates: int = 0  # the same tokens as an earlier prompt
    held_out_overlap: int = 0  # left out because they were among `exclude`
    columns: Mapping[str, list] = {}  # for each prompt the other fields of its (first) row


def fingerprint(prompts: PromptSet, columns: Collection[str] | None = ()) -> str:
    """The sha256 (hex) of the token ids of the prompts, in order; texts and counts do not enter.

    Those of `columns` (None = all) that the prompts have do, where a reward reads them.
    """
    digest = hashlib.sha256()
    for ids in prompts.token_ids:
        digest.update(np.asarray([len(ids), *ids], "<i8").tobytes())
    for name in sorted(prompts.columns):
        if columns is None or name in columns:
            digest.update(json.dumps([name, prompts.columns[name]], default=str).encode())
    return digest.hexdigest()


def front(tokenizer: Any) -> tuple[int, ...]:
    """What a tokenizer puts in front of every text by itself: a BOS (Llama, Gemma), or nothing."""
    ids = tokenizer([""], verbose=False)["input_ids"][0]
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and list(ids[:1]) == [bos] else ()


def as_prompts(tokenizer: Any, texts: Sequence[str]) -> list[tuple[int, ...]]:
    """Token ids of texts that a model is to continue: no special tokens but the `front`, once.

    A text that a chat template has rendered may have it already.
    """
    first = front(tokenizer)
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [(*first, *(ids[1:] if first and ids[:1] == [*first] else ids)) for ids in rows]


def last_tokens(ids: tuple[int, ...], longest: int, first: tuple[int, ...]) -> tuple[int, ...]:
    """A prompt's last tokens behind its `front`, `longest` in all."""
    room = longest - len(first)
    return first + ids[len(first) :][-room:] if room > 0 else first


def build_prompts(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    min_tokens: int,
    max_tokens: int,
    limit: int,
    seed: int,
    longest: int,
    over_long: str = "error",
    source: str,
    places: Sequence[str] = (),
    exclude: Collection[tuple[int, ...]] = (),
    columns: Mapping[str, Sequence[Any]] = {},
) -> PromptSet:
    """Prompts from the texts of a file's rows (row `i` at `places[i]`, else on line `i + 1`).

    With `max_tokens > 0` a prompt is the first k tokens of its text, k uniform on `min_tokens` to
    `max_tokens` and a pure function of (`seed`, row), or the whole of a shorter text; with
    `max_tokens == 0` the whole text is the prompt. The `front` of the tokenizer comes before these
    tokens, and no other special token; a prompt without any becomes the BOS.

    A prompt of more than `longest` tokens (what the model's positions leave beside the new ones) is
    an `"error"`, is cut to its last tokens behind the `front` (`"truncate"`), or is left out
    (`"drop"`).
    Prompts with the same tokens are kept once; none of `exclude` (the training prompts, when these
    are held out) is kept. `limit > 0` keeps that many, a random subset by `seed`. `columns` are the
    other fields of the rows, of which a prompt keeps those of its first row. Raises InputError for
    an over-long or empty prompt, and when no prompt is left.
    """
    _check_prompt_options(min_tokens, max_tokens, limit, longest, over_long, source)
    first, rows = front(tokenizer), as_prompts(tokenizer, texts)
    if max_tokens > 0:
        rows = _beginnings(rows, len(first) + min_tokens, len(first) + max_tokens, seed)
    rows = [
        ids or beginning(tokenizer, _where(source, places, row)) for row, ids in enumerate(rows)
    ]

    fitted, over = _fit(rows, longest, first, over_long, source, places)
    kept = [(ids, row) for row, ids in enumerate(fitted) if ids is not None]
    row_of = dict(reversed(kept))  # each distinct prompt's first row
    distinct = list(dict(kept))
    left = [ids for ids in distinct if ids not in exclude]
    overlap = len(distinct) - len(left)
    if not left:
        raise InputError(_nothing_left(source, len(texts), over, len(distinct)))
    if 0 < limit < len(left):
        order = np.random.default_rng([seed, 1]).permutation(len(left))
        left = [left[position] for position in np.sort(order[:limit])]
    return PromptSet(
        token_ids=left,
        texts=tokenizer.batch_decode(
            [ids[len(first) :] for ids in left], clean_up_tokenization_spaces=False
        ),
        dropped=over if over_long == "drop" else 0,
        truncated=over if over_long == "truncate" else 0,
        duplicates=len(kept) - len(distinct),
        held_out_overlap=overlap,
        columns={name: [values[row_of[i]] for i in left] for name, values in columns.items()},
    )


def _check_prompt_options(min_tokens, max_tokens, limit, longest, over_long, source) -> None:
    """Raises InputError for options that leave no prompt or have no meaning."""
    if over_long not in ("error", "truncate", "drop"):
        raise InputError(f"over_long is {over_long!r}; choose error, truncate or drop")
    if max_tokens < 0 or (max_tokens > 0 and not 1 <= min_tokens <= max_tokens):
        raise InputError(
            f"prompts of {min_tokens} to {max_tokens} tokens do not exist; "
            "give 1 <= min_tokens <= max_tokens, or max_tokens = 0 for whole texts"
        )
    if limit < 0:
        raise InputError(f"the limit of prompts is {limit}; give 0 for all of them, or a number")
    if longest < 1:
        raise InputError(
            f"{source}: the new tokens leave {longest} positions for a prompt; ask for fewer"
        )


def _beginnings(
    rows: list[tuple[int, ...]], least: int, most: int, seed: int
) -> list[tuple[int, ...]]:
    """The first k tokens of each row, k uniform on `least` to `most`."""
    drawn = np.random.default_rng(seed).integers(0, most - least + 1, size=len(rows))
    return [ids[: least + cut] for ids, cut in zip(rows, drawn.tolist(), strict=True)]


def _where(source: str, places: Sequence[str], row: int) -> str:
    """Where a row stands, for an error."""
    return f"{source}: {places[row] if places else f'line {row + 1}'}"


def beginning(tokenizer: Any, where: str) -> tuple[int, ...]:
    """What an empty prompt becomes: the BOS token alone."""
    if tokenizer.bos_token_id is None:
        raise InputError(
            f"{where} has an empty prompt and the tokenizer no BOS token to begin with; give it "
            "a text"
        )
    return (tokenizer.bos_token_id,)


def _fit(
    rows: list[tuple[int, ...]],
    longest: int,
    first: tuple[int, ...],
    over_long: str,
    source: str,
    places: Sequence[str],
) -> tuple[list[tuple[int, ...] | None], int]:
    """The rows with the over-long ones cut or left out (None), and how many were over-long."""
    over = [row for row, ids in enumerate(rows) if len(ids) > longest]
    if over and over_long == "error":
        place = places[over[0]] if places else f"line {over[0] + 1}"
        raise InputError(
            f"{source}: {len(over)} of {len(rows)} prompts are longer than {longest} tokens (the "
            f"first on {place}, {len(rows[over[0]])} tokens); set over_long to truncate or drop, "
            "ask for fewer new tokens, or raise longest_prompt where it is set"
        )
    if over_long == "drop":
        return [ids if len(ids) <= longest else None for ids in rows], len(over)
    return [last_tokens(i, longest, first) if len(i) > longest else i for i in rows], len(over)


def _nothing_left(source: str, rows: int, over: int, distinct: int) -> str:
    """Why a file gave no prompt."""
    if distinct:
        return (
            f"{source}: all {distinct} prompts are among the training prompts; give another file, "
            "or prompts of more tokens"
        )
    return f"{source}: none of {rows} rows is left, {over} were too long; give shorter prompts"


# Preference pairs ---------------------------------------------------------------------------------


class PairSet(NamedTuple):
    """Preferences that were given, and what was left out on the way."""

    prompt_ids: list[tuple[int, ...]]
    chosen_ids: list[tuple[int, ...]]  # the EOS is the last one, unless it was cut off
    rejected_ids: list[tuple[int, ...]]
    tied: int = 0  # chosen and rejected are the same, and left out
    dropped: int = 0  # longer than there is room for, and left out
    truncated: int = 0  # longer than there is room for, and cut


def build_pairs(
    rows: Sequence[Mapping[str, str]],
    tokenizer: Any,
    *,
    eos_token_id: int,
    new_tokens: int,
    longest: int,
    over_long: str = "error",
    source: str,
    places: Sequence[str] = (),
) -> PairSet:
    """Pairs from the fields `prompt`, `chosen` and `rejected` of a file's rows (see build_prompts).

    Prompt (`as_prompts`) and response are tokenised apart and the response ends with one EOS, its
    own or ours. A prompt of more than `longest` tokens, or a response of more than `new_tokens`, is
    an `"error"`, is cut (a prompt to its last tokens behind the `front`, a response to its first,
    without EOS: `"truncate"`), or leaves its row out (`"drop"`). A row whose responses are then the
    same says nothing: it is left out and counted. Raises InputError for what is over-long, an EOS
    inside a response, an empty prompt without a BOS, and where no pair is left.
    """
    first, prompts = front(tokenizer), as_prompts(tokenizer, [row["prompt"] for row in rows])
    ids = {
        field: tokenizer([row[field] for row in rows], add_special_tokens=False, verbose=False)
        for field in ("chosen", "rejected")
    }
    kept, tied, over = [], 0, 0
    for row in range(len(rows)):
        where = _where(source, places, row)
        prompt = prompts[row] or beginning(tokenizer, where)
        chosen, rejected = (
            ended(ids[field]["input_ids"][row], eos_token_id, f"{where}: field {field!r}")
            for field in ("chosen", "rejected")
        )
        if len(prompt) > longest or max(len(chosen), len(rejected)) > new_tokens:
            over += 1
            if over_long == "error":
                raise InputError(
                    f"{where}: a prompt of {len(prompt)} tokens (room for {longest}) and responses "
                    f"of {len(chosen)} and {len(rejected)} (room for {new_tokens}); set "
                    "data.over_long to truncate or drop, or change sampling.max_new_tokens"
                )
            if over_long == "drop":
                continue
        if len(prompt) > longest:
            prompt = last_tokens(prompt, longest, first)
        pair = prompt, chosen[:new_tokens], rejected[:new_tokens]
        if pair[1] == pair[2]:
            tied += 1
        else:
            kept.append(pair)
    if not kept:
        raise InputError(
            f"{source}: none of {len(rows)} pairs is left ({tied} with equal responses, {over} too "
            "long); give others"
        )
    counts = {"drop": {"dropped": over}, "truncate": {"truncated": over}}.get(over_long, {})
    return PairSet(*(list(column) for column in zip(*kept, strict=True)), tied=tied, **counts)


def ended(ids: Sequence[int], eos_token_id: int, where: str) -> tuple[int, ...]:
    """A response's tokens with one EOS behind them, its own or ours.

    Raises InputError (at `where`) for an EOS before the end.
    """
    words = ids[:-1] if ids and ids[-1] == eos_token_id else ids
    if eos_token_id in words:
        raise InputError(f"{where} has an end-of-text token before its end; take it out")
    return (*words, eos_token_id)
