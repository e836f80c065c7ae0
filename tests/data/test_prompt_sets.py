"""Prompts, batches and sequences: worked by hand first, then what must hold for all."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from tests.tiny_config import check_refusal
from vbon_jax.config import defaults
from vbon_jax.data import (
    batching,
    formats,
    prompt_sets,
    response_ids,
    sft_rows,
    sources,
    token_ids,
)
from vbon_jax.data.prompt_sets import Learned
from vbon_jax.data.response_ids import Ends
from vbon_jax.types import InputError, Prompts, Responses


class Words:
    """A tokenizer of the numbers that a text spells; as much of transformers' as data.py uses."""

    def __init__(self, bos_token_id=0, adds_bos=False):
        self.bos_token_id, self.adds_bos = bos_token_id, adds_bos
        self.added_tokens_decoder = {}
        self.bos_token = None if bos_token_id is None else str(bos_token_id)

    def __call__(self, texts, *, add_special_tokens=True, verbose):
        assert not verbose
        first = [self.bos_token_id] if self.adds_bos and add_special_tokens else []
        return {"input_ids": [first + [int(word) for word in text.split()] for text in texts]}

    def batch_decode(self, rows, *, clean_up_tokenization_spaces):
        assert not clean_up_tokenization_spaces
        return [" ".join(map(str, ids)) for ids in rows]


def build(texts, *, tokenizer=None, numbers=None, **changes) -> prompt_sets.PromptSet:
    """The prompts of texts, each on a line of its own, of whole texts unless `changes` say."""
    settings = ConfigDict({"field": "text", "min_tokens": 1, "max_tokens": 0, "over_long": "error"})
    for key in settings.keys() & changes.keys():
        settings[key] = changes.pop(key)
    rows = [{"text": text, "number": number} for number, text in enumerate(texts)]
    numbers = numbers or list(range(1, len(rows) + 1))
    table = sources.Table(rows, "rows.jsonl", numbers, "line")
    options = {"seed": 0, "longest": 10} | changes
    return prompt_sets.build_prompts(table, tokenizer or Words(), settings, **options)


# Prompts ------------------------------------------------------------------------------------------


def table(*texts: str) -> sources.Table:
    rows = [{"text": text} for text in texts]
    return sources.Table(rows, "rows.jsonl", list(range(1, len(rows) + 1)), "line")


def sets(train, held_out, *, changes=None, **learned) -> prompt_sets.PromptSets:
    config = defaults()
    config.update_from_flattened_dict({"data.max_tokens": 0} | (changes or {}))
    texts = {name: frozenset(given) for name, given in learned.items()}
    rows = prompt_sets.Rows(table(*train), table(*held_out), **texts)
    return prompt_sets.make_sets(config, rows, Words(), 10)


@pytest.mark.parametrize(
    ("learned", "left_out"),
    [
        ({}, {"1 1"}),
        ({"pair_prompts": {"5 6"}}, {"1 1", "5 6"}),
        ({"stage_prompts": {"5 6", "7 8"}}, {"1 1", "5 6", "7 8"}),
        ({"stage_texts": {"9"}}, {"1 1", "9"}),
    ],
)
def test_what_anything_learns_from_is_not_held_out(learned, left_out, caplog):
    held_out = ["5 6", "1 1", " 7 8", "9", "3", "4"]
    with caplog.at_level("INFO"):
        made = sets(["1 1", "2 2"], held_out, **learned)
    assert made.eval.whole == [text for text in held_out if text.strip() not in left_out]
    assert made.eval.learned == len(left_out)
    assert f"{len(left_out)} left out that training, pairs or stages learn from" in caplog.text


def test_a_prompt_is_known_by_the_row_that_it_is_cut_from():
    """Of a review that a stage or a run learns from no beginning is held out, whatever its length.

    A text that a stage learns is no prompt, but one that given pairs begin with is.
    """
    rows = [f"{i} {i + 1} {i + 2} {i + 3}" for i in range(1, 40, 4)]
    changes = {"data.max_tokens": 3, "data.min_tokens": 1}
    made = sets(rows[:3], rows, changes=changes, stage_texts={rows[4], "33"}, pair_prompts={"37"})
    whole = set(made.eval.whole)
    assert not whole & {*rows[:3], rows[4]}
    assert {rows[3], rows[8]} <= whole
    assert not {"37"} & set(made.eval.texts)


