"""The loop: batches, updates, the budget, held-out evaluation, logs and checkpoints of one run.

Everything that is trained here is trained by it: policies by any method, and stages.
"""

import contextlib
import functools
import io
import itertools
import logging
import math
import operator
import pathlib
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax import files, interrupts
from vbon_jax.config import constants, identity, origins
from vbon_jax.functional import streams
from vbon_jax.models import decoder, sharding
from vbon_jax.training import budget, checkpoints, logs, methods, optimizer, step
from vbon_jax.types import InputError, Params

logger = logging.getLogger(__name__)


def make_learner(config: ConfigDict, task: methods.Task) -> step.Learner:
    """The learner of a run, from its configuration."""
    method = methods.method(config.method)
    return step.Learner(
        objective=method.objective,
        model=task.model,
        constants=constants(config, method.constants),
        optimiser=constants(config, optimizer.KEYS),
        fresh=("value", *task.fresh),
        mesh=task.mesh,
        pmap=config.mesh.pmap,
    )


def initial_params(config: ConfigDict, task: methods.Task, network: Params) -> Params:
    """The parameters at step 0: the network, and a value head where the gradient needs one."""
    method = methods.method(config.method)
    params = {method.network: network}
    if method.has_value_head(config):
        params["value"] = decoder.init_value_head(task.model)
    return params


def minibatches(batch, config: ConfigDict, at: int, mesh):
    """Shuffled parts of a step's rows, `epochs` times over, in an order of (seed, step)."""
    batch = jax.tree.map(np.asarray, batch)
    place = sharding.rows_by_device if config.mesh.pmap else sharding.shard_rows
    for epoch in range(config.train.epochs):
        generator = streams.generator("minibatches", config.seed, at, epoch)
        order = generator.permutation(len(jax.tree.leaves(batch)[0]))
        for part in np.split(order, config.train.minibatches):
            yield place(jax.tree.map(operator.itemgetter(part), batch), mesh)


def check_rows(config: ConfigDict, mesh) -> None:
    """Refuse a step's rows that do not divide into minibatches, nor under pmap over the devices."""
    train, method, devices = config.train, methods.method(config.method), ""
    rows, parts = train.batch_size * method.prompt_rows(config), train.minibatches
    if config.mesh.pmap:
        parts, devices = parts * mesh.size, f" x {mesh.size} devices (mesh.pmap)"
    if rows % parts:
        several = method.prompt_rows(config) > 1
        samples = f" x train.samples_per_prompt={train.samples_per_prompt}" if several else ""
        raise InputError(
            f"train.batch_size={train.batch_size}{samples} is {rows} rows a step, which must be a "
            f"multiple of train.minibatches={train.minibatches}{devices}"
        )


def report_parameters(folder: pathlib.Path, learner: step.Learner, params: Params) -> None:
    """Say how many parameters of which parts a run trains, in the log and in `parameters.json`."""
    parts = optimizer.counts(params, learner.trainable(params))
    files.write_json(
        folder / "parameters.json",
        {name: {"trained": part[0], "all": part[1]} for name, part in parts.items()},
    )
    trained = [f"{name} {part[0]:,}" for name, part in parts.items() if part[0]]
    more = f" and {len(trained) - 8} more parts" if len(trained) > 8 else ""
    some, every = map(sum, zip(*parts.values(), strict=True))
    logger.info(
        f"{folder.name} trains {some:,} of {every:,} parameters: {', '.join(trained[:8])}{more}"
    )


def not_finite(row: dict) -> list[str]:
    """The metrics that are not finite, the loss before all others."""
    return sorted((name for name, value in row.items() if not np.isfinite(value)),
                  key=lambda name: not name.startswith("loss/"))  # fmt: skip


def check_row(row: dict, batch, folder: pathlib.Path, at: int, *, untrained: bool) -> None:
    """Stop on a metric that is not finite, with the batch that gave it on disk.

    `untrained`: the first update of the run gave it, so that no learning rate had a part in it.
    """
    if bad := not_finite(row):
        path = folder / f"bad_batch_{at:06d}.npz"
        leaves = jax.tree_util.tree_flatten_with_path(batch)[0]
        content = io.BytesIO()
        np.savez(content, **{jax.tree_util.keystr(key): np.asarray(leaf) for key, leaf in leaves})
        files.write_bytes(path, content.getvalue())
        remedy = "before any update; look for rewards or log-probabilities that are too large"
        raise InputError(
            f"{folder}: {bad[0]} is {row[bad[0]]} at step {at}, its batch is in {path.name}; "
            + (remedy if untrained else "try a smaller train.learning_rate")
        )


def artifact(config: ConfigDict, folder: pathlib.Path, inputs: dict) -> files.Artifact:
    """The folder of a run, by its configuration and its `inputs` besides."""
    keys = methods.method(config.method).keys
    return files.Artifact(folder, identity(config, keys=keys) | inputs, origins(config))


