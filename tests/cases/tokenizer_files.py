"""Folders whose tokenizer.json is not what transformers builds from a class name.

Right: the token ids are those of tokenizer.json, whatever class the folder or its family names.
"""

import io
import json
import pathlib

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

END = "<|endoftext|>"
TEXTS = ("it cost 1234 and 56, isn't it?\n\n  x  = y+1\n\tdef f(): pass 12 34", "a cafe\u0301 at 5")


def byte_level() -> tokenizers.Tokenizer:
    """GPT-2's shape, with merges of digits and of words."""
    raw = tokenizers.Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = {"special_tokens": [END], "initial_alphabet": alphabet, "show_progress": False}
    raw.train_from_iterator(TEXTS * 3, trainers.BpeTrainer(vocab_size=330, **options))
    return raw


def single_digits() -> tokenizers.Tokenizer:
    """SmolLM's: byte-level, each digit by itself."""
    raw = byte_level()
    digits = pre_tokenizers.Digits(individual_digits=True)
    raw.pre_tokenizer = pre_tokenizers.Sequence([digits, raw.pre_tokenizer])
    return raw


def composed_with_bos() -> tokenizers.Tokenizer:
    """Byte-level without splits, Unicode composed, and a BOS that the post-processor puts."""
    raw = byte_level()
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)
    raw.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, 0)]
    )
    return raw


def whole_words() -> tokenizers.Tokenizer:
    """Lower-cased words between white space, no bytes: what no class of a decoder builds."""
    words = ["[UNK]", END, *sorted({word for text in TEXTS for word in text.split()})]
    vocabulary = {word: index for index, word in enumerate(words)}
    raw = tokenizers.Tokenizer(models.WordLevel(vocabulary, "[UNK]"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    return raw


RAW = {function.__name__: function for function in (single_digits, composed_with_bos, whole_words)}


def write_config(folder: pathlib.Path, model_type: str, vocab_size: int) -> None:
    """The config.json of a small model of any family."""
    folder.mkdir(exist_ok=True)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"model_type": model_type, "vocab_size": vocab_size, "eos_token_id": 0}
    (folder / "config.json").write_text(json.dumps(sizes))


def write(folder: pathlib.Path, raw: tokenizers.Tokenizer, model_type: str, **settings) -> None:
    """A tokenizer's files, with `settings` in tokenizer_config.json, beside a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    write_config(folder, model_type, raw.get_vocab_size())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def sentencepiece_model(kind: str, **options) -> bytes:
    """A trained SentencePiece model, "bpe" as Llama's or "unigram" as DeBERTa v3's."""
    import sentencepiece

    model = io.BytesIO()
    texts = [line for text in TEXTS * 20 for line in (text, text[::-1])]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_writer=model, model_type=kind, vocab_size=320,
        hard_vocab_limit=False, byte_fallback=kind == "bpe", minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()
