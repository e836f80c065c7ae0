"""KL-constrained RL: `vbon` with the reward itself in place of its rank.

    E_{y ~ pi_theta}[ r(y) ] - beta KL(pi_theta || pi_ref),   beta = 1 / (N - 1)

Its optimum is pi_ref exp(r / beta) / Z, which depends on the reward's scale as Best-of-N does not.
"""

import functools

from vbon_jax.training.methods import vbon
from vbon_jax.types import Array


def transform(reward_bn: Array, reference_bm: Array | None, config) -> Array:
    """The reward as it is."""
    return reward_bn


batch = functools.partial(vbon.batch, transform=transform)
