"""The records of the training room: the task of a run and the row of a method."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from vbon_jax.config import Key
from vbon_jax.data import prompt_sets
from vbon_jax.models import decoder, encoder, log_probs
from vbon_jax.sampling import sampler
from vbon_jax.types import Array, Mean, Params, Responses, Sequences

# Keys of every objective that reads responses: how many tokens they have, and pi's temperature.
RESPONSES = ("sampling.max_new_tokens", "sampling.temperature")


class Task(NamedTuple):
    """All that a run trains on, made once and never changed; None where a method needs nothing."""

    config: Any  # ml_collections.ConfigDict
    model: decoder.DecoderConfig | encoder.EncoderConfig
    mesh: Mesh
    rows: tuple[np.ndarray, ...] = ()  # text methods: tokens, lengths (and labels), first axis rows
    prompts: prompt_sets.PromptSet | None = None
    prompt_width: int = 0  # P, the same in every batch
    reference_params: Params | None = None
    cache: Responses | None = None  # the reference responses to all prompts that the run may read
    pairs: prompt_sets.PairSet | None = None  # given preferences, in place of the cache's
    score: Callable | None = None  # (places of prompts, response ids) -> float32 rewards
    sampling: sampler.Sampling | None = None
    fresh: tuple[str, ...] = ()  # modules of the network that no checkpoint brought


class Method(NamedTuple):
    """A row of METHODS: how a batch is made, the objective that reads it, and what they need.

    `batch(task, state, step, key)` returns `(state, batch, metrics)` and depends on nothing else,
    so that a run that was interrupted continues the same. `objective(model, constants, params,
    batch)` returns `(terms, metrics)`: what is minimised, `{name: (coefficient, Mean)}`, and what
    is logged, `{name: Mean}`.
    """

    batch: Callable
    objective: Callable
    constants: tuple[str, ...] = ()  # the keys that the objective reads; it is given no others
    network: str = "decoder"  # which one it trains: decoder | classifier
    samples: bool = False  # from the policy, in every step
    cache: str = ""  # what it reads of the reference cache: "" | "rewards" | "responses"
    whole_n_from: int | None = None  # N is a whole number from this; None = any real N from 1
    pairs: bool = False  # given preferences (`pairs.path`) can take the cache's place
    rows_per_prompt: int | None = None  # of a step's batch; None = train.samples_per_prompt
    anchor: bool = False  # keeps a moving average of the network in the state
    check: Callable | None = None  # (config), raises InputError for keys that do not fit together
    keys: tuple[Key, ...] = ()  # its own, where it is defined outside of the package

    @property
    def model(self) -> str:
        """The key of the configuration that names the model it trains."""
        return "policy" if self.network == "decoder" else "reward"

    @property
    def reads_text(self) -> bool:
        """Whether it trains on rows of text, without a reference policy or a reward."""
        return not self.samples and not self.cache

    @property
    def draws_best(self) -> bool:
        """Whether it draws the best of N from the cached responses, so that it needs N of them."""
        return self.cache == "responses" and self.whole_n_from is not None

    @property
    def by_gradient(self) -> bool:
        """Whether it is optimised as `config.gradient` says: ppo | rloo | grpo."""
        return "gradient" in self.constants

    def has_value_head(self, config) -> bool:
        """Whether a run has a value head beside its network."""
        return self.by_gradient and config.gradient == "ppo"

    def needs_cache(self, config) -> bool:
        """Whether a run reads the reference cache: not where preference pairs are given."""
        return bool(self.cache) and not (self.pairs and config.pairs.path)

    def prompt_rows(self, config) -> int:
        """Rows of a batch for each of its prompts (1 for a text method)."""
        if self.reads_text:
            return 1
        return self.rows_per_prompt or config.train.samples_per_prompt


# ------------------------------------------------------------------------ what objectives share


def token_log_probs(
    model: decoder.DecoderConfig, constants: FrozenConfigDict, network: Params, sequences: Sequences
) -> tuple[Array, Array, Array]:
    """`models.log_probs.response_log_probs`, by `constants` that have the keys RESPONSES."""
    sampling = constants.sampling
    return log_probs.response_log_probs(
        model,
        network,
        sequences,
        new_tokens=sampling.max_new_tokens,
        temperature=sampling.temperature,
    )


def policy_log_probs(model, constants: FrozenConfigDict, params: Params, sequences) -> Array:
    """log pi_theta of whole responses, [S], nats; `constants` have the keys RESPONSES."""
    return token_log_probs(model, constants, params["decoder"], sequences)[0].sum(axis=1)


def joined(*parts: Sequences) -> Sequences:
    """Batches of sequences as one, so that one forward pass serves all of them."""
    return Sequences(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def minimise(loss: Mean, metrics: dict[str, Mean], *, name: str = "response"):
    """The `(terms, metrics)` of an objective of one term; metrics are logged below its name.

    `objective/mean` is minus the loss.
    """
    metrics = {f"{name}/{metric}": mean for metric, mean in metrics.items()}
    return {name: (1.0, loss)}, metrics | {"objective/mean": Mean(-loss.total, loss.weight)}
