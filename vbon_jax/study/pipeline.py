"""From a configuration to what a run works on: checkpoints, prompts, reward, caches.

Everything that is missing is built, in the working directory, and used again when it stands.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax.data import batching, formats, prompt_sets, sft_rows, sources
from vbon_jax.evaluation import measures, sampled_policy
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards, sampler
from vbon_jax.study import caches, plan, preflight, stages
from vbon_jax.training import budget, loop, methods, sharding
from vbon_jax.types import InputError, Params, Responses
from vbon_jax.workdir import results, run

logger = logging.getLogger(__name__)


class Materials(NamedTuple):
    """What every stage of one working directory shares."""

    policy_path: str
    policy_fingerprint: str
    checkpoint: model_folder.Checkpoint  # the reference policy
    tokenizer: Any
    reward: rewards.Reward
    train_prompts: prompt_sets.PromptSet
    eval_prompts: prompt_sets.PromptSet
    sampling: sampler.Sampling
    judge_paths: dict[str, str]

    def scorer(self, prompts: prompt_sets.PromptSet) -> Callable:
        """(places of prompts [S], response ids) -> float32 rewards [S]."""
        return functools.partial(rewards.score_responses, self.reward, self.tokenizer, prompts)


def prepare(config: ConfigDict, workdir: pathlib.Path) -> Materials:
    """Load the policy, the reward and the prompts; the stages of the configuration come first."""
    plan.check(config)
    preflight.check(config)
    paths = stages.make(config, workdir)
    checkpoint = model_folder.load(paths.policy, kind="decoder")
    model = dataclasses.replace(checkpoint.config, dtype=config.policy.dtype)
    model, params = loop.with_adapters(config, model, checkpoint.params, paths.policy)
    checkpoint = checkpoint._replace(config=model, params=params)
    tokenizer = model_folder.load_tokenizer(paths.policy)
    model_folder.check_vocabulary(tokenizer, model, paths.policy)
    sampling = make_sampling(
        config, model_folder.eos_token_ids(checkpoint, tokenizer, paths.policy)
    )
    train_prompts, eval_prompts = _prompts(config, tokenizer, model)
    reward = rewards.load(config.reward, paths.reward)
    for prompts in (train_prompts, eval_prompts):
        _try(reward, prompts, response_alone=config.reward.text == "response")
    return Materials(
        policy_path=paths.policy,
        policy_fingerprint=model_folder.fingerprint(paths.policy),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        reward=reward,
        train_prompts=train_prompts,
        eval_prompts=eval_prompts,
        sampling=sampling,
        judge_paths=paths.judges,
    )


def _try(reward: rewards.Reward, prompts: prompt_sets.PromptSet, *, response_alone: bool) -> None:
    """Score the longest prompts, so that what is broken in a reward is found before sampling."""
    longest = sorted(range(len(prompts.texts)), key=lambda place: len(prompts.texts[place]))[-2:]
    texts = [prompts.texts[place] for place in longest]
    # A response is empty, so that a prompt alone fits; one that is read alone is a short text.
    responses = [min(prompts.texts, key=len) if response_alone else ""] * len(longest)
    columns = {
        name: [values[place] for place in longest] for name, values in prompts.columns.items()
    }
    reward.score(texts, responses, columns)


def make_sampling(config: ConfigDict, eos_token_ids: tuple[int, ...]) -> sampler.Sampling:
    """How responses are drawn."""
    try:
        return sampler.Sampling(
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            eos_token_ids=eos_token_ids,
        )
    except ValueError as error:
        raise InputError(f"config.sampling: {error}") from error


def _prompts(config, tokenizer, model) -> tuple[prompt_sets.PromptSet, prompt_sets.PromptSet]:
    """Training prompts, and held-out ones of which none is a training prompt."""
    longest = model.max_positions - config.sampling.max_new_tokens
    if longest < 1:
        raise InputError(
            f"sampling.max_new_tokens={config.sampling.max_new_tokens} leaves no room for a prompt "
            f"in the policy's {model.max_positions} positions; give fewer new tokens"
        )
    longest = min(longest, config.data.longest_prompt or longest)
    return prompt_sets.train_and_eval(config, tokenizer, longest)


def make_task(
    config: ConfigDict,
    materials: Materials,
    cache: Responses | None,
    *,
    pairs: prompt_sets.PairSet | None = None,
) -> methods.Task:
    """What a run works on; the cache and the pairs where its method reads them."""
    mesh = sharding.config_mesh(config)
    prompt_ids = materials.train_prompts.token_ids if pairs is None else pairs.prompt_ids
    return methods.Task(
        config=config,
        model=materials.checkpoint.config,
        mesh=mesh,
        prompts=materials.train_prompts,
        prompt_width=caches.prompt_width(config, materials, prompt_ids),
        reference_params=sharding.place(materials.checkpoint.params, mesh),
        cache=cache,
        pairs=pairs,
        score=materials.scorer(materials.train_prompts),
        sampling=materials.sampling,
    )


def given_pairs(config: ConfigDict, materials: Materials) -> prompt_sets.PairSet:
    """The preference pairs of `pairs.path`."""
    given = formats.read_pairs(config.pairs, materials.tokenizer)
    if not materials.sampling.eos_token_ids:
        raise InputError(
            f"{materials.policy_path}: no EOS token, which every given response ends with"
        )
    pairs = prompt_sets.build_pairs(
        given,
        materials.tokenizer,
        eos_token_ids=materials.sampling.eos_token_ids,
        new_tokens=config.sampling.max_new_tokens,
        longest=materials.checkpoint.config.max_positions - config.sampling.max_new_tokens,
        over_long=config.data.over_long,
    )
    logger.info(
        f"{len(pairs.prompt_ids)} pairs in {given.source} ({pairs.tied} with equal responses left "
        f"out, {given.empty} with an empty one, {pairs.truncated} truncated, {pairs.dropped} "
        "dropped)"
    )
    return pairs


def check_budgets(config: ConfigDict, workdir: pathlib.Path, materials: Materials) -> None:
    """Refuse, before a cell is trained, any whose part of the reference cache has no meaning."""
    reading = [
        (changed, method)
        for changed in (plan.config_of(config, cell) for cell in plan.every(config))
        if (method := methods.method(changed.method)).needs_cache(changed)
    ]
    if not reading:
        return
    cache = caches.responses(caches.reference_cache(config, materials, workdir, "train"))
    for changed, method in reading:
        limit = changed.budget.sampled_tokens
        count = budget.samples_of_cache(changed, method, cache)
        spent = budget.cache_share(cache, count, seconds=0.0).sampled_tokens
        if spent < 0.9 * limit and not method.samples:
            logger.info(
                f"{changed.method} at n={changed.n:g} spends {spent} of budget.sampled_tokens="
                f"{limit}: the cache holds no more; raise references.samples_per_prompt"
            )


def run_cell(
    config: ConfigDict, workdir: pathlib.Path, cell: dict, materials: Materials
) -> pathlib.Path:
    """Train one cell of a comparison, or go on with it; returns the folder of its run."""
    config = plan.config_of(config, cell)
    config.policy.path = _absolute(materials.policy_path)  # export finds it there
    folder = workdir / "runs" / plan.run_name(cell)
    run.write(folder, plan.record(config, cell))
    method = methods.method(config.method)
    inputs = {
        "policy fingerprint": materials.policy_fingerprint,
        "reward fingerprint": materials.reward.fingerprint,
        "prompts fingerprint": prompt_sets.fingerprint(
            materials.train_prompts, materials.reward.columns
        ),
    }
    cache = pairs = share = None
    if config.pairs.path and method.pairs:
        pairs = given_pairs(config, materials)
        inputs["pairs fingerprint"] = hashlib.sha256(repr(pairs).encode()).hexdigest()
    elif method.needs_cache(config):
        whole = caches.reference_cache(config, materials, workdir, "train")
        inputs |= {f"references {k}": v for k, v in whole.provenance._asdict().items()}
        everything = caches.responses(whole, tokens=method.cache == "responses")
        count = budget.samples_of_cache(config, method, everything)
        cache = batching.first(everything, count)
        share = budget.cache_share(everything, count, seconds=caches.seconds(workdir, "train"))
    task = make_task(config, materials, cache, pairs=pairs)
    evaluate = held_out(config, materials, workdir) if config.train.eval_every else None
    network = materials.checkpoint.params
    loop.run(config, folder, task, network, inputs, evaluate=evaluate, share=share)
    return folder


def run_text_method(config: ConfigDict, workdir: pathlib.Path) -> pathlib.Path:
    """Train a text method (`sft`, `reward_model`) from the folder that the configuration names."""
    plan.check(config)
    preflight.check_text_method(config)
    paths = stages.make(config, workdir)
    config = plan.config_of(config, plan.single(config))
    method = methods.method(config.method)
    path = paths.policy if method.network == "decoder" else paths.reward
    checkpoint, tokenizer = (
        model_folder.load(path, kind=method.network),
        model_folder.load_tokenizer(path),
    )
    model_folder.check_vocabulary(tokenizer, checkpoint.config, path)
    if config.train.text_tokens > checkpoint.config.max_positions:
        raise InputError(
            f"train.text_tokens={config.train.text_tokens}, but {path} takes "
            f"{checkpoint.config.max_positions} positions; give at most that"
        )
    eos = model_folder.eos_token_ids(checkpoint, tokenizer, path)
    model, params = loop.with_adapters(config, checkpoint.config, checkpoint.params, path)
    table = sources.read_split(config.data, "train")
    task = methods.Task(
        config=config,
        model=model,
        mesh=sharding.config_mesh(config),
        rows=sft_rows.build(config, table, tokenizer, eos),
    )
    config.policy.path = _absolute(path)
    record = plan.record(config, plan.single(config))
    folder = workdir / "runs" / record.name
    run.write(folder, record)
    digest = hashlib.sha256()
    for array in task.rows:
        digest.update(np.ascontiguousarray(array).tobytes())
    inputs = {"fingerprint": model_folder.fingerprint(path), "rows fingerprint": digest.hexdigest()}
    loop.run(config, folder, task, params, inputs)
    return folder


def sentence(row: dict) -> str:
    """A row of the results in one line for a terminal."""
    name = results.RULERS.get(row["method"], "").format(row["n"]) or row["run"]
    text = (
        f"{name:28s} KL {row['kl']:.3f}  win rate {row['win_rate']:.3f} "
        f"[{row['win_rate_lo']:.3f}, {row['win_rate_hi']:.3f}]  reward {row['reward']:.3f}"
    )
    if row["deficit"] is None:
        return text
    return text + (
        f"  deficit to Best-of-N {row['deficit']:+.3f} "
        f"[{row['deficit_lo']:+.3f}, {row['deficit_hi']:+.3f}]"
    )


def _absolute(path: str) -> str:
    """A folder's path from anywhere; a hub name stays itself."""
    return str(pathlib.Path(path).resolve()) if pathlib.Path(path).exists() else path


