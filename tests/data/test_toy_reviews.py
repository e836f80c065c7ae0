"""The toy reviews: many, graded, undecided at first; and the tokenizers trained on them."""

import itertools
import re
import subprocess
import sys
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vbon_jax.data import sources, tokenizers, toy_reviews
from vbon_jax.types import InputError


@pytest.fixture(scope="module")
def sample():
    return toy_reviews.generate(20_000, seed=0)


@pytest.fixture(scope="module")
def bpe(sample):
    return tokenizers.train_tokenizer((r.text for r in sample[:2000]), vocab_size=768)


@pytest.fixture(scope="module")
def wordpiece(sample):
    return tokenizers.train_wordpiece((r.text for r in sample[:2000]), vocab_size=500)


# Reviews ------------------------------------------------------------------------------------------


def test_a_seed_gives_one_list_and_a_longer_one_begins_with_it(sample):
    assert toy_reviews.generate(50, seed=0) == sample[:50]
    assert toy_reviews.generate(50, seed=1) != sample[:50]
    assert toy_reviews.generate(0, seed=0) == []


def test_there_are_many_reviews(sample):
    assert len({r.text for r in sample}) >= 15_000
    vocabulary = {word for r in sample for word in re.findall(r"\w+", r.text)}
    assert 300 <= len(vocabulary) <= 600


def test_the_named_source():
    """Held-out reviews follow the training ones, whose beginnings are cut between words."""
    train, held_out, beginnings = (
        sources.read(f"toy_reviews:{part}?reviews=200").rows
        for part in ("train", "eval", "beginnings")
    )
    reviews = [{"text": r.text, "label": r.label} for r in toy_reviews.generate(210, seed=0)]
    assert train + held_out == reviews
    lengths = []
    for row, beginning in zip(train, beginnings, strict=True):
        assert beginning["label"] == row["label"]
        words, kept = row["text"].split(" "), beginning["text"].split(" ")
        assert kept == words[: len(kept)]
        lengths.append(len(kept))
    whole = [beginning == row for row, beginning in zip(train, beginnings, strict=True)]
    assert min(lengths) == 4 and 0 < sum(whole) < 50
    assert toy_reviews.rows("toy_reviews:train?reviews=20") == train[:20]
    with pytest.raises(
        InputError, match="toy_reviews:test: give toy_reviews:train, toy_reviews:ev"
    ):
        sources.read("toy_reviews:test")


def test_reviews_are_plain_text_of_the_promised_size(sample):
    for r in sample:
        assert 15 <= len(r.text.split()) <= 45
        assert 1 <= r.text.count(".") <= 4 and r.text.endswith(".")
    text = " ".join(r.text for r in sample)
    assert set(text) <= set("abcdefghijklmnopqrstuvwxyz .,")
    assert not re.search(r"\ba [aeiou]|  | [.,]|\ban [^aeiouh]", text)
    for symbol, phrases in toy_reviews.PHRASES.items():
        if isinstance(phrases, tuple):
            continue
        assert set(phrases) == set(toy_reviews.GRADES), symbol
        assert len({p for group in phrases.values() for p in group}) == sum(
            map(len, phrases.values())
        )


def test_grades_are_uniform_and_labels_their_sign(sample):
    grades = np.asarray([r.grade for r in sample])
    assert all(r.label == int(r.grade > 0) for r in sample)
    assert np.abs(np.histogram(grades, bins=6, range=(-3, 3))[0] / len(grades) - 1 / 6).max() < 0.02


