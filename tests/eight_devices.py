"""Run by test_parallel in a process with 8 host devices: one step on every layout, as JSON."""

import dataclasses
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets
from vbon_jax.models import decoder
from vbon_jax.sampling import reference_cache, sampler
from vbon_jax.training import loop, methods, sharding, step

LAYOUTS = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "mixed": (4, 2)}
MODEL = decoder.DecoderConfig(
    vocab_size=40, width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=24,
    initializer_std=0.4,
)  # fmt: skip


def configuration(method: str):
    config = defaults()
    with config.unlocked():
        config.method, config.n = method, 4.0
        config.sampling.max_new_tokens = 8
        config.train.batch_size, config.train.samples_per_prompt = 8, 4
        config.train.epochs, config.train.minibatches = 1, 2
        # A key's bias has no gradient but rounding, which AdamW would blow up to full steps.
        config.train.epsilon = 1e-3
    return config


def make_task(config, mesh) -> methods.Task:
    rng = np.random.default_rng(0)
    ids = [tuple(rng.integers(1, 40, rng.integers(1, 7)).tolist()) for _ in range(20)]
    params = decoder.init(MODEL, jax.random.key(1))
    lengths = rng.integers(1, 9, (20, 16)).astype(np.int32)
    rewards, log_probs = rng.normal(size=(2, 20, 16)).astype(np.float32)
    cache = reference_cache.References(
        rewards, lengths, lengths < 8, 3 * log_probs - 20, None, (), 1
    )
    return methods.Task(
        config=config,
        model=MODEL,
        mesh=mesh,
        prompts=prompt_sets.PromptSet(ids, [""] * len(ids)),
        prompt_width=8,
        reference_params=sharding.place(params, mesh),
        cache=cache,
        cache_tokens_pmg=rng.integers(1, 40, (20, 16, 8)).astype(np.int32),
        score=lambda prompts, responses: np.asarray(
            [np.mean([t % 7 for t in r]) - 3.0 for r in responses], np.float32
        ),
        sampling=sampler.Sampling(max_new_tokens=8, eos_token_ids=(0, 5, 11)),
    )


def one_step(method: str, layout: str) -> dict:
    """A batch and its updates on one layout; then the same batch under pmap where it is "pmap"."""
    data_axis, fsdp = LAYOUTS["one" if layout == "pmap" else layout]
    devices = jax.devices()[: data_axis * fsdp]
    mesh = sharding.make_mesh(data=data_axis, fsdp=fsdp, devices=devices)
    config = configuration(method)
    task = make_task(config, mesh)
    learner = loop.make_learner(config, task)
    network = decoder.init(MODEL, jax.random.key(2))  # not the reference: the KL is not zero
    anchor = methods.method(method).anchor
    state = step.init_state(learner, loop.initial_params(config, task, network), anchor=anchor)
    state, batch, row = methods.method(method).make_batch(task, state, 0, jax.random.key(3))
    updates = []
    if layout == "pmap":
        run = sharding.pmap_step(step.train_step, learner=dataclasses.replace(learner, mesh=None))
        state = sharding.replicate(state)
        for part in loop.minibatches(batch, config, 0, mesh):
            state, metrics = run(state, sharding.split_rows(part), np.float32(1.0))
            updates.append({name: float(value[0]) for name, value in metrics.items()})
        params = jax.tree.map(lambda leaf: leaf[0], state.params)
    else:
        for part in loop.minibatches(batch, config, 0, mesh):
            state, metrics = step.update(state, part, np.float32(1.0), learner=learner)
            updates.append({name: float(value) for name, value in metrics.items()})
        params = state.params
    sequences = [part for part in batch if hasattr(part, "prompt_lengths_s")]
    lengths = np.concatenate([part.lengths_s - part.prompt_lengths_s for part in sequences])
    return {
        "row": row,
        "updates": updates,
        "params": {
            name: np.asarray(leaf).ravel()[:50].tolist()
            for name, leaf in zip(
                step.parameter_names(params), jax.tree.leaves(params), strict=True
            )
        },
        "lengths": np.asarray(lengths).tolist(),
        "split": sorted({str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.params)})
        if layout != "pmap"
        else [],
        "moments_split": sorted(
            {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.optimiser)}
        )
        if layout != "pmap"
        else [],
    }


if __name__ == "__main__":
    assert len(jax.devices()) == 8, jnp.zeros(()).devices()
    results = {
        method: {layout: one_step(method, layout) for layout in (*LAYOUTS, "pmap")}
        for method in ("vbon", "kl_rl", "j_bond", "bonbon_calibrated")
    }
    json.dump(results, sys.stdout)