def held_out(config: ConfigDict, materials: Materials, workdir: pathlib.Path) -> Callable:
    """params -> metrics on the first held-out prompts, for the curves of a run."""
    cache = caches.reference_cache(config, materials, workdir, "eval")
    count = config.train.eval_prompts

    def evaluate(params) -> dict[str, float]:
        responses = sample_policy(config, materials, params["decoder"], count=count)
        summary = measures.summarise(
            responses, cache.rewards_pm[:count], seed=config.evaluation.seed, resamples=100
        )
        return {
            f"eval/{name}{end}": getattr(summary[name], field)
            for name in ("reward", "win_rate", "kl", "deficit")
            for end, field in (("", "value"), ("_se", "se"))
        }

    return evaluate


def sample_policy(
    config: ConfigDict,
    materials: Materials,
    params: Params,
    *,
    count: int | None = None,
    temperature: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> sampled_policy.MeasuredResponses:
    """K responses of a policy to the first `count` held-out prompts, with rewards and KL."""
    sampling = materials.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    options = sampled_policy.Options(
        num_samples=config.evaluation.samples_per_prompt,
        sampling=sampling,
        reference_temperature=materials.sampling.temperature,
        batch_prompts=config.evaluation.batch_prompts,
    )
    return sampled_policy.collect(
        materials.checkpoint.config,
        params,
        materials.checkpoint.params,
        materials.eval_prompts.token_ids[:count],
        materials.scorer(materials.eval_prompts),
        options,
        key=jax.random.key(config.evaluation.seed),
        progress=progress,
    )
