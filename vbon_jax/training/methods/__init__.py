"""`METHODS`, the one dictionary from a method's name to its functions.

To add a method is to write an objective or a transform of the reward, and a row.
"""

from vbon_jax.training.methods import bond, offline, sft, vbon
from vbon_jax.training.task import Method, Task
from vbon_jax.types import InputError

__all__ = ["METHODS", "Method", "Task", "method"]

METHODS: dict[str, Method] = vbon.ROWS | bond.ROWS | offline.ROWS | sft.ROWS


def method(name: str) -> Method:
    """The row of METHODS, or an InputError that lists them."""
    if name not in METHODS:
        raise InputError(f"method={name!r} is not known; choose one of {', '.join(METHODS)}")
    return METHODS[name]
