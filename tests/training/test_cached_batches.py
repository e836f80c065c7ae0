"""The offline methods: what they draw from a cache, and that each learns from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vbon_jax import files
from vbon_jax.config import constants, defaults
from vbon_jax.data import prompt_sets
from vbon_jax.functional import bon, cdf
from vbon_jax.models import decoder, sharding
from vbon_jax.sampling import sampler
from vbon_jax.training import budget, loop, methods, optimizer, rollouts, step
from vbon_jax.training.methods import bonbon, distillation, preferences, regression
from vbon_jax.types import Responses, Sequences

OFFLINE = [
    name for name, row in methods.METHODS.items() if row.cache == "responses" and not row.samples
]


def test_log_f_of_a_reference_counts_the_others():
    rewards = jnp.array([[3.0, 1.0, 2.0, 2.0]])
    harmonic = cdf.log_cdf_of_references(rewards)
    for i in range(4):
        others = jnp.delete(rewards[0], i)[None]
        expected = cdf.log_cdf(rewards[:, i], others)
        np.testing.assert_allclose(harmonic[0, i], expected[0], rtol=1e-6, atol=1e-7)
    assert harmonic[0, 1] == pytest.approx(-11 / 6)
    assert harmonic[0, 0] == 0.0
    fitted = cdf.log_cdf_of_references(rewards, estimator="exponential_fit")
    np.testing.assert_array_equal(
        fitted, cdf.log_cdf(rewards, rewards, estimator="exponential_fit")
    )
    with pytest.raises(ValueError, match="at least 2"):
        cdf.log_cdf_of_references(rewards[:, :1])


# ---------------------------------------------------------------------------- batches

PROMPTS, M, G = 6, 8, 5


@pytest.fixture(scope="module")
def task():
    """A cache whose response m to prompt p is the one token 10 p + m + 1, of reward (m - 3)^2."""
    config = defaults()
    with config.unlocked():
        config.train.batch_size, config.train.samples_per_prompt = 4, 3
        config.references.samples_per_prompt, config.n = M, 3.0
    rewards = np.tile((np.arange(M, dtype=np.float32) - 3) ** 2, (PROMPTS, 1))
    number = 10 * np.arange(PROMPTS)[:, None] + np.arange(M) + 1
    tokens = np.zeros((PROMPTS, M, G), np.int32)
    tokens[..., 0] = number
    log_probs = np.zeros((PROMPTS, M, G), np.float32)
    log_probs[..., 0] = -number
    ones = np.ones((PROMPTS, M), np.int32)
    cache = Responses(tokens, ones, ones > 0, log_probs, rewards)
    ids = [(100 + p, 200 + p) for p in range(PROMPTS)]
    return methods.Task(
        config=config,
        model=None,
        mesh=None,
        prompts=prompt_sets.PromptSet(token_ids=ids, texts=[""] * PROMPTS),
        prompt_width=2,
        cache=cache,
        sampling=sampler.Sampling(max_new_tokens=G),
    )


def decoded(sequences):
    """Prompt and response numbers of rows, checked against each other."""
    np.testing.assert_array_equal(sequences.lengths_s, 3)
    tokens = sequences.tokens_st
    prompt = tokens[:, 0] - 100
    np.testing.assert_array_equal(tokens[:, 1], 200 + prompt)
    response = tokens[:, 2] - 10 * prompt - 1
    assert ((response >= 0) & (response < M)).all()
    assert not tokens[:, 3:].any()
    return prompt, response


def test_a_batch_of_responses_holds_what_the_cache_says(task):
    _, batch, row = regression.vbon_batch(task, None, 3, None)
    prompt, response = decoded(batch.sequences)
    assert len(prompt) == 12
    np.testing.assert_array_equal(batch.reference_s, -(10 * prompt + response + 1))
    reward = (response - 3.0) ** 2
    assert row["cache/reward"] == pytest.approx(reward.mean())
    expected = cdf.log_cdf_of_references(task.cache.rewards_bn[:1])[0]
    np.testing.assert_allclose(batch.rank_s, np.asarray(expected)[response], rtol=1e-6)
    rewards = (np.arange(M) - 3.0) ** 2
    share = [((rewards < r).sum() + ((rewards == r).sum() - 1) / 2) / (M - 1) for r in rewards]
    _, batch, row = regression.qrpo_batch(task, None, 3, None)
    np.testing.assert_allclose(batch.rank_s, np.asarray(share)[response], rtol=1e-6)
    again = regression.qrpo_batch(task, None, 3, None)[1]
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_the_best_are_drawn_as_often_as_they_win(task):
    counts = np.zeros(M)
    for at in range(400):
        _, response = decoded(distillation.batch(task, None, at, None)[1])
        counts += np.bincount(response, minlength=M)
    rewards = (np.arange(M) - 3.0) ** 2
    law = bon.order_statistic_weights(M, 3)[np.argsort(np.argsort(rewards, kind="stable"))]
    law = np.array([law[rewards == reward].mean() for reward in rewards])  # ties share
    error = np.sqrt(law * (1 - law) / counts.sum())
    assert (np.abs(counts / counts.sum() - law) <= 4 * error).all()


def test_pairs_are_best_and_worst_of_n_and_ties_do_not_count(task):
    rewards_pm = task.cache.rewards_bn.copy()
    rewards_pm[0] = 1.0  # every pair of this prompt is tied, and no other can be
    task = task._replace(cache=task.cache._replace(rewards_bn=rewards_pm))
    tied = 0
    for at in range(40):
        _, batch, row = bonbon.calibrated_batch(task, None, at, None)
        prompt, best = decoded(batch.best)
        same, worst = decoded(batch.worst)
        np.testing.assert_array_equal(prompt, same)
        assert (rewards_pm[prompt, best] >= rewards_pm[prompt, worst]).all()
        np.testing.assert_array_equal(batch.weight_s, prompt != 0)
        np.testing.assert_array_equal(batch.reference_worst_s, -(10 * prompt + worst + 1))
        assert (batch.target_s[batch.weight_s > 0] > 0).all()
        assert row["pairs/tied"] == pytest.approx((prompt == 0).mean())
        tied += (prompt == 0).sum()
    assert tied > 0


def test_what_the_constants_default_to():
    config = defaults()
    config.n = 4.0
    assert preferences.beta(constants(config, preferences.IPO_CONSTANTS)) == pytest.approx(1 / 11)
    config.pairs.beta = 0.3
    assert preferences.beta(constants(config, preferences.IPO_CONSTANTS)) == 0.3
    assert regression.beta(constants(config, regression.QRPO_CONSTANTS)) == 0.3
    config.n, config.pairs.beta = 5.0, 0.0
    assert regression.beta(constants(config, regression.QRPO_CONSTANTS)) == 0.25


MODEL = decoder.DecoderConfig(
    vocab_size=256, width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=16
)


def with_model(task, name: str, **changes):
    """The task of a method on a network that is near the uniform law, as its reference is."""
    config = task.config.copy_and_resolve_references()
    config.update(method=name)
    config.pairs.alpha, config.sampling.max_new_tokens = 0.1, G
    config.train.learning_rate, config.train.batch_size = 1e-2, 1
    config.train.samples_per_prompt, config.train.epochs, config.train.minibatches = 12, 1, 1
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    log_probs = np.zeros((PROMPTS, M, G), np.float32)
    log_probs[..., 0] = -np.log(256)
    mesh = sharding.make_mesh(data=1, fsdp=1, devices=jax.devices()[:1])
    cache = task.cache._replace(log_probs_bng=log_probs)
    return task._replace(config=config, model=MODEL, cache=cache, mesh=mesh)


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_each_objective_falls_on_a_batch(task, name):
    task = with_model(task, name)
    config = task.config
    learner = loop.make_learner(config, task)
    params = decoder.init(MODEL, jax.random.key(0))
    state = step.init_state(learner, loop.initial_params(config, task, params))
    assert state.params.keys() == {"decoder"}
    (batch,) = loop.minibatches(
        methods.METHODS[name].batch(task, state, 0, None)[1], config, 0, task.mesh
    )
    losses, rates = [], optimizer.rates(config, 0.0, update=0, value_head=True)
    for _ in range(30):
        state, row = step.update(state, batch, rates, learner=learner)
        losses.append(float(row["loss/total"]))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_every_offline_method_runs(task, tmp_path, name):
    task = with_model(task, name, train__steps=3, train__checkpoint_every=3)
    config, row = task.config, methods.METHODS[name]
    network = decoder.init(MODEL, jax.random.key(0))
    share = budget.cache_share(task.cache, M, seconds=1.0)
    state = loop.run(config, tmp_path, task, network, {}, share=share)
    batch = row.batch(task, state, 0, None)[1]
    sequences = jax.tree.leaves(batch, is_leaf=lambda leaf: isinstance(leaf, Sequences))[0]
    before, after = (
        rollouts.sequence_log_probs(task, params, sequences)
        for params in (network, state.params["decoder"])
    )
    assert np.abs(after - before).mean() > 1e-5
    # nothing sampled, nothing scored but the share of the cache: 3 steps x 1 of 6 prompts
    ledger = files.read_json(tmp_path / "ledger.json")
    assert ledger["reward_calls"] == 3 * M
    assert len(files.read_jsonl(tmp_path / "metrics.jsonl")) == 3
