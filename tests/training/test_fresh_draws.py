"""BOND, J-BOND, RAFT, online BoNBoN and given pairs on a tiny random policy."""

import jax
import numpy as np
import pytest

from tests.training.tiny_task import (
    MODEL,
    RATES,
    G,
    K,
    M,
    make_task,
    responses,
    rewards,
    start,
)
from vbon_jax.config import constants
from vbon_jax.data import formats, prompt_sets
from vbon_jax.data.response_ids import Ends
from vbon_jax.functional import cdf, streams
from vbon_jax.training import cached_batches, loop, methods, rollouts, step
from vbon_jax.training.methods import bond, preferences
from vbon_jax.types import InputError


@pytest.mark.slow
def test_bond_weighs_its_draws_against_the_cache():
    task = make_task("bond", bond__backward=0.25)
    learner, state = start(task)
    _, batch, row = methods.method("bond").batch(task, state, 0, jax.random.key(3))
    old = rollouts.sequence_log_probs(task, state.params["decoder"], batch.sampled)
    reference = rollouts.sequence_log_probs(task, task.reference_params, batch.sampled)
    np.testing.assert_allclose(batch.old_log_probs_s, old, rtol=1e-6)
    index = rollouts.prompts_of(task, 0)
    log_f = cdf.log_cdf(
        rewards(task, batch.sampled).reshape(-1, K), task.cache.rewards_bn[index]
    ).reshape(-1)
    score = (2 * log_f - (old - reference)).reshape(-1, K)
    # a quarter of each score minus the other's of its prompt
    np.testing.assert_allclose(
        batch.advantage_s.reshape(-1, K), 0.25 * (score - score[:, ::-1]), rtol=1e-4, atol=1e-5
    )
    assert row["budget/reward_calls"] == 4 * K
    cached = {
        tuple(ids[:length].tolist())
        for ids, length in zip(
            task.cache.tokens_bng[index].reshape(-1, G),
            task.cache.lengths_bn[index].reshape(-1),
            strict=True,
        )
    }
    assert set(responses(batch.best)) <= cached
    terms, _ = bond.objective(MODEL, learner.constants, state.params, batch)
    assert terms["forward"][0] == 0.75
    assert terms["backward"][1].total == pytest.approx(-batch.advantage_s.sum(), abs=1e-4)


@pytest.mark.slow
def test_j_bond_ranks_its_draws_among_those_of_an_anchor_that_moves():
    task = make_task("j_bond", bond__anchor_rate=0.25, bond__anchor_kl=0.5)
    learner, state = start(task)
    jax.tree.map(np.testing.assert_array_equal, state.anchor, state.params["decoder"])
    before = jax.tree.map(np.asarray, state.anchor)
    state, batch, _ = methods.method("j_bond").batch(task, state, 0, jax.random.key(3))
    np.testing.assert_allclose(  # the anchor is the policy still, so no score has a KL in it
        batch.advantage_s.sum(), 0.0, atol=1e-5
    )
    state, _ = step.update(state, batch, RATES, learner=learner)
    moved, batch, row = methods.method("j_bond").batch(task, state, 1, jax.random.key(4))
    jax.tree.map(
        lambda old, new, anchor: np.testing.assert_allclose(
            anchor, 0.75 * old + 0.25 * new, atol=1e-6
        ),
        before, state.params["decoder"], moved.anchor,
    )  # fmt: skip
    assert row["budget/reward_calls"] == 4 * K * (1 + 3)  # N of the anchor beside each draw
    drawn = rollouts.rollout(
        task, moved.anchor, rollouts.prompts_of(task, 1),
        streams.key("anchor", task.config.seed, 1), num_samples=3 * K,
    )  # fmt: skip
    groups = drawn.rewards_bn.reshape(-1, 3)
    np.testing.assert_array_equal(rewards(task, batch.best), groups.max(axis=1))
    old = rollouts.sequence_log_probs(task, moved.params["decoder"], batch.sampled)
    gap = old - rollouts.sequence_log_probs(task, moved.anchor, batch.sampled)
    log_f = cdf.log_cdf(rewards(task, batch.sampled), groups)
    score = (0.5 * (2 * log_f - gap) - 0.5 * gap).reshape(-1, K)
    np.testing.assert_allclose(
        batch.advantage_s.reshape(-1, K), score - score[:, ::-1], rtol=1e-3, atol=1e-4
    )


