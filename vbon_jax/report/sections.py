"""The sections of a page as data: which figures there are, with their captions and texts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from vbon_jax.evaluation import bon_curve
from vbon_jax.report import figures, judge_rows, tables
from vbon_jax.report.style import Look
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
NAMES = {  # of quantities in titles
    "win_rate": "win rate",
    "reward": "reward",
    "deficit": "deficit to Best-of-N",
    "kl": "KL",
    "length": "length",
    "distinct2": "distinct-2",
    "n": "N",
    "temperature": "temperature",
    "sampled_tokens": "sampled tokens",
    "train_flops": "training FLOPs",
}


class Figure(NamedTuple):
    """One figure: the name of its files, what it shows, its drawing."""

    name: str
    title: str
    caption: str
    drawing: figures.Drawing


class Section(NamedTuple):
    """A part of the page; one without figures is not shown."""

    title: str
    figures: list[Figure]
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
        title = f"{NAMES[self.along]} {self.relation} {NAMES[self.across]}"
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
    rows: Sequence[dict[str, Any]],
    looks: Mapping[str, Look],
    *,
    shares: Sequence[Mapping[str, Any]],
    judged: judge_rows.Judged,
    curves: Mapping[str, Any],
) -> list[Section]:
    """The sections that have figures, in the order of the page.

    `rows` are all rows of the results, `shares` those of `aggregates.pareto_shares`, `curves` is
    `training_curves.of_runs`.
    """
    main = _main_policies(work, rows, looks)
    run_rows = [row for run in work.runs for row in run.rows]
    several = len({row["temperature"] for row in run_rows}) > 1
    every = figures.Policies(
        figures.points(run_rows if several else []), looks, data=figures.TEMPERATURES
    )
    fronts = [{**share, "quality": f"{NAMES[share['quality']]} and KL"} for share in shares]
    front_table = tables.fill(tables.PARETO, fronts)
    judge_table = tables.fill(tables.JUDGES, judged.rows)
    parts = [
        Section("How close to Best-of-N", _plotted(CLOSENESS, main), CLOSENESS_TEXT),
        Section("Pareto membership", _pareto(shares, looks), PARETO_TEXT, front_table),
        Section("Costs", _plotted(COSTS, main)),
        Section("Length and diversity", _plotted(SIDE_EFFECTS, main)),
        Section("Other judges", _judges(work, judged, looks), JUDGES_TEXT, judge_table),
        Section("Temperature", _plotted(TEMPERATURES, every)),
        Section("Training", _training(curves, looks)),
    ]
    return [part for part in parts if part.figures]


def _main_policies(
    work: layout.Work, rows: Sequence[dict[str, Any]], looks: Mapping[str, Look]
) -> figures.Policies:
    """Policies and the reference at the sampling temperature, and Best-of-N."""
    ruler = [row for row in rows if row["method"] in results.RULERS]
    groups = [work.reference_rows, *(run.rows for run in work.runs)]
    policies = [row for group in groups for row in layout.main_rows(group, work.temperature)]
    best = None
    if work.cache is not None:
        best = bon_curve.mean_curve(bon_curve.curve(work.cache.rewards_pm))
    return figures.Policies(figures.points(ruler + policies), looks, best)


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
            f"Share of policies on the front of KL and {NAMES[quality]}",
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
