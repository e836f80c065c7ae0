"""What a run works on, and what a method is: the two records that the training files share."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from vbon_jax.data import prompt_sets
from vbon_jax.models import decoder, encoder
from vbon_jax.sampling import reference_cache, sampler
from vbon_jax.types import Params


class Task(NamedTuple):
    """What a run works on; made once, never changed. What a method does not use is None."""

    config: Any  # ml_collections.ConfigDict
    model: decoder.DecoderConfig | encoder.EncoderConfig
    mesh: Mesh
    rows: tuple[np.ndarray, ...] = ()  # text methods: tokens, lengths (and labels), first axis rows
    prompts: prompt_sets.PromptSet | None = None
    prompt_width: int = 0  # P, the same in every batch
    reference_params: Params | None = None
    cache: reference_cache.References | None = None  # the reference samples that the run may read
    cache_tokens_pmg: np.ndarray | None = None  # and their tokens [prompts, M, G] int32
    pairs: prompt_sets.PairSet | None = None  # preferences that were given, in place of the cache's
    score: Callable | None = None  # (places of prompts, response ids) -> float32 rewards
    sampling: sampler.Sampling | None = None
    memo: dict | None = None  # between steps: what a function of (seed, step) would make again


class Method(NamedTuple):
    """A row of METHODS."""

    make_batch: Callable  # (task, state, step, key) -> (state, batch, metrics)
    objective: Callable  # (model, settings, params, batch) -> (terms, metrics)
    settings: Callable  # (config) -> a frozen dataclass, the objective's constants
    kind: str = "decoder"  # which network it trains
    source: str = "text"  # of its batches: text | rollouts (it samples) | references (the cache)
    reads: str = ""  # of the reference cache: "" nothing | rewards | responses
    draws_best: bool = False  # the best of N of the cached responses, so it needs N of them
    takes_pairs: bool = False  # trains on given pairs where `pairs.path` names some
    rows_per_prompt: int | None = None  # of a step's batch; None = train.samples_per_prompt
    by_gradient: bool = False  # optimised as `config.gradient` says: ppo | rloo | grpo
    anchor: bool = False  # keeps a moving average of the network in the state

    @property
    def on_policy(self) -> bool:
        """Whether it samples the policy, so that it needs prompts and a reward in the loop."""
        return self.source == "rollouts"

    def needs_cache(self, config) -> bool:
        """Whether a run reads it: not with fresh references, nor with pairs that are given."""
        given = self.takes_pairs and config.pairs.path
        return bool(self.reads) and not (given or self.refreshes(config))

    def refreshes(self, config) -> bool:
        """Whether a run samples fresh references in place of the cache's."""
        given = self.takes_pairs and config.pairs.path
        return bool(self.source == "references" and config.references.refresh_every and not given)

    def prompt_rows(self, config) -> int:
        """Rows of a batch for each of its prompts (1 for a text method)."""
        if self.source == "text":
            return 1
        return self.rows_per_prompt or config.train.samples_per_prompt
