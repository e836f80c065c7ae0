"""Which parameters an update moves, at what rate, and which updates share a program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training.tiny_task import make_task, with_value_head
from vbon_jax.config import check, defaults
from vbon_jax.config import constants as frozen
from vbon_jax.training import loop, optimizer, step
from vbon_jax.types import InputError


@pytest.fixture(scope="module")
def params():
    return with_value_head()


def constants(**changes):
    """The constants of an optimizer, of changed keys of `train`."""
    config = defaults()
    config.train.update(beta2=0.95, **changes)
    return frozen(config, optimizer.KEYS)


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


def test_an_unknown_schedule_is_refused():
    config = defaults()
    config.train.schedule = "none"
    with pytest.raises(InputError, match=r"train\.schedule='none'.*cosine"):
        check(config)


def test_rates_are_the_share_of_each_peak():
    config = defaults()
    config.train.update(learning_rate=0.5, schedule="linear", warmup_updates=4)
    config.ppo.value_learning_rate = 2.0
    assert optimizer.rates(config, 0.5, update=2) == (0.125, 0.5)
    assert optimizer.rates(config, 0.5, update=9) == (0.25, 1.0)


def test_runs_that_differ_in_seed_or_rate_share_a_program():
    task = make_task("bon_sft")

    def learner(**changes):
        config = task.config.copy_and_resolve_references()
        config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        return loop.make_learner(config, task)

    same = learner(seed=7, train__learning_rate=0.5, train__schedule="cosine", n=2.0)
    assert step.compiled(same) is step.compiled(learner())
    other = learner(train__beta2=0.5)
    assert step.compiled(other) is not step.compiled(learner())
