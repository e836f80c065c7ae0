"""Tokenizers trained on texts: byte-level BPE and WordPiece."""

import json
from collections.abc import Iterable
from typing import Any


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """A byte-level BPE tokenizer in GPT-2's shape, trained on the texts: the policy's.

    `<|endoftext|>` has id 0 and is BOS and EOS; every byte is in the vocabulary, so that any text
    decodes back to itself. A transformers tokenizer of at most `vocab_size` entries, at least 257.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import GPT2Tokenizer

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(texts, trainer)
    return GPT2Tokenizer(**_bpe_tables(raw))


def _bpe_tables(raw: Any) -> dict[str, Any]:
    """Vocabulary and merges of a trained BPE tokenizer, as GPT2Tokenizer takes them."""
    model = json.loads(raw.to_str())["model"]
    return {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}


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
