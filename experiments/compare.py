"""Compare methods: `python -m experiments.compare --config FILE --workdir DIR`.

Models that the configuration makes for itself, reference caches, every run, its evaluation, and the
report. The same command goes on where it stopped; what is finished is not repeated.
"""

import pathlib
import sys

from ml_collections import ConfigDict

from vbon_jax import cli, files
from vbon_jax.report import outputs
from vbon_jax.study import caches, check, evaluate, materials, plan, stages, train
from vbon_jax.workdir import layout


def compare(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Check, plan, models, caches, then train and evaluate each run, and the report."""
    runs = plan.plan(config, workdir)
    rows = check.check(config, runs)
    models = stages.make(config, workdir)  # trains those that are missing
    shared = materials.load(config, workdir, models, rows)
    train.check_trainable(runs, shared)
    caches.build(shared, "eval", *caches.read_by(runs))  # samples and scores
    caches.check_budgets(shared, runs)
    standards = evaluate.load_standards(shared)  # scores the held-out cache by each judge
    command = "python -m experiments.compare " + " ".join(sys.argv[1:])
    record = {"command": command, "config": config.to_dict()}
    files.write_json(workdir / layout.COMPARE_FILE, record)
    evaluate.reference(shared, standards)
    for run in runs:
        train.train(run, train.policy_inputs(run, shared))
        evaluate.evaluate(run, shared, standards)
    for row in outputs.write(workdir):
        print(evaluate.sentence(row))
    print(f"{workdir / 'results.csv'}\n{workdir / 'report.html'}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(lambda: compare(CONFIG.value, WORKDIR.value), required=("workdir",))