def test_one_draw_a_prompt_is_weighed_against_the_batch():
    score = np.array([1.0, 2.0, 6.0], np.float32)
    np.testing.assert_allclose(bond.minus_others(score, 1), [-3.0, -1.5, 4.5])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raft", "online_bonbon"])
def test_the_best_of_the_policys_own_draws(name):
    task = make_task(name)
    _, state = start(task)
    _, batch, row = methods.method(name).batch(task, state, 0, jax.random.key(3))
    drawn = rollouts.rollout(
        task, state.params["decoder"], rollouts.prompts_of(task, 0), jax.random.key(3),
        num_samples=3,
    )  # fmt: skip
    best = batch if name == "raft" else batch.best
    np.testing.assert_array_equal(rewards(task, best), drawn.rewards_bn.max(axis=1))
    assert row["budget/sampled_tokens"] == drawn.lengths_bn.sum()
    if name == "online_bonbon":
        np.testing.assert_array_equal(rewards(task, batch.worst), drawn.rewards_bn.min(axis=1))
        np.testing.assert_allclose(
            batch.reference_worst_s,
            rollouts.sequence_log_probs(task, task.reference_params, batch.worst),
            rtol=1e-6,
        )
        tied = drawn.rewards_bn.max(axis=1) == drawn.rewards_bn.min(axis=1)
        np.testing.assert_array_equal(batch.weight_s, ~tied)


@pytest.mark.slow
def test_a_pair_of_equal_rewards_counts_nothing():
    task = make_task("online_bonbon", train__batch_size=24)
    coarse = task._replace(score=lambda *texts: np.float32(task.score(*texts) % 1 > 0.4))
    _, state = start(coarse)
    _, batch, row = methods.method("online_bonbon").batch(coarse, state, 0, jax.random.key(3))
    tied = rewards(coarse, batch.best) == rewards(coarse, batch.worst)
    assert 0 < tied.sum() < len(tied)
    np.testing.assert_array_equal(batch.weight_s, ~tied)
    assert row["pairs/tied"] == tied.mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bond", "j_bond", "raft", "online_bonbon"])
def test_each_trains(name):
    task = make_task(name)
    learner, state = start(task)
    before = jax.tree.map(np.asarray, state.params)
    state, batch, _ = methods.method(name).batch(task, state, 0, jax.random.key(3))
    parts = list(loop.minibatches(batch, task.config, 0, task.mesh))
    state, row = step.update(state, parts[0], RATES, learner=learner)
    assert np.isfinite(row["loss/total"])
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), before, state.params)
    assert max(jax.tree.leaves(moved)) > 0


def test_ties_are_broken_anew_every_step():
    task = make_task("bon_sft", n=8.0)  # the best of all, and all are the best
    task = task._replace(cache=task.cache._replace(rewards_bn=np.zeros_like(task.cache.rewards_bn)))
    cached = cached_batches.cached_responses(task, 0)
    drawn = [cached_batches.best_of_n(task, cached, at).ravel() for at in range(60)]
    assert set(np.concatenate(drawn).tolist()) == set(range(M))


def test_the_best_is_drawn_where_that_is_asked_for():
    task = make_task("bon_sft", bon_sft__select="best", n=8.0)  # N = M: nothing else is left
    _, batch, _ = methods.method("bon_sft").batch(task, None, 0, None)
    index = rollouts.prompts_of(task, 0)
    best = np.repeat(task.cache.rewards_bn[index].max(axis=1), K)
    np.testing.assert_array_equal(rewards(task, batch), best)


