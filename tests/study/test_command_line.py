"""The command line: help, values of every type, unknown keys, and a recipe that is run once."""

import ast

import pytest

from tests.tiny_config import ROOT, check_refusal, refuse, succeed
from vbon_jax import cli
from vbon_jax.config import defaults
from vbon_jax.sampling import generation

PROGRAMS = sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_help_shows_what_a_program_does_and_reads(name):
    done = succeed(name, "--help")
    source = ast.parse((ROOT / "experiments" / f"{name}.py").read_text())
    docstring = ast.get_docstring(source)
    assert f"python -m experiments.{name}" in docstring
    assert docstring.splitlines()[0] in done.stdout
    if "--config" in done.stdout:
        assert "  --config.train.learning_rate = 0.0001\n      peak" in done.stdout
        assert "Example:" in done.stdout
    flags = {
        node.args[0].value
        for node in ast.walk(source)
        if isinstance(node, ast.Call)
        and getattr(node.func, "attr", "").startswith(("DEFINE", "define_path"))
        and isinstance(node.args[0], ast.Constant)
    }
    if name == "generate":
        flags = {key.name for key in generation.KEYS}
    assert all(f"  --{flag}" in done.stdout for flag in flags)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("n_values", "2,4.5", (2, 4.5)),
        ("n_values", "(2, 4)", (2, 4)),
        ("n_values", "8", (8,)),
        ("methods", "vbon, kl_rl", ("vbon", "kl_rl")),
        ("evaluation.temperatures", "", ()),
        ("train.steps", "7", 7),
        ("train.learning_rate", "1e-5", 1e-5),
        ("ppo.whiten_advantages", "false", False),
        ("policy.path", "1", "1"),
    ],
)
def test_a_word_has_the_type_of_its_key(name, text, value):
    config = defaults()
    cli.change(config, name, text)
    *groups, last = name.split(".")
    for group in groups:
        config = config[group]
    assert config[last] == value
    assert type(config[last]) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train.steps", "many", ("--config.train.steps=many", "a whole number")),
        ("train.steps", "2.5", ("a whole number",)),
        ("n", "x", ("--config.n=x", "a number")),
        ("ppo.whiten_advantages", "maybe", ("true or false",)),
        ("tran.steps", "3", ("no key 'tran.steps'", "train.steps")),
        ("train", "3", ("no key 'train'",)),
    ],
)
def test_a_word_that_no_key_takes(name, text, words):
    check_refusal(lambda: cli.change(defaults(), name, text), *words)


@pytest.mark.slow
def test_a_recipe_is_run_once_and_its_own_keys_are_known(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from vbon_jax.config import Key, defaults\n"
        "def get_config():\n"
        f"    with open({str(tmp_path / 'log')!r}, 'a') as log:\n"
        "        log.write('once')\n"
        "    return defaults([Key('simpo.gamma', 0.5, 'the margin')])\n"
    )
    arguments = ["--workdir", tmp_path / "work", "--config", recipe]
    nearest = "no key 'simpo.gama'; nearest: simpo.gamma"
    refuse(nearest, "train", *arguments, "--config.simpo.gama=3")
    assert (tmp_path / "log").read_text() == "once"
    refused = "error: --config.simpo.gamma=much: give a number"
    refuse(refused, "train", *arguments, "--config.simpo.gamma", "much")


@pytest.mark.slow
def test_a_recipe_that_sets_no_key_that_exists(tmp_path):
    recipe = tmp_path / "mine.py"
    recipe.write_text(
        "from vbon_jax.config import defaults\n"
        "def get_config(arg=None):\n"
        "    config = defaults()\n"
        "    config.train.stps = 3\n"
        "    return config\n"
    )
    refuse("stps", "train", "--workdir", tmp_path, "--config", recipe)


def test_a_key_that_some_runs_set_for_themselves_is_told(caplog):
    """A value on the command line does not reach them."""
    config = defaults()
    with config.unlocked():
        config.by_method.dpo = {"train": {"learning_rate": 5e-5}}
    config.cells = ({"method": "vbon", "train.epochs": 1},)
    cli.change(config, "train.learning_rate", "1e-3")
    cli.change(config, "train.epochs", "2")
    cli.change(config, "train.steps", "3")
    assert "config.by_method.dpo has a train.learning_rate of its own" in caplog.text
    assert "config.cells has a train.epochs of its own" in caplog.text
    assert "train.steps" not in caplog.text
