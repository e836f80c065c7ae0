"""The sections of a page as data: which figures there are, with their captions and texts."""

from collections.abc import Mapping, Sequence
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
SHARE = "A run's share of the reference cache is included. "
DEFICIT = (
    "The deficit of a policy is the win rate that Best-of-N has at the policy's own KL to the "
    "reference, read off the Best-of-N curve of the reference cache, minus the policy's win rate. "
    "At 0 the policy is as good as Best-of-N for the distance that it moved from the reference; a "
    "positive deficit is win rate lost, a negative one is win rate above the curve. Its interval "
    "resamples prompts, with the policy's win rate, its KL and the curve taken on the same "
    "prompts: where it contains 0, these prompts do not tell the policy from Best-of-N. A win rate "
    "is against all cached reference responses of a prompt, ties counting one half."
)
PARETO = (
    "A policy is on the front when no other policy, of any method, N or seed, has a KL as low and "
    "a quality as high, one of them strictly. A method's membership is the share of its policies "
    "on the front. For its interval prompts are resampled, the same for all policies, and each "
    "resample has a front of its own; a share can lie at the end of its interval, because noise "
    "moves policies off a front more easily than onto it."
)
JUDGED = (
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
    points = main_points(work, rows)
    fronts = [{**share, "quality": f"{NAMES[share['quality']]} and KL"} for share in shares]
    parts = [
        Section("How close to Best-of-N", _closeness(work, points, looks), DEFICIT),
        Section(
            "Pareto membership", _pareto(shares, looks), PARETO, tables.fill(tables.PARETO, fronts)
        ),
        Section("Costs", _costs(points, looks)),
        Section("Length and diversity", _drift(points, looks)),
        Section(
            "Other judges",
            _judges(work, judged, looks),
            JUDGED,
            tables.fill(tables.JUDGES, judged.rows),
        ),
        Section("Temperature", _temperatures(work, looks)),
        Section("Training", _training(curves, looks)),
    ]
    return [part for part in parts if part.figures]


def main_points(work: layout.Work, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A point for each policy, at the sampling temperature, and those of Best-of-N."""
    ruler = [row for row in rows if row["method"] in results.RULERS]
    groups = [work.reference_rows, *(run.rows for run in work.runs)]
    own = [row for group in groups for row in layout.main_rows(group, work.temperature)]
    return figures.points(ruler + own)


def _figure(one: str, relation: str, other: str, caption: str, drawing) -> Figure:
    """A figure of one quantity against (or by) another, named and titled by them."""
    title = f"{NAMES[one]} {relation} {NAMES[other]}"
    name = f"{one}-{relation}-{other}".replace("_", "-")
    return Figure(name, title[0].upper() + title[1:], caption, drawing)


def _closeness(work: layout.Work, points, looks) -> list[Figure]:
    """Win rate and reward against KL, and the deficit at each N."""
    if work.cache is None:
        return []
    best = bon_curve.mean_curve(bon_curve.curve(work.cache.rewards_pm))
    captions = {
        "win_rate": f"{CURVE}broad line: N/(N+1), continuous rewards. Star: the reference. {BARS}",
        "reward": f"{CURVE}star: the reference. {BARS}",
    }
    shown = [
        _figure(measure, "against", "kl", caption, figures.against_kl(points, looks, best, measure))
        for measure, caption in captions.items()
    ]
    if _has_policies(points):
        caption = (
            "A point and its 95 % interval for each seed, a line through the means of seeds; 0 is "
            "Best-of-N."
        )
        shown.append(_figure("deficit", "by", "n", caption, figures.deficit_by_n(points, looks)))
    return shown


def _has_policies(points: Sequence[Mapping], name: str = "kind") -> bool:
    """Whether a trained policy is among the points, with a value of this name."""
    return any(point["kind"] == "policy" and point[name] is not None for point in points)


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


def _costs(points, looks) -> list[Figure]:
    """Win rate and deficit against sampled tokens and training FLOPs, where they are known."""
    return [
        _figure(
            measure,
            "against",
            budget,
            caption,
            figures.against_budget(points, looks, measure, budget),
        )
        for budget, caption in (("sampled_tokens", SHARE + BARS), ("train_flops", BARS))
        for measure in ("win_rate", "deficit")
        if _has_policies(points, budget)
    ]


def _drift(points, looks) -> list[Figure]:
    """Length and diversity against KL."""
    caption = f"Side effects: drift from the reference (dashed line). {BARS}"
    return [
        _figure(measure, "against", "kl", caption, figures.drift(points, looks, measure))
        for measure in ("length", "distinct2")
        if _has_policies(points)
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
        points = figures.points(rows)
        shown.append(
            Figure(
                f"win-rate-by-{name}-against-kl",
                f"Win rate by {name} against KL",
                f"Thin line and crosses: the best of N by the training reward. {BARS}",
                figures.against_kl(points, looks, best, "win_rate", judge=name),
            )
        )
    return shown


def _temperatures(work: layout.Work, looks) -> list[Figure]:
    """Win rate and KL over the temperatures of the evaluation, where there are several."""
    rows = [row for run in work.runs for row in run.rows]
    if len({row["temperature"] for row in rows}) < 2:
        return []
    caption = (
        "A line a run. The KL is to the reference at its own temperature. Bars: 95 % over prompts."
    )
    points = figures.points(rows)
    return [
        _figure(
            measure, "by", "temperature", caption, figures.by_temperature(points, looks, measure)
        )
        for measure in ("win_rate", "kl")
    ]


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
