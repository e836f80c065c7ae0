"""What a classifier reads of a prompt and its response: the one way from texts to its token ids.

A reward model is taught on these ids and measured on them, and as a reward it scores them.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vbon_jax.data import formats, token_ids
from vbon_jax.data.formats import Messages
from vbon_jax.data.token_ids import Ids
from vbon_jax.types import InputError

TAUGHT = "vbon_jax_reward"  # in config.json: the `Reading` that a reward model was taught by


class Reading(NamedTuple):
    """What a classifier reads, and which label's logit is its reward."""

    text: str = "full"  # prompt and response, or the "response" alone
    template: str = "none"  # "chat": they are messages of the tokenizer's chat template
    label: str = ""


def recorded(settings: Mapping[str, Any], reading: Reading | None) -> dict[str, Any]:
    """The fields of a config.json, with the reading that a model was taught by, if by one."""
    kept = {name: value for name, value in settings.items() if name != TAUGHT}
    return kept if reading is None else kept | {TAUGHT: reading._asdict()}


def label_index(path: str, label: str | int, labels: tuple[str, ...]) -> int:
    """The number of a label that is given by name or by number; InputError where there is none."""
    found = {index for index, name in enumerate(labels) if name == str(label)}
    if str(label).isdecimal() and int(label) < len(labels):
        found.add(int(label))
    if len(found) == 1:
        return found.pop()
    has = ", ".join(f"{index} {name}" for index, name in enumerate(labels))
    if found:
        raise InputError(
            f"{path}: {label!r} is more than one of the labels {has}; choose by number, or give "
            "them distinct names in id2label of config.json"
        )
    raise InputError(f"{path}: the model has no label {label!r}; choose one of: {has}")


def choose(
    settings: ConfigDict,
    tokenizer: Any,
    label: str,
    *,
    conversations: bool,
    where: str,
    taught: Mapping[str, str] | None = None,
) -> Reading:
    """How the reward of `settings` (`config.reward`) reads, by a classifier's tokenizer.

    `conversations` says whether prompts are conversations. With reward.template=auto they are
    messages where the tokenizer has a chat template, or where the model was `taught` so. Raises
    InputError for a template that is not there, and for another reading than it was taught by.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    template, taught = settings.template, taught or {}
    if template == "auto":
        template = taught.get("template", "chat" if has_template and conversations else "none")
        if template == "chat" and not conversations:
            raise InputError(
                f"{where}: it was taught on conversations, and prompts are texts; give "
                "conversations, or set reward.template=chat to make a text a user's message"
            )
    if template == "chat" and not has_template:
        raise InputError(f"{where}: reward.template=chat, and its tokenizer has no chat template")
    if template == "chat" and settings.text == "response":
        raise InputError(
            f"{where}: reward.text=response is not a conversation; set reward.template=none or "
            "reward.text=full"
        )
    reading = Reading(settings.text, template, label)
    for key, value in reading._asdict().items():
        if taught.get(key, value) != value:
            raise InputError(
                f"{where}: reward.{key}={value}, and it was taught with reward.{key}={taught[key]};"
                " set that"
            )
    return reading


def read(
    tokenizer: Any,
    reading: Reading,
    prompts: Sequence[str],
    responses: Sequence[str],
    conversations: Sequence[Messages | None] | None,
    places: Sequence[str],
    **cut: Any,
) -> tuple[list[Ids | None], set[int]]:
    """The token ids of prompts with their responses, as `token_ids.classifier_ids` cuts them.

    With a chat template a prompt is its conversation, else a user's message, and the response, but
    for white space around it, the assistant's. The text of no special token is read, but for those
    that the template writes.
    """
    if reading.template == "chat":
        conversations = conversations or [None] * len(prompts)
        rows = zip(prompts, responses, conversations, places, strict=True)
        texts = [_conversation(tokenizer, *row) for row in rows]
    elif reading.text == "response":
        texts = [_plain(tokenizer, text) for text in responses]
    else:
        rows = zip(prompts, responses, strict=True)
        texts = [_plain(tokenizer, prompt + response) for prompt, response in rows]
    return token_ids.classifier_ids(tokenizer, texts, places=places, **cut)


def _conversation(
    tokenizer: Any, prompt: str, response: str, before: Messages | None, place: str
) -> str:
    """A conversation, or a user's message, and its answer as the template renders them."""
    before = before or [{"role": "user", "content": prompt}]
    messages = [*before, {"role": "assistant", "content": response.strip()}]
    plain = [turn | {"content": _plain(tokenizer, turn["content"])} for turn in messages]
    return formats.render(tokenizer, plain, place, answer=False)


@functools.lru_cache(maxsize=64)
def _special(tokenizer: Any) -> re.Pattern | None:
    """The texts of special tokens that a tokenizer finds in a text, but for the unknown token's."""
    tokens = getattr(tokenizer, "added_tokens_decoder", {}).values()
    names = {token.content for token in tokens if token.special and token.content.strip()}
    names -= {getattr(tokenizer, "unk_token", None)}
    return re.compile("|".join(map(re.escape, sorted(names, key=len)[::-1]))) if names else None


def _plain(tokenizer: Any, text: str) -> str:
    """A text as its tokenizer reads it back without special tokens; the same where it has none."""
    special = _special(tokenizer)
    while special is not None and special.search(text):
        (ids,) = token_ids.plain_ids(tokenizer, [text])
        plain = tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        text = plain if len(plain) < len(text) else special.sub("", text)
    return text