def test_words_tell_the_grade_without_giving_it_away(sample):
    """A linear reader of words finds the label in most reviews and a grade with few ties."""
    rows = [re.findall(r"\w+", r.text) for r in sample[:6000]]
    index = {word: column for column, word in enumerate(dict.fromkeys(itertools.chain(*rows)))}
    counts = np.zeros((6000, len(index)))
    for row, words in enumerate(rows):
        np.add.at(counts[row], [index[word] for word in words], 1)
    grades = np.asarray([r.grade for r in sample[:6000]])
    seen = counts[:5000]
    weights = np.linalg.pinv(seen.T @ seen, hermitian=True) @ (seen.T @ grades[:5000])
    read = counts[5000:] @ weights
    accuracy = ((read > 0) == (grades[5000:] > 0)).mean()
    assert 0.8 < accuracy < 0.97
    assert 0.6 < np.corrcoef(read, grades[5000:])[0, 1] < 0.97
    assert len(set(read.round(9))) > 990
    assert min((read > 2).mean(), (read < -2).mean()) > 0.02


def test_the_first_words_leave_the_verdict_open(sample):
    by_opening = defaultdict(list)
    for r in sample:
        by_opening[tuple(r.text.split()[:3])].append(r.grade)
    common = [grades for grades in by_opening.values() if len(grades) >= 40]
    undecided = [
        0.3 < (np.asarray(grades) > 0).mean() < 0.7 and np.std(grades) > 1.3 for grades in common
    ]
    assert sum(map(len, common)) > 5000
    assert np.mean(undecided) > 0.7


# Tokenizers ---------------------------------------------------------------------------------------


def test_the_bpe_tokenizer_is_gpt2s_with_eos_at_zero(bpe, sample):
    assert len(bpe) == 768
    assert bpe.bos_token == bpe.eos_token == "<|endoftext|>"
    assert bpe.bos_token_id == bpe.eos_token_id == 0
    ids = bpe([r.text for r in sample[-500:]])["input_ids"]
    assert all(0 not in row for row in ids)
    words = np.mean([len(r.text.split()) for r in sample[-500:]])
    assert np.mean([len(row) for row in ids]) < 2 * words


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_decodes_back_to_itself(bpe, text):
    assert bpe.decode(bpe(text)["input_ids"], clean_up_tokenization_spaces=False) == text


def test_wordpiece_marks_beginning_and_end(wordpiece, sample):
    assert wordpiece.convert_ids_to_tokens(range(5)) == [
        *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    ]
    assert len(wordpiece) == 500
    ids = wordpiece("The PLOT was dull.")["input_ids"]
    tokens = wordpiece.convert_ids_to_tokens(ids)
    assert tokens[0] == "[CLS]" and tokens[-2:] == [".", "[SEP]"]
    assert "".join(tokens[1:-2]).replace("##", "") == "theplotwasdull"
    assert wordpiece("")["input_ids"] == [2, 3]
    assert all(1 not in row for row in wordpiece([r.text for r in sample[-500:]])["input_ids"])


@pytest.mark.slow
def test_folders_load_again_beside_a_model(bpe, wordpiece, sample, tmp_path):
    from transformers import AutoTokenizer

    texts = [r.text for r in sample[:20]] + ["Zoë said “no” <|endoftext|> [SEP]\n"]
    for tokenizer, model_type in ((bpe, "gpt2"), (wordpiece, "distilbert")):
        folder = tmp_path / model_type
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
        loaded = AutoTokenizer.from_pretrained(folder)
        assert (folder / "tokenizer.json").exists()
        assert loaded(texts)["input_ids"] == tokenizer(texts)["input_ids"]
        assert loaded.get_vocab() == tokenizer.get_vocab()


@pytest.mark.slow
def test_training_is_deterministic_in_another_process(bpe, wordpiece):
    code = (
        "import hashlib\n"
        "from vbon_jax.data import tokenizers, toy_reviews\n"
        "texts = [r.text for r in toy_reviews.generate(2000, seed=0)]\n"
        "for t in (tokenizers.train_tokenizer(texts, vocab_size=768),\n"
        "          tokenizers.train_wordpiece(texts, vocab_size=500)):\n"
        "    print(t.backend_tokenizer.to_str())\n"
    )
    root = str(toy_reviews.__file__).rpartition("vbon_jax")[0]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [t.backend_tokenizer.to_str() for t in (bpe, wordpiece)]
