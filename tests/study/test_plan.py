"""The runs of a comparison: what they are, what they are called, and which are refused."""

import pytest

from vbon_jax.config import defaults
from vbon_jax.study import plan
from vbon_jax.types import InputError


def configuration(*given, **changes):
    config = defaults()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    config.cells = given
    return config


def test_cells_are_derived_unless_given():
    config = configuration(methods=("vbon", "kl_rl"), n_values=(2, 4.5), seeds=(0, 1))
    derived = plan.every(config)
    assert len(derived) == 8
    assert derived[3] == {"method": "vbon", "n": 4.5, "seed": 1}
    assert plan.run_name(derived[3]) == "vbon-n4.5-s1"
    config = configuration({"n": 8, "bound": "exact"})
    assert plan.every(config) == [{"method": "vbon", "n": 8.0, "seed": 0, "bound": "exact"}]
    assert plan.config_of(config, {"train.steps": 7}).train.steps == 7
    assert plan.config_of(config, {"train.learning_rate": 1}).train.learning_rate == 1.0


def test_a_method_has_settings_of_its_own_which_a_cell_may_change():
    config = configuration(n_values=(2,), methods=("dpo", "vbon"))
    with config.unlocked():
        config.by_method = {"dpo": {"train": {"learning_rate": 5e-5}, "pairs": {"beta": 0.3}}}
    dpo, vbon = (plan.config_of(config, cell) for cell in plan.every(config))
    assert (dpo.train.learning_rate, dpo.pairs.beta) == (5e-5, 0.3)
    assert vbon.train.learning_rate == config.train.learning_rate != 5e-5
    given = plan.config_of(config, {"method": "dpo", "train.learning_rate": 1e-3})
    assert (given.train.learning_rate, given.pairs.beta) == (1e-3, 0.3)
    assert not dpo.by_method  # another method's settings are no part of a run
    assert plan.run_name(plan.every(config)[0]) == "dpo-n2-s0"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ppo": {"n": 2}}, r"config\.by_method: method='ppo' is not known"),
        ({"dpo": 3}, r"config\.by_method\.dpo: give a dictionary"),
        ({"dpo": {"train": {"stps": 7}}}, r"config\.by_method\.dpo: there is no key 'train\.stps'"),
        ({"dpo": {"seed": 7}}, r"config\.by_method\.dpo: seed is a cell's"),
        ({"dpo": {"data": {"train_limit": 7}}}, r"by_method\.dpo: data\.train_limit is the same"),
        ({"dpo": {"train": {"steps": 0}}}, r"train\.steps=0: give a whole number from 1"),
    ],
)
def test_a_method_s_settings_without_a_meaning_are_refused(own, message):
    config = configuration(methods=("dpo",), n_values=(2,))
    with config.unlocked():
        config.by_method = own
    with pytest.raises(InputError, match=message):
        plan.check(config)


def test_a_name_is_a_folder_whatever_a_cell_sets():
    cell = {"method": "dpo", "n": 4.0, "seed": 0}
    plain = plan.run_name(cell | {"pairs.beta": 0.1})
    assert plain == "dpo-n4-s0-pairs.beta=0.1"
    names = {
        plan.run_name(cell | {"train.trainable": pattern})
        for pattern in ("decoder/(a|b)/.*", "decoder/(a/b)/.*", "x" * 300, "x" * 301)
    }
    assert len(names) == 4
    assert all("/" not in name and len(name) < 120 for name in names)


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ({"train.stps": 7}, r"no key 'train\.stps'"),
        ({"train.steps.more": 7}, r"no key 'train\.steps\.more'"),
        ({"train": 3}, r"train is a group of keys"),
        ("vbon", r"'vbon' is no dictionary"),
        ({"n": "x"}, r"n='x'.*give numbers"),
        ({"n": float("inf")}, r"n=inf"),
        ({"n": 0.5}, r"n=0\.5"),
        ({"method": "ppo"}, r"method='ppo'"),
        ({"bound": "l2"}, r"bound='l2': choose one of l1, exact"),
        ({"train.schedule": "none"}, r"train\.schedule='none'"),
        ({"train.steps": 0}, r"train\.steps=0: give a whole number from 1"),
        ({"train.steps": "abc"}, r"train\.steps='abc' is str, not int"),
        ({"references.used": -1}, r"references\.used=-1"),
        ({"references.used": 2.5}, r"references\.used=2\.5 is float, not int"),
        ({"budget.sampled_tokens": 9, "budget.train_flops": 9.0}, r"a comparison has one budget"),
        ({"train.minibatches": 3}, r"rows a step, which train\.minibatches=3"),
        ({"sampling.temperature": 0.5}, r"sampling\.temperature is the same for all runs"),
        ({"data.train_limit": 8}, r"data\.train_limit is the same for all runs"),
        ({"references.samples_per_prompt": 8}, r"samples_per_prompt is the same for all runs"),
        ({}, None),
    ],
)
def test_a_cell_without_a_meaning_is_refused_before_anything_is_made(cell, message):
    config = configuration(cell)
    if message is None:
        return plan.check(config)
    with pytest.raises(InputError, match=message):
        plan.check(config)
    return None


def test_a_cell_that_stands_twice_is_refused():
    with pytest.raises(InputError, match=r"vbon-n4-s0 stands there twice"):
        plan.check(configuration({"n": 4}, {"n": 4.0}))


def test_rows_that_do_not_divide_are_found_for_every_method():
    # 2 prompts x 4 responses are 8 rows for vbon, but raft trains on the best of each alone
    changes = {"train__batch_size": 2, "train__minibatches": 4, "train__samples_per_prompt": 4}
    plan.check(configuration({"method": "vbon"}, **changes))
    with pytest.raises(InputError, match=r"2 rows a step"):
        plan.check(configuration({"method": "vbon"}, {"method": "raft"}, **changes))


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ({"method": "kl_rl"}, "kl_rl"),
        ({"method": "vbon"}, "vbon (l1)"),
        ({"method": "vbon", "bound": "exact", "gradient": "rloo"}, "vbon (exact, rloo)"),
        (
            {"method": "dpo", "train.learning_rate": 1e-05, "pairs.beta": 0.1},
            "dpo (beta=0.1, learning_rate=1e-05)",
        ),
        ({"method": "dpo", "train.trainable": "a(b|c)"}, "dpo (trainable=a(b|c))"),
    ],
)
def test_a_label_is_the_method_and_what_its_cell_sets(cell, label):
    cell = {"n": 3.5, "seed": 1} | cell
    record = plan.record(plan.config_of(configuration(), cell), cell)
    assert record.label == label
    assert (record.method, record.n, record.seed) == (cell["method"], 3.5, 1)
    assert record.bound == (cell.get("bound", "l1") if cell["method"] == "vbon" else None)
    assert (record.gradient is None) == (cell["method"] == "dpo")
    assert record.measured
