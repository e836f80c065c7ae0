"""Quantities, numbers, durations and estimates as people read them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

DIGITS = 6  # significant ones of a coordinate and of a sort key


class Quantity(NamedTuple):
    """What a column of a table is called, where not by its own name."""

    name: str  # in the title of a figure
    axis: str = ""  # of a figure; "" = the name
    heading: str = ""  # of a table's column; "" = the name


QUANTITIES = {
    "label": Quantity("method"),
    "n": Quantity("N"),
    "kl": Quantity("KL", "KL to the reference (nats per response)", "KL (nats)"),
    "win_rate": Quantity("win rate", "win rate against the reference"),
    "lc_win_rate": Quantity("win rate at equal length"),
    "bon_win_rate_at_kl": Quantity("Best-of-N at this KL"),
    "deficit": Quantity("deficit to Best-of-N", "deficit to Best-of-N (win rate)", "deficit"),
    "deficit_least": Quantity("least of a seed"),
    "deficit_most": Quantity("most of a seed"),
    "length": Quantity("length", "length (tokens)", "tokens"),
    "eos_rate": Quantity("EOS rate"),
    "distinct2": Quantity("distinct-2", "distinct-2 within a prompt"),
    "train_flops": Quantity("training FLOPs", heading="FLOPs"),
    "seconds": Quantity("time"),
    "quality": Quantity("front of"),
    "share": Quantity("on the front"),
    "tau_b": Quantity("Kendall's tau-b"),
    "ordered": Quantity("pairs ordered"),
    "training_win_rate": Quantity("win rate by the training reward"),
    "model": Quantity("judge"),
    "baseline": Quantity("against"),
    "disagreements": Quantity("orders disagree"),
    "reward_agreement": Quantity("agreement with the reward"),
    "missing": Quantity("pairs missing"),
    "unreadable": Quantity("unreadable answers"),
    "cost": Quantity("dollars"),
}


def quantity(column: str) -> Quantity:
    """The names of a column, none of them empty."""
    known = QUANTITIES.get(column, Quantity(column.replace("_", " ")))
    return Quantity(known.name, known.axis or known.name, known.heading or known.name)


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
