"""One self-contained page from charts, tables, training curves and samples.

It loads nothing: Vega, its style, its data and its script are inside it, and its policy forbids the
rest. Every text that came from a model or a file is escaped by the template or set as text by the
script. What would make it too big is left out, and the page says what.
"""

import base64
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
import markupsafe

from vbon_jax.report import figures, style
from vbon_jax.workdir import results

SIZE_LIMIT = 6_000_000  # bytes of a page
TEXT_LIMIT = 1_000  # characters of one text on a page
HERE = pathlib.Path(__file__).parent


# ------------------------------------------------------------------------------- tables


class Cell(NamedTuple):
    """One cell of a table: its text, its uncertainty below it, and what it is sorted by."""

    text: str
    interval: str = ""
    key: float | str | None = None  # None: empty, and last in any order
    bad: bool = False


class Table(NamedTuple):
    """A table of a page."""

    title: str
    legend: str
    columns: list[str]
    rows: list[list[Cell]]


def _cell(row: Mapping[str, Any], name: str) -> Cell:
    """A number with its interval below it, or `± se`."""
    known = [row.get(name + end) for end in ("", "_se", "_lo", "_hi")]
    bad = any(value is not None and not math.isfinite(value) for value in known)
    key = figures.rounded(row.get(name))
    return Cell(*results.estimate_text(row, name), key, bad)


def _word(text: str | None) -> Cell:
    return Cell(text or "–", key=text)


def result_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every row of the results."""
    measured = {
        "reward": "reward",
        "win_rate": "win rate",
        "lc_win_rate": "win rate at equal length",
        "kl": "KL (nats)",
        "bon_win_rate_at_kl": "Best-of-N at this KL",
        "deficit": "deficit",
        "length": "tokens",
        "eos_rate": "EOS rate",
        "distinct2": "distinct-2",
        "perplexity": "perplexity",
    }
    if all(row.get("lc_win_rate") is None for row in rows):
        del measured["lc_win_rate"]
    settings = {"n": "N", "seed": "seed", "temperature": "temperature"}
    return Table(
        "Results",
        "Means over prompts with their 95 % bootstrap interval over prompts in brackets, or ± one "
        "standard error; prompts are the clusters. A dash: does not apply.",
        ["run", "method", *settings.values(), *measured.values()],
        [
            [
                _word(row.get("run") or row["method"]),
                _word(row["label"]),
                *(_cell(row, name) for name in settings),
                *(_cell(row, name) for name in measured),
            ]
            for row in rows
        ],
    )


def means_table(means: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each method at each N, over its seeds; None where no method has a second one."""
    if all(row["seeds"] < 2 for row in means):
        return None
    measured = {
        "kl": "KL (nats)",
        "win_rate": "win rate",
        "reward": "reward",
        "efficiency": "efficiency",
        "deficit": "deficit",
        "deficit_least": "least of a seed",
        "deficit_most": "most of a seed",
    }
    return Table(
        "Means over seeds",
        "Each method at each N: the mean over its seeds with its 95 % bootstrap interval over "
        "prompts, the same prompts for all. Efficiency: the KL that Best-of-N needs for these win "
        "rates over the KL of these policies, 1 for Best-of-N itself; near the reference it does "
        "not depend on how far a policy has gone, as the deficit does. Last, the least and the "
        "greatest deficit of a seed.",
        ["method", "N", "seeds", *measured.values()],
        [
            [_word(row["method"]), *(_cell(row, name) for name in ("n", "seeds", *measured))]
            for row in means
        ],
    )


def budget_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """What each run cost, its share of the cache included; None when no row says."""
    spent = {row["run"]: row for row in rows
             if any(row.get(name) is not None for name in results.BUDGET)}  # fmt: skip
    if not spent:
        return None
    return Table(
        "Budgets",
        "What each run cost, its share of the reference cache included.",
        ["run", "method", "N", "seed", "sampled tokens", "reward calls", "FLOPs", "time"],
        [
            [
                _word(run),
                _word(row["label"]),
                *(_cell(row, name) for name in ("n", "seed", *results.BUDGET[:3])),
                Cell(
                    results.duration(row.get("seconds")),
                    key=figures.rounded(row.get("seconds")),
                ),
            ]
            for run, row in spent.items()
        ],
    )


def judges_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """What each judge says of each policy; None without judges."""
    if not rows:
        return None
    measured = {
        "reward": "judge's reward",
        "win_rate": "win rate by the judge",
        "lc_win_rate": "at equal length",
        "agreement": "agreement",
        "tau_b": "Kendall's tau-b",
        "ordered": "pairs ordered",
        "training_win_rate": "win rate by the training reward",
        "kl": "KL (nats)",
    }
    settings = {"n": "N", "seed": "seed", "temperature": "temperature"}
    return Table(
        "Other judges",
        "The same responses under each judge. Agreement: of the pairs of responses to one prompt "
        "that neither the judge nor the training reward calls equal (pairs ordered: their share), "
        "the share that both order the same way. The row cache is about all cached reference "
        "responses; best of N is by the training reward.",
        ["run", "judge", "method", *settings.values(), *measured.values()],
        [
            [
                _word(row["run"] or row["method"]),
                _word(row["judge"]),
                _word(row["label"]),
                *(_cell(row, name) for name in (*settings, *measured)),
            ]
            for row in rows
        ],
    )


