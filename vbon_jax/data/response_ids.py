"""Given responses as token ids: how they are tokenised behind their prompts, and how they end.

Every response that is given as text (pairs, completions, imported samples, texts to score) becomes
token ids here, and here alone.
"""

import logging
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from vbon_jax.data import formats
from vbon_jax.data.token_ids import Ids, plain_ids, prompt_ids
from vbon_jax.types import InputError

logger = logging.getLogger(__name__)

# What a response is encoded behind where it begins with a space if it is encoded alone: a character
# that no vocabulary merges with its neighbours, and two for vocabularies that lack it.
ANCHORS = ("\ue000", "\n", "a")


class Ends(NamedTuple):
    """The tokens that end a model's responses."""

    ids: Ids  # each of them ends a response; () where the model has none
    written: int | None = None  # the one of them that is put behind a given response


def response_ends(checkpoint: Any, tokenizer: Any, path: Any) -> Ends:
    """How the responses of a model end: by the ids of its folder `path`, or its tokenizer's EOS.

    Behind a given response comes the one that the chat template writes behind an answer, else the
    tokenizer's EOS, else the first. A warning names an end of the template or the tokenizer that
    is not one of the folder's.
    """
    own, template = tokenizer.eos_token_id, formats.template_end(tokenizer).token_id
    ids = checkpoint.eos_token_ids or (() if own is None else (own,))
    preferred = {"the chat template": template, "the tokenizer": own}
    candidates = [token for token in (*preferred.values(), *ids) if token in ids]
    written = candidates[0] if candidates else None
    for what, token in preferred.items():
        if token is not None and token not in ids:
            logger.warning(
                f"{path}: {what} ends an answer with {tokenizer.convert_ids_to_tokens(token)!r} "
                f"({token}), which is not in eos_token_id {list(ids)} of the model: responses do "
                "not end there; correct generation_config.json if they should"
            )
    return Ends(tuple(dict.fromkeys(ids)), written)


def split_eos(ids: Sequence[int], ends: Ends, place: str) -> tuple[Ids, Ids]:
    """A response's tokens before its EOS, and the EOS, () where it has none.

    Raises InputError, at `place`, for an EOS before the end.
    """
    ended = bool(len(ids)) and ids[-1] in ends.ids
    before, eos = (tuple(ids[:-1]), tuple(ids[-1:])) if ended else (tuple(ids), ())
    if set(before) & set(ends.ids):
        raise InputError(f"{place} has an end-of-text token before its end; take it out")
    return before, eos


def with_eos(ids: Sequence[int], ends: Ends, place: str) -> Ids:
    """A response's tokens with one EOS behind them: its own, else the one that is written."""
    before, eos = split_eos(ids, ends, place)
    return before + (eos or (() if ends.written is None else (ends.written,)))


def encode_responses(
    tokenizer: Any,
    prompts: Sequence[Ids],
    responses: Sequence[str],
    ends: Ends,
    places: Sequence[str],
    *,
    ended: bool,
) -> list[Ids]:
    """Token ids of responses, which behind the prompts' ids decode to the responses' texts.

    A tokenizer that begins every text with a space (SentencePiece) encodes a response behind an
    anchor, which is taken off again. Behind a special token the space that the tokenizer writes
    there by itself is kept, as in the prompts. With `ended` each has one EOS (see `with_eos`),
    without it those whose text has one.

    Raises InputError, at its place, for a response that would be read back as another text, and for
    an EOS before the end.
    """
    spaces, before = _spaces(tokenizer), _without_bos(tokenizer, prompts)
    wanted = [
        _space_behind(spaces, ids, text) + text for ids, text in zip(before, responses, strict=True)
    ]
    attempts = [("", before), ("", prompts), *((anchor, before) for anchor in ANCHORS)]
    found: dict[int, Ids] = {}
    read_back = dict.fromkeys(range(len(wanted)), "")
    for anchor, context in attempts:
        left = [row for row in read_back if row not in found]
        if not left:
            break
        (front, *encoded) = plain_ids(tokenizer, [anchor, *(anchor + wanted[row] for row in left)])
        starts = _decode(tokenizer, [context[row] for row in left])
        joined = _decode(
            tokenizer,
            [(*context[row], *ids[len(front) :]) for row, ids in zip(left, encoded, strict=True)],
        )
        for row, ids, start, text in zip(left, encoded, starts, joined, strict=True):
            if ids[: len(front)] == front and text.startswith(start):
                read_back[row] = text.removeprefix(start)
                if _same(spaces, read_back[row], wanted[row]):
                    found[row] = ids[len(front) :]
    if left := [row for row in read_back if row not in found]:
        raise InputError(_changed(left, wanted, read_back, places))
    rows = [found[row] for row in read_back]
    completed = [with_eos(ids, ends, place) for ids, place in zip(rows, places, strict=True)]
    return completed if ended else rows


