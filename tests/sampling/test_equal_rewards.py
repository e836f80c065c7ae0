"""Equal text has the equal reward, bit for bit, whoever asks; a response without an end pays."""

import jax
import numpy as np
import pytest

from tests.cases import rewards as cases
from tests.tiny_config import check_refusal, configuration
from vbon_jax.config import defaults
from vbon_jax.data import batching
from vbon_jax.evaluation import judges, stored_responses
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.study import caches, check, evaluate, materials, plan, stages, train


def check_invariance(path, label) -> None:
    """A text scores the same alone, at each place of other batches, and by a model loaded again."""
    texts = [text[:size] for size in (1, 5, 40, 90, 200) for text in cases.TEXTS[:5]]
    for output, sizes in (("logit", (1, 7)), ("log_prob", (4,)), ("prob", (4,))):
        options = {"label": label, "output": output, "over_long": "truncate"}
        first, again = (rewards.classifier(path, **options) for _ in range(2))
        expected = first.score([""] * len(texts), texts)
        assert np.unique(expected).size > 10
        for size in sizes:
            for start in range(0, len(texts) - size, 5):
                part = texts[start : start + size][::-1]
                scored = again.score([""] * size, part)[::-1]
                np.testing.assert_array_equal(scored, expected[start : start + size])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["encoder", "decoder"])
def test_a_text_has_one_reward_whatever_batch_it_is_in(kind, tmp_path):
    check_invariance(cases.classifier(tmp_path / "model", kind), "good")


@pytest.mark.slow
def test_a_text_of_a_real_classifier_has_one_reward(shared):
    check_invariance(shared / "models" / "distilbert-imdb-mini", "POSITIVE")


@pytest.mark.slow
@pytest.mark.parametrize("new_tokens", [1, 2])
def test_short_answers_of_real_models_tie_with_the_cache(shared, new_tokens):
    """A step of 16 x 9 repeats many of a cache's 16 x 64 responses; prompts have 4 to 64 tokens."""
    checkpoint = model_folder.load(shared / "models" / "gpt2-imdb-mini", kind="decoder")
    tokenizer = model_folder.load_tokenizer(shared / "models" / "gpt2-imdb-mini")
    classifier = shared / "models" / "distilbert-imdb-mini"
    reward = rewards.classifier(classifier, label="POSITIVE", over_long="truncate")
    prompts = cases.prompts(tokenizer, count=16, step=4)
    score = rewards.make_scorer(reward, tokenizer, prompts, ())

    def sampled(seed: int, count: int) -> list[tuple]:
        """Place and tokens of each response, and its reward."""
        responses = sampler.generate(
            checkpoint.config,
            checkpoint.params,
            batching.pad_prompts(prompts.token_ids),
            sampler.prompt_keys(jax.random.key(seed), np.arange(16)),
            num_samples=count,
            sampling=sampler.Sampling(max_new_tokens=new_tokens),
        )
        ids, places = jax.device_get(responses).token_ids(), np.repeat(np.arange(16), count)
        return list(zip(zip(places, map(tuple, ids), strict=True), score(places, ids), strict=True))

    cache = sampled(0, 64)
    known = dict(cache)
    assert all(known[response] == value for response, value in cache)
    twins = [(known[key], value) for key, value in sampled(1, 9) if key in known]
    assert len(twins) > 5
    np.testing.assert_array_equal(*zip(*twins, strict=True))


# What the cache has -------------------------------------------------------------------------------


def noise(calls: list) -> rewards.Reward:
    """A reward whose every call gives other numbers, as of another machine; it counts texts."""

    def score(prompts, responses, columns):
        calls.append(responses)
        return np.random.default_rng(len(calls)).normal(size=len(responses)).astype(np.float32)

    return rewards.Reward(score, "noise", missing_eos_penalty=2.0)


