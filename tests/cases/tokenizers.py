"""Tokenizers in the shapes of known families, each of a few hundred tokens.

All begin with `<unk> <s> </s> <|user|> <|assistant|> <|eot|>`, ids 0 to 5.
"""

import functools
import json
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|eot|>")
TEXTS = ("The plot is good. The film was awful!", "yes, a good movie, said the user: it is so")
SPACES_AGAIN = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
FIRST_SPACE_OFF = decoders.Strip(" ", 1, 0)  # of a text, as SentencePiece decodes

# The end of a turn that each template writes, and its place among the ids above.
TURNS = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}<|eot|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
LLAMA_2 = (  # a space stands between an answer and its end
    "{% for m in messages %}{% if m.role == 'user' %}<s>[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }} </s>{% endif %}{% endfor %}"
)
PHI_3 = (  # roles are tokens alone, and a conversation ends with a second end
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}</s>{% endif %}"
)


@functools.cache
def _tables(*, byte_fallback: bool) -> dict[str, Any]:
    """Vocabulary and merges of a SentencePiece BPE model."""
    raw = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback))
    raw.pre_tokenizer = pre_tokenizers.Metaspace()
    fallback = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[*SPECIAL, *fallback], show_progress=False
    )
    raw.train_from_iterator(TEXTS * 9, trainer)
    model = json.loads(raw.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


def _wrapped(raw: Tokenizer) -> Any:
    from transformers import PreTrainedTokenizerFast

    raw.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def _sentencepiece(*, byte_fallback: bool = True) -> Tokenizer:
    tables = _tables(byte_fallback=byte_fallback)
    model = models.BPE(**tables, unk_token="<unk>", fuse_unk=True, byte_fallback=byte_fallback)
    return Tokenizer(model)


def llama_2(*, byte_fallback: bool = True) -> Any:
    """The legacy normaliser puts a space before a text and behind every special token."""
    raw = _sentencepiece(byte_fallback=byte_fallback)
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.decoder = decoders.Sequence([*SPACES_AGAIN, FIRST_SPACE_OFF])
    return _wrapped(raw)


def llama_2_that_adds_bos() -> Any:
    """The same, with `<s>` before every text."""
    from tokenizers import processors

    tokenizer = llama_2()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def llama() -> Any:
    """The class that Llama folders name: a space before a text that begins without one."""
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer(**_tables(byte_fallback=True))
    tokenizer.add_special_tokens({"additional_special_tokens": list(SPECIAL[3:])})
    return tokenizer


def no_byte_fallback() -> Any:
    """A character outside of the vocabulary is `<unk>`."""
    return llama_2(byte_fallback=False)


def gemma() -> Any:
    """No space of its own."""
    raw = _sentencepiece()
    raw.normalizer = normalizers.Replace(" ", "▁")
    raw.decoder = decoders.Sequence(SPACES_AGAIN)
    return _wrapped(raw)


def gpt2(*, add_prefix_space: bool = False) -> Any:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(TEXTS * 9, trainer)
    return _wrapped(raw)


def gpt2_with_a_space() -> Any:
    """Byte-level with `add_prefix_space`, as some NeoX folders."""
    return gpt2(add_prefix_space=True)


def qwen() -> Any:
    """Byte-level, characters composed first (NFC)."""
    tokenizer = gpt2()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


ALL = (
    llama_2,
    llama_2_that_adds_bos,
    llama,
    no_byte_fallback,
    gemma,
    gpt2,
    gpt2_with_a_space,
    qwen,
)
