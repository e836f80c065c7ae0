"""Texts as token ids: the BOS, and one rule for what is too long."""

from collections.abc import Sequence
from typing import Any

from vbon_jax.types import InputError

Ids = tuple[int, ...]


def bos_prefix(tokenizer: Any) -> Ids:
    """The BOS that a tokenizer puts before every text by itself (Llama, Gemma), or nothing."""
    ids = tokenizer([""], verbose=False)["input_ids"][0]
    bos = tokenizer.bos_token_id
    return (bos,) if bos is not None and list(ids[:1]) == [bos] else ()


def prompt_ids(tokenizer: Any, texts: Sequence[str], places: Sequence[str]) -> list[Ids]:
    """Token ids of texts that a model is to continue: no special token but the `bos_prefix`, once.

    A text that a chat template has rendered may begin with it already. An empty text becomes the
    BOS alone; InputError, at its place, where the tokenizer has none.
    """
    first = bos_prefix(tokenizer)
    rows = []
    for ids, place in zip(plain_ids(tokenizer, texts), places, strict=True):
        ids = first + (ids[1:] if first and ids[:1] == first else ids)
        if not ids and tokenizer.bos_token_id is None:
            raise InputError(f"{place} has an empty prompt and there is no BOS token; give a text")
        rows.append(ids or (tokenizer.bos_token_id,))
    return rows


def plain_ids(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Token ids of texts without special tokens."""
    rows = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    return [tuple(ids) for ids in rows]


def fit(
    rows: Sequence[Ids],
    rooms: int | Sequence[int],
    over_long: str,
    places: Sequence[str],
    *,
    keep: str,
    prefix: Ids = (),
    remedy: str,
) -> tuple[list[Ids | None], set[int]]:
    """Rows of token ids that fit their rooms, and which rows were too long.

    Such a row is an InputError (`over_long` "error"), None ("drop"), or keeps its "beginning", or
    its "end" behind the `prefix` ("truncate").
    """
    rooms = [rooms] * len(rows) if isinstance(rooms, int) else rooms
    too_long = [row for row, ids in enumerate(rows) if len(ids) > rooms[row]]
    if too_long and over_long == "error":
        first = too_long[0]
        raise InputError(
            f"{places[first]} has {len(rows[first])} tokens where {max(rooms[first], 0)} fit, and "
            f"{len(too_long)} of {len(rows)} rows are too long; {remedy}"
        )
    fitted: list[Ids | None] = list(rows)
    for row in too_long:
        ids, room = rows[row], rooms[row]
        if over_long == "drop":
            fitted[row] = None
        elif keep == "beginning":
            fitted[row] = ids[:room]
        else:
            left = room - len(prefix)
            fitted[row] = prefix + (ids[len(prefix) :][-left:] if left > 0 else ())
    return fitted, set(too_long)


def left_out(over_long: str, too_long: set[int]) -> dict[str, int]:
    """How many of the rows that `fit` found too long it dropped, and how many it truncated."""
    return {
        "dropped": len(too_long) if over_long == "drop" else 0,
        "truncated": len(too_long) if over_long == "truncate" else 0,
    }


def classifier_ids(
    tokenizer: Any,
    texts: Sequence[str],
    room: int,
    over_long: str,
    places: Sequence[str],
    *,
    keep: str,
    remedy: str,
) -> tuple[list[Ids | None], set[int]]:
    """`fit` of texts with the special tokens of a classifier's tokenizer, which stay in place."""
    rows = [tuple(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
    for ids, place in zip(rows, places, strict=True):
        if not ids:
            raise InputError(f"{place} is a text without tokens; give it words")
    fitted, too_long = fit(rows, room, over_long, places, keep=keep, remedy=remedy)
    if too_long and over_long == "truncate":
        side = tokenizer.truncation_side
        tokenizer.truncation_side = "right" if keep == "beginning" else "left"
        cut = tokenizer(list(texts), verbose=False, truncation=True, max_length=room)["input_ids"]
        tokenizer.truncation_side = side  # it is saved with a model
        fitted = [tuple(ids) for ids in cut]
    return fitted, too_long
