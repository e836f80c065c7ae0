"""Batches from the reference cache, and the objectives that read them: nothing is sampled.

Every method here sees the log-probabilities of whole responses, those of the reference from the
cache itself.
"""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vbon_jax import data
from vbon_jax.functional import bon, cdf, logprobs, objectives
from vbon_jax.models import responses
from vbon_jax.types import Array, InputError, Mean, Params, Samples, Sequences


@dataclasses.dataclass(frozen=True)
class Offline:
    """Constants of the offline objectives; `beta` is DPO's and IPO's."""

    new_tokens: int
    temperature: float
    n: float
    alpha: float
    beta: float


class ResponseBatch(NamedTuple):
    """Cached responses, [S] each: their log pi_ref and log F, nats."""

    sequences: Sequences
    reference_s: Array
    log_cdf_s: Array


class PairBatch(NamedTuple):
    """The best and the worst of N cached responses, [S] pairs."""

    best: Sequences
    worst: Sequences
    reference_best_s: Array
    reference_worst_s: Array
    target_s: Array  # (N-1) (log F(best) - log F(worst)), nats
    mask_s: Array  # False where best and worst have the same reward


def settings(config) -> Offline:
    """The constants from `config.n`, `config.pairs` and `config.sampling`; beta 0 is beta*_n.

    Raises InputError, naming the key, for an N or a constant that a method has no meaning for.
    """
    n, method, m = float(config.n), config.method, config.references.samples_per_prompt
    if m < 2:
        raise InputError(
            f"references.samples_per_prompt={m}: {method} ranks a response among the prompt's "
            "others; give at least 2"
        )
    if method != "vbon_regression":
        least = 1 if method == "bon_sft" else 2
        if not least <= n == int(n) <= m:
            raise InputError(
                f"n={n:g} (n_values): {method} takes the best of N cached responses, so N is a "
                f"whole number from {least} to references.samples_per_prompt={m}"
            )
    if not 0 <= config.pairs.alpha <= 1:
        raise InputError(f"pairs.alpha={config.pairs.alpha}; give a number from 0 to 1")
    if not config.pairs.beta >= 0:
        raise InputError(
            f"pairs.beta={config.pairs.beta}; give a positive number, or 0 for beta*_n"
        )
    beta = config.pairs.beta
    if not beta and method in ("dpo", "ipo"):
        beta = objectives.bonbon_beta(int(n))
    return Offline(
        config.sampling.max_new_tokens, config.sampling.temperature, n, config.pairs.alpha, beta
    )


# ---------------------------------------------------------------------------- batches


def response_batch(task, state, step: int, key):
    """S cached responses to each prompt of this step, all M equally likely."""
    return _responses(task, state, step, np.ones(task.cache.rewards_pm.shape[1]))


def best_response_batch(task, state, step: int, key):
    """S cached responses to each prompt, each drawn as the best of N of the M would be.

    The sorted sample j of M is the best of N with a chance of C(j-1, N-1) / C(M, N), ties by
    position: no subset is drawn, and no sample is out of reach.
    """
    m = task.cache.rewards_pm.shape[1]
    return _responses(task, state, step, bon.order_statistic_weights(m, int(task.config.n)))


def _responses(task, state, step: int, weights_m: np.ndarray):
    """Responses drawn with the given weights of their ranks; with replacement."""
    index_b, generator = _prompts(task, step)
    count = task.config.train.samples_per_prompt
    ranks_bs = generator.choice(
        len(weights_m), (len(index_b), count), p=weights_m / weights_m.sum()
    )
    order_bm = np.argsort(task.cache.rewards_pm[index_b], axis=1, kind="stable")
    chosen_bs = np.take_along_axis(order_bm, ranks_bs, axis=1)
    batch = ResponseBatch(
        _sequences(task, index_b, chosen_bs),
        _of(task.cache.log_probs_pm, index_b, chosen_bs),
        _of(_log_cdf(task, index_b), np.arange(len(index_b)), chosen_bs),
    )
    rewards = _of(task.cache.rewards_pm, index_b, chosen_bs)
    return state, batch, {"cache/reward": float(rewards.mean())}


def pair_batch(task, state, step: int, key):
    """S pairs for each prompt: the best and the worst of N of its M responses, drawn anew."""
    index_b, generator = _prompts(task, step)
    count, n = task.config.train.samples_per_prompt, int(task.config.n)
    rewards_bm = task.cache.rewards_pm[index_b]
    noise_bsm = generator.random((len(index_b), count, rewards_bm.shape[1]))
    drawn_bsn = np.argsort(noise_bsm, axis=-1)[..., :n]
    rewards_bsn = np.take_along_axis(rewards_bm[:, None], drawn_bsn, axis=-1)
    picked = bon.select_best_worst(rewards_bsn.reshape(-1, n))
    best_s, worst_s, tied_s = map(np.asarray, picked)
    chosen = [
        np.take_along_axis(drawn_bsn.reshape(-1, n), which[:, None], axis=1).reshape(-1, count)
        for which in (best_s, worst_s)
    ]
    rows = np.arange(len(index_b))
    log_cdf_bm = _log_cdf(task, index_b)
    gap_s = _of(log_cdf_bm, rows, chosen[0]) - _of(log_cdf_bm, rows, chosen[1])
    batch = PairBatch(
        *(_sequences(task, index_b, which) for which in chosen),
        *(_of(task.cache.log_probs_pm, index_b, which) for which in chosen),
        target_s=((n - 1) * gap_s).astype(np.float32),
        mask_s=~tied_s,
    )
    return state, batch, {"pairs/tied": float(tied_s.mean())}


