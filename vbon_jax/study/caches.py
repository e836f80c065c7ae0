"""The reference caches of a working directory: built where they are missing, and what they cost."""

import logging
import operator
import pathlib
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import origins
from vbon_jax.data import batching, prompt_sets
from vbon_jax.functional import streams
from vbon_jax.models import log_probs, sharding
from vbon_jax.sampling import reference_cache, sampler, scoring
from vbon_jax.study.materials import Materials
from vbon_jax.study.plan import Run
from vbon_jax.training import budget
from vbon_jax.types import InputError, Prompts, Responses

logger = logging.getLogger(__name__)
SPLITS = ("train", "eval", "selection")


def build(materials: Materials, *splits: str) -> None:
    """Sample and score M reference responses to every prompt of some of SPLITS.

    A finished cache is left as it is; an interrupted one is completed.
    """
    for split in splits:
        _build(materials, split)


def read_by(runs: list[Run]) -> list[str]:
    """The splits whose caches some runs read while they train."""
    train = any(run.method.needs_cache(run.config) for run in runs)
    selection = any(run.config.train.eval_every for run in runs)
    return ["train"] * train + ["selection"] * selection


def load(materials: Materials, split: str) -> reference_cache.References:
    """The cache of a split. Raises InputError where it is not built, or is of something else."""
    return reference_cache.load(
        folder_of(materials, split), _provenance(materials, split), origins(materials.config)
    )


def check_budgets(materials: Materials, runs: list[Run]) -> None:
    """Refuse every run whose part of the training cache cannot be used; warn of a small one."""
    reading = [run for run in runs if run.method.needs_cache(run.config)]
    if not reading:
        return
    cache = load(materials, "train").responses
    for run in reading:
        limit = run.config.budget.sampled_tokens
        count = budget.samples_of_cache(run.config, run.method, cache)
        spent = budget.cache_share(cache, count, seconds=0.0).sampled_tokens
        if spent < 0.9 * limit and not run.method.samples:
            logger.info(
                f"{run.name} spends {spent} of budget.sampled_tokens={limit}: the cache has no "
                "more; raise references.samples_per_prompt"
            )


def prompt_width(config: ConfigDict, materials: Materials, prompt_ids: list) -> int:
    """P: one padded width for a whole set of prompts, so that each program is compiled once.

    With the new tokens behind it, it stays within the positions of the policy.
    """
    room = materials.checkpoint.config.max_positions - config.sampling.max_new_tokens
    return min(batching.bucket_length(max(map(len, prompt_ids))), room)


def provenance_of(
    config: ConfigDict,
    materials: Materials,
    prompts: prompt_sets.PromptSet,
    *,
    imported: str | None = None,
) -> reference_cache.Provenance:
    """The provenance of the configuration's cache of these prompts."""
    return reference_cache.Provenance(
        policy=materials.policy_fingerprint,
        reward=materials.reward.fingerprint,
        prompts=materials.reward.prompts_fingerprint(prompts),
        num_prompts=len(prompts.token_ids),
        samples_per_prompt=config.references.samples_per_prompt,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_k=materials.sampling.top_k,
        top_p=materials.sampling.top_p,
        seed=config.references.seed,
        imported=imported,
    )


def folder_of(materials: Materials, split: str) -> pathlib.Path:
    """The folder of a split's cache."""
    return materials.workdir / "references" / split


def prompts_of(materials: Materials, split: str) -> prompt_sets.PromptSet:
    """The prompts of a split."""
    return getattr(materials, f"{split}_prompts")


def _provenance(materials: Materials, split: str) -> reference_cache.Provenance:
    imported = reference_cache.imported(folder_of(materials, split))
    prompts = prompts_of(materials, split)
    return provenance_of(materials.config, materials, prompts, imported=imported)


def _build(materials: Materials, split: str) -> None:
    """Build the cache of one split, or complete it; one that was imported must be whole."""
    config, folder = materials.config, folder_of(materials, split)
    if reference_cache.complete(folder):
        return
    if reference_cache.imported(folder):
        raise InputError(f"{folder}: an import did not finish; run import_samples again")
    prompts = prompts_of(materials, split)
    key = streams.key("reference cache", config.references.seed, SPLITS.index(split))
    sample = _prompt_sampler(materials, prompts, key)
    write(materials, split, _provenance(materials, split), sample, materials.scorer(prompts))


def write(
    materials: Materials,
    split: str,
    provenance: reference_cache.Provenance,
    sample: Callable,
    score: Callable,
) -> None:
    """Write the missing shards of a split's cache, by `reference_cache.build`.

    The responses of `sample` get their log pi_ref here, by the forward pass.
    """
    prompts = prompts_of(materials, split)
    total = len(prompts.token_ids)
    log_probs = _log_probs(materials, prompts)
    folder, known = folder_of(materials, split), origins(materials.config)
    artifact = files.Artifact(folder, provenance._asdict(), known)
    with tqdm.tqdm(total=total, desc=f"references/{split}", unit="prompt") as bar:
        reference_cache.build(
            artifact,
            prompts,
            sample=lambda prompt_ids: log_probs(prompt_ids, sample(prompt_ids)),
            score=score,
            decode=lambda ids: materials.tokenizer.batch_decode(ids, skip_special_tokens=True),
            prompts_per_shard=materials.config.references.prompts_per_shard,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def _in_batches(
    materials: Materials, prompts: prompt_sets.PromptSet, function: Callable
) -> Callable[..., Responses]:
    """`function(ids, prompts, *arrays)` of prompt ids [b] in batches of one shape, joined.

    A batch is `references.batch_prompts`, or as many more as all devices have equal parts of.
    """
    config = materials.config
    width = prompt_width(config, materials, prompts.token_ids)
    size = sharding.rounded_up(config.references.batch_prompts, materials.checkpoint.params)

    def joined(prompt_ids: np.ndarray, *trees) -> Responses:
        parts = []
        for rows, count in batching.filled_batches(len(prompt_ids), size):
            chosen = np.asarray(prompt_ids)[rows]
            padded = batching.pad_prompts([prompts.token_ids[i] for i in chosen], width=width)
            batch = jax.tree.map(operator.itemgetter(rows), trees)
            part = log_probs.on_host(function(chosen, padded, *batch), materials.models.policy)
            parts.append(jax.tree.map(operator.itemgetter(slice(count)), part))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

    return joined


def _prompt_sampler(materials: Materials, prompts: prompt_sets.PromptSet, key) -> Callable:
    """prompt ids -> Responses [b, M, G]; a prompt's samples are its own."""

    def sample(prompt_ids: np.ndarray, padded: Prompts) -> Responses:
        return sampler.generate(
            materials.checkpoint.config,
            materials.checkpoint.params,
            padded,
            sampler.prompt_keys(key, prompt_ids),
            num_samples=materials.config.references.samples_per_prompt,
            sampling=materials.sampling,
        )

    return _in_batches(materials, prompts, sample)


def _log_probs(materials: Materials, prompts: prompt_sets.PromptSet) -> Callable:
    """(prompt ids, their responses) -> the responses with their log pi_ref."""

    def with_log_probs(prompt_ids: np.ndarray, padded: Prompts, responses: Responses) -> Responses:
        if not responses.lengths_bn.any():
            return responses  # rewards alone
        return scoring.with_log_probs(
            materials.checkpoint.config,
            materials.checkpoint.params,
            padded,
            responses,
            temperature=materials.sampling.temperature,
        )

    return _in_batches(materials, prompts, with_log_probs)
