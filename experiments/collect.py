"""Build the reference caches: `python -m experiments.collect --config FILE --workdir DIR`.

M samples and rewards of every training and held-out prompt. An interrupted build goes on where
it stopped.
"""

import logging
import pathlib

from ml_collections import ConfigDict

from vbon_jax import cli
from vbon_jax.study import caches, check, materials, plan, stages

logger = logging.getLogger("vbon_jax")


def collect(config: ConfigDict, workdir: pathlib.Path) -> None:
    """The caches of training and held-out prompts, and of those that runs are evaluated on."""
    runs = plan.plan(config, workdir)
    rows = check.check(config, runs)
    models = stages.make(config, workdir, ("policy", "reward"))  # trains those that are missing
    shared = materials.load(config, workdir, models, rows)
    for split in dict.fromkeys(("train", "eval", *caches.read_by(runs))):
        caches.build(shared, split)
        rewards_pm = caches.load(shared, split).rewards_pm
        prompts, samples = rewards_pm.shape
        logger.info(
            f"references/{split}: {prompts} prompts x {samples} rewards, "
            f"mean {rewards_pm.mean():.4f}"
        )


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(lambda: collect(CONFIG.value, WORKDIR.value), required=("workdir",))
