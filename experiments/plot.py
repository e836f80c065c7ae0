"""Win rate and reward against KL: the policies, Best-of-N's own curve, and error bars.

matplotlib is imported where it draws, and draws without a display.
"""

import io
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vbon_jax.evaluate import Curve
from vbon_jax.functional import bon

REFERENCE, BEST_OF_N = "reference", "best_of_n"  # methods that are rows and no policies

# Okabe and Ito's palette without its yellow, told apart by every common colour vision; markers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")


def row_name(row: Mapping[str, Any]) -> str:
    """What a policy is called in tables and legends: its method, and its bound if it has one."""
    bound = f" ({row['bound']})" if row.get("bound") else ""
    return f"{row['method']}{bound}"


def plottable(row: Mapping[str, Any], measure: str) -> bool:
    """Whether the row has a point in the panel of `measure`: both coordinates, and finite."""
    return all(row.get(name) is not None and math.isfinite(row[name]) for name in ("kl", measure))


def figure(
    rows: Sequence[Mapping[str, Any]],
    curve: Curve,
    path: str | pathlib.Path,
) -> None:
    """Saves both panels, win rate and reward against KL, by the suffix: .svg, .png or .pdf.

    `curve` is `evaluate.mean_curve(...)`: what Best-of-N does on the cache, [G] each.
    """
    buffer = io.BytesIO()
    path = pathlib.Path(path)
    _save(rows, curve, ("win_rate", "reward"), buffer, path.suffix.lstrip("."))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buffer.getvalue())


def svg(rows: Sequence[Mapping[str, Any]], curve: Curve, measure: str, *, title: str, text: str):
    """One panel ("win_rate" or "reward") as an SVG element for a page, with a title and text.

    Every id begins with the panel's name, so that several stand in one page.
    """
    import markupsafe

    buffer = io.BytesIO()
    _save(rows, curve, (measure,), buffer, "svg")
    element = buffer.getvalue().decode()
    element = element[element.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"(\bid=\"|href=\"#|url\(#)", rf"\g<1>{measure}-", element)
    head = (
        f'<svg role="img" aria-labelledby="{measure}-title {measure}-text"',
        f'<title id="{measure}-title">{markupsafe.escape(title)}</title>'
        f'<desc id="{measure}-text">{markupsafe.escape(text)}</desc>',
    )
    opening, rest = element.removeprefix("<svg").split(">", 1)
    return markupsafe.Markup(f"{head[0]}{opening}>{head[1]}{rest}")


def _save(rows, curve: Curve, measures: Sequence[str], file, suffix: str) -> None:
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.hashsalt": "vbon_jax",
        "text.parse_math": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 9,
    }
    with matplotlib.rc_context(style):
        drawing = Figure(figsize=(5.2 * len(measures), 4.0), layout="constrained", dpi=160)
        for measure, axes in zip(
            measures, drawing.subplots(1, len(measures), squeeze=False)[0], strict=True
        ):
            _draw(axes, rows, curve, measure)
        when = {} if suffix == "png" else {"Date" if suffix == "svg" else "CreationDate": None}
        drawing.savefig(file, format=suffix, metadata=when)


def _draw(axes, rows, curve: Curve, measure: str) -> None:
    """One panel: the curves below, the points with their intervals on them."""
    rows = [row for row in rows if plottable(row, measure)]
    end = _last_kl(rows)
    rows = [row for row in rows if row["kl"] <= end]
    _draw_curves(axes, curve, measure, end)
    names = list(
        dict.fromkeys(row_name(row) for row in rows if row["method"] not in (REFERENCE, BEST_OF_N))
    )
    looks = {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(names)
    }
    looks[REFERENCE] = {"color": "#1b1f24", "marker": "*"}
    looks[BEST_OF_N] = {"color": "#1b1f24", "marker": "x"}
    labelled = set()
    for row in rows:
        name = row_name(row)
        at = (row["kl"], row[measure])
        axes.errorbar(
            *at,
            xerr=_bar(row, "kl"),
            yerr=_bar(row, measure),
            linestyle="none",
            markersize=6,
            elinewidth=1,
            label=None if name in labelled else _plain(name),
            **looks[name if name in looks else row["method"]],
        )
        labelled.add(name)
        if row.get("n") is not None and row["method"] != REFERENCE:
            above = name not in names or names.index(name) % 2 == 1
            axes.annotate(
                f"N={row['n']:g}",
                at,
                xytext=(-5, 5) if above else (6, -10),
                ha="right" if above else "left",
                textcoords="offset points",
                fontsize=7.5,
            )
    axes.set_xlim(left=min(-0.02 * end, *[row["kl"] for row in rows], 0.0), right=end)
    axes.set_xlabel("KL to the reference (nats per response)")
    axes.set_ylabel({"win_rate": "win rate against the reference"}.get(measure, measure))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")


def _last_kl(rows) -> float:
    """Where the KL axis ends: behind every policy, and behind Best-of-N at every N of a policy.

    Best-of-N at a larger N would press the policies together at the left.
    """
    policies = [row for row in rows if row["method"] not in (REFERENCE, BEST_OF_N)]
    largest = max([row["n"] for row in policies if row.get("n") is not None], default=math.inf)
    targets = [row for row in rows if row["method"] == BEST_OF_N and row["n"] <= largest]
    return 1.1 * max([row["kl"] for row in policies + targets], default=1.0) + 0.02


def _draw_curves(axes, curve: Curve, measure: str, end: float) -> None:
    """Best-of-N on the cache, and for the win rate what continuous rewards would give."""
    kl_g = curve.kl_bg
    value_g = {"win_rate": curve.win_rate_bg, "reward": curve.reward_bg}[measure]
    if measure == "win_rate":
        n = np.geomspace(1, 1e6, 400)
        theory_kl, theory = np.asarray(bon.kl(n)), np.asarray(bon.win_rate(n))
        inside = theory_kl <= end
        style = {"color": "#c3cbd4", "linewidth": 5}  # below, as the two nearly coincide
        axes.plot(theory_kl[inside], theory[inside], label="Best-of-N, continuous rewards", **style)
    shown = np.append(kl_g[kl_g < end], min(end, kl_g[-1]))
    line = np.interp(shown, np.maximum.accumulate(kl_g), value_g)
    axes.plot(shown, line, color="#1b1f24", linewidth=1.3, label="Best-of-N on the cache")


def _bar(row: Mapping[str, Any], name: str) -> list[list[float]] | None:
    """Both arms of a 95 % error bar, from the interval or else from the standard error."""
    value, spread, lo, hi = (row.get(name + end) for end in ("", "_se", "_lo", "_hi"))
    if lo is None or hi is None:
        if spread is None or not math.isfinite(spread):
            return None
        lo, hi = value - 1.96 * spread, value + 1.96 * spread
    if not (math.isfinite(lo) and math.isfinite(hi)):
        return None
    return [[max(value - lo, 0.0)], [max(hi - value, 0.0)]]


def _plain(name: str) -> str:
    """A label that the figure's own font has glyphs for, and that a legend does not hide."""
    return name.encode("latin-1", "replace").decode("latin-1").lstrip("_") or "?"
