"""The optimizer: AdamW behind a clip by the global norm, which parameters it moves, at what rates.

Its constants are keys of the configuration; learning rates are arguments of an update, so that runs
which differ in nothing but their rates share a compiled program.
"""

import functools
import logging
import math
import operator
import re
from typing import NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict, FrozenConfigDict

from vbon_jax.models import classifier
from vbon_jax.types import Array, InputError, Params

logger = logging.getLogger(__name__)

# The keys that `chain` reads of its constants.
KEYS = (
    "train.weight_decay",
    "train.beta1",
    "train.beta2",
    "train.epsilon",
    "train.max_gradient_norm",
    "train.trainable",
)


class Rates(NamedTuple):
    """The learning rates of an update."""

    network: float | Array
    value: float | Array  # of the value head, which starts from nothing


def rates(config: ConfigDict, progress: float, *, update: int, value_head: bool) -> Rates:
    """The rates of an update, counted from 0, where `progress` in [0, 1] of the run is done."""
    train = config.train
    share = rate_share(train.schedule, progress, update=update, warmup_updates=train.warmup_updates)
    peaks = train.learning_rate, config.ppo.value_learning_rate if value_head else 0.0
    return Rates(*(np.float32(peak) * np.float32(share) for peak in peaks))


def rate_share(schedule: str, progress: float, *, update: int, warmup_updates: int) -> float:
    """The share of the peak learning rates that an update takes, in [0, 1].

    `progress` in [0, 1] is how much of the run (its steps, or its budget) is done; the first
    `warmup_updates` updates rise linearly, from 1 / `warmup_updates` and not from 0.
    """
    shares = {
        "constant": 1.0,
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
    }
    return shares[schedule] * min(1.0, (update + 1) / max(1, warmup_updates))


def check_warm_up(config: ConfigDict, steps: int, name: str) -> None:
    """Warn of a run that ended after `steps` in the middle of its warm-up."""
    train = config.train
    if (updates := steps * train.epochs * train.minibatches) < train.warmup_updates:
        logger.warning(
            f"{name} ended after {updates} of train.warmup_updates={train.warmup_updates} updates: "
            "its learning rate never was train.learning_rate"
        )


def chain(
    constants: FrozenConfigDict, mask: Params, rates: Rates | None = None
) -> optax.GradientTransformation:
    """The optax chain: clip by the global norm, AdamW; leaves outside of the mask stay.

    `mask` is `trainable_mask`'s. The weight decay falls on the kernels of the network's dense
    layers: not on biases, norms, embeddings, adapters, nor the value head. That head has a learning
    rate of its own: it starts from zero, and until it explains something of the return, every
    advantage is noise.
    """
    train = constants.train
    rates = rates or Rates(0.0, 0.0)  # the initial state does not depend on them
    moments = {"b1": train.beta1, "b2": train.beta2, "eps": train.epsilon}
    decayed = functools.partial(
        jax.tree_util.tree_map_with_path, lambda path, _: path[-1].key == "kernel"
    )

    def label(path, moves: bool) -> str:
        return ("value" if path[0].key == "value" else "network") if moves else "frozen"

    rules = {
        "network": optax.adamw(
            rates.network, **moments, weight_decay=train.weight_decay, mask=decayed
        ),
        "value": optax.adam(rates.value, **moments),
        "frozen": optax.set_to_zero(),
    }
    labels = jax.tree_util.tree_map_with_path(label, mask)
    norm = train.max_gradient_norm
    clip = optax.clip_by_global_norm(norm) if norm else optax.identity()
    return optax.chain(clip, optax.partition(rules, labels))


def parameter_names(params: Params) -> list[str]:
    """`a/b/c` for each leaf, in tree order."""
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    return ["/".join(entry.key for entry in path) for path, _ in paths]


def trainable_mask(params: Params, pattern: str, fresh: tuple[str, ...] = ()) -> Params:
    """True for each parameter that is trained.

    `pattern` is "" for all, "last:K" for the last K layers and what follows them (the final norm,
    heads that are not the embeddings), or a regular expression that matches whole names. `fresh`
    names the modules that no checkpoint brought, such as "value": they are trained whatever the
    pattern is. Raises InputError where it matches nothing or is not a regular expression.
    """
    names = parameter_names(params)
    expression = pattern or ".*"
    if last := re.fullmatch(r"last:(\d+)", pattern):
        layers = [int(number) for name in names for number in re.findall(r"/layer_(\d+)/", name)]
        kept = range(max(layers) + 1 - int(last[1]), max(layers) + 1)
        layer = "|".join(map(str, kept)) or "none"
        before = "|".join(classifier.BEFORE_LAYERS)
        expression = rf"\w+/layer_({layer})/.*|\w+/(?!layer_|({before})/).*"
    try:
        matches = [re.fullmatch(expression, name) is not None for name in names]
    except re.error as error:
        raise InputError(
            f'train.trainable={pattern!r}: {error}; give a regular expression, "last:2" or ""'
        ) from error
    if not any(matches):
        raise InputError(
            f"train.trainable={pattern!r} matches no parameter; names look like {names[0]}"
        )
    new = [name.startswith(tuple(f"{module}/" for module in fresh)) for name in names]
    return jax.tree.unflatten(jax.tree.structure(params), map(operator.or_, matches, new))


def counts(params: Params, mask: Params) -> dict[str, list[int]]:
    """How many parameters of each part are trained, and how many it has.

    A part is a layer, an embedding or a head: {"decoder/layer_0": [trained, all], ...}.
    """
    parts: dict[str, list[int]] = {}
    leaves = zip(parameter_names(params), jax.tree.leaves(params), jax.tree.leaves(mask),
                 strict=True)  # fmt: skip
    for name, leaf, trained in leaves:
        part = parts.setdefault("/".join(name.split("/")[:-1][:2]), [0, 0])
        part[0] += leaf.size * trained
        part[1] += leaf.size
    return parts
