"""Rows of the results: their columns, `evaluation.json` and `results.csv`.

A row is a dictionary over `COLUMNS`; what does not apply to it is None (an empty cell).
"""

import csv
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from vbon_jax import files
from vbon_jax.evaluation.bootstrap import Estimate

# Methods of rows that are not of a trained policy.
REFERENCE, BEST_OF_N, SOFT = "reference", "best_of_n", "soft_best_of_n"
RULERS = {BEST_OF_N: "best of {:g}", SOFT: "soft best of {:g}"}  # their names at an N

# The order of columns is public: append only.
COLUMNS = (
    *("method", "n", "bound", "seed", "temperature", "reward", "reward_se", "win_rate"),
    *("win_rate_lo", "win_rate_hi", "kl", "kl_se", "length", "eos_rate", "distinct2"),
    *("bon_win_rate_at_kl", "deficit", "sampled_tokens", "reward_calls", "train_flops", "seconds"),
    *("deficit_lo", "deficit_hi", "deficit_se", "perplexity", "perplexity_lo", "perplexity_hi"),
    *("reward_lo", "reward_hi", "win_rate_se", "kl_lo", "kl_hi", "length_se", "eos_rate_se"),
    *("distinct2_se", "prompts", "samples_per_prompt", "reference_samples", "run", "gradient"),
    *("lc_win_rate", "lc_win_rate_lo", "lc_win_rate_hi"),
    "label",
)
WORDS = frozenset(("label", "method", "bound", "run", "gradient", "judge", "model", "baseline"))
BUDGET = ("sampled_tokens", "reward_calls", "train_flops", "seconds")


def make_row(method: str, estimates: Mapping[str, Estimate], **cells: Any) -> dict[str, Any]:
    """One row of the results, every column a key.

    `estimates` is what `measures.summarise` returns, `cells` any other column by name. The run and
    the label are the method unless they are given. Raises ValueError for a name that is not a
    column.
    """
    row = dict.fromkeys(COLUMNS) | {"method": method, "label": method, "run": method}
    for name, estimate in estimates.items():
        ends = {name: estimate.value, f"{name}_se": estimate.se}
        ends |= {f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
        row |= {column: value for column, value in ends.items() if column in COLUMNS}
    unknown = sorted((set(cells) | set(estimates)) - set(COLUMNS))
    if unknown:
        raise ValueError(f"no such column of the results: {', '.join(unknown)}")
    return row | cells


def read_rows(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The rows of an `evaluation.json`, every column a key. Raises Damaged."""
    rows = files.read_json(path)
    if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
        raise files.Damaged(path, "it should be a list of rows of the results")
    return [dict.fromkeys(COLUMNS) | row for row in rows]


def _is_row(row: Any) -> bool:
    needed = {"method", "run", "temperature"}
    return isinstance(row, dict) and needed <= row.keys() <= set(COLUMNS)


def read_results(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a CSV file of ours: an empty cell is None, a cell of a number a float or int.

    Raises Damaged where it cannot be read.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, restval=""))
        if any(None in row for row in rows):
            raise ValueError("a row has more cells than the header")
        return [{name: _cell(name, text) for name, text in row.items()} for row in rows]
    except (OSError, ValueError) as error:
        raise files.Damaged(path, error) from error


def _cell(name: str, text: str) -> Any:
    if text == "" or name in WORDS:
        return text or None
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def is_policy(row: Mapping[str, Any]) -> bool:
    """Whether the row is of a trained policy: not the reference's own, not made from its cache."""
    return row["method"] not in (REFERENCE, BEST_OF_N, SOFT)


def has_budget(row: Mapping[str, Any]) -> bool:
    """Whether the row has a cost."""
    return any(row[name] is not None for name in BUDGET)


def interval(row: Mapping[str, Any], name: str) -> tuple[float, float] | None:
    """Both ends of a 95 % interval, from the row's own or else from its standard error."""
    value, spread, lo, hi = (row.get(name + end) for end in ("", "_se", "_lo", "_hi"))
    if value is None:
        return None
    if lo is None or hi is None:
        if spread is None:
            return None
        lo, hi = value - 1.96 * spread, value + 1.96 * spread
    return (lo, hi) if math.isfinite(lo) and math.isfinite(hi) else None
