"""Runs of six steps on the tiny task: in this process, or in one that can be killed."""

import multiprocessing
import pathlib

import jax

from tests.training.tiny_task import MODEL, make_task
from vbon_jax.models import decoder
from vbon_jax.training import loop, methods

# A process that has imported all of this, from which others are forked.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.training.one_run"])


def small_task(method: str = "vbon", **changes) -> methods.Task:
    """Six steps of four updates, a checkpoint every other one."""
    steps = {"train__steps": 6, "train__checkpoint_every": 2, "train__learning_rate": 1e-3}
    updates = {"train__epochs": 2, "train__minibatches": 2}
    return make_task(method, **{"n": 4.0} | steps | updates | changes)


def run(folder: pathlib.Path, task: methods.Task, **changes):
    """Train the reference policy of the task in a folder."""
    config = task.config.copy_and_resolve_references()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    network = decoder.init(MODEL, jax.random.key(0))
    return loop.run(config, folder, task._replace(config=config), network, {})


def started(folder: pathlib.Path, compiled: pathlib.Path) -> multiprocessing.Process:
    """A vBoN run in a process of its own.

    `compiled` is a folder for compiled programs of these runs alone: they are compared bit for bit,
    and a program that another process left in the tests' cache can round otherwise.
    """
    process = CONTEXT.Process(target=_compiled_run, args=(folder, compiled))
    process.start()
    return process


def _compiled_run(folder: pathlib.Path, compiled: pathlib.Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    run(folder, small_task())
