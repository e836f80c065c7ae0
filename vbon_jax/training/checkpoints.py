"""Checkpoints of a run, by Orbax: written in the background, the last two and the best are kept.

A checkpoint is a folder named by its step. It holds the digests of its files, so one that is
damaged is never restored: an earlier one is. Reading needs no lock and disturbs no writer.
"""

import contextlib
import itertools
import logging
import math
import pathlib
import shutil
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from vbon_jax import files
from vbon_jax.types import InputError

FOLDER = "checkpoints"  # of a run's folder
DIGESTS_FILE = "digests.json"  # of a checkpoint's folder
ATTEMPTS = 5  # to read a checkpoint that its run may replace meanwhile
REPLACED = "replaced"  # the folder of checkpoints that are about to be removed
UNFINISHED = ".orbax-checkpoint-tmp"  # ends the name of a checkpoint that is being written

logger = logging.getLogger(__name__)


@jax.jit
def _finite(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.isfinite(leaf).all(), tree)


def check_finite(state: Any, place: object) -> None:
    """Refuse a state of which a number is not finite: InputError names the array."""
    for path, finite in jax.tree.leaves_with_path(jax.device_get(_finite(state))):
        if not finite:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(
                f"{place}: {name} is not finite, and is not kept; try a smaller "
                "train.learning_rate, which is another run: delete the folder, or take another "
                "--workdir"
            )


# Reading ------------------------------------------------------------------------------------------


def steps(run: pathlib.Path) -> list[int]:
    """The steps of the finished checkpoints of a run, damaged ones too, in their order."""
    return sorted(int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdecimal())


def exist(run: pathlib.Path) -> bool:
    """Whether a run has a finished checkpoint, damaged or not."""
    return bool(steps(run))


def is_whole(checkpoint: pathlib.Path) -> bool:
    """Whether all files of a checkpoint are as they were written; all of them are read."""
    try:
        listed = files.read_json(checkpoint / DIGESTS_FILE)
        return bool(listed) and all(
            files.digest_of_file(checkpoint / name) == digest
            for name, (_, _, digest) in listed.items()
        )
    except (files.Damaged, OSError, ValueError):
        return False


