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


class Batch(NamedTuple):
    """All responses to all prompts. `values` are an objective's own, [P, K] or [P, K, K] each."""

    contexts: Sequences  # [P * S] rows
    context_k: np.ndarray
    tokens_kl: np.ndarray
    inside_kl: np.ndarray
    log_reference_pk: np.ndarray
    n: np.ndarray  # [] float32, N of the step
    values: dict[str, np.ndarray]


class Constants(NamedTuple):
    """The numbers that an objective is compiled for; 0 where it reads none."""

    n: int = 0
    alpha: float = 0.0


class ExactMethod(NamedTuple):
    """A method over all responses; alpha is `pairs.alpha`, or the row's own."""

    loss: Callable  # (Constants, Batch, log pi [P, K]) -> (Mean, metrics)
    values: Callable  # (law, n) -> the values of its batch
    optimum: Callable | None = None  # (law, n, alpha) -> log pi [P, K] of its minimum, if known
    height: Callable | None = None  # (log pi, optimum, law, n, alpha): the objective above it
    reads: tuple[str, ...] = ()  # of Constants
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


def log_probs(model, params: Params, batch: Batch) -> Array:
    """log pi(y|x) of all responses [P, K] float32, from one run over the longest contexts."""
    length = batch.tokens_kl.shape[1]
    hidden = response_hidden(model, params, batch.contexts, new_tokens=length)
    logits = decoder.logits(model, params, hidden)
    contexts = int(batch.contexts.tokens_st.shape[0]) // batch.log_reference_pk.shape[0]
    log_probs_pslv = jax.nn.log_softmax(logits).reshape(-1, contexts, *logits.shape[1:])
    log_probs_pkl = log_probs_pslv[:, batch.context_k[:, None], jnp.arange(length), batch.tokens_kl]
    return jnp.where(batch.inside_kl, log_probs_pkl, 0.0).sum(axis=-1)


_log_probs = jax.jit(log_probs, static_argnames="model")


def enumerate_policy(setting: Setting, params: Params) -> np.ndarray:
    """log pi(y|x) of all responses under a network, [P, K] float64, normalised.

    Raises ValueError where the network's own probabilities do not sum to 1.
    """
    log_policy_pk = np.asarray(_log_probs(setting.model, params, _batch(setting)), np.float64)
    sums_p = np.exp(log_policy_pk).sum(axis=1)
    if np.abs(sums_p - 1.0).max() > 1e-4:
        raise ValueError(f"the probabilities of all responses sum to {sums_p}")
    return enumeration.normalised(log_policy_pk)


def _batch(setting: Setting, law: Law | None = None, values: dict | None = None) -> Batch:
    space, shape = setting.space, (len(setting.prompts_pt), setting.space.size)
    contexts, length = len(space.contexts_sl), space.tokens_kl.shape[1]
    return Batch(
        contexts=enumeration.sequences(
            setting.prompts_pt, space.contexts_sl, np.full(contexts, length - 1)
        ),
        context_k=space.context_k,
        tokens_kl=space.tokens_kl,
        inside_kl=np.arange(length) < space.lengths_k[:, None],
        log_reference_pk=(np.zeros(shape) if law is None else law.log_reference_pk).astype("f4"),
        n=np.float32(1.0),
        values={name: np.asarray(value, np.float32) for name, value in (values or {}).items()},
    )


# ---------------------------------------------------------------------------- losses


@functools.cache
def _objective(loss: Callable) -> Callable:
    """The objective of a step; one object for each loss, so that equal learners share a program."""

    def objective(model, constants: Constants, params: Params, batch: Batch):
        value, metrics = loss(constants, batch, log_probs(model, params["decoder"], batch))
        return {"exact": (1.0, value)}, metrics

    return objective


def _backward(batch: Batch, log_policy_pk: Array, score_pk: Array):
    """The policy gradient of E[score] - KL(pi || pi_ref), every response weighted by pi itself."""
    now_pk = jax.lax.stop_gradient(log_policy_pk)
    weight_pk = jnp.exp(now_pk)
    advantage_pk = score_pk - (now_pk - batch.log_reference_pk)
    advantage_pk -= (weight_pk * advantage_pk).sum(axis=1, keepdims=True)
    flat = [part.ravel() for part in (log_policy_pk, now_pk, advantage_pk, weight_pk)]
    return objectives.policy_gradient(*flat[:3], weight_b=flat[3])


