"""Measure runs on held-out prompts: `python -m experiments.evaluate --workdir DIR ...`.

K samples a prompt: reward, win rate against all cached reference rewards, KL, length, EOS rate,
distinct-2, perplexity, and the deficit to Best-of-N at the policy's own KL, each with its interval
over prompts; then the numbers of each of `config.judges`. It is the run that `method`, `n` and
`seed` name, or with `--all` every run of the comparison. Nothing is trained: a run that is not
finished is refused. A finished evaluation is not repeated.
"""

import pathlib

from absl import flags
from ml_collections import ConfigDict

from vbon_jax import cli, files
from vbon_jax.study import caches, check, evaluate, materials, plan, stages, train


def measure(config: ConfigDict, workdir: pathlib.Path, *, every: bool) -> None:
    """Evaluate the run, or every run, and print the rows of the results."""
    runs = plan.plan(config, workdir) if every else [plan.single(config, workdir)]
    for run in runs:
        train.check_finished(run)
    rows = check.check(config, runs)
    models = stages.make(config, workdir, trains=False)
    shared = materials.load(config, workdir, models, rows)
    caches.build(shared, "eval")  # samples and scores
    for run in runs:
        train.check_finished(run, train.policy_inputs(run, shared))
    standards = evaluate.load_standards(shared)  # scores the held-out cache by each judge
    for run in runs:
        for row in evaluate.evaluate(run, shared, standards):
            print(files.dumps({key: value for key, value in row.items() if value is not None}))


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    ALL = flags.DEFINE_bool("all", False, "Every run of the comparison, not one.")
    cli.run(lambda: measure(CONFIG.value, WORKDIR.value, every=ALL.value), required=("workdir",))
