"""The report of a working directory: `python -m experiments.report --workdir DIR`.

`results.csv`, `means.csv`, `pareto.csv`, `judges.csv` where there are judges, `figures/` (every
figure as SVG and PDF) and `report.html`, from what stands in the folder: runs that are not finished
or not evaluated are listed with their step, and their training curves are drawn.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vbon_jax.evaluation import bon_curve, judges
from vbon_jax.report import aggregates, figures, page, style
from vbon_jax.report.figures import Figure
from vbon_jax.sampling import reference_cache
from vbon_jax.workdir import layout, results

TITLE = "Alignment held against Best-of-N"
CURVE_NUMBERS = 200_000  # numbers of all training curves of a page, at most about
CURVE_POINTS = 200  # of one curve
FIRST_METRICS = ("eval/win_rate", "objective/mean", "loss/total")  # the page shows the first there
RESPONSES_SHOWN = 2  # of a policy to a prompt
DEFICIT = (
    "The deficit of a policy is the win rate that Best-of-N has at the policy's own KL to the "
    "reference, read off the Best-of-N curve of the reference cache, minus the policy's win rate. "
    "At 0 the policy is as good as Best-of-N for what it moved away from the reference; a positive "
    "deficit is win rate lost, a negative one is win rate above the curve. Its interval resamples "
    "prompts, with the policy's win rate, its KL and the curve taken on the same prompts: where it "
    "holds 0, these prompts do not tell the policy from Best-of-N. A win rate is against all "
    "cached reference responses of a prompt, ties counting one half."
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
BARS = "Bars: 95 % over prompts. Larger points: larger N."


# ------------------------------------------------------------------------------- training curves


def thinned(steps: Sequence[int], values: Sequence[float], most: int) -> tuple[list, list]:
    """A curve of at most `most` points: means over equal stretches of steps, each at its last."""
    if len(steps) <= most:
        return list(steps), [figures.rounded(value) for value in values]
    parts = np.array_split(np.arange(len(steps)), most)
    means = [figures.rounded(float(np.mean([values[at] for at in part]))) for part in parts]
    return [int(steps[part[-1]]) for part in parts], means


def training_curves(runs: Sequence[layout.Run]) -> dict[str, Any]:
    """Every metric of every run: `metrics` has (run, place in `grids`, values) for each name.

    `grids` are lists of steps, `methods` the runs' names in legends, `first` the metric to begin
    with, `points` how many points a curve may have here, `thinned` whether any had more.
    """
    runs = [run for run in runs if run.metrics]
    names = sorted({name for run in runs for row in run.metrics for name in row} - {"step"})
    most = int(np.clip(CURVE_NUMBERS // max(1, len(runs) * len(names)), 10, CURVE_POINTS))
    grids: dict[tuple, int] = {}
    metrics: dict[str, list] = {name: [] for name in names}
    cut = False
    for run in runs:
        for name in names:
            pairs = [(row["step"], row[name]) for row in run.metrics if row.get(name) is not None]
            if not pairs:
                continue
            cut |= len(pairs) > most
            steps, values = thinned(*zip(*pairs, strict=True), most)
            place = grids.setdefault(tuple(steps), len(grids))
            metrics[name].append([run.name, place, values])
    return {
        "metrics": metrics,
        "grids": [list(steps) for steps in grids],
        "methods": {run.name: run.record.label for run in runs},
        "first": next((name for name in FIRST_METRICS if name in names), names[0] if names else ""),
        "points": most,
        "thinned": cut,
    }


# ------------------------------------------------------------------------------- figures


def make_sections(work: layout.Work, shares, curves, said) -> list[dict[str, Any]]:
    """The page's sections: a title, a text, figures, and a table where there is one."""
    mains = main_points(work)
    held = [p for p in mains if p["kind"] == "policy"]
    sections = []
    if work.cache is not None:
        best = bon_curve.mean_curve(bon_curve.curve(work.cache.rewards_pm))
        sections.append({
            "title": "How close to Best-of-N", "text": DEFICIT, "figures": kl_figures(mains, best)
        })  # fmt: skip
    if held:
        sections[0]["figures"].append(
            Figure(
                "deficit-by-n",
                "Deficit to Best-of-N by N",
                "A point and its 95 % interval for each seed, a line through the means of seeds; "
                "0 is Best-of-N.",
                figures.deficit_by_n(mains),
            )
        )
        sections += [
            {"title": "Pareto membership", "text": PARETO, "figures": pareto_figures(shares),
             "table": page.pareto_table(shares)},
            {"title": "What it costs", "figures": budget_figures(mains)},
            {"title": "What else moved", "figures": drift_figures(mains)},
        ]  # fmt: skip
    sections.append({"title": "Other judges", "text": JUDGED, "figures": judge_figures(work, said),
                     "table": page.judges_table(said.rows)})  # fmt: skip
    if len({row["temperature"] for run in work.runs for row in run.rows}) > 1:
        every = figures.points([row for run in work.runs for row in run.rows])
        sections.append({"title": "Temperature", "figures": temperature_figures(every)})
    if curves["metrics"]:
        sections.append({"title": "Training", "figures": [training_figure(curves)]})
    return [{"text": "", "table": None, **section} for section in sections if section["figures"]]


