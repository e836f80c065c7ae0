"""The figures of a report, as Altair charts: policies compared with Best-of-N.

Every chart draws those points of some `Policies` that have the numbers that it needs. All charts
read the parameter `chosen`: methods to stand out; where none is chosen, all of them do.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from vbon_jax.evaluation.bon_curve import Curve
from vbon_jax.functional import bon
from vbon_jax.report import style, texts
from vbon_jax.report.texts import quantity, rounded
from vbon_jax.workdir import results
from vbon_jax.workdir.results import BEST_OF_N, REFERENCE, SOFT

TIPS = ("kl", "win_rate", "reward", "deficit", "length", "distinct2")
ON_CACHE, IN_THEORY = "Best-of-N on the cache", "Best-of-N, continuous rewards"
POINTS, TEMPERATURES, CURVES = "points", "temperatures", "curves"  # names of data
LABELLED = 8  # points of a figure at most, for each to carry its N


class Policies(NamedTuple):
    """The points of a figure, and how their methods look."""

    points: list[dict[str, Any]]  # of policies, of Best-of-N and of the reference
    looks: Mapping[str, style.Look]  # of all methods
    best: Curve | None = None  # the mean over prompts of Best-of-N
    judge: str = ""  # whose win rates they are; "" = the training reward's
    data: str = POINTS  # the points' name; figures with the same name share them

    def numbers(self, name: str) -> list[float]:
        """The coordinates of the policies that have them."""
        return [p[name] for p in self.points if p["kind"] == "policy" and p[name] is not None]

    def shown(self) -> dict[str, style.Look]:
        """The looks of the methods that are among the points."""
        methods = {point["method"] for point in self.points if point["kind"] == "policy"}
        return {name: look for name, look in self.looks.items() if name in methods}

    def drawing(self, *layers: alt.Chart, title: str) -> "Drawing":
        """The figure of some layers."""
        return Drawing(_top(*layers, description=title), {self.data: self.points})


class Drawing(NamedTuple):
    """A chart and the data that it names: apart, since Altair would check every number."""

    chart: alt.TopLevelMixin
    data: dict[str, list[dict[str, Any]]]


# ------------------------------------------------------------------------------- data


def points(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the results as points: coordinates, ends of 95 % intervals, texts to hover over."""
    return [_point(row) for row in rows]


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    n, ruler = row.get("n"), results.RULERS.get(row["method"])
    point = {
        "run": ruler.format(n) if ruler else row.get("run") or row["method"],
        "method": row["label"],
        "kind": "policy" if results.is_policy(row) else row["method"],
        "n": rounded(n),
        "seed": row.get("seed"),
        "label": "" if n is None else f"N={n:g}",
        "size": 45 if n is None else round(min(45 + 18 * math.log2(max(n, 1)), 180)),
        "temperature": rounded(row.get("temperature")),
        "sampled_tokens": rounded(row.get("sampled_tokens")),
        "train_flops": rounded(row.get("train_flops")),
    }
    for name in TIPS:
        point[name] = rounded(row.get(name))
        ends = results.interval(row, name)
        if point[name] is not None and ends:
            point |= {f"{name}_lo": rounded(ends[0]), f"{name}_hi": rounded(ends[1])}
        point[f"{name}_text"] = " ".join(texts.estimate(row, name)).strip()
    return point | {"cost_text": texts.number(row.get("sampled_tokens"))}


# ------------------------------------------------------------------------------- parts of a chart


def _faded(full: float, faint: float) -> Any:
    """Opacity by whether the method is chosen."""
    chosen = "!length(chosen) || indexof(chosen, datum.method) >= 0"
    return alt.condition(chosen, alt.value(full), alt.value(faint))


def _tooltip(**titles: str) -> list[alt.Tooltip]:
    """Fields of text to hover over, by their titles; those of a policy unless others are given."""
    if not titles:
        named = {f"{name}_text": quantity(name).axis.split(" (")[0] for name in TIPS}
        titles = {"run": "run", "method": "method", "n": "N", **named}
        titles |= {"win_rate_text": "win rate", "cost_text": "sampled tokens"}
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in titles.items()]


def _top(*layers: alt.Chart, description: str) -> alt.LayerChart:
    """Layers as one chart with the parameter `chosen`."""
    chosen = alt.param(name="chosen", value=[])
    return alt.layer(*layers).properties(description=description).add_params(chosen)


