"""A language model compares: `python -m experiments.llm_judge --config FILE --workdir DIR`.

One stored response of each policy to each of the first held-out prompts is held against one of the
baseline's, in both orders, by the model behind `config.llm_judge.url`. Every answer is added to
`verdicts.jsonl` as it comes, so that the same command goes on where it stopped without paying
twice, and stops before `max_cost`. Results: `llm_judge.csv`, and a table on the page.
"""

import pathlib

from vbon_jax import cli
from vbon_jax.evaluation import llm_judge


def main() -> None:
    """Judge the runs of `--workdir`."""
    workdir = pathlib.Path(WORKDIR.value)
    llm_judge.run(CONFIG.value, workdir)
    print(f"{workdir / llm_judge.RESULTS_FILE}\n{workdir / 'report.html'}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
