"""Checks of arguments, a line each: a TypeError for a wrong dtype, a ValueError for the rest.

Messages name the argument. Only dtypes, shapes and Python numbers are looked at, so that a check
costs nothing under `jax.jit`.
"""

import math
import numbers

import jax.numpy as jnp
import numpy as np

from vbon_jax.types import Array


def array(name: str, value, kind: type, shape=None, *, rank: int | None = None) -> Array:
    """`value` as an array of a kind (np.floating, np.integer, np.bool_) and a shape, or a rank."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, kind):
        raise TypeError(f"{name} must have a {kind.__name__} dtype, got {array.dtype}")
    if rank is not None and array.ndim != rank:
        raise ValueError(f"{name} must have rank {rank}, got shape {array.shape}")
    if shape is not None and array.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {array.shape}")
    return array


def floats(name: str, value, shape=None, *, rank: int | None = None) -> Array:
    """`array` of a floating dtype, widened to float32 at least.

    Integers are refused: in an integer array rewards lose their fractions silently.
    """
    wide = array(name, value, np.floating, shape, rank=rank)
    return wide.astype(jnp.promote_types(wide.dtype, jnp.float32))


def best_of(n, dtype) -> Array:
    """N of Best-of-N as an array: a Python number >= 1, or a (traced) array, not looked into."""
    array = jnp.asarray(n)
    if array.dtype == jnp.bool_ or jnp.iscomplexobj(array):
        raise TypeError(f"n must be a real number, got {array.dtype}")
    if isinstance(n, numbers.Real) and not 1 <= n < math.inf:
        raise ValueError(f"n must be a finite number of at least 1, got {n}")
    return array.astype(dtype)


def whole(name: str, value, most: float = math.inf) -> int:
    """A Python integer in 1..most, for what counts subsets of a sample."""
    real = isinstance(value, numbers.Real)
    if not (real and float(value).is_integer() and 1 <= value <= most):
        raise ValueError(f"{name} must be an integer in 1..{most}, got {value}")
    return int(value)