def _base(data: str, *names: str, kind: str = "policy") -> alt.Chart:
    """The points of one kind that have all these numbers, of the data of a name."""
    there = [f"datum.kind == '{kind}'", *(f"isValid(datum.{name})" for name in names)]
    return alt.Chart(alt.NamedData(name=data)).transform_filter(" && ".join(there))


class _Layers:
    """Lines, intervals and points of the policies that have all these numbers, by method."""

    def __init__(self, policies: Policies, *names: str):
        self.looks = policies.shown()
        self.base = _base(policies.data, *names).encode(color=style.colour(self.looks))

    def line(self, **channels: Any) -> alt.Chart:
        """A line through the points of a method."""
        line = self.base.mark_line(strokeWidth=1.5)
        return line.encode(opacity=_faded(0.7, 0.06), **channels)

    def intervals(self, measure: str, **channels: Any) -> alt.Chart:
        """The 95 % intervals of a measure, where there are any; upright unless along `x`."""
        known = self.base.transform_filter(f"isValid(datum.{measure}_lo)")
        rule = known.mark_rule(strokeWidth=1.2, clip=True)
        return rule.encode(opacity=_faded(0.55, 0.06), tooltip=_tooltip(), **channels)

    def marks(self, **channels: Any) -> alt.Chart:
        """A point for each policy, of equal size unless `size` is a channel."""
        mark = self.base.mark_point(filled=True, clip=True, size=60, strokeWidth=0)
        shape, opacity = style.shape(self.looks), _faded(1.0, 0.1)
        return mark.encode(shape=shape, opacity=opacity, tooltip=_tooltip(), **channels)


def _scatter(
    policies: Policies,
    along: str,
    across: str,
    *,
    x_options: Mapping[str, Any],
    below: Callable[[Callable, Callable], list[alt.Chart]] = lambda x, y: [],
) -> Drawing:
    """Policies as points with their intervals, larger for a larger N.

    Up to `LABELLED` points carry their N. `below(x, y)` makes the layers under them from the makers
    of both axes.
    """
    parts, title = _Layers(policies, across, along), quantity(across).axis
    x = functools.partial(alt.X, title=title, **x_options)
    y = _vertical(along, scale=alt.Scale(zero=False, nice=True))
    at = {"x": x(f"{across}:Q"), "y": y(f"{along}:Q")}
    layers = [parts.intervals(along, x=at["x"], **_ends(y, along))]
    if across in TIPS:
        ends = {"x": x(f"{across}_lo:Q"), "x2": f"{across}_hi:Q"}
        layers.append(parts.intervals(across, **ends, y=at["y"]))
    if len(policies.numbers(along)) <= LABELLED:
        base = _base(policies.data, across, along)
        text = base.mark_text(align="left", dx=8, dy=9, style="note", clip=True)
        layers.append(text.encode(**at, text="label:N", opacity=_faded(0.9, 0.1)))
    layers.append(parts.marks(**at, size=alt.Size("size:Q", scale=None, legend=None)))
    # A legend of no methods would have no size, and with it the figure.
    layers = below(x, y) + (layers if parts.looks else [])
    return policies.drawing(*layers, title=f"{quantity(along).axis} against {title}")


def _vertical(along: str, **options: Any) -> Callable[[str], alt.Y]:
    """The maker of a quantity's vertical axis, for a field."""
    return functools.partial(alt.Y, title=quantity(along).axis, **options)


def _ends(y: Callable, along: str) -> dict[str, Any]:
    """The channels of a vertical interval."""
    return {"y": y(f"{along}_lo:Q"), "y2": f"{along}_hi:Q"}


# ------------------------------------------------------------------------------- Best-of-N


def last_kl(policies: Policies) -> float:
    """Where a KL axis ends: behind every policy, and behind Best-of-N at every N of a policy.

    Best-of-N at a larger N would press the policies together at the left.
    """
    largest = max(policies.numbers("n"), default=math.inf)
    near = [
        point["kl"]
        for point in policies.points
        if point["kind"] == BEST_OF_N and point["n"] <= largest and point["kl"] is not None
    ]
    return 1.1 * max(policies.numbers("kl") + near, default=1.0) + 0.02


