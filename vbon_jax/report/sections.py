"""The sections of a page as data: which figures and tables there are, with captions and texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vbon_jax.evaluation import bon_curve
from vbon_jax.report import aggregates, figures, judge_rows, tables
from vbon_jax.report.style import Look
from vbon_jax.report.texts import quantity
from vbon_jax.workdir import layout, results

BARS = "Bars: 95 % over prompts. Larger points: larger N."
CURVE = (
    "Thin line and crosses: Best-of-N on the reference cache, its exact law and whole N; small "
    "rings: soft Best-of-N; "
)
CLOSENESS_TEXT = (
    "The deficit of a policy is the win rate that Best-of-N has at the policy's own KL to the "
    "reference, read off the Best-of-N curve of the reference cache, minus the policy's win rate. "
    "At 0 the policy is as good as Best-of-N for the distance that it moved from the reference; a "
    "positive deficit is win rate lost, a negative one is win rate above the curve. Its interval "
    "resamples prompts, with the policy's win rate, its KL and the curve taken on the same "
    "prompts: where it contains 0, these prompts do not tell the policy from Best-of-N. A win rate "
    "is against all cached reference responses of a prompt, ties counting one half."
)
PARETO_TEXT = (
    "A policy is on the front when no other policy, of any method, N or seed, has a KL as low and "
    "a quality as high, one of them strictly. A method's membership is the share of its policies "
    "on the front. For its interval prompts are resampled, the same for all policies, and each "
    "resample has a front of its own; a share can lie at the end of its interval, because noise "
    "moves policies off a front more easily than onto it."
)
JUDGES_TEXT = (
    "Other rewards score the same responses. A policy that gains by its training reward and not by "
    "a judge has learnt what only the training reward likes. A judge's win rate is against all "
    "cached reference responses as that judge scores them; Best-of-N takes its best by the "
    "training reward, so its curve is what that reward is worth to the judge."
)


class Figure(NamedTuple):
    """One figure: the name of its files, what it shows, its drawing."""

    name: str
    title: str
    caption: str
    drawing: figures.Drawing


class Section(NamedTuple):
    """A part of the page; one without figures and table is not shown."""

    title: str
    figures: Sequence[Figure] = ()
    text: str = ""
    table: tables.Table | None = None


class Plot(NamedTuple):
    """A figure of policies: one quantity against, or by, another, which name it."""

    along: str
    relation: str
    across: str
    draw: Callable[[figures.Policies, str, str], figures.Drawing]
    caption: str
    needs_policies: bool = True  # with numbers on both axes

    def figure(self, policies: figures.Policies) -> Figure:
        """The figure of some policies."""
        title = f"{quantity(self.along).name} {self.relation} {quantity(self.across).name}"
        name = f"{self.along}-{self.relation}-{self.across}".replace("_", "-")
        drawing = self.draw(policies, self.along, self.across)
        return Figure(name, title[0].upper() + title[1:], self.caption, drawing)


CLOSENESS = (
    Plot(
        *("win_rate", "against", "kl", figures.against_kl),
        f"{CURVE}broad line: N/(N+1), continuous rewards. Star: the reference. {BARS}",
        needs_policies=False,
    ),
    Plot(
        *("reward", "against", "kl", figures.against_kl),
        f"{CURVE}star: the reference. {BARS}",
        needs_policies=False,
    ),
    Plot(
        *("deficit", "by", "n", figures.deficit_by_n),
        "A point and its 95 % interval for each seed, a line through the means of seeds; 0 is "
        "Best-of-N.",
    ),
)
COSTS = tuple(
    Plot(along, "against", across, figures.against_budget, caption)
    for across, caption in (
        ("sampled_tokens", f"A run's share of the reference cache is included. {BARS}"),
        ("train_flops", BARS),
    )
    for along in ("win_rate", "deficit")
)
SIDE_EFFECTS = tuple(
    Plot(
        *(along, "against", "kl", figures.drift),
        f"Side effects: drift from the reference (dashed line). {BARS}",
    )
    for along in ("length", "distinct2")
)
TEMPERATURES = tuple(
    Plot(
        *(along, "by", "temperature", figures.by_temperature),
        "A line a run. The KL is to the reference at its own temperature. Bars: 95 % over prompts.",
    )
    for along in ("win_rate", "kl")
)


def sections(
    work: layout.Work,
    numbers: aggregates.Numbers,
    looks: Mapping[str, Look],
    curves: Mapping[str, Any],
) -> list[Section]:
    """The sections that have figures or a table, in the order of the page.

    `curves` is `training_curves.of_runs`.
    """
    main = _main_policies(work, numbers.rows, looks)
    rows = [row for run in work.runs for row in run.rows]
    several = len({row["temperature"] for row in rows}) > 1
    every = figures.points(rows if several else [])
    every = figures.Policies(every, looks, data=figures.TEMPERATURES)
    fronts = [
        {**share, "quality": f"{quantity(share['quality']).name} and KL"}
        for share in numbers.shares
    ]
    fronts = tables.fill(tables.PARETO, fronts)
    judges = tables.fill(tables.JUDGES, numbers.judged.rows)
    parts = [
        Section("How close to Best-of-N", _plotted(CLOSENESS, main), CLOSENESS_TEXT),
        Section("Pareto membership", _pareto(numbers.shares, looks), PARETO_TEXT, fronts),
        Section("Costs", _plotted(COSTS, main)),
        Section("Length and diversity", _plotted(SIDE_EFFECTS, main)),
        Section("Other judges", _judges(work, numbers.judged, looks), JUDGES_TEXT, judges),
        Section("Temperature", _plotted(TEMPERATURES, every)),
        Section("Training", _training(curves, looks)),
    ]
    several_seeds = any(row["seeds"] > 1 for row in numbers.means)
    costs = {row["run"]: row for row in numbers.rows if results.has_budget(row)}
    parts += [
        Section(table.title, table=tables.fill(table, rows))
        for table, rows in (
            (tables.MEANS, numbers.means if several_seeds else []),
            (tables.RESULTS, numbers.rows),
            (tables.LANGUAGE_MODEL, numbers.verdicts),
            (tables.STAGES, layout.stages(work)),
            (tables.BUDGETS, list(costs.values())),
        )
    ]
    return [part for part in parts if part.figures or part.table]


def _main_policies(
    work: layout.Work, rows: Sequence[dict[str, Any]], looks: Mapping[str, Look]
) -> figures.Policies:
    """Policies and the reference at the sampling temperature, and Best-of-N."""
    shown = [row for row in rows if row["method"] in results.RULERS]
    shown += layout.main_rows(work.reference_rows, work.temperature)
    shown += [row for _, row in work.evaluated]
    best = None
    if work.cache is not None:
        best = bon_curve.mean_curve(bon_curve.curve(work.cache.rewards_pm))
    return figures.Policies(figures.points(shown), looks, best)


def _plotted(plots: Sequence[Plot], policies: figures.Policies) -> list[Figure]:
    """The figures that there are numbers for."""
    return [
        plot.figure(policies)
        for plot in plots
        if (policies.numbers(plot.across) if plot.needs_policies else policies.best)
    ]


def _pareto(shares: Sequence[Mapping[str, Any]], looks) -> list[Figure]:
    """A method's share of the front, for both qualities."""
    return [
        Figure(
            f"pareto-{quality.replace('_', '-')}",
            f"Share of policies on the front of KL and {quantity(quality).name}",
            "Line: 95 % bootstrap interval over prompts.",
            figures.pareto_bars(shares, looks, quality),
        )
        for quality in dict.fromkeys(share["quality"] for share in shares)
    ]


