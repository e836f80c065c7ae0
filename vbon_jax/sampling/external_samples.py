"""Samples made elsewhere, for a reference cache: the vBoN release's files, a vLLM server's.

Two forms, each in any file or dataset that `rows.read` reads:

- a response a row, {"prompt", "text", "reward"}: `text` is prompt and response together, as the
  release has it, or in all rows the response alone (which `response` always is);
- a prompt a row, {"prompt", "responses", "rewards"}. The release allows rewards without responses:
  such a cache serves the methods that read rewards alone.

`finish_reason` (`finish_reasons`) may say how a response ended: "stop" or "length". `token_ids`, a
list for each response, are the tokens that were sampled: where they are given, no text is read.
Rewards may be missing altogether, where they are to be scored. A field `policy` or `model` names
who sampled, and there must be one name only.
"""

import hashlib
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from vbon_jax.data import prompt_sets, sources, token_ids
from vbon_jax.types import InputError

ENDINGS = {"stop": True, "length": False, None: None}  # finish_reason -> ended by an EOS
TOLERANCE = 0.05  # of the rewards' standard deviation, between a file's rewards and our own


class Sample(NamedTuple):
    """One response to a prompt, as a file has it; None is what it does not say."""

    text: str | None
    ids: tuple[int, ...] | None
    reward: float | None
    finished: bool | None
    place: str  # in the file

    @property
    def has_response(self) -> bool:
        """Whether the file has the response, as text or as tokens."""
        return self.text is not None or self.ids is not None


class Imported(NamedTuple):
    """The samples of each prompt of a file, in its order. All have responses, or none has."""

    source: str
    samples: dict[str, list[Sample]]


class Encoded(NamedTuple):
    """The samples to the prompts of a PromptSet, as arrays. Row `p` is prompt `p`."""

    tokens_pmg: np.ndarray  # [prompts, M, G] int32, 0 behind the end
    lengths_pm: np.ndarray  # [prompts, M] int32, 0 where there are rewards alone
    finished_pm: np.ndarray  # [prompts, M] bool
    rewards_pm: np.ndarray | None  # [prompts, M] float32
    places: list[list[str]]
    truncated: int = 0  # longer than there is room for, and cut
    dropped: int = 0  # longer than there is room for, and left out

    @property
    def fingerprint(self) -> str:
        """The sha256 (hex) of tokens, lengths, endings and rewards."""
        digest = hashlib.sha256()
        for array in self[:4]:
            digest.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


# Reading ------------------------------------------------------------------------------------------


def read(source: str | pathlib.Path) -> Imported:
    """The samples of a file in one of the two forms; more rows of a prompt add to its samples.

    Raises InputError, with file and row, for a field that is missing or of another type, a reward
    that is not a finite number, samples of two policies, and rows of which some have texts or
    rewards and others none.
    """
    table = sources.read(source)
    lists = {"responses", "rewards"} & table.rows[0].keys()
    _one_policy(table)
    made: list[tuple[str, Sample]] = []
    for row in range(len(table.rows)):
        prompt = table.text(row, "prompt")
        row_samples = _samples(table, row) if lists else [_sample(table, row)]
        made += [(prompt, sample) for sample in row_samples]
    for what, has in (
        ("response", [sample.has_response for _, sample in made]),
        ("reward", [sample.reward is not None for _, sample in made]),
    ):
        if any(has) and not all(has):
            raise InputError(
                f"{table.source}: {made[has.index(False)][1].place} has no {what} and other rows "
                "have one; give all or none"
            )
    if not lists and "response" not in table.rows[0]:
        made = _without_prompt(made, table.source)
    samples: dict[str, list[Sample]] = {}
    for prompt, sample in made:
        samples.setdefault(prompt, []).append(sample)
    return Imported(table.source, samples)


