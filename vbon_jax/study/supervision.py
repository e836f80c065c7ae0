"""What `sft` and `reward_model` read, and how well they do on held-out rows.

Rows of a table become arrays here, checked before anything is computed.
"""

import functools
import logging
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax.data import batching, configured, formats, sft_rows, sources
from vbon_jax.evaluation.bootstrap import Estimate, estimate, estimate_of_means
from vbon_jax.models import classifier
from vbon_jax.training.methods import sft
from vbon_jax.types import InputError, Params

logger = logging.getLogger(__name__)

Batch = sft.TextBatch | sft.LabelBatch | sft.PreferenceBatch


# ------------------------------------------------------------------------------------------- rows


def make_rows(config: ConfigDict, table: sources.Rows, tokenizer: Any, eos: int | None) -> Batch:
    """All rows of a table as the method of the configuration reads them.

    `sft` reads a text (`data.field`), or a prompt with what follows it (`data.completion_field`),
    each ended by `eos`; `reward_model` a text and its class (`data.label_field`), or, where that is
    "", preferences. Raises InputError for a row that cannot be used.
    """
    if config.method == "sft":
        return _sft_rows(config, table, tokenizer, eos)
    if config.data.label_field:
        return _label_rows(config, table, tokenizer)
    return _preference_rows(config, table, tokenizer)


def all_texts(config: ConfigDict, table: sources.Rows, tokenizer: Any) -> list[str]:
    """Every text of a table that the method reads; with a tokenizer conversations too."""
    fields = config.data
    if config.method == "sft" and fields.completion_field:
        both = _completions(config, table, tokenizer)
        return [*both.prompts, *both.completions]
    if config.method == "sft" or fields.label_field:
        return formats.texts(table, name=fields.field, tokenizer=tokenizer)
    given = configured.preferences(config, table, tokenizer)
    return [*given.prompts, *given.chosen, *given.rejected]


def _sft_rows(config: ConfigDict, table: sources.Rows, tokenizer, eos: int | None) -> sft.TextBatch:
    fields, block = config.data, config.train.text_tokens
    if eos is None:
        raise InputError("sft: the policy's folder names no EOS token, which every text ends with")
    if not fields.completion_field:
        texts = formats.texts(table, name=fields.field, tokenizer=tokenizer)
        made = sft_rows.text_rows(
            texts, tokenizer, block=block, eos_token_id=eos, packed=config.train.packed
        )
        return sft.TextBatch(*made[:3])
    both = _completions(config, table, tokenizer)
    made = sft_rows.completion_rows(
        both.prompts,
        both.completions,
        tokenizer,
        block=block,
        eos_token_id=eos,
        packed=config.train.packed,
        over_long=fields.over_long,
        source=table.source,
        places=both.places,
    )
    kept = len(both.prompts) - made.dropped
    _tell(table, kept, dropped=made.dropped, truncated=made.truncated)
    return sft.TextBatch(*made[:3])


class _Completions(NamedTuple):
    prompts: list[str]
    completions: list[str]
    places: list[str]


def _completions(config: ConfigDict, table: sources.Rows, tokenizer) -> _Completions:
    """Prompts and what follows them; the preferred responses of preferences where that is asked."""
    fields = config.data
    if fields.completion_field == "chosen":
        given = configured.preferences(config, table, tokenizer)
        return _Completions(given.prompts, given.chosen, given.places)
    both = formats.completions(
        table, prompt=fields.field, completion=fields.completion_field, tokenizer=tokenizer
    )
    return _Completions(*both, table.places)


def _scored(config: ConfigDict, tokenizer, texts, source: str, places: list[str], lost="end"):
    return sft_rows.scored_rows(
        texts,
        tokenizer,
        block=config.train.text_tokens,
        over_long=config.data.over_long,
        lost=lost,
        source=source,
        places=places,
    )


def _label_rows(config: ConfigDict, table: sources.Rows, tokenizer) -> sft.LabelBatch:
    fields = config.data
    texts, labels = formats.labelled(table, name=fields.field, label=fields.label_field)
    tokens_rt, lengths_r, fits_r = _scored(config, tokenizer, texts, table.source, table.places)
    _tell(table, int(fits_r.sum()), dropped=int((~fits_r).sum()))
    batch = sft.LabelBatch(tokens_rt, lengths_r, np.asarray(labels, np.int32))
    return _some(sft.LabelBatch(*(array[fits_r] for array in batch)), table)


