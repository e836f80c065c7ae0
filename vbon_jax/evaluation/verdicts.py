"""What a language model has said of pairs, and what that cost: `verdicts.jsonl`, a line an answer.

A line is written as its answer comes and never changed, so that nothing is paid for twice; the
money of all lines is what may not go beyond the limit. Money for requests under way is set aside
before they are sent, at the most that they can cost.
"""

import hashlib
import json
import os
import pathlib
import threading
from types import TracebackType
from typing import Any

from vbon_jax.types import InputError

try:
    import fcntl
except ImportError:  # not on Windows, where two commands are not kept apart
    fcntl = None

FIELDS = ("key", "verdict", "cost")  # of a line, at least


def key(*parts: str) -> str:
    """The name of a question: a hash of whatever it is made of, in order."""
    text = "".join(f"{len(part)}:{part}" for part in parts)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


class Ledger:
    """The answers of a working directory, for many threads; `with Ledger(...) as ledger`."""

    def __init__(self, path: pathlib.Path, *, max_cost: float):
        self.path, self.max_cost = path, max_cost
        self.verdicts: dict[str, str] = {}  # key -> A | B | tie
        self.unreadable: dict[str, int] = {}  # key -> answers that nobody can read
        self.costs: dict[str, float] = {}  # key -> dollars
        self.spent = 0.0  # dollars, of all lines
        self.held = 0.0  # dollars that requests under way may cost
        self._under_way = 0
        self._settled = threading.Condition()
        self._file = None

    def __enter__(self) -> "Ledger":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._read()
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _lock(self) -> None:
        """One command at a time: two would pay for the same answers."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"{self.path} is in use by another command; wait for its end, or stop it"
            ) from None

    def _read(self) -> None:
        """Every line so far; the last one is cut off where a kill left half of it."""
        self._file.seek(0)
        text = self._file.read()
        whole = text.rfind(b"\n") + 1
        if whole < len(text):
            self._file.truncate(whole)
        for number, line in enumerate(text[:whole].splitlines(), start=1):
            try:
                entry = json.loads(line)
                self._count(*(entry[name] for name in FIELDS), entry.get("error"))
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(
                    f"{self.path}, line {number} is no verdict ({error!r}); correct the line, or "
                    "move the file away"
                ) from None

    def _count(self, name: str, verdict: str | None, cost: float, error: str | None) -> None:
        self.spent += float(cost)
        self.costs[name] = self.costs.get(name, 0.0) + float(cost)
        if verdict is not None:
            self.verdicts.setdefault(name, verdict)
        elif error is None:
            self.unreadable[name] = self.unreadable.get(name, 0) + 1

    def hold(self, cost: float, stopped: threading.Event) -> bool:
        """Sets money aside for one request; False where the limit leaves none for it.

        Waits for requests under way, which may turn out cheaper than what was set aside for them,
        unless `stopped`.
        """
        with self._settled:
            while self.spent + self.held + cost > self.max_cost:
                if not self._under_way or stopped.is_set():
                    return False
                self._settled.wait(0.2)
            self.held += cost
            self._under_way += 1
            return True

    def release(self, held: float) -> None:
        """Gives back what was set aside for a request that was not paid for."""
        with self._settled:
            self._under_way -= 1
            self.held = max(0.0, self.held - held) if self._under_way else 0.0
            self._settled.notify_all()

    def record(self, entry: dict[str, Any], held: float) -> None:
        """Writes down an answer and its cost, in place of what was set aside for it."""
        line = json.dumps(entry, ensure_ascii=True) + "\n"
        with self._settled:
            self._file.write(line.encode())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._count(*(entry[name] for name in FIELDS), entry.get("error"))
        self.release(held)
