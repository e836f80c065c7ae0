"""Classifiers, caches and responses that show what keeps rewards right."""

import json
import pathlib

import numpy as np

from tests import families
from vbon_jax.data import batching, prompt_sets, tokenizers, toy_reviews
from vbon_jax.types import Responses

TEXTS = [review.text for review in toy_reviews.generate(60, seed=3)]
ENCODER = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 112}
DECODER = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 100}


def classifier(folder: pathlib.Path, kind: str) -> pathlib.Path:
    """A random "encoder" with three labels, or a "decoder" with one, as a Hugging Face folder."""
    if kind == "encoder":
        tokenizer = wordpiece()
        settings, labels = ENCODER, ("bad", "so-so", "good")
    else:
        tokenizer = tokenizers.train_tokenizer(TEXTS, vocab_size=300)
        settings, labels = DECODER, ("good",)
    model_type = {"encoder": "distilbert", "decoder": "gpt2"}[kind]
    network = families.network(model_type, settings | {"vocab_size": len(tokenizer)}, labels=labels)
    network.save(folder, tokenizer=tokenizer)
    return folder


def wordpiece():
    """A lower-casing WordPiece tokenizer: `[CLS] text [SEP]`."""
    return tokenizers.train_wordpiece(TEXTS, vocab_size=300)


def write_rows(path: pathlib.Path, rows: list[dict]) -> None:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def policy_tokenizer():
    """A byte-level tokenizer: a word can be written with other tokens than the tokenizer's own."""
    return tokenizers.train_tokenizer(TEXTS, vocab_size=300)


def prompts(tokenizer, *, count: int, step: int = 8) -> prompt_sets.PromptSet:
    """Prompts of 4, 4 + step, ... tokens."""
    ids = [
        tuple(tokenizer(text)["input_ids"][: 4 + step * place])
        for place, text in enumerate(TEXTS[:count])
    ]
    return prompt_sets.PromptSet(ids, tokenizer.batch_decode(ids))


def responses(token_ids: list[list[list[int]]], eos: int = 0) -> Responses:
    """Responses of given tokens [B][N], finished where they end with the EOS, without rewards."""
    flat = [row for of_prompt in token_ids for row in of_prompt]
    lengths_s = np.asarray([len(row) for row in flat], np.int32)
    shape = len(token_ids), len(token_ids[0])
    tokens_sg = batching.pad_rows(flat, lengths_s, lengths_s.max())
    return Responses(
        tokens_bng=tokens_sg.reshape(*shape, -1),
        lengths_bn=lengths_s.reshape(shape),
        finished_bn=np.asarray([row[-1] == eos for row in flat]).reshape(shape),
        log_probs_bng=np.zeros((*shape, tokens_sg.shape[1]), np.float32),
    )
