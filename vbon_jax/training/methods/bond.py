"""Methods that imitate the best of fresh draws: BOND, J-BOND, RAFT, BoNBoN on the policy's own."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vbon_jax.functional import advantages, cdf, objectives
from vbon_jax.training import cached_batches
from vbon_jax.training.methods import offline, vbon
from vbon_jax.training.rollouts import log_probs, prompts_of, rollout
from vbon_jax.training.step import TrainState
from vbon_jax.training.task import Method, Task
from vbon_jax.types import Array, InputError, Params, Sequences

# ---------------------------------------------------------------------------- BOND, J-BOND


@dataclasses.dataclass(frozen=True)
class Bond:
    """Constants of the objective; the weight of the backward KL is in the advantages too."""

    new_tokens: int
    temperature: float
    backward: float
    clip: float  # of the ratio to the policy that drew


class BondBatch(NamedTuple):
    """Draws from Best-of-N and from the policy, [S] each."""

    best: Sequences
    sampled: Sequences
    old_log_probs_s: Array  # of `sampled` when it was drawn, nats
    advantage_s: Array


def bond_settings(config, *, anchored: bool) -> Bond:
    """The constants from `config.bond`; InputError for what has no meaning, naming the key."""
    settings, train = config.bond, config.train
    if anchored:
        offline.check_n(config, least=2)
    else:
        offline.check_references(config, least=1, whole=True)
    if train.batch_size * train.samples_per_prompt < 2:
        raise InputError(
            f"{config.method} compares responses with each other: train.batch_size x "
            "train.samples_per_prompt must be at least 2"
        )
    if not 0 <= settings.backward <= 1:
        raise InputError(f"bond.backward={settings.backward}; give a number from 0 to 1")
    if not 0 < settings.anchor_rate <= 1:
        raise InputError(f"bond.anchor_rate={settings.anchor_rate}; give a number in (0, 1]")
    if not settings.anchor_kl >= 0:
        raise InputError(f"bond.anchor_kl={settings.anchor_kl}; give a number from 0")
    return Bond(
        new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        backward=settings.backward,
        clip=config.ppo.clip,
    )


def bond_batch(task: Task, state: TrainState, step: int, key: Array):
    """Best-of-N of the reference cache, and the policy's own draws against log F of the cache."""
    config, params = task.config, state.params["decoder"]
    n, count = int(config.n), config.train.samples_per_prompt
    fresh = rollout(task, params, prompts_of(task, step), key, num_samples=count)
    pool = cached_batches.of_cache(task, step)
    old_s = log_probs(task, params, fresh.sequences)
    log_ratio_s = old_s - log_probs(task, task.reference_params, fresh.sequences)
    reward_bn = vbon.vbon_transform(fresh.rewards_bn, pool.rewards_bm, config)
    score_s = (n - 1) * np.asarray(reward_bn).reshape(-1) - log_ratio_s
    batch = BondBatch(
        best=cached_batches.sequences(
            task, pool, cached_batches.best_ranks(task, pool, step, count, n)
        ),
        sampled=fresh.sequences,
        old_log_probs_s=old_s,
        advantage_s=config.bond.backward * _against_the_others(score_s, count),
    )
    return state, batch, _row(fresh, log_ratio_s, score_s) | fresh.cost


def j_bond_batch(task: Task, state: TrainState, step: int, key: Array):
    """Best-of-N of a moving anchor, and the policy's draws ranked among N draws of the anchor."""
    config, params = task.config, state.params["decoder"]
    n, count = int(config.n), config.train.samples_per_prompt
    anchor = _moved(state.anchor, params, np.float32(config.bond.anchor_rate))
    state = state._replace(anchor=anchor)
    index_b = prompts_of(task, step)
    fresh = rollout(task, params, index_b, key, num_samples=count)
    drawn = rollout(task, anchor, index_b, jax.random.fold_in(key, 1), num_samples=count * n)
    groups_sn = drawn.rewards_bn.reshape(-1, n)
    best_s = groups_sn.argmax(axis=1)
    best_bs = (best_s + n * np.tile(np.arange(count), len(index_b))).reshape(-1, count)
    old_s = log_probs(task, params, fresh.sequences)
    log_ratio_s = old_s - log_probs(task, anchor, fresh.sequences)
    estimator = config.cdf.estimator
    log_cdf_s = np.asarray(
        cdf.log_cdf(fresh.rewards_bn.reshape(-1), groups_sn, estimator=estimator)
    )
    backward, kl = config.bond.backward, config.bond.anchor_kl
    score_s = backward * ((n - 1) * log_cdf_s - log_ratio_s) - kl * log_ratio_s
    batch = BondBatch(
        best=cached_batches.sequences(task, cached_batches.of_rollout(drawn), best_bs),
        sampled=fresh.sequences,
        old_log_probs_s=old_s,
        advantage_s=_against_the_others(score_s, count),
    )
    cost = {name: spent + drawn.cost[name] for name, spent in fresh.cost.items()}
    return state, batch, _row(fresh, log_ratio_s, score_s) | cost