def main_points(work: layout.Work) -> list[dict[str, Any]]:
    """One point a policy, at the sampling temperature, and those of the reference and Best-of-N."""
    own = [row for row in work.reference_rows if row["method"] == results.REFERENCE]
    best = [row for row in work.reference_rows if row["method"] != results.REFERENCE]
    groups = [own, *(run.rows for run in work.runs)]
    rows = [row for group in groups for row in layout.main_rows(group, work.temperature)]
    return figures.points(best + rows)


def kl_figures(points, best: bon_curve.Curve) -> list[Figure]:
    """Win rate and reward against KL."""
    curve = (
        "Thin line and crosses: Best-of-N on the reference cache, its exact law and whole N; small "
        "rings: soft Best-of-N; "
    )
    captions = {
        "win_rate": f"{curve}broad line: N/(N+1), continuous rewards. Star: the reference. {BARS}",
        "reward": f"{curve}star: the reference. {BARS}",
    }
    return [
        Figure(
            f"{measure.replace('_', '-')}-against-kl",
            f"{title} against KL",
            captions[measure],
            figures.against_kl(points, best, measure),
        )
        for measure, title in (("win_rate", "Win rate"), ("reward", "Reward"))
    ]


def judge_figures(work: layout.Work, said: judges.Judged) -> list[Figure]:
    """The win rate by each judge against KL, at the sampling temperature."""
    made = []
    for name, best in said.curves.items():
        groups: dict[tuple, list] = {}  # of a policy's rows, a temperature each
        for row in said.rows:
            if row["judge"] == name and row["method"] != judges.CACHE:
                groups.setdefault((row["run"], row["n"]), []).append(row)
        rows = [row for of in groups.values() for row in layout.main_rows(of, work.temperature)]
        made.append(
            Figure(
                f"win-rate-by-{name}-against-kl",
                f"Win rate by {name} against KL",
                f"Thin line and crosses: the best of N by the training reward. {BARS}",
                figures.against_kl(figures.points(rows), best, "win_rate", judge=name),
            )
        )
    return made


def pareto_figures(shares) -> list[Figure]:
    """A method's share of the front, for both qualities."""
    return [
        Figure(
            f"pareto-{quality.replace('_', '-')}",
            f"Share of policies on the front of KL and {quality.replace('_', ' ')}",
            "Line: 95 % bootstrap interval over prompts.",
            figures.pareto_bars(shares, quality),
        )
        for quality in dict.fromkeys(share["quality"] for share in shares)
    ]


