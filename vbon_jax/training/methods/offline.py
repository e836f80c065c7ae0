"""Methods that learn from responses of the reference policy, or from given preference pairs.

Every objective here sees the log-probabilities of whole responses.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from vbon_jax.data import batching
from vbon_jax.functional import bon, objectives
from vbon_jax.models.log_probs import response_log_probs
from vbon_jax.training import cached_batches, rollouts
from vbon_jax.training.cached_batches import PairBatch, ResponseBatch
from vbon_jax.training.task import Method, Task
from vbon_jax.types import Array, InputError, Mean, Params, Responses, Sequences


@dataclasses.dataclass(frozen=True)
class Offline:
    """Constants of the objectives; `beta` is that of DPO, IPO and QRPO."""

    new_tokens: int
    temperature: float
    n: float
    alpha: float
    beta: float
    kl_weight: float
    average: bool  # IPO's log-probabilities are means over tokens


def settings(
    config, *, least: int = 2, whole: bool = True, beta=None, pairs: bool = False
) -> Offline:
    """The constants from `config.n`, `config.pairs`, `config.bon_sft` and `config.sampling`.

    N is from `least`, and whole or not; `beta(n)` is what `pairs.beta` = 0 stands for; `pairs` says
    that the method takes given ones. Raises InputError, naming the key, for an N or a constant that
    a method has no meaning for.
    """
    if config.pairs.path and config.method == "bonbon_calibrated":
        raise InputError(
            "pairs.path: bonbon_calibrated takes each pair's target from its reference rewards, "
            "which given pairs do not have; use bonbon, dpo or ipo"
        )
    if config.pairs.path and pairs:
        check_n(config, least=least)
    else:
        check_references(config, least=least, whole=whole)
    return constants(config, beta=beta)


def constants(config, *, beta=None) -> Offline:
    """The constants alone, each checked; N is not."""
    pairs, bon_sft = config.pairs, config.bon_sft
    if not 0 <= pairs.alpha <= 1:
        raise InputError(f"pairs.alpha={pairs.alpha}; give a number from 0 to 1")
    if not pairs.beta >= 0:
        raise InputError(f"pairs.beta={pairs.beta}; give a positive number, or 0 for the one of N")
    if not bon_sft.kl_weight >= 0:
        raise InputError(f"bon_sft.kl_weight={bon_sft.kl_weight}; give a number from 0")
    if config.method == "ipo" and pairs.average and not pairs.beta:
        raise InputError(
            "pairs.average: beta*_n is of log-probabilities that are summed, so means over tokens "
            "have none; give pairs.beta"
        )
    if bon_sft.select not in ("weighted", "best"):
        raise InputError(
            f"bon_sft.select={bon_sft.select!r} is not known; choose one of weighted, best"
        )
    return Offline(
        new_tokens=config.sampling.max_new_tokens,
        temperature=config.sampling.temperature,
        n=float(config.n),
        alpha=pairs.alpha,
        beta=pairs.beta or (beta(float(config.n)) if beta else 0.0),
        kl_weight=bon_sft.kl_weight,
        average=pairs.average and config.method == "ipo",
    )


def check_references(config, *, least: int, whole: bool) -> None:
    """Refuse an N, or a number of references, that the best of N of M cannot be taken with."""
    used, every = config.references.used, config.references.refresh_every
    if used and every:
        raise InputError(
            f"references.used={used} is of the cache, and references.refresh_every={every} does "
            "without it; set one of them to 0"
        )
    key = "references.used" if used else "references.samples_per_prompt"
    m = used or config.references.samples_per_prompt
    if m < 2:
        raise InputError(
            f"{key}={m}: {config.method} ranks a response among the prompt's others; "
            "give at least 2"
        )
    check_n(config, least=least, most=m if whole else None, source=key, whole=whole)


def check_n(
    config, *, least: int, most: int | None = None, source: str = "", whole: bool = True
) -> None:
    """InputError for an N that is below `least`, above `most`, or not whole where it must be."""
    n = float(config.n)
    if n < least or (whole and n != int(n)) or (most is not None and n > most):
        end = "" if most is None else f" to {source}={most}"
        kind = "a whole number" if whole else "a number"
        raise InputError(f"n={n:g} (n_values): {config.method} takes {kind} from {least}{end}")


def _qrpo_beta(n: float) -> float:
    if n <= 1:
        raise InputError("n=1: qrpo takes beta = 1/(N-1); give pairs.beta or a larger N")
    return 1.0 / (n - 1.0)


def _whole_beta(n: float) -> float:
    return bon.bonbon_beta(int(n))


# ---------------------------------------------------------------------------- batches


def response_batch(task: Task, state, step: int, key):
    """S responses to each prompt of this step, all of the pool equally likely."""
    pool, cost = cached_batches.of_references(task, step)
    count = task.config.train.samples_per_prompt
    shape = (len(pool.rewards_bm), count)
    chosen_bs = cached_batches.generator(task, step).integers(0, pool.rewards_bm.shape[1], shape)
    return state, cached_batches.response_batch(task, pool, chosen_bs), _row(pool, chosen_bs) | cost


def best_response_batch(task: Task, state, step: int, key):
    """S responses to each prompt, drawn from Best-of-N of the pool."""
    pool, cost = cached_batches.of_references(task, step)
    chosen_bs = _best(task, pool, step)
    return state, cached_batches.response_batch(task, pool, chosen_bs), _row(pool, chosen_bs) | cost


def best_and_any_batch(task: Task, state, step: int, key):
    """S responses drawn from Best-of-N, and S of the reference, to each prompt: (batch, batch)."""
    pool, cost = cached_batches.of_references(task, step)
    chosen_bs = _best(task, pool, step)
    noise = cached_batches.generator(task, step, draw=1)
    any_bs = noise.integers(0, pool.rewards_bm.shape[1], chosen_bs.shape)
    batch = tuple(cached_batches.response_batch(task, pool, which) for which in (chosen_bs, any_bs))
    return state, batch, _row(pool, chosen_bs) | cost


def _best(task: Task, pool: cached_batches.Pool, step: int) -> np.ndarray:
    """By the weights of the order statistics, or as the best of N that are drawn."""
    count, n = task.config.train.samples_per_prompt, int(task.config.n)
    if task.config.bon_sft.select == "best":
        return cached_batches.best_and_worst(task, pool, step, count, n)[0]
    return cached_batches.best_ranks(task, pool, step, count, n)


def _row(pool: cached_batches.Pool, chosen_bs: np.ndarray) -> dict[str, float]:
    return {"cache/reward": float(cached_batches.take(pool.rewards_bm, chosen_bs).mean())}


def pair_batch(task: Task, state, step: int, key):
    """S pairs for each prompt: best and worst of N of its responses, or pairs that were given."""
    if task.pairs is not None:
        return state, _given_pairs(task, step), {}
    pool, cost = cached_batches.of_references(task, step)
    count, n = task.config.train.samples_per_prompt, int(task.config.n)
    best_bs, worst_bs, tied_bs = cached_batches.best_and_worst(task, pool, step, count, n)
    batch = cached_batches.pair_batch(task, pool, best_bs, worst_bs, tied_bs)
    return state, batch, {"pairs/tied": float(tied_bs.mean())} | cost


def _given_pairs(task: Task, step: int) -> PairBatch:
    """The rows of `pairs.path` of this step; their log pi_ref is worked out here."""
    train, pairs = task.config.train, task.pairs
    index_b = batching.batch_indices(
        len(pairs.prompt_ids),
        train.batch_size * train.samples_per_prompt,
        seed=task.config.seed,
        step=step,
    )
    prompts = batching.pad_prompts([pairs.prompt_ids[i] for i in index_b], width=task.prompt_width)
    width = task.sampling.max_new_tokens

    def joined(rows: list[tuple[int, ...]]) -> Sequences:
        padded = batching.pad_prompts([rows[i] for i in index_b], width=width)
        samples = Responses(padded.tokens_bp[:, None], padded.lengths_b[:, None], None, None)
        return batching.sequences(prompts, samples, width=task.prompt_width + width)

    best, worst = joined(pairs.chosen_ids), joined(pairs.rejected_ids)
    weight_s = np.ones(len(index_b), np.float32)
    return PairBatch(
        best,
        worst,
        *(rollouts.log_probs(task, task.reference_params, side) for side in (best, worst)),
        target_s=np.zeros_like(weight_s),
        weight_s=weight_s,
    )


# ---------------------------------------------------------------------------- objectives


def log_probs(model, constants, params: Params, sequences: Sequences) -> tuple[Array, Array]:
    """log pi of whole responses [S], nats, and how many tokens they have [S]."""
    log_probs_sg, mask_sg, _ = response_log_probs(
        model,
        params["decoder"],
        sequences,
        new_tokens=constants.new_tokens,
        temperature=constants.temperature,
    )
    return log_probs_sg.sum(axis=1), mask_sg.sum(axis=1)


def both(one: Sequences, other: Sequences) -> Sequences:
    """Two batches of sequences as one, so that one forward pass does for both."""
    return Sequences(*(jnp.concatenate(parts) for parts in zip(one, other, strict=True)))


def bon_sft_objective(model, constants: Offline, params: Params, batch: ResponseBatch):
    """Negative log-likelihood of the responses, nats each."""
    best_s, _ = log_probs(model, constants, params, batch.sequences)
    return named(*objectives.bon_sft(best_s))


def bon_sft_kl_objective(model, constants: Offline, params: Params, batch):
    """`bon_sft` and a KL to the reference, estimated from responses of the reference."""
    best, others = batch
    best_s, other_s = jnp.split(
        log_probs(model, constants, params, both(best.sequences, others.sequences))[0], 2
    )
    nll, _ = objectives.bon_sft(best_s)
    kl, _ = objectives.kl_to_reference(other_s, others.reference_s)
    metrics = {"objective/mean": Mean(-nll.total - constants.kl_weight * kl.total, nll.weight)}
    return {"nll": (1.0, nll), "kl": (constants.kl_weight, kl)}, metrics


def vbon_regression_objective(model, constants: Offline, params: Params, batch: ResponseBatch):
    """The squared distance of each response's log-ratio to Best-of-N's own."""
    said_s, _ = log_probs(model, constants, params, batch.sequences)
    return named(
        *objectives.vbon_regression(said_s, batch.reference_s, batch.log_cdf_s, n=constants.n)
    )


def qrpo_objective(model, constants: Offline, params: Params, batch: ResponseBatch):
    """The squared distance of each response's log-ratio to that of its quantile."""
    said_s, _ = log_probs(model, constants, params, batch.sequences)
    return named(*objectives.qrpo(said_s, batch.reference_s, batch.cdf_s, beta=constants.beta))