def _prompts(task, step: int) -> tuple[np.ndarray, np.random.Generator]:
    """The prompts of a step, and the generator that draws their responses: by (seed, step)."""
    seed = task.config.seed
    index_b = data.batch_indices(
        len(task.prompts.token_ids), task.config.train.batch_size, seed=seed, step=step
    )
    return index_b, np.random.default_rng([seed, step])


def _log_cdf(task, index_b: np.ndarray) -> np.ndarray:
    estimator = task.config.cdf.estimator
    return np.asarray(
        cdf.log_cdf_of_references(task.cache.rewards_pm[index_b], estimator=estimator)
    )


def _of(values_pm: np.ndarray, index_b: np.ndarray, chosen_bs: np.ndarray) -> np.ndarray:
    """The chosen entries of each prompt's row, flat: [B * S]."""
    return np.take_along_axis(values_pm[index_b], chosen_bs, axis=1).reshape(-1)


def _sequences(task, index_b: np.ndarray, chosen_bs: np.ndarray) -> Sequences:
    prompts = data.pad_prompts(
        [task.prompts.token_ids[i] for i in index_b], width=task.prompt_width
    )
    tokens_bsg = np.take_along_axis(task.cache_tokens_pmg[index_b], chosen_bs[..., None], axis=1)
    lengths_bs = np.take_along_axis(task.cache.lengths_pm[index_b], chosen_bs, axis=1)
    samples = Samples(tokens_bsg, lengths_bs, None, None)
    return data.sequences(prompts, samples, width=task.prompt_width + tokens_bsg.shape[-1])


# ---------------------------------------------------------------------------- objectives


def _said(model, constants: Offline, params: Params, sequences: Sequences) -> tuple[Array, Array]:
    """Log-probabilities of the response tokens [S, G], and which are real."""
    said_sg, mask_sg, _ = responses.said(
        model,
        params["decoder"],
        sequences,
        new_tokens=constants.new_tokens,
        temperature=constants.temperature,
    )
    return said_sg, mask_sg


def bon_sft_objective(model, constants: Offline, params: Params, batch: ResponseBatch):
    """Negative log-likelihood of the responses' tokens, nats a token."""
    loss = objectives.nll(*_said(model, constants, params, batch.sequences))
    return {"nll": (1.0, loss)}, {"objective/mean": Mean(-loss.total, loss.weight)}


def vbon_regression_objective(model, constants: Offline, params: Params, batch: ResponseBatch):
    """The squared distance of each response's log-ratio to Best-of-N's own."""
    log_probs_s = logprobs.sequence_log_probs(*_said(model, constants, params, batch.sequences))
    loss, metrics = objectives.vbon_regression(
        log_probs_s, batch.reference_s, batch.log_cdf_s, n=constants.n
    )
    return _named(loss, metrics)


def _pair_log_probs(model, constants: Offline, params: Params, batch: PairBatch) -> tuple:
    """Log-probabilities of best and worst in one forward, then the reference's. [S] each."""
    both = Sequences(
        *(jnp.concatenate(parts) for parts in zip(batch.best, batch.worst, strict=True))
    )
    said = logprobs.sequence_log_probs(*_said(model, constants, params, both))
    return *jnp.split(said, 2), batch.reference_best_s, batch.reference_worst_s


def bonbon_objective(model, constants: Offline, params: Params, batch: PairBatch):
    """BoNBoN as the paper has it."""
    said = _pair_log_probs(model, constants, params, batch)
    n, alpha = int(constants.n), constants.alpha
    return _named(*objectives.bonbon(*said, n=n, alpha=alpha, mask_b=batch.mask_s))


def bonbon_released_objective(model, constants: Offline, params: Params, batch: PairBatch):
    """BoNBoN as its released code has it."""
    said = _pair_log_probs(model, constants, params, batch)
    n, alpha = int(constants.n), constants.alpha
    return _named(*objectives.bonbon_released(*said, n=n, alpha=alpha, mask_b=batch.mask_s))


def bonbon_calibrated_objective(model, constants: Offline, params: Params, batch: PairBatch):
    """BoNBoN with each pair's own target."""
    said = _pair_log_probs(model, constants, params, batch)
    loss, metrics = objectives.bonbon_calibrated(
        *said, batch.target_s, alpha=constants.alpha, mask_b=batch.mask_s
    )
    return _named(loss, metrics)


def dpo_objective(model, constants: Offline, params: Params, batch: PairBatch):
    """DPO on best and worst."""
    said = _pair_log_probs(model, constants, params, batch)
    return _named(*objectives.dpo(*said, beta=constants.beta, mask_b=batch.mask_s))


def ipo_objective(model, constants: Offline, params: Params, batch: PairBatch):
    """IPO on best and worst."""
    said = _pair_log_probs(model, constants, params, batch)
    return _named(*objectives.ipo(*said, beta=constants.beta, mask_b=batch.mask_s))


def _named(loss: Mean, metrics: dict[str, Mean]):
    """An objective's terms and metrics, as the step takes them."""
    named = {f"response/{name}": mean for name, mean in metrics.items()}
    return {"offline": (1.0, loss)}, named | {"objective/mean": Mean(-loss.total, loss.weight)}
