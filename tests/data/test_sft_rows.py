"""Rows for supervised training, the reward model's objective: by hand."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.families import random_params
from tests.models.test_models import SMALL, tokens_of
from vbon_jax.config import defaults
from vbon_jax.data import formats, sft_rows, sources
from vbon_jax.data.response_ids import Ends
from vbon_jax.functional import objectives
from vbon_jax.models import classifier, decoder
from vbon_jax.training.methods import sft
from vbon_jax.types import InputError, Sequences

EOS = 9
ENDS = Ends((EOS,), EOS)


class Words:
    """A tokenizer of digits: "12 3" is tokens 1, 2 and 3; special tokens put 8 in front."""

    bos_token_id = bos_token = None
    added_tokens_decoder = types.MappingProxyType({})

    def __call__(self, texts, add_special_tokens=True, verbose=True):
        rows = [[int(c) for c in text if c.isdigit()] for text in texts]
        return {"input_ids": [[8, *ids] if add_special_tokens else ids for ids in rows]}

    def batch_decode(self, rows, **options):
        return ["".join(map(str, ids)) for ids in rows]


def of_completions(prompts, completions, block=5, over_long="error"):
    places = [f"file: line {row + 1}" for row in range(len(prompts))]
    given = formats.Completions(prompts, completions, places)
    return sft_rows.completion_rows(given, Words(), ENDS, block, over_long)


def learned(rows: Sequences) -> list[list[int]]:
    """The tokens of each row that carry loss."""
    columns = zip(*map(np.ndarray.tolist, rows), strict=True)
    return [tokens[first:end] for tokens, first, end in columns]


# ------------------------------------------------------------------------------------------- rows


def test_texts_one_a_row():
    texts = table(text=["12", "3456"])
    rows, counts = sft_rows.text_rows(texts, "text", Words(), ENDS, 4)
    assert rows.tokens_st.tolist() == [[1, 2, EOS, 0], [3, 4, 5, 6]]
    assert learned(rows) == [[2, EOS], [4, 5, 6]]
    assert counts == {"truncated": 1}


def test_completions_begin_behind_their_prompts():
    rows, counts = of_completions(["12", "3"], ["34", "5"])
    assert rows.tokens_st.tolist() == [[1, 2, 3, 4, EOS], [3, 5, EOS, 0, 0]]
    assert learned(rows) == [[3, 4, EOS], [5, EOS]]
    assert counts == {"dropped": 0, "truncated": 0}


def test_completions_that_do_not_fit():
    message = r"file: line 2: the prompt, beside its completion, has 3 tokens where 2 fit"
    with pytest.raises(InputError, match=message):
        of_completions(["1", "123"], ["2", "45"])
    rows, counts = of_completions(["1", "123"], ["2", "45"], over_long="drop")
    assert (len(rows.tokens_st), counts["dropped"]) == (1, 1)
    cut, counts = of_completions(["1", "123"], ["2", "45"], over_long="truncate")
    assert cut.tokens_st[1].tolist() == [2, 3, 4, 5, EOS]  # the prompt's beginning is lost
    assert (learned(cut)[1], counts["truncated"]) == ([4, 5, EOS], 1)
    cut, _ = of_completions(["12"], ["3456789"[:6]], over_long="truncate")
    assert cut.tokens_st[0].tolist() == [2, 3, 4, 5, 6]  # and then the end with its EOS
    assert learned(cut) == [[3, 4, 5, 6]]
    with pytest.raises(InputError, match=r"line 1 has an empty prompt"):
        of_completions([""], ["4"])


def table(**columns) -> sources.Table:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return sources.Table(rows, "file", list(range(1, len(rows) + 1)), "line")


def build(rows: sources.Table, **changes) -> sft_rows.Rows:
    config = defaults()
    config.update_from_flattened_dict(
        {"method": "reward_model", "train.text_tokens": 3}
        | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return sft_rows.build(config, rows, Words(), ENDS)


def test_no_row_is_left():
    rows = table(prompt=["123"], text=["456"])
    changes = {"method": "sft", "data__field": "prompt", "data__completion_field": "text"}
    with pytest.raises(InputError, match=r"file: no row is left; raise train\.text_tokens"):
        build(rows, data__over_long="drop", **changes)


def test_whole_texts_for_a_classifier():
    rows = build(table(text=["1", "12"], label=[1, 0]))
    assert rows.tokens_rt.tolist() == [[8, 1, 0], [8, 1, 2]]
    assert (rows.lengths_r.tolist(), rows.labels_r.tolist()) == ([2, 3], [1, 0])
    long = table(text=["1", "123"], label=[1, 0])
    with pytest.raises(InputError, match=r"file: line 2: the text has 4 tokens where 3 fit"):
        build(long)
    assert build(long, data__over_long="drop").tokens_rt.tolist() == [[8, 1, 0]]
    assert build(long, data__over_long="truncate").tokens_rt[1].tolist() == [8, 2, 3]


def test_preferences_for_a_classifier():
    """A response follows its prompt: where the two are too long, their beginning is lost."""
    rows = table(prompt=["1", "1"], chosen=["2", "23"], rejected=["3", "4"])
    reading = {"data__label_field": ""}
    cut = build(rows, data__over_long="truncate", **reading)
    assert cut.chosen_rt.tolist() == [[8, 1, 2], [8, 2, 3]]
    assert cut.rejected_rt.tolist() == [[8, 1, 3], [8, 1, 4]]
    assert build(rows, data__over_long="drop", **reading).rejected_rt.tolist() == [[8, 1, 3]]


def test_preferences_that_are_equal_once_they_are_cut_are_left_out(caplog):
    rows = table(prompt=["1", "1", "5"], chosen=["234", "2", "7"], rejected=["934", "3", "7 "])
    with caplog.at_level("INFO"):
        cut = build(rows, data__over_long="truncate", data__label_field="")
    assert cut.chosen_rt.tolist() == [[8, 1, 2]]
    assert "1 of 3 rows" in caplog.text and "2 tied" in caplog.text


@pytest.mark.slow
def test_only_the_completion_is_learned():
    """Tokens before the completion and behind the end change nothing; those between do."""
    params = {"decoder": random_params(SMALL)}
    tokens = np.asarray(tokens_of(SMALL, (1, 8)))
    rows = Sequences(tokens, np.int32([3]), np.int32([6]))

    @jax.jit
    def loss(rows):
        terms, _ = sft.sft_objective(SMALL, None, params, rows)
        return terms["nll"][1]

    total, weight = loss(rows)
    assert weight == 3  # tokens 3, 4 and 5
    logits = jax.nn.log_softmax(decoder.forward(SMALL, params["decoder"], tokens))[0]
    expected = -sum(float(logits[index - 1, tokens[0, index]]) for index in (3, 4, 5))
    assert total == pytest.approx(expected, abs=1e-4)
    behind = tokens.copy()
    behind[0, 6:] += 1
    assert loss(rows._replace(tokens_st=behind)).total == total


# ---------------------------------------------------------------------------------- reward model


@pytest.mark.slow
def test_bradley_terry_by_hand():
    """Margins log 3 and -log 3: -log 3/4 and -log 1/4; rewards sum to log 3 and 0."""
    three = float(np.log(3.0))
    chosen, rejected = jnp.array([three, -three / 2]), jnp.array([0.0, three / 2])
    loss, metrics = objectives.bradley_terry(chosen, rejected, centring=0.5)
    expected = np.log(4 / 3) + np.log(4.0) + 0.5 * three**2
    assert loss.total == pytest.approx(expected, rel=1e-6)
    assert loss.weight == 2
    by_name = {name: float(mean.value()) for name, mean in metrics.items()}
    assert by_name["accuracy"] == 0.5
    assert by_name["margin"] == pytest.approx(0.0, abs=1e-6)
    assert by_name["confidence"] == pytest.approx(0.75)
    assert by_name["reward"] == pytest.approx(three / 4)
    tie, _ = objectives.bradley_terry(jnp.zeros(1), jnp.zeros(1))
    assert tie.total == pytest.approx(np.log(2.0))
    one, _ = objectives.bradley_terry(chosen, rejected, weight_b=jnp.array([1.0, 0.0]))
    assert one.total == pytest.approx(np.log(4 / 3))
    with pytest.raises(ValueError, match="rejected_b"):
        objectives.bradley_terry(chosen, rejected[:1])


@pytest.mark.slow
def test_bradley_terry_gradient():
    with jax.enable_x64(True):
        chosen, rejected = jnp.array([0.3, -1.2]), jnp.array([0.1, 2.0])

        def loss(chosen):
            return objectives.bradley_terry(chosen, rejected, centring=0.2)[0].total

        slope = jax.grad(loss)(chosen)
        for index in range(2):
            step = jnp.zeros(2).at[index].set(1e-6)
            between = (loss(chosen + step) - loss(chosen - step)) / 2e-6
            assert slope[index] == pytest.approx(float(between), abs=1e-8)


@pytest.mark.slow
def test_a_language_model_gets_a_score():
    """The head makes room; the text's last token is read, whatever lies behind it."""
    untied = dataclasses.replace(SMALL, tie_embeddings=False)
    config, params = decoder.with_score(untied, random_params(untied), ("one",), jax.random.key(0))
    assert "head" not in params
    assert params["score"]["kernel"].shape == (12, 1)
    tokens, lengths = tokens_of(SMALL, (3, 9)), np.array([9, 4, 1])
    scores = classifier.logits(config, params, tokens, lengths)
    behind = np.where(np.arange(9) < lengths[:, None], tokens, 5)
    np.testing.assert_array_equal(classifier.logits(config, params, behind, lengths), scores)
    alone = classifier.logits(config, params, tokens[1:2, :4], lengths[1:2])
    np.testing.assert_allclose(alone[0], scores[1], atol=1e-5)
    hidden = decoder.hidden(config, params, tokens[:1])
    np.testing.assert_allclose(scores[0], hidden[0, 8] @ params["score"]["kernel"], atol=1e-5)
