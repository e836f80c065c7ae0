"""The runs of a comparison: what they are, what they are called, and which are refused."""

import pathlib
import re
import sys
import types

import pytest

from tests.cases import numbers, unread_keys
from tests.tiny_config import check_refusal
from vbon_jax.config import KEYS, defaults, owner, set_key
from vbon_jax.models import sharding
from vbon_jax.study import plan, stages
from vbon_jax.types import InputError

WORK = pathlib.Path("work")  # which is not made


def configuration(*given, **changes):
    config = defaults()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    config.cells = given
    return config


def test_cells_are_derived_unless_given():
    config = configuration(methods=("vbon", "kl_rl"), n_values=(2, 4.5), seeds=(0, 1))
    derived = plan.plan(config, WORK)
    assert len(derived) == 8
    fourth = derived[3].config
    assert (fourth.method, fourth.n, fourth.seed) == ("vbon", 4.5, 1)
    assert derived[3].name == "vbon-n4.5-s1"
    assert derived[3].folder == WORK / "runs" / "vbon-n4.5-s1"
    assert plan.plan(configuration({}), WORK)[0].name == "vbon-n4-s0"
    (run,) = plan.plan(configuration({"n": 8, "bound": "exact"}), WORK)
    assert (run.config.method, run.config.n, run.config.seed) == ("vbon", 8.0, 0)
    assert (run.config.bound, run.label) == ("exact", "vbon (exact)")
    rates = {"train.steps": 7, "train.learning_rate": 1}
    (run,) = plan.plan(configuration(rates), WORK)
    assert (run.config.train.steps, run.config.train.learning_rate) == (7, 1.0)
    assert run.label == "vbon (l1, learning_rate=1, steps=7)"


def test_a_run_s_configuration_is_its_own_and_frozen(tmp_path):
    config = configuration({"method": "kl_rl", "gradient": "rloo"})
    config.policy.path = "stage:sft"
    (run,) = plan.plan(config, tmp_path)
    assert run.config.policy.path == "../../stages/sft/model"  # wherever the directory is moved
    folder = plan.recorded_folder(run.config.policy.path, run.folder)
    assert folder == str(tmp_path / "stages" / "sft" / "model")
    assert config.policy.path == "stage:sft"
    assert run.label == "kl_rl (rloo)"
    assert not run.config.cells
    with pytest.raises(AttributeError):
        run.config.seed = 3
    assert plan.single(config, tmp_path).name == "vbon-n4-s0"


def test_a_method_has_settings_of_its_own_which_a_cell_may_change():
    config = configuration(n_values=(2,), methods=("dpo", "vbon"))
    with config.unlocked():
        config.by_method = {"dpo": {"train": {"learning_rate": 5e-5}, "pairs": {"beta": 0.3}}}
    dpo, vbon = (run.config for run in plan.plan(config, WORK))
    assert (dpo.train.learning_rate, dpo.pairs.beta) == (5e-5, 0.3)
    assert vbon.train.learning_rate == config.train.learning_rate != 5e-5
    given = plan.make_run(config, {"method": "dpo", "train.learning_rate": 1e-3}, WORK).config
    assert (given.train.learning_rate, given.pairs.beta) == (1e-3, 0.3)
    assert not dpo.by_method  # another method's settings are no part of a run
    assert plan.plan(config, WORK)[0].name == "dpo-n2-s0"


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"ppo": {"n": 2}}, r"config\.by_method: method='ppo' is not known"),
        ({"dpo": 3}, r"config\.by_method\.dpo: give a dictionary"),
        ({"dpo": {"train": {"stps": 7}}}, r"config\.by_method\.dpo: there is no key 'train\.stps'"),
        ({"dpo": {"seed": 7}}, r"config\.by_method\.dpo: set seed in config.cells"),
        ({"dpo": {"data": {"train_limit": 7}}}, r"by_method\.dpo: data\.train_limit is the same"),
        ({"dpo": {"train": {"steps": 0}}}, r"train\.steps=0: give a whole number from 1"),
    ],
)
def test_a_method_s_settings_without_a_meaning_are_refused(own, message):
    config = configuration(methods=("dpo",), n_values=(2,))
    with config.unlocked():
        config.by_method = own
    with pytest.raises(InputError, match=message):
        plan.plan(config, WORK)


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
        ("vbon", r"'vbon' must be a dictionary"),
        ({"n": "x"}, r"n='x'.*give a number"),
        ({"seed": 0.7}, r"seed=0\.7: give a number, a whole number"),
        ({"n": float("inf")}, r"n=inf"),
        ({"n": 0.5}, r"n=0\.5"),
        ({"method": "ppo"}, r"method='ppo'"),
        ({"bound": "l2"}, r"bound='l2': choose one of l1, exact"),
        ({"train.steps": 0}, r"train\.steps=0: give a whole number from 1"),
        ({"train.steps": "abc"}, r"train\.steps='abc' is str, not int"),
        ({"references.used": 2.5}, r"references\.used=2\.5 is float, not int"),
        ({"budget.sampled_tokens": 9, "budget.train_flops": 9.0}, r"a comparison has one budget"),
        (
            {"train.minibatches": 3},
            r"rows a step, which must be a multiple of train\.min",
        ),
        ({"data.train_limit": 8}, r"data\.train_limit is the same for all runs"),
    ],
)
def test_a_cell_without_a_meaning_is_refused_before_anything_is_made(cell, message):
    with pytest.raises(InputError, match=message):
        plan.plan(configuration(cell), WORK)


