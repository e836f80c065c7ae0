"""The tables of a page as data: titles, legends, columns and headings; and how they are filled."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from vbon_jax.report import texts
from vbon_jax.workdir import results

WORDS = results.WORDS | {"stage", "quality"}  # columns of words; all others have numbers


class Kind(NamedTuple):
    """What a table shows: columns of its rows and their headings."""

    title: str
    legend: str
    columns: dict[str, str]
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
    columns: list[str]
    rows: list[list[Cell]]


RUN = {"run": "run", "label": "method"}
SETTINGS = {"n": "N", "seed": "seed", "temperature": "temperature"}

RESULTS = Kind(
    "Results",
    "Means over prompts with their 95 % bootstrap interval over prompts in brackets, or ± one "
    "standard error; prompts are the clusters. A dash: does not apply.",
    RUN
    | SETTINGS
    | {
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
    },
    optional=("lc_win_rate",),
)
MEANS = Kind(
    "Means over seeds",
    "Each method at each N: the mean over its seeds with its 95 % bootstrap interval over prompts, "
    "the same prompts for all. Efficiency: the KL that Best-of-N needs for these win rates over "
    "the KL of these policies, 1 for Best-of-N itself; near the reference it does not depend on "
    "how far a policy has moved, whereas the deficit does. The last two columns are the least and "
    "the greatest deficit of a seed.",
    {
        "method": "method",
        "n": "N",
        "seeds": "seeds",
        "kl": "KL (nats)",
        "win_rate": "win rate",
        "reward": "reward",
        "efficiency": "efficiency",
        "deficit": "deficit",
        "deficit_least": "least of a seed",
        "deficit_most": "most of a seed",
    },
)
BUDGETS = Kind(
    "Budgets",
    "The cost of each run, its share of the reference cache included.",
    RUN
    | {
        "n": "N",
        "seed": "seed",
        "sampled_tokens": "sampled tokens",
        "reward_calls": "reward calls",
        "train_flops": "FLOPs",
        "seconds": "time",
    },
)
PARETO = Kind(
    "Pareto membership",
    "The share of a method's points on the front with a 95 % bootstrap interval over prompts.",
    {"method": "method", "quality": "front of", "points": "points", "share": "on the front"},
)
JUDGES = Kind(
    "Other judges",
    "The same responses under each judge. Agreement: of the pairs of responses to one prompt that "
    "neither the judge nor the training reward calls equal (pairs ordered: their share), the share "
    "that both order the same way. The row cache is about all cached reference responses; best of "
    "N is by the training reward.",
    {
        "run": "run",
        "judge": "judge",
        "label": "method",
        **SETTINGS,
        "reward": "judge's reward",
        "win_rate": "win rate by the judge",
        "lc_win_rate": "at equal length",
        "agreement": "agreement",
        "tau_b": "Kendall's tau-b",
        "ordered": "pairs ordered",
        "training_win_rate": "win rate by the training reward",
        "kl": "KL (nats)",
    },
)
LANGUAGE_MODEL = Kind(
    "A language model as judge",
    "Each pair is judged in both orders. A win rate counts a tie, and a pair whose two orders "
    "disagree, one half. Position bias: the share of verdicts for the first place minus that for "
    "the second, 0 for a judge that place does not move. Agreement: of the pairs that both decide, "
    "the share decided as the training reward does.",
    RUN
    | SETTINGS
    | {
        "model": "judge",
        "baseline": "against",
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
    },
)
STAGES = Kind(
    "Models trained first",
    "Each stage's model on held-out rows, with 95 % bootstrap intervals over them. Perplexity over "
    "completion tokens (prompt excluded). On preferences accuracy is the share of pairs whose "
    "chosen response has the higher reward (a tie counts one half), margin the mean difference.",
    {
        "stage": "stage",
        "method": "method",
        "rows": "held-out rows",
        "perplexity": "perplexity",
        "accuracy": "accuracy",
        "margin": "margin",
    },
)


def fill(kind: Kind, rows: Sequence[Mapping[str, Any]]) -> Table | None:
    """The table of some rows; None where there are none."""
    if not rows:
        return None
    empty = {name for name in kind.optional if all(row.get(name) is None for row in rows)}
    columns = {name: heading for name, heading in kind.columns.items() if name not in empty}
    cells = [[cell(row, name) for name in columns] for row in rows]
    return Table(kind.title, kind.legend, list(columns.values()), cells)


def cell(row: Mapping[str, Any], name: str) -> Cell:
    """A word, a duration, or a number with its interval or its standard error below it."""
    value = row.get(name)
    if name in WORDS:
        return Cell(value or "–", key=value)
    if name == "seconds":
        return Cell(texts.duration(value), key=texts.rounded(value))
    known = [row.get(name + end) for end in ("", "_se", "_lo", "_hi")]
    bad = any(number is not None and not math.isfinite(number) for number in known)
    return Cell(*texts.estimate(row, name), texts.rounded(value), bad)


def budget_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One row for each run whose cost is known."""
    known = (row for row in rows if any(row.get(name) is not None for name in results.BUDGET))
    return list({row["run"]: row for row in known}.values())