def restore(run: pathlib.Path, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
    """The state (shaped and placed as `like`) and the JSON that were saved with a step.

    Raises Damaged for a checkpoint that is not as it was written, InputError for a number in it
    that is not finite.
    """
    checkpoint = run / FOLDER / str(step)
    if not is_whole(checkpoint):
        raise files.Damaged(checkpoint, "a file of it is missing, or not as it was written")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
        folder = checkpoint.absolute() / "state"
        state = reader.restore(folder, args=ocp.args.StandardRestore(abstract))
    check_finite(state, checkpoint)
    return state, files.read_json(checkpoint / "extra" / "metadata")


def resume(run: pathlib.Path, like: Any) -> tuple[int, Any, dict[str, Any]]:
    """Step, state and JSON of the last checkpoint; 0, `like` and {} where there is none.

    From the first damaged one on all are set aside, with a line: the best may have been among them.
    """
    kept = steps(run)
    whole = list(itertools.takewhile(lambda step: is_whole(run / FOLDER / str(step)), kept))
    at = whole[-1] if whole else 0
    for step in kept[len(whole) :]:
        checkpoint, aside = run / FOLDER / str(step), run / f"damaged-checkpoint-{step}"
        with files.writing(aside):
            shutil.rmtree(aside, ignore_errors=True)
            checkpoint.rename(aside)
        if step == kept[len(whole)]:
            logger.warning(
                f"{checkpoint}: a file of it is missing, or not as it was written; it is now "
                f"{aside.name}, and the run goes on from step {at}"
            )
    return (at, *restore(run, at, like)) if at else (0, like, {})


def load(run: pathlib.Path, which: str, metric: str, like: Any) -> Any:
    """The state of the last checkpoint of a run, or of the best by a metric.

    Another process may be training the run and replace its checkpoints meanwhile. Raises InputError
    where there is none, or no best one, Damaged where it cannot be read.
    """
    if which == "best" and not metric:
        raise InputError(f"{run} keeps no best checkpoint: it has no train.best_metric")
    for attempt in range(ATTEMPTS):
        if not exist(run):
            raise InputError(f"{run} has no checkpoint yet; train it first")
        try:
            step = steps(run)[-1] if which == "last" else _best(run, metric)
            return restore(run, step, like)[0]
        except files.Damaged as error:
            damaged = error
        except Exception:  # a file went away while Orbax read it
            if attempt + 1 == ATTEMPTS:
                raise
        time.sleep(0.2)
    why = f"{damaged.why}; the command that trains {run} makes it again"
    raise files.Damaged(damaged.path, why)


def _best(run: pathlib.Path, metric: str) -> int:
    """The step with the highest metric."""

    def value(step: int) -> float:
        path = run / FOLDER / str(step) / "metrics" / "metrics"
        return score(files.read_json(path, metric), metric)

    return max(steps(run), key=value)


def score(metrics: dict[str, float], metric: str) -> float:
    """A metric as the best checkpoint is chosen by it: the higher the better.

    A deficit is the better the lower it is; what is not finite is never the best.
    """
    value = -metrics[metric] if metric == "eval/deficit" else metrics[metric]
    return value if math.isfinite(value) else -math.inf


# Writing ------------------------------------------------------------------------------------------


class Writer:
    """Writes the checkpoints of one run, whose folder is this process's alone.

    `metric` names the measure of the saved parameters by which the best is kept; "" = none is.
    Raises Unwritable where what a killed process left cannot be removed, and SaveFailed from any
    method.
    """

    def __init__(self, run: pathlib.Path, *, metric: str = ""):
        self.folder, self.metric, self._step, self._failed = run / FOLDER, metric, None, False
        for left in (*self.folder.glob(f"*{UNFINISHED}"), *self.folder.glob(REPLACED)):
            with files.writing(left):
                shutil.rmtree(left)
        kept = [checkpoint_managers.LatestN(n=2)]
        if metric:
            kept.append(checkpoint_managers.BestN(get_metric_fn=self._score, n=1))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
            # without it the metrics are not written with the checkpoint
            best_fn=self._score if metric else None,
            enable_async_checkpointing=True,
            todelete_subdir=REPLACED,  # by one rename, so that a kill leaves no half of one
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._list_files),
        )
        with self._failing():
            self.manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def _score(self, metrics: dict[str, float]) -> float:
        return score(metrics, self.metric)

    def _list_files(self) -> None:
        """Write the digests of a checkpoint's files, just before it gets its name."""
        checkpoint = self.folder / f"{self._step}{UNFINISHED}"
        items = [path.name for path in checkpoint.iterdir() if path.is_dir()]
        files.write_json(checkpoint / DIGESTS_FILE, files.digests(checkpoint, *items))

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Whatever goes wrong in the block is a SaveFailed."""
        try:
            yield
        except Exception as error:
            self._failed = True
            why = " ".join(str(error).split())
            raise files.SaveFailed(
                f"{self.folder}: a checkpoint cannot be written ({why}); free the disk, and the "
                "same command continues from the last one"
            ) from error

    def save(self, step: int, state: Any, extra: dict, measured: dict[str, float]) -> None:
        """Start to write `state` and the JSON `extra` as step `step`.

        `measured` are measures of the parameters in this `state`, and of no others; NaN for a
        checkpoint that cannot be chosen. Raises InputError where a number of the state is not
        finite, so that the last checkpoint is always a good one.
        """
        check_finite(state, f"{self.folder.parent}: step {step}")
        metrics = {self.metric: float(measured[self.metric])} if self.metric else None
        with self._failing():
            self.manager.wait_until_finished()
            self._step = step
            arguments = ocp.args.Composite(
                state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
            )
            self.manager.save(step, args=arguments, metrics=metrics)

    def check(self) -> None:
        """Raises SaveFailed where the last save has failed meanwhile."""
        if not self.manager.is_saving_in_progress():
            with self._failing():
                self.manager.wait_until_finished()
                shutil.rmtree(self.folder / REPLACED, ignore_errors=True)

    def close(self) -> None:
        """Wait for what is being written; not after a failure, when Orbax may never end it."""
        if not self._failed:
            with self._failing():
                self.manager.close()
                shutil.rmtree(self.folder / REPLACED, ignore_errors=True)