@pytest.mark.parametrize("key", [key for key in KEYS if key.shared], ids=lambda key: key.name)
def test_a_cell_does_not_change_what_all_runs_share(key):
    with pytest.raises(InputError, match=rf"{re.escape(key.name)} is the same for all runs"):
        plan.plan(configuration({key.name: key.default}), WORK)


def test_duplicate_cells_are_refused():
    with pytest.raises(InputError, match=r"vbon-n4-s0 is a duplicate"):
        plan.plan(configuration({"n": 4}, {"n": 4.0}), WORK)


@pytest.mark.parametrize("pmap", [False, True])
def test_rows_are_split_over_any_devices_but_under_pmap(monkeypatch, pmap):
    monkeypatch.setattr(sharding, "config_mesh", lambda config: types.SimpleNamespace(size=3))
    given = configuration({}, mesh__pmap=pmap, train__batch_size=4, train__minibatches=2)
    if not pmap:
        plan.plan(given, WORK)
        return
    message = r"train\.batch_size=4 x train\.samples_per_prompt=4 .* 3 devices \(mesh\.pmap\)"
    with pytest.raises(InputError, match=message):
        plan.plan(given, WORK)


def test_rows_that_do_not_divide_are_named_by_the_keys_that_were_set():
    given = configuration({"method": "vbon"}, {"method": "raft"})
    given.by_method = {"raft": {"train": {"batch_size": 6}}}
    with pytest.raises(InputError, match=r"^config\.by_method\.raft: train\.batch_size=6 "):
        plan.plan(given, WORK)
    given = configuration({})
    given.stages = {"tutor": {"method": "sft", "base": "x", "data": {"train": "y"},
                              "train": {"batch_size": 15, "minibatches": 2}}}  # fmt: skip
    with pytest.raises(InputError, match=r"^config\.stages\.tutor: train\.batch_size=15 "):
        stages.check(given)


def test_rows_that_do_not_divide_are_found_for_every_method():
    # 2 prompts x 4 responses are 8 rows for vbon, but raft trains on the best of each alone
    changes = {"train__batch_size": 2, "train__minibatches": 4, "train__samples_per_prompt": 4}
    plan.plan(configuration({"method": "vbon"}, **changes), WORK)
    with pytest.raises(InputError, match=r"2 rows a step"):
        plan.plan(configuration({"method": "vbon"}, {"method": "raft"}, **changes), WORK)


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
    cell = {"n": 4.0, "seed": 1} | cell
    run = plan.make_run(configuration(), cell, WORK)
    record = plan.record(run)
    assert record.label == run.label == label
    assert (record.method, record.n, record.seed) == (cell["method"], 4.0, 1)
    assert record.bound == (cell.get("bound", "l1") if cell["method"] == "vbon" else None)
    assert (record.gradient is None) == (cell["method"] == "dpo")
    assert record.measured