def _judges(work: layout.Work, judged: judge_rows.Judged, looks) -> list[Figure]:
    """The win rate by each judge against KL, at the sampling temperature."""
    shown = []
    for name, best in judged.curves.items():
        groups: dict[tuple, list] = {}  # of a policy's rows, one for each temperature
        for row in judged.rows:
            if row["judge"] == name and row["method"] != judge_rows.CACHE:
                groups.setdefault((row["run"], row["n"]), []).append(row)
        rows = [row for of in groups.values() for row in layout.main_rows(of, work.temperature)]
        policies = figures.Policies(figures.points(rows), looks, best, name, f"points-{name}")
        shown.append(
            Figure(
                f"win-rate-by-{name}-against-kl",
                f"Win rate by {name} against KL",
                f"Thin line and crosses: the best of N by the training reward. {BARS}",
                figures.against_kl(policies, "win_rate"),
            )
        )
    return shown


def _training(curves: Mapping[str, Any], looks) -> list[Figure]:
    """One metric over the steps; on the page its reader can choose another."""
    if not curves["metrics"]:
        return []
    values = [
        {"run": run, "method": curves["methods"][run], "step": step, "value": value}
        for run, grid, numbers in curves["metrics"][curves["first"]]
        for step, value in zip(curves["grids"][grid], numbers, strict=True)
    ]
    caption = "A line a run, unfinished ones included."
    if curves["thinned"]:
        caption += (
            f" Longer curves are drawn as {curves['points']} means over equal stretches of steps; "
            "all steps are in each run's metrics.jsonl."
        )
    drawing = figures.training(values, looks, curves["first"])
    return [Figure("training", "Training curves", caption, drawing)]