def _vbon(constants: Constants, batch: Batch, log_policy_pk: Array):
    reward_pk = bon.vbon_reward(
        batch.values["log_below"],
        n=batch.n,
        bound="exact",
        log_cdf_inclusive=batch.values["log_at_or_below"],
    )
    return _backward(batch, log_policy_pk, (batch.n - 1.0) * reward_pk)


def _reward(constants: Constants, batch: Batch, log_policy_pk: Array):
    return _backward(batch, log_policy_pk, (batch.n - 1.0) * batch.values["reward"])


def _bon_sft(constants: Constants, batch: Batch, log_policy_pk: Array):
    return objectives.bon_sft(log_policy_pk.ravel(), weight_b=batch.values["weight"].ravel())


def _regression(constants: Constants, batch: Batch, log_policy_pk: Array):
    parts = (log_policy_pk, batch.log_reference_pk, batch.values["log_cdf"], batch.values["weight"])
    log_policy_b, reference_b, log_cdf_b, weight_b = (part.ravel() for part in parts)
    return objectives.vbon_regression(
        log_policy_b, reference_b, log_cdf_b, n=constants.n, weight_b=weight_b
    )


def _sides(batch: Batch, log_policy_pk: Array) -> list[Array]:
    """Best, worst, and both under the reference, for all pairs of responses; flat."""
    shape = batch.values["weight"].shape
    policies = (log_policy_pk, batch.log_reference_pk)
    best_and_worst = [side for pk in policies for side in (pk[:, :, None], pk[:, None, :])]
    return [jnp.broadcast_to(side, shape).ravel() for side in best_and_worst]


def _bonbon(constants: Constants, batch: Batch, log_policy_pk: Array):
    weight_b = batch.values["weight"].ravel()
    return objectives.bonbon(
        *_sides(batch, log_policy_pk), n=constants.n, alpha=constants.alpha, weight_b=weight_b
    )


def _bonbon_calibrated(constants: Constants, batch: Batch, log_policy_pk: Array):
    target_b, weight_b = (batch.values[name].ravel() for name in ("target", "weight"))
    return objectives.bonbon_calibrated(
        *_sides(batch, log_policy_pk), target_b, alpha=constants.alpha, weight_b=weight_b
    )


# ---------------------------------------------------------------------------- theory


def _kl_backward(log_policy_pk: np.ndarray, optimum_pk: np.ndarray, *_) -> float:
    return enumeration.kl(log_policy_pk, optimum_pk)


def _kl_forward(log_policy_pk: np.ndarray, optimum_pk: np.ndarray, *_) -> float:
    return enumeration.kl(optimum_pk, log_policy_pk)


def _pair_height(target: Callable) -> Callable:
    """The height above the minimum of an objective of pairs, for `target(law, n)`."""

    def height(log_policy_pk, optimum_pk, law: Law, n: float, alpha: float) -> float:
        chances_pkk, target_pkk = enumeration.pair_chances(law, int(n)), target(law, n)

        def value(log_pk: np.ndarray) -> float:
            d_pk = log_pk - law.log_reference_pk
            error_pkk = d_pk[:, :, None] - d_pk[:, None, :] - target_pkk
            loss_pkk = (1.0 - alpha) * error_pkk**2 - alpha * log_pk[:, :, None]
            return float((chances_pkk * loss_pkk).sum() / chances_pkk.sum())

        return value(log_policy_pk) - value(optimum_pk)

    return height


def _mean_target(law: Law, n: float) -> float:
    return bon.bonbon_target(int(n))


def _own_target(law: Law, n: float) -> np.ndarray:
    log_cdf_pk = np.log(law.middle_pk)
    return (n - 1) * (log_cdf_pk[:, :, None] - log_cdf_pk[:, None, :])


def _pair_values(law: Law, n: float) -> dict[str, np.ndarray]:
    return {"weight": enumeration.pair_chances(law, int(n))}