def budget_figures(points) -> list[Figure]:
    """Win rate and deficit against sampled tokens and training FLOPs, where they are known."""
    share = "The share of the reference cache that a run used is counted in. "
    return [
        Figure(
            f"{measure.replace('_', '-')}-against-{budget.replace('_', '-')}",
            f"{title} against {figures.TITLES[budget]}",
            f"{share if budget == 'sampled_tokens' else ''}{BARS}",
            figures.against_budget(points, measure, budget),
        )
        for budget in ("sampled_tokens", "train_flops")
        for measure, title in (("win_rate", "Win rate"), ("deficit", "Deficit to Best-of-N"))
        if any(p["kind"] == "policy" and p[budget] is not None for p in points)
    ]


def drift_figures(points) -> list[Figure]:
    """Length and diversity against KL."""
    return [
        Figure(
            f"{measure}-against-kl",
            f"{title} against KL",
            f"What nobody asked for: drift away from the dashed line, the reference's own. {BARS}",
            figures.drift(points, measure),
        )
        for measure, title in (("length", "Length"), ("distinct2", "Distinct-2"))
    ]


def temperature_figures(points) -> list[Figure]:
    """Win rate and KL over the temperatures of the evaluation."""
    return [
        Figure(
            f"{measure.replace('_', '-')}-by-temperature",
            f"{title} by temperature",
            "A line a run. The KL is to the reference at its own temperature. Bars: 95 % over "
            "prompts.",
            figures.by_temperature(points, measure),
        )
        for measure, title in (("win_rate", "Win rate"), ("kl", "KL"))
    ]


def training_figure(curves: Mapping[str, Any]) -> Figure:
    """One metric over the steps; the page lets its reader choose another."""
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
    names = list(dict.fromkeys(curves["methods"].values()))
    drawing = figures.training(values, names, curves["first"])
    return Figure("training", "Training curves", caption, drawing)


# ------------------------------------------------------------------------------- samples


def side_by_side(work: layout.Work) -> list[dict[str, Any]]:
    """For the first held-out prompts: the reference's samples, its best, and each policy's."""
    if work.cache is None:
        return []
    count = min(work.settings["shown_prompts"], len(work.cache.rewards_pm))
    texts = reference_cache.read(work.cache, range(count))
    prompts = reference_cache.read(work.cache, range(count), column="prompt")
    samples = []
    for at, rewards in enumerate(work.cache.rewards_pm[:count]):
        best = int(np.argmax(rewards))
        few = _pairs(texts[at][:RESPONSES_SHOWN], rewards)
        columns = [
            [results.REFERENCE, few],
            [f"best of {len(rewards)}", _pairs([texts[at][best]], [rewards[best]])],
        ]
        samples.append({"prompt": prompts[at], "columns": columns})
    for run in work.runs:
        for row in layout.main_rows(run.rows, work.temperature):
            try:
                table = layout.responses(run.folder / "evaluation", row, ["responses", "rewards"])
                lines = table.slice(0, count).to_pylist()
            except layout.UNREADABLE as error:
                work.problems.append(f"{run.name} is not among the samples: {error}.")
                continue
            for sample, line in zip(samples, lines, strict=False):
                few = _pairs(line["responses"][:RESPONSES_SHOWN], line["rewards"])
                sample["columns"].append([run.name, few])
    return samples


def _pairs(texts: Sequence[str], rewards: Sequence[float]) -> list[list]:
    return [[text, float(reward)] for text, reward in zip(texts, rewards, strict=False)]


# ------------------------------------------------------------------------------- all of it


