"""Samples made elsewhere, by a vLLM server say, as the responses of a reference cache.

A row for each prompt, with the column names of the cache itself, in any file or dataset that
`sources.read` reads:

    prompt or prompt_tokens         the text or the token ids of the prompt
    responses or response_tokens    M texts, or M lists of the token ids that were sampled
    rewards                         M numbers; may be left out where they are to be scored
    finished                        whether each response ended by itself; may be left out
    finish_reason                   the same as a server says it, "stop" or "length"

Rewards alone, without responses, serve the methods that read rewards alone.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vbon_jax import files
from vbon_jax.data import batching, prompt_sets, response_ids, sources, token_ids
from vbon_jax.data.response_ids import Ends
from vbon_jax.data.token_ids import Ids
from vbon_jax.types import InputError, Responses

TOLERANCE = 0.05  # of the rewards' standard deviation, between a file's rewards and our own


class Imported(NamedTuple):
    """The samples that a file has for the prompts of a PromptSet. Row `p` is prompt `p`."""

    source: str
    places: list[str]  # of the rows in it
    responses: Responses  # [prompts, M, ...] numpy; lengths 0 where there are rewards alone
    truncated: int = 0  # responses longer than there is room for, and cut

    @property
    def fingerprint(self) -> str:
        """A hash (hex) of tokens, lengths, endings, rewards."""
        arrays = jax.tree.leaves(self.responses._replace(log_probs_bng=None))
        return files.digest(*(np.ascontiguousarray(array).tobytes() for array in arrays))


def read(
    source: str,
    prompts: prompt_sets.PromptSet,
    tokenizer: Any,
    *,
    samples_per_prompt: int,
    new_tokens: int,
    ends: Ends,
    truncate: bool = False,
) -> Imported:
    """The M = `samples_per_prompt` samples that a file has for each of `prompts`.

    The file may have other prompts too. A response is its tokens, or its text behind the prompt.
    It ends with an EOS (its own, or the one that is written) unless it is not finished, or there is
    no room for one in `new_tokens`, as for a sampler that stops there. One of more tokens
    is cut where `truncate` says so. Log-probabilities are 0.

    Raises InputError, with file and row, for a prompt that is missing or there twice, and a field
    that cannot be used.
    """
    table = sources.read(source)
    rows = _rows_of(table, prompts, tokenizer)

    def column(name: str, check: Callable[[Any, str], Any]) -> list[list] | None:
        return _column(table, rows, name, samples_per_prompt, check)

    tokens = column("response_tokens", lambda ids, where: _checked_ids(ids, where, tokenizer))
    texts = column("responses", _typed(str)) if tokens is None else None
    rewards = column("rewards", sources.finite)
    finished = column("finished", _typed(bool)) or column("finish_reason", _stopped)
    if tokens is None and texts is None and rewards is None:
        raise InputError(
            f"{table.source}: its rows have no responses, response_tokens or rewards; add one"
        )
    if texts is not None:
        tokens = _encoded(texts, prompts, tokenizer, ends, [table.where(row) for row in rows])
    if tokens is None:
        ended = [((), False, False)] * (len(rows) * samples_per_prompt)
    else:
        finished = finished or [[None] * samples_per_prompt] * len(rows)
        ended = [
            _ended(ids, complete, table.where(row), new_tokens, ends, truncate)
            for row, *of_prompt in zip(rows, tokens, finished, strict=True)
            for ids, complete in zip(*of_prompt, strict=True)
        ]
    places = [table.places[row] for row in rows]
    truncated = sum(cut for _, _, cut in ended)
    shape = len(rows), samples_per_prompt, new_tokens
    return Imported(table.source, places, _padded(ended, rewards, shape), truncated)


def _padded(
    ended: list[tuple[Ids, bool, bool]], rewards: list[list] | None, shape: tuple[int, int, int]
) -> Responses:
    """Responses (`_ended`) as arrays of a shape [P, M, G]."""
    lengths_s = np.asarray([len(ids) for ids, _, _ in ended], np.int32)
    tokens_sg = batching.pad_rows([ids for ids, _, _ in ended], lengths_s, shape[-1])
    return Responses(
        tokens_bng=tokens_sg.reshape(shape),
        lengths_bn=lengths_s.reshape(shape[:2]),
        finished_bn=np.asarray([ends for _, ends, _ in ended]).reshape(shape[:2]),
        log_probs_bng=np.zeros(shape, np.float32),
        rewards_bn=None if rewards is None else np.asarray(rewards, np.float32),
    )


# Prompts ------------------------------------------------------------------------------------------


def _rows_of(table: sources.Table, prompts: prompt_sets.PromptSet, tokenizer: Any) -> list[int]:
    """The row of each prompt: by its tokens where the file has them, by its text, or the text's."""
    texts, tokens = {}, {}
    for row, values in enumerate(table.rows):
        if values.get("prompt_tokens") is not None:
            where = f"{table.where(row)}: field 'prompt_tokens'"
            key, known = tuple(_checked_ids(values["prompt_tokens"], where, tokenizer)), tokens
        else:
            key, known = table.text(row, "prompt"), texts
        if key in known:
            raise InputError(
                f"{table.where(row)} has the prompt of {table.unit} "
                f"{table.numbers[known[key]]}; give each once"
            )
        known[key] = row
    if texts and not texts.keys() >= set(prompts.texts):
        places = [table.where(row) for row in texts.values()]
        ids = token_ids.prompt_ids(tokenizer, list(texts), places)
        tokens |= dict(zip(ids, texts.values(), strict=True))
    rows = [
        tokens.get(tuple(ids), texts.get(text))
        for ids, text in zip(prompts.token_ids, prompts.texts, strict=True)
    ]
    missing = [text for text, row in zip(prompts.texts, rows, strict=True) if row is None]
    if missing:
        first = ", ".join(repr(text[:60]) for text in missing[:3])
        raise InputError(
            f"{table.source}: {len(missing)} of {len(rows)} prompts have no samples in it (the "
            f"first: {first}); sample for them too, or give the configuration the file's prompts"
        )
    return rows


