"""`run.json` of a run's folder: what the run is called and shown as.

It is written when the run starts, so that nothing is parsed from a folder's name and a report
needs no list of methods.
"""

import contextlib
import pathlib
from typing import Any, NamedTuple

from vbon_jax import files

FILE = "run.json"


class Record(NamedTuple):
    """One run, as tables and figures show it."""

    name: str  # of its folder
    label: str  # in legends: the method, and what else differs between the study's runs
    method: str
    n: float
    bound: str | None  # None: the method does not read it
    seed: int
    gradient: str | None  # None: the method does not read it
    order: int  # of the method among all methods; runs are sorted by it
    measured: bool  # whether it is evaluated against Best-of-N

    def write(self, folder: pathlib.Path) -> None:
        """Write the record of the run in `folder`, unless it is there.

        Raises InputError where another process works in the folder.
        """
        with contextlib.suppress(files.Damaged):
            if self.read(folder) == self:
                return
        with files.lock(folder):
            files.write_json(folder / FILE, self._asdict())

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Record":
        """The record of the run in `folder`. Raises Damaged where there is none."""
        fields = files.read_json(folder / FILE, *cls._fields)
        return cls(**{name: fields[name] for name in cls._fields})

    def columns(self) -> dict[str, Any]:
        """The columns of the results that name the run."""
        names = ("label", "method", "n", "bound", "seed", "gradient")
        return {"run": self.name} | {name: getattr(self, name) for name in names}