def test_a_response_whose_text_the_cache_has_gets_the_cached_reward():
    """Also one of other tokens, and the first of two rewards that a text was imported with."""
    tokenizer, calls = cases.policy_tokenizer(), []
    eos = tokenizer.eos_token_id
    plot, film = (tokenizer(text)["input_ids"] for text in (" the plot", " film"))
    letters = [token for letter in " the plot" for token in tokenizer(letter)["input_ids"]]
    assert len(letters) > len(plot)
    cache = cases.responses([[[*plot, eos], [*letters, eos], plot], [film, film, [*film, eos]]])
    cached = cache._replace(rewards_bn=np.float32([[1, 1.1, 2], [3, 3.1, 4]]))
    prompts, reward = cases.prompts(tokenizer, count=2), noise(calls)
    score = rewards.make_scorer(reward, tokenizer, prompts, (eos,), cached)
    asked = [[*letters, eos], letters, plot, film, [*plot, eos], film]
    scored = score([0, 0, 0, 1, 1, 0], asked)
    assert scored[:4].tolist() == [1, 2, 2, 3]
    assert calls == [[" the plot", " film"]]  # what the prompt's own responses do not have
    np.testing.assert_array_equal(scored[:4], score([0, 0, 0, 1], asked[:4]))
    empty = cached._replace(lengths_bn=0 * cached.lengths_bn)  # rewards without responses
    assert 3 not in rewards.make_scorer(reward, tokenizer, prompts, (eos,), empty)([1], [film])


def test_equal_texts_of_one_call_are_scored_once_and_a_missing_end_costs():
    tokenizer, calls = cases.policy_tokenizer(), []
    eos, film = tokenizer.eos_token_id, tokenizer(" film")["input_ids"]
    prompts = cases.prompts(tokenizer, count=2)
    score = rewards.make_scorer(noise(calls), tokenizer, prompts, (7, eos))
    first, again, ended, other = score([0, 0, 0, 1], [film, film, [*film, eos], [*film, 7]])
    drawn = np.random.default_rng(1).normal(size=3).astype(np.float32)
    assert len(calls[0]) == 3
    assert (first, again, ended) == (drawn[0] - 2, drawn[0] - 2, drawn[1])
    assert other == drawn[2]  # any EOS ends a response
    check_refusal(
        lambda: rewards.make_scorer(noise(calls), tokenizer, prompts, ()),
        "reward.missing_eos_penalty=2", "names no EOS token", "set it to 0",
    )  # fmt: skip


# A missing end ------------------------------------------------------------------------------------


def test_the_penalty_is_part_of_a_rewards_identity():
    settings = defaults().reward
    settings.function = "tests.reward_functions:vowels"
    plain = rewards.load(settings)
    settings.missing_eos_penalty = 2.0
    penalised = rewards.load(settings)
    assert penalised.missing_eos_penalty == 2 and plain.missing_eos_penalty == 0
    assert penalised.fingerprint != plain.fingerprint
    settings.missing_eos_penalty = -1.0
    check_refusal(lambda: rewards.load(settings), "reward.missing_eos_penalty=-1.0")


@pytest.mark.slow
def test_all_that_reads_a_reward_sees_the_penalty(tiny, tmp_path):
    """The cache (and so Best-of-N's curve), an evaluation, a judge with its own, a run."""
    config = configuration(tiny, method="raft", reward__missing_eos_penalty=10.0)
    strict = {"function": "tests.reward_functions:vowels", "missing_eos_penalty": 20.0}
    with config.unlocked():
        config.judges.strict = strict
    run = plan.single(config, tmp_path)
    tables = check.check(config, [run])
    shared = materials.load(config, tmp_path, stages.make(config, tmp_path), tables)
    caches.build(shared, "eval")
    evaluate.reference(shared, evaluate.load_standards(shared))
    cache = caches.load(shared, "eval").responses
    assert 0 < cache.finished_bn.mean() < 1
    np.testing.assert_array_equal(cache.rewards_bn > -5, cache.finished_bn)
    measured = stored_responses.read(tmp_path / "reference" / "responses-t1.parquet")
    np.testing.assert_array_equal(measured.rewards_bn > -5, measured.finished_bn)
    judged_bn = judges.read_rewards(tmp_path / "references/eval/judges/strict/rewards.parquet")
    np.testing.assert_array_equal(judged_bn > -15, cache.finished_bn)
    (eos,), word = shared.sampling.eos_token_ids, 40
    ended, cut = train.policy_inputs(run, shared).task.score([0, 0], [[word, eos], [word]])
    assert ended == pytest.approx(cut + 10)
