"""The report of a working directory: `python -m experiments.report --workdir DIR`.

`results.csv`, `means.csv`, `pareto.csv`, `judges.csv` where there are judges, `figures/` (every
figure as SVG and PDF) and `report.html`, from the files of the folder alone: runs
that are not finished or not evaluated are listed with their step, and their training curves are
drawn.
"""

from vbon_jax import cli
from vbon_jax.report import outputs


def main() -> None:
    """Write the report of the folder that `--workdir` names, and say where it is."""
    workdir = WORKDIR.value
    outputs.write(workdir)
    for name in ("results.csv", "means.csv", "pareto.csv", "figures", "report.html"):
        print(workdir / name)


if __name__ == "__main__":
    WORKDIR = cli.define_workdir("Folder of a comparison, or of any runs.")
    cli.run(main, required=("workdir",), devices=False)
