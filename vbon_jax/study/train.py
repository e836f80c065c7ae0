"""Train the runs of a study: what each trains from, and the loop on it.

A run is resumed by the same call; a finished one is left as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from vbon_jax import files
from vbon_jax.data import batching, response_ids, reward_inputs, sft_rows, sources
from vbon_jax.models import decoder, lora, sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import caches, evaluate, materials, plan
from vbon_jax.study.materials import Materials
from vbon_jax.study.plan import Run
from vbon_jax.study.stages import ModelPaths
from vbon_jax.training import budget, loop, methods, optimizer
from vbon_jax.types import InputError, Params


class Inputs(NamedTuple):
    """The inputs of a run's training."""

    task: methods.Task
    network: Params
    fingerprints: dict[str, Any]  # of all that the run reads besides its configuration
    evaluate: Callable | None = None  # params -> metrics, for curves and for choosing
    share: budget.CacheShare | None = None  # of the reference cache


def check_trainable(runs: list[Run], shared: Materials) -> None:
    """Refuse a `train.trainable` that fits no parameter of a run, before anything is computed."""
    for run in runs:
        params = {run.method.network: shared.checkpoint.params}
        if run.method.has_value_head(run.config):
            params["value"] = decoder.init_value_head(shared.checkpoint.config)
        optimizer.trainable_mask(params, run.config.train.trainable)


def train(run: Run, inputs: Inputs) -> None:
    """Train a run, from wherever it stopped."""
    plan.record(run).write(run.folder)
    loop.run(
        run.config,
        run.folder,
        inputs.task,
        inputs.network,
        inputs.fingerprints,
        evaluate=inputs.evaluate,
        share=inputs.share,
    )


def check_finished(run: Run, inputs: Inputs | None = None) -> None:
    """Refuse a run that is not trained to its end, or, given its inputs, that is of others."""
    record = files.recorded(run.folder)
    left = record is None or not record["finished"]
    if inputs and not left:
        left = loop.artifact(run.config, run.folder, inputs.fingerprints).is_left()
    if left:
        raise InputError(
            f"{run.folder} is not trained to its end; run experiments.train (or compare) with the "
            "same configuration first"
        )


def policy_inputs(run: Run, shared: Materials) -> Inputs:
    """Prompts and the reward, and where the method reads them given pairs or the reference cache.

    The caches are built before (`caches.build`).
    """
    config, method = run.config, run.method
    fingerprints = {
        "policy fingerprint": shared.policy_fingerprint,
        "reward fingerprint": shared.reward.fingerprint,
        "prompts fingerprint": shared.reward.prompts_fingerprint(shared.train_prompts),
    }
    pairs = cache = share = cached = None
    if config.pairs.path and method.pairs:
        pairs = materials.given_pairs(config, shared)
        fingerprints["pairs fingerprint"] = files.digest(repr(pairs))
    elif method.needs_cache(config):
        whole = caches.load(shared, "train")
        cached = whole.responses
        fingerprints |= whole.provenance.inputs()
        count = budget.samples_of_cache(config, method, cached)
        cache = batching.first(cached, count)
        share = budget.cache_share(cached, count, seconds=whole.seconds)
    mesh = sharding.config_mesh(config)
    prompt_ids = shared.train_prompts.token_ids if pairs is None else pairs.prompt_ids
    task = methods.Task(
        config=config,
        model=shared.checkpoint.config,
        mesh=mesh,
        prompts=shared.train_prompts,
        prompt_width=caches.prompt_width(config, shared, prompt_ids),
        reference_params=shared.checkpoint.params,
        cache=cache,
        pairs=pairs,
        score=shared.scorer(shared.train_prompts, cached),
        sampling=shared.sampling,
    )
    measure = None
    if config.train.eval_every:
        measure, inputs = evaluate.selection(shared)
        fingerprints |= inputs
    network = lora.redrawn(shared.checkpoint.params, config.seed)
    return Inputs(task, network, fingerprints, measure, share)


def text_inputs(run: Run, models: ModelPaths, tables: Mapping[str, sources.Table]) -> Inputs:
    """The inputs of a method that learns from text alone (`sft`, `reward_model`).

    `tables` are the rows of `config.data` by split.
    """
    config, path = run.config, getattr(models, run.method.model)
    checkpoint, tokenizer = materials.load_network(config, path, kind=run.method.network)
    if config.train.text_tokens > checkpoint.config.max_positions:
        raise InputError(
            f"train.text_tokens={config.train.text_tokens}, but {path} takes "
            f"{checkpoint.config.max_positions} positions; give at most that"
        )
    ends = response_ids.response_ends(checkpoint, tokenizer, path)
    labels = checkpoint.config.labels
    rows = sft_rows.build(config, tables["train"], tokenizer, ends, labels)
    mesh = sharding.config_mesh(config)
    task = methods.Task(config=config, model=checkpoint.config, mesh=mesh, rows=rows)
    fingerprints = {
        "fingerprint": model_folder.fingerprint(path),
        "rows fingerprint": files.digest(*(np.asarray(array).tobytes() for array in rows)),
    }
    reading = sft_rows.reading(config, tables["train"], tokenizer, labels)
    if reading is not None:
        fingerprints[reward_inputs.TAUGHT] = reading._asdict()
    return Inputs(task, checkpoint.params, fingerprints)
