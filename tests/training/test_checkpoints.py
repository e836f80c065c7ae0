"""Checkpoints: damaged ones, failed ones, signals, and readers of a run that goes on."""

import errno
import logging
import os
import pathlib
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from tests.tiny_config import check_refusal
from tests.training.one_run import run, small_task
from vbon_jax import files, interrupts
from vbon_jax.training import checkpoints, loop, methods

pytestmark = pytest.mark.slow


class Stopped(Exception):
    """In place of a kill, so that the test goes on."""


def task_that(act, step: int) -> methods.Task:
    """The tiny task; `act` is called when the reward scores the batch of a step."""
    task, calls = small_task(), []

    def score(*given):
        calls.append(given)
        if len(calls) == step + 1:
            act()
        return task.score(*given)

    return task._replace(score=score)


def stop() -> None:
    raise Stopped


def stopped_run(folder: pathlib.Path) -> pathlib.Path:
    """A run with checkpoints of steps 2 and 4, and rows of steps 0 to 4."""
    with pytest.raises(Stopped):
        run(folder, task_that(stop, 5))
    assert checkpoints.steps(folder) == [2, 4]
    return folder


def outcome(folder: pathlib.Path) -> tuple:
    """Rows, cost and the last parameters."""
    spent = files.read_json(folder / "ledger.json") | {"seconds": 0}
    task = small_task()
    params = loop.restore(folder, which="last", task=task, network=task.reference_params)
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params)]
    return (folder / "metrics.jsonl").read_bytes(), spent, leaves


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> pathlib.Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    assert run(folder, small_task()) is not None
    return folder


@pytest.fixture(scope="module")
def part(tmp_path_factory) -> pathlib.Path:
    return stopped_run(tmp_path_factory.mktemp("part"))


def largest(folder: pathlib.Path) -> pathlib.Path:
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