def _one_policy(table: sources.Table) -> None:
    """Refuses samples of two policies."""
    for key in ("policy", "model"):
        named = [(i, row[key]) for i, row in enumerate(table.rows) if row.get(key)]
        for row, name in named:
            if name != named[0][1]:
                raise InputError(
                    f"{table.where(row)} has the {key} {name!r} and {table.unit} "
                    f"{table.numbers[named[0][0]]} {named[0][1]!r}: a cache holds the samples of "
                    "one policy; import each into a workdir of its own"
                )


def _sample(table: sources.Table, row: int) -> Sample:
    """The one response of a row."""
    values = table.rows[row]
    name = "response" if "response" in table.rows[0] else "text"
    ids = _tokens(values.get("token_ids"), table.where(row))
    return Sample(
        text=table.text(row, name) if ids is None else None,
        ids=ids,
        reward=None if values.get("reward") is None else table.number(row, "reward"),
        finished=_ending(values.get("finish_reason"), table.where(row)),
        place=f"{table.unit} {table.numbers[row]}",
    )


def _samples(table: sources.Table, row: int) -> list[Sample]:
    """The responses of a row, the rewards of a row, or both."""
    columns = {}
    for name in ("responses", "token_ids", "rewards", "finish_reasons"):
        value = table.rows[row].get(name)
        if value is not None and (not isinstance(value, list) or not value):
            raise InputError(f"{table.where(row)}: field {name!r} is no list; give at least one")
        columns[name] = value
    lengths = {name: len(value) for name, value in columns.items() if value is not None}
    if lengths.keys() <= {"finish_reasons"} or len(set(lengths.values())) > 1:
        has = ", ".join(f"{count} {name}" for name, count in lengths.items()) or "none"
        raise InputError(
            f"{table.where(row)}: responses, token_ids, rewards and finish_reasons are as many, "
            f"and it has {has}; correct the row"
        )
    made = []
    for place in range(max(lengths.values())):
        text, ids, reward, reason = (value and value[place] for value in columns.values())
        where = f"{table.where(row)}: place {place + 1} of"
        ids = _tokens(ids, where)
        if columns["responses"] is not None and ids is None and not isinstance(text, str):
            raise InputError(f"{where} 'responses' is {type(text).__name__}, not str; correct it")
        if columns["rewards"] is not None:
            reward = sources.finite(reward, f"{where} 'rewards'")
        text = None if ids is not None else text
        made.append(
            Sample(text, ids, reward, _ending(reason, where), f"{table.unit} {table.numbers[row]}")
        )
    return made


def _tokens(value: Any, where: str) -> tuple[int, ...] | None:
    """The tokens of a response, where a file has them."""
    if value is None:
        return None
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise InputError(f"{where} 'token_ids' is no list of whole numbers; correct it")
    return tuple(value)


def _ending(reason: Any, where: str) -> bool | None:
    """Whether a response ended by itself, from its finish_reason."""
    reason = reason or None
    if not isinstance(reason, str | None) or reason not in ENDINGS:
        raise InputError(f"{where}: finish_reason {reason!r} is not known; give stop or length")
    return ENDINGS[reason]


def _without_prompt(made: list[tuple[str, Sample]], source: str) -> list[tuple[str, Sample]]:
    """Samples whose texts begin with their prompts, without them; where none does, as they are."""
    texts = [(p, sample) for p, sample in made if p and sample.text is not None]
    begins = [sample.text.startswith(p) for p, sample in texts]
    if not any(begins):
        return made
    if not all(begins):
        place = texts[begins.index(False)][1].place
        raise InputError(
            f"{source}: {place} has a text that does not begin with its prompt, and others do; "
            "name the field `response` where it is the response alone"
        )
    return [(p, s if s.text is None else s._replace(text=s.text[len(p) :])) for p, s in made]


# For the prompts of a cache -----------------------------------------------------------------------


