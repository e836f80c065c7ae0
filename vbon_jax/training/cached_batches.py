"""Responses to choose from, and what is drawn from them: single responses, or best and worst.

A pool has some responses to each prompt of a step, with their rewards: those of the reference
cache, fresh ones of the reference policy (`references.refresh_every`), or the policy's own.
"""

from typing import NamedTuple

import jax
import numpy as np

from vbon_jax.data import batching
from vbon_jax.functional import bon, cdf
from vbon_jax.training import rollouts
from vbon_jax.training.rollouts import Rollout, prompts_of
from vbon_jax.training.task import Task
from vbon_jax.types import Responses, Sequences

_FRESH = 0x66726573  # keeps the keys of fresh references apart from those of steps


class Pool(NamedTuple):
    """M responses to each of B prompts."""

    prompt_index_b: np.ndarray
    tokens_bmg: np.ndarray
    lengths_bm: np.ndarray
    rewards_bm: np.ndarray
    log_probs_bm: np.ndarray  # under the policy that sampled them, nats


class ResponseBatch(NamedTuple):
    """Single responses, [S] each: log pi_ref, and F and log F of their rewards among the others."""

    sequences: Sequences
    reference_s: np.ndarray
    cdf_s: np.ndarray
    log_cdf_s: np.ndarray


class PairBatch(NamedTuple):
    """The better and the worse of two responses, [S] pairs."""

    best: Sequences
    worst: Sequences
    reference_best_s: np.ndarray
    reference_worst_s: np.ndarray
    target_s: np.ndarray  # (N-1) (log F(best) - log F(worst)), nats
    weight_s: np.ndarray  # float32, 0 where both have the same reward


def generator(task: Task, step: int, *, draw: int = 0) -> np.random.Generator:
    """What a step draws from its pool with: a function of (seed, step, draw), and of nothing else.

    The last number keeps these streams apart from those of prompts and minibatches.
    """
    return np.random.default_rng([task.config.seed, step, draw, 2])


# ---------------------------------------------------------------------------- pools


def of_cache(task: Task, step: int) -> Pool:
    """The cached responses of the reference policy to the prompts of a step."""
    index_b, cache = prompts_of(task, step), task.cache
    return Pool(
        index_b,
        task.cache_tokens_pmg[index_b],
        cache.lengths_pm[index_b],
        cache.rewards_pm[index_b],
        cache.log_probs_pm[index_b],
    )


def of_references(task: Task, step: int) -> tuple[Pool, dict]:
    """Responses of the reference policy for a step, and what was spent on them.

    From the cache; or, with `references.refresh_every` = k, M fresh ones to the prompts of a block
    of k steps, which all draw from them: a function of (seed, block).
    """
    if task.config.references.refresh_every:
        return _fresh(task, step)
    return of_cache(task, step), {}


