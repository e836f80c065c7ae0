"""Compare methods: `python -m experiments.compare --config FILE --workdir DIR`.

Reference policy and reward, cache, every cell of the configuration, evaluation, `results.csv`,
`report.html`. The same command goes on where it stopped.
"""

import pathlib
import sys

import numpy as np
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from experiments import cli, evaluate, pipeline, plot, report
from vbon_jax import evaluate as measures
from vbon_jax.rollout import references


def reference_rows(config, workdir, materials, cache) -> list[dict]:
    """The reference policy's own rows (KL 0, win rate 0.5) and Best-of-N's, from the cache."""
    rows = evaluate.policy_rows(
        config,
        workdir / "reference",
        materials,
        cache,
        lambda: materials.checkpoint.params,
        {},
        method=plot.REFERENCE,
        n=1.0,
        run="reference",
    )
    prompts, most = cache.rewards_pm.shape
    ruler = measures.ruler(
        cache.rewards_pm,
        [n for n in config.evaluation.ruler_n if n < most],
        seed=config.evaluation.seed,
        resamples=config.evaluation.resamples,
    )
    return rows + report.ruler_rows(
        ruler,
        temperature=config.sampling.temperature,
        prompts=prompts,
        reference_samples=most,
        run="best_of_n",
    )


def side_by_side(config: ConfigDict, workdir: pathlib.Path, runs: list[str], cache) -> list[dict]:
    """For the first held-out prompts: two samples of the reference, its best, and each policy's."""
    count = min(config.evaluation.shown_prompts, len(cache.rewards_pm))
    texts = references.read(cache, range(count))
    prompts = references.read(cache, range(count), column="prompt")
    tables = {}
    for run in runs:
        stem = f"responses-t{evaluate.temperatures(config)[0]:g}.parquet"
        tables[run] = pq.read_table(workdir / "runs" / run / "evaluation" / stem).to_pylist()
    shown = []
    for index in range(count):
        rewards = cache.rewards_pm[index]
        best = int(np.argmax(rewards))
        columns = [
            {"name": "reference", "responses": _responses(texts[index][:2], rewards[:2])},
            {
                "name": f"best of {len(rewards)}",
                "responses": _responses([texts[index][best]], [rewards[best]]),
            },
        ]
        for run, table in tables.items():
            row = table[index]
            columns.append(
                {"name": run, "responses": _responses(row["responses"][:2], row["rewards"][:2])}
            )
        shown.append({"prompt": prompts[index], "columns": columns})
    return shown


def _responses(texts, rewards) -> list[dict]:
    return [{"text": t, "reward": float(r)} for t, r in zip(texts, rewards, strict=True)]


def provenance(config: ConfigDict, materials: pipeline.Materials, cache) -> dict:
    """What the page says of where its numbers come from."""
    return {
        "policy": config.policy.path or "embedded",
        "reward": config.reward.function or config.reward.path or "embedded",
        "training prompts": len(materials.train_prompts.token_ids),
        "held-out prompts (B)": cache.rewards_pm.shape[0],
        "reference samples a prompt (M)": cache.rewards_pm.shape[1],
        "samples a prompt of each policy (K)": config.evaluation.samples_per_prompt,
        "new tokens": config.sampling.max_new_tokens,
        "temperature": config.sampling.temperature,
        "steps a run": config.train.steps,
        "seeds": ", ".join(map(str, sorted({cell["seed"] for cell in pipeline.cells(config)}))),
        "intervals": f"95 % bootstrap over prompts, {config.evaluation.resamples} resamples",
        **{f"cache {k}": v for k, v in cache.provenance._asdict().items()},
    }


def main() -> None:
    """All stages; each is skipped where it stands."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    materials = pipeline.prepare(config, workdir)
    cache = pipeline.reference_cache(config, materials, workdir, "eval")
    rows, runs = reference_rows(config, workdir, materials, cache), []
    for cell in pipeline.cells(config):
        folder = pipeline.run_cell(config, workdir, cell, materials)
        rows += evaluate.run_rows(config, workdir, cell, materials, cache)
        runs.append(folder.name)
    curve = measures.mean_curve(measures.curve(cache.rewards_pm))
    report.write_results(rows, workdir / "results.csv")
    plot.figure(rows, curve, workdir / "figure.svg")
    report.write_report(
        workdir / "report.html",
        title="Alignment held against Best-of-N",
        rows=rows,
        curve=curve,
        samples=side_by_side(config, workdir, runs, cache),
        notes=[],
        provenance=provenance(config, materials, cache),
        command="python -m experiments.compare " + " ".join(sys.argv[1:]),
    )
    for row in rows:
        print(pipeline.sentence(row))
    print(f"{workdir / 'results.csv'}\n{workdir / 'report.html'}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
