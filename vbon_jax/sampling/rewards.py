"""Rewards: `(prompts, responses, **columns of the prompts' rows) -> floats`.

A Hugging Face text classifier, or any Python function of that signature. Policy and reward speak
text to each other, so they need not share a tokenizer. Token ids become text in `texts` alone, so
that the same tokens are always scored as the same bytes, and no special token's text ever is.

`make_scorer` makes every reward of a response, whoever asks: equal text has the equal reward, bit
for bit, so that ties may be counted by `==`.
"""

import importlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vbon_jax import config, files
from vbon_jax.data import batching, prompt_sets, reward_inputs, token_ids
from vbon_jax.data.prompt_sets import PromptSet
from vbon_jax.models import classifier as classifiers
from vbon_jax.models.huggingface import model_folder
from vbon_jax.types import InputError, Params, Responses

KEYS = [key for key in config.KEYS if key.name.startswith("reward.")]
BATCH_TOKENS = 512  # of a classifier's batch, padding and all


class Reward(NamedTuple):
    """A checked reward: `score(prompts, responses, columns={})` gives one finite float32 each.

    prompts and responses are lists of texts of one length; `columns` maps the names of other fields
    of the prompts' rows to their values. With `reads_conversations` `score` takes those of the
    prompts too, None where one is a text. `fingerprint` changes whenever the scores may: the
    reference cache is refused by it.
    """

    score: Callable[..., np.ndarray]
    fingerprint: str
    columns: tuple[str, ...] | None = ()  # the columns that it reads; None = all that there are
    reads_conversations: bool = False  # the prompts', as messages of its chat template
    missing_eos_penalty: float = 0.0  # `make_scorer` takes it from a response without an end

    def prompts_fingerprint(self, prompts: PromptSet) -> str:
        """`prompt_sets.fingerprint` of all that it reads of the prompts."""
        return prompt_sets.fingerprint(
            prompts, self.columns, conversations=self.reads_conversations
        )


def load(settings: ConfigDict, path: str = "", *, conversations: bool = False) -> Reward:
    """The reward that `config.reward`, or a judge with the same keys, names.

    `path` takes the place of its path, where a stage has made that model; `conversations` says
    whether prompts are. Raises InputError for a value outside of its key's choices, and what
    `classifier` and `from_callable` raise.
    """
    config.check({"reward": settings}, KEYS)
    config.check_needs({"reward": settings}, KEYS)
    if settings.function:
        reward = from_callable(settings.function)
    else:
        reward = classifier(
            path or settings.path,
            label=settings.label,
            output=settings.output,
            text=settings.text,
            template=settings.template,
            conversations=conversations,
            over_long=settings.over_long,
        )
    if penalty := settings.missing_eos_penalty:
        fingerprint = files.digest(reward.fingerprint, f"missing_eos_penalty {penalty!r}")
        reward = reward._replace(fingerprint=fingerprint, missing_eos_penalty=penalty)
    return reward


def try_out(reward: Reward, prompts: PromptSet, settings: ConfigDict) -> None:
    """Score the two longest prompts, so that a broken reward is found before anything is sampled.

    `settings` are the reward's, as of `load`.
    """
    longest = sorted(range(len(prompts.texts)), key=lambda place: len(prompts.texts[place]))[-2:]
    texts = [prompts.texts[place] for place in longest]
    # A response is empty, so that a prompt alone fits; one that is read alone is a short text.
    alone = settings.text == "response"
    responses = [min(prompts.texts, key=len) if alone else ""] * len(longest)
    reward.score(texts, responses, *_fields(reward, prompts, longest))


# Text ---------------------------------------------------------------------------------------------


