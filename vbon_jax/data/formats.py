"""What rows mean: prompts, texts with labels, prompts with completions, preference pairs.

Each function takes `rows.Rows`, checks every row and gives lists of one length. An error names the
source, the row's place in it, the field and the remedy, and is raised before anything is computed.

A text may be given as a conversation, a list of {"role", "content"} messages. The tokenizer's chat
template renders it: a prompt ends where the answer begins, and an answer is the rest up to the end
of its last message, without the template's mark of a turn's end (the EOS that training adds).
"""

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from vbon_jax.data.sources import Rows
from vbon_jax.types import InputError

Messages = list[dict[str, str]]
_KEYS = ("role", "content")  # of a message
_KNOWN = "what-the-last-message-says"
ASSISTANT = "\n\nAssistant:"  # ends a prompt in the dialogues of Anthropic's HH data


class Labelled(NamedTuple):
    """Texts and the numbers of their classes."""

    texts: list[str]
    labels: list[int]


class Completions(NamedTuple):
    """Prompts and what follows them."""

    prompts: list[str]
    completions: list[str]


class Preferences(NamedTuple):
    """Prompts with a better and a worse response, and what was left out on the way."""

    prompts: list[str]
    chosen: list[str]
    rejected: list[str]
    places: list[str]  # of the rows in their source
    tied: int = 0  # chosen is rejected, or their rewards are equal
    empty: int = 0  # one of the responses is empty


# Fields -------------------------------------------------------------------------------------------


def field(rows: Rows, row: int, name: str) -> Any:
    """The value of a row's field; InputError where the row has no such field."""
    values = rows.rows[row]
    if name not in values:
        has = ", ".join(sorted(map(str, values))) or "none"
        raise InputError(
            f"{rows.where(row)} has no field {name!r} (it has: {has}); add the field, or name its "
            "column"
        )
    return values[name]


def text(rows: Rows, row: int, name: str) -> str:
    """The value of a row's field, which is a string; InputError for another."""
    value = field(rows, row, name)
    if not isinstance(value, str):
        raise InputError(_wrong(rows, row, name, value, "str"))
    return value


def number(rows: Rows, row: int, name: str) -> float:
    """The value of a row's field, a finite number; InputError for another."""
    return finite(field(rows, row, name), f"{rows.where(row)}: field {name!r}", rows.textual)


def finite(value: Any, where: str, textual: bool = False) -> float:
    """A finite number, in a textual source the text of one; InputError (at `where`) for another."""
    if textual and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where} is {value[:40]!r}, not a number; correct it") from None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{where} is {type(value).__name__}, not a number; correct it")
    if not math.isfinite(value):
        raise InputError(f"{where} is {value}; give a finite number")
    return float(value)


def columns(rows: Rows, *, without: str) -> dict[str, list]:
    """All fields but one as lists, a value a row; None where a row has no such field."""
    names = dict.fromkeys(name for row in rows.rows for name in row if name != without)
    return {name: [row.get(name) for row in rows.rows] for name in names}


def _wrong(rows: Rows, row: int, name: str, value: Any, wanted: str) -> str:
    found = type(value).__name__
    return f"{rows.where(row)}: field {name!r} is {found}, not {wanted}; correct the row"


# The shapes ---------------------------------------------------------------------------------------


def texts(rows: Rows, *, name: str = "text", tokenizer: Any = None) -> list[str]:
    """One text a row: as it is, or a whole conversation."""
    return [_prompt(rows, row, name, tokenizer, answer=False) for row in range(len(rows.rows))]


def prompts(rows: Rows, *, name: str = "prompt", tokenizer: Any = None) -> list[str]:
    """One prompt a row: a text, or a conversation that the answer is to continue."""
    return [_prompt(rows, row, name, tokenizer) for row in range(len(rows.rows))]


def _prompt(rows: Rows, row: int, name: str, tokenizer: Any, *, answer: bool = True) -> str:
    """A text, or a conversation, up to where an answer begins."""
    if isinstance(field(rows, row, name), list):
        return _render(tokenizer, _messages(rows, row, name), rows.where(row), answer=answer)
    return text(rows, row, name)


def labelled(rows: Rows, *, name: str = "text", label: str = "label") -> Labelled:
    """One text a row with the number of its class, a whole number from 0."""
    labels = []
    for row in range(len(rows.rows)):
        value = field(rows, row, label)
        if rows.textual and re.fullmatch(r"\d+", str(value)):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(_wrong(rows, row, label, value, "int"))
        if value < 0:
            raise InputError(f"{rows.where(row)}: field {label!r} is {value}; classes begin at 0")
        labels.append(value)
    return Labelled(texts(rows, name=name), labels)


