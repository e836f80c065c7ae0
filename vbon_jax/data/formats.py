"""The meaning of a table's rows: prompts, texts with labels, completions, preference pairs.

Each function checks every row and gives lists of one length. An error names the source, the row's
place in it, the field and the remedy, and is raised before anything is computed.

A text may be given as a conversation, a list of {"role", "content"} messages. The tokenizer's chat
template renders it: a prompt ends where the answer begins, and an answer is the rest up to the end
of its last message, without the template's mark of a turn's end (the EOS that training adds).
"""

import itertools
import re
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vbon_jax.data import sources
from vbon_jax.data.sources import Table
from vbon_jax.types import InputError

Messages = list[dict[str, str]]
_KEYS = ("role", "content")  # of a message
_KNOWN = "content-of-the-last-message"
ASSISTANT = "\n\nAssistant:"  # ends a prompt in the dialogues of Anthropic's HH data


class Completions(NamedTuple):
    """Prompts and what follows them."""

    prompts: list[str]
    completions: list[str]
    places: list[str]


class Preferences(NamedTuple):
    """Prompts with a better and a worse response, and what was left out on the way."""

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]
    places: list[str]  # "rows.jsonl: line 3"
    source: str
    tied: int = 0  # chosen is rejected, or their rewards are equal
    empty: int = 0  # one of the responses is empty


# Prompts, texts, labels, completions --------------------------------------------------------------


def texts(table: Table, *, name: str = "text", tokenizer: Any = None) -> list[str]:
    """One text a row: as it is, or a whole conversation."""
    return [_prompt(table, row, name, tokenizer, answer=False) for row in range(len(table.rows))]


def columns(table: Table, *, without: str) -> dict[str, list]:
    """All fields but one as lists, a value a row; None where a row has no such field."""
    names = dict.fromkeys(name for row in table.rows for name in row if name != without)
    return {name: [row.get(name) for row in table.rows] for name in names}


def prompts(table: Table, *, name: str = "prompt", tokenizer: Any = None) -> list[str]:
    """One prompt a row: a text, or a conversation that the answer is to continue."""
    return [_prompt(table, row, name, tokenizer) for row in range(len(table.rows))]


def _prompt(table: Table, row: int, name: str, tokenizer: Any, *, answer: bool = True) -> str:
    """A text, or a conversation, up to where an answer begins."""
    if isinstance(table.field(row, name), list):
        return _render(tokenizer, _messages(table, row, name), table.where(row), answer=answer)
    return table.text(row, name)


def labelled(
    table: Table, *, name: str = "text", label: str = "label"
) -> tuple[list[str], list[int]]:
    """One text a row, and the number of its class, a whole number from 0."""
    labels = []
    for row in range(len(table.rows)):
        value = table.field(row, label)
        if table.textual and re.fullmatch(r"\d+", str(value)):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(table.wrong_type(row, label, "int"))
        if value < 0:
            raise InputError(f"{table.where(row)}: field {label!r} is {value}; classes begin at 0")
        labels.append(value)
    return texts(table, name=name), labels


def completions(
    table: Table, *, prompt: str = "prompt", completion: str = "completion", tokenizer: Any = None
) -> Completions:
    """A prompt and what follows it, each row; texts or conversations. An empty one is refused."""
    pairs = []
    for row, where in enumerate(table.places):
        if isinstance(table.field(row, completion), list):
            before = _as_messages(table, row, prompt)
            after = _messages(table, row, completion)
            prompt_text = _render(tokenizer, before, where, answer=True)
            pair = prompt_text, _answer(tokenizer, before, after, where)
        else:
            pair = _prompt(table, row, prompt, tokenizer), table.text(row, completion)
        if not pair[1].strip():
            raise InputError(f"{where}: field {completion!r} is empty; give it a text")
        pairs.append(pair)
    return Completions(*(list(column) for column in zip(*pairs, strict=True)), table.places)


def preferences(
    table: Table, *, tokenizer: Any = None, on_tie: str = "error", on_empty: str = "error"
) -> Preferences:
    """A prompt with a better and a worse response, each row, in one of these forms:

    - `prompt`, `chosen` and `rejected` as texts; `best` and `worst` are read as `chosen` and
      `rejected` where a row has those;
    - `chosen` and `rejected` as conversations, with a `prompt` (text or conversation), which they
      may repeat, or without: then the messages that they begin with both are the prompt;
    - `chosen` and `rejected` as whole dialogues of HH ("\\n\\nHuman: ...\\n\\nAssistant: ...")
      without a `prompt`: it is what they share, up to the last "Assistant:" in it.

    With rewards (`chosen_reward` and `rejected_reward`, or `best_reward` and `worst_reward`) the
    better must not have the lower. A row whose responses or rewards are equal says nothing: it is
    refused, or with `on_tie="drop"` left out and counted; so is one with an empty response, by
    `on_empty`. Raises InputError for any other row that is not in order, and where none is left.
    """
    kept, tied, empty = [], 0, 0
    for row, place in enumerate(table.places):
        prompt, better, worse = _pair(table, row, tokenizer)
        if better == worse or _equal_rewards(table, row):
            tied += 1
            if on_tie == "error":
                raise InputError(
                    f"{place}: chosen and rejected are equal, or their rewards are; correct the "
                    "row, or leave such rows out (pairs.on_tie=drop)"
                )
        elif not better.strip() or not worse.strip():
            empty += 1
            if on_empty == "error":
                which = "rejected" if better.strip() else "chosen"
                raise InputError(
                    f"{place}: the {which} response is empty; give it a text, or leave such rows "
                    "out (pairs.on_empty=drop)"
                )
        else:
            kept.append((prompt, better, worse, place))
    if not kept:
        raise InputError(
            f"{table.source}: none of {len(table.rows)} pairs is left ({tied} with equal "
            f"responses, {empty} with an empty one); give others"
        )
    lists = (list(column) for column in zip(*kept, strict=True))
    return Preferences(*lists, source=table.source, tied=tied, empty=empty)


