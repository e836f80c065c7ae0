"""Numbers, durations and estimates as people read them."""

import math
from collections.abc import Mapping
from typing import Any

DIGITS = 6  # significant ones of a coordinate and of a sort key


def rounded(value: float | None) -> float | None:
    """A number of `DIGITS` significant digits; None where it is missing or not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{DIGITS}g}")


def number(value: float | None, *, unit: float | None = None) -> str:
    """A number with two digits of its uncertainty `unit`, else with four of its own.

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
    """Seconds in the units that a person would use."""
    if seconds is None or not math.isfinite(seconds):
        return number(seconds)
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def estimate(row: Mapping[str, Any], name: str) -> tuple[str, str]:
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
