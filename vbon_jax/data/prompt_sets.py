"""Prompts and preference pairs as token ids: distinct, in the order of their source, of one rule.

Every choice is a pure function of a seed and of the row.
"""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.data import formats, response_ids, token_ids
from vbon_jax.data.response_ids import Ends
from vbon_jax.data.sources import Table
from vbon_jax.data.token_ids import Ids
from vbon_jax.functional import streams
from vbon_jax.types import InputError

logger = logging.getLogger(__name__)
REMEDY = "set data.over_long to truncate or drop"


class Learned(NamedTuple):
    """What runs and stages learn from: none of it is a prompt of another set."""

    ids: frozenset[Ids] = frozenset()  # training prompts
    prompts: frozenset[str] = frozenset()  # of given pairs and of stages
    texts: frozenset[str] = frozenset()  # of whole rows; a prompt may be the beginning of one

    def has_row(self, text: str) -> bool:
        """Whether the text of a row, from which a prompt is cut, is learned from."""
        return text.strip() in self.texts or text.strip() in self.prompts

    def has_prompt(self, ids: Ids, text: str) -> bool:
        """Whether a prompt is learned from, itself."""
        return ids in self.ids or text.strip() in self.prompts


NOTHING = Learned()


class PromptSet(NamedTuple):
    """Distinct prompts in the order of their source, and what was left out on the way."""

    token_ids: list[Ids]
    texts: list[str]  # decoded, without the BOS that the tokenizer puts in front, for display
    dropped: int = 0  # longer than there is room for, and left out
    truncated: int = 0  # longer than there is room for, and cut to their last tokens
    duplicates: int = 0  # the same tokens as an earlier prompt
    learned: int = 0  # left out because something learns from them
    columns: Mapping[str, list] = {}  # for each prompt the other fields of its (first) row
    conversations: Sequence[formats.Messages | None] = ()  # of the rows; () where all are texts
    whole: Sequence[str] = ()  # for each prompt the text of that row, of which it is the beginning


def fingerprint(
    prompts: PromptSet, columns: Collection[str] | None = (), *, conversations: bool = False
) -> str:
    """The sha256 (hex) of the token ids of the prompts, in order; texts and counts do not enter.

    Those of `columns` (None = all) that the prompts have do, and `conversations`, where a reward
    reads them.
    """
    read = {
        name: values
        for name, values in prompts.columns.items()
        if columns is None or name in columns
    }
    read_too = [list(prompts.conversations)] if conversations else []
    whole = [prompts.token_ids, read, *read_too]
    return files.digest(json.dumps(whole, sort_keys=True, default=str))


def build_prompts(
    table: Table,
    tokenizer: Any,
    settings: ConfigDict,
    *,
    longest: int,
    seed: int,
    limit: int = 0,
    exclude: Learned = NOTHING,
) -> PromptSet:
    """The prompts of a table, as `config.data` (`settings`) says.

    With `max_tokens > 0` a prompt is the first k tokens of its text, k uniform on `min_tokens` to
    `max_tokens` and a pure function of (`seed`, row), or the whole of a shorter text; with
    `max_tokens == 0` the whole text. The tokenizer's `bos_prefix` comes before these tokens. A
    prompt of more than `longest` tokens is treated as `over_long` says; a truncated one keeps its
    end. Prompts with the same tokens are kept once; those that `exclude` has, or that are cut from
    a row that it has, are left out and counted. `limit > 0` keeps that many, a random subset by
    `seed`. Raises InputError for an over-long or empty prompt, and when no prompt is left.
    """
    whole = formats.prompts(
        table, name=settings.field, tokenizer=tokenizer, max_tokens=settings.max_tokens
    )
    rows = _token_rows(whole, table.places, tokenizer, settings, seed)
    prefix = token_ids.bos_prefix(tokenizer)
    fitted, too_long = token_ids.fit(
        rows, longest, settings.over_long, [f"{place}: the prompt" for place in table.places],
        keep="end", prefix=prefix,
        remedy=f"{REMEDY}, lower sampling.max_new_tokens or raise data.longest_prompt",
    )  # fmt: skip
    kept = [(ids, row) for row, ids in enumerate(fitted) if ids is not None]
    row_of = dict(reversed(kept))  # each distinct prompt's first row
    distinct = list(dict(kept))
    decoded = tokenizer.batch_decode(
        [ids[len(prefix) :] for ids in distinct], clean_up_tokenization_spaces=False
    )
    text_of = dict(zip(distinct, decoded, strict=True))
    learned = {ids for ids, row in kept if exclude.has_row(whole[row])}
    left = [
        ids for ids in distinct if ids not in learned and not exclude.has_prompt(ids, text_of[ids])
    ]
    if not left:
        raise InputError(_nothing_left(table, len(too_long), len(distinct)))
    chosen = _subset(left, limit, seed)
    columns = formats.columns(table, without=settings.field)
    conversations = formats.conversations(table, name=settings.field)
    return PromptSet(
        token_ids=chosen,
        texts=[text_of[ids] for ids in chosen],
        duplicates=len(kept) - len(distinct),
        learned=len(distinct) - len(left),
        whole=[whole[row_of[ids]] for ids in chosen],
        columns={name: [values[row_of[i]] for i in chosen] for name, values in columns.items()},
        conversations=[conversations[row_of[ids]] for ids in chosen] if any(conversations) else (),
        **token_ids.left_out(settings.over_long, too_long),
    )


