"""Reads a folder's tokenizer as its files have it, whatever class transformers rebuilds it by.

By the class that a folder or its family names, AutoTokenizer makes normaliser, pre-tokenizer and
decoder anew, and adds tokens of its own. Kept of its choice are special tokens and chat template.
"""

import logging
import pathlib
from typing import Any

from vbon_jax.types import InputError

logger = logging.getLogger(__name__)

FILE = "tokenizer.json"
# Texts of which tokenizers that are not the same make other token ids.
PROBES = ("It cost $1,234.56 in 2024.", "  two  spaces\n\n\tand\r\nlines ", "if x != y:\n    z+=1")
PROBES += ("naïve e\u0301 ﬁ 日本語 🙂", "isn't it's WE'LL", "a_b-c/d <i>")


def read(folder: pathlib.Path) -> Any:
    """A transformers tokenizer with the ids of the folder's tokenizer.json, else of its *.model.

    Raises InputError for a tokenizer whose ids are random, or that cannot be read exactly, and what
    transformers and the libraries below it raise.
    """
    from transformers import AutoTokenizer

    if (folder / FILE).is_file():
        return _from_json(folder / FILE)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    models = sorted(folder.glob("*.model"))
    return _from_sentencepiece(models[0], tokenizer) if models else tokenizer


def _from_json(file: pathlib.Path) -> Any:
    """With all of tokenizer.json, and behind its tokens those that other files name."""
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    exact = Tokenizer.from_file(str(file))
    exact.no_truncation()
    exact.no_padding()
    if getattr(exact.model, "dropout", None):
        raise InputError(
            f"{file}: dropout = {exact.model.dropout} makes ids random; set it to null"
        )
    plain = PreTrainedTokenizerFast.from_pretrained(file.parent)  # of no class
    named = [token for _, token in sorted(plain.added_tokens_decoder.items())]
    exact.add_tokens([token for token in named if exact.token_to_id(token.content) is None])
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, trust_remote_code=False)
        rebuilt = tokenizer.backend_tokenizer
        other = [text for text in PROBES if rebuilt.encode(text).ids != exact.encode(text).ids]
        difference = f"makes other token ids of {other[0]!r}" if other else ""
    except Exception as error:  # noqa: BLE001 (a class that cannot hold this file, which needs none)
        tokenizer, difference = plain, f"cannot hold it ({error})"
    if difference:
        logger.warning(f"{file} is read as it is; the class that transformers chooses {difference}")
    tokenizer._tokenizer = exact  # as its subclasses set it: there is no public way
    for name, token in tokenizer.special_tokens_map.items():
        if isinstance(token, str) and exact.token_to_id(token) is None:
            setattr(tokenizer, name, None)  # a default of the class, which the file has no id for
    return tokenizer


def _from_sentencepiece(file: pathlib.Path, tokenizer: Any) -> Any:
    """With the normaliser and pieces of a SentencePiece model, which the class rebuilds loosely.

    Before a text comes what the class puts there; for Llama and Mistral, whose files do not say so,
    the BOS that they were trained with, unless tokenizer_config.json has add_bos_token.
    """
    import sentencepiece
    from transformers import PreTrainedTokenizerFast

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(file))
    made = PreTrainedTokenizerFast.convert_to_native_format(vocab_file=str(file), legacy=True)
    exact, rebuilt = made["tokenizer_object"], tokenizer.backend_tokenizer
    exact.add_tokens([token for _, token in sorted(tokenizer.added_tokens_decoder.items())])
    exact.post_processor = rebuilt.post_processor
    for text in PROBES:
        if exact.encode(text, add_special_tokens=False).ids != pieces.encode(text):
            raise InputError(
                f"{file}: transformers makes other token ids of {text!r} than the file; save the "
                f"tokenizer as {FILE} and check that"
            )
    tokenizer._tokenizer = exact
    if file.name == "tokenizer.model" and "add_bos_token" not in tokenizer.init_kwargs:
        tokenizer.add_bos_token = True
    return tokenizer
