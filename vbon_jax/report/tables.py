"""The tables of a page as data: title, legend, columns; and how they are filled."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vbon_jax.report import texts
from vbon_jax.workdir import results

WORDS = results.WORDS | {"stage", "quality"}  # columns of words; all others have numbers


class Kind(NamedTuple):
    """A table without its rows."""

    title: str
    legend: str
    columns: tuple[str, ...]  # of its rows
    headings: tuple[tuple[str, str], ...] = ()  # of columns, in place of `texts.QUANTITIES`
    optional: tuple[str, ...] = ()  # columns that are left out where no row has a value


class Cell(NamedTuple):
    """One cell: its text, its uncertainty below it, and what it is sorted by."""

    text: str
    interval: str = ""
    key: float | str | None = None  # None: empty, and last in any order
    bad: bool = False  # a number that is not finite


class Table(NamedTuple):
    """A table of a page."""

    title: str
    legend: str
    columns: list[str]  # their headings
    rows: list[list[Cell]]


RESULTS = Kind(
    "Results",
    "Means over prompts with their 95 % bootstrap interval over prompts in brackets, or ± one "
    "standard error; prompts are the clusters. A dash: does not apply.",
    (
        *("run", "label", "n", "seed", "temperature", "reward", "win_rate", "lc_win_rate", "kl"),
        *("bon_win_rate_at_kl", "deficit", "length", "eos_rate", "distinct2", "perplexity"),
    ),
    optional=("lc_win_rate",),
)
MEANS = Kind(
    "Means over seeds",
    "Each method at each N: the mean over its seeds with its 95 % bootstrap interval over prompts, "
    "the same prompts for all. Efficiency: the KL that Best-of-N needs for these win rates over "
    "the KL of these policies, 1 for Best-of-N itself; near the reference it does not depend on "
    "how far a policy has moved, whereas the deficit does. The last two columns are the least and "
    "the greatest deficit of a seed.",
    (
        *("method", "n", "seeds", "kl", "win_rate", "reward", "efficiency", "deficit"),
        *("deficit_least", "deficit_most"),
    ),
)
BUDGETS = Kind(
    "Budgets",
    "The cost of each run, its share of the reference cache included.",
    ("run", "label", "n", "seed", "sampled_tokens", "reward_calls", "train_flops", "seconds"),
)
PARETO = Kind(
    "Pareto membership",
    "The share of a method's points on the front with a 95 % bootstrap interval over prompts.",
    ("method", "quality", "points", "share"),
)
JUDGES = Kind(
    "Other judges",
    "The same responses under each judge. Agreement: of the pairs of responses to one prompt that "
    "neither the judge nor the training reward calls equal (pairs ordered: their share), the share "
    "that both order the same way. The row cache is about all cached reference responses; best of "
    "N is by the training reward.",
    (
        *("run", "judge", "label", "n", "seed", "temperature", "reward", "win_rate"),
        *("lc_win_rate", "agreement", "tau_b", "ordered", "training_win_rate", "kl"),
    ),
    (
        ("reward", "judge's reward"),
        ("win_rate", "win rate by the judge"),
        ("lc_win_rate", "at equal length"),
    ),
)
LANGUAGE_MODEL = Kind(
    "A language model as judge",
    "Each pair is judged in both orders. A win rate counts a tie, and a pair whose two orders "
    "disagree, one half. Position bias: the share of verdicts for the first place minus that for "
    "the second, 0 for a judge that place does not move. Agreement: of the pairs that both decide, "
    "the share decided as the training reward does.",
    (
        *("run", "label", "n", "seed", "temperature", "model", "baseline", "win_rate", "ties"),
        *("disagreements", "position_bias", "reward_agreement", "kl", "prompts", "missing"),
        *("unreadable", "cost"),
    ),
    (("prompts", "pairs"),),
)
STAGES = Kind(
    "Models trained first",
    "The model of each stage on held-out rows, with 95 % bootstrap intervals over them. Perplexity "
    "over completion tokens (prompt excluded). On preferences accuracy is the share of pairs whose "
    "chosen response has the higher reward (a tie counts one half), margin the mean difference.",
    ("stage", "method", "rows", "perplexity", "accuracy", "margin"),
    (("rows", "held-out rows"),),
)


def fill(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The table of some rows; None where there are none."""
    if not rows:
        return None
    empty = {name for name in kind.optional if all(row.get(name) is None for row in rows)}
    columns = [name for name in kind.columns if name not in empty]
    headings = {name: texts.quantity(name).heading for name in columns} | dict(kind.headings)
    cells = [[_cell(row, name) for name in columns] for row in rows]
    return Table(kind.title, kind.legend, [headings[name] for name in columns], cells)


def _cell(row: Mapping[str, Any], name: str) -> Cell:
    """A word, a duration, or a number with its interval or its standard error below it."""
    value = row.get(name)
    if name in WORDS:
        return Cell(value or "–", key=value)
    if name == "seconds":
        return Cell(texts.duration(value), key=texts.rounded(value))
    known = [row.get(name + end) for end in ("", "_se", "_lo", "_hi")]
    bad = any(number is not None and not math.isfinite(number) for number in known)
    return Cell(*texts.estimate(row, name), texts.rounded(value), bad)
