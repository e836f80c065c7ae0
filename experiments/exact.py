"""The exact lab: `python -m experiments.exact`.

A policy so small that all its responses are enumerated. Every method trains on it by the step that
every run takes, with exact gradients or sampled, and is compared with Best-of-N by sums over all
responses. It writes, in the workdir, `results.csv`, `optima.csv` (the minimum of each objective in
theory, and how far from it the code ends), `cdf.csv` (what an estimate of log F costs) and figures,
and prints a table. The same command continues where it stopped.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli, files
from vbon_jax.exact import cdf_study, gradients, grid, summary
from vbon_jax.exact.keys import LAB_KEYS
from vbon_jax.report import style

RECIPE = pathlib.Path(__file__).parents[1] / "configs" / "exact.py"


def compare_exactly(config: ConfigDict, workdir: pathlib.Path) -> None:
    """All cells, the study of log F, files and the table."""
    grid.check_lab(config)
    laws = grid.make_laws(config, gradients.make_setting(config))
    rows = grid.ruler_rows(config, laws) + grid.train_all(config, workdir)
    optima, costs = summary.optima_rows(rows), grid.cdf_rows(config, workdir, laws)
    results = [{name: row[name] for name in summary.COLUMNS} for row in rows]
    with files.lock(workdir, waits=True):
        for name, table in (("results", results), ("optima", optima), ("cdf", costs)):
            if table:
                summary.write(table, workdir / f"{name}.csv")
        style.save(summary.figure(rows), workdir / "exact.svg")
        style.save(cdf_study.error_figure(costs), workdir / "cdf.svg")
        files.write_json(workdir / "config.json", config.to_dict())
    print(summary.table(rows))
    print("\n".join(summary.conclusions(rows, optima)))
    for name in ("results.csv", "optima.csv", "cdf.csv", "exact.svg", "cdf.svg"):
        if (workdir / name).exists():
            print(workdir / name)


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define(recipe=str(RECIPE))
    flags.set_default(WORKDIR, "runs/exact")
    cli.run(lambda: compare_exactly(CONFIG.value, WORKDIR.value), keys=LAB_KEYS)
