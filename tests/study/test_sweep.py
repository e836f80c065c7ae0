"""The combinators that build `config.cells`."""

import pathlib

import pytest

from configs import sweep
from vbon_jax.config import defaults
from vbon_jax.study import plan


def test_grid_zip_and_chain_by_hand():
    grid = sweep.grid({"method": ["vbon", "dpo"], "n": [4, 16]})
    assert grid == [
        {"method": "vbon", "n": 4},
        {"method": "vbon", "n": 16},
        {"method": "dpo", "n": 4},
        {"method": "dpo", "n": 16},
    ]
    side_by_side = sweep.zip({"n": [4, 16], "train.learning_rate": [1e-4, 5e-5]})
    assert side_by_side == [
        {"n": 4, "train.learning_rate": 1e-4},
        {"n": 16, "train.learning_rate": 5e-5},
    ]
    crossed = sweep.grid(side_by_side, {"seed": [0, 1]})
    assert [(cell["n"], cell["seed"]) for cell in crossed] == [(4, 0), (4, 1), (16, 0), (16, 1)]
    assert sweep.chain(grid[:2], grid[1:3]) == grid[:3]
    assert sweep.grid() == [{}]
    assert sweep.zip({}) == []
    assert sweep.chain() == []


def test_what_makes_no_cells_is_refused():
    with pytest.raises(ValueError, match="equally many"):
        sweep.zip({"n": [4, 16], "seed": [0]})
    with pytest.raises(ValueError, match="two parts set n"):
        sweep.grid({"n": [4]}, {"n": [8]})
    with pytest.raises(ValueError, match="method: give a list"):
        sweep.grid({"method": "vbon"})


def test_cells_of_a_sweep_are_runs():
    config = defaults()
    config.cells = tuple(sweep.grid({"method": ["vbon"], "n": [4], "train.learning_rate": [1e-4]}))
    (run,) = plan.plan(config, pathlib.Path("work"))
    assert run.name == "vbon-n4-s0-train.learning_rate=0.0001"
    assert run.config.train.learning_rate == 1e-4