def given_prompts(tokenizer: Any, texts: Sequence[str], places: Sequence[str]) -> list[Ids]:
    """`token_ids.prompt_ids` of the prompts of given responses.

    Raises InputError also, at its place, where one would be read back as another text, white space
    aside: tokenizers take some away, and write some behind special tokens.
    """
    rows = prompt_ids(tokenizer, texts, places)
    bare = [text.removeprefix(tokenizer.bos_token or "") for text in texts]
    wanted, read_back = (
        ["".join(unicodedata.normalize("NFC", text).split()) for text in side]
        for side in (bare, _decode(tokenizer, _without_bos(tokenizer, rows)))
    )
    if changed := [row for row, text in enumerate(wanted) if text != read_back[row]]:
        raise InputError(
            _changed(changed, wanted, read_back, [f"{place}: the prompt" for place in places])
        )
    return rows


def _without_bos(tokenizer: Any, rows: Sequence[Ids]) -> list[Ids]:
    return [ids[1:] if ids[:1] == (tokenizer.bos_token_id,) else ids for ids in rows]


def _decode(tokenizer: Any, rows: Sequence[Ids]) -> list[str]:
    """The texts of token ids, special tokens included."""
    return tokenizer.batch_decode(list(map(list, rows)), clean_up_tokenization_spaces=False)


def _spaces(tokenizer: Any) -> dict[int, tuple[str, str]]:
    """Of tokens that are found in texts as they are: text, and the space written behind it."""
    texts = {index: token.content for index, token in tokenizer.added_tokens_decoder.items()}
    followed = _decode(tokenizer, plain_ids(tokenizer, [f"{text}a" for text in texts.values()]))
    return {
        index: (text, " " if both == f"{text} a" else "")
        for (index, text), both in zip(texts.items(), followed, strict=True)
    }


def _space_behind(spaces: dict[int, tuple[str, str]], prompt: Ids, text: str) -> str:
    """The space that the tokenizer writes between a prompt's last token and a text."""
    _, space = spaces.get(prompt[-1], ("", "")) if prompt else ("", "")
    if not space or not text or text[0] == " ":
        return ""
    return "" if text.startswith(tuple(name for name, _ in spaces.values())) else space


def _same(spaces: dict[int, tuple[str, str]], text: str, wanted: str) -> bool:
    """Whether two texts are the same, but for spaces that the tokenizer writes by itself.

    Characters that Unicode defines to be equivalent are the same: some tokenizers compose them.
    """
    if text == wanted:
        return True
    names = [re.escape(name) for name, space in spaces.values() if space]
    behind = re.compile(f"({'|'.join(names)}) *") if names else None
    both = (unicodedata.normalize("NFC", side) for side in (text, wanted))
    first, second = (behind.sub(r"\1", side) if behind else side for side in both)
    return first == second


def _changed(rows: list[int], wanted: Sequence[str], read_back: Any, places: Sequence[str]) -> str:
    """The message for texts whose token ids decode to others."""
    text, other = wanted[rows[0]], read_back[rows[0]]
    at = len(os.path.commonprefix([text, other]))  # noqa: RUF071 (characters are what is meant)
    return (
        f"{places[rows[0]]} cannot be tokenised: {text[at : at + 20]!r} of it would be read back "
        f"as {other[at : at + 20]!r} (so in {len(rows)} of {len(wanted)} rows); use characters "
        "that the policy's tokenizer has, or give samples as token ids"
    )
