"""The rows of METHODS, the step and the small parts of a run, by hand-worked numbers."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vbon_jax import files
from vbon_jax.config import check, defaults
from vbon_jax.config import constants as frozen
from vbon_jax.models import decoder
from vbon_jax.training import logs, methods, optimizer, step, value_head
from vbon_jax.training.methods import kl_rl, vbon
from vbon_jax.types import InputError, Sequences

MODEL = decoder.DecoderConfig(
    vocab_size=11, width=8, num_layers=3, num_heads=2, mlp_width=12, max_positions=9
)


@pytest.fixture(scope="module")
def params():
    return {
        "decoder": decoder.init(MODEL, jax.random.key(0)),
        "value": decoder.init_value_head(MODEL),
    }


def constants(**changes):
    """The constants of an optimizer, of changed keys of `train`."""
    config = defaults()
    config.train.update(beta2=0.95, **changes)
    return frozen(config, optimizer.KEYS)


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
        jnp.float32(0.5), jnp.float32(0.1), model=MODEL, constants=fixed,
    )  # fmt: skip
    np.testing.assert_allclose(log_ratio_s, 0.0, atol=1e-6)
    # 0.5 (3 - 1) = 1 above the other; a deviation of sqrt(2)/2 (+ 1e-4) within the group
    size = 1.0 if gradient == "rloo" else 0.5 / (0.5**0.5 + 1e-4)
    expected = size * np.array([[1, 1, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(batch.advantages_sg, expected, rtol=1e-5, atol=1e-6)
    assert batch.values_sg is None
    terms, _ = vbon.objective(MODEL, fixed, {"decoder": params["decoder"]}, batch)
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
    states = jnp.ones((2, MODEL.width))
    np.testing.assert_array_equal(decoder.values(centred["value"], states), [-0.75, -0.75])


def test_an_unknown_method_is_refused_with_the_list():
    with pytest.raises(
        InputError, match=r"vbon, kl_rl, bond, .*vbon_regression, .*, sft, reward_model"
    ):
        methods.method("ppo")


def chosen(params, pattern: str) -> set[str]:
    mask = jax.tree.leaves(optimizer.trainable_mask(params, pattern))
    return {name for name, on in zip(optimizer.parameter_names(params), mask, strict=True) if on}


def test_trainable_parameters(params):
    everything = set(optimizer.parameter_names(params))
    assert chosen(params, "") == everything
    last = chosen(params, "last:2")
    assert {name.split("/")[1] for name in last if name.startswith("decoder")} == {
        "layer_1", "layer_2", "norm_f",
    }  # fmt: skip
    assert {"value/kernel", "value/bias"} <= last
    assert chosen(params, "last:0") == {
        "decoder/norm_f/scale", "decoder/norm_f/bias", "value/kernel", "value/bias",
    }  # fmt: skip
    assert chosen(params, "value/.*") == {"value/kernel", "value/bias"}
    for pattern in ("nothing", "("):
        with pytest.raises(InputError, match=r"train\.trainable"):
            optimizer.trainable_mask(params, pattern)


def test_frozen_parameters_do_not_move_and_the_value_head_has_its_rate(params):
    mask = optimizer.trainable_mask(params, "last:1")
    chain = optimizer.chain(constants(), mask, optimizer.Rates(0.1, 0.5))
    gradients = jax.tree.map(jnp.ones_like, params)
    updates, _ = jax.jit(chain.update)(gradients, chain.init(params), params)
    assert float(jnp.abs(updates["decoder"]["tokens"]["embedding"]).max()) == 0.0
    moved = updates["decoder"]["layer_2"]["mlp"]["up"]["kernel"]
    # AdamW's first update is the learning rate, whatever the gradient's size
    np.testing.assert_allclose(moved, -0.1, rtol=1e-4)
    np.testing.assert_allclose(updates["value"]["kernel"], -0.5, rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "half", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_schedules(schedule, half, end):
    rate = functools.partial(optimizer.rate_share, schedule)
    assert rate(0.0, update=0, warmup_updates=2) == 0.0
    assert rate(0.0, update=1, warmup_updates=2) == pytest.approx(0.5)
    assert rate(0.0, update=2, warmup_updates=2) == 1.0
    assert rate(0.0, update=0, warmup_updates=0) == 1.0
    assert rate(0.5, update=9, warmup_updates=2) == pytest.approx(half)
    assert rate(1.0, update=9, warmup_updates=2) == pytest.approx(end)
    with pytest.raises(InputError, match=r"train\.schedule='none'.*cosine"):
        optimizer.rate_share("none", 0.0, update=0, warmup_updates=0)


def test_the_log_keeps_whole_rows_before_the_step_of_the_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": 0, "a": 0.1}, {"step": 1, "a": 0.2}, {"step": 2, "a": 0.3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole) + '{"step": 3, "a"')
    logs.keep_rows(path, 2)
    assert files.read_jsonl(path) == whole[:2]
    logs.keep_rows(tmp_path / "absent.jsonl", 0)
    assert files.read_jsonl(tmp_path / "absent.jsonl") == []


def test_stages(tmp_path):
    folder = tmp_path / "stage"
    assert files.Artifact(folder, {"a": 1, "b": (1, 2)}).begin()
    second = files.Artifact(folder, {"a": 2, "b": (1, 2)})
    assert second.begin()  # nothing was made yet
    with pytest.raises(InputError, match="a was 2 and is 3"):
        files.Artifact(folder, {"a": 3, "b": (1, 2)}).begin(resumes=True)
    second.finish()
    assert not second.begin()
    with pytest.raises(InputError, match=r"b was \[1, 2\] and is None"):
        files.Artifact(folder, {"a": 2}).begin()
