"""The end of a comparison: `results.csv`, and a page that stands on its own.

A row is a dictionary over `COLUMNS`; what does not apply to it is None (an empty cell). The page
needs no network: its figures are SVG inside it, its style is in its head, and every text that came
from a model or a file is escaped.
"""

import csv
import io
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import plot
from experiments.plot import BEST_OF_N, row_name
from vbon_jax.evaluate import Curve, Estimate, RulerRow

# The interface first, as the issue states it; what it leaves open stands behind it.
COLUMNS = (
    *("method", "n", "bound", "seed", "temperature", "reward", "reward_se", "win_rate"),
    *("win_rate_lo", "win_rate_hi", "kl", "kl_se", "length", "eos_rate", "distinct2"),
    *("bon_win_rate_at_kl", "deficit", "sampled_tokens", "reward_calls", "train_flops", "seconds"),
    *("deficit_lo", "deficit_hi", "deficit_se", "perplexity", "perplexity_lo", "perplexity_hi"),
    *("reward_lo", "reward_hi", "win_rate_se", "kl_lo", "kl_hi", "length_se", "eos_rate_se"),
    *("distinct2_se", "prompts", "samples_per_prompt", "reference_samples", "run"),
)
WORDS = frozenset(("method", "bound", "run"))
BUDGET = ("sampled_tokens", "reward_calls", "train_flops", "seconds")

SIZE_LIMIT = 2_000_000  # bytes of a page
TEXT_LIMIT = 2_000  # characters of one text on a page


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
    row = dict.fromkeys(COLUMNS) | {"method": method}
    for name, estimate in estimates.items():
        ends = {name: estimate.value, f"{name}_se": estimate.se}
        ends |= {f"{name}_lo": estimate.lo, f"{name}_hi": estimate.hi}
        row |= {column: value for column, value in ends.items() if column in COLUMNS}
    unknown = sorted((set(cells) | set(budget or {}) | set(estimates)) - set(COLUMNS))
    if unknown:
        raise ValueError(f"no such column of the results: {', '.join(unknown)}")
    return row | dict(budget or {}) | cells