# ---------------------------------------------------------------------------- methods

_BONBON = ExactMethod(
    _bonbon,
    _pair_values,
    lambda law, n, alpha: optima.bonbon(law, int(n), alpha, _mean_target(law, n)),
    _pair_height(_mean_target),
    reads=("n", "alpha"),
    steps_grow=True,
)
METHODS = {
    "vbon": ExactMethod(
        _vbon,
        lambda law, n: {
            "log_below": enumeration.log(law.below_pk),
            "log_at_or_below": np.log(law.at_or_below_pk),
        },
        lambda law, n, alpha: enumeration.best_of_n(law, n),
        _kl_backward,
        anneals_n=True,
    ),
    "vbon_l1": ExactMethod(
        _reward,
        lambda law, n: {"reward": np.log(law.middle_pk)},
        lambda law, n, alpha: optima.gibbs(law, np.log(law.middle_pk), n - 1),
        _kl_backward,
        anneals_n=True,
    ),
    "kl_rl": ExactMethod(
        _reward,
        lambda law, n: {"reward": law.rewards_pk},
        lambda law, n, alpha: optima.gibbs(law, law.rewards_pk, n - 1),
        _kl_backward,
        anneals_n=True,
    ),
    "bon_sft": ExactMethod(
        _bon_sft,
        lambda law, n: {"weight": np.exp(enumeration.best_of_n(law, n))},
        lambda law, n, alpha: enumeration.best_of_n(law, n),
        _kl_forward,
    ),
    "vbon_regression": ExactMethod(
        _regression,
        lambda law, n: {"log_cdf": np.log(law.middle_pk), "weight": law.reference_pk},
        reads=("n",),
        steps_grow=True,
    ),
    "bonbon": _BONBON,
    "bonbon_alpha_1": _BONBON._replace(
        optimum=lambda law, n, alpha: optima.best_of_pairs(law, int(n)),
        height=_kl_forward,
        alpha=1.0,
        steps_grow=False,
    ),
    "bonbon_alpha_0": _BONBON._replace(alpha=0.0),
    "bonbon_calibrated": _BONBON._replace(
        loss=_bonbon_calibrated,
        values=lambda law, n: _pair_values(law, n) | {"target": _own_target(law, n)},
        optimum=lambda law, n, alpha: optima.bonbon(law, int(n), alpha, _own_target(law, n)),
        height=_pair_height(_own_target),
    ),
}


def against_theory(
    log_policy_pk: np.ndarray, law: Law, method: str, n: float, alpha: float
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


def train(config, setting: Setting, law: Law, method: str, n: float) -> Params:
    """The network that a method ends with; one that anneals N goes along the path of N from 1.

    From one law to the next along that path is a short way. Straight to a large N, gradients of
    pi log pi first give up what looks bad under a policy that has not learnt the rest, and come
    back to it only slowly.
    """
    row, lab, adam = METHODS[method], config.lab, defaults()
    adam.train.beta2 = lab.beta2
    numbers = {"n": int(n), "alpha": config.pairs.alpha if row.alpha is None else row.alpha}
    learner = step.Learner(
        _objective(row.loss),
        setting.model,
        Constants(**{name: numbers[name] for name in row.reads}),
        constants(adam, optimizer.KEYS),
    )
    if row.anneals_n:
        first = round(lab.steps_per_doubling * math.log2(n))
        total = first + lab.steps_at_n
    else:
        total = lab.steps + round(lab.steps_per_n * n) * row.steps_grow
        first = total // 4
    state = step.init_state(learner, {"decoder": setting.params})
    batch = jax.device_put(_batch(setting, law, row.values(law, n)))
    for at in range(total):
        if row.anneals_n:
            batch = batch._replace(n=np.float32(n ** min(1.0, at / first)))
        share = optimizer.rate_share(
            "cosine", max(0.0, (at - first) / (total - first)), update=at, warmup_updates=0
        )
        rate = np.float32(lab.learning_rate) * np.float32(share)
        state, _ = step.update(state, batch, optimizer.Rates(rate, rate), learner=learner)
    return state.params["decoder"]
