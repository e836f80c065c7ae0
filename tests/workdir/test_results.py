"""Rows of the results and `results.csv`."""

import math

import numpy as np
import pytest

from tests.fake_models import make_measured
from vbon_jax import files
from vbon_jax.evaluation import bon_curve, measures
from vbon_jax.evaluation.bootstrap import Bootstrap, Estimate
from vbon_jax.workdir import results

INTERFACE = """
method,n,bound,seed,temperature,reward,reward_se,win_rate,win_rate_lo,win_rate_hi,kl,kl_se,length,
eos_rate,distinct2,bon_win_rate_at_kl,deficit,sampled_tokens,reward_calls,train_flops,seconds
"""
INTERFACE = INTERFACE.replace("\n", "").split(",")


def rows_of():
    reference_bm = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
    cells = {"prompts": 12, "reference_samples": 16}
    best = [
        results.make_row(results.BEST_OF_N, law, n=n, **cells)
        for n, law in bon_curve.ruler(reference_bm, [2, 4], Bootstrap(0, 100)).items()
    ]
    summary = {
        "reward": Estimate(1.234567, 0.0123, 1.21, 1.26),
        "win_rate": Estimate(0.78, 0.02, 0.74, 0.82),
        "kl": Estimate(0.7, 0.05, 0.6, 0.8),
        "length": Estimate(39.5, 0.2, 39.1, 39.9),
        "deficit": Estimate(0.021, 0.01, 0.001, 0.041),
    }
    budget = {"sampled_tokens": 123456, "reward_calls": 3200, "train_flops": 1.5e13, "seconds": 75}
    cells |= {"n": 4, "bound": "l1", "seed": 0, "temperature": 1.0, "run": "vbon-4"}
    policy = results.make_row("vbon", summary, **budget, **cells)
    reference = results.make_row("reference", {"win_rate": Estimate(0.5, 0.01, 0.48, 0.52)})
    reference["kl"] = 0.0
    return [reference, *best, policy]


# ------------------------------------------------------------------------------- results.csv


def test_columns_begin_with_the_interface():
    assert list(results.COLUMNS[: len(INTERFACE)]) == INTERFACE
    assert len(set(results.COLUMNS)) == len(results.COLUMNS)


def test_results_round_trip_and_empty_cells(tmp_path):
    rows = rows_of()
    path = tmp_path / "new" / "results.csv"
    files.write_csv(path, rows, results.COLUMNS)
    lines = path.read_text().splitlines()
    assert lines[0].split(",")[: len(INTERFACE)] == INTERFACE
    assert len(lines) == 1 + len(rows)
    assert lines[4].startswith(
        "vbon,4,l1,0,1.0,1.234567,0.0123,0.78,0.74,0.82,0.7,0.05,39.5,,,,0.021,"
    )
    assert "123456,3200,15000000000000.0,75,0.001,0.041" in lines[4]
    assert "None" not in path.read_text() and "nan" not in path.read_text()
    assert results.read_results(path) == rows
    assert [p.name for p in path.parent.iterdir()] == ["results.csv"]  # nothing half-written


def test_summary_of_an_evaluation_fills_a_row():
    random = np.random.default_rng(0)
    reference_bm = random.normal(size=(10, 8)).astype(np.float32)
    rewards_bk = random.normal(size=(10, 3)).astype(np.float32)
    measured = make_measured(rewards_bk, random.random((10, 3), np.float32))
    summary = measures.summarise(measured, reference_bm, Bootstrap(0, 50))
    row = results.make_row("kl_rl", summary, n=2)
    expected = set(INTERFACE) - {"bound", "seed", "temperature", *results.BUDGET}
    assert all(row[name] is not None for name in expected)
    assert row["deficit"] == summary["deficit"].value
    assert (row["deficit_lo"], row["deficit_hi"]) == summary["deficit"][2:]


def test_unknown_column_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such column of the results: sseed"):
        results.make_row("vbon", {}, sseed=1)
    with pytest.raises(ValueError, match="extra"):
        files.write_csv(tmp_path / "results.csv", [{"extra": 1}], results.COLUMNS)
    assert not list(tmp_path.iterdir())


def test_a_damaged_table_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    for text in ("n\ntwo\n", "n\n1,2\n", None):
        path.write_text(text) if text else path.unlink()
        with pytest.raises(files.Damaged, match=r"table\.csv cannot be read"):
            results.read_results(path)
    path.write_text("n,method\n1\n")
    assert results.read_results(path) == [{"n": 1, "method": None}]


def test_intervals():
    assert results.interval({"kl": 1.0, "kl_lo": 0.5, "kl_hi": 2.0, "kl_se": 9.0}, "kl") == (0.5, 2)
    assert results.interval({"kl": 1.0, "kl_se": 0.5}, "kl") == pytest.approx((0.02, 1.98))
    assert results.interval({"kl": 1.0}, "kl") is None
    assert results.interval({"kl": math.nan, "kl_se": 0.1}, "kl") is None
    assert results.interval({}, "kl") is None