def test_what_chooses_a_checkpoint_is_neither_trained_on_nor_published():
    train, held_out = [str(i) for i in range(1, 41)], [str(i) for i in range(30, 60)]
    changes = {"data.train_limit": 20, "train.eval_every": 1, "train.eval_prompts": 8}
    made = sets(train, held_out, changes=changes, pair_prompts={"3", "5"})
    parts = [set(each.token_ids) for each in made]
    assert [len(part) for part in parts[::2]] == [20, 8]
    assert not parts[0] & parts[2] and not parts[0] & parts[1]
    assert not {(3,), (5,)} & parts[2]
    # the training prompts are the same ones, whether anything is chosen or not
    assert sets(train, held_out, changes={"data.train_limit": 20}).train == made.train
    words = "train.eval_every: rows.jsonl has no 8 prompts", "data.train_limit"
    for limit in (0, 36):
        more = changes | {"data.train_limit": limit}
        check_refusal(lambda more=more: sets(train, held_out, changes=more), *words)


def test_one_held_out_prompt_is_refused():
    check_refusal(lambda: sets(["1"], ["1", "2"]), "one held-out prompt gives no interval")


def test_whole_texts_are_prompts_and_each_is_kept_once():
    prompts = build(["5 6", "", "7", "5 6", "8 9"], exclude=Learned(frozenset({(7,)})))
    assert prompts.token_ids == [(5, 6), (0,), (8, 9)]
    assert prompts.texts == ["5 6", "0", "8 9"]
    assert (prompts.duplicates, prompts.learned) == (1, 1)


def test_prefixes_have_uniform_lengths_that_depend_on_seed_and_row_alone():
    texts = [" ".join(str(row * 20 + place) for place in range(12)) for row in range(3000)]
    prompts = build(texts, min_tokens=2, max_tokens=8)
    assert all(ids == tuple(range(ids[0], ids[0] + len(ids))) for ids in prompts.token_ids)
    counts = np.bincount([len(ids) for ids in prompts.token_ids], minlength=9)
    assert counts[:2].sum() == 0 and counts[2:].sum() == 3000
    assert np.abs(counts[2:] - 3000 / 7).max() < 5 * (3000 / 7) ** 0.5
    assert build(texts[:50], min_tokens=2, max_tokens=8).token_ids == prompts.token_ids[:50]
    assert build(texts, min_tokens=2, max_tokens=8, seed=1).token_ids != prompts.token_ids
    assert build(["3"], min_tokens=2, max_tokens=8).token_ids == [(3,)]


def test_over_long_prompts_are_a_choice():
    texts = ["1 2", "1 2 3 4", "9 8 3 4", "1 2 3"]
    with pytest.raises(
        InputError,
        match=r"rows\.jsonl: line 2: the prompt has 4 tokens where 3 fit, and 2 of 4 rows are too "
        r"long; set data\.over_long to truncate or drop",
    ):
        build(texts, longest=3)
    cut = build(texts, longest=3, over_long="truncate")
    assert cut.token_ids == [(1, 2), (2, 3, 4), (8, 3, 4), (1, 2, 3)]
    assert (cut.truncated, cut.dropped) == (2, 0)
    left = build(texts, longest=3, over_long="drop")
    assert left.token_ids == [(1, 2), (1, 2, 3)]
    assert (left.truncated, left.dropped) == (0, 2)


def test_a_limit_takes_a_random_part_in_the_order_of_the_file():
    texts = [str(number) for number in range(100)]
    part = build(texts, limit=10).token_ids
    assert len(part) == 10 and part == sorted(part)
    assert max(part) > (20,)  # not the file's beginning
    assert set(part) < set(build(texts, limit=20).token_ids)
    assert build(texts, limit=100).token_ids == build(texts).token_ids


