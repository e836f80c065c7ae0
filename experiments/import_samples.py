"""Samples that were made elsewhere, as the reference cache of a configuration.

`python -m experiments.import_samples --config FILE --workdir DIR --prompts PROMPTS.jsonl` writes
the prompts to sample for, as text and as token ids. With `--samples FILE` in place of `--prompts`
the cache is built from the file's responses (docs/data.md: its fields) where `collect` would have
put it, and `compare` and the others continue from there. `--split` says which of the two caches,
train or eval.

The samples must be those of the configured policy: its log-probabilities of them are computed
here. Their rewards must be the configured reward's, which scores a part of them again to see that;
with `--rescore` it scores all of them, and the file needs no rewards.
"""

import logging

from absl import flags

from vbon_jax import cli
from vbon_jax.study import caches, check, import_samples, materials, plan, stages
from vbon_jax.types import InputError

logger = logging.getLogger("vbon_jax")

SPLIT = flags.DEFINE_enum("split", "train", ["train", "eval"], "Which cache: train or eval.")
PROMPTS = cli.define_path("prompts", "JSON lines of prompts to write, and stop.", writes="file")
SAMPLES = flags.DEFINE_string("samples", None, "What to import: a file, a folder or a hub name.")
RESCORE = flags.DEFINE_boolean("rescore", False, "Score all samples with the configured reward.")


def main() -> None:
    """Write the prompts, or import the samples."""
    config, workdir = CONFIG.value, WORKDIR.value
    if bool(SAMPLES.value) == bool(PROMPTS.value):
        raise InputError("give either --samples, a file to import, or --prompts, a file to write")
    rows = check.check(config, plan.plan(config, workdir))
    models = stages.make(config, workdir, ("policy", "reward"))  # trains those that are missing
    shared = materials.load(config, workdir, models, rows)
    if PROMPTS.value:
        prompts = caches.prompts_of(shared, SPLIT.value)
        import_samples.write_prompts(PROMPTS.value, prompts)
        logger.info(f"{PROMPTS.value}: {len(prompts.texts)} prompts of the split {SPLIT.value}")
        return
    cache = import_samples.import_cache(shared, SPLIT.value, SAMPLES.value, rescore=RESCORE.value)
    text = (
        f"references/{SPLIT.value}: {cache.rewards_pm.shape[0]} prompts x "
        f"{cache.rewards_pm.shape[1]} rewards, mean {cache.rewards_pm.mean():.4f}"
    )
    if cache.has_responses:
        nats = -float(cache.responses.log_probs_bng.sum(dtype=float)) / cache.sampled_tokens
        text += f", {nats:.3f} nats a token under {shared.models.policy}"
    logger.info(text)


if __name__ == "__main__":
    CONFIG, WORKDIR = cli.define()
    cli.run(main, required=("workdir",))
