"""Train one method at one N: `python -m experiments.train --config FILE --workdir DIR`.

Builds the reference policy, the reward and the cache first when they are missing. The same
command goes on where an interrupted run stopped, and does nothing when it is finished.
"""

import logging
import pathlib

from vbon_jax import cli
from vbon_jax.study import pipeline, plan
from vbon_jax.training import methods

logger = logging.getLogger("vbon_jax")


def main() -> None:
    """One method at one N, with the data and models that the configuration names."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    if not methods.method(config.method).reads_text:
        materials = pipeline.prepare(config, workdir)
        folder = pipeline.run_cell(config, workdir, plan.single(config), materials)
    else:
        folder = pipeline.run_text_method(config, workdir)
    logger.info(f"trained: {folder}")


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