def _token_rows(
    texts: list[str], places: list[str], tokenizer: Any, settings: ConfigDict, seed: int
) -> list[Ids]:
    """The token ids of each row's text, or of its beginning."""
    rows = token_ids.prompt_ids(tokenizer, texts, places)
    least, most = settings.min_tokens, settings.max_tokens
    if not most:
        return rows
    if least > most:
        raise InputError(
            f"data.min_tokens={least} is above data.max_tokens={most}; give less, or "
            "data.max_tokens=0 for whole texts"
        )
    prefix = len(token_ids.bos_prefix(tokenizer))
    generator = streams.generator("length of prompts", seed)
    cuts = generator.integers(least, most + 1, size=len(rows))
    return [ids[: prefix + cut] for ids, cut in zip(rows, cuts.tolist(), strict=True)]


def _subset(prompts: list[Ids], limit: int, seed: int) -> list[Ids]:
    """`limit` random prompts in their order; all where it is 0 or there are no more."""
    if not 0 < limit < len(prompts):
        return prompts
    order = streams.generator("choice of prompts", seed).permutation(len(prompts))
    return [prompts[position] for position in np.sort(order[:limit])]


def _nothing_left(table: Table, too_long: int, distinct: int) -> str:
    """Why a source gave no prompt."""
    if distinct:
        return (
            f"{table.source}: all {distinct} prompts are among the training prompts, the given "
            "pairs or the rows of stages; give others"
        )
    return (
        f"{table.source}: none of {len(table.rows)} rows is left, {too_long} were too long; give "
        "shorter prompts"
    )


class Rows(NamedTuple):
    """The rows that prompts are made of, and texts that are learned from besides."""

    train: Table
    eval: Table
    pair_prompts: frozenset[str] = frozenset()  # of given pairs
    stage_prompts: frozenset[str] = frozenset()
    stage_texts: frozenset[str] = frozenset()


class PromptSets(NamedTuple):
    """The prompts of a study; no prompt is in two of the sets."""

    train: PromptSet
    eval: PromptSet  # what is published is measured on these; nothing learns from them
    selection: PromptSet | None  # curves are drawn and checkpoints chosen by these


