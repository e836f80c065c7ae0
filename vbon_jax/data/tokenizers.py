"""Tokenizers trained on texts: byte-level BPE and WordPiece."""

import json
from collections.abc import Iterable
from typing import Any


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, family: str = "gpt2") -> Any:
    """A byte-level BPE tokenizer trained on the texts, for a policy of a `family` (model_type).

    `<|endoftext|>` has id 0 and is BOS and EOS; every byte is in the vocabulary, so that any text
    decodes back to itself. A transformers tokenizer of at most `vocab_size` entries, at least 257.
    It is in GPT-2's shape, or in Qwen 2's, which transformers gives to all tokenizers of qwen2.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer, Qwen2Tokenizer

    shape = Qwen2Tokenizer if family == "qwen2" else GPT2Tokenizer
    raw = Tokenizer(models.BPE())
    raw.normalizer = shape().backend_tokenizer.normalizer
    raw.pre_tokenizer = shape().backend_tokenizer.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    model = json.loads(raw.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return shape(vocab=model["vocab"], merges=merges, bos_token="<|endoftext|>")


def train_wordpiece(texts: Iterable[str], *, vocab_size: int) -> Any:
    """A lower-casing WordPiece tokenizer in DistilBERT's shape, trained on the texts: the reward's.

    `[PAD]` has id 0, then `[UNK] [CLS] [SEP] [MASK]`; it encodes a text as `[CLS] text [SEP]`. A
    transformers tokenizer of about `vocab_size` entries.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import DistilBertTokenizer

    texts = list(texts)
    raw = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    raw.normalizer = normalizers.BertNormalizer(lowercase=True)
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    characters = {character for text in texts for character in raw.normalizer.normalize_str(text)}
    inner = [f"##{character}" for character in sorted(characters) if not character.isspace()]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        # The trainer numbers inner characters in the order of a randomised hash table, and breaks
        # ties by number; named here, they have their numbers before it begins.
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *inner],
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return DistilBertTokenizer(vocab=raw.get_vocab())
