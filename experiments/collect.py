"""Build the reference cache: `python -m experiments.collect --config FILE --workdir DIR`.

M samples and rewards of every training and held-out prompt. An interrupted build goes on where
it stopped.
"""

import logging
import pathlib

from vbon_jax import cli
from vbon_jax.study import caches, pipeline

logger = logging.getLogger("vbon_jax")


def main() -> None:
    """Both caches, training and held-out."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    materials = pipeline.prepare(config, workdir)
    for split in ("train", "eval"):
        cache = caches.reference_cache(config, materials, workdir, split)
        logger.info(
            f"references/{split}: {cache.rewards_pm.shape[0]} prompts x "
            f"{cache.rewards_pm.shape[1]} rewards, mean {cache.rewards_pm.mean():.4f}"
        )


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