def make_scorer(
    reward: Reward,
    tokenizer: Any,
    prompts: PromptSet,
    eos_token_ids: Sequence[int],
    cached: Responses | None = None,
) -> Callable[[Sequence[int], Sequence[Sequence[int]]], np.ndarray]:
    """(places of prompts [S], token ids of responses) -> their rewards [S] float32.

    The `tokenizer` is the policy's. A response to one of `cached`'s prompts whose text the cache
    has gets the cached reward, and of equal texts one is scored: what is ranked together is equal
    where its text is, on whatever machine either was scored. A response that none of the
    `eos_token_ids` ends has the reward's `missing_eos_penalty` taken off. Raises InputError where
    no response could end without it.
    """
    penalty, known = np.float32(reward.missing_eos_penalty), {}
    if penalty and not eos_token_ids:
        raise InputError(
            f"reward.missing_eos_penalty={penalty:g}: the policy's folder names no EOS token that "
            "could end a response; set it to 0"
        )
    if cached is not None and not cached.lengths_bn.all():
        cached = None  # its rewards were imported without responses

    def read(index: Sequence[int], ids: Sequence[Sequence[int]]) -> list[tuple]:
        ended = [len(row) > 0 and row[-1] in eos_token_ids for row in ids]
        pairs = texts(tokenizer, [prompts.token_ids[place] for place in index], ids)
        return list(zip(index, ended, *pairs, strict=True))

    def from_cache(place: int) -> None:
        of_prompt = batching.at_prompts(cached, np.asarray([place]))
        ids = of_prompt.token_ids()
        read_m = zip(read([place] * len(ids), ids), of_prompt.rewards_bn[0], strict=True)
        known[place] = dict(reversed(list(read_m)))

    def score(prompt_index_s: Sequence[int], response_ids: Sequence[Sequence[int]]) -> np.ndarray:
        index = [int(place) for place in prompt_index_s]
        for place in () if cached is None else set(index) - known.keys():
            from_cache(place)
        read_s = read(index, response_ids)
        rewards = {key: known[key[0]][key] for key in read_s if key in known.get(key[0], ())}
        new = [key for key in dict.fromkeys(read_s) if key not in rewards]
        places, ended, *pairs = map(list, zip(*new, strict=True) if new else ((), (), (), ()))
        scored_s = reward.score(*pairs, *_fields(reward, prompts, places))
        scored_s = scored_s - penalty * ~np.asarray(ended, bool)
        rewards |= dict(zip(new, scored_s, strict=True))
        return np.asarray([rewards[key] for key in read_s], np.float32)

    return score


def _fields(reward: Reward, prompts: PromptSet, index: Sequence[int]) -> list:
    """The other fields of some prompts' rows, and the conversations where a reward reads them."""
    columns = {name: [values[i] for i in index] for name, values in prompts.columns.items()}
    messages = [prompts.conversations[i] if prompts.conversations else None for i in index]
    return [columns, *([messages] if reward.reads_conversations else [])]


