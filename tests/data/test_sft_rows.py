"""Rows for supervised training, the reward model's objective: by hand."""

import dataclasses

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.models.test_models import SMALL, noisy, tokens_of
from vbon_jax.data import sft_rows
from vbon_jax.functional import objectives
from vbon_jax.models import classifier, decoder
from vbon_jax.training.methods import sft as text
from vbon_jax.types import InputError

EOS = 9


class Words:
    """A tokenizer of digits: "12 3" is tokens 1, 2 and 3; special tokens put 8 in front."""

    bos_token_id = None
    truncation_side = "right"

    def __call__(self, texts, add_special_tokens=True, verbose=True, **cut):
        rows = [[int(c) for c in text if c.isdigit()] for text in texts]
        rows = [[8, *ids] for ids in rows] if add_special_tokens else rows
        if cut:
            most = cut["max_length"]
            right = self.truncation_side == "right"
            rows = [ids[:most] if right else [ids[0], *ids[1:][1 - most :]] for ids in rows]
        return {"input_ids": rows}


def of_completions(prompts, completions, block=5, **options):
    places = [f"line {row + 1}" for row in range(len(prompts))]
    return sft_rows.completion_rows(
        prompts, completions, Words(), block=block, eos_token_id=EOS, source="file", places=places,
        **options,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- rows


def test_texts_one_a_row_and_packed():
    one = sft_rows.text_rows(["12", "3456"], Words(), block=4, eos_token_id=EOS)
    assert one.tokens_rt.tolist() == [[1, 2, EOS, 0], [3, 4, 5, 6]]
    assert one.segments_rt.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert one.said_rt.tolist() == [[False, True, True, False], [False, True, True, True]]
    packed = sft_rows.text_rows(["12", "3456"], Words(), block=4, eos_token_id=EOS, packed=True)
    assert packed.tokens_rt.tolist() == [[1, 2, EOS, 3], [4, 5, 6, EOS]]
    assert packed.segments_rt.tolist() == [[1, 1, 1, 2], [1, 1, 1, 1]]
    assert packed.said_rt.tolist() == [[False, True, True, False], [False, True, True, True]]
    packed = sft_rows.text_rows(["12", "3456"], Words(), block=3, eos_token_id=EOS, packed=True)
    assert packed.tokens_rt.tolist() == [[1, 2, EOS], [3, 4, 5]]  # 6 and its EOS fill no row
    short = sft_rows.text_rows(["1"], Words(), block=3, eos_token_id=EOS, packed=True)
    assert short.tokens_rt.tolist() == [[1, EOS, 0]]
    assert short.segments_rt.tolist() == [[1, 1, 0]]


@hypothesis.given(st.lists(st.integers(1, 9), max_size=40))
def test_packing_loses_nothing_and_fills_rows(lengths):
    rows = sft_rows.pack(lengths, 9)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(total <= 9 for total in filled)
    assert sum(2 * total <= 9 for total in filled) <= 1  # two half-empty rows would be one


def test_completions_share_a_row():
    """Longest first: 6 tokens, then 4 with 3 beside them."""
    made = of_completions(["1", "12", "123"], ["2", "3", "45"], block=7, packed=True)
    assert made.tokens_rt.tolist() == [[1, 2, 3, 4, 5, EOS, 0], [1, 2, 3, EOS, 1, 2, EOS]]
    assert made.segments_rt.tolist() == [[1] * 6 + [0], [1] * 4 + [2] * 3]
    assert [np.flatnonzero(said).tolist() for said in made.said_rt] == [[3, 4, 5], [2, 3, 5, 6]]


ROTARY = dataclasses.replace(SMALL, rope=decoder.Rope(100.0), window=3, windowed=(True, False))


@pytest.mark.parametrize("model", [SMALL, ROTARY], ids=["learned", "rotary, windowed"])
def test_a_packed_row_has_the_loss_of_its_texts(model):
    """No text sees its neighbour, wherever it stands: the same sum, and the same gradient."""
    params = {"decoder": noisy(model)}
    rng = np.random.default_rng(2)
    asked, said = (
        ["".join(map(str, rng.integers(1, 8, size))) for size in sizes]
        for sizes in ([2, 3, 1, 4], [3, 2, 1, 2])
    )

    @jax.jit
    def loss_and_slope(params, batch):
        def loss(params):
            terms, _ = text.sft_objective(model, text.NoSettings(), params, batch)
            return terms["nll"][1].total, terms["nll"][1].weight

        return jax.value_and_grad(loss, has_aux=True)(params)

    found = {}
    for packed in (False, True):
        made = of_completions(asked, said, block=12, packed=packed)
        found[packed] = loss_and_slope(params, text.TextBatch(*made[:3]))
        assert len(made.tokens_rt) == (2 if packed else 4)
    (apart, apart_weight), apart_slope = found[False]
    (together, weight), slope = found[True]
    assert weight == apart_weight == 3 + 2 + 1 + 2 + 4
    assert together == pytest.approx(float(apart), rel=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), slope, apart_slope)