@jax.jit
def _moved(anchor: Params, params: Params, rate: Array) -> Params:
    """The anchor, a step of the moving average later."""
    return optax.incremental_update(params, anchor, rate)


def _against_the_others(score_s: np.ndarray, count: int) -> np.ndarray:
    """Minus the mean of the prompt's other responses; of the batch's, where a prompt has one."""
    groups = score_s.reshape(-1, count) if count > 1 else score_s.reshape(1, -1)
    return np.asarray(advantages.rloo(groups)).reshape(-1)


def _row(fresh, log_ratio_s, score_s) -> dict[str, float]:
    return {
        "rollout/reward": float(fresh.rewards_bn.mean()),
        "rollout/kl": float(log_ratio_s.mean()),
        "rollout/length": float(fresh.samples.lengths_bn.mean()),
        "objective/mean": float(score_s.mean()),
    }


def bond_objective(model, settings: Bond, params: Params, batch: BondBatch):
    """The Jeffreys mix: forward KL by draws from Best-of-N, backward KL by the policy's own."""
    best_s, sampled_s = jnp.split(
        offline.log_probs(model, settings, params, offline.both(batch.best, batch.sampled))[0], 2
    )
    forward, _ = objectives.bon_sft(best_s)
    backward, metrics = objectives.policy_gradient(
        sampled_s, batch.old_log_probs_s, batch.advantage_s, clip=settings.clip
    )
    terms = {"forward": (1.0 - settings.backward, forward), "backward": (1.0, backward)}
    return terms, {f"response/{name}": mean for name, mean in metrics.items()}


# ---------------------------------------------------------------------------- RAFT, online BoNBoN


class BestBatch(NamedTuple):
    """The best of N draws of each prompt, [S] rows."""

    sequences: Sequences


def fresh_settings(config, *, least: int) -> offline.Offline:
    """The constants of an offline objective for draws of the policy: N is what is sampled."""
    offline.check_n(config, least=least)
    return offline.constants(config)


def raft_batch(task: Task, state: TrainState, step: int, key: Array):
    """The best of N draws of the policy to each prompt."""
    fresh = _n_draws(task, state, step, key)
    best_b1 = fresh.rewards_bn.argmax(axis=1)[:, None]
    pool = cached_batches.of_rollout(fresh)
    row = _drawn_row(fresh) | {"rollout/best_reward": float(fresh.rewards_bn.max(axis=1).mean())}
    return state, BestBatch(cached_batches.sequences(task, pool, best_b1)), row


def online_bonbon_batch(task: Task, state: TrainState, step: int, key: Array):
    """The best and the worst of N draws of the policy to each prompt."""
    fresh = _n_draws(task, state, step, key)
    pool = cached_batches.of_rollout(fresh)
    best_b, worst_b = fresh.rewards_bn.argmax(axis=1), fresh.rewards_bn.argmin(axis=1)
    tied_b = fresh.rewards_bn.max(axis=1) == fresh.rewards_bn.min(axis=1)
    best, worst = (
        cached_batches.sequences(task, pool, which[:, None]) for which in (best_b, worst_b)
    )
    batch = cached_batches.PairBatch(
        best,
        worst,
        *(log_probs(task, task.reference_params, side) for side in (best, worst)),
        target_s=np.zeros(len(tied_b), np.float32),
        weight_s=(~tied_b).astype(np.float32),
    )
    return state, batch, _drawn_row(fresh) | {"pairs/tied": float(tied_b.mean())}


def _n_draws(task: Task, state: TrainState, step: int, key: Array):
    index_b, n = prompts_of(task, step), int(task.config.n)
    return rollout(task, state.params["decoder"], index_b, key, num_samples=n)


def _drawn_row(fresh) -> dict[str, float]:
    return {
        "rollout/reward": float(fresh.rewards_bn.mean()),
        "rollout/length": float(fresh.samples.lengths_bn.mean()),
    } | fresh.cost


ROWS = {
    "bond": Method(
        make_batch=bond_batch,
        objective=bond_objective,
        settings=functools.partial(bond_settings, anchored=False),
        source="rollouts",
        reads="responses",
        draws_best=True,
    ),
    "j_bond": Method(
        make_batch=j_bond_batch,
        objective=bond_objective,
        settings=functools.partial(bond_settings, anchored=True),
        source="rollouts",
        anchor=True,
    ),
    "raft": Method(
        make_batch=raft_batch,
        objective=offline.bon_sft_objective,
        settings=functools.partial(fresh_settings, least=1),
        source="rollouts",
        rows_per_prompt=1,
    ),
    "online_bonbon": Method(
        make_batch=online_bonbon_batch,
        objective=offline.ROWS["bonbon"].objective,
        settings=functools.partial(fresh_settings, least=2),
        source="rollouts",
        rows_per_prompt=1,
    ),
}
