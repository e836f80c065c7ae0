"""The reference caches of a working directory: built where they are missing, and what they cost."""

import json
import pathlib
import time
from collections.abc import Callable

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.data import batching, prompt_sets
from vbon_jax.sampling import reference_cache as references
from vbon_jax.sampling import sampler
from vbon_jax.types import InputError, Responses

SECONDS_FILE = "seconds.json"  # beside the shards: how long they took to build


def prompt_width(config: ConfigDict, materials, prompt_ids: list) -> int:
    """P: one padded width for a whole set of prompts, so that each program is compiled once.

    With the new tokens behind it, it stays within the positions of the policy.
    """
    room = materials.checkpoint.config.max_positions - config.sampling.max_new_tokens
    return min(batching.bucket_length(max(map(len, prompt_ids))), room)


def provenance_of(
    config: ConfigDict, materials, prompts: prompt_sets.PromptSet, *, imported: str | None = None
) -> references.Provenance:
    """What the configuration's cache of these prompts is samples of."""
    return references.Provenance(
        policy=materials.policy_fingerprint,
        reward=materials.reward.fingerprint,
        prompts=prompt_sets.fingerprint(prompts, materials.reward.columns),
        samples_per_prompt=config.references.samples_per_prompt,
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        top_k=materials.sampling.top_k,
        top_p=materials.sampling.top_p,
        seed=config.references.seed,
        imported=imported,
    )


def reference_cache(
    config: ConfigDict, materials, workdir: pathlib.Path, split: str
) -> references.References:
    """The cache of M reference samples a prompt, built or completed where it is missing.

    One that was imported is read as it is, if it is whole.
    """
    prompts = materials.train_prompts if split == "train" else materials.eval_prompts
    folder = workdir / "references" / split
    imported = references.imported(folder)
    provenance = provenance_of(config, materials, prompts, imported=imported)
    if imported and not references.complete(folder):
        raise InputError(f"{folder}: an import did not finish; run import_samples again")
    if not references.complete(folder):
        key = jax.random.fold_in(jax.random.key(config.references.seed), split == "eval")
        sample = _prompt_sampler(config, materials, prompts, key)
        with tqdm.tqdm(
            total=len(prompts.token_ids), desc=f"references/{split}", unit="prompt"
        ) as bar:
            clock = _Clock(folder)

            def progress(done: int, total: int) -> None:
                bar.update(done - bar.n)
                clock.tick()

            references.build(
                folder,
                provenance,
                prompts,
                sample=sample,
                score=materials.scorer(prompts),
                decode=lambda ids: materials.tokenizer.batch_decode(ids, skip_special_tokens=True),
                prompts_per_shard=config.references.prompts_per_shard,
                progress=progress,
            )
    return references.load(folder, provenance)


def _prompt_sampler(config, materials, prompts: prompt_sets.PromptSet, key) -> Callable:
    """indices -> Responses [b, M, G], in batches of one shape; a prompt's samples are its own."""
    width = prompt_width(config, materials, prompts.token_ids)
    size = config.references.batch_prompts

    def sample(indices: list[int]):
        parts = []
        for rows, _ in batching.filled_batches(len(indices), size):
            chosen = np.asarray(indices)[rows]
            samples = sampler.generate(
                materials.checkpoint.config,
                materials.checkpoint.params,
                batching.pad_prompts([prompts.token_ids[i] for i in chosen], width=width),
                sampler.prompt_keys(key, chosen),
                num_samples=config.references.samples_per_prompt,
                sampling=materials.sampling,
            )
            parts.append(jax.device_get(samples))
        return jax.tree.map(lambda *rows: np.concatenate(rows)[: len(indices)], *parts)

    return sample


class _Clock:
    """Adds up the seconds of a build, over as many calls as it takes."""

    def __init__(self, folder: pathlib.Path):
        self.path = folder / SECONDS_FILE
        self.before = json.loads(self.path.read_text()) if self.path.exists() else 0.0
        self.started = time.perf_counter()

    def tick(self) -> None:
        """Write down the seconds so far."""
        files.write_json(self.path, self.before + time.perf_counter() - self.started)


def seconds(workdir: pathlib.Path, split: str) -> float:
    """How long the cache of a split took to build; 0 for one that was not built here."""
    path = workdir / "references" / split / SECONDS_FILE
    return json.loads(path.read_text()) if path.exists() else 0.0


def responses(cache: references.References, *, tokens: bool = False) -> Responses:
    """A cache as `Responses` of all prompts, with their tokens where they are wanted."""
    return Responses(
        references.tokens(cache) if tokens else None,
        cache.lengths_pm,
        cache.finished_pm,
        cache.log_probs_pm[..., None],
        cache.rewards_pm,
    )