def completions(
    rows: Rows, *, prompt: str = "prompt", completion: str = "completion", tokenizer: Any = None
) -> Completions:
    """A prompt and what follows it, each row; texts or conversations. An empty one is refused."""
    made = []
    for row in range(len(rows.rows)):
        where = rows.where(row)
        if isinstance(field(rows, row, completion), list):
            before = _as_messages(rows, row, prompt)
            after = _messages(rows, row, completion)
            asked = _render(tokenizer, before, where, answer=True)
            said = _answer(tokenizer, before, after, where)
        else:
            asked, said = _prompt(rows, row, prompt, tokenizer), text(rows, row, completion)
        if not said.strip():
            raise InputError(f"{where}: field {completion!r} is empty; give it a text")
        made.append((asked, said))
    return Completions(*(list(column) for column in zip(*made, strict=True)))


def preferences(
    rows: Rows, *, tokenizer: Any = None, on_tie: str = "error", on_empty: str = "error"
) -> Preferences:
    """A prompt with a better and a worse response, each row, in one of these forms:

    - `prompt`, `chosen` and `rejected` as texts; `best` and `worst` are read as `chosen` and
      `rejected` where a row has those;
    - `chosen` and `rejected` as conversations, with a `prompt` (text or conversation), which they
      may repeat, or without: then the messages that they begin with both are the prompt;
    - `chosen` and `rejected` as whole dialogues of HH ("\\n\\nHuman: ...\\n\\nAssistant: ...")
      without a `prompt`: it is what they share, up to the last "Assistant:" in it;
    - the file of the BoNBoN release: each row {PROMPT: {"responses": [...], "pairs": [[best,
      worst], ...], "sft_target": ...}}, pairs as places in responses.

    With rewards (`chosen_reward` and `rejected_reward`, or `best_reward` and `worst_reward`) the
    better must not have the lower. A row whose responses or rewards are equal says nothing: it is
    refused, or with `on_tie="drop"` left out and counted; so is one with an empty response, by
    `on_empty`. Raises InputError for any other row that is not in order, and where none is left.
    """
    _choose("on_tie", on_tie)
    _choose("on_empty", on_empty)
    rows = _best_and_worst(rows)
    kept, tied, empty = [], 0, 0
    for row, place in enumerate(rows.places):
        asked, better, worse = _pair(rows, row, tokenizer)
        if better == worse or _equal_rewards(rows, row):
            tied += 1
            if on_tie == "error":
                raise InputError(
                    f"{rows.where(row)}: chosen and rejected are equal, or their rewards are; "
                    "correct the row, or leave such rows out (pairs.on_tie=drop)"
                )
        elif not better.strip() or not worse.strip():
            empty += 1
            if on_empty == "error":
                which = "rejected" if better.strip() else "chosen"
                raise InputError(
                    f"{rows.where(row)}: the {which} response is empty; give it a text, or leave "
                    "such rows out (pairs.on_empty=drop)"
                )
        else:
            kept.append((asked, better, worse, place))
    if not kept:
        raise InputError(
            f"{rows.source}: none of {len(rows.rows)} pairs is left ({tied} with equal responses, "
            f"{empty} with an empty one); give others"
        )
    return Preferences(*(list(column) for column in zip(*kept, strict=True)), tied, empty)


def _choose(option: str, value: str) -> None:
    if value not in ("drop", "error"):
        raise InputError(f"{option} is {value!r}; choose drop or error")


# Pairs --------------------------------------------------------------------------------------------


def _names(rows: Rows, row: int) -> tuple[str, str]:
    """What the better and the worse response are called in a row."""
    values = rows.rows[row]
    if "chosen" not in values and "best" in values:
        return "best", "worst"
    return "chosen", "rejected"


def _pair(rows: Rows, row: int, tokenizer: Any) -> tuple[str, str, str]:
    """Prompt, better and worse response of a row as texts."""
    names = _names(rows, row)
    if isinstance(field(rows, row, names[0]), list):
        better, worse = (_messages(rows, row, name) for name in names)
        if rows.rows[row].get("prompt") is None:
            before = _shared_messages(better, worse, rows.where(row))
        else:
            before = _as_messages(rows, row, "prompt")
        asked = _render(tokenizer, before, rows.where(row), answer=True)
        after = (
            said[len(before) :] if said[: len(before)] == before else said
            for said in (better, worse)
        )
        return asked, *(_answer(tokenizer, before, said, rows.where(row)) for said in after)
    better, worse = (text(rows, row, name) for name in names)
    if "prompt" not in rows.rows[row]:
        if ASSISTANT not in better or ASSISTANT not in worse:
            field(rows, row, "prompt")  # neither a pair with its prompt nor HH's dialogues
        return _dialogue(better, worse, rows.where(row))
    return _prompt(rows, row, "prompt", tokenizer), better, worse


