"""Train one method at one N: `python -m experiments.train --config FILE --workdir DIR`.

Makes the reference policy, the reward and the caches first where they are missing. The same command
goes on where an interrupted run stopped, and does nothing when it is finished.
"""

import logging
import pathlib

from ml_collections import ConfigDict

from vbon_jax import cli
from vbon_jax.study import caches, check, materials, plan, stages
from vbon_jax.study.train import check_trainable, policy_inputs, text_inputs, train

logger = logging.getLogger("vbon_jax")


def train_one(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Train the run that `method`, `n` and `seed` name."""
    run = plan.single(config, workdir)
    if run.method.reads_text:
        tables = check.check_text(config, run)
        models = stages.make(config, workdir, (run.method.model,))  # trains it where it is missing
        inputs = text_inputs(run, models, tables)
    else:
        rows = check.check(config, [run])
        models = stages.make(config, workdir, ("policy", "reward"))
        shared = materials.load(config, workdir, models, rows)
        check_trainable([run], shared)
        caches.build(shared, *caches.read_by([run]))  # samples and scores
        inputs = policy_inputs(run, shared)
    train(run, inputs)
    logger.info(f"trained: {run.folder}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(lambda: train_one(CONFIG.value, WORKDIR.value), required=("workdir",))
