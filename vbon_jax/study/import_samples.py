"""Samples that were made elsewhere, as the reference cache of a configuration."""

import logging
import pathlib

import jax
import numpy as np

from vbon_jax import files
from vbon_jax.data import prompt_sets
from vbon_jax.sampling import external_samples, reference_cache
from vbon_jax.study import caches
from vbon_jax.study.materials import Materials
from vbon_jax.types import InputError, Responses

logger = logging.getLogger(__name__)


def write_prompts(path: pathlib.Path, prompts: prompt_sets.PromptSet) -> None:
    """The prompts to sample for as JSON lines, as text and as token ids."""
    rows = zip(prompts.texts, prompts.token_ids, strict=True)
    files.write_jsonl(path, ({"prompt": text, "prompt_tokens": ids} for text, ids in rows))


def import_cache(
    materials: Materials, split: str, samples: str, *, rescore: bool
) -> reference_cache.References:
    """The cache of one split from the file, folder or hub name `samples`."""
    config = materials.config
    prompts = caches.prompts_of(materials, split)
    imported = external_samples.read(
        samples,
        prompts,
        materials.tokenizer,
        samples_per_prompt=config.references.samples_per_prompt,
        new_tokens=config.sampling.max_new_tokens,
        ends=materials.ends,
        truncate=config.data.over_long == "truncate",
    )
    _check(imported, split, materials, prompts, rescore=rescore)
    logger.info(
        f"{len(imported.places)} prompts from {imported.source} ({imported.truncated} responses "
        "truncated)"
    )
    given, penalty = imported.responses, np.float32(materials.reward.missing_eos_penalty)
    rewards_bn = None if rescore else given.rewards_bn - penalty * ~given.finished_bn
    given = given._replace(rewards_bn=rewards_bn)
    fingerprint = imported._replace(responses=given).fingerprint
    provenance = caches.provenance_of(config, materials, prompts, imported=fingerprint)
    # The scorer takes a file's rewards from `given`, so that equal texts have equal ones.
    unscored = given._replace(rewards_bn=None) if given.lengths_bn.all() else given
    score = materials.scorer(prompts, None if rescore else given)

    def sample(prompt_ids: np.ndarray) -> Responses:
        return jax.tree.map(lambda array: array[prompt_ids], unscored)

    caches.write(materials, split, provenance, sample, score)
    return reference_cache.load(caches.folder_of(materials, split), provenance)


def _check(
    imported: external_samples.Imported,
    split: str,
    materials: Materials,
    prompts: prompt_sets.PromptSet,
    *,
    rescore: bool,
) -> None:
    """Refuse samples without what the split needs, and rewards of another reward."""
    has_responses = bool(imported.responses.lengths_bn.all())
    if split == "eval" and not has_responses:
        raise InputError(
            f"{imported.source}: there are no responses, which an evaluation shows and measures; "
            "import them for --split=eval"
        )
    if rescore and not has_responses:
        raise InputError(f"{imported.source}: there are no responses to score; leave --rescore out")
    if not rescore and imported.responses.rewards_bn is None:
        raise InputError(f"{imported.source}: there are no rewards; score them with --rescore")
    if not has_responses and materials.reward.missing_eos_penalty:
        raise InputError(
            f"{imported.source}: there are no responses, so that nobody knows which have an end; "
            "import them, or set reward.missing_eos_penalty to 0"
        )
    if not rescore and has_responses:
        without_penalty = materials.reward._replace(missing_eos_penalty=0.0)
        score = materials.scorer(prompts, reward=without_penalty)
        external_samples.check_rewards(imported, score)
