"""How figures look, and how a chart becomes a file: Altair charts as SVG, PDF, PNG or HTML.

One chart serves the page and the paper: what differs between them, and between a light and a dark
page, is the configuration that it is drawn with. A method has the same colour and shape in every
figure of a report.
"""

import functools
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import altair as alt
import vl_convert

from vbon_jax import files

# Okabe and Ito's palette, distinct for every common colour vision; black is Best-of-N's own and
# grey replaces the yellow, which is hard to see on a white page.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#999999")
SHAPES = (
    *("circle", "square", "triangle-up", "diamond"),
    *("cross", "triangle-down", "triangle-right", "triangle-left"),
)
LOOKS = len(PALETTE) * len(SHAPES)  # 7 and 8 have no common factor: as many pairs as places

INK, SOFT = {False: "#1b1f24", True: "#e6edf3"}, {False: "#6b7683", True: "#9aa5b1"}  # by dark
CROSS, STAR = (
    "M-1,-1L1,1M-1,1L1,-1",
    "M0,-1L.24,-.32L.95,-.31L.38,.12L.59,.81L0,.4L-.59,.81L-.38,.12L-.95,-.31L-.24,-.32Z",
)
# Vega, Vega-Lite and Vega-Embed as one script, for a page without a network.
javascript = functools.cache(vl_convert.javascript_bundle)
RENDERERS = {
    ".svg": vl_convert.vegalite_to_svg,
    ".pdf": vl_convert.vegalite_to_pdf,
    ".png": functools.partial(vl_convert.vegalite_to_png, scale=2),
    ".html": functools.partial(vl_convert.vegalite_to_html, bundle=True),
}


class Look(NamedTuple):
    """How a method is drawn."""

    colour: str
    shape: str


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A look for each name, in order of first appearance; those of `LOOKS` names differ."""
    return {
        name: Look(PALETTE[at % len(PALETTE)], SHAPES[at % len(SHAPES)])
        for at, name in enumerate(dict.fromkeys(names))
    }


def colour(look: Mapping[str, Look], **options: Any) -> alt.Color:
    """The encoding of the methods' colours; together with `shape` it makes one legend."""
    scale = alt.Scale(domain=list(look), range=[of.colour for of in look.values()])
    return alt.Color("method:N", scale=scale, title=None, **options)


def shape(look: Mapping[str, Look]) -> alt.Shape:
    """The encoding of the methods' shapes."""
    scale = alt.Scale(domain=list(look), range=[of.shape for of in look.values()])
    return alt.Shape("method:N", scale=scale, title=None)


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


def panels(chart: alt.TopLevelMixin, row: str, column: str) -> alt.FacetChart:
    """A chart for each value of two fields, each with a vertical axis of its own."""
    facets = {
        "row": alt.Row(f"{row}:N", title=None),
        "column": alt.Column(f"{column}:N", title=None),
    }
    return chart.facet(**facets).resolve_scale(y="independent")


def save(
    chart: alt.TopLevelMixin,
    *paths: str | pathlib.Path,
    data: Mapping[str, list] | None = None,
) -> None:
    """Save a chart by each path's suffix: .svg, .pdf, .png or .html; `data` is what it names.

    Raises ValueError for another suffix.
    """
    version = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
    spec = json.dumps(specification(chart, data) | {"config": config()})
    for path in map(pathlib.Path, paths):
        if path.suffix not in RENDERERS:
            raise ValueError(f"{path}: figures are saved as .svg, .pdf, .png or .html")
        content = RENDERERS[path.suffix](spec, vl_version=version)
        files.write_bytes(path, content.encode() if isinstance(content, str) else content)
