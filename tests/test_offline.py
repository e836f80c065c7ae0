"""The offline methods: objectives by hand and by finite differences, and batches from a cache."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from configs import base
from experiments import pipeline, report, train
from tests.tiny import overrides, program
from vbon_jax import data
from vbon_jax.functional import bon, cdf, objectives
from vbon_jax.models import decoder
from vbon_jax.rollout import references
from vbon_jax.train import methods, offline, step
from vbon_jax.types import InputError

OFFLINE = [name for name, row in methods.METHODS.items() if row.source == "references"]

# log pi and log pi_ref of two pairs: h = (-1 + 2) - (-3 + 2.5) = 1.5 and 0.5 - 1 = -0.5
BEST, WORST = jnp.array([-1.0, -4.0]), jnp.array([-3.0, -1.0])
REFERENCE = jnp.array([-2.0, -4.5]), jnp.array([-2.5, -2.0])
H = np.array([1.5, -0.5])


@pytest.mark.parametrize(
    ("n", "target"), [(2, 1), (4, 5.5), (8, 18.15), (16, 49.77), (32, 124.84), (64, 297.88)]
)
def test_the_target_of_a_pair(n, target):
    assert bon.bonbon_target(n) == pytest.approx(target, abs=5e-3)
    # E log F(best) = -1/N and E log F(worst) = -H_N of N uniform draws
    uniform = -1 / n + scipy.special.digamma(n + 1) + np.euler_gamma
    assert bon.bonbon_target(n) == pytest.approx((n - 1) * uniform, rel=1e-12)


def test_the_beta_of_the_paper():
    assert objectives.bonbon_beta(8) == pytest.approx(0.0275482094, abs=5e-11)
    assert bon.bonbon_target(1) == 0.0
    with pytest.raises(ValueError, match="at least 2"):
        objectives.bonbon_beta(1)
    with pytest.raises(ValueError, match="integer"):
        bon.bonbon_target(2.5)


def log_sigmoid(x):
    return -np.log1p(np.exp(-x))


BY_HAND = {
    "bonbon": ({"n": 4, "alpha": 0.25}, 0.25 * np.array([1.0, 4.0]) + 0.75 * (H - 5.5) ** 2),
    "bonbon_released": (
        {"n": 4, "alpha": 0.25},
        0.25 * np.array([1.0, 4.0]) - 0.75 * log_sigmoid(H / 11),
    ),
    "dpo": ({"beta": 0.5}, -log_sigmoid(0.5 * H)),
    "ipo": ({"beta": 0.5}, (H - 1.0) ** 2),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pairs_by_hand(name):
    constants, expected = BY_HAND[name]
    objective = getattr(objectives, name)
    loss, metrics = objective(BEST, WORST, *REFERENCE, **constants)
    assert loss.total == pytest.approx(expected.sum(), rel=1e-6)
    assert loss.weight == 2
    assert metrics["margin"].value() == pytest.approx(0.5)
    assert metrics["accuracy"].value() == pytest.approx(0.5)
    # a tied pair counts for nothing, whatever stands there
    mask = jnp.array([True, False])
    dirty = [x.at[1].set(jnp.nan) for x in (BEST, WORST, *REFERENCE)]
    loss, _ = objective(*dirty, **constants, mask_b=mask)
    assert loss.total == pytest.approx(expected[0], rel=1e-6)
    assert loss.weight == 1
    gradient = jax.grad(lambda x: objective(x, *dirty[1:], **constants, mask_b=mask)[0].total)
    assert gradient(dirty[0])[1] == 0.0
    with pytest.raises(ValueError, match="worst_b"):
        objective(BEST, WORST[:1], *REFERENCE, **constants)


def test_a_calibrated_pair_with_the_mean_target_is_bonbon():
    target = jnp.full(2, bon.bonbon_target(4))
    ours = objectives.bonbon_calibrated(BEST, WORST, *REFERENCE, target, alpha=0.3)
    theirs = objectives.bonbon(BEST, WORST, *REFERENCE, n=4, alpha=0.3)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_regression_by_hand_and_at_its_minimiser():
    log_cdf = jnp.array([-0.5, -2.0])
    # N = 3: targets 2 (-0.5) + log 3 and 2 (-2) + log 3; log-ratios 1 and 0.5
    errors = np.array([1.0, 0.5]) - (2 * np.array([-0.5, -2.0]) + math.log(3))
    loss, metrics = objectives.vbon_regression(BEST, REFERENCE[0], log_cdf, n=3)
    assert loss.total == pytest.approx((errors**2).sum(), rel=1e-6)
    assert metrics["log_ratio"].value() == pytest.approx(0.75)
    # pi_BoN itself, of a million equally likely responses: N F^(N-1) has mean 1, and no loss
    log_cdf = np.log((np.arange(1e6) + 0.5) / 1e6)
    best = np.log(3) + 2 * log_cdf
    assert np.exp(best).mean() == pytest.approx(1.0, abs=1e-6)
    loss, _ = objectives.vbon_regression(
        jnp.asarray(best, jnp.float32), jnp.zeros(10**6), jnp.asarray(log_cdf, jnp.float32), n=3
    )
    assert loss.value() < 1e-9


@pytest.mark.parametrize("name", [*BY_HAND, "vbon_regression"])
def test_gradients_against_finite_differences(name):
    with jax.enable_x64(True):
        x = jnp.array([-1.0, -4.0, -2.2], jnp.float64)
        others = [x + shift for shift in (-0.7, 0.4, 0.2)]
        constants = {"n": 3} if name == "vbon_regression" else BY_HAND[name][0]
        if name == "vbon_regression":
            others = others[:2]

        def loss(x):
            return getattr(objectives, name)(x, *others, **constants)[0].total

        gradient, step = jax.grad(loss)(x), 1e-6
        for i in range(3):
            change = jnp.zeros_like(x).at[i].set(step)
            difference = (loss(x + change) - loss(x - change)) / (2 * step)
            assert gradient[i] == pytest.approx(float(difference), rel=1e-6)


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
    config = base.get_config()
    with config.unlocked():
        config.train.batch_size, config.train.samples_per_prompt = 4, 3
        config.references.samples_per_prompt, config.n = M, 3.0
    rewards = np.tile((np.arange(M, dtype=np.float32) - 3) ** 2, (PROMPTS, 1))
    number = 10 * np.arange(PROMPTS)[:, None] + np.arange(M) + 1
    tokens = np.zeros((PROMPTS, M, G), np.int32)
    tokens[..., 0] = number
    cache = references.References(
        rewards_pm=rewards,
        lengths_pm=np.ones((PROMPTS, M), np.int32),
        finished_pm=np.ones((PROMPTS, M), bool),
        log_probs_pm=-number.astype(np.float32),
        provenance=None,
        files=(),
        prompts_per_shard=1,
    )
    ids = [(100 + p, 200 + p) for p in range(PROMPTS)]
    return methods.Task(
        config=config,
        model=None,
        mesh=None,
        prompts=data.PromptSet(token_ids=ids, texts=[""] * PROMPTS),
        prompt_width=2,
        cache=cache,
        cache_tokens_pmg=tokens,
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
    _, batch, row = offline.response_batch(task, None, 3, None)
    prompt, response = decoded(batch.sequences)
    assert len(prompt) == 12
    np.testing.assert_array_equal(batch.reference_s, -(10 * prompt + response + 1))
    reward = (response - 3.0) ** 2
    assert row["cache/reward"] == pytest.approx(reward.mean())
    expected = cdf.log_cdf_of_references(task.cache.rewards_pm[:1])[0]
    np.testing.assert_allclose(batch.log_cdf_s, np.asarray(expected)[response], rtol=1e-6)
    again = offline.response_batch(task, None, 3, None)[1]
    jax.tree.map(np.testing.assert_array_equal, batch, again)


def test_the_best_are_drawn_as_often_as_they_win(task):
    counts = np.zeros(M)
    for at in range(400):
        _, response = decoded(offline.best_response_batch(task, None, at, None)[1].sequences)
        counts += np.bincount(response, minlength=M)
    rank = np.argsort(np.argsort((np.arange(M) - 3.0) ** 2, kind="stable"))
    law = bon.order_statistic_weights(M, 3)[rank]
    error = np.sqrt(law * (1 - law) / counts.sum())
    assert (np.abs(counts / counts.sum() - law) <= 4 * error).all()


def test_pairs_are_best_and_worst_of_n_and_ties_do_not_count(task):
    rewards_pm = task.cache.rewards_pm.copy()
    rewards_pm[0] = 1.0  # every pair of this prompt is tied, and no other can be
    task = task._replace(cache=task.cache._replace(rewards_pm=rewards_pm))
    tied = 0
    for at in range(40):
        _, batch, row = offline.pair_batch(task, None, at, None)
        prompt, best = decoded(batch.best)
        same, worst = decoded(batch.worst)
        np.testing.assert_array_equal(prompt, same)
        assert (rewards_pm[prompt, best] >= rewards_pm[prompt, worst]).all()
        np.testing.assert_array_equal(batch.mask_s, prompt != 0)
        np.testing.assert_array_equal(batch.reference_worst_s, -(10 * prompt + worst + 1))
        assert (batch.target_s[batch.mask_s] > 0).all()
        assert row["pairs/tied"] == pytest.approx((prompt == 0).mean())
        tied += (prompt == 0).sum()
    assert tied > 0


def test_constants_are_refused_by_name():
    config = base.get_config()
    with config.unlocked():
        config.method, config.n = "bonbon", 1.0
    with pytest.raises(InputError, match=r"n=1 .*bonbon.*from 2 to references"):
        offline.settings(config)
    config.n = 2.5
    with pytest.raises(InputError, match=r"n=2\.5"):
        offline.settings(config)
    config.n, config.pairs.alpha = 4.0, 1.5
    with pytest.raises(InputError, match=r"pairs\.alpha"):
        offline.settings(config)
    config.pairs.alpha, config.method = 0.5, "ipo"
    assert offline.settings(config).beta == pytest.approx(1 / 11)
    config.method, config.n = "vbon_regression", 2.5
    assert offline.settings(config).n == 2.5
    config.references.samples_per_prompt = 1
    with pytest.raises(InputError, match=r"references\.samples_per_prompt=1.*at least 2"):
        offline.settings(config)
    config.references.samples_per_prompt = 128
    config.cells = ({"method": "dpo", "n": 500},)
    with pytest.raises(InputError, match=r"n=500 .*dpo"):
        pipeline.check(config)


@pytest.mark.parametrize("name", OFFLINE)
def test_each_objective_falls_on_a_batch(task, name):
    config = task.config.copy_and_resolve_references()
    config.update(method=name)
    config.pairs.alpha, config.sampling.max_new_tokens = 0.1, G
    config.train.learning_rate = 1e-2
    model = decoder.DecoderConfig(
        vocab_size=256, width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=16
    )
    task = task._replace(config=config, model=model)
    learner = train.make_learner(config, task)
    params = decoder.init(model, jax.random.key(0))
    state = step.init_state(learner, train.initial_params(config, task, params))
    assert state.params.keys() == {"decoder"}
    batch = methods.METHODS[name].make_batch(task, state, 0, None)[1]
    losses = []
    for _ in range(30):
        state, row = step.update(state, batch, learner=learner)
        losses.append(float(row["loss/total"]))
    assert losses[-1] < 0.9 * losses[0]


def test_every_offline_method_runs(tiny, tmp_path):
    changes = {"methods": ",".join(OFFLINE), "train__steps": 3, "train__checkpoint_every": 3}
    done = program("compare", "--workdir", tmp_path, *overrides(tiny, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [row for row in report.read_results(tmp_path / "results.csv") if row["seed"] is not None]
    assert [row["method"] for row in rows] == OFFLINE
    for row in rows:
        assert row["kl"] > 1e-5, row["method"]
        # nothing sampled, nothing scored but the share of the cache: 3 steps x 4 of 24 prompts
        assert row["reward_calls"] == 12 * 8
