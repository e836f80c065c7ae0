"""Methods trained on all responses at once: their objectives, each response by its own weight.

The step, the optimiser and the objectives are those of every run; what a run samples is enumerated
here, so that nothing in a gradient is estimated.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.config import constants, defaults
from vbon_jax.exact import enumeration, optima
from vbon_jax.exact.enumeration import Law, Space
from vbon_jax.functional import bon, objectives
from vbon_jax.models import decoder
from vbon_jax.models.log_probs import response_hidden
from vbon_jax.training import optimizer, step
from vbon_jax.types import Array, Params, Sequences


class Setting(NamedTuple):
    """A policy that can be enumerated: its network, its prompts, its responses."""

    model: decoder.DecoderConfig
    params: Params  # of the reference policy
    prompts_pt: np.ndarray
    space: Space


class Batch(NamedTuple):
    """All responses to all prompts. `values` are an objective's own, [P, K] or [P, K, K] each."""

    contexts: Sequences  # [P * S] rows
    context_k: np.ndarray
    tokens_kl: np.ndarray
    inside_kl: np.ndarray
    log_reference_pk: np.ndarray
    n: np.ndarray  # [] float32, N of the step
    values: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Constants:
    """What an objective takes as numbers; 0 where it takes none."""

    n: int = 0
    alpha: float = 0.0


class Exact(NamedTuple):
    """A method over all responses."""

    objective: Callable  # (model, Constants, params, Batch) -> (terms, metrics)
    values: Callable  # (law, n) -> the values of its batch
    optimum: Callable  # (law, n, alpha) -> log pi [P, K] of its minimum, in theory
    constants: Callable  # (n, alpha) -> Constants
    height: Callable  # (log pi, log pi of the minimum, law, n, alpha) -> the objective above it
    follows: bool = False  # N grows from 1 to its own value first
    grows: bool = False  # it regresses on targets that grow as N does, and takes longer


# ---------------------------------------------------------------------------- the policy


