"""ROUGE of responses, and which references belong to which prompt."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from tests import fake_models
from vbon_jax.config import defaults
from vbon_jax.evaluation import rouge, rouge_of_responses
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError


def test_f_measures_by_hand():
    # response: the cat sat (3 words); reference: the cat was on the mat (6 words)
    # 1-grams: the, cat in common: P 2/3, R 2/6; 2-grams: the-cat: P 1/2, R 1/5; LCS the cat
    found = rouge.f_measures([["The cat sat!"]], [["the cat was on the mat"]])
    assert found["rouge_1"][0, 0] == pytest.approx(2 * 2 / 9)
    assert found["rouge_2"][0, 0] == pytest.approx(2 * 1 / 7)
    assert found["rouge_l"][0, 0] == pytest.approx(2 * 2 / 9)


def test_order_matters_to_l_and_counts_are_clipped():
    found = rouge.f_measures([["b a", "a a a a"]], [["a b"]])
    np.testing.assert_allclose(found["rouge_1"], [[1.0, 2 * 1 / 6]])
    np.testing.assert_allclose(found["rouge_2"], [[0.0, 0.0]])
    np.testing.assert_allclose(found["rouge_l"], [[0.5, 2 * 1 / 6]])


def test_words_are_stemmed_and_of_several_references_the_best_counts():
    found = rouge.f_measures([["running shoes", ""]], [["a hat", "the runs, a shoe"]])
    assert found["rouge_1"][0, 0] == pytest.approx(2 * 2 / 6)
    assert found["rouge_1"][0, 1] == 0.0
    with pytest.raises(ValueError, match="references to 0"):
        rouge.f_measures([["a"]], [])
    with pytest.raises(ValueError, match="references to 1"):
        rouge.f_measures([["a"]], [[]])
    assert rouge.has_words("(9)") and not rouge.has_words("… 模")


# ------------------------------------------------------------------------------- whose reference


ROWS = [
    {"text": "the film was good and long", "summary": "good"},
    {"text": "the film was bad", "summary": ["bad", "no good"]},
    {"text": "the film was good and long", "summary": "long"},
    {"text": "another text", "summary": "none of these"},
]


def configured(tmp_path, rows, **changes):
    config = defaults()
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"eval": str(path), "reference_field": "summary", "max_tokens": 0} | changes
    config.update_from_flattened_dict({f"data.{key}": value for key, value in values.items()})
    return config


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return AutoTokenizer.from_pretrained(tiny / "policy")


def encode(tokenizer, *texts):
    return [tuple(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def test_a_whole_text_has_the_references_of_every_row_that_repeats_it(tmp_path, tokenizer):
    prompts = encode(tokenizer, ROWS[1]["text"], ROWS[0]["text"])
    found = rouge_of_responses.references(configured(tmp_path, ROWS), tokenizer, prompts)
    assert found == [["bad", "no good"], ["good", "long"]]
    cut = [prompts[1][-3:]]  # a text that was too long is the prompt that its end makes
    found = rouge_of_responses.references(configured(tmp_path, ROWS), tokenizer, cut)
    assert found == [["good", "long"]]


def test_a_beginning_has_those_of_every_text_that_begins_so(tmp_path, tokenizer):
    whole = encode(tokenizer, *(row["text"] for row in ROWS[:2]))
    shared = [a for a, b in zip(*whole, strict=False) if a == b]
    config = configured(tmp_path, ROWS, min_tokens=1, max_tokens=len(whole[0]))
    found = rouge_of_responses.references(config, tokenizer, [tuple(shared[:1]), whole[0][:-1]])
    assert found == [["good", "bad", "no good", "long"], ["good", "long"]]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "the film was bad"}, "line 1 has no field 'summary'"),
        ({"text": "the film was bad", "summary": "…"}, r"line 1: field 'summary' is '…'; give"),
        ({"text": "the film was bad", "summary": [3]}, "field 'summary' is '3'"),
        ({"text": "the film was bad", "summary": []}, "empty list"),
        ({"text": "another", "summary": "a"}, r"1 of 1 held-out prompts \(the first: number 0\)"),
    ],
)
def test_rows_without_references_are_refused(tmp_path, tokenizer, row, message):
    with pytest.raises(InputError, match=message):
        rouge_of_responses.references(
            configured(tmp_path, [row]), tokenizer, encode(tokenizer, "the film was bad")
        )


def test_the_embedded_reviews_have_none():
    config = defaults()
    config.data.reference_field = "text"
    with pytest.raises(InputError, match=r"name the held-out rows that have it, data\.eval"):
        rouge_of_responses.references(config, None, [])


def test_rouge_of_an_evaluation_is_a_mean_over_prompts_with_its_interval(tmp_path):
    work = fake_models.write_work(tmp_path, [], prompts=6, text=" words that are common")
    cache = reference_cache.load(work / "references" / "eval")
    config = defaults()
    config.data.reference_field = "summary"
    texts = [["words that differ", "words"]] * 5 + [["nothing else"]]
    rouge_of_responses.measure(config, work / "reference", cache, texts)
    (row,) = json.loads((work / "reference" / "rouge" / "rows.json").read_text())
    assert row["rouge_1_lo"] < row["rouge_1"] < row["rouge_1_hi"]
    one = rouge.f_measures([[" words that are common reference 0 0"]], texts[:1])
    assert row["rouge_1"] == pytest.approx(one["rouge_1"][0, 0] * 5 / 6)
    with pytest.raises(InputError, match="reference texts was"):
        rouge_of_responses.measure(config, work / "reference", cache, texts[::-1])