def _curves(best: Curve, measure: str, end: float, in_theory: bool) -> list[dict[str, Any]]:
    """Best-of-N on the cache, and what continuous rewards would give `in_theory`."""
    value_g = {"win_rate": best.win_rate_bg, "reward": best.reward_bg}[measure]
    kl_g = np.maximum.accumulate(best.kl_bg)
    shown = np.append(kl_g[kl_g < end], min(end, kl_g[-1]))
    lines = {}
    if in_theory:
        n = np.geomspace(1, 1e6, 400)
        kl, rate = np.asarray(bon.kl(n)), np.asarray(bon.win_rate(n))
        lines[IN_THEORY] = (kl[kl <= end], rate[kl <= end])
    lines[ON_CACHE] = (shown, np.interp(shown, kl_g, value_g))
    return [
        {"line": name, "kl": rounded(kl), measure: rounded(value)}
        for name, line in lines.items()
        for kl, value in zip(*map(np.ndarray.tolist, line), strict=True)
    ]


def _curve_lines(data: str, in_theory: bool, **at: Any) -> alt.Chart:
    """Best-of-N's curve over the broad, faint theoretical one, which it all but covers."""
    names, widths, shades = [IN_THEORY, ON_CACHE], [6, 1.6], [0.3, 1.0]
    first = 0 if in_theory else 1
    width, shade = (
        alt.Scale(type="ordinal", domain=names[first:], range=ends[first:])
        for ends in (widths, shades)
    )
    chart = alt.Chart(alt.NamedData(name=data)).mark_line(style="ink", clip=True)
    return chart.encode(
        strokeWidth=alt.StrokeWidth("line:O", scale=width, title=None),
        opacity=alt.Opacity("line:O", scale=shade, title=None),
        tooltip=_tooltip(line="line"),
        **at,
    )


def against_kl(policies: Policies, along: str, across: str = "kl") -> Drawing:
    """Win rate or reward against KL, over Best-of-N's curve and points and the reference's own.

    Another judge's win rates are not N/(N+1) in theory.
    """
    end, line = last_kl(policies), f"best-of-n-{along}-{policies.judge}".rstrip("-")
    in_theory = along == "win_rate" and not policies.judge

    def below(x, y) -> list[alt.Chart]:
        at = {"x": x("kl:Q"), "y": y(f"{along}:Q")}
        layers = [_curve_lines(line, in_theory, **at)]
        for kind, path in ((BEST_OF_N, style.CROSS), (SOFT, "circle"), (REFERENCE, style.STAR)):
            mark = {"shape": path, "style": "ink", "clip": True, "strokeWidth": 1.5, "size": 60}
            fixed = _base(policies.data, along, kind=kind).transform_filter(f"datum.kl <= {end}")
            fixed = fixed.mark_point(filled=kind == REFERENCE, **mark)
            layers.append(fixed.encode(**at, tooltip=_tooltip()))
        return layers

    left = min([0.0, -0.02 * end, *policies.numbers("kl")])
    scale = alt.Scale(domain=[left, end], nice=False)
    drawing = _scatter(policies, along, across, x_options={"scale": scale}, below=below)
    curves = _curves(policies.best, along, end, in_theory)
    return drawing._replace(data=drawing.data | {line: curves})


# ------------------------------------------------------------------------------- other figures


def against_budget(policies: Policies, along: str, across: str) -> Drawing:
    """Win rate or deficit against the cost of a run; logarithmic where costs differ much."""
    costs = policies.numbers(across)
    wide = bool(costs) and min(costs) > 0 and max(costs) / min(costs) > 20
    kind = {"type": "log"} if wide else {"type": "linear", "zero": False}
    scale = alt.Scale(**kind, nice=False, padding=16)
    options = {"scale": scale, "axis": alt.Axis(format="~s")}
    return _scatter(policies, along, across, x_options=options)


def drift(policies: Policies, along: str, across: str = "kl") -> Drawing:
    """Length or diversity against KL; the dashed line is the reference's own."""

    def below(x, y) -> list[alt.Chart]:
        level = _base(policies.data, along, kind=REFERENCE)
        level = level.mark_rule(style="ink", strokeDash=[2, 3])
        return [level.encode(y=y(f"{along}:Q"), tooltip=_tooltip())]

    options = {"scale": alt.Scale(zero=True, nice=False, padding=8)}
    return _scatter(policies, along, across, x_options=options, below=below)


