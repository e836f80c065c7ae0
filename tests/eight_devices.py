"""Run by test_parallel in a process with 8 host devices: steps on every layout, as JSON."""

import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets
from vbon_jax.evaluation import sampled_policy
from vbon_jax.models import decoder, sharding
from vbon_jax.sampling import sampler
from vbon_jax.training import loop, methods, optimizer, step
from vbon_jax.types import Responses, Sequences

LAYOUTS = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "mixed": (4, 2), "pmap": (8, 1)}
LAYOUTS["three"] = (3, 1)  # which divide neither the prompts of a step nor its rows
# vBoN, whose objective is kl_rl's too, on each; a second copy of the network and pairs of responses
# where parameters are split and where they are not.
METHODS = {
    "vbon": tuple(LAYOUTS),
    "kl_rl": ("one",),
    "j_bond": ("one", "mixed", "pmap"),
    "bonbon_calibrated": ("one", "mixed", "pmap"),
}
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
    tokens = rng.integers(1, 40, (20, 16, 8)).astype(np.int32)
    log_probs = ((3 * log_probs - 20) / 8)[..., None].repeat(8, axis=-1)
    cache = Responses(tokens, lengths, lengths < 8, log_probs, rewards)
    return methods.Task(
        config=config,
        model=MODEL,
        mesh=mesh,
        prompts=prompt_sets.PromptSet(ids, [""] * len(ids)),
        prompt_width=8,
        reference_params=sharding.place(params, mesh),
        cache=cache,
        score=lambda prompts, responses: np.asarray(
            [np.mean([t % 7 for t in r]) - 3.0 for r in responses], np.float32
        ),
        sampling=sampler.Sampling(max_new_tokens=8, eos_token_ids=(0, 5, 11)),
    )


def one_step(method: str, layout: str) -> dict:
    """A batch and its updates on one layout; "pmap" has the parameters on all eight devices."""
    data, fsdp = LAYOUTS[layout]
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    config = configuration(method)
    config.mesh.pmap = layout == "pmap"
    task = make_task(config, mesh)
    learner = loop.make_learner(config, task)
    network = decoder.init(MODEL, jax.random.key(2))  # not the reference: the KL is not zero
    row = methods.method(method)
    params = loop.initial_params(config, task, network)
    state = step.init_state(learner, params, anchor=row.anchor)
    state, batch, metrics = row.batch(task, state, 0, jax.random.key(3))
    updates, rates = [], optimizer.rates(config, 0.0, update=0, value_head=True)
    for part in loop.minibatches(batch, config, 0, mesh):
        state, losses = step.update(state, part, rates, learner=learner)
        updates.append({name: float(value) for name, value in losses.items()})
    sequences = [part for part in batch if hasattr(part, "prompt_lengths_s")]
    lengths = np.concatenate([part.lengths_s - part.prompt_lengths_s for part in sequences])
    names = optimizer.parameter_names(state.params)
    leaves = jax.tree.leaves(state.params)
    return {
        "flops": step.update_flops(learner, state.params, batch, updates=2),
        "row": metrics,
        "updates": updates,
        "params": {
            name: np.asarray(leaf).ravel()[:50].tolist()
            for name, leaf in zip(names, leaves, strict=True)
        },
        "lengths": np.asarray(lengths).tolist(),
        "split": sorted({str(leaf.sharding.spec) for leaf in leaves}),
        "moments_split": sorted(
            {str(leaf.sharding.spec) for leaf in jax.tree.leaves(state.optimiser)}
        ),
    }


def evaluation(layout: str) -> dict:
    """Responses of a policy to five prompts, and what a device does to measure a batch of them."""
    data, fsdp = LAYOUTS[layout]
    mesh = sharding.make_mesh(data=data, fsdp=fsdp)
    params, reference = (
        sharding.place(decoder.init(MODEL, jax.random.key(seed)), mesh) for seed in (2, 1)
    )
    sampling = sampler.Sampling(max_new_tokens=8, eos_token_ids=(0, 5, 11))
    measured = sampled_policy.collect(
        MODEL,
        params,
        reference,
        [(1, 2), (3,), (4, 5, 6), (7, 8), (9,)],
        lambda places, responses: np.asarray([len(ids) for ids in responses], np.float32),
        sampled_policy.Options(4, sampling, 1.0, batch_prompts=2),
        key=jax.random.key(4),
    )
    rows = np.full(32, 16, np.int32)
    program = sampled_policy._score.lower(
        MODEL, (params, reference), Sequences(np.ones((32, 16), np.int32), rows - 8, rows),
        np.ones(2, np.float32), new_tokens=8, greedy=False,
    )  # fmt: skip
    return {
        "tokens": measured.responses.tokens_bng.tolist(),
        "kl": measured.kl_bn.tolist(),
        "rewards": measured.responses.rewards_bn.tolist(),
        "flops": program.compile().cost_analysis()["flops"],
    }


def run_of_two_steps(folder: pathlib.Path, *, pmap: bool) -> list[dict]:
    """The metrics of a whole run of `loop.run` on all devices, and its training FLOPs."""
    config = configuration("vbon")
    config.mesh.pmap, config.train.steps, config.train.checkpoint_every = pmap, 2, 1
    task = make_task(config, sharding.config_mesh(config))
    network = decoder.init(MODEL, jax.random.key(2))
    state = loop.run(config, folder, task, network, {})
    assert int(state.step) == 2
    spent = {"train_flops": files.read_json(folder / "ledger.json")["train_flops"]}
    return [row | spent for row in files.read_jsonl(folder / "metrics.jsonl")]


if __name__ == "__main__":
    assert len(jax.devices()) == 8, jnp.zeros(()).devices()
    results = {
        method: {layout: one_step(method, layout) for layout in layouts}
        for method, layouts in METHODS.items()
    }
    results["evaluation"] = {
        layout: evaluation(layout) for layout in ("one", "data", "fsdp", "three")
    }
    with tempfile.TemporaryDirectory() as folder:
        results["runs"] = {
            name: run_of_two_steps(pathlib.Path(folder, name), pmap=name == "pmap")
            for name in ("jit", "pmap")
        }
    json.dump(results, sys.stdout)