def make_setting(config) -> Setting:
    """The random policy of `config.lab`, and its prompts of two words."""
    lab = config.lab
    model = decoder.DecoderConfig(
        vocab_size=lab.vocab_size,
        width=lab.width,
        num_layers=lab.num_layers,
        num_heads=4,
        mlp_width=2 * lab.width,
        max_positions=2 + lab.length,
        initializer_std=lab.initializer_std,
        tie_embeddings=False,
    )
    words = lab.vocab_size - 1
    number_p = np.arange(lab.prompts)
    return Setting(
        model,
        decoder.init(model, jax.random.key(lab.seed)),
        np.stack([1 + number_p % words, 1 + number_p // words % words], axis=1),
        enumeration.enumerate_responses(lab.vocab_size, lab.length),
    )


def log_probs(model, params: Params, batch: Batch) -> Array:
    """log pi(y|x) of all responses [P, K] float32, from one run over the longest contexts."""
    length = batch.tokens_kl.shape[1]
    hidden = response_hidden(model, params, batch.contexts, new_tokens=length)
    logits = decoder.logits(model, params, hidden)
    contexts = int(batch.contexts.tokens_st.shape[0]) // batch.log_reference_pk.shape[0]
    said = jax.nn.log_softmax(logits).reshape(-1, contexts, *logits.shape[1:])
    said_pkl = said[:, batch.context_k[:, None], jnp.arange(length), batch.tokens_kl]
    return jnp.where(batch.inside_kl, said_pkl, 0.0).sum(axis=-1)


_log_probs = jax.jit(log_probs, static_argnames="model")


def enumerate_policy(setting: Setting, params: Params) -> np.ndarray:
    """log pi(y|x) of all responses under a network, [P, K] float64, normalised.

    Raises ValueError where the network's own probabilities do not sum to 1.
    """
    said_pk = np.asarray(_log_probs(setting.model, params, _batch(setting)), np.float64)
    sums_p = np.exp(said_pk).sum(axis=1)
    if np.abs(sums_p - 1.0).max() > 1e-4:
        raise ValueError(f"the probabilities of all responses sum to {sums_p}")
    return enumeration.normalised(said_pk)


def _batch(setting: Setting, law: Law | None = None, values: dict | None = None) -> Batch:
    space, shape = setting.space, (len(setting.prompts_pt), setting.space.size)
    contexts, length = len(space.contexts_sl), space.tokens_kl.shape[1]
    return Batch(
        contexts=enumeration.behind(
            setting.prompts_pt, space.contexts_sl, np.full(contexts, length - 1)
        ),
        context_k=space.context_k,
        tokens_kl=space.tokens_kl,
        inside_kl=np.arange(length) < space.lengths_k[:, None],
        log_reference_pk=(np.zeros(shape) if law is None else law.log_reference_pk).astype("f4"),
        n=np.float32(1.0),
        values={name: np.asarray(value, np.float32) for name, value in (values or {}).items()},
    )


# ---------------------------------------------------------------------------- objectives


def _objective(loss, model, constants: Constants, params: Params, batch: Batch):
    value, metrics = loss(constants, batch, log_probs(model, params["decoder"], batch))
    return {"exact": (1.0, value)}, metrics


def _backward(batch: Batch, said_pk: Array, score_pk: Array):
    """The policy gradient of E[score] - KL(pi || pi_ref), every response weighted by pi itself."""
    now_pk = jax.lax.stop_gradient(said_pk)
    weight_pk = jnp.exp(now_pk)
    advantage_pk = score_pk - (now_pk - batch.log_reference_pk)
    advantage_pk -= (weight_pk * advantage_pk).sum(axis=1, keepdims=True)
    flat = [part.ravel() for part in (said_pk, now_pk, advantage_pk, weight_pk)]
    return objectives.policy_gradient(*flat[:3], weight_b=flat[3])


def _vbon(constants: Constants, batch: Batch, said_pk: Array):
    reward_pk = bon.vbon_reward(
        batch.values["log_below"],
        n=batch.n,
        bound="exact",
        log_cdf_inclusive=batch.values["log_at_or_below"],
    )
    return _backward(batch, said_pk, (batch.n - 1.0) * reward_pk)


def _reward(constants: Constants, batch: Batch, said_pk: Array):
    return _backward(batch, said_pk, (batch.n - 1.0) * batch.values["reward"])


def _bon_sft(constants: Constants, batch: Batch, said_pk: Array):
    return objectives.bon_sft(said_pk.ravel(), weight_b=batch.values["weight"].ravel())


def _regression(constants: Constants, batch: Batch, said_pk: Array):
    parts = (said_pk, batch.log_reference_pk, batch.values["log_cdf"], batch.values["weight"])
    said_b, reference_b, log_cdf_b, weight_b = (part.ravel() for part in parts)
    return objectives.vbon_regression(
        said_b, reference_b, log_cdf_b, n=constants.n, weight_b=weight_b
    )


def _sides(batch: Batch, said_pk: Array) -> list[Array]:
    """Best, worst, and both under the reference, for all pairs of responses; flat."""
    shape = batch.values["weight"].shape
    both = (said_pk, batch.log_reference_pk)
    return [
        jnp.broadcast_to(part, shape).ravel()
        for part in [
            both[0][:, :, None], both[0][:, None, :], both[1][:, :, None], both[1][:, None, :]
        ]
    ]  # fmt: skip


def _bonbon(constants: Constants, batch: Batch, said_pk: Array):
    n, alpha, weight_b = constants.n, constants.alpha, batch.values["weight"].ravel()
    return objectives.bonbon(*_sides(batch, said_pk), n=n, alpha=alpha, weight_b=weight_b)


def _bonbon_calibrated(constants: Constants, batch: Batch, said_pk: Array):
    target_b, weight_b = (batch.values[name].ravel() for name in ("target", "weight"))
    return objectives.bonbon_calibrated(
        *_sides(batch, said_pk), target_b, alpha=constants.alpha, weight_b=weight_b
    )


# ---------------------------------------------------------------------------- methods


def _above_backward(log_policy_pk, optimum_pk, law: Law, n: float, alpha: float) -> float:
    return enumeration.kl(log_policy_pk, optimum_pk)


def _above_forward(log_policy_pk, optimum_pk, law: Law, n: float, alpha: float) -> float:
    return enumeration.kl(optimum_pk, log_policy_pk)


def _above_regression(log_policy_pk, optimum_pk, law: Law, n: float, alpha: float) -> float:
    def value(log_pk: np.ndarray) -> float:
        error_pk = log_pk - law.log_reference_pk - _regression_target(law, n)
        return float((law.reference_pk * error_pk**2).sum(axis=1).mean())

    return value(log_policy_pk) - value(optimum_pk)


def _above_pairs(target: Callable):
    """The height above the minimum of an objective of pairs, for `target(law, n)`."""

    def above(log_policy_pk, optimum_pk, law: Law, n: float, alpha: float) -> float:
        chances_pkk, target_pkk = enumeration.pair_chances(law, int(n)), target(law, n)

        def value(log_pk: np.ndarray) -> float:
            d_pk = log_pk - law.log_reference_pk
            error_pkk = d_pk[:, :, None] - d_pk[:, None, :] - target_pkk
            loss_pkk = (1.0 - alpha) * error_pkk**2 - alpha * log_pk[:, :, None]
            return float((chances_pkk * loss_pkk).sum() / chances_pkk.sum())

        return value(log_policy_pk) - value(optimum_pk)

    return above


def _log(values: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):  # nothing is below the lowest
        return np.log(values)


def _regression_target(law: Law, n: float) -> np.ndarray:
    return (n - 1) * _log(law.middle_pk) + math.log(n)


def _calibrated_target(law: Law, n: float) -> np.ndarray:
    log_cdf_pk = _log(law.middle_pk)
    return (n - 1) * (log_cdf_pk[:, :, None] - log_cdf_pk[:, None, :])


def _pair_values(law: Law, n: float) -> dict:
    return {"weight": enumeration.pair_chances(law, int(n))}


def _one_target(law: Law, n: float) -> float:
    return bon.bonbon_target(int(n))


def _by_alpha(n: float, alpha: float) -> Constants:
    return Constants(int(n), alpha)


def _no_constants(n: float, alpha: float) -> Constants:
    return Constants()


_OF_REWARD = functools.partial(_objective, _reward)  # one object: both its methods share a program
_OF_PAIRS = functools.partial(_objective, _bonbon)
METHODS = {
    "vbon": Exact(
        functools.partial(_objective, _vbon),
        lambda law, n: {
            "log_below": _log(law.below_pk),
            "log_at_or_below": _log(law.at_or_below_pk),
        },
        lambda law, n, alpha: enumeration.best_of_n(law, n),
        _no_constants,
        _above_backward,
        follows=True,
    ),
    "vbon_l1": Exact(
        _OF_REWARD,
        lambda law, n: {"reward": _log(law.middle_pk)},
        lambda law, n, alpha: optima.gibbs(law, _log(law.middle_pk), n - 1),
        _no_constants,
        _above_backward,
        follows=True,
    ),
    "kl_rl": Exact(
        _OF_REWARD,
        lambda law, n: {"reward": law.rewards_pk},
        lambda law, n, alpha: optima.gibbs(law, law.rewards_pk, n - 1),
        _no_constants,
        _above_backward,
        follows=True,
    ),
    "bon_sft": Exact(
        functools.partial(_objective, _bon_sft),
        lambda law, n: {"weight": np.exp(enumeration.best_of_n(law, n))},
        lambda law, n, alpha: enumeration.best_of_n(law, n),
        _no_constants,
        _above_forward,
    ),
    "vbon_regression": Exact(
        functools.partial(_objective, _regression),
        lambda law, n: {"log_cdf": _log(law.middle_pk), "weight": law.reference_pk},
        lambda law, n, alpha: optima.regression(law, _regression_target(law, n)),
        lambda n, alpha: Constants(int(n)),
        _above_regression,
        grows=True,
    ),
    "bonbon": Exact(
        _OF_PAIRS,
        _pair_values,
        lambda law, n, alpha: optima.bonbon(law, int(n), alpha, _one_target(law, n)),
        _by_alpha,
        _above_pairs(_one_target),
        grows=True,
    ),
    "bonbon_alpha_1": Exact(
        _OF_PAIRS,
        _pair_values,
        lambda law, n, alpha: optima.best_of_pairs(law, int(n)),
        lambda n, alpha: Constants(int(n), 1.0),
        _above_forward,
    ),
    "bonbon_alpha_0": Exact(
        _OF_PAIRS,
        _pair_values,
        lambda law, n, alpha: optima.ipo(law, int(n)),
        lambda n, alpha: Constants(int(n), 0.0),
        lambda policy, optimum, law, n, alpha: _above_pairs(_one_target)(
            policy, optimum, law, n, 0.0
        ),
        grows=True,
    ),
    "bonbon_calibrated": Exact(
        functools.partial(_objective, _bonbon_calibrated),
        lambda law, n: _pair_values(law, n) | {"target": _calibrated_target(law, n)},
        lambda law, n, alpha: optima.bonbon(law, int(n), alpha, _calibrated_target(law, n)),
        _by_alpha,
        _above_pairs(_calibrated_target),
        grows=True,
    ),
}


def against_theory(log_policy_pk, law: Law, method: str, n: float, alpha: float) -> dict:
    """How far a trained policy is from where its objective is minimal, and that from Best-of-N.

    `left` is the share of the objective's height above its minimum, at the reference, that is left.
    """
    row = METHODS[method]
    optimum_pk = row.optimum(law, n, alpha)
    above, above_at_first = (
        row.height(log_pk, optimum_pk, law, n, alpha)
        for log_pk in (log_policy_pk, law.log_reference_pk)
    )
    return {
        "kl_code_to_theory": enumeration.kl(log_policy_pk, optimum_pk),
        "kl_theory_to_code": enumeration.kl(optimum_pk, log_policy_pk),
        "left": above / above_at_first,
        "kl_theory_to_bon": enumeration.kl(optimum_pk, enumeration.best_of_n(law, n)),
    }


# ---------------------------------------------------------------------------- training


def steps(config, method: str, n: float) -> int:
    """How many updates a method takes at one N."""
    lab = config.lab
    if METHODS[method].follows:
        return round(lab.steps_per_doubling * math.log2(n)) + lab.steps_at_n
    return lab.steps + round(lab.steps_per_n * n) * METHODS[method].grows


def train(config, setting: Setting, law: Law, method: str, n: float) -> Iterator[Params]:
    """The network after each update. A method that follows goes along the path of N from 1.

    From one law to the next along that path is a short way. Straight to a large N, gradients of
    pi log pi first give up what looks bad under a policy that has not learnt the rest, and come
    back to it only slowly.
    """
    row, lab, optimised = METHODS[method], config.lab, defaults()
    optimised.train.beta2 = lab.beta2
    learner = step.Learner(
        row.objective,
        setting.model,
        row.constants(n, config.pairs.alpha),
        constants(optimised, optimizer.KEYS),
    )
    state = step.init_state(learner, {"decoder": setting.params})
    batch = jax.device_put(_batch(setting, law, row.values(law, n)))
    total = steps(config, method, n)
    first = total - lab.steps_at_n if row.follows else total // 4
    for at in range(total):
        if row.follows:
            batch = batch._replace(n=np.float32(n ** min(1.0, at / first)))
        share = optimizer.rate_share(
            "cosine", max(0.0, (at - first) / (total - first)), update=at, warmup_updates=0
        )
        rate = np.float32(lab.learning_rate) * np.float32(share)
        rates = optimizer.Rates(rate, rate)
        state, _ = step.update(state, batch, rates, learner=learner)
        yield state.params["decoder"]
