"""The exact lab: `python -m experiments.exact`.

A policy so small that all its responses are enumerated. Every method trains on it by the step that
every run takes, with exact gradients or sampled, and is compared with Best-of-N by sums over all
responses. It writes, in the workdir, `results.csv`, `optima.csv` (the minimum of each objective in
theory, and how far from it the code ends), `cdf.csv` (what an estimate of log F costs) and figures,
and prints a table. The same command continues where it stopped.
"""

import pathlib

from absl import flags

from vbon_jax import cli, files
from vbon_jax.exact import cdf_study, gradients, grid, summary
from vbon_jax.report import style

ROOT = pathlib.Path(__file__).parents[1]


def main() -> None:
    """All cells, the study of log F, files and the table."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    grid.check_lab(config)
    workdir.mkdir(parents=True, exist_ok=True)
    laws = grid.make_laws(config, gradients.make_setting(config))
    rows = grid.ruler_rows(config, laws) + grid.train_all(config, workdir)
    optima, costs = summary.optima_rows(rows), grid.cdf_rows(config, workdir, laws)
    summary.write(
        [{name: row[name] for name in summary.COLUMNS} for row in rows], workdir / "results.csv"
    )
    summary.write(optima, workdir / "optima.csv")
    summary.write(costs, workdir / "cdf.csv")
    style.save(summary.figure(rows), workdir / "exact.svg")
    style.save(cdf_study.error_figure(costs), workdir / "cdf.svg")
    files.write_json(workdir / "config.json", config.to_dict())
    print(summary.table(rows))
    print("\n".join(summary.conclusions(rows, optima)))
    for name in ("results.csv", "optima.csv", "cdf.csv", "exact.svg", "cdf.svg"):
        print(workdir / name)


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define(recipe=str(ROOT / "configs" / "exact.py"))
    flags.set_default(WORKDIR, "runs/exact")
    cli.run(main)
