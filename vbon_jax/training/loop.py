"""The loop: batches, updates, the budget, held-out evaluation, logs and checkpoints of one run.

Everything that is trained here is trained by it: policies by any method, and stages.
"""

import itertools
import operator
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import constants, identity
from vbon_jax.functional import streams
from vbon_jax.models import decoder
from vbon_jax.training import budget, checkpoints, logs, methods, optimizer, sharding, step
from vbon_jax.types import InputError, Params


def make_learner(config: ConfigDict, task: methods.Task) -> step.Learner:
    """The learner of a run, from its configuration."""
    method = methods.method(config.method)
    return step.Learner(
        objective=method.objective,
        model=task.model,
        constants=constants(config, method.constants),
        optimiser=constants(config, optimizer.KEYS),
        mesh=task.mesh,
        pmap=config.mesh.pmap,
    )


def initial_params(config: ConfigDict, task: methods.Task, network: Params) -> Params:
    """The parameters at step 0: the network, and a value head where the gradient needs one."""
    method = methods.method(config.method)
    params = {method.network: network}
    if method.by_gradient and config.gradient == "ppo":
        params["value"] = decoder.init_value_head(task.model)
    return params


def minibatches(batch, config: ConfigDict, at: int, mesh):
    """Shuffled parts of a step's rows, `epochs` times over, in an order of (seed, step)."""
    batch = jax.tree.map(np.asarray, batch)
    place = sharding.split_rows if config.mesh.pmap else sharding.shard_rows
    for epoch in range(config.train.epochs):
        generator = streams.generator("minibatches", config.seed, at, epoch)
        order = generator.permutation(len(jax.tree.leaves(batch)[0]))
        for part in np.split(order, config.train.minibatches):
            yield place(jax.tree.map(operator.itemgetter(part), batch), mesh)


def check_rows(config: ConfigDict, mesh) -> None:
    """Refuse a batch that does not divide into minibatches and devices."""
    train = config.train
    method = methods.method(config.method)
    if method.samples and train.batch_size % mesh.size:
        raise InputError(
            f"train.batch_size={train.batch_size} must be a multiple of the {mesh.size} devices"
        )
    rows = train.batch_size * method.prompt_rows(config)
    if rows % (train.minibatches * mesh.size):
        raise InputError(
            f"train.batch_size x samples is {rows} rows a step, which must be a multiple of "
            f"train.minibatches={train.minibatches} x {mesh.size} devices"
        )


def check_row(config: ConfigDict, row: dict, batch, folder: pathlib.Path, at: int) -> None:
    """Stop on a loss or gradient that is not finite, with the batch that gave it on disk.

    And stop at once where the metric that the best checkpoint is chosen by does not exist.
    """
    bad = [name for name in ("loss/total", "optimiser/gradient_norm") if not np.isfinite(row[name])]
    if bad:
        path = folder / f"bad_batch_{at:06d}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
        np.savez(path, **{jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves})
        raise InputError(
            f"{folder}: {bad[0]} is {row[bad[0]]} at step {at}, its batch is in {path.name}; try a "
            "smaller train.learning_rate"
        )
    metric = config.train.best_metric
    if not metric.startswith("eval/") and metric not in row:
        raise InputError(f"train.best_metric={metric!r}: choose one of {', '.join(sorted(row))}")


def run(config: ConfigDict, folder: pathlib.Path, task: methods.Task, network: Params,
        inputs: dict, *, evaluate=None, share=None) -> step.TrainState | None:  # fmt: skip
    """The loop: train from `network` as `config` says, in `folder`, from wherever it stopped.

    `inputs` are fingerprints of what the run reads besides the configuration. `evaluate(params)`
    gives metrics on held-out prompts, every `train.eval_every` steps and at the end. `share` is
    what the run's part of the reference cache cost, a `budget.CacheShare`; it counts as spent.
    Returns the last state, or None where the run was finished before.
    """
    train, method = config.train, methods.method(config.method)
    check_rows(config, task.mesh)
    resumes = any((folder / "checkpoints").glob("[0-9]*"))
    artifact = files.Artifact(folder, identity(config, keys=method.keys) | inputs)
    if not artifact.begin(resumes=resumes):
        return None
    files.write_json(folder / "config.json", config.to_dict())

    # ------------------------------------------------------------------ state, new or restored
    learner = make_learner(config, task)
    state = step.init_state(learner, initial_params(config, task, network), anchor=method.anchor)
    saved = checkpoints.Checkpoints(folder / "checkpoints", metric=train.best_metric)
    ledger = budget.Ledger(config, method, share)
    first = saved.latest() or 0
    if first:
        state, ledger.spent = saved.restore(state)
    written = logs.RunLog(folder, first_step=first, name="/".join(folder.parts[-2:]))
    compilations = logs.Compilations()
    done = ledger.progress(first)

    try:
        for at in itertools.count(first):
            if done >= 1:
                break
            started = time.perf_counter()

            # ---------------------------------------------------------- batch
            key = streams.key("step", config.seed, at)
            state, batch, row = method.batch(task, state, at, key)

            # ---------------------------------------------------------- updates
            rows, update = [], at * train.epochs * train.minibatches
            for number, part in enumerate(minibatches(batch, config, at, task.mesh)):
                rates = optimizer.rates(config, done, update=update + number)
                state, metrics = step.update(state, part, rates, learner=learner)
                rows.append(metrics)
            rows = jax.device_get(rows)
            row |= {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
            state = state._replace(step=state.step + 1)
            check_row(config, row, batch, folder, at)

            # ---------------------------------------------------------- budget
            if at == first:
                flops = step.flops(state, part, rates, learner=learner)
            ledger.add(row, train_flops=flops * len(rows))
            done = ledger.progress(at + 1)

            # ---------------------------------------------------------- evaluation
            due = train.eval_every and (at + 1) % train.eval_every == 0
            if evaluate and (due or done >= 1):
                row |= evaluate(state.params)

            # ---------------------------------------------------------- log, checkpoint
            seconds = time.perf_counter() - started
            ledger.spent["seconds"] += seconds
            timing = {"time/seconds": seconds, "time/compilations": compilations.count}
            written.write(at, row, timing, progress=done)
            if (at + 1) % train.checkpoint_every == 0 or done >= 1:
                saved.save(at + 1, state, dict(ledger.spent), row)
    finally:
        saved.close()
        written.close()
        compilations.close()
    ledger.write(folder, int(state.step))
    artifact.finish()
    return state


def restore(folder: pathlib.Path, *, which: str, task: methods.Task, network: Params) -> Params:
    """The trained network of a run, from its `last` or `best` checkpoint.

    Raises InputError where the run has no checkpoint yet.
    """
    config = task.config
    method = methods.method(config.method)
    learner = make_learner(config, task)
    like = step.init_state(learner, initial_params(config, task, network), anchor=method.anchor)
    saved = checkpoints.Checkpoints(folder / "checkpoints", metric=config.train.best_metric)
    try:
        at = saved.best() if which == "best" else saved.latest()
        if at is None:
            raise InputError(f"{folder} has no checkpoint yet; train it first")
        return saved.restore(like, at)[0].params[method.network]
    finally:
        saved.close()