@pytest.fixture
def own_method(tmp_path, monkeypatch) -> str:
    """A method of a user's own file, with a key of its own."""
    (tmp_path / "my_file.py").write_text(
        "from vbon_jax.config import Key\n"
        "from vbon_jax.training.methods import METHODS\n"
        "KEYS = (Key('simpo.gamma', 0.5, 'the margin', least=0),)\n"
        "METHODS = {'simpo': METHODS['dpo']._replace(keys=KEYS)}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield "my_file:simpo"
    sys.modules.pop("my_file", None)


def test_a_user_s_method_has_a_tidy_name_and_its_own_keys(own_method):
    plain = {"method": own_method}
    runs = plan.plan(configuration(plain, plain | {"simpo.gamma": 2.0}, {"method": "dpo"}), WORK)
    assert [run.name for run in runs] == ["simpo-n4-s0", "simpo-n4-s0-simpo.gamma=2.0", "dpo-n4-s0"]
    assert [run.label for run in runs] == ["simpo", "simpo (gamma=2.0)", "dpo"]
    assert [run.config.simpo.gamma for run in runs[:2]] == [0.5, 2.0]
    assert "simpo" not in runs[2].config
    assert plan.record(runs[0]).order > plan.record(runs[2]).order
    with pytest.raises(InputError, match=r"simpo\.gamma=-1\.0: give a number from 0"):
        plan.plan(configuration(plain | {"simpo.gamma": -1.0}), WORK)


def test_what_by_method_sets_for_a_user_s_method(own_method):
    for name in (own_method, "simpo"):
        config = configuration({"method": own_method})
        with config.unlocked():
            config.by_method = {name: {"train": {"learning_rate": 5e-5}}}
        (run,) = plan.plan(config, WORK)
        assert run.config.train.learning_rate == 5e-5


# ------------------------------------------------------------------------ keys that are not read


@pytest.mark.parametrize(("method", "given", "words"), unread_keys.SINGLE + unread_keys.NEEDS)
def test_a_key_that_the_run_does_not_read_is_refused(method, given, words):
    config = configuration(method=method)
    config.update_from_flattened_dict(given)
    check_refusal(lambda: plan.single(config, WORK), words)


@pytest.mark.parametrize(("method", "given", "words"), unread_keys.SINGLE + unread_keys.NEEDS)
def test_a_cell_or_a_method_s_own_keys_are_read_by_its_run(method, given, words):
    """Also where the value is the default: the run would be another in name alone."""
    alone = {key: value for key, value in given.items() if not owner(key).shared}
    if not alone:
        return
    config = configuration({"method": method, "train.minibatches": 1} | alone)
    check_refusal(lambda: plan.plan(config, WORK), "config.cells", words)
    config = configuration(method=method)
    with config.unlocked():
        config.by_method[method] = nested(alone)
    check_refusal(lambda: plan.single(config, WORK), f"config.by_method.{method}", words)


@pytest.mark.parametrize(("methods", "given", "words"), unread_keys.COMPARED)
def test_a_key_that_no_run_of_a_comparison_reads_is_refused(methods, given, words):
    config = configuration(methods=methods, n_values=(2,))
    config.update_from_flattened_dict(given)
    check_refusal(lambda: plan.plan(config, WORK), words, "leave it at")


def test_a_key_that_one_run_of_a_comparison_reads_is_not_refused():
    given = {"bond__backward": 0.3, "ppo__reward_clip": 5.0, "pairs__beta": 0.1}
    runs = plan.plan(configuration(methods=("bond", "vbon", "dpo"), **given), WORK)
    assert len(runs) == 9
    plan.single(configuration(method="vbon", ppo__reward_clip=5.0), WORK)


@pytest.mark.parametrize("name", numbers.EMPTY)
def test_nothing_to_compare_is_refused(name):
    check_refusal(lambda: plan.plan(configuration(**{name: ()}), WORK), f"{name} is empty")
    plan.plan(configuration({"n": 2}, **{name: ()}), WORK)


@pytest.mark.parametrize(("key", "value", "words"), numbers.MEANINGLESS)
def test_a_number_without_a_meaning_is_refused_before_anything_is_made(key, value, words):
    config = configuration()
    set_key(config, key, value, "test")
    check_refusal(lambda: plan.plan(config, WORK), f"{key}=", words)


def nested(flat: dict) -> dict:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree = {}
    for name, value in flat.items():
        *groups, last = name.split(".")
        node = tree
        for group in groups:
            node = node.setdefault(group, {})
        node[last] = value
    return tree
