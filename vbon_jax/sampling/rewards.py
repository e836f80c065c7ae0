"""Rewards of text: a Hugging Face text classifier, or any Python callable `texts -> floats`.

Policy and reward speak text to each other, so they need not share a tokenizer. Whoever scores a
sample (training, the reference cache, evaluation) makes its text with `texts`, so that the same
tokens are always scored as the same bytes, and no special token's text ever is.
"""

import hashlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.data.batching import bucket_length
from vbon_jax.models import classifier as classifiers
from vbon_jax.models.huggingface import model_folder
from vbon_jax.types import InputError, Params

PARTS = ("full", "response")
OUTPUTS = ("logit", "log_prob", "prob")


class Reward(NamedTuple):
    """A checked reward: `score` takes a list of texts and returns one float32 a text.

    `fingerprint` changes whenever the scores may: the reference cache is refused by it.
    """

    score: Callable[[list[str]], np.ndarray]
    fingerprint: str


def texts(
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    *,
    part: str = "full",
) -> list[str]:
    """What a reward reads of each (prompt, response): both together, or the response alone.

    The two are decoded as one run of tokens, without special tokens, spaces as they are. `part` is
    "full" or "response".
    """
    if part not in PARTS:
        raise InputError(f"the reward's text is {part!r}; choose {' or '.join(PARTS)}")
    rows = [
        [*prompt, *response] if part == "full" else list(response)
        for prompt, response in zip(prompt_ids, response_ids, strict=True)
    ]
    return tokenizer.batch_decode(
        rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


# A text classifier --------------------------------------------------------------------------------


def classifier(
    path: str,
    *,
    label: str | int,
    output: str = "logit",
    batch_size: int = 64,
    max_tokens: int | None = None,
    over_long: str = "error",
) -> Reward:
    """The score of one label, by the sequence-classification model in a Hugging Face folder.

    `label` is a name in the model's `id2label`, or its number. `output` is the label's raw logit,
    its log-probability or its probability: a softmax over the labels, or a sigmoid where there is
    one label only or where the model says that its labels do not exclude each other.
    A text of more than `max_tokens` tokens, special ones counted (None: the model's positions), is
    an "error" or loses its beginning ("truncate"), so that the response stays. Texts are scored at
    most `batch_size` at a time, in few compiled shapes. Raises InputError for an unknown label,
    output or choice.
    """
    checkpoint = model_folder.load(path, kind="classifier")
    tokenizer = model_folder.load_tokenizer(path)
    tokenizer.truncation_side = "left"
    model_folder.check_vocabulary(tokenizer, checkpoint.config, path)
    positions = checkpoint.config.max_positions
    longest = positions if max_tokens is None else max_tokens
    if output not in OUTPUTS:
        raise InputError(f"{path}: the reward's output is {output!r}; choose {', '.join(OUTPUTS)}")
    if over_long not in ("error", "truncate"):
        raise InputError(f"over_long is {over_long!r}; choose error or truncate")
    if not 3 <= longest <= positions:
        raise InputError(f"{path}: max_tokens is {longest}; give 3 to {positions}, its positions")
    if batch_size < 1:
        raise InputError(f"the reward's batch_size is {batch_size}; give at least 1")
    index = label_index(path, label, checkpoint.config.labels)
    independent = checkpoint.settings.get("problem_type") == "multi_label_classification"

    def score(texts: list[str]) -> np.ndarray:
        rows = _encode(tokenizer, texts, longest=longest, over_long=over_long, path=path)
        logits_bc = _classify(
            checkpoint.config, checkpoint.params, rows, batch_size=batch_size, longest=longest
        )
        return _select(logits_bc, index, output=output, independent=independent)

    marks = (model_folder.fingerprint(path), index, output, longest, over_long)
    return Reward(_checked(f"{path} ({label})", score), _sha256(*map(str, marks)))


def label_index(path: str, label: str | int, labels: tuple[str, ...]) -> int:
    """The number of a label that is given by name or by number; InputError where there is none."""
    if label in labels:
        return labels.index(label)
    if str(label).isdecimal() and int(label) < len(labels):
        return int(label)
    has = ", ".join(f"{index} {name}" for index, name in enumerate(labels))
    raise InputError(f"{path}: the model has no label {label!r}; choose one of: {has}")


def _encode(
    tokenizer: Any, texts: list[str], *, longest: int, over_long: str, path: str
) -> list[list[int]]:
    """The classifier's token ids of each text, none longer than `longest` and none empty."""
    cut = {"truncation": True, "max_length": longest} if over_long == "truncate" else {}
    rows = tokenizer(texts, verbose=False, return_attention_mask=False, **cut)["input_ids"]
    for index, row in enumerate(rows):
        if not 1 <= len(row) <= longest:
            raise InputError(
                f"reward {path}: text {index} has {len(row)} tokens where the reward takes 1 to "
                f"{longest} ({_shortened(texts[index])}); set the reward's over_long to truncate, "
                "or sample shorter texts"
            )
    return rows


def _classify(
    config: classifiers.Config,
    params: Params,
    rows: list[list[int]],
    *,
    batch_size: int,
    longest: int,
) -> np.ndarray:
    """Logits [len(rows), C] float32 of token rows of any lengths, in the order of the rows.

    Rows are sorted by length first, so that a batch holds little padding. All batches are under
    way before the first is waited for.
    """
    lengths_r = np.asarray([len(row) for row in rows], np.int32)
    order = np.argsort(lengths_r, kind="stable")
    running = []
    for start in range(0, len(rows), batch_size):
        batch = order[start : start + batch_size]
        # A last or small batch is filled up to a power of two with rows of one padding token.
        height = min(batch_size, max(8, 1 << (len(batch) - 1).bit_length()))
        width = min(bucket_length(int(lengths_r[batch].max()), multiple=16), longest)
        lengths_b = np.ones(height, np.int32)
        lengths_b[: len(batch)] = lengths_r[batch]
        tokens_bt = np.zeros((height, width), np.int32)
        for place, row in enumerate(batch):
            tokens_bt[place, : lengths_r[row]] = rows[row]
        running.append((batch, classifiers.logits(config, params, tokens_bt, lengths_b)))
    logits_rc = np.empty((len(rows), config.num_labels), np.float32)
    for batch, logits_bc in running:
        logits_rc[batch] = np.asarray(logits_bc)[: len(batch)]
    return logits_rc


def _select(logits_bc: np.ndarray, index: int, *, output: str, independent: bool) -> np.ndarray:
    """One label's logit, log-probability or probability, [B] float32."""
    logits_b = logits_bc[:, index]
    if output == "logit":
        return logits_b
    if independent or logits_bc.shape[1] == 1:
        log_probs_b = -np.logaddexp(np.float32(0), -logits_b)
    else:
        log_probs_b = logits_b - np.logaddexp.reduce(logits_bc, axis=1)
    return log_probs_b if output == "log_prob" else np.exp(log_probs_b)


# Any callable -------------------------------------------------------------------------------------


def from_callable(name: str) -> Reward:
    """A reward by its import path, "package.module:function"; it maps a list of texts to floats.

    The fingerprint covers the name and, where Python can read it, the source of the function's
    module: an edit to that file makes a cache that was built with it another's. Raises InputError
    when there is no such function.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InputError(f"reward {name!r} is no import path; write package.module:function")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"reward {name}: cannot import {module_name} ({error}); correct it, or put its folder "
            "on PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(
            f"reward {name}: {module_name} has no function {attribute}; name one that maps a list "
            "of texts to floats"
        )
    return Reward(_checked(name, function), _sha256(name, _source(function)))


def _source(function: Callable) -> str:
    """The source of the module that defines a function; empty where it has none."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""


# Checks -------------------------------------------------------------------------------------------


def _checked(name: str, function: Callable[[list[str]], Any]) -> Callable[[list[str]], np.ndarray]:
    """The function, refused with an InputError unless it gives one finite number a text."""

    def score(texts: Sequence[str]) -> np.ndarray:
        texts = list(texts)
        if not texts:
            return np.zeros(0, np.float32)
        return _as_rewards(name, texts, function(texts))

    return score


def _as_rewards(name: str, texts: list[str], values: Any) -> np.ndarray:
    """`[len(texts)]` float32 from what a reward returned."""
    try:
        rewards_b = np.asarray(values)
        if rewards_b.dtype.kind in "OUScmM":  # numpy would read None as NaN and "1" as 1
            raise TypeError(f"it gave {rewards_b.dtype} values")
        with np.errstate(over="ignore"):
            rewards_b = rewards_b.astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"reward {name} did not give numbers for {len(texts)} texts (the first: "
            f"{_shortened(texts[0])}; {_first_sentence(error)}); return one float a text"
        ) from error
    if rewards_b.shape != (len(texts),):
        raise InputError(
            f"reward {name} gave shape {rewards_b.shape} for {len(texts)} texts (the first: "
            f"{_shortened(texts[0])}); return one float a text"
        )
    bad = np.flatnonzero(~np.isfinite(rewards_b))
    if bad.size:
        first = int(bad[0])
        raise InputError(
            f"reward {name} gave {rewards_b[first]} for text {first} and is not finite for "
            f"{bad.size} of {len(texts)} ({_shortened(texts[first])}); return finite float32 values"
        )
    return rewards_b


def _first_sentence(error: Exception) -> str:
    return str(error).partition("\n")[0].partition(". ")[0]


def _shortened(text: str, longest: int = 60) -> str:
    """A text as it fits into an error, control characters written out."""
    return repr(text if len(text) <= longest else f"{text[: longest - 3]}...")


def _sha256(*parts: str) -> str:
    """The hash (hex) of some strings in order."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
