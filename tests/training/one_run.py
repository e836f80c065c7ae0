"""A vBoN run of six steps on the tiny task: `python -m tests.training.one_run FOLDER`.

In a process of its own, to be killed, and to compile everything that it runs.
"""

import pathlib
import sys

import jax

from tests.training.tiny_task import MODEL, make_task
from vbon_jax.models import decoder
from vbon_jax.training import loop, methods


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


if __name__ == "__main__":
    run(pathlib.Path(sys.argv[1]), small_task())