def make_sets(config: ConfigDict, rows: Rows, tokenizer: Any, longest: int) -> PromptSets:
    """The training prompts of a configuration, held-out ones, and those to choose checkpoints by.

    Held-out prompts are none that training, given pairs or stages learn from. With
    `train.eval_every`, `train.eval_prompts` more of the training rows, from which no run learns,
    are for choosing. Raises InputError where too few prompts are left.
    """
    data = config.data

    def made(name: str, table: Table, limit: int, exclude: Learned = NOTHING) -> PromptSet:
        seed = config.references.seed
        prompts = build_prompts(
            table, tokenizer, data, longest=longest, seed=seed, limit=limit, exclude=exclude
        )
        logger.info(
            f"{name} prompts: {len(prompts.token_ids)} distinct of {len(table.rows)} rows in "
            f"{table.source} ({prompts.duplicates} repeated, {prompts.learned} left out that "
            f"training, pairs or stages learn from, {prompts.truncated} truncated, "
            f"{prompts.dropped} dropped)"
        )
        return prompts

    train = made("train", rows.train, data.train_limit)
    learned = Learned(
        frozenset(train.token_ids), rows.pair_prompts, frozenset(map(str.strip, train.whole))
    )
    of_stages = Learned(
        learned.ids, learned.prompts | rows.stage_prompts, learned.texts | rows.stage_texts
    )
    held_out = made("eval", rows.eval, data.eval_limit, of_stages)
    if len(held_out.token_ids) < 2:
        raise InputError(
            f"{rows.eval.source}: one held-out prompt gives no interval; give more rows, or a "
            "larger data.eval_limit"
        )
    if not config.train.eval_every:
        return PromptSets(train, held_out, None)
    count = config.train.eval_prompts
    try:
        selection = made("selection", rows.train, count, learned)
    except InputError as error:
        raise InputError(_none_to_choose_by(rows.train, count)) from error
    if len(selection.token_ids) < count:
        raise InputError(_none_to_choose_by(rows.train, count))
    return PromptSets(train, held_out, selection)


def _none_to_choose_by(table: Table, count: int) -> str:
    return (
        f"train.eval_every: {table.source} has no {count} prompts (train.eval_prompts) that no run "
        "trains on; give a smaller data.train_limit, a smaller train.eval_prompts or more rows"
    )


# Preference pairs ---------------------------------------------------------------------------------


class PairSet(NamedTuple):
    """Preferences that were given, and what was left out on the way."""

    prompt_ids: list[Ids]
    chosen_ids: list[Ids]  # the EOS is the last one, unless it was cut off
    rejected_ids: list[Ids]
    tied: int = 0  # chosen and rejected are the same, and left out
    dropped: int = 0  # longer than there is room for, and left out
    truncated: int = 0  # longer than there is room for, and cut


def build_pairs(
    given: formats.Preferences,
    tokenizer: Any,
    *,
    ends: Ends,
    new_tokens: int,
    longest: int,
    over_long: str = "error",
) -> PairSet:
    """Preferences as token ids, prompt and response apart, with one EOS behind a response.

    A prompt of more than `longest` tokens, or a response of more than `new_tokens`, is treated as
    `over_long` says: a prompt keeps its end, a response its beginning without the EOS. A row whose
    responses are then the same is left out. Raises InputError for an over-long row, an EOS inside a
    response, a text that cannot be tokenised, and where no pair is left.
    """
    whole = response_ids.given_prompts(tokenizer, given.prompts, given.places)
    prompts, too_long = token_ids.fit(
        whole, longest, over_long, [f"{place}: the prompt" for place in given.places],
        keep="end", prefix=token_ids.bos_prefix(tokenizer),
        remedy=f"{REMEDY}, or lower sampling.max_new_tokens",
    )  # fmt: skip
    sides = []
    for name, texts in (("chosen", given.chosen), ("rejected", given.rejected)):
        places = [f"{place}: field {name!r}" for place in given.places]
        responses, over = token_ids.fit(
            response_ids.encode_responses(tokenizer, whole, texts, ends, places, ended=True),
            new_tokens, over_long, places, keep="beginning",
            remedy=f"{REMEDY}, or raise sampling.max_new_tokens",
        )  # fmt: skip
        sides.append(responses)
        too_long |= over
    fitted = [row for row in zip(prompts, *sides, strict=True) if None not in row]
    kept = [row for row in fitted if row[1] != row[2]]
    tied = len(fitted) - len(kept)
    if not kept:
        raise InputError(
            f"{given.source}: none of {len(given.prompts)} pairs is left ({tied} with equal "
            f"responses, {len(too_long)} too long); give others"
        )
    return PairSet(
        *(list(column) for column in zip(*kept, strict=True)),
        tied=tied + given.tied,
        **token_ids.left_out(over_long, too_long),
    )
