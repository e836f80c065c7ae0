"""The answers of a language model and their cost: `verdicts.jsonl`, a line for each.

A line is written when its answer comes and never changed, so that nothing is paid for twice.
"""

import collections
import json
import os
import pathlib
import threading
from typing import Any

from vbon_jax import files
from vbon_jax.types import InputError

try:
    import fcntl
except ImportError:  # Windows, where two commands at once are not refused
    fcntl = None


class AnswerLog:
    """The answers of a working directory; a context manager. Any thread may add one."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.verdicts: dict[str, str] = {}  # key -> A | B | tie
        self.unreadable = collections.Counter()  # key -> answers without a verdict
        self.costs = collections.Counter()  # key -> dollars
        self.spent = 0.0  # dollars, for all lines
        self._adding = threading.Lock()

    def __enter__(self) -> "AnswerLog":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            for entry in files.read_jsonl(self.path, "key", "verdict", "cost"):
                self._count(entry)
            self._file.seek(0)  # a kill may have cut the last line off
            self._file.truncate(self._file.read().rfind(b"\n") + 1)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        self._file.close()

    def add(self, entry: dict[str, Any]) -> None:
        """Write the line of an answer, and count it."""
        with self._adding:
            self._file.write((json.dumps(entry, ensure_ascii=True) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._count(entry)

    def _lock(self) -> None:
        """Two commands at once would pay for the same answers."""
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.path} is in use by another command; wait for its end"
            ) from None

    def _count(self, entry: dict[str, Any]) -> None:
        key, verdict, cost = entry["key"], entry["verdict"], float(entry["cost"])
        self.costs[key] += cost
        self.spent += cost
        if verdict is not None:
            self.verdicts.setdefault(key, verdict)
        elif entry.get("error") is None:
            self.unreadable[key] += 1
