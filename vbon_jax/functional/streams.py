"""Random streams: every random number of the package comes from here, by its use and a seed.

A use is named by a word that is written at one place of the code alone, and the word is folded into
the seed. So no two uses draw the same numbers, whatever the seeds are, and what is drawn depends on
nothing but the use, the seed and the numbers (a step, an epoch) that are given.
"""

import zlib

import jax
import numpy as np

from vbon_jax.types import Array

SEEDS = 2**32  # a seed is a whole number below it: JAX takes no more than 32 bits of one


def key(use: str, seed: int, *numbers: int) -> Array:
    """The JAX key of a use. Raises ValueError for a seed outside of [0, 2**32)."""
    stream = jax.random.key(_checked(seed))
    for number in (_word(use), *numbers):
        stream = jax.random.fold_in(stream, np.uint32(number))
    return stream


def generator(use: str, seed: int, *numbers: int) -> np.random.Generator:
    """The numpy generator of a use. Raises ValueError as `key` does."""
    count = len(numbers)  # numpy fills short lists up with zeros, so that [5] would be [5, 0]
    return np.random.default_rng([count, _word(use), _checked(seed), *numbers])


def _word(use: str) -> int:
    return zlib.crc32(use.encode())


def _checked(seed: int) -> int:
    if not 0 <= seed < SEEDS:
        raise ValueError(f"a seed is a whole number from 0 to {SEEDS - 1}, not {seed}")
    return int(seed)
