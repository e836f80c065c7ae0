"""Random streams: no two uses of one seed draw the same, and nothing draws in another way."""

import ast
import collections
import re

import jax
import numpy as np
import pytest

from tests.tiny_config import ROOT
from vbon_jax.functional import streams

PACKAGE = sorted((ROOT / "vbon_jax").rglob("*.py"))


def test_a_stream_is_a_function_of_its_use_seed_and_numbers():
    """Trailing zeros count: numpy's own generators of [0, 5] and of [0, 5, 0] are the same."""
    given = [("a", 0), ("b", 0), ("a", 1), ("a", 0, 0), ("a", 0, 1), ("a", 0, 0, 0), ("a", 1, 0)]
    drawn = {tuple(jax.random.key_data(streams.key(*stream)).tolist()) for stream in given}
    assert len(drawn) == len(given)
    assert len({streams.generator(*stream).integers(2**60) for stream in given}) == len(given)
    again = [streams.generator("a", 3, 7).normal(size=4) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_a_seed_outside_of_its_range_is_refused():
    """JAX takes 32 bits of a seed, so that 2**32 would be seed 0."""
    for draw in (streams.key, streams.generator):
        for seed in (-1, 2**32):
            with pytest.raises(ValueError, match="from 0 to 4294967295"):
                draw("a", seed)
        draw("a", 2**32 - 1)


def test_every_use_has_one_place_and_its_own_word():
    words = collections.Counter()
    for path in PACKAGE:
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Call) and ast.unparse(node.func)
            if called in ("streams.key", "streams.generator"):
                words[ast.literal_eval(node.args[0])] += 1
    assert len(words) > 15
    assert set(words.values()) == {1}, words


def test_nothing_draws_in_another_way():
    """Shapes alone may be made with any key; a key that is given may be divided."""
    other = re.compile(r"default_rng\(|random\.(key|PRNGKey|seed)\(|np\.random\.(?!Generator)")
    for path in PACKAGE:
        if path.stem != "streams":
            lines = [line for line in path.read_text().splitlines() if "eval_shape" not in line]
            assert not other.findall("\n".join(lines)), path


def test_two_uses_of_one_seed_are_not_alike():
    """The first step's samples are not those of the reference cache, as they once were."""
    uses = [("step", 0, 0), ("step", 0, 1), ("reference cache", 0, 0), ("reference cache", 0, 1)]
    uses += [("evaluation", 0), ("anchor", 0, 0)]
    rows = [jax.random.uniform(streams.key(*use), (8,)) for use in uses]
    assert len(np.unique(np.stack(rows))) == 8 * len(uses)
