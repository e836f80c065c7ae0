"""Compare methods: `python -m experiments.compare --config FILE --workdir DIR`.

Reference policy and reward, cache, every cell of the configuration, evaluation, and the report of
the folder. The same command goes on where it stopped.
"""

import pathlib
import sys

from vbon_jax import cli, files
from vbon_jax.report import outputs
from vbon_jax.study import caches, evaluate, pipeline, plan
from vbon_jax.workdir import layout, results


def main() -> None:
    """All stages; each is skipped where it stands."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    materials = pipeline.prepare(config, workdir)
    cache = caches.reference_cache(config, materials, workdir, "eval")
    panel = evaluate.panel(config, materials, workdir, cache)
    command = "python -m experiments.compare " + " ".join(sys.argv[1:])
    said = {"command": command, "config": config.to_dict()}
    files.write_json(workdir / layout.COMPARE_FILE, said)
    evaluate.policy_rows(
        config,
        workdir / "reference",
        materials,
        cache,
        lambda: materials.checkpoint.params,
        {},
        method=results.REFERENCE,
        n=1.0,
        run=results.REFERENCE,
    )
    evaluate.derive(config, workdir / "reference", cache, panel)
    pipeline.check_budgets(config, workdir, materials)
    for cell in plan.every(config):
        pipeline.run_cell(config, workdir, cell, materials)
        evaluate.run_rows(config, workdir, cell, materials, cache, panel)
    for row in outputs.write(workdir):
        print(pipeline.sentence(row))
    print(f"{workdir / 'results.csv'}\n{workdir / 'report.html'}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
