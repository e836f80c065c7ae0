"""Rows of token ids for the methods `sft` and `reward_model`, all built before training."""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vbon_jax.data import batching, formats, response_ids, reward_inputs, token_ids
from vbon_jax.data.response_ids import Ends
from vbon_jax.data.sources import Table
from vbon_jax.data.token_ids import Ids
from vbon_jax.types import InputError, Sequences

logger = logging.getLogger(__name__)
REMEDY = "set data.over_long to truncate or drop, or raise train.text_tokens"


class LabelRows(NamedTuple):
    """Texts and the numbers of their classes."""

    tokens_rt: np.ndarray  # [R, T] int32, padded with 0 on the right
    lengths_r: np.ndarray  # [R] int32
    labels_r: np.ndarray  # [R] int32


class PreferenceRows(NamedTuple):
    """Texts of which the first was preferred to the second."""

    chosen_rt: np.ndarray
    chosen_lengths_r: np.ndarray
    rejected_rt: np.ndarray
    rejected_lengths_r: np.ndarray
    label_r: np.ndarray  # [R] int32, the label whose logit is the reward


Rows = Sequences | LabelRows | PreferenceRows


def texts(
    config: ConfigDict, table: Table, tokenizer: Any, labels: Sequence[str] = ()
) -> list[str]:
    """Every text of a table that the method reads; with a tokenizer conversations too.

    `labels` are those of the classifier, () for a head that is made for these rows.
    """
    fields = config.data
    if config.method == "sft" and fields.completion_field:
        given = _completions(config, table, tokenizer)
        return [*given.prompts, *given.completions]
    if config.method == "sft":
        return formats.texts(table, name=fields.field, tokenizer=tokenizer)
    if fields.label_field:
        return labelled(config, table, labels)[0]
    given = _preferences(config, table, tokenizer)
    return [*given.prompts, *given.chosen, *given.rejected]


def labelled(
    config: ConfigDict, table: Table, labels: Sequence[str] = ()
) -> tuple[list[str], list[int]]:
    """The texts of a table and the numbers of their classes, one of `labels` each (see `texts`)."""
    fields = config.data
    classes = len(labels) or formats.MOST_CLASSES
    return formats.labelled(table, name=fields.field, label=fields.label_field, classes=classes)


def texts_of(rows: Rows, most: int) -> list[tuple[tuple[int, ...], ...]]:
    """The first `most` tokens of each text of each row, as what tells it from others.

    The class of a row does not.
    """
    if isinstance(rows, Sequences):
        sides = [(rows.tokens_st, rows.lengths_s)]
    elif isinstance(rows, LabelRows):
        sides = [(rows.tokens_rt, rows.lengths_r)]
    else:
        sides = [(rows.chosen_rt, rows.chosen_lengths_r),
                 (rows.rejected_rt, rows.rejected_lengths_r)]  # fmt: skip
    return [
        tuple(tuple(tokens_rt[row, : min(lengths_r[row], most)].tolist())
              for tokens_rt, lengths_r in sides)
        for row in range(len(rows[0]))
    ]  # fmt: skip


def has_prompts(config: ConfigDict) -> bool:
    """Whether the rows that the method reads have prompts: completions, or preferences."""
    fields = config.data
    return bool(fields.completion_field) if config.method == "sft" else not fields.label_field


def build(
    config: ConfigDict,
    table: Table,
    tokenizer: Any,
    ends: Ends,
    labels: Sequence[str] = (),
    *,
    room: int = 0,
) -> Rows:
    """All rows of a table as the method of the configuration reads them, numpy arrays.

    `sft` reads a text (`data.field`), all of it learned but its first token, or a prompt with the
    completion that is learned (`data.completion_field`), each with one EOS (of `ends`) behind it.
    `reward_model` reads a text and its class (`data.label_field`), or, where that is "",
    preferences: a prompt with its better and with its worse response, as `reward_inputs` reads
    them. Rows have `train.text_tokens` tokens, or `room`; what is longer is treated as
    `data.over_long` says: a classifier keeps its end, and of a text of `sft` the end is always cut.
    Raises InputError for a row that cannot be used.
    """
    room = room or config.train.text_tokens
    if config.method == "sft":
        if not ends.ids:
            raise InputError("sft: the policy's folder names no EOS token to end texts with")
        rows, counts = _sft_rows(config, table, tokenizer, ends)
    elif config.data.label_field:
        rows, counts = _label_rows(config, table, tokenizer, labels, room)
    else:
        rows, counts = _preference_rows(config, table, tokenizer, labels, room)
    if not len(rows[0]):
        raise InputError(f"{table.source}: no row is left; raise train.text_tokens or give others")
    changes = ", ".join(f"{count} {name}" for name, count in counts.items())
    logger.info(f"{len(rows[0])} of {len(table.rows)} rows in {table.source} ({changes})")
    return rows