def pair_objective(loss, model, constants: Offline, params: Params, batch: PairBatch):
    """`loss(constants, batch, best, worst, reference best, reference worst)` of best and worst."""
    said_s, lengths_s = log_probs(model, constants, params, both(batch.best, batch.worst))
    sides = [*jnp.split(said_s, 2), batch.reference_best_s, batch.reference_worst_s]
    if constants.average:
        sides = [side / jnp.maximum(length, 1) for side, length in
                 zip(sides, [*jnp.split(lengths_s, 2)] * 2, strict=True)]  # fmt: skip
    return named(*loss(constants, batch, *sides))


def _bonbon(constants: Offline, batch: PairBatch, *said):
    n, alpha = int(constants.n), constants.alpha
    return objectives.bonbon(*said, n=n, alpha=alpha, weight_b=batch.weight_s)


def _bonbon_released(constants: Offline, batch: PairBatch, *said):
    n, alpha = int(constants.n), constants.alpha
    return objectives.bonbon_released(*said, n=n, alpha=alpha, weight_b=batch.weight_s)


def _bonbon_calibrated(constants: Offline, batch: PairBatch, *said):
    alpha, weight_s = constants.alpha, batch.weight_s
    return objectives.bonbon_calibrated(*said, batch.target_s, alpha=alpha, weight_b=weight_s)


