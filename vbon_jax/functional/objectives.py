"""Losses to minimise, as undivided means: `Mean(total, weight)` is added up over micro-batches and
devices and divided once, globally.

S sequences, G response tokens, T tokens of a whole sequence. What stands at a masked position, NaN
included, reaches neither a total nor a gradient. Metrics carry no gradient.
"""

import math

import jax
import jax.numpy as jnp

from vbon_jax.functional import bon, checks, logprobs
from vbon_jax.types import Array, Mean

_LARGEST_LOG_RATIO = 20.0  # e^20 = 5e8: beyond it a ratio would overflow on its way to the gradient


def ppo_clip(
    log_probs_sg, old_log_probs_sg, advantages_sg, mask_sg, *, clip
) -> tuple[Mean, dict[str, Mean]]:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) per token, ρ = π/π_old. Source: Schulman et al., 2017, eq. 7.

    Args:
        log_probs_sg: [S, G] floating, log π of the sampled tokens, in nats; carries the gradient.
        old_log_probs_sg: [S, G] floating, the same under the policy that sampled them.
        advantages_sg: [S, G] floating.
        mask_sg: [S, G] boolean, True at response tokens.
        clip: ε > 0, a scalar.

    Returns:
        The loss, a Mean over tokens, and metrics, Means over the same tokens: `clip_fraction` (ρ
        outside 1 ± ε), `approx_kl` (k3 of KL(π_old‖π), nats) and `ratio` (ρ).

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape.
    """
    log_probs_sg = checks.floats("log_probs_sg", log_probs_sg, rank=2)
    shape = log_probs_sg.shape
    old_log_probs_sg = _like("old_log_probs_sg", old_log_probs_sg, shape)
    advantages_sg = _like("advantages_sg", advantages_sg, shape)
    mask_sg = checks.mask("mask_sg", mask_sg, shape)
    log_ratio_sg = jnp.where(mask_sg, log_probs_sg - old_log_probs_sg, 0.0)
    log_ratio_sg = jnp.clip(log_ratio_sg, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    advantages_sg = jnp.where(mask_sg, advantages_sg, 0.0)
    ratio_sg = jnp.exp(log_ratio_sg)
    clipped_sg = jnp.clip(ratio_sg, 1.0 - clip, 1.0 + clip)
    loss_sg = -jnp.minimum(ratio_sg * advantages_sg, clipped_sg * advantages_sg)
    metrics = {
        "clip_fraction": _mean(jnp.abs(ratio_sg - 1.0) > clip, mask_sg),
        "approx_kl": _mean(logprobs.kl_k3(jnp.zeros_like(log_ratio_sg), log_ratio_sg), mask_sg),
        "ratio": _mean(ratio_sg, mask_sg),
    }
    return _mean(loss_sg, mask_sg), jax.lax.stop_gradient(metrics)


def clipped_value_loss(
    values_sg, old_values_sg, returns_sg, mask_sg, *, clip
) -> tuple[Mean, dict[str, Mean]]:
    """½·max((V − R)², (V_clip − R)²) per token, V_clip = V_old + clip(V − V_old, −ε, ε).

    Source: the value loss of the PPO of OpenAI baselines, as used for language models by Ziegler
    et al., 2019. An infinite clip is the plain ½·(V − R)².

    Args:
        values_sg: [S, G] floating, the value head now; carries the gradient.
        old_values_sg: [S, G] floating, the values the advantages were made with.
        returns_sg: [S, G] floating, the targets R.
        mask_sg: [S, G] boolean, True at response tokens.
        clip: ε > 0, a scalar, in the rewards' unit.

    Returns:
        The loss, a Mean over tokens, and the metric `clip_fraction`: where the clipped error is
        the larger one, so that no gradient flows.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape.
    """
    values_sg = checks.floats("values_sg", values_sg, rank=2)
    old_values_sg = _like("old_values_sg", old_values_sg, values_sg.shape)
    returns_sg = _like("returns_sg", returns_sg, values_sg.shape)
    mask_sg = checks.mask("mask_sg", mask_sg, values_sg.shape)
    error_sg = jnp.where(mask_sg, values_sg - returns_sg, 0.0)
    moved_sg = jnp.where(mask_sg, values_sg - old_values_sg, 0.0)
    excess_sg = moved_sg - jnp.clip(moved_sg, -clip, clip)
    square_sg, clipped_square_sg = error_sg**2, (error_sg - excess_sg) ** 2
    loss_sg = 0.5 * jnp.maximum(square_sg, clipped_square_sg)
    metrics = {"clip_fraction": _mean(clipped_square_sg > square_sg, mask_sg)}
    return _mean(loss_sg, mask_sg), jax.lax.stop_gradient(metrics)


def nll(token_log_probs_st, mask_st) -> Mean:
    """−log π(token): the negative log-likelihood per token, in nats.

    Args:
        token_log_probs_st: [S, T] floating.
        mask_st: [S, T] boolean, True at the tokens that are learnt.

    Returns:
        A Mean over the masked tokens.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape.
    """
    token_log_probs_st = checks.floats("token_log_probs_st", token_log_probs_st, rank=2)
    mask_st = checks.mask("mask_st", mask_st, token_log_probs_st.shape)
    return _mean(-token_log_probs_st, mask_st)


def cross_entropy(logits_bc, labels_b) -> tuple[Mean, dict[str, Mean]]:
    """−log softmax(logits)[label] per text, for a classifier of C classes.

    Args:
        logits_bc: [B, C] floating.
        labels_b: [B] integer, 0 <= label < C.

    Returns:
        The loss in nats, a Mean over texts, and the metric `accuracy`.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape.
    """
    logits_bc = checks.floats("logits_bc", logits_bc, rank=2)
    labels_b = checks.integers("labels_b", labels_b, rank=1)
    checks.check_shape("labels_b", labels_b, logits_bc.shape[:1])
    log_probs_b = logprobs.token_log_probs(logits_bc[:, None, :], labels_b[:, None])[:, 0]
    every_b = jnp.ones(labels_b.shape, jnp.bool_)
    metrics = {"accuracy": _mean(jnp.argmax(logits_bc, axis=1) == labels_b, every_b)}
    return _mean(-log_probs_b, every_b), jax.lax.stop_gradient(metrics)


# ------------------------------------------------------- of whole responses, B log-probabilities


def bonbon(
    best_b, worst_b, reference_best_b, reference_worst_b, *, n, alpha, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """α·(−log π(best)) + (1−α)·(h − (n−1)·H_{n−1})². Source: BoNBoN, arXiv 2406.00832.

    h = log π(best)/π_ref(best) − log π(worst)/π_ref(worst), of the best and the worst of n draws.

    Args:
        best_b, worst_b: [B] floating, log π of the responses, nats summed over their tokens.
        reference_best_b, reference_worst_b: [B] floating, the same under the reference.
        n: integer of at least 1. alpha: in [0, 1].
        mask_b: [B] boolean, the pairs that count; None for all.

    Returns:
        The loss, a Mean over pairs, and metrics, Means over the same: `margin` (h, nats) and
        `accuracy` (h > 0).

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape, or n.
    """
    target = bon.bonbon_target(n)
    best_b, h_b, mask_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b)
    return _pair_loss(-alpha * best_b + (1.0 - alpha) * (h_b - target) ** 2, h_b, mask_b)


def bonbon_released(
    best_b, worst_b, reference_best_b, reference_worst_b, *, n, alpha, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """α·(−log π(best)) + (1−α)·(−log σ(β*_n·h)): what BoNBoN's released code computes.

    Its flag for the squared loss is never set in the branch that trains BoNBoN, so that DPO's
    logistic loss is mixed in instead. β*_n = 1/(2·(n−1)·H_{n−1}). For arguments, result and errors
    see `bonbon`; n is at least 2.
    """
    beta = bonbon_beta(n)
    best_b, h_b, mask_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b)
    loss_b = -alpha * best_b - (1.0 - alpha) * jax.nn.log_sigmoid(beta * h_b)
    return _pair_loss(loss_b, h_b, mask_b)


def bonbon_calibrated(
    best_b, worst_b, reference_best_b, reference_worst_b, target_b, *, alpha, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """`bonbon` with a target for each pair, (n−1)·(log F(best) − log F(worst)), [B] floating, nats.

    π_BoN's own h of this very pair, where `bonbon` has its mean over pairs.
    """
    best_b, h_b, mask_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b)
    target_b = _like("target_b", target_b, h_b.shape)
    loss_b = -alpha * best_b + (1.0 - alpha) * (h_b - jnp.where(mask_b, target_b, 0.0)) ** 2
    return _pair_loss(loss_b, h_b, mask_b)


def dpo(
    best_b, worst_b, reference_best_b, reference_worst_b, *, beta, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """−log σ(β·h). Source: Rafailov et al., arXiv 2305.18290, eq. 7. See `bonbon` for the rest."""
    _, h_b, mask_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b)
    return _pair_loss(-jax.nn.log_sigmoid(beta * h_b), h_b, mask_b)


def ipo(
    best_b, worst_b, reference_best_b, reference_worst_b, *, beta, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """(h − 1/(2β))². Source: Azar et al., arXiv 2310.12036, eq. 17. See `bonbon` for the rest."""
    _, h_b, mask_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b)
    return _pair_loss((h_b - 0.5 / beta) ** 2, h_b, mask_b)


def bonbon_beta(n: int) -> float:
    """β*_n = 1/(2·(n−1)·H_{n−1}), the β at which IPO on best and worst of n aims at Best-of-N.

    Raises ValueError for n below 2, where a pair is a response with itself.
    """
    if n < 2:
        raise ValueError(f"n is {n}: a pair needs the best and the worst of at least 2 draws")
    return 0.5 / bon.bonbon_target(n)


def vbon_regression(
    log_probs_b, reference_b, log_cdf_b, *, n, mask_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """(log π(y)/π_ref(y) − (n−1)·log F(y) − log n)² of any responses y.

    With continuous rewards E[F^{n−1}] = 1/n, so π_BoN has a loss of 0 at every y and is the
    minimiser. It is the log-CDF case of pointwise regression on a quantile reward (QRPO, arXiv
    2507.08068). Real n >= 1.

    Args:
        log_probs_b, reference_b: [B] floating, log π and log π_ref of the responses, nats.
        log_cdf_b: [B] floating, log F of their rewards, finite.
        mask_b: [B] boolean, the responses that count; None for all.

    Returns:
        The loss, a Mean over responses, and the metric `log_ratio` (nats) over the same.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank or shape.
    """
    log_probs_b = checks.floats("log_probs_b", log_probs_b, rank=1)
    shape = log_probs_b.shape
    mask_b = jnp.ones(shape, bool) if mask_b is None else checks.mask("mask_b", mask_b, shape)
    ratio_b = log_probs_b - _like("reference_b", reference_b, shape)
    target_b = (n - 1.0) * _like("log_cdf_b", log_cdf_b, shape) + math.log(n)
    ratio_b = jnp.where(mask_b, ratio_b, 0.0)
    error_b = jnp.where(mask_b, ratio_b - target_b, 0.0)
    return _mean(error_b**2, mask_b), {"log_ratio": jax.lax.stop_gradient(_mean(ratio_b, mask_b))}


def _pairs(best_b, worst_b, reference_best_b, reference_worst_b, mask_b):
    """Checked: log π(best), h and the mask; 0 where a pair does not count."""
    best_b = checks.floats("best_b", best_b, rank=1)
    shape = best_b.shape
    mask_b = jnp.ones(shape, bool) if mask_b is None else checks.mask("mask_b", mask_b, shape)
    h_b = best_b - _like("reference_best_b", reference_best_b, shape)
    h_b -= _like("worst_b", worst_b, shape) - _like("reference_worst_b", reference_worst_b, shape)
    return jnp.where(mask_b, best_b, 0.0), jnp.where(mask_b, h_b, 0.0), mask_b


def _pair_loss(loss_b: Array, h_b: Array, mask_b: Array) -> tuple[Mean, dict[str, Mean]]:
    metrics = {"margin": _mean(h_b, mask_b), "accuracy": _mean(h_b > 0, mask_b)}
    return _mean(loss_b, mask_b), jax.lax.stop_gradient(metrics)


def _mean(values: Array, mask: Array) -> Mean:
    """The sum of the values under the mask, and how many there are, both of the values' dtype."""
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.float32
    total = jnp.sum(jnp.where(mask, values.astype(dtype), 0.0))
    return Mean(total, jnp.sum(mask).astype(dtype))


def _like(name: str, value, shape: tuple[int, ...]) -> Array:
    array = checks.floats(name, value, rank=len(shape))
    checks.check_shape(name, array, shape)
    return array
