"""How figures look, and how a chart becomes a file: Altair charts as SVG, PDF, PNG or HTML.

One chart serves the page and the paper: what differs between them, and between a light and a dark
page, is the configuration that it is drawn with. A method keeps its colour and its shape whatever
else is in a figure.
"""

import functools
import json
import pathlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import vl_convert

# Okabe and Ito's palette, told apart by every common colour vision; black is Best-of-N's own and
# grey stands for the yellow, which a white page swallows.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)
# Their place decides their look; names beyond these get one by their letters.
KNOWN = (
    *("vbon (l1)", "kl_rl", "bonbon", "vbon_regression", "bon_sft", "dpo", "bond (l1)"),
    *("ipo", "qrpo", "bon_sft_kl", "bonbon_calibrated", "bonbon_released", "raft", "j_bond"),
    *("online_bonbon", "vbon (exact)", "bond (exact)", "vbon (l1, rloo)", "kl_rl (rloo)"),
    *("vbon (l1, grpo)", "kl_rl (grpo)"),
)
LOOKS = len(PALETTE) * len(SHAPES)  # 7 and 8 have no common factor: as many pairs as places

INK, SOFT = {False: "#1b1f24", True: "#e6edf3"}, {False: "#6b7683", True: "#9aa5b1"}  # by dark
CROSS, STAR = (
    "M-1,-1L1,1M-1,1L1,-1",
    "M0,-1L.24,-.32L.95,-.31L.38,.12L.59,.81L0,.4L-.59,.81L-.38,.12L-.95,-.31L-.24,-.32Z",
)


def looks(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a shape for each name, the same in every figure; no two names share both.

    A name that is not `KNOWN` starts at a place given by its letters and moves on where that is
    taken, so that only such names can ever move one another. Beyond 56 names, pairs repeat.
    """
    places = {name: KNOWN.index(name) for name in names if name in KNOWN}
    taken = set(range(len(KNOWN)))
    for name in sorted(set(names) - set(KNOWN)):
        place = zlib.crc32(name.encode()) % LOOKS
        while place in taken and len(taken) < LOOKS:
            place = (place + 1) % LOOKS
        places[name] = place
        taken.add(place)
    return {
        name: (PALETTE[at % len(PALETTE)], SHAPES[at % len(SHAPES)])
        for name, at in sorted(places.items(), key=lambda item: (item[1], item[0]))
    }


def colour(names: Sequence[str], field: str = "method", **options: Any) -> alt.Color:
    """The encoding of the methods' colours; together with `shape` it makes one legend."""
    return alt.Color(f"{field}:N", scale=_scale(names, 0), title=None, **options)


def shape(names: Sequence[str], field: str = "method") -> alt.Shape:
    """The encoding of the methods' shapes."""
    return alt.Shape(f"{field}:N", scale=_scale(names, 1), title=None)


def _scale(names: Sequence[str], part: int) -> alt.Scale:
    pairs = looks(names)
    return alt.Scale(domain=list(pairs), range=[pair[part] for pair in pairs.values()])


def config(*, dark: bool = False, page: bool = False) -> dict[str, Any]:
    """Vega-Lite's configuration, on white or in the dark; a page has a legend of its own."""
    ink, soft = INK[dark], SOFT[dark]
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 11, "titleFontSize": 12}
    lines = {"labelOverlap": "greedy", "tickCount": 7}
    lines |= {"gridColor": soft, "gridOpacity": 0.25, "domainColor": soft, "tickColor": soft}
    return {
        "background": "transparent" if page else "white",
        "font": "system-ui, sans-serif" if page else "sans-serif",
        "view": {"stroke": None, "continuousWidth": 400, "continuousHeight": 300},
        "axis": {**text, **lines, "titleFontWeight": "normal", "titlePadding": 8},
        "legend": {
            **text,
            "symbolStrokeColor": ink,
            "symbolSize": 70,
            "symbolOpacity": 1,
            "disable": page,
        },
        "style": {
            "ink": {"color": ink},
            "note": {"color": ink, "fontSize": 10},
        },
    }


def specification(chart: alt.TopLevelMixin, data: Mapping[str, list] | None = None) -> dict:
    """A chart as Vega-Lite's JSON, with the data that it names and without a configuration."""
    spec = chart.to_dict(validate=False)  # slow; a test does it
    spec.pop("config", None)
    return spec | {"datasets": spec.get("datasets", {}) | (data or {})}


@functools.cache
def javascript() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script for a page without a network."""
    return vl_convert.javascript_bundle()


def save(
    chart: alt.TopLevelMixin,
    *paths: str | pathlib.Path,
    data: Mapping[str, list] | None = None,
) -> None:
    """Saves a chart by each path's suffix: .svg, .pdf, .png or .html; `data` are those it names.

    Raises ValueError for another suffix.
    """
    spec = json.dumps(specification(chart, data) | {"config": config()})
    for path in map(pathlib.Path, paths):
        made = _rendered(spec, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.encode() if isinstance(made, str) else made)


def _rendered(spec: str, path: pathlib.Path) -> str | bytes:
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    if path.suffix == ".svg":
        return vl_convert.vegalite_to_svg(spec, vl_version=version)
    if path.suffix == ".pdf":
        return vl_convert.vegalite_to_pdf(spec, vl_version=version)
    if path.suffix == ".png":
        return vl_convert.vegalite_to_png(spec, vl_version=version, scale=2)
    if path.suffix == ".html":
        return vl_convert.vegalite_to_html(spec, vl_version=version, bundle=True)
    raise ValueError(f"{path}: figures are saved as .svg, .pdf, .png or .html")
