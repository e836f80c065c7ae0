"""Signals in a process of its own, which computes nothing."""

import signal
import subprocess
import sys
import time

import pytest

from vbon_jax import interrupts

# Long calls that are no Python instruction, as a compilation is.
WAIT = "import ctypes; [ctypes.CDLL(None).sleep(30) for _ in range(9)]"
BEGIN = """
import signal, sys
from vbon_jax import interrupts
signal.signal(signal.SIGINT, signal.default_int_handler)
with interrupts.watch():
    print("ready", flush=True)
"""
DEFERRED = """
    signals = []
    with interrupts.deferred(signals.append):
        while not signals: pass
        print(signals[0], flush=True)
"""


def started(body: str) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN + body, "--flag", "a b"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    return process


def ended(process: subprocess.Popen) -> tuple[int, list[str]]:
    """The status, and the lines of standard error."""
    before = time.monotonic()
    _, printed = process.communicate(timeout=20)
    assert time.monotonic() - before < 10
    return process.returncode, printed.strip().splitlines()


@pytest.mark.parametrize("number", interrupts.SIGNALS)
def test_a_process_ends_at_once_in_one_line(number):
    process = started(f"    {WAIT}")
    process.send_signal(number)
    status, (line,) = ended(process)
    assert status == interrupts.STATUS == 75
    assert signal.Signals(number).name in line
    assert line.endswith("continue with: python -c --flag 'a b'")


def test_a_loop_is_asked_and_the_second_signal_ends_it():
    process = started(f"{DEFERRED}        {WAIT}")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    process.send_signal(signal.SIGTERM)
    status, (line,) = ended(process)
    assert status == interrupts.STATUS
    assert "SIGTERM" in line


def test_afterwards_signals_are_what_they_were():
    process = started(f"{DEFERRED}    pass\n{WAIT}")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "SIGTERM\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert ended(process) == (-signal.SIGTERM, [])


def test_what_a_process_is_to_ignore_stays_ignored():
    process = started("    pass\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
                      "with interrupts.watch():\n    print('again', flush=True)\n"
                      f"    {WAIT}")  # fmt: skip
    assert process.stdout.readline() == "again\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.terminate()
    status, (line,) = ended(process)
    assert status == interrupts.STATUS
    assert "SIGTERM" in line