@pytest.mark.slow
def test_given_pairs_take_the_place_of_the_cache(tiny):
    pairs = prompt_sets.PairSet([(3, 4), (5,)], [(9, 7), (8, 8, 7)], [(1, 0), (2,)])
    task = make_task("ipo", pairs__path="x")._replace(pairs=pairs, cache=None)
    learner, state = start(task)
    _, batch, _ = methods.method("ipo").batch(task, state, 0, None)
    prompts = [
        tuple(row[:length].tolist())
        for row, length in zip(batch.best.tokens_st, batch.best.prompt_lengths_s, strict=True)
    ]
    drawn = zip(prompts, responses(batch.best), responses(batch.worst), strict=True)
    assert set(drawn) == set(zip(*pairs[:3], strict=True))
    np.testing.assert_allclose(
        batch.reference_best_s, rollouts.sequence_log_probs(task, task.reference_params, batch.best)
    )
    config = task.config.copy_and_resolve_references()
    config.pairs.update(average=True, beta=0.2)
    averaged = constants(config, preferences.IPO_CONSTANTS)
    terms, metrics = learner.objective(MODEL, averaged, state.params, batch)

    def log_ratio(side, reference_s):  # a mean over tokens
        log_probs_s = rollouts.sequence_log_probs(task, state.params["decoder"], side)
        return (log_probs_s - reference_s) / (side.lengths_s - side.prompt_lengths_s)

    h = log_ratio(batch.best, batch.reference_best_s)
    h -= log_ratio(batch.worst, batch.reference_worst_s)
    expected = ((h - 0.5 / 0.2) ** 2).sum()
    assert terms["response"][1].total == pytest.approx(expected, rel=1e-4)
    assert metrics["response/margin"].total == pytest.approx(h.sum(), rel=1e-3, abs=1e-4)


def test_given_pairs_are_read_with_their_end(tiny):
    from vbon_jax.models.huggingface import model_folder

    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    row = {"prompt": "the film", "chosen": " was good", "rejected": " was bad"}

    def build(*rows, over_long="error"):
        columns = [[given[name] for given in rows] for name in ("prompt", "chosen", "rejected")]
        places = [f"p.jsonl: line {number}" for number in range(1, len(rows) + 1)]
        return prompt_sets.build_pairs(
            formats.Preferences(*columns, places, "p.jsonl"),
            tokenizer, ends=Ends((0,), 0), new_tokens=10, longest=8, over_long=over_long,
        )  # fmt: skip

    pairs = build(row)
    assert pairs.chosen_ids[0][-1] == 0
    assert tokenizer.decode(pairs.chosen_ids[0][:-1]) == " was good"
    # its own end in the text is the one end; one before it is no response
    word = tokenizer.convert_ids_to_tokens(0)
    ended = row | {"chosen": f" was good{word}"}
    assert build(ended)[:3] == pairs[:3]
    with pytest.raises(InputError, match=r"p\.jsonl: line 2: field 'chosen' has an end-of-text"):
        build(row, row | {"chosen": f" was{word} good"})
    # equal responses, and such as are equal once they are cut, are left out and counted
    same = row | {"rejected": row["chosen"]}
    ends = row | {"chosen": " was good" * 9, "rejected": " was good" * 8}
    kept = build(same, row, ends, over_long="truncate")
    assert (len(kept.prompt_ids), kept.tied, kept.truncated, kept.dropped) == (1, 2, 1, 0)
    with pytest.raises(InputError, match=r"none of 1 pairs is left \(1 with equal responses"):
        build(same)
    long = row | {"chosen": " was good" * 9}
    with pytest.raises(InputError, match=r"p\.jsonl: line 2: .*data\.over_long"):
        build(row, long)
    assert len(build(row, long, over_long="drop")[0]) == 1
    cut = build(row, long, over_long="truncate")
    assert len(cut.chosen_ids[1]) == 10
    assert cut.chosen_ids[1][-1] != 0
    with pytest.raises(InputError, match=r"none of 1 pairs is left"):
        build(long, over_long="drop")