def _preferences(config: ConfigDict, table: Table, tokenizer: Any) -> formats.Preferences:
    return formats.read_pairs(config.pairs, tokenizer, table)


def _completions(config: ConfigDict, table: Table, tokenizer: Any) -> formats.Completions:
    """Prompts with what follows them: of preferences, where "chosen" does, the preferred ones."""
    fields = config.data
    if fields.completion_field == "chosen":
        given = _preferences(config, table, tokenizer)
        return formats.Completions(given.prompts, given.chosen, given.places)
    return formats.completions(
        table, prompt=fields.field, completion=fields.completion_field, tokenizer=tokenizer
    )


def _sft_rows(config: ConfigDict, table: Table, tokenizer: Any, ends: Ends):
    block = config.train.text_tokens
    if config.data.completion_field:
        given = _completions(config, table, tokenizer)
        return completion_rows(given, tokenizer, ends, block, config.data.over_long)
    return text_rows(table, config.data.field, tokenizer, ends, block)


def text_rows(
    table: Table, field: str, tokenizer: Any, ends: Ends, block: int
) -> tuple[Sequences, dict[str, int]]:
    """Texts as sequences, and how many were cut: to `block` tokens, without EOS.

    The first token, a BOS where the tokenizer puts one, is the prompt. A conversation keeps the
    ends that its template writes behind earlier turns. InputError for an EOS inside of a text.
    """
    whole = formats.texts(table, name=field, tokenizer=tokenizer, end=False)
    prefix, rows = token_ids.bos_prefix(tokenizer), []
    for row, ids in enumerate(token_ids.plain_ids(tokenizer, whole)):
        ids = ids[1:] if prefix and ids[:1] == prefix else ids
        if isinstance(table.rows[row][field], list):
            _check_contents(table.rows[row][field], tokenizer, ends, table.where(row))
            rows.append(prefix + ids + response_ids.with_eos((), ends, table.where(row)))
        else:
            rows.append(prefix + response_ids.with_eos(ids, ends, table.where(row)))
    fitted, too_long = token_ids.fit(
        rows, block, "truncate", table.places, keep="beginning", remedy=REMEDY
    )
    return _sequences([1] * len(fitted), fitted, block), {"truncated": len(too_long)}


def _check_contents(messages: formats.Messages, tokenizer: Any, ends: Ends, where: str) -> None:
    """InputError where a message itself has the text of an EOS, which the template is to write."""
    for place, message in enumerate(messages, start=1):
        for end in tokenizer.convert_ids_to_tokens(list(ends.ids)):
            if end is not None and end in message["content"]:
                raise InputError(f"{where}: message {place} has {end!r} in its text; take it out")


def completion_rows(
    given: formats.Completions,
    tokenizer: Any,
    ends: Ends,
    block: int,
    over_long: str,
) -> tuple[Sequences, dict[str, int]]:
    """Prompts with their completions and an EOS, and what was left out.

    A pair of more than `block` tokens loses the beginning of its prompt and, where that is not
    enough, the end of its completion with the EOS ("truncate"), or as `over_long` says.
    """
    places = [f"{place}: the completion" for place in given.places]
    prompts = response_ids.given_prompts(tokenizer, given.prompts, given.places)
    completions = response_ids.encode_responses(
        tokenizer, prompts, given.completions, ends, places, ended=True
    )
    after, over = token_ids.fit(
        completions, block - 1, over_long, places, keep="beginning", remedy=REMEDY
    )
    rooms = [block - len(ids or ()) for ids in after]
    before, over_too = token_ids.fit(
        prompts, rooms, over_long,
        [f"{place}: the prompt, beside its completion," for place in given.places],
        keep="end", prefix=token_ids.bos_prefix(tokenizer), remedy=REMEDY,
    )  # fmt: skip
    kept = [pair for pair in zip(before, after, strict=True) if None not in pair]
    rows = _sequences([len(ids) for ids, _ in kept], [a + b for a, b in kept], block)
    return rows, token_ids.left_out(over_long, over | over_too)