def _preference_rows(config: ConfigDict, table: sources.Rows, tokenizer) -> sft.PreferenceBatch:
    """Each prompt with its better and with its worse response, as one text each."""
    given = configured.preferences(config, table, tokenizer)
    sides, fits_r = [], np.ones(len(given.prompts), bool)
    for responses in (given.chosen, given.rejected):
        texts = [asked + said for asked, said in zip(given.prompts, responses, strict=True)]
        tokens_rt, lengths_r, fit_r = _scored(
            config, tokenizer, texts, table.source, given.places, lost="beginning"
        )
        sides += [tokens_rt, lengths_r]
        fits_r &= fit_r
    _tell(table, int(fits_r.sum()), dropped=int((~fits_r).sum()), tied=given.tied)
    return _some(sft.PreferenceBatch(*(array[fits_r] for array in sides)), table)


def _some(batch: Batch, table: sources.Rows) -> Batch:
    if not len(batch[0]):
        raise InputError(f"{table.source}: no row is left; raise train.text_tokens or give others")
    return batch


def _tell(table: sources.Rows, kept: int, **left_out: int) -> None:
    counts = ", ".join(f"{count} {name}" for name, count in left_out.items())
    logger.info(f"{kept} of {len(table.rows)} rows in {table.source} ({counts})")


# ------------------------------------------------------------------------------ held-out measures


@functools.partial(jax.jit, static_argnums=0)
def _likelihood(model, params: Params, batch: sft.TextBatch):
    said_rt, mask_rt = sft.token_log_probs(model, params, batch)
    return (said_rt * mask_rt).sum(axis=1), mask_rt.sum(axis=1)


@functools.partial(jax.jit, static_argnums=0)
def _margins(model, params: Params, batch: sft.PreferenceBatch):
    return sft.margins(model, params, batch)


def measure(
    model, params: Params, batch: Batch, *, batch_size: int, seed: int
) -> dict[str, Estimate]:
    """How well a trained network does on rows, each number with its interval over them.

    Language models: `nll` (nats a token, of the tokens that are to be said) and `perplexity`.
    Classifiers: `accuracy`; on preferences also `margin`.
    """
    if isinstance(batch, sft.TextBatch):
        said_r, count_r = _in_batches(_likelihood, model, params, batch, batch_size)
        columns = np.stack([said_r, count_r], axis=1)
        ratio = {"nll": lambda m: -m[:, 0] / m[:, 1], "perplexity": _perplexity}
        return {name: estimate_of_means(columns, f, seed=seed) for name, f in ratio.items()}
    if isinstance(batch, sft.PreferenceBatch):
        chosen_r, rejected_r = _in_batches(_margins, model, params, batch, batch_size)
        margin_r = (chosen_r - rejected_r).astype(np.float64)
        right_r = 0.5 * (1 + np.sign(margin_r))  # a tie counts one half
        return {
            "accuracy": estimate(right_r, seed=seed),
            "margin": estimate(margin_r, seed=seed),
        }
    (logits_rc,) = _in_batches(_classes, model, params, batch, batch_size)
    right_r = logits_rc.argmax(axis=1) == np.asarray(batch.labels_r)
    return {"accuracy": estimate(right_r, seed=seed)}


def _classes(model, params: Params, batch: sft.LabelBatch):
    return (classifier.logits(model, params["classifier"], batch.tokens_rt, batch.lengths_r),)


def _perplexity(means_rc: np.ndarray) -> np.ndarray:
    return np.exp(-means_rc[:, 0] / means_rc[:, 1])


def _in_batches(function, model, params, batch: Batch, batch_size: int) -> tuple[np.ndarray, ...]:
    """`function(model, params, part)` of parts of one size, joined; the filling is taken off."""
    parts = []
    for index_r, own in batching.filled_batches(len(batch[0]), batch_size):
        part = type(batch)(*(np.asarray(array)[index_r] for array in batch))
        parts.append([np.asarray(out)[:own] for out in function(model, params, part)])
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))
