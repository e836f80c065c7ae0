"""SIGTERM and Ctrl-C: a process ends at once in one line, a training loop after its step.

A thread waits for the signals, since Python runs a handler between two of its own instructions
only, which a long compilation or a long program on a device puts off.
"""

import contextlib
import multiprocessing
import os
import shlex
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

STATUS = 75  # EX_TEMPFAIL of sysexits.h: nothing is wrong, and the same command continues
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(Exception):
    """Work has ended early, as a signal asked; the message says what is saved."""


class _Work:
    """What the first signal asks for, in place of the end: the loop at work in this process."""

    asked: Callable[[str], None] | None = None


def command() -> str:
    """The command line of this process."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    program = ["-m", spec.name] if spec else [sys.argv[0]]
    return shlex.join(["python", *program, *sys.argv[1:]])


@contextlib.contextmanager
def watch() -> Iterator[None]:
    """In the block SIGTERM and SIGINT end the process with one line and STATUS.

    At once, but in `deferred`, where a second one does. A signal that this process is to ignore is
    left alone, and so are both outside of the main thread, which alone can handle them.
    """
    numbers = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    old = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False) if numbers else -1
    threading.Thread(target=_wait, args=(receiver, command()), daemon=True).start()
    try:
        yield
    finally:
        if numbers:
            signal.set_wakeup_fd(old)
        for number, handler in before.items():
            signal.signal(number, handler)
        sender.close()


def _wait(receiver: socket.socket, continues: str) -> None:
    """Read signals until the other end is closed."""
    with receiver:
        while received := receiver.recv(1):
            if received[0] not in SIGNALS:
                continue
            name, asked, _Work.asked = signal.Signals(received[0]).name, _Work.asked, None
            if asked:
                asked(name)
                continue
            for child in multiprocessing.active_children():
                child.terminate()
            line = f"interrupted by {name}; what is finished is kept; continue with: {continues}"
            os.write(2, f"\n{line}\n".encode("utf-8", "backslashreplace"))
            os._exit(STATUS)


@contextlib.contextmanager
def deferred(asked: Callable[[str], None]) -> Iterator[None]:
    """In the block the first signal ends nothing: `asked` is called with its name, in a thread."""
    _Work.asked = asked
    try:
        yield
    finally:
        _Work.asked = None
