"""The table of keys: every key is bounded, refused outside its bounds, and documented as it is."""

import math
import pathlib
import re

import pytest

from tests.documents import DOCUMENTS
from tests.tiny_config import ROOT, check_refusal
from vbon_jax.config import KEYS, Key, add, defaults, get, help_text, identity, set_key
from vbon_jax.study import plan
from vbon_jax.types import InputError

FILE_TYPES = ("csv", "json", "jsonl", "md", "py", "svg")
NUMBERS = [key for key in KEYS if key.kind in (int, float)]


def outside(key: Key) -> list:
    """Values of the key's type that its bounds and choices exclude."""
    values = [f"not {choice}" for choice in key.choices[:1]]
    if key.least is not None:
        values.append(key.least - 1 if key.kind is int else key.least - 1e-6)
    if key.above is not None:
        values += [float(key.above), 1e-50]  # which is 0 in the 32 bits that it is computed with
    if key.kind is int:
        values.append(2**31 if key.most is None else key.most + 1)
    if key.kind is float:
        values += [math.nan, math.inf, 1e39, key.most * 1.000001]
    if isinstance(key.default, tuple) and key.kind is not None:
        values += [{int: 0.5, float: "many", str: 3}[key.kind], None]
    return values


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_a_value_outside_of_a_key_s_bounds_is_refused_by_name(key):
    """In one line, by the configuration alone, before anything is read or computed."""
    assert key.help
    if key in NUMBERS:
        assert (key.least is None) != (key.above is None)
        assert key.most is not None or key.kind is int  # then it is what 32 bits hold
    for value in outside(key):
        config = defaults()
        given = (value,) if isinstance(key.default, tuple) else value
        set_key(config, key.name, given, "test")
        check_refusal(lambda config=config: plan.plan(config, pathlib.Path("work")), key.name)


def test_help_shows_every_key():
    text = help_text()
    assert all(f"  --config.{key.name}" in text for key in KEYS)
    assert all(len(line) <= 100 for line in text.splitlines())


def test_documents_name_no_key_that_does_not_exist():
    config = defaults()
    groups = [name for name, value in config.items() if hasattr(value, "items") and value]
    inline = re.compile(rf"`(?:config\.)?((?:{'|'.join(groups)})\.[a-z_]+(?:\.[a-z_]+)?)`")
    for document in DOCUMENTS:
        text = document.read_text()
        names = set(re.findall(r"--config\.([a-z_.]+[a-z_])", text)) | set(inline.findall(text))
        for name in names:
            if name.rpartition(".")[2] in FILE_TYPES:
                continue
            module = ROOT / "vbon_jax" / pathlib.Path(*name.split(".")).with_suffix(".py")
            free = any(not key.default and name.startswith(f"{key.name}.") for key in KEYS)
            free |= f'Key("{name}"' in text  # the document defines it
            try:
                known = free or module.exists() or get(config, name) is not None
            except KeyError:
                known = False
            assert known, f"{document.name}: {name} is not a key"


def test_a_run_is_identified_by_what_it_reads():
    """A comparison may change another method's keys without training this one again."""
    config = defaults()
    config.method = "dpo"
    before = identity(config)
    config.ppo.clip, config.bound = 0.3, "exact"
    assert identity(config) == before
    assert not {"ppo.clip", "gradient", "train.text_tokens", "pairs.split"} & before.keys()
    assert {"train.beta2", "pairs.beta", "data.max_tokens", "seed"} <= before.keys()
    config.pairs.beta = 0.3
    assert identity(config) != before


def test_keys_of_a_user_s_own_method():
    gamma = Key("simpo.gamma", 0.5, "the margin", above=0)
    config = defaults([gamma])
    assert config.simpo.gamma == 0.5
    assert identity(config, keys=[gamma])["simpo.gamma"] == 0.5
    assert "simpo.gamma" not in identity(config)
    config = defaults()
    add(config, [gamma])
    config.simpo.gamma = 2.0
    add(config, [gamma])
    assert config.simpo.gamma == 2.0
    with pytest.raises(InputError, match=r"no key 'simpo\.gama'"):
        set_key(config, "simpo.gama", 1.0, "test")
