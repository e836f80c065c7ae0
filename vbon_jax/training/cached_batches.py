"""Draws from the reference cache: any responses, the best of N, the best and worst of N.

A draw is a function of (seed, step): a run that was interrupted draws the same again.
"""

import numpy as np

from vbon_jax.data import batching
from vbon_jax.functional import bon, cdf, streams
from vbon_jax.training import rollouts
from vbon_jax.training.task import Task
from vbon_jax.types import Responses


def generator(task: Task, step: int, *, draw: int = 0) -> np.random.Generator:
    """The random numbers of draw `draw` of a step."""
    return streams.generator("draws from the cache", task.config.seed, step, draw)


def cached_responses(task: Task, step: int) -> Responses:
    """The cached responses of the reference policy to the prompts of a step, [B, M]."""
    return batching.at_prompts(task.cache, rollouts.prompts_of(task, step))


def any_of(task: Task, responses: Responses, step: int, *, draw: int = 0) -> np.ndarray:
    """S of the M responses to each prompt, all equally likely: [B, S] places."""
    prompts, m = responses.rewards_bn.shape
    shape = prompts, task.config.train.samples_per_prompt
    return generator(task, step, draw=draw).integers(0, m, shape)


def best_of_n(task: Task, responses: Responses, step: int) -> np.ndarray:
    """S responses to each prompt, each drawn as the best of N of the M would be: [B, S] places.

    The sorted response j of M is the best of N with a chance of C(j-1, N-1) / C(M, N), ties in an
    order drawn anew: no subset is drawn.
    """
    rewards_bm, noise = responses.rewards_bn, generator(task, step)
    prompts, m = rewards_bm.shape
    weights_m = bon.order_statistic_weights(m, int(task.config.n))
    shape = prompts, task.config.train.samples_per_prompt
    ranks_bs = noise.choice(m, shape, p=weights_m / weights_m.sum())
    order_bm = np.lexsort((noise.random(rewards_bm.shape), rewards_bm), axis=1)
    return np.take_along_axis(order_bm, ranks_bs, axis=1)


def best_and_worst(
    task: Task, responses: Responses, step: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places of the best and worst of N drawn of the M, S times a prompt, and whether they tie.

    [B, S] each.
    """
    rewards_bm, n = responses.rewards_bn, int(task.config.n)
    shape = len(rewards_bm), task.config.train.samples_per_prompt
    noise_bsm = generator(task, step).random((*shape, rewards_bm.shape[1]))
    drawn_bsn = np.argsort(noise_bsm, axis=-1)[..., :n]
    rewards_bsn = np.take_along_axis(rewards_bm[:, None], drawn_bsn, axis=-1)
    best_s, worst_s, tied_s = map(np.asarray, bon.select_best_worst(rewards_bsn.reshape(-1, n)))
    best_bs, worst_bs = (
        np.take_along_axis(drawn_bsn.reshape(-1, n), which[:, None], axis=1).reshape(shape)
        for which in (best_s, worst_s)
    )
    return best_bs, worst_bs, tied_s.reshape(shape)


def cdf_of(task: Task, responses: Responses) -> np.ndarray:
    """F of each response: the share of the prompt's others below it, [B, M] float32."""
    return np.asarray(cdf.cdf_of_references(responses.rewards_bn))


def log_cdf(task: Task, responses: Responses) -> np.ndarray:
    """log F of each response by its rank among the prompt's others, [B, M] float32, nats."""
    estimator = task.config.cdf.estimator
    return np.asarray(cdf.log_cdf_of_references(responses.rewards_bn, estimator=estimator))


def metrics(chosen: Responses) -> dict[str, float]:
    """The metrics of the chosen responses of a step."""
    return {"cache/reward": float(chosen.rewards_bn.reshape(-1).mean())}
