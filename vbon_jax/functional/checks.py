"""What every function here asks of its arguments first: dtype and rank, by the argument's name.

Only dtypes, shapes and Python numbers are looked at, so the checks cost nothing under `jax.jit`.
"""

import math
import numbers

import jax.numpy as jnp

from vbon_jax.types import Array


def floats(name: str, value, *, rank: int | None = None) -> Array:
    """`value` as a floating array of float32 or wider. TypeError for any other dtype.

    Rewards in an integer array lose their fractions without a word; that is refused here. float16
    and bfloat16 become float32, and float64 stays what it is where x64 is enabled.
    """
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating array, got {array.dtype}")
    check_rank(name, array, rank)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def logits(name: str, value, *, rank: int) -> Array:
    """`value` as a floating array in its own dtype: big arrays are not widened at the door."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating array, got {array.dtype}")
    check_rank(name, array, rank)
    return array


def integers(name: str, value, *, rank: int) -> Array:
    """`value` as an integer array (token ids, labels). TypeError for any other dtype."""
    array = jnp.asarray(value)
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name} must be an integer array, got {array.dtype}")
    check_rank(name, array, rank)
    return array


def mask(name: str, value, shape: tuple[int, ...]) -> Array:
    """`value` as a boolean array of `shape`. TypeError for any other dtype."""
    array = jnp.asarray(value)
    if array.dtype != jnp.bool_:
        raise TypeError(f"{name} must be a boolean array, got {array.dtype}")
    check_shape(name, array, shape)
    return array


def check_rank(name: str, array: Array, rank: int | None) -> None:
    """ValueError when `array` does not have `rank` axes (None: any number)."""
    if rank is not None and array.ndim != rank:
        raise ValueError(f"{name} must have rank {rank}, got shape {array.shape}")


def check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    """ValueError when `array` does not have exactly `shape`."""
    if array.shape != tuple(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {array.shape}")


def is_python_number(value) -> bool:
    """True for a Python (or NumPy scalar) real number, which can be looked at while tracing."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def best_of(n, dtype) -> Array:
    """N of Best-of-N as an array of `dtype`: a Python number >= 1, or a traced numeric array.

    ValueError for a Python number below 1, NaN or infinite. The value of an array is not looked at.
    """
    if is_python_number(n):
        if not (math.isfinite(n) and n >= 1):
            raise ValueError(f"n must be a finite number of at least 1, got {n}")
        return jnp.asarray(n, dtype)
    array = jnp.asarray(n)
    if not (jnp.issubdtype(array.dtype, jnp.number) and not jnp.iscomplexobj(array)):
        raise TypeError(f"n must be a real number, got {array.dtype}")
    return array.astype(dtype)


def whole_best_of(n, largest: int, reason: str) -> int:
    """N as a Python int in 1..largest, for the rulers that count subsets of a sample."""
    if not is_python_number(n):
        raise TypeError(f"n must be a Python integer here, got {type(n).__name__}")
    if not (math.isfinite(n) and n == int(n) and 1 <= n <= largest):
        raise ValueError(f"n must be an integer in 1..{largest} ({reason}), got {n}")
    return int(n)