def ruler_rows(ruler: Sequence[RulerRow], **cells: Any) -> list[dict[str, Any]]:
    """Best-of-N's own rows, from `evaluate.ruler`; it has no deficit to itself."""
    return [
        make_row(
            BEST_OF_N,
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
    _write(path, lines.getvalue())


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


def _write(path: str | pathlib.Path, text: str) -> None:
    """Write to a neighbour and rename, so that a reader never sees half a file."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(text.encode("utf-8", "replace"))
    os.replace(partial, path)


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


class Cell(NamedTuple):
    """One cell of a table: its number, its uncertainty below it."""

    text: str
    interval: str = ""
    bad: bool = False


def _estimate_cell(row: Mapping[str, Any], name: str) -> Cell:
    """The value over `[lo, hi]` where the row has an interval, else over `± se`."""
    value, spread, lo, hi = (row.get(name + end) for end in ("", "_se", "_lo", "_hi"))
    if value is None:
        return Cell(number(None))
    known = [end for end in (spread, lo, hi) if end is not None]
    bad = not all(math.isfinite(each) for each in (value, *known))
    if lo is not None and hi is not None:
        unit = (hi - lo) / 4
        ends = f"[{number(lo, unit=unit)}, {number(hi, unit=unit)}]"
    elif spread is not None:
        unit, ends = spread, f"± {number(spread, unit=spread)}"
    else:
        unit, ends = None, ""
    return Cell(number(value, unit=unit), ends, bad)


def result_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The table of results, ready for the template."""
    measured = {
        "reward": "reward",
        "win_rate": "win rate",
        "kl": "KL (nats)",
        "bon_win_rate_at_kl": "Best-of-N at this KL",
        "deficit": "deficit",
        "length": "tokens",
        "eos_rate": "EOS rate",
        "distinct2": "distinct-2",
        "perplexity": "perplexity",
    }
    settings = {"n": "N", "seed": "seed", "temperature": "temperature"}
    return {
        "title": "Results",
        "legend": "Means over prompts with their 95 % bootstrap interval over prompts in brackets, "
        "or ± one standard error; prompts are the clusters. A dash: does not apply.",
        "columns": ["method", *settings.values(), *measured.values()],
        "rows": [
            [
                Cell(row_name(row)),
                *(Cell(number(row.get(name))) for name in settings),
                *(_estimate_cell(row, name) for name in measured),
            ]
            for row in rows
        ],
    }


def budget_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """What each row cost, its share of the cache included; None when no row says."""
    rows = [row for row in rows if any(row.get(name) is not None for name in BUDGET)]
    if not rows:
        return None
    return {
        "title": "Budgets",
        "legend": "What each row cost, its share of the reference cache included.",
        "columns": ["method", "N", "seed", "sampled tokens", "reward calls", "FLOPs", "time"],
        "rows": [
            [
                Cell(row_name(row)),
                *(Cell(number(row.get(name))) for name in ("n", "seed", *BUDGET[:3])),
                Cell(duration(row.get("seconds"))),
            ]
            for row in rows
        ],
    }


# ------------------------------------------------------------------------------- page


def write_report(
    path: str | pathlib.Path,
    *,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    curve: Curve,
    samples: Sequence[Mapping[str, Any]] = (),
    notes: Sequence[str] = (),
    provenance: Mapping[str, Any] | None = None,
    command: str = "",
) -> None:
    """Writes the page, under 2 MB: figures, results, budgets, samples, and where they come from.

    `curve` is `evaluate.mean_curve(...)`. `samples` are dicts `{"prompt": str, "columns": [{"name":
    str, "responses": [{"text": str, "reward": float}]}]}`; a long text is cut and says so, and
    where the page would be too big, the last prompts are left out and it says so.
    """
    samples = [_cut(sample) for sample in samples]
    shown = len(samples)
    page = _page(title, rows, curve, samples, len(samples), notes, provenance, command)
    while shown and len(page.encode("utf-8", "replace")) > SIZE_LIMIT:
        shown //= 2
        page = _page(title, rows, curve, samples, shown, notes, provenance, command)
    _write(path, page)


def _page(title, rows, curve, samples, shown: int, notes, provenance, command) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    tables = [result_table(rows), budget_table(rows)]
    left_out = (
        f"{len(samples) - shown} of {len(samples)} prompts are left out to keep the page small."
    )
    return environment.get_template("report.html.jinja").render(
        title=title,
        notes=notes,
        warnings=_warnings(rows),
        figures=_figures(rows, curve),
        tables=[table for table in tables if table],
        samples=samples[:shown],
        samples_left_out=left_out if shown < len(samples) else "",
        provenance=[(name, value) for name, value in (provenance or {}).items()],
        command=command,
    )


def _figures(rows, curve: Curve) -> list[dict[str, Any]]:
    said = "; ".join(
        f"{row_name(row)} N={row['n']:g}: KL {number(row['kl'])}, "
        f"win rate {number(row['win_rate'])}"
        for row in rows
        if row.get("n") is not None and plot.plottable(row, "win_rate")
    )
    captions = {
        "win_rate": "Win rate against KL to the reference. Thin line: Best-of-N's exact law "
        "on the reference cache; grey: N/(N+1), continuous rewards. Bars: 95 % over prompts.",
        "reward": "Reward against KL to the reference, with Best-of-N's on the reference cache. "
        "Bars: 95 % over prompts.",
    }
    return [
        {
            "svg": plot.svg(
                rows, curve, measure, title=caption.split(".")[0], text=said or caption
            ),
            "caption": caption,
        }
        for measure, caption in captions.items()
    ]


def _warnings(rows) -> list[str]:
    bad = [
        f"{row_name(row)}: {name}"
        for row in rows
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    return [f"Not finite, and left out of the figures: {'; '.join(bad)}."] if bad else []


def _cut(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A sample for the template: texts of bounded length, rewards as text."""

    def bounded(text: str) -> str:
        rest = len(text) - TEXT_LIMIT
        return text if rest <= 0 else f"{text[:TEXT_LIMIT]} … ({rest} more characters)"

    return {
        "prompt": bounded(sample["prompt"]),
        "columns": [
            {
                "name": column["name"],
                "responses": [
                    {"text": bounded(response["text"]), "reward": number(response["reward"])}
                    for response in column["responses"]
                ],
            }
            for column in sample["columns"]
        ],
    }
