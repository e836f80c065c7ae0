"""The cost of a run: how much of the reference cache it reads, its ledger, and when it ends.

Costs are sampled tokens, reward calls, training FLOPs and seconds. A run's share of the reference
cache is part of what it costs, so that methods are compared at equal cost.
"""

import pathlib
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.training.task import Method
from vbon_jax.types import InputError, Responses

# The part of a budget of sampled tokens that goes into the reference cache of a method that samples
# too: one that draws responses from it, and one that only ranks its own by its rewards. On the
# demo, N = 4 and 16, three seeds, a vBoN that gave 1/16, 1/8, 1/4 and 1/2 of one budget to its
# cache had an efficiency (docs/methods.md) of 0.58, 0.56, 0.52, 0.43 and 0.41, 0.41, 0.40, 0.31.
CACHE_PARTS = {"draws": 1 / 2, "ranks": 1 / 8}


def samples_of_cache(config: ConfigDict, method: Method, cache: Responses) -> int:
    """How many of a prompt's M cached responses a run reads: the first ones.

    `references.used`, or with a budget of sampled tokens as many as a part of it pays for
    (CACHE_PARTS); otherwise all. Raises InputError where that is too few.
    """
    prompts, m = cache.rewards_bn.shape
    wanted, budget = config.references.used, config.budget.sampled_tokens
    if wanted > m:
        raise InputError(f"references.used={wanted}: the cache has only samples_per_prompt={m}")
    count = wanted or m
    least = max(2, int(config.n) if method.draws_best else 2)
    if budget and not wanted:
        part = CACHE_PARTS["draws" if method.draws_best else "ranks"] if method.samples else 1.0
        tokens_m = cache.lengths_bn.sum(axis=0, dtype=np.int64).cumsum()
        count = min(m, max(least, int((tokens_m <= part * budget).sum())))
    if (budget or method.cache == "responses") and not (cache.lengths_bn > 0).all():
        raise InputError(
            f"the imported reference cache has rewards without responses, which {config.method} or "
            "the budget of sampled tokens needs; import responses as well"
        )
    needs = f"{config.method} at n={config.n:g} needs {least} cached responses to each"
    if not budget and count < least:
        raise InputError(f"references.used={wanted}: {needs} prompt; give at least that")
    spent = int(cache.lengths_bn[:, :count].sum(dtype=np.int64))
    if budget and (count < least or spent > budget):
        raise InputError(
            f"budget.sampled_tokens={budget}: {needs} of {prompts} prompts, and reads {count}, "
            f"{spent} tokens; give a larger budget or fewer prompts (data.train_limit)"
        )
    if budget and method.samples and spent >= budget:
        raise InputError(
            f"budget.sampled_tokens={budget}: the {spent} tokens of the reference cache leave "
            f"nothing for {config.method} to sample; give a larger budget"
        )
    return count


class CacheShare(NamedTuple):
    """The cost of the cached responses that a run may read: the first ones of every prompt."""

    prompts: int
    sampled_tokens: int
    reward_calls: int
    seconds: float


def cache_share(cache: Responses, count: int, *, seconds: float) -> CacheShare:
    """The share of the first `count` responses to each prompt, of a cache built in `seconds`."""
    prompts, m = cache.rewards_bn.shape
    tokens = int(cache.lengths_bn[:, :count].sum(dtype=np.int64))
    return CacheShare(prompts, tokens, prompts * count, seconds * count / m)


class Ledger:
    """Counts what a run has spent, and how much of it is done.

    `spent` goes into checkpoints; what the cache cost is counted beside it.
    """

    def __init__(self, config: ConfigDict, method: Method, share: CacheShare | None = None):
        self.config, self.method, self.share = config, method, share
        self.spent = {"sampled_tokens": 0, "reward_calls": 0, "train_flops": 0.0, "seconds": 0.0}

    def add(self, metrics: dict[str, float], *, train_flops: float) -> None:
        """Count a step: what its metrics say was sampled and scored, and its updates."""
        self.spent["sampled_tokens"] += metrics.get("budget/sampled_tokens", 0)
        self.spent["reward_calls"] += metrics.get("budget/reward_calls", 0)
        self.spent["train_flops"] += train_flops

    def of_cache(self, steps: int) -> dict[str, float]:
        """The cache's share in a run of `steps`: of the prompts it drew, under a budget of all."""
        if self.share is None:
            return {}
        budget = self.config.budget
        part = min(1.0, steps * self.config.train.batch_size / self.share.prompts)
        if budget.sampled_tokens or budget.train_flops:
            part = 1.0
        return {
            "sampled_tokens": round(part * self.share.sampled_tokens),
            "reward_calls": round(part * self.share.reward_calls),
            "seconds": part * self.share.seconds,
        }

    def progress(self, steps: int) -> float:
        """How much of the run is done after `steps`: 1 is all of it.

        Of `config.budget` where one is set, less what the cache takes of it; of `train.steps` where
        none is, and for a method that samples nothing under a budget of sampled tokens, all of
        which went into its cache.
        """
        budget = self.config.budget
        if budget.train_flops:
            return self.spent["train_flops"] / budget.train_flops
        if self.method.samples and budget.sampled_tokens:
            cached = self.of_cache(steps).get("sampled_tokens", 0)
            return self.spent["sampled_tokens"] / (budget.sampled_tokens - cached)
        return steps / self.config.train.steps

    def write(self, folder: pathlib.Path, steps: int) -> None:
        """`ledger.json` of a finished run: what it spent and its share of the cache."""
        cached = self.of_cache(steps)
        total = {name: value + cached.get(name, 0) for name, value in self.spent.items()}
        files.write_json(folder / "ledger.json", total)