def read_pairs(settings: ConfigDict, tokenizer: Any) -> Preferences:
    """The preferences that `config.pairs` (`settings`) names; the tokenizer may be None."""
    table = sources.read(
        settings.path, split=settings.split, columns=settings.columns, keep=settings.filter
    )
    return preferences(
        table, tokenizer=tokenizer, on_tie=settings.on_tie, on_empty=settings.on_empty
    )


# Pairs --------------------------------------------------------------------------------------------


def _pair(table: Table, row: int, tokenizer: Any) -> tuple[str, str, str]:
    """Prompt, better and worse response of a row as texts."""
    values, where = table.rows[row], table.where(row)
    best = "best" in values and "chosen" not in values
    names = ("best", "worst") if best else ("chosen", "rejected")
    if isinstance(table.field(row, names[0]), list):
        better, worse = (_messages(table, row, name) for name in names)
        if values.get("prompt") is None:
            before = _shared_messages(better, worse, where)
        else:
            before = _as_messages(table, row, "prompt")
        answers = (
            messages[len(before) :] if messages[: len(before)] == before else messages
            for messages in (better, worse)
        )
        prompt = _render(tokenizer, before, where, answer=True)
        return prompt, *(_answer(tokenizer, before, after, where) for after in answers)
    better, worse = (table.text(row, name) for name in names)
    if "prompt" not in values and ASSISTANT in better and ASSISTANT in worse:
        return _dialogue(better, worse, where)
    return _prompt(table, row, "prompt", tokenizer), better, worse


def _dialogue(better: str, worse: str, where: str) -> tuple[str, str, str]:
    """The prompt that two dialogues share, and the answer of each."""
    end = better.rfind(ASSISTANT)
    while end >= 0 and not worse.startswith(better[: end + len(ASSISTANT)]):
        end = better.rfind(ASSISTANT, 0, end)
    if end < 0:
        raise InputError(
            f"{where}: chosen and rejected share no beginning up to an {ASSISTANT.strip()!r}; "
            "give the prompt in its own field"
        )
    end += len(ASSISTANT)
    return better[:end], better[end:], worse[end:]


def _shared_messages(better: Messages, worse: Messages, where: str) -> Messages:
    """The messages that both begin with; at least one of each is its answer."""
    both = zip(better[:-1], worse[:-1], strict=False)
    shared = [first for first, _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both)]
    if not shared:
        raise InputError(
            f"{where}: chosen and rejected share no first message; give the prompt in its own field"
        )
    return shared


def _equal_rewards(table: Table, row: int) -> bool:
    """Whether a row has rewards and they are equal; InputError where the better has the lower."""
    for first, second in (("chosen_reward", "rejected_reward"), ("best_reward", "worst_reward")):
        if table.rows[row].get(first) is not None:
            better, worse = table.number(row, first), table.number(row, second)
            if better < worse:
                raise InputError(
                    f"{table.where(row)}: {first} = {better:g} is below {second} = {worse:g}; "
                    "exchange the responses, or correct the rewards"
                )
            return better == worse
    return False


# Conversations ------------------------------------------------------------------------------------


def _messages(table: Table, row: int, name: str) -> Messages:
    """A row's field as a conversation, roles and contents alone; or InputError."""
    where, value = f"{table.where(row)}: field {name!r}", table.field(row, name)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is not a list of messages; give at least one")
    for place, message in enumerate(value, start=1):
        parts = [message.get(key) if isinstance(message, dict) else None for key in _KEYS]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"{where}: message {place} is not {{'role': text, 'content': text}}; correct it"
            )
    return [{key: message[key] for key in _KEYS} for message in value]


def _as_messages(table: Table, row: int, name: str) -> Messages:
    """A prompt as a conversation; a text is a user's message."""
    if isinstance(table.field(row, name), str):
        return [{"role": "user", "content": table.text(row, name)}]
    return _messages(table, row, name)


def _render(tokenizer: Any, messages: Messages, where: str, *, answer: bool) -> str:
    """A conversation as the text of the tokenizer's chat template, up to where an answer begins."""
    if getattr(tokenizer, "chat_template", None) is None:
        name = getattr(tokenizer, "name_or_path", None) or "no tokenizer"
        raise InputError(
            f"{name}: the tokenizer has no chat template, and {where} has a list of messages; use "
            "a policy whose tokenizer has one, or give plain texts"
        )
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: the chat template of {tokenizer.name_or_path} refuses the messages "
            f"({reason}); correct the row"
        ) from error


def _answer(tokenizer: Any, before: Messages, after: Messages, where: str) -> str:
    """The template's text of the messages that follow a prompt, up to their last content.

    The mark of a turn's end is what the template puts behind a content that is known.
    """
    if not after or not after[-1]["content"].strip():
        return ""
    prompt = _render(tokenizer, before, where, answer=True)
    whole = _render(tokenizer, before + after, where, answer=False)
    known = [*before, *after[:-1], after[-1] | {"content": _KNOWN}]
    mark = _render(tokenizer, known, where, answer=False).rpartition(_KNOWN)[2]
    end = len(whole) - len(mark)
    if not whole.startswith(prompt) or not whole.endswith(mark) or end < len(prompt):
        raise InputError(
            f"{where}: the chat template of {tokenizer.name_or_path} does not continue the prompt "
            "with the answer; give plain texts"
        )
    return whole[len(prompt) : end]
