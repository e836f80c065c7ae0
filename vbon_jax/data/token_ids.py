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
    suffix: Ids = (),
    remedy: str,
) -> tuple[list[Ids | None], set[int]]:
    """Rows of token ids that fit their rooms, and which rows were too long.

    Such a row is an InputError (`over_long` "error"), None ("drop"), or keeps its "beginning", or
    its "end" between the `prefix` and the `suffix` ("truncate").
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
            left = room - len(prefix) - len(suffix)
            inner = ids[len(prefix) : len(ids) - len(suffix)]
            fitted[row] = prefix + (inner[-left:] if left > 0 else ()) + suffix
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
    remedy: str,
) -> tuple[list[Ids | None], set[int]]:
    """`fit` of texts with the special tokens that a classifier's tokenizer puts around them.

    They stay in place, the BOS once, and a text that is cut keeps its end. A text without tokens is
    the BOS, else the EOS; InputError, at its place, where the tokenizer has neither.
    """
    bare, rows = plain_ids(tokenizer, texts), []
    prefix, suffix = _frame(tokenizer, texts, bare)
    for ids, place in zip(bare, places, strict=True):
        ids = ids[1:] if prefix and ids[:1] == prefix[-1:] == (tokenizer.bos_token_id,) else ids
        rows.append(prefix + ids + suffix or _lone(tokenizer, place))
    return fit(
        rows, room, over_long, places, keep="end", prefix=prefix, suffix=suffix, remedy=remedy
    )


def _lone(tokenizer: Any, place: str) -> Ids:
    """The token that a text without tokens is read as."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return (token,)
    raise InputError(
        f"{place} has no token, and the classifier's tokenizer no BOS or EOS to read in its place; "
        "give it words, or have the prompt read too (reward.text=full)"
    )


def _frame(tokenizer: Any, texts: Sequence[str], bare: Sequence[Ids]) -> tuple[Ids, Ids]:
    """The special tokens that a tokenizer puts before and behind each text, of ids `bare`."""
    text, ids = next((pair for pair in zip(texts, bare, strict=True) if pair[1]), ("", ()))
    whole = tuple(tokenizer([text], verbose=False)["input_ids"][0])
    for start in range(len(bos_prefix(tokenizer)), len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], whole[start + len(ids) :]
    raise InputError(
        f"{tokenizer.name_or_path}: the tokenizer writes a text in another way beside its special "
        "tokens; use another classifier"
    )