@pytest.mark.parametrize(
    ("texts", "changes", "message"),
    [
        (["1", ""], {"tokenizer": Words(None)}, r"rows.jsonl: line 2 has an empty prompt.*give"),
        (
            ["1", "2"],
            {"exclude": Learned(frozenset({(1,), (2,)}))},
            "all 2 prompts are among the training prompts",
        ),
        (["1 2"], {"longest": 1, "over_long": "drop"}, "none of 1 rows is left, 1 were too long"),
        (
            ["1"],
            {"max_tokens": 2, "min_tokens": 3},
            "min_tokens=3 is above data.max_tokens=2; give",
        ),
        (["1"], {"longest": 0}, "the prompt has 1 tokens where 0 fit"),
    ],
)
def test_prompts_that_cannot_be_are_refused(texts, changes, message):
    with pytest.raises(InputError, match=message):
        build(texts, **changes)


def test_rows_of_which_some_were_left_out_keep_their_places():
    with pytest.raises(InputError, match=r"rows\.jsonl: line 9 has an empty prompt"):
        build(["1", ""], tokenizer=Words(None), numbers=[3, 9])
    with pytest.raises(InputError, match=r"rows\.jsonl: line 9: the prompt has 2 tokens"):
        build(["1", "1 2"], longest=1, numbers=[3, 9])


def test_a_fingerprint_tells_token_sequences_apart():
    sets = [[(1, 2), (3,)], [(1,), (2, 3)], [(3,), (1, 2)], [(1, 2, 3)], [(1, 2), (3,), ()]]
    prints = {prompt_sets.fingerprint(prompt_sets.PromptSet(ids, [])) for ids in sets}
    assert len(prints) == len(sets)
    assert prompt_sets.fingerprint(prompt_sets.PromptSet(sets[0], ["shown"])) in prints


def test_real_reviews_and_tokenizer(shared):
    from vbon_jax.models.huggingface import model_folder

    tokenizer = model_folder.load_tokenizer(shared / "models" / "gpt2-imdb-mini")
    file = shared / "data" / "imdb" / "test.jsonl"
    texts = [row["text"] for row in sources.read(file).rows]
    prompts = build(texts, tokenizer=tokenizer, min_tokens=2, max_tokens=8)
    assert len(prompts.token_ids) + prompts.duplicates == 300
    assert {len(ids) for ids in prompts.token_ids} == set(range(2, 9))
    assert sum(text.startswith(prompts.texts[0]) for text in texts) >= 1
    with pytest.raises(InputError, match=r"tokens where 200 fit, and \d+ of 300 rows"):
        build(texts, tokenizer=tokenizer, longest=200)


# Batches ------------------------------------------------------------------------------------------


def test_buckets_are_few_and_tight():
    assert [batching.bucket_length(n) for n in (0, 1, 8, 9, 64, 65, 100, 129)] == [
        *(8, 8, 8, 16, 64, 80, 112, 160)
    ]
    lengths = np.arange(1, 2000)
    padded = np.asarray([batching.bucket_length(int(n)) for n in lengths])
    assert (padded >= lengths).all() and (np.diff(padded) >= 0).all()
    assert (padded[64:] <= 1.25 * lengths[64:]).all()
    assert len(set(padded)) <= 8 + 4 * 5
    assert all(batching.bucket_length(int(n)) == n for n in padded)


def test_prompts_are_padded_on_the_right():
    prompts = batching.pad_prompts([(1, 2, 3), (4,)], multiple=2)
    assert prompts.tokens_bp.tolist() == [[1, 2, 3, 0], [4, 0, 0, 0]]
    assert prompts.lengths_b.tolist() == [3, 1]
    assert prompts.tokens_bp.dtype == prompts.lengths_b.dtype == np.int32
    assert batching.pad_prompts([(1, 2, 3)], longest=5).tokens_bp.shape == (1, 5)
    with pytest.raises(ValueError, match="3 tokens does not fit"):
        batching.pad_prompts([(1, 2, 3)], longest=2)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 2**32 - 1), st.integers(0, 9))
