"""One self-contained page from sections, tables, training curves and samples.

It loads nothing: Vega, its style, its data and its script are inside it, and its policy forbids the
rest. Every text that came from a model or a file is escaped by the template or set as text by the
script. Samples that would make it too big are left out, and the page says how many.
"""

import base64
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from vbon_jax import files
from vbon_jax.report import figures, style, texts
from vbon_jax.report.sections import Section

SIZE_LIMIT = 6_000_000  # bytes of a page
TEXT_LIMIT = 1_000  # characters of one text on a page
HERE = pathlib.Path(__file__).parent


def write(
    path: str | pathlib.Path,
    *,
    sections: Sequence[Section],
    curves: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    looks: Mapping[str, style.Look],
    best: bool,
    **words: Any,
) -> None:
    """Write the page, below `SIZE_LIMIT`.

    `curves` is `training_curves.of_runs`, `samples` is `outputs.side_by_side`, `looks` are those of
    the methods in the legend, `best` is whether Best-of-N is there; `words` are the texts that the
    template names besides.
    """
    shown = [figure for section in sections for figure in section.figures]
    data = _data(shown, curves, looks, best)
    scripts = [_script(style.javascript()), _script((HERE / "report.js").read_text("utf-8"))]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def rendered(samples: list, left_out: str) -> str:
        return environment.get_template("report.html.jinja").render(
            sections=sections,
            data=markupsafe.Markup(embedded_json(data | {"samples": samples})),
            samples=samples,
            samples_left_out=left_out,
            scripts=[script for script, _ in scripts],
            allowed=markupsafe.Markup(" ".join(source for _, source in scripts)),
            style=markupsafe.Markup((HERE / "report.css").read_text("utf-8")),
            **words,
        )

    spare = SIZE_LIMIT - len(rendered([], "").encode("utf-8", "replace")) - 50_000
    files.write_text(path, rendered(*fitted(samples, spare)))


def _data(shown: Sequence, curves, looks: Mapping[str, style.Look], best: bool) -> dict[str, Any]:
    """The data of the page's script, without samples; data of several figures is there once."""
    datasets: dict[str, Any] = {}
    specs = {}
    for figure in shown:
        named = figure.drawing.data
        datasets |= {name: rows for name, rows in named.items() if name != figures.CURVES}
        specs[figure.name] = {
            "spec": style.specification(figure.drawing.chart),
            "uses": list(named),
        }
    modes = {mode: style.config(dark=mode == "dark", page=True) for mode in ("light", "dark")}
    legend = [{"name": name, **look._asdict()} for name, look in looks.items()]
    return {
        "specs": specs,
        "datasets": datasets,
        "curves": curves,
        "configs": modes,
        "legend": legend,
        "best": best,
    }


def _script(text: str) -> tuple[markupsafe.Markup, str]:
    """A script of ours and the source expression that lets it, and no other, run."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return markupsafe.Markup(text), f"'sha256-{digest}'"


def embedded_json(value: Any) -> str:
    """JSON for a script element: no `<` in it, so that no text can end or begin an element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be encoded
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def bounded(text: str) -> str:
    """A text of at most `TEXT_LIMIT` characters that says how many were cut."""
    rest = len(text) - TEXT_LIMIT
    return text if rest <= 0 else f"{text[:TEXT_LIMIT]} … ({rest} more characters)"


def fitted(samples: Sequence[Mapping[str, Any]], room: int) -> tuple[list[dict[str, Any]], str]:
    """The first samples that fit into `room` bytes, texts cut, and a sentence about the others."""
    shown: list[dict[str, Any]] = []
    for sample in samples:
        cut = {
            "prompt": bounded(sample["prompt"]),
            "columns": [
                [name, [[bounded(text), texts.number(reward)] for text, reward in responses]]
                for name, responses in sample["columns"]
            ],
        }
        room -= len(embedded_json(cut).encode())
        if room < 0:
            break
        shown.append(cut)
    left_out = len(samples) - len(shown)
    sentence = f"{left_out} of {len(samples)} prompts are left out to keep the page small."
    return shown, sentence if left_out else ""