def _fresh(task: Task, step: int) -> tuple[Pool, dict]:
    """The pool of the block that a step is in; its cost is the first step's, resumed or not."""
    settings = task.config.references
    block = step // settings.refresh_every
    if task.memo.get("block") != block:
        key = jax.random.fold_in(jax.random.key(task.config.seed), _FRESH)
        key = jax.random.fold_in(key, block)
        index_b = prompts_of(task, block)
        size = -(-settings.batch_prompts // task.mesh.size) * task.mesh.size
        parts = []
        for rows, count in batching.filled_batches(len(index_b), size):
            fresh = rollouts.rollout(
                task, task.reference_params, index_b[rows], key,
                num_samples=settings.samples_per_prompt, rows=rows,
            )  # fmt: skip
            parts.append(Pool(*(array[:count] for array in of_rollout(fresh))))
        pool = Pool(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
        task.memo.update(block=block, pool=pool)
    pool = task.memo["pool"]
    if step % settings.refresh_every:
        return pool, {}
    tokens, calls = int(pool.lengths_bm.sum()), int(pool.rewards_bm.size)
    return pool, {"budget/sampled_tokens": tokens, "budget/reward_calls": calls}


def of_rollout(fresh: Rollout) -> Pool:
    """What the policy has just sampled."""
    samples = fresh.samples
    return Pool(
        fresh.prompt_index_b,
        samples.tokens_bng,
        samples.lengths_bn,
        fresh.rewards_bn,
        samples.log_probs_bng.sum(axis=-1),
    )


# ---------------------------------------------------------------------------- draws


def sequences(task: Task, pool: Pool, chosen_bs: np.ndarray) -> Sequences:
    """The chosen responses behind their prompts, [B * S] rows."""
    prompts = batching.pad_prompts(
        [task.prompts.token_ids[i] for i in pool.prompt_index_b], width=task.prompt_width
    )
    tokens_bsg = np.take_along_axis(pool.tokens_bmg, chosen_bs[..., None], axis=1)
    lengths_bs = np.take_along_axis(pool.lengths_bm, chosen_bs, axis=1)
    width = task.prompt_width + tokens_bsg.shape[-1]
    return batching.sequences(prompts, Responses(tokens_bsg, lengths_bs, None, None), width=width)


def take(values_bm: np.ndarray, chosen_bs: np.ndarray) -> np.ndarray:
    """The chosen entries of each row, flat: [B * S]."""
    return np.take_along_axis(values_bm, chosen_bs, axis=1).reshape(-1)


def log_cdf(task: Task, pool: Pool) -> np.ndarray:
    """log F of each response by its rank among the prompt's others, [B, M] float32, nats."""
    estimator = task.config.cdf.estimator
    return np.asarray(cdf.log_cdf_of_references(pool.rewards_bm, estimator=estimator))


def best_ranks(task: Task, pool: Pool, step: int, count: int, n: int) -> np.ndarray:
    """S responses to each prompt, each drawn as the best of N of the M would be, [B, S].

    The sorted response j of M is the best of N with a chance of C(j-1, N-1) / C(M, N), ties in an
    order drawn anew: no subset is drawn.
    """
    m, noise = pool.rewards_bm.shape[1], generator(task, step)
    weights_m = bon.order_statistic_weights(m, n)
    ranks_bs = noise.choice(m, (len(pool.rewards_bm), count), p=weights_m / weights_m.sum())
    order_bm = np.lexsort((noise.random(pool.rewards_bm.shape), pool.rewards_bm), axis=1)
    return np.take_along_axis(order_bm, ranks_bs, axis=1)


def best_and_worst(
    task: Task, pool: Pool, step: int, count: int, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Best and worst of N of the M responses, S times a prompt, and whether they tie: [B, S]."""
    shape = (len(pool.rewards_bm), count)
    noise_bsm = generator(task, step).random((*shape, pool.rewards_bm.shape[1]))
    drawn_bsn = np.argsort(noise_bsm, axis=-1)[..., :n]
    rewards_bsn = np.take_along_axis(pool.rewards_bm[:, None], drawn_bsn, axis=-1)
    best_s, worst_s, tied_s = map(np.asarray, bon.select_best_worst(rewards_bsn.reshape(-1, n)))
    best_bs, worst_bs = (
        np.take_along_axis(drawn_bsn.reshape(-1, n), which[:, None], axis=1).reshape(shape)
        for which in (best_s, worst_s)
    )
    return best_bs, worst_bs, tied_s.reshape(shape)


def response_batch(task: Task, pool: Pool, chosen_bs: np.ndarray) -> ResponseBatch:
    """The chosen responses of a pool of the reference policy."""
    return ResponseBatch(
        sequences(task, pool, chosen_bs),
        take(pool.log_probs_bm, chosen_bs),
        take(np.asarray(cdf.cdf_of_references(pool.rewards_bm)), chosen_bs),
        take(log_cdf(task, pool), chosen_bs),
    )


def pair_batch(task: Task, pool: Pool, best_bs, worst_bs, tied_bs) -> PairBatch:
    """The chosen pairs of a pool of the reference policy."""
    log_cdf_bm = log_cdf(task, pool)
    gap_s = take(log_cdf_bm, best_bs) - take(log_cdf_bm, worst_bs)
    return PairBatch(
        best=sequences(task, pool, best_bs),
        worst=sequences(task, pool, worst_bs),
        reference_best_s=take(pool.log_probs_bm, best_bs),
        reference_worst_s=take(pool.log_probs_bm, worst_bs),
        target_s=((task.config.n - 1) * gap_s).astype(np.float32),
        weight_s=(~tied_bs).reshape(-1).astype(np.float32),
    )
