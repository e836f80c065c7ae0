"""Rows of the results: `results.csv`, what a row is called, and numbers as text.

A row is a dictionary over `COLUMNS`; what does not apply to it is None (an empty cell).
"""

import csv
import io
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vbon_jax.evaluation.bon_curve import RulerRow
from vbon_jax.evaluation.bootstrap import Estimate

# Methods that are rows and no policies of their own.
REFERENCE, BEST_OF_N, SOFT = "reference", "best_of_n", "soft_best_of_n"
RULERS = {BEST_OF_N: "best of {:g}", SOFT: "soft best of {:g}"}  # what they are called at an N

# The interface first, as the issue states it; what it leaves open stands behind it.
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


# ------------------------------------------------------------------------------- rows


def make_row(
    method: str,
    estimates: Mapping[str, Estimate],
    *,
    budget: Mapping[str, float] | None = None,
    **cells: Any,
) -> dict[str, Any]:
    """One row of the results, every column a key.

    `estimates` is what `evaluate.summarise` gives, `budget` has some of sampled_tokens,
    reward_calls, train_flops and seconds, `cells` any other column by name. Raises ValueError for
    a name that is no column.
    """
    row = dict.fromkeys(COLUMNS) | {"method": method, "label": method}
    for name, estimate in estimates.items():
        ends = {name: estimate.value, f"{name}_se": estimate.se}
        ends |= {f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
        row |= {column: value for column, value in ends.items() if column in COLUMNS}
    unknown = sorted((set(cells) | set(budget or {}) | set(estimates)) - set(COLUMNS))
    if unknown:
        raise ValueError(f"no such column of the results: {', '.join(unknown)}")
    return row | dict(budget or {}) | cells


def ruler_rows(
    ruler: Sequence[RulerRow], *, method: str = BEST_OF_N, **cells: Any
) -> list[dict[str, Any]]:
    """Best-of-N's own rows, from `evaluate.ruler` or `soft_ruler`; without a deficit."""
    return [
        make_row(
            method,
            {"reward": best.reward, "win_rate": best.win_rate, "kl": best.kl},
            n=best.n,
            **cells,
        )
        for best in ruler
    ]


def write_results(rows: Sequence[Mapping[str, Any]], path: str | pathlib.Path) -> None:
    """Writes `results.csv`: a header and a line a row, None as an empty cell; all of it or nothing.

    Numbers are written with all their digits (a NaN as `nan`). Raises ValueError for a row with a
    column that is not known.
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, lines.getvalue())


def read_results(path: str | pathlib.Path) -> list[dict[str, Any]]:
    """The rows of `write_results`: an empty cell is None, a cell of a number a float or int."""
    with open(path, newline="", encoding="utf-8") as file:
        return [
            {name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)
        ]


def _cell(name: str, text: str) -> Any:
    if text == "" or name in WORDS:
        return text or None
    return int(text) if re.fullmatch(r"-?\d+", text) else float(text)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """Writes UTF-8, to a neighbour and renamed, so that a reader never sees half a file."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode("utf-8", "replace"))
    os.replace(partial, path)


def is_policy(row: Mapping[str, Any]) -> bool:
    """Whether the row is of a trained policy: not the reference's own, not made from its cache."""
    return row["method"] not in (REFERENCE, BEST_OF_N, SOFT)


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


# ------------------------------------------------------------------------------- numbers


def number(value: float | None, *, unit: float | None = None) -> str:
    """A number with digits enough to read: two of its uncertainty `unit`, else four of its own.

    None is a dash; NaN and infinity are called "not finite", never shown as a number.
    """
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "not finite"
    if unit is not None and math.isfinite(unit) and unit > 0:
        decimals = min(max(1 - math.floor(math.log10(unit)), 0), 6)
        text = f"{value:.{decimals}f}"
    elif value == int(value) and abs(value) < 1e15:
        text = f"{int(value):,}".replace(",", " ")
    elif 1e-4 <= abs(value) < 1e5:
        text = f"{value:.4g}"
    else:
        text = f"{value:.2e}"
    return text.replace("-", "−") if float(text.replace(" ", "")) else text.lstrip("-")


def duration(seconds: float | None) -> str:
    """Seconds in the units a person would use."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def estimate_text(row: Mapping[str, Any], name: str) -> tuple[str, str]:
    """A column with its uncertainty, as two texts: the value, and `[lo, hi]` or else `± se`."""
    value, spread, lo, hi = (row.get(name + end) for end in ("", "_se", "_lo", "_hi"))
    if value is None:
        return number(None), ""
    if lo is not None and hi is not None:
        unit = (hi - lo) / 4
        return number(value, unit=unit), f"[{number(lo, unit=unit)}, {number(hi, unit=unit)}]"
    if spread is not None:
        return number(value, unit=spread), f"± {number(spread, unit=spread)}"
    return number(value), ""
