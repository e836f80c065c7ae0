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
from vbon_jax.training.task import Method
from vbon_jax.types import InputError

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


# The part of a budget of sampled tokens that goes into the reference cache of a method that samples
# too: one that draws responses from it, and one that only ranks its own by its rewards. On the
# demo, N = 4 and 16, three seeds, a vBoN that gave 1/16, 1/8, 1/4 and 1/2 of one budget to its
# cache had an efficiency (docs/methods.md) of 0.58, 0.56, 0.52, 0.43 and 0.41, 0.41, 0.40, 0.31.
PARTS = {"draws": 1 / 2, "ranks": 1 / 8}


def seconds(workdir: pathlib.Path, split: str) -> float:
    """How long the cache of a split took to build; 0 for one that was not built here."""
    path = workdir / "references" / split / SECONDS_FILE
    return json.loads(path.read_text()) if path.exists() else 0.0


def used(config: ConfigDict, method: Method, cache: references.References) -> int:
    """How many of a prompt's M cached responses a run reads: the first ones.

    `references.used`, or with a budget of sampled tokens as many as a part of it pays for (PARTS);
    otherwise all. Raises InputError where that is too few.
    """
    m = cache.rewards_pm.shape[1]
    asked, budget = config.references.used, config.budget.sampled_tokens
    if asked > m:
        raise InputError(
            f"references.used={asked}, but the cache has references.samples_per_prompt={m}; "
            "give at most that, or 0 for all"
        )
    count = asked or m
    least = max(2, int(config.n) if method.draws_best else 2)
    if budget and not asked:
        part = PARTS["draws" if method.draws_best else "ranks"] if method.on_policy else 1.0
        tokens_m = cache.lengths_pm.sum(axis=0, dtype=np.int64).cumsum()
        count = min(m, max(least, int((tokens_m <= part * budget).sum())))
    spent = int(cache.lengths_pm[:, :count].sum(dtype=np.int64))
    if (budget or method.reads == "responses") and not cache.has_responses:
        raise InputError(
            f"the imported reference cache has rewards without responses, which {config.method} "
            "and a budget of sampled tokens need; import responses as well, or train a method that "
            "reads rewards alone, train.steps long"
        )
    if not budget and count < least:
        raise InputError(
            f"references.used={asked}: {config.method} at n={config.n:g} needs {least} cached "
            "responses to each prompt; give at least that"
        )
    if budget and (count < least or spent > budget):
        raise InputError(
            f"budget.sampled_tokens={budget}: {config.method} at n={config.n:g} needs {least} "
            f"cached responses to each of {len(cache.rewards_pm)} prompts, and reads {count}, "
            f"{spent} tokens; give a larger budget, fewer prompts (data.train_limit) or a smaller "
            "references.used"
        )
    if budget and method.on_policy and spent >= budget:
        raise InputError(
            f"budget.sampled_tokens={budget}: the {spent} tokens of the reference cache leave "
            f"nothing for {config.method} to sample; give a larger budget or references.used"
        )
    return count


def first(cache: references.References, count: int) -> references.References:
    """The cache as if it had `count` samples a prompt; its files hold more, so it has no texts."""
    return cache._replace(
        rewards_pm=cache.rewards_pm[:, :count],
        lengths_pm=cache.lengths_pm[:, :count],
        finished_pm=cache.finished_pm[:, :count],
        log_probs_pm=cache.log_probs_pm[:, :count],
        files=(),
    )


def share(
    config: ConfigDict, cache: references.References, steps: int, *, of_samples: int, seconds: float
) -> dict[str, float]:
    """What a run of `steps` used of a cache: of its prompts those that it drew, under a budget all.

    `of_samples` is how many a prompt the cache was built with, in `seconds`.
    """
    prompts, count = cache.rewards_pm.shape
    drawn = min(1.0, steps * config.train.batch_size / prompts)
    if config.budget.sampled_tokens or config.budget.train_flops:
        drawn = 1.0
    return {
        "sampled_tokens": round(drawn * cache.sampled_tokens),
        "reward_calls": round(drawn * cache.rewards_pm.size),
        "seconds": drawn * seconds * count / of_samples,
    }
