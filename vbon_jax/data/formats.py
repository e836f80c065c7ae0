"""The meaning of a table's rows: prompts, texts with labels, completions, preference pairs.

Each function checks every row and gives lists of one length. An error names the source, the row's
place in it, the field and the remedy, and is raised before anything is computed.

A text may be given as a conversation, a list of {"role", "content"} messages. The tokenizer's chat
template renders it: a prompt ends where the answer begins, and an answer is one message of the
assistant, up to the token with which the template ends it (`response_ids` puts the EOS there).
"""

import datetime
import functools
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vbon_jax.data import sources
from vbon_jax.data.sources import Table
from vbon_jax.types import InputError

Messages = list[dict[str, str]]
_KEYS = ("role", "content")  # of a message
_KNOWN = "content-of-the-last-message"
# What a template that writes today's date (Llama 3.2's) writes, so that prompts are the same on any
# day: the date of those templates for renderers without a clock.
DAY = datetime.datetime(2024, 7, 26)
TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
MOST_CLASSES = 1000  # of a head that is made for the labels of rows
ASSISTANT = "\n\nAssistant:"  # ends a prompt in the dialogues of Anthropic's HH data
TURN = re.compile("\n\n(Human|Assistant):")  # begins a turn in them


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
    turns: int = 0  # one of the responses is more than an answer
    conversations: Sequence[Messages | None] = ()  # the prompts'; None where a row has texts


class MoreTurns(InputError):
    """A response with other messages than one of the assistant."""


# Prompts, texts, labels, completions --------------------------------------------------------------


def texts(
    table: Table, *, name: str = "text", tokenizer: Any = None, end: bool = True
) -> list[str]:
    """One text a row: as it is, or a whole conversation, without its last `end` where that says."""
    write = render if end else _to_the_end
    return [_text(table, row, name, tokenizer, write) for row in range(len(table.rows))]


def _text(table: Table, row: int, name: str, tokenizer: Any, write: Callable) -> str:
    """A text as it is, or a conversation as `write` renders it."""
    if isinstance(table.field(row, name), list):
        return write(tokenizer, _messages(table, row, name), table.where(row))
    return table.text(row, name)


def columns(table: Table, *, without: str) -> dict[str, list]:
    """All fields but one as lists, a value a row; None where a row has no such field."""
    names = dict.fromkeys(name for row in table.rows for name in row if name != without)
    return {name: [row.get(name) for row in table.rows] for name in names}


def conversations(table: Table, *, name: str = "prompt") -> list[Messages | None]:
    """The conversation of each row's field; None where it is a text."""
    return [
        _messages(table, row, name) if isinstance(values.get(name), list) else None
        for row, values in enumerate(table.rows)
    ]


def prompts(
    table: Table, *, name: str = "prompt", tokenizer: Any = None, max_tokens: int = 0
) -> list[str]:
    """One prompt a row: a text, or a conversation that the answer is to continue.

    InputError for a conversation of which only the first `max_tokens` would be read.
    """
    for row, place in enumerate(table.places):
        if max_tokens and isinstance(table.field(row, name), list):
            raise InputError(
                f"{place}: field {name!r} is a conversation, of which data.max_tokens={max_tokens} "
                "would keep the beginning alone; set data.max_tokens=0"
            )
    return [_prompt(table, row, name, tokenizer) for row in range(len(table.rows))]


def _prompt(table: Table, row: int, name: str, tokenizer: Any) -> str:
    """A text, or a conversation, up to where an answer begins."""
    return _text(table, row, name, tokenizer, _render_prompt)


