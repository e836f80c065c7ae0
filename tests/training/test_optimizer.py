"""Which parameters an update moves, at what rate, and which updates share a program."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import families
from tests.training.tiny_task import MODEL, THREE_LAYERS, make_task, with_value_head
from vbon_jax import files
from vbon_jax.config import check, defaults
from vbon_jax.config import constants as frozen
from vbon_jax.models import classifier, decoder
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


def test_a_norm_of_0_does_not_clip(params):
    """As in the rest of the field; it once was a run that learns nothing under a healthy log."""
    gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 50.0), params)
    mask, rates = optimizer.trainable_mask(params, ""), optimizer.Rates(0.1, 0.1)
    moments = []
    for norm in (0.0, 1e9, 1.0):
        chain = optimizer.chain(constants(max_gradient_norm=norm), mask, rates)
        _, after = jax.jit(chain.update)(gradients, chain.init(params), params)
        moments.append([float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(after)])
    assert moments[0] == moments[1]
    assert max(moments[2]) < max(moments[0])


def test_weight_decay_falls_on_kernels_alone(params):
    """Without a gradient nothing else moves: no norm, bias or embedding, and no value head."""
    chain = optimizer.chain(
        constants(weight_decay=0.5), optimizer.trainable_mask(params, ""), optimizer.Rates(0.1, 0.1)
    )
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = jax.jit(chain.update)(zeros, chain.init(params), params)
    names = zip(optimizer.parameter_names(params), jax.tree.leaves(updates), strict=True)
    moved = {name for name, update in names if bool(jnp.any(update != 0))}
    kernels = {name for name in optimizer.parameter_names(params) if name.endswith("/kernel")}
    assert moved == kernels - {"value/kernel"}
    adapters = {"lora_a": jnp.ones((2, 2)), "lora_b": jnp.ones((2, 2)), "kernel": jnp.ones((2, 2))}
    small = {"decoder": {"layer_0": {"lora": adapters}}}
    chain = optimizer.chain(constants(weight_decay=0.5), jax.tree.map(lambda _: True, small),
                            optimizer.Rates(0.1, 0.1))  # fmt: skip
    updates, _ = chain.update(jax.tree.map(jnp.zeros_like, small), chain.init(small), small)
    moved = jax.tree.map(lambda update: bool(jnp.any(update != 0)), updates)
    assert moved["decoder"]["layer_0"]["lora"] == {"lora_a": 0, "lora_b": 0, "kernel": 1}


# ------------------------------------------------------------------------ what is trained


def shapes(config, network: str) -> dict:
    return {network: jax.eval_shape(lambda: classifier.init(config, jax.random.key(0)))}


@pytest.mark.parametrize("name", [*families.ENCODERS, "scored", "untied"])
def test_the_last_layer_and_what_follows_it_of_every_kind(name):
    """No part in front of a layer, no earlier layer, and every head; whatever its name is."""
    if name in families.ENCODERS:
        every = families.ENCODERS[name].values()
        config = families.network(name, next(iter(every)), labels=("a", "b")).config
    else:
        labels = ("a",) if name == "scored" else ()
        config = dataclasses.replace(THREE_LAYERS, labels=labels, tie_embeddings=name == "scored")
    network = "classifier" if config.labels else "decoder"
    given = shapes(config, network)
    parts = {part.partition("/")[2] for part in chosen_parts(given, "last:1")}
    everything = {part.partition("/")[2] for part in chosen_parts(given, "")}
    heads = {"pre_classifier", "classifier"} if name in families.ENCODERS else {"norm_f"}
    heads |= {"scored": {"score"}, "untied": {"head"}}.get(name, set())
    assert parts == heads | {f"layer_{config.num_layers - 1}"}
    assert everything - parts <= {*classifier.BEFORE_LAYERS, *(f"layer_{i}" for i in range(9))}


def chosen_parts(params, pattern: str, fresh=()) -> set[str]:
    parts = optimizer.counts(params, optimizer.trainable_mask(params, pattern, fresh))
    return {name for name, (trained, _) in parts.items() if trained}


def test_a_head_that_no_checkpoint_brings_is_always_trained(params):
    pattern = "decoder/layer_2/.*"
    assert chosen_parts(params, pattern) == {"decoder/layer_2"}
    assert chosen_parts(params, pattern, ("value",)) == {"decoder/layer_2", "value"}
    scored = shapes(dataclasses.replace(THREE_LAYERS, labels=("a",)), "classifier")
    for fresh, heads in ((("classifier/score",), {"classifier/score"}), ((), set())):
        chosen = chosen_parts(scored, "classifier/layer_1/.*", fresh)
        assert chosen == {"classifier/layer_1"} | heads


def test_a_run_s_value_head_is_trained_whatever_its_pattern_is(tmp_path, caplog):
    """And the log and a file of the run tell what is."""
    task = make_task("vbon", train__trainable="decoder/norm_f/.*")
    learner = loop.make_learner(task.config, task)
    network = decoder.init(MODEL, jax.random.key(1))
    params = loop.initial_params(task.config, task, network)
    with caplog.at_level("INFO"):
        loop.report_parameters(tmp_path, learner, params)
    counted = files.read_json(tmp_path / "parameters.json")
    trained = {name: count["trained"] for name, count in counted.items() if count["trained"]}
    assert trained == {"decoder/norm_f": 32, "value": 17}
    assert "trains 49 of" in caplog.text
    assert "decoder/norm_f 32" in caplog.text


@pytest.mark.parametrize(
    ("schedule", "half", "end"), [("constant", 1, 1), ("linear", 0.5, 0), ("cosine", 0.5, 0)]
)
def test_schedules(schedule, half, end):
    """The first update of a warm-up of w has 1 / w of the rate, and its last one all of it."""
    rate = functools.partial(optimizer.rate_share, schedule)
    assert rate(0.0, update=0, warmup_updates=4) == pytest.approx(0.25)
    assert rate(0.0, update=1, warmup_updates=4) == pytest.approx(0.5)
    assert rate(0.0, update=3, warmup_updates=4) == 1.0
    assert rate(0.0, update=0, warmup_updates=1) == rate(0.0, update=0, warmup_updates=0) == 1.0
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
    assert optimizer.rates(config, 0.5, update=1, value_head=True) == (0.125, 0.5)
    assert optimizer.rates(config, 0.5, update=9, value_head=True) == (0.25, 1.0)
    assert optimizer.rates(config, 0.5, update=9, value_head=False) == (0.25, 0.0)


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