def encode(
    imported: Imported,
    prompts: prompt_sets.PromptSet,
    tokenizer: Any,
    *,
    samples_per_prompt: int,
    new_tokens: int,
    eos_token_ids: tuple[int, ...],
    over_long: str = "error",
    cut: bool = False,
) -> Encoded:
    """The samples of all `prompts`, M = `samples_per_prompt` each, as the sampler's arrays.

    A prompt is found by its text, or else by its tokens; the file may have others too. A response
    is its token_ids, or its text tokenised by itself. It ends with an EOS (its own, or the first of
    `eos_token_ids`) unless its finish_reason is "length", or there is no room for one in
    `new_tokens`, as for a sampler that stops there. One of more tokens is an "error", is cut
    ("truncate") or left out ("drop").

    Every prompt has M samples; with `cut` those that have more keep their first M. Raises
    InputError for prompts that are missing, another number of samples, what is over-long, and an
    EOS inside a response.
    """
    if over_long not in ("error", "truncate", "drop"):
        raise InputError(f"over_long is {over_long!r}; choose error, truncate or drop")
    found = _found(imported, prompts, tokenizer)
    _check_tokens(imported.source, found, len(tokenizer))
    rows_p, dropped = [], 0
    for samples in found:
        made = [
            _encoded(imported.source, sample, ids, new_tokens, eos_token_ids, over_long)
            for sample, ids in zip(samples, _ids(samples, tokenizer), strict=True)
        ]
        rows_p.append([row for row in made if row is not None])
        dropped += sum(row is None for row in made)
    rows_p = _counted(imported.source, prompts.texts, rows_p, samples_per_prompt, cut)
    shape = len(rows_p), samples_per_prompt
    flat = [row for of_prompt in rows_p for row in of_prompt]
    lengths_s = np.asarray([len(row.tokens) for row in flat], np.int32)
    tokens_sg = np.zeros((len(flat), new_tokens), np.int32)
    tokens_sg[np.arange(new_tokens) < lengths_s[:, None]] = [t for row in flat for t in row.tokens]
    rewards = [row.sample.reward for row in flat]
    return Encoded(
        tokens_pmg=tokens_sg.reshape(*shape, new_tokens),
        lengths_pm=lengths_s.reshape(shape),
        finished_pm=np.asarray([row.finished for row in flat], bool).reshape(shape),
        rewards_pm=None if None in rewards else np.asarray(rewards, np.float32).reshape(shape),
        places=[[row.sample.place for row in of_prompt] for of_prompt in rows_p],
        truncated=sum(row.truncated for row in flat),
        dropped=dropped,
    )


class _Row(NamedTuple):
    """A sample with its tokens."""

    sample: Sample
    tokens: Sequence[int]
    finished: bool
    truncated: bool


def _found(
    imported: Imported, prompts: prompt_sets.PromptSet, tokenizer: Any
) -> list[list[Sample]]:
    """The samples of each prompt."""
    by_ids: dict[tuple[int, ...], list[Sample]] = {}
    if not imported.samples.keys() >= set(prompts.texts):
        texts = list(imported.samples)
        ids = token_ids.prompt_ids(tokenizer, texts, [f"{imported.source}: a row"] * len(texts))
        by_ids = {i: imported.samples[t] for i, t in zip(ids, texts, strict=True)}
    found = [
        imported.samples.get(text) or by_ids.get(ids)
        for text, ids in zip(prompts.texts, prompts.token_ids, strict=True)
    ]
    missing = [text for text, samples in zip(prompts.texts, found, strict=True) if not samples]
    if missing:
        first = ", ".join(repr(text[:60]) for text in missing[:3])
        raise InputError(
            f"{imported.source}: {len(missing)} of {len(found)} prompts have no samples in it (the "
            f"first: {first}); sample for them too, or give the configuration the file's prompts"
        )
    return found


def _check_tokens(source: str, found: list[list[Sample]], size: int) -> None:
    """Refuses token ids of another vocabulary."""
    for sample in (sample for samples in found for sample in samples if sample.ids):
        if not 0 <= min(sample.ids) <= max(sample.ids) < size:
            raise InputError(
                f"{source}: {sample.place} has the token {max(sample.ids, key=abs)}, and the "
                f"policy's tokenizer {size} of them; sample with the policy's tokenizer"
            )