def _dpo(constants: Offline, batch: PairBatch, *said):
    return objectives.dpo(*said, beta=constants.beta, weight_b=batch.weight_s)


def _ipo(constants: Offline, batch: PairBatch, *said):
    return objectives.ipo(*said, beta=constants.beta, weight_b=batch.weight_s)


def named(loss: Mean, metrics: dict[str, Mean]):
    """An objective's terms and metrics, as the step takes them."""
    metrics = {f"response/{name}": mean for name, mean in metrics.items()}
    return {"response": (1.0, loss)}, metrics | {"objective/mean": Mean(-loss.total, loss.weight)}


def _row_of(make_batch, objective, **limits) -> Method:
    return Method(
        make_batch=make_batch,
        objective=objective,
        settings=functools.partial(settings, **limits),
        source="references",
        reads="responses",
        draws_best=limits.get("whole", True),
        takes_pairs=limits.get("pairs", False),
    )


def _pairs(loss, **limits) -> Method:
    limits = {"pairs": True} | limits
    return _row_of(pair_batch, functools.partial(pair_objective, loss), **limits)


ROWS = {
    "vbon_regression": _row_of(response_batch, vbon_regression_objective, least=1, whole=False),
    "qrpo": _row_of(response_batch, qrpo_objective, least=1, whole=False, beta=_qrpo_beta),
    "bon_sft": _row_of(best_response_batch, bon_sft_objective, least=1),
    "bon_sft_kl": _row_of(best_and_any_batch, bon_sft_kl_objective, least=1),
    "bonbon": _pairs(_bonbon),
    "bonbon_released": _pairs(_bonbon_released),
    "bonbon_calibrated": _pairs(_bonbon_calibrated, pairs=False),
    "dpo": _pairs(_dpo, beta=_whole_beta),
    "ipo": _pairs(_ipo, beta=_whole_beta),
}
