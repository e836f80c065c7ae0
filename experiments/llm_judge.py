"""A language model compares: `python -m experiments.llm_judge --config FILE --workdir DIR`.

One stored response of each policy to each of the first held-out prompts is compared with one of the
baseline's, in both orders, by the model behind `config.llm_judge.url`. Every answer is added to
`verdicts.jsonl` as it comes, so that the same command continues where it stopped without paying
twice, and stops before `max_cost`. Results: `llm_judge.csv`, and a table on the page.
"""

import logging
from typing import Any

from vbon_jax import cli, files
from vbon_jax.evaluation import llm_judge
from vbon_jax.interrupts import Interrupted
from vbon_jax.report import outputs
from vbon_jax.types import InputError
from vbon_jax.workdir import contests, layout

RESULTS_FILE = "llm_judge.csv"


def main() -> None:
    """Judge the runs of `--workdir`, then write the results and the report."""
    config, workdir = CONFIG.value, WORKDIR.value
    llm_judge.check(config)
    work = layout.read(workdir)
    outcome = llm_judge.judge(
        contests.read(work, config.llm_judge),
        config.llm_judge,
        workdir,
        work.bootstrap,
    )
    files.write_csv(workdir / RESULTS_FILE, outcome.rows, llm_judge.COLUMNS)
    for row in outcome.rows:
        print(sentence(row))
    log = logging.getLogger("vbon_jax")
    log.info("spent: %.4f dollars of %g", outcome.spent, config.llm_judge.max_cost)
    if any(row["missing"] for row in outcome.rows):
        log.info("pairs are missing; the same command asks for what is not answered yet")
    outputs.write(workdir)
    print(f"{workdir / RESULTS_FILE}\n{workdir / 'report.html'}")
    if outcome.unfinished == llm_judge.INTERRUPTED:
        raise Interrupted(f"interrupted; {workdir} has all answers that were paid for")
    if outcome.unfinished:
        raise InputError(outcome.unfinished)


def sentence(row: dict[str, Any]) -> str:
    """A row in one line for a terminal."""
    text = f"{row['run']:28s} {row['prompts']} pairs ({row['missing']} missing)"
    if row["win_rate"] is None:
        return text
    return text + (
        f"  win rate {row['win_rate']:.3f} [{row['win_rate_lo']:.3f}, {row['win_rate_hi']:.3f}]  "
        f"position bias {row['position_bias']:+.3f}  ties {row['ties']:.3f}"
    )


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",), devices=False)