def texts(
    tokenizer: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
) -> tuple[list[str], list[str]]:
    """The texts of prompts and of their responses, which joined are the text of both.

    The two are decoded as one run of tokens, without special tokens, spaces as they are, and the
    response is what the prompt's own text is followed by: a character that is cut between them, or
    a space that only tokens inside of a text have, belongs to the response.
    """

    def decode(rows: list) -> list[str]:
        return tokenizer.batch_decode(
            rows, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    pairs = list(zip(map(tuple, prompt_ids), response_ids, strict=True))
    distinct = list(dict.fromkeys(prompt for prompt, _ in pairs))
    alone = dict(zip(distinct, decode(list(map(list, distinct))), strict=True))
    joined = decode([[*prompt, *response] for prompt, response in pairs])
    prompts = [
        os.path.commonprefix([alone[prompt], both])  # noqa: RUF071 (characters are what is meant)
        for (prompt, _), both in zip(pairs, joined, strict=True)
    ]
    responses = [both[len(prompt) :] for prompt, both in zip(prompts, joined, strict=True)]
    return prompts, responses


# A text classifier --------------------------------------------------------------------------------


def classifier(
    path: str,
    *,
    label: str | int,
    output: str = "logit",
    text: str = "full",
    template: str = "auto",
    conversations: bool = False,
    over_long: str = "error",
) -> Reward:
    """The score of one label, by the sequence-classification model in a Hugging Face folder.

    `label` is a name in the model's `id2label`, or its number. `output` is the label's raw "logit",
    its "log_prob" or its probability ("prob"): a softmax over the labels, or a sigmoid where there
    is one label only or where the model says that its labels do not exclude each other. The model
    reads prompt and response joined (`text` is "full"), the "response" alone, or by a chat
    `template` the messages of `conversations` (`reward_inputs`). A text of more
    tokens than the model has positions, special ones counted, is an "error" or loses its beginning
    ("truncate"), so that the response stays. Raises InputError for an unknown label.
    """
    checkpoint = model_folder.load(path, kind="classifier")
    tokenizer = model_folder.load_tokenizer(path)
    labels = checkpoint.config.labels
    index = reward_inputs.label_index(str(path), label, labels)
    independent = checkpoint.settings.get("problem_type") == "multi_label_classification"
    reading = reward_inputs.choose(
        ConfigDict({"text": text, "template": template}),
        tokenizer,
        labels[index],
        conversations=conversations,
        where=f"reward {path}",
        taught=checkpoint.settings.get(reward_inputs.TAUGHT),
    )

    def score(prompts: list[str], responses: list[str], columns: Mapping, messages=None):
        shown = zip(prompts, responses, strict=True)
        texts = [f"text {i} ({_shortened(''.join(both))})" for i, both in enumerate(shown)]
        rows, _ = reward_inputs.read(
            tokenizer, reading, prompts, responses, messages,
            [f"reward {path}: {text}" for text in texts],
            room=checkpoint.config.max_positions, over_long=over_long,
            remedy="set the reward's over_long to truncate, or sample shorter texts",
        )  # fmt: skip
        logits_bc = class_logits(checkpoint.config, checkpoint.params, rows)
        return _select(logits_bc, index, output=output, independent=independent)

    marks = (model_folder.fingerprint(path), index, output, *reading, over_long, BATCH_TOKENS)
    chat = reading.template == "chat"
    checked = _checked(f"{path} ({label})", score)
    return Reward(checked, files.digest(*map(str, marks)), reads_conversations=chat)


def class_logits(
    config: classifiers.Config, params: Params, rows: Sequence[token_ids.Ids]
) -> np.ndarray:
    """Logits [R, C] float32 of rows of token ids of any lengths, in their order.

    They are a function of the row alone, bit for bit, as XLA's results depend on a batch's shape
    and not on a row's place or neighbours in it: the length of a row gives the width of its batch,
    and the width the height. All batches are under way before the first is waited for.
    """
    by_width: dict[int, list[token_ids.Ids]] = {}
    for row in dict.fromkeys(rows):
        width = min(batching.bucket_length(len(row), multiple=16), config.max_positions)
        by_width.setdefault(width, []).append(row)
    running = []
    for width, of_width in by_width.items():
        height = max(1, BATCH_TOKENS // width)
        for first in range(0, len(of_width), height):
            batch = of_width[first : first + height]
            filled = batch + [(0,)] * (height - len(batch))
            lengths_b = np.asarray([len(row) for row in filled], np.int32)
            tokens_bt = batching.pad_rows(filled, lengths_b, width)
            running.append((batch, classifiers.logits(config, params, tokens_bt, lengths_b)))
    by_row = {}
    for batch, logits_bc in running:
        by_row |= dict(zip(batch, np.asarray(logits_bc), strict=False))  # the rest fills it up
    return np.stack([by_row[row] for row in rows])


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


# Any function -------------------------------------------------------------------------------------


def from_callable(name: str) -> Reward:
    """A reward by its import path, "package.module:function".

    The function is called as `function(prompts, responses, **columns)`, two lists of texts and a
    list for each column, and returns a float a response. Of the columns it gets those that its
    signature names, or all of them where it has a `**columns`. The fingerprint covers the name and,
    where Python can read it, the source of the function's module: an edit to that file makes a
    cache that was built with it another's. Raises InputError when there is no such function, or it
    does not take prompts and responses.
    """
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", name):
        raise InputError(f"reward {name!r} is not an import path; write package.module:function")
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise InputError(
            f"reward {name}: cannot import {module_name} ({error}); correct it or PYTHONPATH"
        ) from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(
            f"reward {name}: {module_name} has no function {attribute}; name one that maps prompts "
            "and responses to floats"
        )
    read, needed, taken = _columns_of(name, function)

    def score(prompts: list[str], responses: list[str], columns: Mapping) -> Any:
        if missing := [column for column in needed if column not in columns]:
            raise InputError(
                f"reward {name} reads the column {missing[0]!r}, which the prompts' rows do not "
                f"have (they have: {', '.join(columns) or 'none'}); name its column in "
                "data.columns, or give the parameter a default"
            )
        wanted = columns.keys() - taken if read is None else columns.keys() & set(read)
        return function(prompts, responses, **{key: columns[key] for key in wanted})

    return Reward(_checked(name, score), files.digest(name, _source(function)), read)


def _columns_of(
    name: str, function: Callable
) -> tuple[tuple[str, ...] | None, list[str], set[str]]:
    """The columns that a reward function reads (None = all), and those it cannot do without.

    And the names of its first two parameters, which are prompts and responses.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # a function of an extension may have no signature
        return (), [], set()
    kinds = inspect.Parameter
    by_place = [
        p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)
    ]
    if len(by_place) < 2 and not any(p.kind is kinds.VAR_POSITIONAL for p in parameters):
        raise InputError(
            f"reward {name} takes ({', '.join(p.name for p in parameters)}); a reward is a "
            "function (prompts, responses, **columns) -> floats: two lists of texts, and those "
            "columns of the prompts' rows that it names"
        )
    by_name = [
        p for p in parameters
        if p.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY) and p not in by_place[:2]
    ]  # fmt: skip
    needed = [p.name for p in by_name if p.default is kinds.empty]
    if any(p.kind is kinds.VAR_KEYWORD for p in parameters):
        return None, needed, {p.name for p in by_place[:2]}
    return tuple(p.name for p in by_name), needed, set()


def _source(function: Callable) -> str:
    """The source of the module that defines a function; empty where it has none."""
    module = sys.modules.get(getattr(function, "__module__", None) or "")
    try:
        return inspect.getsource(module) if module else ""
    except (OSError, TypeError):
        return ""


# Checks -------------------------------------------------------------------------------------------


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., np.ndarray]:
    """The function, refused with an InputError unless it gives a finite number a response."""

    def score(
        prompts: Sequence[str],
        responses: Sequence[str],
        columns: Mapping[str, Sequence] = {},
        *conversations: Sequence,
    ) -> np.ndarray:
        prompts, responses = list(prompts), list(responses)
        lengths = {len(prompts), len(responses), *map(len, columns.values())}
        if len(lengths) > 1:
            raise ValueError(f"{sorted(lengths)} prompts, responses and values of columns")
        if not responses:
            return np.zeros(0, np.float32)
        values = function(prompts, responses, columns, *conversations)
        return _as_rewards(name, responses, values)

    return score


def _as_rewards(name: str, responses: list[str], values: Any) -> np.ndarray:
    """`[len(responses)]` float32 from what a reward returned."""
    count, first = len(responses), _shortened(responses[0])
    remedy = "return one finite float a response"
    try:
        rewards_s = np.asarray(values)
        if rewards_s.dtype.kind in "OUScmM":  # numpy would read None as NaN and "1" as 1
            raise TypeError(f"it gave {rewards_s.dtype} values")
        with np.errstate(over="ignore"):
            rewards_s = rewards_s.astype(np.float32)
    except (TypeError, ValueError) as error:
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise InputError(
            f"reward {name} did not give numbers for {count} responses (the first: {first}; "
            f"{why}); {remedy}"
        ) from error
    if rewards_s.shape != (count,):
        raise InputError(
            f"reward {name} gave shape {rewards_s.shape} for {count} responses (the first: "
            f"{first}); {remedy}"
        )
    if (bad := np.flatnonzero(~np.isfinite(rewards_s))).size:
        raise InputError(
            f"reward {name} gave {rewards_s[bad[0]]} for response {bad[0]} and is not finite for "
            f"{bad.size} of {count} ({_shortened(responses[bad[0]])}); {remedy}"
        )
    return rewards_s


def _shortened(text: str, longest: int = 60) -> str:
    """A text as it fits into an error, control characters written out."""
    return repr(text if len(text) <= longest else f"{text[: longest - 3]}...")
