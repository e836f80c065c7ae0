"""The answers of a language model and their cost: `verdicts.jsonl`, a line for each.

A line is written when its answer comes and never changed, so that nothing is paid for twice. The
cost of all lines, and the most that the requests under way can cost, never exceed the limit.
"""

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
    """The answers of a working directory, for many threads; a context manager."""

    def __init__(self, path: pathlib.Path, *, max_cost: float):
        self.path, self.max_cost = path, max_cost
        self.verdicts: dict[str, str] = {}  # key -> A | B | tie
        self.unreadable: dict[str, int] = {}  # key -> answers without a verdict
        self.costs: dict[str, float] = {}  # key -> dollars
        self._reserved: list[float] = []  # dollars, at most, of the requests under way
        self._changed = threading.Condition()

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

    @property
    def spent(self) -> float:
        """Dollars, for all lines."""
        return sum(self.costs.values())

    def reserve(self, cost: float, stopped: threading.Event) -> bool:
        """Set money aside for one request; False where the limit leaves none for it.

        While requests are under way, which may cost less than was set aside, it waits for them
        unless `stopped`.
        """
        with self._changed:
            while self.spent + sum(self._reserved) + cost > self.max_cost:
                if not self._reserved or stopped.is_set():
                    return False
                self._changed.wait(0.2)
            self._reserved.append(cost)
            return True

    def settle(self, reserved: float, entry: dict[str, Any] | None) -> None:
        """Release what was set aside for a request, and write its line unless it was free."""
        with self._changed:
            self._reserved.remove(reserved)
            if entry is not None:
                self._file.write((json.dumps(entry, ensure_ascii=True) + "\n").encode())
                self._file.flush()
                os.fsync(self._file.fileno())
                self._count(entry)
            self._changed.notify_all()

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
        key, verdict = entry["key"], entry["verdict"]
        self.costs[key] = self.costs.get(key, 0.0) + float(entry["cost"])
        if verdict is not None:
            self.verdicts.setdefault(key, verdict)
        elif entry.get("error") is None:
            self.unreadable[key] = self.unreadable.get(key, 0) + 1
