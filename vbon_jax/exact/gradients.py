"""Methods trained on all responses at once: their objectives, each response by its own weight.

The step, the optimiser and the objectives are those of every run; what a run samples is enumerated
here, so that nothing in a gradient is estimated.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.config import constants, defaults
from vbon_jax.exact import enumeration, optima
from vbon_jax.exact.enumeration import Law, Space
from vbon_jax.functional import bon, objectives, streams
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

    @property
    def contexts(self) -> Sequences:
        """Every prompt before every longest context, [P * S] rows."""
        lengths_s = np.full(len(self.space.contexts_sl), self.space.contexts_sl.shape[1])
        return enumeration.sequences(self.prompts_pt, self.space.contexts_sl, lengths_s)


class Batch(NamedTuple):
    """All responses to all prompts. `values` are an objective's own, [P, K] or [P, K, K] each."""

    contexts: Sequences
    space: Space
    log_reference_pk: np.ndarray
    n: np.ndarray  # [] float32, N of the step
    values: dict[str, np.ndarray]


class Constants(NamedTuple):
    """The numbers that an objective is compiled for; 0 while N grows, which is then traced."""

    n: int = 0
    alpha: float = 0.0


class ExactMethod(NamedTuple):
    """A method over all responses; alpha is `pairs.alpha`, or the row's own."""

    loss: Callable  # (Constants, Batch, log pi [P, K]) -> (Mean, metrics)
    values: Callable  # (law, n) -> the values of its batch
    optimum: Callable | None = None  # (law, n, alpha) -> log pi [P, K] of its minimum, if known
    height: Callable | None = None  # (log pi, optimum, law, n, alpha): the objective above it
    alpha: float | None = None
    anneals_n: bool = False  # N grows from 1 to its value first
    steps_grow: bool = False  # its targets grow as N does, so it takes more steps


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
        decoder.init(model, streams.key("policy of the lab", lab.seed)),
        np.stack([1 + number_p % words, 1 + number_p // words % words], axis=1),
        enumeration.enumerate_responses(lab.vocab_size, lab.length),
    )


def log_probs(model, params: Params, contexts: Sequences, space: Space) -> Array:
    """log pi(y|x) of all responses [P, K] float32, from one run over the longest contexts."""
    length = space.tokens_kl.shape[1]
    hidden = response_hidden(model, params, contexts, new_tokens=length)
    logits = decoder.logits(model, params, hidden)
    rows = len(space.contexts_sl)
    log_probs_pslv = jax.nn.log_softmax(logits).reshape(-1, rows, *logits.shape[1:])
    log_probs_pkl = log_probs_pslv[:, space.context_k[:, None], jnp.arange(length), space.tokens_kl]
    inside_kl = jnp.arange(length) < space.lengths_k[:, None]
    return jnp.where(inside_kl, log_probs_pkl, 0.0).sum(axis=-1)


_log_probs = jax.jit(log_probs, static_argnames="model")


def enumerate_policy(setting: Setting, params: Params) -> np.ndarray:
    """log pi(y|x) of all responses under a network, [P, K] float64, normalised.

    Raises ValueError where the network's own probabilities do not sum to 1.
    """
    log_policy_pk = _log_probs(setting.model, params, setting.contexts, setting.space)
    log_policy_pk = np.asarray(log_policy_pk, np.float64)
    sums_p = np.exp(log_policy_pk).sum(axis=1)
    if np.abs(sums_p - 1.0).max() > 1e-4:
        raise ValueError(f"the probabilities of all responses sum to {sums_p}")
    return enumeration.normalised(log_policy_pk)


# ---------------------------------------------------------------------------- losses


@functools.cache
def _objective(loss: Callable) -> Callable:
    """The objective of a step; one object for each loss, so that equal learners share a program."""

    def objective(model, constants: Constants, params: Params, batch: Batch):
        log_policy_pk = log_probs(model, params["decoder"], batch.contexts, batch.space)
        value, metrics = loss(constants, batch, log_policy_pk)
        return {"exact": (1.0, value)}, metrics

    return objective


def _backward(batch: Batch, log_policy_pk: Array, reward_pk: Array):
    """The policy gradient of (N-1) E[reward] - KL(pi || pi_ref), each response weighted by pi."""
    now_pk = jax.lax.stop_gradient(log_policy_pk)
    weight_pk = jnp.exp(now_pk)
    advantage_pk = (batch.n - 1.0) * reward_pk - (now_pk - batch.log_reference_pk)
    advantage_pk -= (weight_pk * advantage_pk).sum(axis=1, keepdims=True)
    flat = [part.ravel() for part in (log_policy_pk, now_pk, advantage_pk, weight_pk)]
    return objectives.policy_gradient(*flat[:3], weight_b=flat[3])


def _vbon(constants: Constants, batch: Batch, log_policy_pk: Array):
    log_cdf_pk, inclusive_pk = (batch.values[name] for name in ("log_below", "log_at_or_below"))
    reward_pk = bon.vbon_reward(
        log_cdf_pk, n=batch.n, bound="exact", log_cdf_inclusive=inclusive_pk
    )
    return _backward(batch, log_policy_pk, reward_pk)


def _reward(constants: Constants, batch: Batch, log_policy_pk: Array):
    return _backward(batch, log_policy_pk, batch.values["reward"])


def _bon_sft(constants: Constants, batch: Batch, log_policy_pk: Array):
    return objectives.bon_sft(log_policy_pk.ravel(), weight_b=batch.values["weight"].ravel())


def _regression(constants: Constants, batch: Batch, log_policy_pk: Array):
    parts = (log_policy_pk, batch.log_reference_pk, batch.values["log_cdf"], batch.values["weight"])
    *parts, weight_b = (part.ravel() for part in parts)
    return objectives.vbon_regression(*parts, n=constants.n, weight_b=weight_b)


def _sides(batch: Batch, log_policy_pk: Array) -> list[Array]:
    """Best, worst, and both under the reference, for all pairs of responses; flat."""
    shape = batch.values["weight"].shape
    policies = (log_policy_pk, batch.log_reference_pk)
    best_and_worst = [side for pk in policies for side in (pk[:, :, None], pk[:, None, :])]
    return [jnp.broadcast_to(side, shape).ravel() for side in best_and_worst]


def _bonbon(constants: Constants, batch: Batch, log_policy_pk: Array):
    sides, weight_b = _sides(batch, log_policy_pk), batch.values["weight"].ravel()
    return objectives.bonbon(*sides, n=constants.n, alpha=constants.alpha, weight_b=weight_b)


def _bonbon_calibrated(constants: Constants, batch: Batch, log_policy_pk: Array):
    sides, weight_b = _sides(batch, log_policy_pk), batch.values["weight"].ravel()
    target_b = batch.values["target"].ravel()
    return objectives.bonbon_calibrated(*sides, target_b, alpha=constants.alpha, weight_b=weight_b)


# ---------------------------------------------------------------------------- methods


def _kl_to_optimum(log_policy_pk: np.ndarray, optimum_pk: np.ndarray, *_) -> float:
    return enumeration.kl(log_policy_pk, optimum_pk)


def _kl_from_optimum(log_policy_pk: np.ndarray, optimum_pk: np.ndarray, *_) -> float:
    return enumeration.kl(optimum_pk, log_policy_pk)


def _annealed(values: Callable, optimum: Callable, loss: Callable = _reward) -> ExactMethod:
    """A method by the policy gradient; `optimum(law, n)`."""
    return ExactMethod(
        loss, values, lambda law, n, alpha: optimum(law, n), _kl_to_optimum, anneals_n=True
    )


def _of_pairs(loss: Callable, target: Callable) -> ExactMethod:
    """A method whose best and worst responses are to differ by `target(law, n)` in log-ratio."""

    def values(law: Law, n: int) -> dict[str, np.ndarray]:
        return {"weight": enumeration.pair_chances(law, n), "target": target(law, n)}

    def optimum(law: Law, n: int, alpha: float) -> np.ndarray:
        return optima.bonbon(law, n, alpha, target(law, n))

    def height(log_policy_pk, optimum_pk, law: Law, n: int, alpha: float) -> float:
        chances_pkk, target_pkk = enumeration.pair_chances(law, n), target(law, n)

        def value(log_pk: np.ndarray) -> float:
            d_pk = log_pk - law.log_reference_pk
            error_pkk = d_pk[:, :, None] - d_pk[:, None, :] - target_pkk
            loss_pkk = (1.0 - alpha) * error_pkk**2 - alpha * log_pk[:, :, None]
            return float((chances_pkk * loss_pkk).sum() / chances_pkk.sum())

        return value(log_policy_pk) - value(optimum_pk)

    return ExactMethod(loss, values, optimum, height, steps_grow=True)


def _own_target(law: Law, n: int) -> np.ndarray:
    log_cdf_pk = np.log(law.middle_pk)
    return (n - 1) * (log_cdf_pk[:, :, None] - log_cdf_pk[:, None, :])


_BONBON = _of_pairs(_bonbon, lambda law, n: bon.bonbon_target(n))
METHODS = {
    "vbon": _annealed(
        lambda law, n: {
            "log_below": enumeration.log(law.below_pk),
            "log_at_or_below": np.log(law.at_or_below_pk),
        },
        enumeration.best_of_n,
        _vbon,
    ),
    "vbon_l1": _annealed(
        lambda law, n: {"reward": np.log(law.middle_pk)},
        lambda law, n: optima.gibbs(law, np.log(law.middle_pk), n - 1),
    ),
    "kl_rl": _annealed(
        lambda law, n: {"reward": law.rewards_pk},
        lambda law, n: optima.gibbs(law, law.rewards_pk, n - 1),
    ),
    "bon_sft": ExactMethod(
        _bon_sft,
        lambda law, n: {"weight": np.exp(enumeration.best_of_n(law, n))},
        lambda law, n, alpha: enumeration.best_of_n(law, n),
        _kl_from_optimum,
    ),
    "vbon_regression": ExactMethod(
        _regression,
        lambda law, n: {"log_cdf": np.log(law.middle_pk), "weight": law.reference_pk},
        steps_grow=True,
    ),
    "bonbon": _BONBON,
    "bonbon_alpha_1": _BONBON._replace(
        optimum=lambda law, n, alpha: optima.best_of_pairs(law, n),
        height=_kl_from_optimum,
        alpha=1.0,
        steps_grow=False,
    ),
    "bonbon_alpha_0": _BONBON._replace(alpha=0.0),
    "bonbon_calibrated": _of_pairs(_bonbon_calibrated, _own_target),
}


def against_theory(
    log_policy_pk: np.ndarray, law: Law, method: str, n: int, alpha: float
) -> dict[str, float]:
    """Distances from a trained policy to the minimum of its objective, and from there to Best-of-N.

    `left` is the share of the objective's height above its minimum, at the reference, that is left.
    Empty for a method whose minimum is not known.
    """
    row = METHODS[method]
    if row.optimum is None:
        return {}
    alpha = alpha if row.alpha is None else row.alpha
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


def train(config, setting: Setting, law: Law, method: str, n: int) -> Params:
    """The network that a method ends with; one that anneals N goes along the path of N from 1.

    From one law to the next along that path is a short way. Straight to a large N, gradients of
    pi log pi first give up what looks bad under a policy that has not learnt the rest, and come
    back to it only slowly.
    """
    row, lab, adam = METHODS[method], config.lab, defaults()
    adam.train.beta2 = lab.beta2
    if row.anneals_n:
        numbers, first = Constants(), round(lab.steps_per_doubling * math.log2(n))
        total = first + lab.steps_at_n
    else:
        numbers = Constants(n, config.pairs.alpha if row.alpha is None else row.alpha)
        total = lab.steps + round(lab.steps_per_n * n) * row.steps_grow
        first = total // 4
    learner = step.Learner(
        _objective(row.loss), setting.model, numbers, constants(adam, optimizer.KEYS)
    )
    state = step.init_state(learner, {"decoder": setting.params})
    values = {name: np.asarray(value, "f4") for name, value in row.values(law, n).items()}
    log_reference_pk = law.log_reference_pk.astype("f4")
    batch = Batch(setting.contexts, setting.space, log_reference_pk, np.float32(1.0), values)
    batch = jax.device_put(batch)
    for at in range(total):
        if row.anneals_n:
            batch = batch._replace(n=np.float32(n ** min(1.0, at / first)))
        share = optimizer.rate_share(
            "cosine", max(0.0, (at - first) / (total - first)), update=at, warmup_updates=0
        )
        rate = np.float32(lab.learning_rate) * np.float32(share)
        state, _ = step.update(state, batch, optimizer.Rates(rate, rate), learner=learner)
    return state.params["decoder"]
