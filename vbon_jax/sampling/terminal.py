"""The text of a response for a reader: what it adds to its prompt, and what of it stands already.

A token is no piece of text. Some tokenizers drop the space in front of a text's first word, so a
response is read behind its prompt; and a character may be made of several tokens, so what is shown
while tokens still come is only what no further token can change.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vbon_jax.sampling import rewards

INCOMPLETE = "\ufffd"  # what a decoder gives for bytes that are no character (yet)
BYTE = re.compile("<0x[0-9A-F]{2}>")  # a token of one byte, where not all tokens are bytes
# Control characters but for tab and line feed, those that turn the direction of writing, and halves
# of characters, which cannot be written at all.
HARMFUL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def response(tokenizer: Any, prompt_ids: Sequence[int], response_ids: Sequence[int]) -> str:
    """What `rewards.texts` makes of prompt and response, without what it makes of the prompt.

    Where the one does not begin with the other, a character cut between them say, it is the text
    of the response's own tokens.
    """
    return rewards.texts(tokenizer, [prompt_ids], [response_ids])[1][0]


def pieces(
    tokenizer: Any, prompt_ids: Sequence[int], growing: Iterable[Sequence[int]]
) -> Iterator[str]:
    """The text of a response piece by piece, from its token ids at several times, the last whole.

    No piece ends inside a character and together they are `response` of the last ids. (With a
    decoder that rewrites words it has given already, which no language model here has, the whole
    text follows on a line of its own.)
    """
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    shown, ids = "", ()
    for ids in growing:
        text = _settled(tokenizer, prompt_ids, ids, special)
        if len(text) > len(shown) and text.startswith(shown):
            yield text[len(shown) :]
            shown = text
    whole = response(tokenizer, prompt_ids, ids)
    if whole != shown:
        yield whole[len(shown) :] if whole.startswith(shown) else f"\n{whole}"


def _settled(tokenizer: Any, prompt_ids, response_ids: Sequence[int], special: set[int]) -> str:
    """The beginning of a response's text that stays as it is whatever tokens follow."""
    tokens = tokenizer.convert_ids_to_tokens(list(response_ids))
    certain = len(tokens)
    # A run of byte tokens is characters only if all of it is, and special tokens do not end it.
    while certain and (
        response_ids[certain - 1] in special or BYTE.fullmatch(tokens[certain - 1] or "")
    ):
        certain -= 1
    return response(tokenizer, prompt_ids, response_ids[:certain]).rstrip(INCOMPLETE)


def harmless(text: str) -> str:
    r"""A text whose control characters are written out (`\x1b`), for a terminal.

    Tab and line feed stay, and so does a backslash: this is to be read, not to be undone.
    """
    return HARMFUL.sub(lambda match: ascii(match[0])[1:-1], text)
