"""One update of the parameters: forward, objective, one global mean, optax.

`train_step` is the body. `update` compiles it by jit over a named mesh, or, where the learner says
so, by pmap over the local devices.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vbon_jax.models import flops, lora, sharding
from vbon_jax.training import optimizer
from vbon_jax.training.optimizer import Rates
from vbon_jax.types import Array, Mean, Params


class TrainState(NamedTuple):
    """All that training changes; what is saved, sharded and compared."""

    step: Array  # [] int32, finished steps of the loop
    params: Params
    optimiser: Any  # optax's state
    anchor: Params | None = None  # a moving average of the network, for the methods that have one


@dataclasses.dataclass(frozen=True)
class Learner:
    """All of an update but arrays; hashable, so that equal learners share a program.

    `objective(model, constants, params, batch)` returns `(terms, metrics)`: terms is a dict of
    `(coefficient, Mean)` whose weighted sum is minimised, metrics a dict of `Mean`.
    """

    objective: Callable
    model: Hashable
    constants: Hashable  # of the objective
    optimiser: FrozenConfigDict  # the keys of `optimizer.KEYS`
    mesh: Mesh | None = None
    pmap: bool = False
    fresh: tuple[str, ...] = ()  # modules that no checkpoint brought

    def trainable(self, params: Params) -> Params:
        """True for each parameter that is trained: the adapters alone where there are any."""
        pattern = self.optimiser.train.trainable
        if getattr(self.model, "lora", None) is not None:
            pattern = lora.TRAINED
        return optimizer.trainable_mask(params, pattern, self.fresh)


def init_state(learner: Learner, params: Params, *, anchor: bool = False) -> TrainState:
    """A new state at step 0, on the mesh of the learner, sharded from birth.

    `params` have one item for each network, such as `{"decoder": ..., "value": ...}`; `anchor` asks
    for a second copy of the decoder, for a method that moves it.
    """

    def first(params: Params) -> TrainState:
        mask = learner.trainable(params)
        moments = optimizer.chain(learner.optimiser, mask).init(params)
        copy = jax.tree.map(jnp.copy, params["decoder"]) if anchor else None
        return TrainState(jnp.int32(0), params, moments, copy)

    # A copy: the state is donated to each update, and the caller may still need its parameters.
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    if learner.mesh is None:
        return jax.jit(first)(params)
    shapes = jax.eval_shape(first, params)
    out = sharding.shardings(shapes, learner.mesh)
    return jax.jit(first, out_shardings=out)(sharding.place(params, learner.mesh))


def train_step(
    state: TrainState, batch, rates: Rates, *, learner: Learner, axis_name: str | None = None
) -> tuple[TrainState, dict[str, Array]]:
    """One update on a batch; under `pmap`, on this device's part of it.

    Totals and weights are summed over `axis_name` before the one division, so ragged masks give
    the mean over all tokens and not a mean of means. Returns the state and scalar metrics.
    """

    def everywhere(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    mask = learner.trainable(state.params)

    def loss(params: Params):
        params = jax.tree.map(
            lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf), params, mask
        )
        terms, metrics = learner.objective(learner.model, learner.constants, params, batch)
        total = sum(
            coefficient * Mean(mean.total, everywhere(mean.weight)).value()
            for coefficient, mean in terms.values()
        )
        losses = {f"loss/{name}": mean for name, (_, mean) in terms.items()}
        return total, metrics | losses

    (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradients = everywhere(gradients)
    chain = optimizer.chain(learner.optimiser, mask, rates)
    updates, moments = chain.update(gradients, state.optimiser, state.params)
    state = state._replace(params=optax.apply_updates(state.params, updates), optimiser=moments)
    if learner.mesh is not None and axis_name is None:
        state = jax.lax.with_sharding_constraint(state, sharding.shardings(state, learner.mesh))
    row = {name: Mean(*everywhere(tuple(mean))).value() for name, mean in metrics.items()}
    row |= {"loss/total": everywhere(total), "optimiser/gradient_norm": optax.tree.norm(gradients)}
    return state, row


@functools.cache
def compiled(learner: Learner) -> Callable:
    """`train_step` of a learner as a compiled `(state, batch, rates) -> (state, metrics)`.

    The jitted one takes the state's memory for its result. Under `pmap` the state is the same on
    every device, and the first axis of a batch's arrays is the device: `sharding.rows_by_device`.
    """
    if learner.pmap:
        body = functools.partial(train_step, learner=learner, axis_name="batch")
        return jax.pmap(body, axis_name="batch", in_axes=(None, 0, None), out_axes=None)
    return jax.jit(functools.partial(train_step, learner=learner), donate_argnums=0)


def update(state: TrainState, batch, rates: Rates, *, learner: Learner):
    """The compiled `train_step`: one update on a whole batch that lies on the learner's devices."""
    return compiled(learner)(state, batch, rates)


def update_flops(learner: Learner, params: Params, batch, *, updates: int) -> float:
    """FLOPs of one of the `updates` that share the rows of a batch: `models.flops.update`.

    Each array of token ids in the batch, [rows, T], is read once, in one pass with all of its
    width. Logits are made for the new tokens of a response, or for all tokens that have one before.
    """
    names = optimizer.parameter_names(params)
    leaves, mask = map(jax.tree.leaves, (params, learner.trainable(params)))
    shapes, trained = {}, set()
    for name, leaf, moves in zip(names, leaves, mask, strict=True):
        root, _, rest = name.partition("/")
        if root != "value":
            shapes[rest] = np.shape(leaf)
            trained |= {rest} if moves else set()
    rows = collections.Counter()
    for leaf in jax.tree.leaves(batch):
        if leaf.ndim == 2 and np.issubdtype(leaf.dtype, np.integer):
            rows[leaf.shape[1]] += len(leaf) // updates
    new_tokens = learner.constants.get("sampling", {}).get("max_new_tokens")
    return sum(
        flops.update(
            learner.model, shapes, trained, flops.Rows(count, width, new_tokens or width - 1)
        )
        for width, count in rows.items()
    )
