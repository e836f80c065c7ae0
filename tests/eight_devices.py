"""Run by test_parallel in a process with 8 host devices: steps on every layout, as JSON."""

import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np

from tests.training import tiny_task
from vbon_jax import files
from vbon_jax.models import decoder
from vbon_jax.training import loop, methods, optimizer, sharding, step

LAYOUTS = {"one": (1, 1), "data": (8, 1), "fsdp": (1, 8), "mixed": (4, 2), "pmap": (8, 1)}
# vBoN, whose batch and objective are kl_rl's too, on each; a second copy of the network and pairs
# of responses where parameters are split and where they are not.
METHODS = {
    "vbon": tuple(LAYOUTS),
    "j_bond": ("one", "mixed", "pmap"),
    "bonbon_calibrated": ("one", "mixed", "pmap"),
}
MODEL = decoder.DecoderConfig(
    vocab_size=40, width=16, num_layers=1, num_heads=2, mlp_width=32, max_positions=24,
    initializer_std=0.4,
)  # fmt: skip


def make_task(method: str, mesh, *, pmap: bool) -> methods.Task:
    """The tiny task on a mesh, with a row for every device in each minibatch."""
    task = tiny_task.make_task(method, **CHANGES)
    task.config.mesh.pmap = pmap
    return task._replace(mesh=mesh, reference_params=sharding.place(task.reference_params, mesh))


def one_step(method: str, layout: str) -> dict:
    """A batch and its updates on one layout; "pmap" has the parameters on all eight devices."""
    data, fsdp = LAYOUTS[layout]
    mesh = sharding.make_mesh(data=data, fsdp=fsdp, devices=jax.devices()[: data * fsdp])
    task = make_task(method, mesh, pmap=layout == "pmap")
    config, row = task.config, methods.method(method)
    learner, state = tiny_task.start(task, seed=2)  # not the reference: the KL is not zero
    state, batch, metrics = row.batch(task, state, 0, jax.random.key(3))
    updates, rates = [], optimizer.rates(config, 0.0, update=0)
    for part in loop.minibatches(batch, config, 0, mesh):
        state, losses = step.update(state, part, rates, learner=learner)
        updates.append({name: float(value) for name, value in losses.items()})
    rows = [part for part in batch if hasattr(part, "prompt_lengths_s")]
    lengths = np.concatenate([part.lengths_s - part.prompt_lengths_s for part in rows])
    names = optimizer.parameter_names(state.params)
    leaves = jax.tree.leaves(state.params)
    return {
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


def run_of_two_steps(folder: pathlib.Path, *, pmap: bool) -> list[dict]:
    """The metrics of a whole run of `loop.run` on all devices."""
    task = make_task("vbon", sharding.make_mesh(data=8, fsdp=1), pmap=pmap)
    network = decoder.init(task.model, jax.random.key(2))
    state = loop.run(task.config, folder, task, network, {})
    assert int(state.step) == 2
    return files.read_jsonl(folder / "metrics.jsonl")


if __name__ == "__main__":
    assert len(jax.devices()) == 8, jnp.zeros(()).devices()
    results = {
        method: {layout: one_step(method, layout) for layout in layouts}
        for method, layouts in METHODS.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        results["runs"] = {
            name: run_of_two_steps(pathlib.Path(folder, name), pmap=name == "pmap")
            for name in ("jit", "pmap")
        }
    json.dump(results, sys.stdout)
