"""ROUGE of stored responses against the texts that the held-out rows have: `data.reference_field`.

Stands in `evaluation/rouge` of each run (`reference/rouge` for the reference's); its numbers are
columns of the results.
"""

import hashlib
import json
import pathlib
from typing import Any

from ml_collections import ConfigDict

from vbon_jax.data import configured, formats, prompt_sets, sources
from vbon_jax.evaluation import rouge, stored_responses
from vbon_jax.evaluation.bootstrap import estimate
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError

FOLDER = "rouge"


def references(config: ConfigDict, tokenizer, prompts: list[tuple[int, ...]]) -> list[list[str]]:
    """The reference texts of each held-out prompt (token ids): those of every row that it begins.

    A row is a prompt's where the prompt is its text, the text's last tokens where it was too long,
    or the first `min_tokens` to `max_tokens` of it. Raises InputError for such a row without the
    field, a reference without words, and a prompt that no row has.
    """
    settings = config.data
    if not settings.eval:
        raise InputError(
            f"data.reference_field={settings.reference_field!r}: name the held-out rows that have "
            "it, data.eval; the embedded reviews have no references"
        )
    table = configured.read(config, settings.eval, "eval")
    texts = formats.prompts(table, name=settings.field, tokenizer=tokenizer)
    ids = prompt_sets.as_prompts(tokenizer, texts)
    found: dict[tuple[int, ...], list[str]] = {tuple(prompt): [] for prompt in prompts}
    longest = max(map(len, found))
    for row, tokens in enumerate(ids):
        for prompt in _beginnings(tokens, longest, settings, tokenizer) & found.keys():
            held = row_texts(table, row, settings.reference_field)
            found[prompt] += [text for text in held if text not in found[prompt]]
    missing = [at for at, prompt in enumerate(prompts) if not found[tuple(prompt)]]
    if missing:
        raise InputError(
            f"{table.source}: {len(missing)} of {len(prompts)} held-out prompts (the first: number "
            f"{missing[0]}) stand in none of its rows; give the rows that they were made from"
        )
    return [found[tuple(prompt)] for prompt in prompts]


def _beginnings(tokens: tuple, longest: int, settings: ConfigDict, tokenizer) -> set[tuple]:
    """Every prompt that a row of these tokens may have become."""
    if not tokens:
        return {(tokenizer.bos_token_id,)}
    first, cuts = prompt_sets.front(tokenizer), [None]
    if settings.max_tokens > 0:
        cuts = [len(first) + n for n in range(settings.min_tokens, settings.max_tokens + 1)]
    whole = {tokens[:cut] for cut in cuts}
    return whole | {prompt_sets.last_tokens(ids, longest, first) for ids in whole}


def row_texts(table: sources.Rows, row: int, name: str) -> list[str]:
    """The reference or references of one row; InputError for one without words."""
    value = formats.field(table, row, name)
    values = value if isinstance(value, list) else [value]
    for text in values:
        if not isinstance(text, str) or not rouge.has_words(text):
            raise InputError(
                f"{table.where(row)}: field {name!r} is {str(text)[:40]!r}; give a text with words "
                "(letters a to z, digits), or a list of such texts"
            )
    if not values:
        raise InputError(f"{table.where(row)}: field {name!r} is an empty list; give it a text")
    return values


def measure(
    config: ConfigDict,
    folder: pathlib.Path,
    cache: reference_cache.References,
    texts: list[list[str]],
) -> None:
    """ROUGE of the responses that stand in `folder`, in `folder/rouge`, where it is missing.

    `texts` are the `references` of the held-out prompts. Raises InputError where it stands and
    was made from others.
    """
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    options = {"seed": config.evaluation.seed, "resamples": config.evaluation.resamples}
    inputs = {"reference_field": config.data.reference_field, "reference texts": digest} | options

    def work_out(responses: stored_responses.Stored, stage: pathlib.Path) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for name, value_bk in rouge.f_measures(responses.texts, texts).items():
            row |= stored_responses.columns(name, estimate(value_bk, **options))
        return row

    stored_responses.derive(folder, FOLDER, cache, inputs, work_out)