def _sequences(prompt_lengths: list[int], rows: Sequence[Ids], block: int) -> Sequences:
    lengths_s = np.asarray([len(ids) for ids in rows], np.int32)
    tokens_st = batching.pad_rows(rows, lengths_s, block)
    return Sequences(tokens_st, np.asarray(prompt_lengths, np.int32), lengths_s)


def _label_rows(config: ConfigDict, table: Table, tokenizer: Any, labels: Sequence[str], room: int):
    whole, numbers = labelled(config, table, labels)
    nothing = [""] * len(whole)
    rows, too_long = reward_inputs.read(
        tokenizer, reward_inputs.Reading(), nothing, whole, None,
        [f"{place}: the text" for place in table.places],
        room=room, over_long=config.data.over_long, remedy=REMEDY,
    )  # fmt: skip
    kept = [pair for pair in zip(rows, numbers, strict=True) if pair[0] is not None]
    labels_r = np.asarray([label for _, label in kept], np.int32)
    counts = token_ids.left_out(config.data.over_long, too_long)
    return LabelRows(*_padded([ids for ids, _ in kept], room), labels_r), counts


def reading(
    config: ConfigDict, table: Table, tokenizer: Any, labels: Sequence[str]
) -> reward_inputs.Reading | None:
    """How `reward_model` reads the preferences of a table; None for any other rows.

    `labels` are the classifier's, of which `reward.label` is taught; () of a head of one. Raises
    InputError.
    """
    if config.method != "reward_model" or config.data.label_field:
        return None
    where, labels = f"reward_model on {table.source}", tuple(labels) or ("LABEL_0",)
    one = len(labels) == 1
    index = 0 if one else reward_inputs.label_index(where, config.reward.label, labels)
    names = ("prompt", "chosen", "best")
    conversations = any(isinstance(row.get(name), list) for row in table.rows for name in names)
    if conversations and config.reward.template == "none":
        raise InputError(
            f"{where}: its rows are conversations, which are read by the chat template; leave "
            "reward.template out"
        )
    return reward_inputs.choose(
        config.reward, tokenizer, labels[index], conversations=conversations, where=where
    )


def _preference_rows(
    config: ConfigDict, table: Table, tokenizer: Any, labels: Sequence[str], room: int
):
    given, sides, too_long = _preferences(config, table, tokenizer), [], set()
    taught = reading(config, table, tokenizer, labels)
    for responses in (given.chosen, given.rejected):
        rows, over = reward_inputs.read(
            tokenizer, taught, given.prompts, responses, given.conversations,
            [f"{place}: the text" for place in given.places],
            room=room, over_long=config.data.over_long, remedy=REMEDY,
        )  # fmt: skip
        sides.append(rows)
        too_long |= over
    fitted = [pair for pair in zip(*sides, strict=True) if None not in pair]
    kept = [pair for pair in fitted if pair[0] != pair[1]]
    arrays = [array for side in (0, 1) for array in _padded([pair[side] for pair in kept], room)]
    tied = given.tied + len(fitted) - len(kept)  # also those that are equal once they are cut
    counts = token_ids.left_out(config.data.over_long, too_long) | {"tied": tied}
    label = labels.index(taught.label) if labels else 0
    label_r = np.full(len(kept), label, np.int32)
    return PreferenceRows(*arrays, label_r), counts


def _padded(rows: Sequence[Ids], room: int) -> tuple[np.ndarray, np.ndarray]:
    lengths_r = np.asarray([len(ids) for ids in rows], np.int32)
    return batching.pad_rows(rows, lengths_r, room), lengths_r
