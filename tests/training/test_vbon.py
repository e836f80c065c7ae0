"""vBoN and KL-constrained RL by hand: transforms, weights, advantages, the value head."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny_task import THREE_LAYERS, with_value_head
from vbon_jax.config import check, defaults
from vbon_jax.config import constants as frozen
from vbon_jax.models import decoder
from vbon_jax.training import methods, step, value_head
from vbon_jax.training.methods import kl_rl, vbon
from vbon_jax.types import InputError, Sequences


@pytest.fixture(scope="module")
def params():
    return with_value_head()


def test_vbon_and_kl_rl_differ_in_one_function():
    ours, theirs = methods.METHODS["vbon"], methods.METHODS["kl_rl"]
    assert ours.batch is vbon.batch is theirs.batch.func
    assert vbon.batch.__kwdefaults__ == {"transform": vbon.transform}
    assert theirs.batch.keywords == {"transform": kl_rl.transform}
    assert ours._replace(batch=None, cache="") == theirs._replace(batch=None)


def test_the_transforms_by_hand():
    config = defaults()
    rewards = jnp.array([[3.5, 0.0]])
    references = jnp.array([[1.0, 2.0, 3.0, 4.0]])
    # 3 of 4 below 3.5: H_3 - H_4 = -1/4; none below 0: -H_4 = -25/12
    got = vbon.transform(rewards, references, config)
    np.testing.assert_allclose(got, [[-0.25, -25 / 12]], rtol=1e-6)
    np.testing.assert_array_equal(kl_rl.transform(rewards, references, config), rewards)
    with config.unlocked():
        config.bound, config.n = "exact", 4.0
    # F = F+ where nothing ties: log-ratio = log N + (N-1) log F, over N - 1
    got = vbon.transform(rewards, references, config)
    np.testing.assert_allclose(got, np.log(4) / 3 + np.array([[-0.25, -25 / 12]]), rtol=1e-5)


@pytest.mark.parametrize(
    ("n", "weights"), [(4, (1, 1 / 3)), (2, (1, 1)), (1.5, (0.5, 1)), (1, (0, 1)), (1e6, (1, 1e-6))]
)
def test_objective_weights(n, weights):
    assert vbon.objective_weights(n) == pytest.approx(weights, rel=1e-5)


def test_explained_variance_counts_response_tokens_alone():
    returns = np.array([[1.0, 3.0, 99.0]])
    sequences = Sequences(np.zeros((1, 5), np.int32), np.array([2]), np.array([4]))

    def of(values):
        return value_head.explained_variance(sequences, np.array([values]), returns)

    assert of([1.0, 3.0, 0.0]) == 1.0
    assert of([2.0, 2.0, 0.0]) == 0.0
    assert of([3.0, 1.0, 0.0]) == -3.0


@pytest.mark.parametrize("gradient", ["rloo", "grpo"])
def test_groups_are_compared_and_need_no_value_head(params, gradient):
    config = defaults()
    with config.unlocked():
        config.gradient, config.train.samples_per_prompt = gradient, 2
        config.sampling.max_new_tokens = 3
    fixed = frozen(config, vbon.CONSTANTS)
    sequences = Sequences(
        jnp.array([[1, 2, 3, 0], [1, 4, 0, 0], [5, 6, 7, 8], [5, 9, 1, 0]]),
        jnp.ones(4, jnp.int32),
        jnp.array([3, 2, 4, 3]),
    )
    batch, log_ratio_s = vbon.with_advantages(
        params, params["decoder"], sequences, jnp.array([3.0, 1.0, -2.0, -2.0]),
        jnp.float32(0.5), jnp.float32(0.1), model=THREE_LAYERS, constants=fixed,
    )  # fmt: skip
    np.testing.assert_allclose(log_ratio_s, 0.0, atol=1e-6)
    # 0.5 (3 - 1) = 1 above the other; a deviation of sqrt(2)/2 (+ 1e-4) within the group
    size = 1.0 if gradient == "rloo" else 0.5 / (0.5**0.5 + 1e-4)
    expected = size * np.array([[1, 1, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(batch.advantages_sg, expected, rtol=1e-5, atol=1e-6)
    assert batch.values_sg is None
    terms, _ = vbon.objective(THREE_LAYERS, fixed, {"decoder": params["decoder"]}, batch)
    assert terms.keys() == {"policy"}
    config.train.samples_per_prompt = 1
    with pytest.raises(InputError, match=r"train\.samples_per_prompt=1 must be at least 2"):
        methods.check(config)
    config.gradient = "reinforce"
    with pytest.raises(InputError, match="ppo, rloo, grpo"):
        check(config)


def test_the_value_head_starts_at_the_mean_return_and_nothing_else_moves(params):
    state = step.TrainState(jnp.int32(0), params, None)
    centred = value_head.init_bias(state, -0.75).params
    assert float(centred["value"]["bias"]) == -0.75
    np.testing.assert_array_equal(centred["value"]["kernel"], params["value"]["kernel"])
    assert centred["decoder"] is params["decoder"]
    states = jnp.ones((2, THREE_LAYERS.width))
    np.testing.assert_array_equal(decoder.values(centred["value"], states), [-0.75, -0.75])