# Fields -------------------------------------------------------------------------------------------


def _column(
    table: sources.Table, rows: list[int], name: str, count: int, check: Callable
) -> list[list] | None:
    """A field's `count` checked values in each of the rows; None where no row has the field."""
    if all(table.rows[row].get(name) is None for row in rows):
        return None
    column = []
    for row in rows:
        values, where = table.rows[row].get(name), f"{table.where(row)}: field {name!r}"
        if not isinstance(values, list):
            kind = "missing" if values is None else f"{type(values).__name__}, not a list"
            raise InputError(f"{where} is {kind}; give a value for each response, in every row")
        if len(values) != count:
            raise InputError(
                f"{where} has {len(values)} values and references.samples_per_prompt is {count}; "
                f"set that to {len(values)} if all rows have as many, or correct the row"
            )
        column.append([check(value, f"{where}, place {n}") for n, value in enumerate(values, 1)])
    return column


def _typed(kind: type) -> Callable[[Any, str], Any]:
    """A check that a value is of one type."""

    def check(value: Any, where: str) -> Any:
        if not isinstance(value, kind):
            raise InputError(f"{where} is {type(value).__name__}, not {kind.__name__}; correct it")
        return value

    return check


def _stopped(value: Any, where: str) -> bool:
    if value not in ("stop", "length"):
        raise InputError(f"{where} is {value!r}, not stop or length; take such responses out")
    return value == "stop"


def _checked_ids(value: Any, where: str, tokenizer: Any) -> list[int]:
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{where} is not a list of whole numbers; give token ids")
    if value and not 0 <= min(value) <= max(value) < len(tokenizer):
        raise InputError(
            f"{where} has the token {max(value, key=abs)}, and the policy's tokenizer "
            f"{len(tokenizer)} of them; sample with the policy's tokenizer"
        )
    return value


# Responses ----------------------------------------------------------------------------------------


def _encoded(
    texts: list[list[str]],
    prompts: prompt_sets.PromptSet,
    tokenizer: Any,
    ends: Ends,
    places: list[str],
) -> list[list[Ids]]:
    """The token ids of each prompt's responses."""
    count = len(texts[0])
    ids = response_ids.encode_responses(
        tokenizer,
        [tuple(prompt) for prompt in prompts.token_ids for _ in range(count)],
        [text for of_prompt in texts for text in of_prompt],
        ends,
        [f"{place}: response {n}" for place in places for n in range(1, count + 1)],
        ended=False,
    )
    return [ids[start : start + count] for start in range(0, len(ids), count)]


def _ended(
    ids: Sequence[int],
    finished: bool | None,
    where: str,
    new_tokens: int,
    ends: Ends,
    truncate: bool,
) -> tuple[Ids, bool, bool]:
    """A response's tokens with its EOS, whether it has one, and whether it was cut."""
    words, eos = response_ids.split_eos(ids, ends, where)
    if eos and finished is False:
        raise InputError(f"{where}: a response has an EOS and is not finished; correct the one")
    if len(words) > new_tokens:
        if not truncate:
            raise InputError(
                f"{where}: a response of {len(words)} tokens (room for {new_tokens}); change "
                "sampling.max_new_tokens, or set data.over_long to truncate"
            )
        return words[:new_tokens], False, True
    complete = bool(ends.ids) and finished is not False and len(words) < new_tokens
    if not complete and not words:
        raise InputError(f"{where}: a response without an end is empty; take it out")
    return response_ids.with_eos(ids, ends, where) if complete else words, complete, False


# Rewards ------------------------------------------------------------------------------------------


def check_rewards(
    imported: Imported, score: Callable[[list[int], list], np.ndarray], *, count: int = 64
) -> None:
    """Score `count` samples, spread over the file, and compare the file's rewards with that.

    What a policy samples later is ranked by `score` among these rewards, so they must be the same
    but for rounding: TOLERANCE of their standard deviation, root mean square. Raises InputError
    with the worst of them, and where responses were cut after they were scored.
    """
    source, responses = imported.source, imported.responses
    if imported.truncated:
        raise InputError(
            f"{source}: {imported.truncated} responses were cut after they were scored; score them "
            "again (--rescore), or leave them out of the file"
        )
    rewards_s = responses.rewards_bn.reshape(-1)
    chosen = np.unique(np.linspace(0, rewards_s.size - 1, count).astype(int))
    index = [divmod(int(place), responses.rewards_bn.shape[1]) for place in chosen]
    tokens = [responses.tokens_bng[at][: responses.lengths_bn[at]].tolist() for at in index]
    scored = score([prompt for prompt, _ in index], tokens)
    error = np.abs(scored - rewards_s[chosen])
    allowed = TOLERANCE * float(rewards_s.std()) + 1e-4
    if float(np.sqrt(np.mean(error**2))) > allowed:
        worst = int(error.argmax())
        raise InputError(
            f"{imported.places[index[worst][0]]} has the reward "
            f"{rewards_s[chosen[worst]]:.4f} where the configured reward gives {scored[worst]:.4f},"
            " and others differ too; configure the reward that scored the file (path, label, "
            "output, text), or score again (--rescore)"
        )
