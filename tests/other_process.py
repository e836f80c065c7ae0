"""Another process that keeps a folder, for tests of locks."""

import contextlib
import multiprocessing
import pathlib
from collections.abc import Iterator

from vbon_jax import files

CONTEXT = multiprocessing.get_context("spawn")


def _keep(folder: pathlib.Path, name: str, ready, leave) -> None:
    with files.lock(folder, name):
        ready.set()
        leave.wait()


@contextlib.contextmanager
def keeping(folder: pathlib.Path, name: str = "") -> Iterator[tuple]:
    """A process that has a lock in a folder, and the event at which it gives it back."""
    ready, leave = CONTEXT.Event(), CONTEXT.Event()
    process = CONTEXT.Process(target=_keep, args=(folder, name, ready, leave))
    process.start()
    try:
        assert ready.wait(60)
        yield process, leave
    finally:
        if process.is_alive():  # an event waits for those that wait for it
            leave.set()
        process.join()
