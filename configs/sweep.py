"""Sweeps as data: lists of cells (dictionaries of keys, a run each) for `config.cells`.

    grid({"method": ["vbon", "dpo"], "n": [4, 16]})              4 cells: every combination
    zip({"n": [4, 16], "train.learning_rate": [1e-4, 5e-5]})     2 cells: side by side
    chain(grid(...), zip(...))                                   one after the other

`grid` combines whole lists of cells too: grid(zip(...), {"seed": [0, 1]}).
"""

import builtins
import itertools
from collections.abc import Mapping, Sequence

Cells = list[dict]


def grid(*parts: Mapping[str, Sequence] | Cells) -> Cells:
    """Every combination: of the values of each key, and of the parts with each other.

    The last key varies fastest. Raises ValueError for a key that two parts set.
    """
    cells: Cells = [{}]
    for part in parts:
        if isinstance(part, Mapping):
            keys = [_values(key, values) for key, values in part.items()]
            part = [dict(builtins.zip(part, row, strict=True)) for row in itertools.product(*keys)]
        cells = [_joined(cell, more) for cell in cells for more in part]
    return cells


def zip(part: Mapping[str, Sequence]) -> Cells:
    """The first value of every key, then the second, and so on; all have equally many."""
    keys = {key: _values(key, values) for key, values in part.items()}
    lengths = {key: len(values) for key, values in keys.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zip needs equally many values of each key, got {lengths}")
    columns = builtins.zip(*keys.values(), strict=True)
    return [dict(builtins.zip(keys, row, strict=True)) for row in columns]


def chain(*parts: Cells) -> Cells:
    """One list of cells after the other; a cell that was there already is left out."""
    cells: Cells = []
    for cell in itertools.chain(*parts):
        if cell not in cells:
            cells.append(cell)
    return cells


def _values(key: str, values: Sequence) -> Sequence:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise ValueError(f"{key}: give a list of values, got {values!r}")
    return values


def _joined(cell: dict, more: dict) -> dict:
    twice = sorted(cell.keys() & more.keys())
    if twice:
        raise ValueError(f"two parts set {', '.join(twice)}")
    return cell | more
