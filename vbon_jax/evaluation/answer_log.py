"""The answers of a language model and their cost: `verdicts.jsonl`, a line for each.

A line is written when its answer comes and never changed, so that nothing is paid for twice.
"""

import collections
import contextlib
import json
import os
import pathlib
import threading
from typing import Any

from vbon_jax import files


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
        with contextlib.ExitStack() as opened:
            # Two commands at once would pay for the same answers.
            opened.enter_context(files.lock(self.path.parent, self.path.name))
            self._file = opened.enter_context(self.path.open("a+b"))
            for entry in files.read_jsonl(self.path, "key", "verdict", "cost"):
                self._count(entry)
            self._file.seek(0)  # a kill may have cut the last line off
            self._file.truncate(self._file.read().rfind(b"\n") + 1)
            self._opened = opened.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._opened.close()

    def add(self, entry: dict[str, Any]) -> None:
        """Write the line of an answer, and count it."""
        with self._adding:
            self._file.write((json.dumps(entry, ensure_ascii=True) + "\n").encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._count(entry)

    def _count(self, entry: dict[str, Any]) -> None:
        key, verdict, cost = entry["key"], entry["verdict"], float(entry["cost"])
        self.costs[key] += cost
        self.spent += cost
        if verdict is not None:
            self.verdicts.setdefault(key, verdict)
        elif entry.get("error") is None:
            self.unreadable[key] += 1
