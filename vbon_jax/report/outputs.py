"""Everything that is written from a working directory: CSV files, figures and the page."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vbon_jax import files
from vbon_jax.report import aggregates, judge_rows, page, sections, style, training_curves
from vbon_jax.sampling import reference_cache
from vbon_jax.workdir import layout, results

TITLE = "Alignment compared with Best-of-N"
RESPONSES_SHOWN = 2  # of a policy to a prompt


def write(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Write the report of a folder; returns the rows of its results.

    `results.csv`, `means.csv`, `pareto.csv`, `judges.csv` where there are judges, every figure as
    SVG and PDF in `figures/`, and `report.html`. Runs that are unfinished or not evaluated are
    listed with their step, and their training curves are drawn. Raises InputError for a folder that
    is not a working directory.
    """
    work = layout.read(workdir)
    with files.lock(workdir, waits=True):
        return _write(work, workdir)


def _write(work: layout.Work, workdir: pathlib.Path) -> list[dict[str, Any]]:
    numbers = aggregates.compute(work)
    files.write_csv(workdir / "results.csv", numbers.rows, results.COLUMNS)
    files.write_csv(workdir / "means.csv", numbers.means, aggregates.MEANS_COLUMNS)
    files.write_csv(workdir / "pareto.csv", numbers.shares, aggregates.PARETO_COLUMNS)
    if numbers.judged.rows:
        files.write_csv(workdir / "judges.csv", numbers.judged.rows, judge_rows.COLUMNS)

    looks = style.looks(run.record.label for run in work.runs if run.record)
    curves, samples = training_curves.of_runs(work.runs), side_by_side(work)
    parts = sections.sections(work, numbers, looks, curves)
    for figure in (figure for part in parts for figure in part.figures):
        paths = [workdir / "figures" / f"{figure.name}.{suffix}" for suffix in ("svg", "pdf")]
        style.save(figure.drawing.chart, *paths, data=figure.drawing.data)
    page.write(
        workdir / "report.html",
        sections=parts,
        curves=curves,
        samples=samples,
        looks=looks,
        best=work.cache is not None,
        title=TITLE,
        notes=[summary(work)],
        warnings=warnings(work, numbers.rows),
        unfinished=[(run.name, state(run)) for run in work.runs if not run.rows],
        provenance=list(provenance(work).items()),
        command=work.command or f"python -m experiments.report --workdir {workdir}",
    )
    return numbers.rows


# ------------------------------------------------------------------------------- samples


def side_by_side(work: layout.Work) -> list[dict[str, Any]]:
    """For the first held-out prompts: the reference's samples, its best, and each policy's.

    A sample is `{"prompt": text, "columns": [[name, [[text, reward], ...]], ...]}`.
    """
    if work.cache is None:
        return []
    count = min(work.settings["shown_prompts"], len(work.cache.rewards_pm))
    texts = reference_cache.read(work.cache, range(count))
    prompts = reference_cache.read(work.cache, range(count), column="prompt")
    samples = []
    for at, rewards in enumerate(work.cache.rewards_pm[:count]):
        best = int(np.argmax(rewards))
        columns = [
            [results.REFERENCE, _first_responses(texts[at], rewards)],
            [f"best of {len(rewards)}", [[texts[at][best], float(rewards[best])]]],
        ]
        samples.append({"prompt": prompts[at], "columns": columns})
    for run, row in work.evaluated:
        with layout.skipping(work.problems, f"{run.name} is not among the samples: "):
            lines = layout.responses(run.folder / "evaluation", row, ("responses", "rewards"))
            for sample, line in zip(samples, lines, strict=False):
                shown = _first_responses(line["responses"], line["rewards"])
                sample["columns"].append([run.name, shown])
    return samples


def _first_responses(texts: Sequence[str], rewards: Sequence[float]) -> list[list]:
    pairs = zip(texts[:RESPONSES_SHOWN], rewards, strict=False)
    return [[text, float(reward)] for text, reward in pairs]


# ------------------------------------------------------------------------------- words


def provenance(work: layout.Work) -> dict[str, Any]:
    """Where the page's numbers come from, by name."""
    config = work.config
    facts: dict[str, Any] = {}
    if config:
        reward = config["reward"]
        facts = {
            "policy": config["policy"]["path"],
            "reward": reward["function"] or reward["path"],
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
        recorded = work.cache.provenance._asdict()
        facts |= {f"cache {key}": value for key, value in recorded.items() if value is not None}
    return facts


def warnings(work: layout.Work, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Sentences about what could not be read, or is not a number."""
    bad = [
        f"{row['label']}: {name}"
        for row in rows
        for name, value in row.items()
        if isinstance(value, float) and not np.isfinite(value)
    ]
    return work.problems + (
        [f"Not finite, and left out of the figures: {'; '.join(bad)}."] if bad else []
    )


def state(run: layout.Run) -> str:
    """How far a run is, in words."""
    if run.record is None:
        return run.state
    if run.steps is None:  # it ends when its budget does
        return f"{run.state}; step {run.step}"
    return f"{run.state}; step {run.step} of {run.steps}"


def summary(work: layout.Work) -> str:
    """The first sentences of the page."""
    done = sum(bool(run.rows) for run in work.runs)
    return (
        f"{done} of {len(work.runs)} runs are evaluated. Figures: hover over a point for its run, "
        "choose methods in the bar above them to make them stand out."
    )