ORBAX_FILES = ("_CHECKPOINT_METADATA", "commit_success.txt")  # that a run does not read
# What a disk, a copy or a user can do to a run's folder, and the name that the one line has.
DAMAGE = {
    "a flipped bit in the state": (lambda run: flip(largest(run / "checkpoints/4/state")), "4"),
    "a state that is cut off": (lambda run: cut(largest(run / "checkpoints/4/state")), "4"),
    "no state": (lambda run: shutil.rmtree(run / "checkpoints/4/state"), "4"),
    "no extra": (lambda run: shutil.rmtree(run / "checkpoints/4/extra"), "4"),
    "extra that is cut off": (lambda run: cut(run / "checkpoints/4/extra/metadata"), "4"),
    "another number in extra": (lambda run: flip(run / "checkpoints/4/extra/metadata"), "4"),
    "no digests": (lambda run: (run / "checkpoints/4/digests.json").unlink(), "4"),
    "digests that are cut off": (lambda run: cut(run / "checkpoints/4/digests.json"), "4"),
    "no digests at all": (lambda run: (run / "checkpoints/4/digests.json").write_text("{}"), "4"),
    "no metadata of Orbax": (
        lambda run: [(run / "checkpoints/4" / name).unlink() for name in ORBAX_FILES],
        "",
    ),
    "metadata of Orbax that are cut off": (
        lambda run: [cut(run / "checkpoints/4" / name) for name in ORBAX_FILES],
        "",
    ),
    "the one before the last": (lambda run: flip(largest(run / "checkpoints/2")), "2"),
    "every checkpoint": (
        lambda run: [cut(largest(run / "checkpoints" / step / "state")) for step in "24"],
        "2",
    ),
    "the record": (lambda run: cut(run / "stage.json"), "stage.json"),
    "no record": (lambda run: (run / "stage.json").unlink(), "stage.json"),
    "no rows": (lambda run: (run / "metrics.jsonl").unlink(), ""),
    "rows of nothing": (lambda run: (run / "metrics.jsonl").write_text("}"), ""),
    "other rows": (lambda run: flip(run / "metrics.jsonl"), ""),
    "no timing": (lambda run: cut(run / "timing.jsonl"), ""),
    "no configuration": (lambda run: (run / "config.json").write_text(""), ""),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_unfinished_run_goes_on_as_if_it_were_whole(part, whole, tmp_path, caplog, name):
    folder = tmp_path / "run"
    shutil.copytree(part, folder)
    damage, words = DAMAGE[name]
    damage(folder)
    run(folder, small_task())
    ours = [record for record in caplog.records if record.name.startswith("vbon_jax")]
    lines = [record.message for record in ours if " trains " not in record.message]
    assert len(lines) == bool(words), lines
    assert not words or f"/{words}" in lines[0]
    assert outcome(folder) == outcome(whole)


FINISHED = {
    "no ledger": lambda run: (run / "ledger.json").unlink(),
    "another number in the ledger": lambda run: flip(run / "ledger.json"),
    "rows that are cut off": lambda run: cut(run / "metrics.jsonl"),
    "no configuration": lambda run: (run / "config.json").unlink(),
    "a flipped bit in the last state": lambda run: flip(largest(run / "checkpoints/6/state")),
    "no last checkpoint": lambda run: shutil.rmtree(run / "checkpoints/6"),
    "no checkpoint": lambda run: shutil.rmtree(run / "checkpoints"),
}


@pytest.mark.parametrize("name", FINISHED)
def test_a_damaged_finished_run_is_made_whole(whole, tmp_path, caplog, name):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    assert run(folder, small_task()) is None
    FINISHED[name](folder)
    assert run(folder, small_task()) is not None
    assert any("made again" in line and str(folder) in line for line in caplog.messages)
    assert outcome(folder) == outcome(whole)
    assert run(folder, small_task()) is None


def test_a_reader_never_takes_another_checkpoint_for_a_damaged_one(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    flip(largest(folder / "checkpoints/6/state"))
    task = small_task()

    def read():
        return loop.restore(folder, which="last", task=task, network=task.reference_params)

    check_refusal(read, "checkpoints/6", "makes it again")


def test_a_run_goes_on_while_another_process_reads_it(whole, monkeypatch):
    """Export of a run that replaces its checkpoints: they go away while they are read."""
    task, restore, failures = small_task(), checkpoints.restore, [FileNotFoundError, ValueError]

    def replaced(*given):
        if failures:
            raise failures.pop()("the checkpoint was replaced")
        return restore(*given)

    monkeypatch.setattr(checkpoints, "restore", replaced)
    before = sorted(path.name for path in whole.rglob("*"))
    assert loop.restore(whole, which="last", task=task, network=task.reference_params)
    assert sorted(path.name for path in whole.rglob("*")) == before


# ------------------------------------------------------------------------------- the first save


def test_nothing_can_be_resumed_from_a_first_save_that_was_killed(tmp_path):
    with pytest.raises(Stopped):
        run(tmp_path, task_that(stop, 0))
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    run(tmp_path, small_task(), train__learning_rate=1e-2)
    assert not left.exists()
    assert files.recorded(tmp_path)["inputs"]["train.learning_rate"] == 1e-2


def test_what_a_kill_left_and_nobody_can_remove_ends_at_once(tmp_path, monkeypatch):
    left = tmp_path / "checkpoints" / "2.orbax-checkpoint-tmp"
    left.mkdir(parents=True)

    def busy(path, **options):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))

    monkeypatch.setattr(shutil, "rmtree", busy)
    check_refusal(lambda: run(tmp_path, small_task()), str(left), "busy")
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_save_that_fails_ends_at_once_and_the_last_good_one_continues(
    whole, tmp_path, monkeypatch
):
    listed = checkpoints.Writer._list_files

    def full(writer):
        if writer._step == 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        listed(writer)

    monkeypatch.setattr(checkpoints.Writer, "_list_files", full)
    started = time.monotonic()
    with pytest.raises(files.SaveFailed, match=r"No space left.*same command continues") as error:
        run(tmp_path, small_task())
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 20
    monkeypatch.undo()
    run(tmp_path, small_task())
    assert outcome(tmp_path) == outcome(whole)


# ------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("step", [0, 2, 3, 5])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_after_its_step(whole, tmp_path, monkeypatch, number, step):
    def ask():
        os.kill(os.getpid(), number)
        time.sleep(0.3)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # or it may be ignored
    try:
        with interrupts.watch(), pytest.raises(interrupts.Interrupted) as stopped:
            run(tmp_path, task_that(ask, step))
    finally:
        signal.signal(signal.SIGINT, before)
    words = "finished" if step == 5 else f"saved after step {step + 1}"
    assert str(stopped.value).endswith(words)
    assert signal.Signals(number).name in str(stopped.value)
    assert checkpoints.steps(tmp_path)[-1] == step + 1
    assert len(files.read_jsonl(tmp_path / "metrics.jsonl")) == step + 1
    run(tmp_path, small_task())
    assert outcome(tmp_path) == outcome(whole)


def test_without_a_watch_nothing_is_deferred(tmp_path):
    """In a notebook Ctrl-C is a KeyboardInterrupt, and saves that are under way are finished."""

    def ask():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, task_that(ask, 3))
    assert checkpoints.steps(tmp_path) == [2]


def test_logs_of_a_run_say_nothing_where_nothing_is_wrong(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="vbon_jax")
    run(tmp_path, small_task())
    (line,) = caplog.messages
    assert " trains " in line
