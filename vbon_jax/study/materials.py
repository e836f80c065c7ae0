"""Loads what the runs of a study share: reference policy, prompts, reward, sampling.

Nothing is trained or sampled here; the folders of all models exist (`stages`).
"""

import dataclasses
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vbon_jax.data import formats, prompt_sets, response_ids
from vbon_jax.models import lora, sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.study.stages import ModelPaths
from vbon_jax.types import InputError, Responses

logger = logging.getLogger(__name__)


class Materials(NamedTuple):
    """The models, prompts, reward and sampling that all runs of a study share."""

    config: ConfigDict
    workdir: pathlib.Path
    models: ModelPaths
    policy_fingerprint: str
    checkpoint: model_folder.Checkpoint  # the reference policy, on the devices of `config.mesh`
    tokenizer: Any
    reward: rewards.Reward
    train_prompts: prompt_sets.PromptSet
    eval_prompts: prompt_sets.PromptSet
    selection_prompts: prompt_sets.PromptSet | None
    ends: response_ids.Ends  # of a response
    sampling: sampler.Sampling

    def scorer(
        self, prompts: prompt_sets.PromptSet, cached: Responses | None = None,
        reward: rewards.Reward | None = None,
    ) -> Callable:  # fmt: skip
        """`rewards.make_scorer` of responses to some prompts, by the study's reward or another."""
        eos_token_ids = self.sampling.eos_token_ids
        return rewards.make_scorer(
            reward or self.reward, self.tokenizer, prompts, eos_token_ids, cached
        )


def load(
    config: ConfigDict,
    workdir: pathlib.Path,
    models: ModelPaths,
    rows: prompt_sets.Rows,
) -> Materials:
    """Load the reference policy and the reward, and make the prompts of `check.check`'s rows."""
    checkpoint, tokenizer = load_network(config, models.policy, kind="decoder")
    model = dataclasses.replace(checkpoint.config, dtype=config.policy.dtype)
    params = sharding.place(checkpoint.params, sharding.config_mesh(config))
    checkpoint = checkpoint._replace(config=model, params=params)
    ends = response_ids.response_ends(checkpoint, tokenizer, models.policy)
    sets = _prompts(config, rows, tokenizer, model)
    conversations = any(prompts.conversations for prompts in filter(None, sets))
    reward = rewards.load(config.reward, models.reward, conversations=conversations)
    for prompts in filter(None, sets):
        rewards.try_out(reward, prompts, config.reward)
    return Materials(
        config=config,
        workdir=workdir,
        models=models,
        policy_fingerprint=model_folder.fingerprint(models.policy),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        reward=reward,
        train_prompts=sets.train,
        eval_prompts=sets.eval,
        selection_prompts=sets.selection,
        ends=ends,
        sampling=make_sampling(config, ends),
    )


def load_network(
    config: ConfigDict, path: str, *, kind: str
) -> tuple[model_folder.Checkpoint, Any]:
    """A model to train from, with adapters where `policy.lora` asks for them, and its tokenizer."""
    checkpoint, tokenizer = model_folder.load(path, kind=kind), model_folder.load_tokenizer(path)
    model, params = lora.with_adapters(config, checkpoint.config, checkpoint.params, path)
    return checkpoint._replace(config=model, params=params), tokenizer


def make_sampling(config: ConfigDict, ends: response_ids.Ends) -> sampler.Sampling:
    """How responses are drawn."""
    return sampler.Sampling(
        max_new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        eos_token_ids=ends.ids,
    )


def _prompts(config, rows: prompt_sets.Rows, tokenizer, model) -> prompt_sets.PromptSets:
    """The prompts that fit the policy beside their new tokens."""
    longest = model.max_positions - config.sampling.max_new_tokens
    if longest < 1:
        raise InputError(
            f"sampling.max_new_tokens={config.sampling.max_new_tokens} leaves no room for a prompt "
            f"in the policy's {model.max_positions} positions; give fewer new tokens"
        )
    longest = min(longest, config.data.longest_prompt or longest)
    return prompt_sets.make_sets(config, rows, tokenizer, longest)


def given_pairs(config: ConfigDict, materials: Materials) -> prompt_sets.PairSet:
    """The preference pairs of `pairs.path`."""
    given = formats.read_pairs(config.pairs, materials.tokenizer)
    if not materials.ends.ids:
        raise InputError(
            f"{materials.models.policy}: no EOS token, which every given response ends with"
        )
    pairs = prompt_sets.build_pairs(
        given,
        materials.tokenizer,
        ends=materials.ends,
        new_tokens=config.sampling.max_new_tokens,
        longest=materials.checkpoint.config.max_positions - config.sampling.max_new_tokens,
        over_long=config.data.over_long,
    )
    logger.info(
        f"{len(pairs.prompt_ids)} pairs in {given.source} ({pairs.tied} with equal responses left "
        f"out, {given.empty} with an empty one, {given.turns} with further turns, "
        f"{pairs.truncated} truncated, {pairs.dropped} dropped)"
    )
    return pairs
