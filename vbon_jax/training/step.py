"""One update of the parameters: forward, objective, one global mean, optax."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from vbon_jax.training import sharding
from vbon_jax.types import Array, InputError, Mean, Params


class TrainState(NamedTuple):
    """All that training changes; what is saved, sharded and compared."""

    step: Array  # [] int32, finished steps of the loop
    params: Params
    optimiser: Any  # optax's state
    kl_multiplier: Array  # [] float32, what an adaptive KL controller makes of the coefficient
    anchor: Params | None = None  # a moving average of the network, for the methods that have one


@dataclasses.dataclass(frozen=True)
class Optimiser:
    """AdamW with gradient clipping; the rates are peaks, which each update takes a share of."""

    learning_rate: float
    value_learning_rate: float  # of the value head, which starts from nothing
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    max_gradient_norm: float
    trainable: str  # see `trainable_mask`


@dataclasses.dataclass(frozen=True)
class Learner:
    """What an update is made of besides arrays; hashable, so that equal learners share a program.

    `objective(model, settings, params, batch)` returns `(terms, metrics)`: terms is a dict of
    `(coefficient, Mean)` whose weighted sum is minimised, metrics a dict of `Mean`.
    """

    objective: Callable
    model: Hashable
    settings: Hashable
    optimiser: Optimiser
    mesh: Mesh | None = None


def parameter_names(params: Params) -> list[str]:
    """`a/b/c` for each leaf, in tree order."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return ["/".join(entry.key for entry in path) for path, _ in paths]


def trainable_mask(params: Params, chosen: str) -> Params:
    """True for each parameter that is trained.

    `chosen` is "" for all, "last:K" for the last K layers and what follows them (the final norm, a
    head of its own, the value head), or a regular expression that matches whole names. Raises
    InputError where it matches nothing or is no regular expression.
    """
    names = parameter_names(params)
    pattern = chosen or ".*"
    if last := re.fullmatch(r"last:(\d+)", chosen):
        layers = [int(number) for name in names for number in re.findall(r"/layer_(\d+)/", name)]
        kept = range(max(layers) + 1 - int(last[1]), max(layers) + 1)
        pattern = (
            rf".*/layer_({'|'.join(map(str, kept)) or 'none'})/.*|.*/(norm_f|head)/.*|value/.*"
        )
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise InputError(
            f"train.trainable={chosen!r} is no regular expression ({error}); give a pattern over "
            'parameter names, "last:2" for the last two layers, or an empty string for all'
        ) from error
    mask = [expression.fullmatch(name) is not None for name in names]
    if not any(mask):
        raise InputError(
            f"train.trainable={chosen!r} matches no parameter; names look like "
            f"{names[0]}, {names[-1]}"
        )
    return jax.tree.unflatten(jax.tree.structure(params), mask)


def rate_factor(schedule: str, progress: float, *, update: int, warmup_updates: int) -> float:
    """The share of the peak learning rates that an update takes, in [0, 1].

    `progress` in [0, 1] is how much of the run (its steps, or its budget) is behind; the first
    `warmup_updates` updates rise linearly. Raises InputError for an unknown schedule.
    """
    shapes = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    if schedule not in shapes:
        raise InputError(f"train.schedule={schedule!r}; choose one of {', '.join(shapes)}")
    return shapes[schedule] * min(1.0, update / warmup_updates if warmup_updates else 1.0)


def transformation(optimiser: Optimiser, params: Params) -> optax.GradientTransformation:
    """The optax chain: clip by the global norm, AdamW; parameters left out do not move.

    The value head has a learning rate of its own: it starts from zero, and until it explains
    something of the return, every advantage is noise.
    """

    def adamw(peak: float) -> optax.GradientTransformation:
        return optax.adamw(
            peak,
            b1=optimiser.beta1,
            b2=optimiser.beta2,
            eps=optimiser.epsilon,
            weight_decay=optimiser.weight_decay,
        )

    def label(path, train: bool) -> str:
        return ("value" if path[0].key == "value" else "train") if train else "keep"

    mask = trainable_mask(params, optimiser.trainable)
    rules = {
        "train": adamw(optimiser.learning_rate),
        "value": adamw(optimiser.value_learning_rate),
        "keep": optax.set_to_zero(),
    }
    labels = jax.tree_util.tree_map_with_path(label, mask)
    return optax.chain(
        optax.clip_by_global_norm(optimiser.max_gradient_norm), optax.partition(rules, labels)
    )


def init_state(learner: Learner, params: Params, *, anchor: bool = False) -> TrainState:
    """A state at step 0; on a mesh, parameters are placed and the moments are born sharded.

    With `anchor` the state holds a second copy of the decoder, for a method that moves it.
    """

    def first(params: Params) -> TrainState:
        moments = transformation(learner.optimiser, params).init(params)
        copy = jax.tree.map(jnp.copy, params["decoder"]) if anchor else None
        return TrainState(jnp.int32(0), params, moments, jnp.float32(1.0), copy)

    # A copy: the state is donated to each update, and the caller may still hold its parameters.
    params = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
    if learner.mesh is None:
        return jax.jit(first)(params)
    shapes = jax.eval_shape(first, params)
    out = sharding.shardings(shapes, learner.mesh)
    return jax.jit(first, out_shardings=out)(sharding.place(params, learner.mesh))


def train_step(
    state: TrainState, batch, rate: Array, *, learner: Learner, axis_name: str | None = None
) -> tuple[TrainState, dict[str, Array]]:
    """One update on a batch, at `rate` [] of the peak learning rates; under `pmap`, on its part.

    Totals and weights are summed over `axis_name` before the one division, so ragged masks give
    the mean over all tokens and not a mean of means. Returns the state and scalar metrics.
    """

    def everywhere(tree):
        return tree if axis_name is None else jax.lax.psum(tree, axis_name)

    mask = trainable_mask(state.params, learner.optimiser.trainable)

    def loss(params: Params):
        params = jax.tree.map(
            lambda leaf, train: leaf if train else jax.lax.stop_gradient(leaf), params, mask
        )
        terms, metrics = learner.objective(learner.model, learner.settings, params, batch)
        total = sum(
            coefficient * Mean(mean.total, everywhere(mean.weight)).value()
            for coefficient, mean in terms.values()
        )
        losses = {f"loss/{name}": mean for name, (_, mean) in terms.items()}
        return total, metrics | losses

    (total, metrics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
    gradients = everywhere(gradients)
    chain = transformation(learner.optimiser, state.params)
    updates, moments = chain.update(gradients, state.optimiser, state.params)
    updates = jax.tree.map(lambda leaf: rate * leaf, updates)
    state = state._replace(params=optax.apply_updates(state.params, updates), optimiser=moments)
    if learner.mesh is not None:
        state = jax.lax.with_sharding_constraint(state, sharding.shardings(state, learner.mesh))
    row = {name: Mean(*everywhere(tuple(mean))).value() for name, mean in metrics.items()}
    row |= {"loss/total": everywhere(total), "optimiser/gradient_norm": optax.tree.norm(gradients)}
    return state, row


update = functools.partial(
    jax.jit, static_argnames=("learner", "axis_name"), donate_argnames=("state",)
)(train_step)