def labelled(
    table: Table, *, name: str = "text", label: str = "label", classes: int = MOST_CLASSES
) -> tuple[list[str], list[int]]:
    """One text a row, and the number of its class, a whole number from 0 and below `classes`."""
    labels = []
    for row in range(len(table.rows)):
        value = table.field(row, label)
        if table.textual and re.fullmatch(r"\d{1,18}", str(value)):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool):
            raise InputError(table.wrong_type(row, label, "int"))
        if not 0 <= value < classes:
            raise InputError(
                f"{table.where(row)}: field {label!r} is {str(value)[:20]}, and the classifier's "
                f"classes are 0 to {classes - 1}; number them from 0, or give another classifier"
            )
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
            pair = _with_answers(tokenizer, before, [after], where)
        else:
            pair = _prompt(table, row, prompt, tokenizer), table.text(row, completion)
        if not pair[1].strip():
            raise InputError(f"{where}: field {completion!r} is empty; give it a text")
        pairs.append(pair)
    return Completions(*(list(column) for column in zip(*pairs, strict=True)), table.places)


def preferences(
    table: Table,
    *,
    tokenizer: Any = None,
    on_tie: str = "error",
    on_empty: str = "error",
    on_turns: str = "error",
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
    `on_empty`, and one with a response of further turns, by `on_turns`. Raises InputError for any
    other row that is not in order, and where none is left.
    """
    kept, tied, empty, turns = [], 0, 0, 0
    for row, place in enumerate(table.places):
        try:
            prompt, better, worse, before = _pair(table, row, tokenizer)
        except MoreTurns as error:
            turns += 1
            if on_turns == "error":
                raise InputError(f"{error}, or leave such rows out (pairs.on_turns=drop)") from None
            continue
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
            kept.append((prompt, better, worse, place, before))
    if not kept:
        raise InputError(
            f"{table.source}: none of {len(table.rows)} pairs is left ({tied} with equal "
            f"responses, {empty} with an empty one, {turns} with further turns); give others"
        )
    *lists, conversations = (list(column) for column in zip(*kept, strict=True))
    counts = {"tied": tied, "empty": empty, "turns": turns}
    return Preferences(*lists, source=table.source, conversations=conversations, **counts)


def read_pairs(settings: ConfigDict, tokenizer: Any, table: Table | None = None) -> Preferences:
    """The preferences of a table, of what `config.pairs` (`settings`) names where none is given.

    The tokenizer may be None.
    """
    if table is None:
        table = sources.read(
            settings.path, split=settings.split, columns=settings.columns, keep=settings.filter
        )
    choices = {name: settings[name] for name in ("on_tie", "on_empty", "on_turns")}
    return preferences(table, tokenizer=tokenizer, **choices)


# Pairs --------------------------------------------------------------------------------------------


def _pair(table: Table, row: int, tokenizer: Any) -> tuple[str, str, str, Messages | None]:
    """Prompt, better and worse response of a row as texts, and the prompt's conversation."""
    values, where = table.rows[row], table.where(row)
    best = "best" in values and "chosen" not in values
    names = ("best", "worst") if best else ("chosen", "rejected")
    if isinstance(table.field(row, names[0]), list):
        better, worse = (_messages(table, row, name) for name in names)
        if values.get("prompt") is None:
            before = _shared_messages(better, worse, where)
        else:
            before = _as_messages(table, row, "prompt")
        answers = [
            messages[len(before) :] if messages[: len(before)] == before else messages
            for messages in (better, worse)
        ]
        return *_with_answers(tokenizer, before, answers, where), before
    better, worse = (table.text(row, name) for name in names)
    if "prompt" not in values and ASSISTANT in better and ASSISTANT in worse:
        return *_dialogue(better, worse, where), None
    given = isinstance(table.field(row, "prompt"), list)
    before = _messages(table, row, "prompt") if given else None
    return _prompt(table, row, "prompt", tokenizer), better, worse, before


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
    if TURN.search(better, end) or TURN.search(worse, end):
        raise MoreTurns(
            f"{where}: chosen and rejected part before their last turn; put the turns that they "
            "share into both"
        )
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


def render(tokenizer: Any, messages: Messages, where: str, *, answer: bool = False) -> str:
    """A conversation as the text of the tokenizer's chat template; on to where an `answer` begins.

    InputError where there is no template, or it refuses the messages.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        name = getattr(tokenizer, "name_or_path", None) or "no tokenizer"
        raise InputError(
            f"{name}: the tokenizer has no chat template, and {where} has a list of messages; use "
            "a policy whose tokenizer has one, or give plain texts"
        )
    try:
        return tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=answer,
            chat_template=_without_clock(tokenizer.chat_template),
        )
    except Exception as error:  # a template may raise anything
        reason = " ".join(str(error).split())
        raise InputError(
            f"{where}: the chat template of {tokenizer.name_or_path} refuses the messages "
            f"({reason}); correct the row"
        ) from error


def _without_clock(template: Any) -> Any:
    """A template that writes the DAY where it would write today's date."""
    if not isinstance(template, str):
        return None  # several by name: the default one
    return TODAY.sub(lambda match: repr(DAY.strftime(match[2])), template)


class TemplateEnd(NamedTuple):
    """How a chat template ends an answer."""

    mark: str = ""  # what it writes behind the answer's content
    text: str = ""  # the part of it that belongs to the answer: up to the token
    token_id: int | None = None  # None where there is no such token


def template_end(tokenizer: Any) -> TemplateEnd:
    """How the tokenizer's chat template ends an answer; nothing where there is no template."""
    if getattr(tokenizer, "chat_template", None) is None:
        return TemplateEnd()
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        return _end(tokenizer, turns, tokenizer.name_or_path)
    except InputError:  # a template for other conversations: each row's own error says so
        return TemplateEnd()


def _end(tokenizer: Any, messages: Messages, where: str) -> TemplateEnd:
    """How the template ends the last of these messages."""
    known = [*messages[:-1], messages[-1] | {"content": _KNOWN}]
    mark = render(tokenizer, known, where).rpartition(_KNOWN)[2]
    return _end_in(tokenizer, mark)


@functools.lru_cache(maxsize=64)  # the same for every row of a table
def _end_in(tokenizer: Any, mark: str) -> TemplateEnd:
    """The first special token of a mark ends a turn, or else the first of the tokens added."""
    tokens = [
        (not token.special, mark.index(token.content), -len(token.content), index)
        for index, token in tokenizer.added_tokens_decoder.items()
        if token.content.strip() and token.content in mark
    ]
    if not tokens:
        return TemplateEnd(mark)
    _, place, _, index = min(tokens)
    return TemplateEnd(mark, mark[:place], index)


def _to_the_end(tokenizer: Any, messages: Messages, where: str) -> str:
    """The template's text of messages, up to the token with which it ends the last of them."""
    whole = render(tokenizer, messages, where)
    end = _end(tokenizer, messages, where)
    if not whole.endswith(end.mark):
        raise InputError(_not_continued(tokenizer, where))
    return whole[: len(whole) - len(end.mark)] + end.text


def _render_prompt(tokenizer: Any, messages: Messages, where: str) -> str:
    """A conversation up to where the assistant's answer to it begins."""
    text = render(tokenizer, messages, where, answer=True)
    if messages[-1]["role"] == "assistant":
        raise InputError(
            f"{where}: the prompt ends with a message of the assistant, which would be answered; "
            "take it out, or name the field of the prompt alone"
        )
    return text


def _with_answers(
    tokenizer: Any, before: Messages, answers: list[Messages], where: str
) -> tuple[str, ...]:
    """A prompt and answers to it, "" where there is none; MoreTurns for more than an answer."""
    texts = [_render_prompt(tokenizer, before, where)]
    for after in answers:
        if after and [message["role"] for message in after] != ["assistant"]:
            roles = ", ".join(message["role"] for message in after)
            raise MoreTurns(
                f"{where}: an answer is one message of the assistant, and this has those of "
                f"{roles}; put earlier turns into the prompt and take later ones out"
            )
        if not after or not after[0]["content"].strip():
            texts.append("")
            continue
        whole = _to_the_end(tokenizer, before + after, where)
        if not whole.startswith(texts[0]):
            raise InputError(_not_continued(tokenizer, where))
        texts.append(whole[len(texts[0]) :])
    return tuple(texts)


def _not_continued(tokenizer: Any, where: str) -> str:
    return (
        f"{where}: the chat template of {tokenizer.name_or_path} does not continue the prompt with "
        "the answer; give plain texts"
    )
