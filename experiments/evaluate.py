"""Measure a run on held-out prompts: `python -m experiments.evaluate --run DIR --workdir DIR ...`.

K samples a prompt: reward, win rate against all cached reference rewards, KL, length, EOS rate,
distinct-2, perplexity, and the deficit to Best-of-N at the policy's own KL, each with its interval
over prompts; then, from the stored responses, the win rate at equal length and the numbers of each
of `config.judges`. A finished evaluation is not repeated.
"""

import json
import pathlib

from absl import flags

from vbon_jax import cli
from vbon_jax.study import caches, evaluate, pipeline, plan


def main() -> None:
    """Measure the run that the configuration names (method, n, seed) and print its row."""
    config, workdir = CONFIG.value, pathlib.Path(WORKDIR.value)
    materials = pipeline.prepare(config, workdir)
    cache = caches.reference_cache(config, materials, workdir, "eval")
    panel = evaluate.panel(config, materials, workdir, cache)
    for cell in plan.every(config) if ALL.value else [plan.single(config)]:
        pipeline.run_cell(config, workdir, cell, materials)
        for row in evaluate.run_rows(config, workdir, cell, materials, cache, panel):
            print(json.dumps({key: value for key, value in row.items() if value is not None}))


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    ALL = flags.DEFINE_bool("all", False, "Every cell of the configuration, not one.")
    cli.run(main, required=("workdir",))
