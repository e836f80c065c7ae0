"""Numbers of keys without a meaning, each with the words of its refusal.

A count fits 32 bits, a rate is above 0, a share is within [0, 1], a seed is one that JAX can tell
from any other.
"""

SEEDS = ((-1, "from 0"), (2**32, "to 4294967295"))  # and each of a tuple of seeds
