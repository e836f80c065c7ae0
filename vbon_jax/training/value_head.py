"""The value head of a run by `gradient="ppo"`: where it starts, and how much it explains."""

import jax
import numpy as np

from vbon_jax.training.step import TrainState
from vbon_jax.types import Array, Sequences


def init_bias(state: TrainState, mean_return: float) -> TrainState:
    """The value head starts at the mean return of the first batch.

    From zero, GAE's first advantages would be a function of a token's position alone, and the
    policy would spend KL on the length of its responses before it learns anything of the reward.
    """
    value = state.params["value"]
    bias = jax.device_put(np.full_like(value["bias"], mean_return), value["bias"].sharding)
    return state._replace(params=state.params | {"value": value | {"bias": bias}})


def explained_variance(sequences: Sequences, values_sg: Array, returns_sg: Array) -> float:
    """1 - Var(R - V) / Var(R) over response tokens: 1 is a perfect value head, 0 a constant."""
    lengths_s = sequences.lengths_s - sequences.prompt_lengths_s
    inside_sg = np.arange(returns_sg.shape[1]) < lengths_s[:, None]
    returns, values = returns_sg[inside_sg], values_sg[inside_sg]
    spread = float(np.var(returns))
    return 1.0 - float(np.var(returns - values)) / spread if spread else 0.0