def language_model_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """What a language model says of each policy; None where none was asked."""
    if not rows:
        return None
    measured = {
        "win_rate": "win rate",
        "ties": "ties",
        "disagreements": "orders disagree",
        "position_bias": "position bias",
        "reward_agreement": "agreement with the reward",
        "kl": "KL (nats)",
        "prompts": "pairs",
        "missing": "pairs missing",
        "unreadable": "unreadable answers",
        "cost": "dollars",
    }
    return Table(
        "A language model as judge",
        "Each pair is asked in both orders. A win rate counts a tie, and a pair whose two orders "
        "disagree, one half. Position bias: the share of verdicts for the first place minus that "
        "for the second, 0 for a judge that place does not move. Agreement: of the pairs that "
        "both decide, the share decided as the training reward does.",
        ["run", "method", "N", "seed", "temperature", "judge", "against", *measured.values()],
        [
            [
                _word(row["run"]),
                _word(row["label"]),
                *(_cell(row, name) for name in ("n", "seed", "temperature")),
                _word(row["model"]),
                _word(row["baseline"]),
                *(_cell(row, name) for name in measured),
            ]
            for row in rows
        ],
    )


def stages_table(rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """How good each model is that was made on the way; None where there is none."""
    if not rows:
        return None
    measured = {
        "perplexity": "perplexity",
        "accuracy": "accuracy",
        "margin": "margin",
    }
    return Table(
        "Models made on the way",
        "On held-out rows, with 95 % bootstrap intervals over them. Perplexity is that of the "
        "tokens that are to be said. On preferences accuracy is the share of pairs whose chosen "
        "response has the higher reward (a tie counts one half), margin the mean difference.",
        ["stage", "method", "held-out rows", *measured.values()],
        [
            [
                _word(row["stage"]),
                _word(row["method"]),
                *(_cell(row, name) for name in ("rows", *measured)),
            ]
            for row in rows
        ],
    )


def pareto_table(shares: Sequence[Mapping[str, Any]]) -> Table | None:
    """Each method's share of points on the front, for both qualities."""
    if not shares:
        return None
    qualities = {"win_rate": "win rate and KL", "reward": "reward and KL"}
    return Table(
        "Pareto membership",
        "The share of a method's points on the front with a 95 % bootstrap interval over prompts.",
        ["method", "front of", "points", "on the front"],
        [
            [
                _word(share["method"]),
                _word(qualities[share["quality"]]),
                _cell(share, "points"),
                _cell(share, "share"),
            ]
            for share in shares
        ],
    )


# ------------------------------------------------------------------------------- samples


def bounded(text: str) -> str:
    """A text of at most `TEXT_LIMIT` characters that says what was cut."""
    rest = len(text) - TEXT_LIMIT
    return text if rest <= 0 else f"{text[:TEXT_LIMIT]} … ({rest} more characters)"


def fitted(samples: Sequence[Mapping[str, Any]], room: int) -> tuple[list[dict[str, Any]], str]:
    """The first samples that fit into `room` bytes, texts cut, and a sentence about the others.

    A sample is `{"prompt": str, "columns": [[name, [[text, reward], ...]], ...]}`.
    """
    shown: list[dict[str, Any]] = []
    for sample in samples:
        cut = {
            "prompt": bounded(sample["prompt"]),
            "columns": [
                [name, [[bounded(text), results.number(reward)] for text, reward in responses]]
                for name, responses in sample["columns"]
            ],
        }
        room -= len(embedded_json(cut).encode())
        if room < 0:
            break
        shown.append(cut)
    left_out = len(samples) - len(shown)
    said = f"{left_out} of {len(samples)} prompts are left out to keep the page small."
    return shown, said if left_out else ""


# ------------------------------------------------------------------------------- page


def embedded_json(value: Any) -> str:
    """JSON for a script element: no `<` in it, so that no text can end or begin an element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no text
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _script(text: str) -> tuple[markupsafe.Markup, str]:
    """A script of ours and the source expression that lets it, and no other, run."""
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return markupsafe.Markup(text), f"'sha256-{digest}'"


def _legend(names: Sequence[str]) -> list[dict[str, str]]:
    return [
        {"name": name, "colour": colour, "shape": shape}
        for name, (colour, shape) in style.looks(names).items()
    ]


def write(
    path: str | pathlib.Path,
    *,
    shown: Sequence[figures.Figure],
    curves: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    best: bool,
    **facts: Any,
) -> None:
    """Writes the page, below `SIZE_LIMIT`.

    `shown` are its figures, `curves` what `report.training_curves` gives, `samples` those of
    `fitted`, `names` the methods of the legend and `best` whether Best-of-N is there;
    `facts` are what else the template names.
    """
    datasets: dict[str, Any] = {}
    specs = {}
    for figure in shown:
        own = figure.drawing.data
        datasets |= own
        specs[figure.name] = {"spec": style.specification(figure.drawing.chart), "uses": list(own)}
    data = {
        "specs": specs,
        "datasets": {name: rows for name, rows in datasets.items() if name != figures.CURVES},
        "curves": curves,
        "configs": {
            mode: style.config(dark=mode == "dark", page=True) for mode in ("light", "dark")
        },
        "legend": _legend(names),
        "best": best,
        "samples": [],
    }
    scripts = [_script(style.javascript()), _script((HERE / "report.js").read_text())]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    def rendered(samples: list, left_out: str) -> str:
        return environment.get_template("report.html.jinja").render(
            figures=shown,
            data=markupsafe.Markup(embedded_json(data | {"samples": samples})),
            samples=samples,
            samples_left_out=left_out,
            scripts=[script for script, _ in scripts],
            allowed=markupsafe.Markup(" ".join(source for _, source in scripts)),
            style=markupsafe.Markup((HERE / "report.css").read_text()),
            **facts,
        )

    spare = SIZE_LIMIT - len(rendered([], "").encode("utf-8", "replace")) - 50_000
    results.write_text(path, rendered(*fitted(samples, spare)))
