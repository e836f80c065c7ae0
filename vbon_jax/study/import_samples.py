"""Samples that were made elsewhere, as the reference cache of a configuration.

`python -m experiments.import_samples --config FILE --workdir DIR --prompts PROMPTS.jsonl` writes
the prompts to sample for, as text and as token ids. With `--samples FILE` in place of `--prompts`
the cache is made of the file's responses (docs/data.md: the forms it may have), where `collect`
would have put it: `compare` and the others go on from there. `--split` says which of the two
caches, train or eval.

The samples must be those of the configured policy: its log-probabilities of them are computed
here. Their rewards must be the configured reward's, which scores a part of them again to see that;
with `--rescore` it scores all of them, and the file needs no rewards.
"""

import json
import logging
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tqdm

from vbon_jax.data import batching, prompt_sets
from vbon_jax.models.log_probs import response_log_probs
from vbon_jax.sampling import external_samples, reference_cache
from vbon_jax.study import caches
from vbon_jax.types import InputError, Prompts, Responses, Sequences

logger = logging.getLogger(__name__)


class Options(NamedTuple):
    """The flags of the same names."""

    samples: str
    rescore: bool = False
    cut: bool = False


def write_prompts(path: pathlib.Path, prompts: prompt_sets.PromptSet) -> None:
    """The prompts as JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    lines = [
        json.dumps({"prompt": text, "token_ids": ids}, ensure_ascii=False)
        for text, ids in zip(prompts.texts, prompts.token_ids, strict=True)
    ]
    temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def make_sampler(
    config, materials, prompts: prompt_sets.PromptSet, encoded: external_samples.Encoded
) -> Callable:
    """prompt ids [b] -> their Responses, with log-probabilities under the reference policy."""
    width = caches.prompt_width(config, materials, prompts.token_ids)
    room, size = config.sampling.max_new_tokens, config.train.batch_size

    def sample(prompt_ids: np.ndarray) -> Responses:
        batch = Responses(
            encoded.tokens_pmg[prompt_ids],
            encoded.lengths_pm[prompt_ids],
            encoded.finished_pm[prompt_ids],
            np.zeros(encoded.tokens_pmg[prompt_ids].shape, np.float32),
        )
        if not batch.lengths_bn.any():
            return batch  # rewards alone
        padded = batching.pad_prompts([prompts.token_ids[i] for i in prompt_ids], width=width)
        joined = batching.sequences(Prompts(*padded), batch, width + room)
        parts = []
        for rows, count in batching.filled_batches(len(joined.lengths_s), size):
            log_probs_sg, _, _ = response_log_probs(
                materials.checkpoint.config,
                materials.checkpoint.params,
                Sequences(*(array[rows] for array in joined)),
                new_tokens=room,
                temperature=config.sampling.temperature,
            )
            parts.append(np.asarray(log_probs_sg)[:count])
        log_probs_bng = np.concatenate(parts).reshape(batch.tokens_bng.shape)
        return batch._replace(log_probs_bng=log_probs_bng)

    return sample


def checked(
    config, materials, prompts: prompt_sets.PromptSet, split: str, options: Options
) -> external_samples.Encoded:
    """The samples of the file that the flags name, and what can be seen to be wrong is refused."""
    imported = external_samples.read(options.samples)
    encoded = external_samples.encode(
        imported,
        prompts,
        materials.tokenizer,
        samples_per_prompt=config.references.samples_per_prompt,
        new_tokens=config.sampling.max_new_tokens,
        eos_token_ids=materials.sampling.eos_token_ids,
        over_long=config.data.over_long,
        cut=options.cut,
    )
    texts = bool(encoded.lengths_pm.all())
    if split == "eval" and not texts:
        raise InputError(
            f"{imported.source}: there are no responses, which an evaluation shows and measures; "
            "import them for --split=eval"
        )
    if options.rescore and not texts:
        raise InputError(f"{imported.source}: there are no responses to score; leave --rescore out")
    if options.rescore:
        encoded = encoded._replace(rewards_pm=None)
    elif encoded.rewards_pm is None:
        raise InputError(f"{imported.source}: there are no rewards; score them with --rescore")
    elif texts:
        external_samples.check_rewards(encoded, materials.scorer(prompts), source=imported.source)
    logger.info(
        f"{len(imported.samples)} prompts in {imported.source}, {len(prompts.token_ids)} of them "
        f"asked for ({encoded.truncated} responses truncated, {encoded.dropped} dropped)"
    )
    return encoded


def import_cache(
    config, materials, workdir: pathlib.Path, split: str, options: Options
) -> reference_cache.References:
    """The cache of one split from the file that the flags name."""
    prompts = materials.train_prompts if split == "train" else materials.eval_prompts
    encoded = checked(config, materials, prompts, split, options)
    folder = workdir / "references" / split
    provenance = caches.provenance_of(config, materials, prompts, imported=encoded.fingerprint)
    with tqdm.tqdm(total=len(prompts.token_ids), desc=f"import/{split}", unit="prompt") as bar:
        reference_cache.build(
            folder,
            provenance,
            prompts,
            sample=make_sampler(config, materials, prompts, encoded),
            score=materials.scorer(prompts),
            decode=lambda ids: materials.tokenizer.batch_decode(ids, skip_special_tokens=True),
            prompts_per_shard=config.references.prompts_per_shard,
            progress=lambda done, total: bar.update(done - bar.n),
            rewards_pm=encoded.rewards_pm,
        )
    return reference_cache.load(folder, provenance)