def deficit_by_n(policies: Policies, along: str = "deficit", across: str = "n") -> Drawing:
    """The deficit at each N: a point and its interval a run, a line through the mean of seeds."""
    parts, y = _Layers(policies, along, across), _vertical(along)
    scale = alt.Scale(domain=list(parts.looks), paddingOuter=0.2)
    at = {
        "x": alt.X(f"{across}:O", title="N", axis=alt.Axis(labelAngle=0, format="~g")),
        "xOffset": alt.XOffset("method:N", scale=scale),
    }
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(style="ink", strokeDash=[2, 3])
    return policies.drawing(
        zero.encode(y=y("zero:Q")),
        parts.line(**at, y=y(f"mean({along}):Q")),
        parts.intervals(along, **at, **_ends(y, along)),
        parts.marks(**at, y=y(f"{along}:Q")),
        title="Deficit to Best-of-N at each N",
    )


def by_temperature(policies: Policies, along: str, across: str = "temperature") -> Drawing:
    """A line a run over the temperatures of its evaluation."""
    parts, y = _Layers(policies, along, across), _vertical(along, scale=alt.Scale(zero=False))
    title, scale = quantity(across).axis, alt.Scale(zero=False, nice=False, padding=16)
    x = alt.X(f"{across}:Q", title=title, scale=scale)
    return policies.drawing(
        parts.line(x=x, y=y(f"{along}:Q"), detail="run:N"),
        parts.intervals(along, x=x, **_ends(y, along)),
        parts.marks(x=x, y=y(f"{along}:Q")),
        title=f"{quantity(along).axis} against {title}",
    )


def pareto_bars(
    shares: Sequence[Mapping[str, Any]], looks: Mapping[str, style.Look], quality: str
) -> Drawing:
    """Each method's share of points on the front, with its interval, the largest on top."""
    bars = [
        {
            **share,
            "text": f"{share['share']:.0%} of {share['points']}",
            "ends": f"[{share['share_lo']:.0%}, {share['share_hi']:.0%}]",
        }
        for share in sorted(shares, key=lambda share: -share["share"])
        if share["quality"] == quality
    ]
    methods, name = [bar["method"] for bar in bars], quantity(quality).axis
    title, scale = "share of its points on the front", alt.Scale(domain=[0, 1])
    x = functools.partial(alt.X, title=title, axis=alt.Axis(format="%"), scale=scale)
    y = alt.Y("method:N", sort=methods, title=None, axis=alt.Axis(labelLimit=160, ticks=False))
    colour = style.colour({name: looks[name] for name in looks if name in methods}, legend=None)
    tooltip = _tooltip(method="method", text="on the front", ends="95 % interval")
    data = f"pareto-{quality}"
    bar = alt.Chart(alt.NamedData(name=data)).mark_bar(height={"band": 0.62})
    rule = alt.Chart(alt.NamedData(name=data)).mark_rule(style="ink", strokeWidth=1.6)
    chart = _top(
        bar.encode(x=x("share:Q"), y=y, tooltip=tooltip, opacity=_faded(0.85, 0.15), color=colour),
        rule.encode(x=x("share_lo:Q"), x2="share_hi:Q", y=y),
        description=f"Share of each method's points on the front of KL and {name}",
    )
    return Drawing(chart.properties(height=26 * max(len(bars), 1)), {data: bars})


def training(
    values: Sequence[Mapping[str, Any]], looks: Mapping[str, style.Look], metric: str
) -> Drawing:
    """A metric over the steps of training, a line a run; `values` have run, method, step, value."""
    tooltip = _tooltip(run="run", method="method", step="step")
    chart = alt.Chart(alt.NamedData(name=CURVES)).mark_line(strokeWidth=1.5)
    chart = chart.encode(
        x=alt.X("step:Q", title="step"),
        y=alt.Y("value:Q", title=metric, scale=alt.Scale(zero=False)),
        color=style.colour(looks),
        detail="run:N",
        opacity=_faded(0.85, 0.06),
        tooltip=[*tooltip, alt.Tooltip("value:Q", title=metric, format=".4~g")],
    )
    chart = chart.properties(description="Training curves")
    return Drawing(chart.add_params(alt.param(name="chosen", value=[])), {CURVES: list(values)})