def test_completions_begin_behind_their_prompts():
    made = of_completions(["12", "3"], ["34", "5"])
    assert made.tokens_rt.tolist() == [[1, 2, 3, 4, EOS], [3, 5, EOS, 0, 0]]
    assert made.segments_rt.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert [np.flatnonzero(said).tolist() for said in made.said_rt] == [[2, 3, 4], [1, 2]]
    assert (made.dropped, made.truncated) == (0, 0)


def test_completions_that_do_not_fit():
    with pytest.raises(InputError, match=r"file: line 2 has 3 tokens and a completion of 3"):
        of_completions(["1", "123"], ["2", "45"])
    dropped = of_completions(["1", "123"], ["2", "45"], over_long="drop")
    assert (len(dropped.tokens_rt), dropped.dropped) == (1, 1)
    cut = of_completions(["1", "123"], ["2", "45"], over_long="truncate")
    assert cut.tokens_rt[1].tolist() == [2, 3, 4, 5, EOS]  # the prompt's beginning is lost
    assert (np.flatnonzero(cut.said_rt[1]).tolist(), cut.truncated) == ([2, 3, 4], 1)
    cut = of_completions(["12"], ["3456789"[:6]], over_long="truncate")
    assert cut.tokens_rt[0].tolist() == [2, 3, 4, 5, 6]  # and then the end with its EOS
    assert np.flatnonzero(cut.said_rt[0]).tolist() == [1, 2, 3, 4]
    with pytest.raises(InputError, match="none of 1 rows fits"):
        of_completions(["123"], ["456"], over_long="drop")
    with pytest.raises(InputError, match=r"line 1 has an empty prompt"):
        of_completions([""], ["4"])


def test_whole_texts_for_a_classifier():
    arguments = {"block": 3, "source": "file", "places": ["line 1", "line 2"]}
    tokens, lengths, fits = sft_rows.scored_rows(["1", "12"], Words(), **arguments)
    assert tokens.tolist() == [[8, 1, 0], [8, 1, 2]]
    assert lengths.tolist() == [2, 3]
    assert fits.all()
    with pytest.raises(InputError, match=r"file: line 2 has a text of 4 tokens where 1 to 3 fit"):
        sft_rows.scored_rows(["1", "123"], Words(), **arguments)
    *_, fits = sft_rows.scored_rows(["1", "123"], Words(), over_long="drop", **arguments)
    assert fits.tolist() == [True, False]
    tokens, *_ = sft_rows.scored_rows(["1", "123"], Words(), over_long="truncate", **arguments)
    assert tokens[1].tolist() == [8, 1, 2]
    end = {"over_long": "truncate", "lost": "beginning"}
    tokens, *_ = sft_rows.scored_rows(["1", "123"], Words(), **end, **arguments)
    assert tokens.tolist() == [[8, 1, 0], [8, 2, 3]]


def test_only_the_completion_is_learned():
    """Tokens before the completion and behind the end change nothing; those between do."""
    params = {"decoder": noisy(SMALL)}
    tokens = tokens_of(SMALL, (1, 8))
    index = np.arange(8)
    batch = text.TextBatch(tokens, np.int32([index < 6]), np.array([(index >= 3) & (index < 6)]))

    @jax.jit
    def loss(batch):
        terms, _ = text.sft_objective(SMALL, text.NoSettings(), params, batch)
        return terms["nll"][1]

    found = loss(batch)
    assert found.weight == 3  # tokens 3, 4 and 5
    logits = jax.nn.log_softmax(decoder.forward(SMALL, params["decoder"], tokens))[0]
    expected = -sum(float(logits[index - 1, tokens[0, index]]) for index in (3, 4, 5))
    assert found.total == pytest.approx(expected, abs=1e-4)
    behind = tokens.copy()
    behind[0, 6:] += 1
    assert loss(batch._replace(tokens_rt=behind)).total == found.total


# ---------------------------------------------------------------------------------- reward model


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
    assert by_name["brier"] == pytest.approx((1 / 16 + 9 / 16) / 2)
    assert by_name["reward"] == pytest.approx(three / 4)
    tie, _ = objectives.bradley_terry(jnp.zeros(1), jnp.zeros(1))
    assert tie.total == pytest.approx(np.log(2.0))
    one, _ = objectives.bradley_terry(chosen, rejected, weight_b=jnp.array([1.0, 0.0]))
    assert one.total == pytest.approx(np.log(4 / 3))
    with pytest.raises(ValueError, match="rejected_b"):
        objectives.bradley_terry(chosen, rejected[:1])


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


def test_a_language_model_gets_a_score():
    """The head makes room; the text's last token is read, whatever lies behind it."""
    untied = dataclasses.replace(SMALL, tie_embeddings=False)
    config, params = decoder.with_score(untied, noisy(untied), ("one",), jax.random.key(0))
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