def provenance(work: layout.Work) -> dict[str, Any]:
    """What the page says of where its numbers come from."""
    config = work.config
    facts: dict[str, Any] = {}
    if config:
        reward = config["reward"]
        facts = {
            "policy": config["policy"]["path"] or "embedded",
            "reward": reward["function"] or reward["path"] or "embedded",
            "samples a prompt of each policy (K)": config["evaluation"]["samples_per_prompt"],
            "new tokens": config["sampling"]["max_new_tokens"],
            "temperature": config["sampling"]["temperature"],
            "steps a run": config["train"]["steps"],
        }
    seeds = sorted({run.record.seed for run in work.runs if run.record})
    facts["seeds"] = ", ".join(map(str, seeds)) or "–"
    if work.cache is not None:
        prompts, most = work.cache.rewards_pm.shape
        facts |= {"held-out prompts (B)": prompts, "reference samples a prompt (M)": most}
        times = work.settings["resamples"]
        facts["intervals"] = f"95 % bootstrap over prompts, {times} resamples of {prompts} prompts"
        made = work.cache.provenance._asdict()
        facts |= {f"cache {k}": v for k, v in made.items() if v is not None}
    return facts


def warnings(work: layout.Work) -> list[str]:
    """Sentences about what could not be read, or is not a number."""
    bad = [
        f"{row['label']}: {name}"
        for row in work.rows
        for name, value in row.items()
        if isinstance(value, float) and not np.isfinite(value)
    ]
    said = [f"Not finite, and left out of the figures: {'; '.join(bad)}."] if bad else []
    return work.problems + said


def state(run: layout.Run) -> str:
    """How far a run is, in words."""
    if run.steps is None:  # cannot be read, or as long as its budget lasts
        return f"{run.state}; step {run.step}" if run.config else run.state
    return f"{run.state}; step {run.step} of {run.steps}"


def write(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Writes everything that the report of a folder has; returns the rows of the results.

    Raises InputError for a folder that is no working directory.
    """
    work = layout.read(workdir)
    rows, curves, means = work.rows, training_curves(work.runs), layout.prompt_means(work)
    shares, over_seeds = aggregates.pareto_shares(work, means), aggregates.seed_means(work, means)
    samples, said = side_by_side(work), judges.read(work)
    sections, others = make_sections(work, shares, curves, said), tables(work, rows, over_seeds)
    shown = [figure for section in sections for figure in section["figures"]]
    results.write_results(rows, workdir / "results.csv")
    aggregates.write(over_seeds, aggregates.MEANS_COLUMNS, workdir / "means.csv")
    aggregates.write(shares, aggregates.PARETO_COLUMNS, workdir / "pareto.csv")
    if said.rows:
        aggregates.write(said.rows, judges.COLUMNS, workdir / "judges.csv")
    for figure in shown:
        files = [workdir / "figures" / f"{figure.name}.{suffix}" for suffix in ("svg", "pdf")]
        style.save(figure.drawing.chart, *files, data=figure.drawing.data)
    names = [run.record.label for run in work.runs if run.record]
    page.write(
        workdir / "report.html",
        shown=shown,
        curves=curves,
        samples=samples,
        names=names,
        best=work.cache is not None,
        title=TITLE,
        notes=[summary(work)],
        warnings=warnings(work),
        sections=sections,
        tables=others,
        unfinished=[(run.name, state(run)) for run in work.runs if not run.rows],
        provenance=list(provenance(work).items()),
        command=work.command or f"python -m experiments.report --workdir {workdir}",
    )
    return rows


def tables(work: layout.Work, rows, over_seeds) -> list[page.Table]:
    """The page's tables outside its sections."""
    asked, path = [], work.path / "llm_judge.csv"
    try:
        asked = results.read_results(path) if path.is_file() else []
        made = page.language_model_table(asked)
    except layout.UNREADABLE as error:
        work.problems.append(f"{path.name} cannot be read: {error}.")
        made = None
    found = [
        page.means_table(over_seeds),
        page.result_table(rows),
        made,
        page.stages_table(layout.stages(work)),
        page.budget_table(rows),
    ]
    return [table for table in found if table]


def summary(work: layout.Work) -> str:
    """The first sentence of the page."""
    done = sum(bool(run.rows) for run in work.runs)
    return (
        f"{done} of {len(work.runs)} runs are evaluated. Figures: hover over a point for its run, "
        "choose methods in the bar above them to make them stand out."
    )