def test_batches_cut_a_stream_of_permutations(size, batch_size, seed, first):
    whole = batching.batch_indices(size, batch_size * (first + 3), seed=seed, step=0)
    steps = [batching.batch_indices(size, batch_size, seed=seed, step=first + i) for i in range(3)]
    np.testing.assert_array_equal(np.concatenate(steps), whole[first * batch_size :])
    epochs = whole[: len(whole) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(
        np.sort(epochs, axis=1), np.tile(np.arange(size), (len(epochs), 1))
    )


def test_epochs_and_seeds_differ_and_far_steps_are_fast():
    epochs = batching.batch_indices(1000, 2000, seed=0, step=0).reshape(2, 1000)
    assert (epochs[0] == epochs[1]).mean() < 0.02
    other = batching.batch_indices(1000, 1000, seed=1, step=0)
    assert (epochs[0] == other).mean() < 0.02
    began = time.perf_counter()
    for step in range(10**9, 10**9 + 20):
        batching.batch_indices(100_000, 64, seed=0, step=step)
    assert time.perf_counter() - began < 2


def test_the_last_batch_is_filled_up_with_its_last_row():
    batches = [(rows.tolist(), count) for rows, count in batching.filled_batches(5, 2)]
    assert batches == [([0, 1], 2), ([2, 3], 2), ([4, 4], 1)]
    assert [rows.tolist() for rows, _ in batching.filled_batches(4, 4)] == [[0, 1, 2, 3]]
    assert list(batching.filled_batches(0, 3)) == []


def test_prompt_and_response_are_joined_without_a_gap():
    prompts = Prompts(np.asarray([[1, 2, 3, 4], [5, 77, 77, 77]]), np.asarray([4, 1]))
    samples = Responses(
        tokens_bng=np.asarray([[[6, 7, 0], [8, 66, 66]], [[0, 0, 9], [66, 66, 66]]]),
        lengths_bn=np.asarray([[2, 1], [3, 0]]),
        finished_bn=None,
        log_probs_bng=None,
    )
    joined = batching.sequences(prompts, samples, 8)
    assert joined.tokens_st.tolist() == [
        [1, 2, 3, 4, 6, 7, 0, 0],
        [1, 2, 3, 4, 8, 0, 0, 0],
        [5, 0, 0, 9, 0, 0, 0, 0],
        [5, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert joined.prompt_lengths_s.tolist() == [4, 4, 1, 1]
    assert joined.lengths_s.tolist() == [6, 5, 4, 1]
    assert {array.dtype for array in joined} == {np.dtype(np.int32)}
    assert batching.sequences(prompts, samples, 6).tokens_st.shape == (4, 6)
    with pytest.raises(ValueError, match="6 tokens does not fit the width 5"):
        batching.sequences(prompts, samples, 5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_joined_rows_agree_with_a_plain_loop(seed, extra):
    rng = np.random.default_rng(seed)
    b, n, p, g = rng.integers(1, 5, size=4)
    prompts = Prompts(rng.integers(0, 50, (b, p)), rng.integers(1, p + 1, b))
    lengths_bn = rng.integers(0, g + 1, (b, n))
    samples = Responses(rng.integers(0, 50, (b, n, g)), lengths_bn, None, None)
    joined = batching.sequences(prompts, samples, int(p + g + extra))
    for row in range(b * n):
        prompt = prompts.tokens_bp[row // n, : prompts.lengths_b[row // n]]
        response = samples.tokens_bng[row // n, row % n, : lengths_bn[row // n, row % n]]
        whole = [*prompt, *response]
        assert joined.tokens_st[row].tolist() == whole + [0] * (p + g + extra - len(whole))


# A tokenizer with a BOS of its own ----------------------------------------------------------------


LLAMA = Words(bos_token_id=1, adds_bos=True)


def test_the_bos_is_in_front_once():
    assert token_ids.bos_prefix(Words()) == () == token_ids.bos_prefix(Words(bos_token_id=None))
    assert token_ids.bos_prefix(LLAMA) == (1,)
    # a chat template has written it already; an empty text is it alone
    texts, places = ["5 6", "1 5", ""], ["line 1", "line 2", "line 3"]
    assert token_ids.prompt_ids(LLAMA, texts, places) == [(1, 5, 6), (1, 5), (1,)]
    texts = ["5 6", "0 5", ""]
    assert token_ids.prompt_ids(Words(), texts, places) == [(5, 6), (0, 5), (0,)]


def test_prompts_are_cut_behind_the_bos():
    whole = build(["5 6 7 8", "9"], tokenizer=LLAMA, max_tokens=0, longest=9)
    assert whole.token_ids == [(1, 5, 6, 7, 8), (1, 9)]
    assert whole.texts == ["5 6 7 8", "9"]
    two = build(["5 6 7 8", "9"], tokenizer=LLAMA, min_tokens=2, max_tokens=2, longest=9)
    assert two.token_ids == [(1, 5, 6), (1, 9)]
    cut = {"tokenizer": LLAMA, "max_tokens": 0, "longest": 3}
    assert build(["5 6 7 8"], over_long="truncate", **cut).token_ids == [(1, 7, 8)]
    assert build(["5 6 7 8", "5 6"], over_long="drop", **cut).token_ids == [(1, 5, 6)]
    assert build(["5 6"], over_long="truncate", **cut | {"longest": 1}).token_ids == [(1,)]


def test_pairs_have_the_bos_before_their_prompt_alone():
    rows = formats.Preferences(["5 6 7"], [" 8"], [" 9"], ["file: line 1"], "file")
    options = {"ends": Ends((2,), 2), "new_tokens": 4}
    pairs = prompt_sets.build_pairs(rows, LLAMA, longest=9, **options)
    assert pairs[:3] == ([(1, 5, 6, 7)], [(8, 2)], [(9, 2)])
    pairs = prompt_sets.build_pairs(rows, LLAMA, longest=3, over_long="truncate", **options)
    assert pairs.prompt_ids == [(1, 6, 7)]


def test_supervised_rows_begin_with_the_bos():
    table = sources.Table([{"text": "5 6"}], "file", [1], "line")
    rows, _ = sft_rows.text_rows(table, "text", LLAMA, Ends((2,), 2), 6)
    assert rows.tokens_st.tolist() == [[1, 5, 6, 2, 0, 0]]
    assert (rows.prompt_lengths_s.tolist(), rows.lengths_s.tolist()) == ([1], [4])
    given = formats.Completions(["5 6 7"], [" 8"], ["line 1"])
    rows, _ = sft_rows.completion_rows(given, LLAMA, Ends((2,), 2), 6, "error")
    assert rows.tokens_st.tolist() == [[1, 5, 6, 7, 8, 2]]
    cut, _ = sft_rows.completion_rows(given, LLAMA, Ends((2,), 2), 4, "truncate")
    assert cut.tokens_st.tolist() == [[1, 7, 8, 2]]


# One end, one rule for what is too long -----------------------------------------------------------


def test_a_response_has_one_end():
    ends = Ends((2, 3), 3)
    assert response_ids.split_eos([5, 6], ends, "here") == ((5, 6), ())
    assert response_ids.split_eos([5, 2], ends, "here") == ((5,), (2,))
    assert response_ids.with_eos([5, 6], ends, "here") == (5, 6, 3)
    assert response_ids.with_eos([5, 2], ends, "here") == (5, 2)
    assert response_ids.with_eos([], ends, "here") == (3,)
    assert response_ids.with_eos([5], Ends(()), "here") == (5,)
    for ids in ([2, 5], [3, 2]):
        with pytest.raises(InputError, match="here has an end-of-text token before its end; take"):
            response_ids.with_eos(ids, ends, "here")


def test_rows_that_fit_are_left_alone():
    rows, places = [(1, 5, 6, 7), (1, 5), (1, 8, 9)], ["a", "b", "c"]
    options = {"remedy": "raise it", "keep": "end", "prefix": (1,)}
    assert token_ids.fit(rows, 4, "error", places, **options) == (rows, set())
    fitted = token_ids.fit(rows, [3, 3, 2], "truncate", places, **options)
    assert fitted == ([(1, 6, 7), (1, 5), (1, 9)], {0, 2})
    assert token_ids.left_out("truncate", fitted[1]) == {"dropped": 0, "truncated": 2}
    fitted = token_ids.fit(rows, 3, "truncate", places, keep="beginning", remedy="")
    assert fitted == ([(1, 5, 6), (1, 5), (1, 8, 9)], {0})
    assert token_ids.fit(rows, 3, "drop", places, **options) == ([None, *rows[1:]], {0})
    with pytest.raises(
        InputError, match=r"c has 3 tokens where 2 fit, and 1 of 3 .* too long; raise it"
    ):
        token_ids.fit(rows, [4, 2, 2], "error", places, **options)