def run(config: ConfigDict, folder: pathlib.Path, task: methods.Task, network: Params,
        inputs: dict, *, evaluate=None, share=None) -> step.TrainState | None:  # fmt: skip
    """The loop: train from `network` as `config` says, in `folder`, from wherever it stopped.

    `inputs` are fingerprints of what the run reads besides the configuration. `evaluate(params)`
    gives metrics of parameters, every `train.eval_every` steps and at the end. `share` is
    what the run's part of the reference cache cost, a `budget.CacheShare`; it counts as spent.
    Returns the last state, or None where the run was finished before. Raises Interrupted after a
    signal, when the step is finished and saved.
    """
    check_rows(config, task.mesh)
    method = methods.method(config.method)
    made, resumes = artifact(config, folder, inputs), functools.partial(checkpoints.exist, folder)
    state, signals = None, []
    with interrupts.deferred(signals.append), made.work(resumes=resumes) as left:
        if left:
            files.write_json(folder / "config.json", config.to_dict())
            ledger = budget.Ledger(config, method, share)
            state = _train(config, folder, task, network, evaluate, ledger, signals)
            ledger.write(folder, int(state.step))
            made.finish("config.json", "metrics.jsonl", "ledger.json", checkpoints.FOLDER)
    if signals:
        raise interrupts.Interrupted(f"stopped by {signals[0]}; {folder} is finished")
    return state


def _train(config: ConfigDict, folder: pathlib.Path, task: methods.Task, network: Params,
           evaluate, ledger: budget.Ledger, signals: list[str]) -> step.TrainState:  # fmt: skip
    """The steps that are left of a run; returns the last state. A signal ends it after a step."""
    train, method = config.train, methods.method(config.method)
    # ------------------------------------------------------------------ state, new or restored
    learner = make_learner(config, task)
    state = step.init_state(learner, initial_params(config, task, network), anchor=method.anchor)
    first, state, extra = checkpoints.resume(folder, state)
    checkpoints.check_finite(state, folder)
    report_parameters(folder, learner, state.params)
    ledger.spent |= extra.get("spent", {})
    logged = extra.get("rows", {"metrics": [], "timing": []})
    done, stopping = ledger.progress(first), bool(signals)
    value_head, best_metric = method.has_value_head(config), train.best_metric if evaluate else ""

    with contextlib.ExitStack() as opened:
        saved = checkpoints.Writer(folder, metric=best_metric)
        opened.callback(saved.close)
        written = logs.RunLog(folder, rows=logged, name="/".join(folder.parts[-2:]))
        opened.callback(written.close)
        compilations = logs.Compilations()
        opened.callback(compilations.close)
        for at in itertools.count(first):
            if done >= 1:
                break
            if stopping:
                raise interrupts.Interrupted(
                    f"stopped by {signals[0]}; {folder} is saved after step {at}"
                )
            started = time.perf_counter()

            # ---------------------------------------------------------- batch
            key = streams.key("step", config.seed, at)
            state, batch, row = method.batch(task, state, at, key)

            # ---------------------------------------------------------- updates
            rows, update = [], at * train.epochs * train.minibatches
            for number, part in enumerate(minibatches(batch, config, at, task.mesh)):
                rates = optimizer.rates(config, done, update=update + number, value_head=value_head)
                state, metrics = step.update(state, part, rates, learner=learner)
                rows.append(metrics)
            rows = jax.device_get(rows)
            untrained = at == 0 and bool(not_finite(row | rows[0]))
            row |= {name: float(np.mean([r[name] for r in rows])) for name in rows[0]}
            state = state._replace(step=state.step + 1)
            check_row(row, batch, folder, at, untrained=untrained)

            # ---------------------------------------------------------- budget
            if at == first:
                flops = step.update_flops(learner, state.params, batch, updates=train.minibatches)
            ledger.add(row, train_flops=flops * len(rows))
            done = ledger.progress(at + 1)

            # ---------------------------------------------------------- evaluation
            due = evaluate and ((at + 1) % train.eval_every == 0 or done >= 1)
            measured = {}
            if due:
                checkpoints.check_finite(state, f"{folder}: step {at + 1}")
                measured = evaluate(state.params)

            # ---------------------------------------------------------- log, checkpoint
            seconds = time.perf_counter() - started
            ledger.spent["seconds"] += seconds
            timing = {"time/seconds": seconds, "time/compilations": compilations.count}
            written.write(at, row | measured, timing, progress=done)
            planned = (at + 1) % train.checkpoint_every == 0 or done >= 1
            stopping = bool(signals)
            saved.check()
            if planned or stopping:
                extra = {"spent": dict(ledger.spent), "rows": written.flushed()}
                # One that a signal asked for must not change which is the best.
                saved.save(at + 1, state, extra, measured if planned else {best_metric: math.nan})
    optimizer.check_warm_up(config, int(state.step), folder.name)
    return state


def restore(folder: pathlib.Path, *, which: str, task: methods.Task, network: Params) -> Params:
    """The trained network of a run, from its `last` or `best` checkpoint.

    Raises InputError where the run has no checkpoint yet, or a damaged one, or keeps no best one.
    """
    config = task.config
    method = methods.method(config.method)
    learner = make_learner(config, task)
    like = step.init_state(learner, initial_params(config, task, network), anchor=method.anchor)
    state = checkpoints.load(folder, which, config.train.best_metric, like)
    return state.params[method.network]