def _dialogue(better: str, worse: str, where: str) -> tuple[str, str, str]:
    """The prompt that two dialogues share, and what each goes on with."""
    end = better.rfind(ASSISTANT)
    while end >= 0 and not worse.startswith(better[: end + len(ASSISTANT)]):
        end = better.rfind(ASSISTANT, 0, end)
    if end < 0:
        raise InputError(
            f"{where}: chosen and rejected share no beginning up to an {ASSISTANT.strip()!r}; "
            "give the prompt in a field of its own"
        )
    end += len(ASSISTANT)
    return better[:end], better[end:], worse[end:]


def _shared_messages(better: Messages, worse: Messages, where: str) -> Messages:
    """The messages that both begin with; at least one of each is its answer."""
    shared = 0
    for first, second in zip(better[:-1], worse[:-1], strict=False):
        if first != second:
            break
        shared += 1
    if not shared:
        raise InputError(
            f"{where}: chosen and rejected share no first message; give the prompt in a field of "
            "its own"
        )
    return better[:shared]


def _equal_rewards(rows: Rows, row: int) -> bool:
    """Whether a row has rewards and they are equal; InputError where the better has the lower."""
    for first, second in (("chosen_reward", "rejected_reward"), ("best_reward", "worst_reward")):
        if rows.rows[row].get(first) is not None:
            better, worse = number(rows, row, first), number(rows, row, second)
            if better < worse:
                raise InputError(
                    f"{rows.where(row)}: {first} = {better:g} is below {second} = {worse:g}; "
                    "exchange the responses, or correct the rewards"
                )
            return better == worse
    return False


def _best_and_worst(rows: Rows) -> Rows:
    """The rows of the BoNBoN release as pairs, a row each; other rows as they are."""

    def released(value: Any) -> bool:
        return isinstance(value, Mapping) and {"responses", "pairs"} <= value.keys()

    if not rows.rows[0] or not all(map(released, rows.rows[0].values())):
        return rows
    made, numbers = [], []
    for row, prompts_of in enumerate(rows.rows):
        for prompt, value in prompts_of.items():
            where = f"{rows.where(row)}: {prompt[:40]!r}"
            if not released(value):
                raise InputError(f"{where} has no responses and pairs; correct the row")
            for pair in value["pairs"]:
                made.append({"prompt": prompt, **_released_pair(value["responses"], pair, where)})
                numbers.append(rows.numbers[row])
    if not made:
        raise InputError(f"{rows.source}: no prompt has a pair; give at least one")
    return rows._replace(rows=made, numbers=numbers)


def _released_pair(responses: Any, pair: Any, where: str) -> dict[str, str]:
    """The responses that a pair of places names."""
    try:
        best, worst = (responses[place] for place in pair if place >= 0)
    except (TypeError, ValueError, IndexError, KeyError):
        raise InputError(
            f"{where}: the pair {pair!r} does not name two of its responses; correct the row"
        ) from None
    return {"chosen": best, "rejected": worst}


# Conversations ------------------------------------------------------------------------------------


def _messages(rows: Rows, row: int, name: str) -> Messages:
    """A row's field as a conversation, roles and contents alone; InputError where it is none."""
    where, value = f"{rows.where(row)}: field {name!r}", field(rows, row, name)
    if not isinstance(value, list) or not value:
        raise InputError(f"{where} is no list of messages; give at least one")
    for place, message in enumerate(value, start=1):
        parts = [message.get(key) if isinstance(message, dict) else None for key in _KEYS]
        if not all(isinstance(part, str) for part in parts):
            raise InputError(
                f"{where}: message {place} is not {{'role': text, 'content': text}}; correct the "
                "row"
            )
    return [{key: message[key] for key in _KEYS} for message in value]


def _as_messages(rows: Rows, row: int, name: str) -> Messages:
    """A prompt as a conversation; a text is what a user says."""
    if isinstance(field(rows, row, name), str):
        return [{"role": "user", "content": text(rows, row, name)}]
    return _messages(rows, row, name)


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
    except Exception as error:  # a template raises what its authors thought of
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: the chat template of {tokenizer.name_or_path} refuses the messages "
            f"({reason}); correct the row"
        ) from error


def _answer(tokenizer: Any, before: Messages, after: Messages, where: str) -> str:
    """What the template makes of the messages that follow a prompt, up to their last content.

    The mark of a turn's end is what the template puts behind a content that is known.
    """
    if not after or not after[-1]["content"].strip():
        return ""
    asked = _render(tokenizer, before, where, answer=True)
    whole = _render(tokenizer, before + after, where, answer=False)
    known = [*before, *after[:-1], after[-1] | {"content": _KNOWN}]
    mark = _render(tokenizer, known, where, answer=False).rpartition(_KNOWN)[2]
    end = len(whole) - len(mark)
    if not whole.startswith(asked) or not whole.endswith(mark) or end < len(asked):
        raise InputError(
            f"{where}: the chat template of {tokenizer.name_or_path} does not continue the prompt "
            "with the answer; give plain texts"
        )
    return whole[len(asked) : end]
