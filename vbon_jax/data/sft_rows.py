"""Rows of tokens for supervised training: of texts, of completions, of classes, of preferences."""

import bisect
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.data import batching, prompt_sets
from vbon_jax.types import InputError

_SIDES = {"end": "right", "beginning": "left"}


class TextRows(NamedTuple):
    """Texts as rows, one each or several, and what was left out on the way."""

    tokens_rt: np.ndarray  # [R, block] int32, padded with 0 on the right
    segments_rt: np.ndarray  # [R, block] int32, the number of a token's text in its row, from 1
    said_rt: np.ndarray  # [R, block] bool, what is to be said; never a text's first token
    dropped: int = 0
    truncated: int = 0


class _Piece(NamedTuple):
    """A text in a row; what begins at `start` is to be said."""

    ids: Sequence[int]
    start: int = 1


def text_rows(
    texts: Sequence[str], tokenizer: Any, *, block: int, eos_token_id: int, packed: bool = False
) -> TextRows:
    """Texts for supervised training, all of each to be said.

    Each text begins with what the tokenizer puts in front (`data.front`) and ends with an EOS. One
    text a row; a text of `block` tokens or more is cut to its first `block` and carries no EOS: its
    end was not seen. Or `packed`: all texts in order as one stream, cut into full rows (its
    remainder, less than a row, is left out, unless it is all there is); a text that is cut goes on
    in the next row as one of its own.
    """
    rows = [(*ids, eos_token_id) for ids in prompt_sets.as_prompts(tokenizer, texts)]
    if not packed:
        return _laid_out([[_Piece(ids[:block])] for ids in rows], block)
    cut = list(_cut(rows, block))
    full = [pieces for pieces in cut if sum(len(piece.ids) for piece in pieces) == block]
    return _laid_out(full or cut, block)


def _cut(rows: Sequence[Sequence[int]], block: int) -> Iterator[list[_Piece]]:
    """The stream of all rows in parts of `block` tokens; the last may be shorter."""
    held: list[_Piece] = []
    room = block
    for ids in rows:
        while ids:
            held.append(_Piece(ids[:room]))
            ids, room = ids[room:], room - len(held[-1].ids)
            if not room:
                yield held
                held, room = [], block
    if held:
        yield held


def _laid_out(rows: Sequence[Sequence[_Piece]], block: int, **left_out: int) -> TextRows:
    """Rows of pieces as arrays."""
    shape = len(rows), block
    tokens_rt, segments_rt = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    said_rt = np.zeros(shape, bool)
    for row, pieces in enumerate(rows):
        first = 0
        for number, piece in enumerate(pieces, start=1):
            end = first + len(piece.ids)
            tokens_rt[row, first:end] = piece.ids
            segments_rt[row, first:end] = number
            said_rt[row, first + piece.start : end] = True
            first = end
    return TextRows(tokens_rt, segments_rt, said_rt, **left_out)


def completion_rows(
    prompts: Sequence[str],
    completions: Sequence[str],
    tokenizer: Any,
    *,
    block: int,
    eos_token_id: int,
    packed: bool = False,
    over_long: str = "error",
    source: str,
    places: Sequence[str],
) -> TextRows:
    """Prompts with their completions and an EOS; the completion and the EOS are to be said.

    The two are tokenised apart, as a policy that is asked for the completion sees them. One pair a
    row, or `packed`: as many as fit, none of them cut. A pair of more than `block` tokens is an
    `"error"`, is left out (`"drop"`), or loses the beginning of its prompt and, where that is not
    enough, the end of its completion with the EOS (`"truncate"`). Raises InputError for a pair that
    is over-long, an empty prompt without a BOS, and where no row is left.
    """
    first, asked = prompt_sets.front(tokenizer), prompt_sets.as_prompts(tokenizer, prompts)
    said = tokenizer(list(completions), add_special_tokens=False, verbose=False)["input_ids"]
    pieces, over = [], 0
    for row, (before, after) in enumerate(zip(asked, said, strict=True)):
        before = before or prompt_sets.beginning(tokenizer, f"{source}: {places[row]}")
        after = prompt_sets.ended(after, eos_token_id, f"{source}: {places[row]}: the completion")
        if len(before) + len(after) > block:
            over += 1
            if over_long == "error":
                raise InputError(
                    f"{source}: {places[row]} has {len(before)} tokens and a completion of "
                    f"{len(after)}, together more than {block}; set data.over_long to truncate or "
                    "drop, or raise train.text_tokens"
                )
            if over_long == "drop":
                continue
            after = after[: block - 1]
            before = prompt_sets.last_tokens(before, block - len(after), first)
        pieces.append(_Piece((*before, *after), len(before)))
    if not pieces:
        raise InputError(f"{source}: none of {len(asked)} rows fits {block} tokens; give others")
    together = [[piece] for piece in pieces]
    if packed:
        shared = pack([len(piece.ids) for piece in pieces], block)
        together = [[pieces[index] for index in indices] for indices in shared]
    return _laid_out(
        together,
        block,
        dropped=over if over_long == "drop" else 0,
        truncated=over if over_long == "truncate" else 0,
    )


def pack(lengths: Sequence[int], block: int) -> list[list[int]]:
    """Which texts share a row of `block` tokens, by index: best-fit decreasing.

    `lengths` are from 1 to `block`. The longest first, each where the least room is left behind it.
    """
    rows: list[list[int]] = []
    by_room: dict[int, list[int]] = {}  # rows with so much room left
    rooms: list[int] = []  # its keys in order
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        at = bisect.bisect_left(rooms, lengths[index])
        if at == len(rooms):
            room, row = block, len(rows)
            rows.append([])
        else:
            room = rooms[at]
            row = by_room[room].pop()
            if not by_room[room]:
                del by_room[room], rooms[at]
        rows[row].append(index)
        if left := room - lengths[index]:
            if left not in by_room:
                bisect.insort(rooms, left)
            by_room.setdefault(left, []).append(row)
    return rows


def scored_rows(
    texts: Sequence[str],
    tokenizer: Any,
    *,
    block: int,
    over_long: str = "error",
    lost: str = "end",
    source: str,
    places: Sequence[str],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whole texts as a classifier reads them: tokens `[R, block]`, lengths `[R]`, and which fit.

    With the special tokens of the tokenizer. A text of more than `block` tokens is an `"error"`,
    is cut (`"truncate"`), or does not fit (`"drop"`): `[R]` bool, its row empty. What is `lost` of
    a text that is cut is its "end", or its "beginning", as where a response follows a prompt.
    """
    cut = {"truncation": True, "max_length": block} if over_long == "truncate" else {}
    side, tokenizer.truncation_side = tokenizer.truncation_side, _SIDES[lost]
    rows = tokenizer(list(texts), verbose=False, **cut)["input_ids"]
    tokenizer.truncation_side = side  # it is saved with the model
    for row, ids in enumerate(rows):
        if not ids or (len(ids) > block and over_long == "error"):
            raise InputError(
                f"{source}: {places[row]} has a text of {len(ids)} tokens where 1 to {block} fit; "
                "set data.over_long to truncate or drop, or raise train.text_tokens"
            )
    fits_r = np.asarray([len(ids) <= block for ids in rows])
    kept = [ids if fits else [] for ids, fits in zip(rows, fits_r, strict=True)]
    lengths_r = np.asarray([len(ids) for ids in kept], np.int32)
    return batching.pad_rows(kept, lengths_r, block), lengths_r, fits_r