def _ids(samples: list[Sample], tokenizer: Any) -> list[list[int] | None]:
    """Token ids of each response, or None where there are rewards alone."""
    if not samples[0].has_response:
        return [None] * len(samples)
    texts = [sample.text or "" for sample in samples]
    made = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [list(s.ids) if s.ids is not None else i for s, i in zip(samples, made, strict=True)]


def _encoded(
    source: str, sample: Sample, ids, new_tokens: int, eos: tuple[int, ...], over_long: str
) -> _Row | None:
    """A sample with its tokens; None for one that is left out."""
    if ids is None:
        return _Row(sample, (), False, False)
    where = f"{source}: {sample.place}"
    words, end = tuple(ids), eos[0] if eos else None
    if ids and ids[-1] in eos:
        words, end = words[:-1], ids[-1]
    if any(token in eos for token in words):
        raise InputError(f"{where} has an end-of-text token before its end; take it out")
    if len(words) > new_tokens:
        if over_long == "error":
            raise InputError(
                f"{where}: a response of {len(words)} tokens (room for {new_tokens}); change "
                "sampling.max_new_tokens, or set data.over_long to truncate or drop"
            )
        if over_long == "drop":
            return None
        return _Row(sample, words[:new_tokens], False, True)
    ends = bool(eos) and sample.finished is not False and len(words) < new_tokens
    if not ends and not words:
        raise InputError(f"{where}: a response without an end is empty; take it out")
    return _Row(sample, (*words, end) if ends else words, ends, False)


def _counted(
    source: str, texts: list[str], rows_p: list[list[_Row]], wanted: int, cut: bool
) -> list[list[_Row]]:
    """M samples of each prompt; InputError where they are not as many."""
    counts = [len(of_prompt) for of_prompt in rows_p]
    fewest, most = min(counts), max(counts)
    if fewest == most == wanted or (cut and fewest >= wanted):
        return [of_prompt[:wanted] for of_prompt in rows_p]
    if fewest < most and not cut:
        raise InputError(
            f"{source}: {texts[counts.index(fewest)][:60]!r} has {fewest} samples and "
            f"{texts[counts.index(most)][:60]!r} {most}; give every prompt as many, or cut them to "
            "the smallest (--cut)"
        )
    raise InputError(
        f"{source}: there are {fewest} samples to each prompt and references.samples_per_prompt = "
        f"{wanted}; set it to {fewest}"
    )


# Rewards ------------------------------------------------------------------------------------------


def check_rewards(
    encoded: Encoded,
    score: Callable[[list[int], list], np.ndarray],
    *,
    source: str,
    count: int = 64,
) -> None:
    """Scores `count` samples, spread over the file, and compares the file's rewards with that.

    What a policy samples later is ranked by `score` among these rewards, so they must be the same
    but for rounding: TOLERANCE of their standard deviation, root mean square. Raises InputError
    with the worst of them, and where responses were cut after they were scored.
    """
    if encoded.truncated:
        raise InputError(
            f"{source}: {encoded.truncated} responses were cut after they were scored; score them "
            "again (--rescore), or set data.over_long to drop"
        )
    rewards_s = encoded.rewards_pm.reshape(-1)
    num_samples = encoded.rewards_pm.shape[1]
    chosen = np.unique(np.linspace(0, rewards_s.size - 1, count).astype(int))
    index = [divmod(int(s), num_samples) for s in chosen]
    tokens = [encoded.tokens_pmg[p, m, : encoded.lengths_pm[p, m]].tolist() for p, m in index]
    ours = score([p for p, _ in index], tokens)
    error = np.abs(ours - rewards_s[chosen])
    allowed = TOLERANCE * float(rewards_s.std()) + 1e-4
    if float(np.sqrt(np.mean(error**2))) > allowed:
        worst = int(error.argmax())
        p, m = index[worst]
        raise InputError(
            f"{source}: {encoded.places[p][m]} has the reward {rewards_s[chosen[worst]]:.4f} where "
            f"the configured reward gives {ours[worst]:.4f}, and others differ too; configure the "
            "reward that scored the file (path, label, output, text), or score again (--rescore)"
        )
