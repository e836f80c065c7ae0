"""Losses to minimise, as undivided means: `Mean(total, weight)` is added up over micro-batches and
devices and divided once, globally.

    S sequences    G response tokens    T tokens of a whole sequence    B responses, pairs or texts

An argument is floating and of its suffix's shape, unless its function says otherwise; masks are
boolean, True at the tokens that count. Log-probabilities are in nats, those of a whole response
summed over its tokens; the first one carries the gradient. A function returns its loss, a Mean
over what counts, and metrics, Means over the same, without a gradient. What a masked position
holds, NaN included, reaches neither a total nor a gradient. A wrong dtype is a TypeError and a
wrong rank or shape a ValueError; both name the argument.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import bon, checks, logprobs
from vbon_jax.types import Array, Mean

_LARGEST_LOG_RATIO = 20.0  # e^20 = 5e8: beyond it a ratio would overflow on its way to the gradient


def ppo_clip(
    log_probs_sg, old_log_probs_sg, advantages_sg, mask_sg, *, clip
) -> tuple[Mean, dict[str, Mean]]:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) per token, ρ = π/π_old. Source: Schulman et al., 2017, eq. 7.

    π_old is the policy that sampled the tokens; `clip` is ε > 0, a scalar. Metrics: `clip_fraction`
    (ρ outside 1 ± ε), `approx_kl` (k3 of KL(π_old‖π), nats) and `ratio` (ρ).
    """
    log_probs_sg = checks.floats("log_probs_sg", log_probs_sg, rank=2)
    shape = log_probs_sg.shape
    old_log_probs_sg = checks.floats("old_log_probs_sg", old_log_probs_sg, shape)
    advantages_sg = checks.floats("advantages_sg", advantages_sg, shape)
    mask_sg = checks.array("mask_sg", mask_sg, np.bool_, shape)
    log_ratio_sg = log_probs_sg - old_log_probs_sg
    loss_sg, log_ratio_sg = _surrogate(log_ratio_sg, advantages_sg, mask_sg, clip)
    ratio_sg = jnp.exp(log_ratio_sg)
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
    et al., 2019. V_old are the values that the advantages were made with, R the targets, `clip` is
    ε > 0, a scalar in the rewards' unit; infinite, it gives the plain ½·(V − R)². Metric:
    `clip_fraction`, where the clipped error is the larger one, so that no gradient flows.
    """
    values_sg = checks.floats("values_sg", values_sg, rank=2)
    old_values_sg = checks.floats("old_values_sg", old_values_sg, values_sg.shape)
    returns_sg = checks.floats("returns_sg", returns_sg, values_sg.shape)
    mask_sg = checks.array("mask_sg", mask_sg, np.bool_, values_sg.shape)
    error_sg = jnp.where(mask_sg, values_sg - returns_sg, 0.0)
    moved_sg = jnp.where(mask_sg, values_sg - old_values_sg, 0.0)
    excess_sg = moved_sg - jnp.clip(moved_sg, -clip, clip)
    square_sg, clipped_square_sg = error_sg**2, (error_sg - excess_sg) ** 2
    loss_sg = 0.5 * jnp.maximum(square_sg, clipped_square_sg)
    metrics = {"clip_fraction": _mean(clipped_square_sg > square_sg, mask_sg)}
    return _mean(loss_sg, mask_sg), jax.lax.stop_gradient(metrics)


def nll(token_log_probs_st, mask_st) -> Mean:
    """−log π(token): the negative log-likelihood per token, in nats, without metrics."""
    token_log_probs_st = checks.floats("token_log_probs_st", token_log_probs_st, rank=2)
    mask_st = checks.array("mask_st", mask_st, np.bool_, token_log_probs_st.shape)
    return _mean(-token_log_probs_st, mask_st)


def cross_entropy(logits_bc, labels_b) -> tuple[Mean, dict[str, Mean]]:
    """−log softmax(logits)[label] per text in nats, for C classes; the metric is `accuracy`.

    labels_b: integer, 0 <= label < C.
    """
    logits_bc = checks.floats("logits_bc", logits_bc, rank=2)
    labels_b = checks.array("labels_b", labels_b, np.integer, logits_bc.shape[:1])
    log_probs_b = logprobs.token_log_probs(logits_bc[:, None, :], labels_b[:, None])[:, 0]
    every_b = jnp.ones(labels_b.shape, jnp.bool_)
    metrics = {"accuracy": _mean(jnp.argmax(logits_bc, axis=1) == labels_b, every_b)}
    return _mean(-log_probs_b, every_b), jax.lax.stop_gradient(metrics)


# ------------------------------------------------------- of whole responses, B log-probabilities
#
# `weight_b` is how much each pair or response counts, None for 1: a mask, chances of an
# enumeration, anything that is not negative. What has a weight of 0 may hold NaN.


def bradley_terry(
    chosen_b, rejected_b, *, centring=0.0, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """−log σ(r_c − r_r) + centring·(r_c + r_r)²: a reward model on preference pairs.

    Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, eq. 1. Given are the rewards of
    the preferred texts and of the others. A reward is known up to a constant of the prompt; the
    second term, `centring` >= 0, draws the mean of a pair's rewards to 0 (Eisenstein et al. 2023,
    arXiv 2312.09244, section 2.2). Metrics: `margin` (r_c − r_r), `accuracy` (r_c > r_r, a tie one
    half), `confidence` (σ(|margin|): where the model is calibrated, its mean is the accuracy) and
    `reward` (the mean of the two).
    """
    chosen_b = checks.floats("chosen_b", chosen_b, rank=1)
    rejected_b = checks.floats("rejected_b", rejected_b, chosen_b.shape)
    weight_b = _weights(weight_b, chosen_b.shape)
    margin_b = chosen_b - rejected_b
    loss_b = -jax.nn.log_sigmoid(margin_b) + centring * (chosen_b + rejected_b) ** 2
    metrics_b = {
        "margin": margin_b,
        "accuracy": 0.5 * (1.0 + jnp.sign(margin_b)),
        "confidence": jax.nn.sigmoid(jnp.abs(margin_b)),
        "reward": 0.5 * (chosen_b + rejected_b),
    }
    metrics = {name: _weighted(value_b, weight_b) for name, value_b in metrics_b.items()}
    return _weighted(loss_b, weight_b), jax.lax.stop_gradient(metrics)


def bonbon(
    best_b, worst_b, reference_best_b, reference_worst_b, *, n, alpha, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """α·(−log π(best)) + (1−α)·(h − (n−1)·H_{n−1})². Source: BoNBoN, arXiv 2406.00832.

    h = log π(best)/π_ref(best) − log π(worst)/π_ref(worst), of the best and the worst of n draws;
    n is an integer of at least 1, alpha in [0, 1]. Metrics: `margin` (h, nats) and `accuracy`
    (h > 0).
    """
    target = bon.bonbon_target(n)
    best_b, h_b, weight_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b)
    return _pair_loss(-alpha * best_b + (1.0 - alpha) * (h_b - target) ** 2, h_b, weight_b)


def bonbon_released(
    best_b, worst_b, reference_best_b, reference_worst_b, *, n, alpha, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """α·(−log π(best)) + (1−α)·(−log σ(β*_n·h)): what BoNBoN's released code computes.

    Its flag for the squared loss is never set in the branch that trains BoNBoN, so that DPO's
    logistic loss is mixed in instead. β*_n = 1/(2·(n−1)·H_{n−1}), n >= 2. Otherwise as `bonbon`.
    """
    beta = bon.bonbon_beta(n)
    best_b, h_b, weight_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b)
    loss_b = -alpha * best_b - (1.0 - alpha) * jax.nn.log_sigmoid(beta * h_b)
    return _pair_loss(loss_b, h_b, weight_b)


def bonbon_calibrated(
    best_b, worst_b, reference_best_b, reference_worst_b, target_b, *, alpha, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """`bonbon` with a target for each pair, (n−1)·(log F(best) − log F(worst)) in nats.

    π_BoN's own h of this very pair, where `bonbon` has its mean over pairs.
    """
    best_b, h_b, weight_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b)
    target_b = jnp.where(weight_b > 0, checks.floats("target_b", target_b, h_b.shape), 0.0)
    return _pair_loss(-alpha * best_b + (1.0 - alpha) * (h_b - target_b) ** 2, h_b, weight_b)


def dpo(
    best_b, worst_b, reference_best_b, reference_worst_b, *, beta, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """−log σ(β·h). Source: Rafailov et al., arXiv 2305.18290, eq. 7. See `bonbon` for the rest."""
    _, h_b, weight_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b)
    return _pair_loss(-jax.nn.log_sigmoid(beta * h_b), h_b, weight_b)


def ipo(
    best_b, worst_b, reference_best_b, reference_worst_b, *, beta, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """(h − 1/(2β))². Source: Azar et al., arXiv 2310.12036, eq. 17. See `bonbon` for the rest.

    With log-probabilities averaged over tokens in place of sums it is the form of some libraries,
    in which β*_n has no meaning.
    """
    _, h_b, weight_b = _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b)
    return _pair_loss((h_b - 0.5 / beta) ** 2, h_b, weight_b)


def vbon_regression(
    log_probs_b, reference_b, log_cdf_b, *, n, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """(log π(y)/π_ref(y) − (n−1)·log F(y) − log n)² of any responses y, with finite log F.

    With continuous rewards E[F^{n−1}] = 1/n, so π_BoN has a loss of 0 at every y and is the
    minimiser. It is the log-CDF case of pointwise regression on a quantile reward (QRPO, arXiv
    2507.08068). Real n >= 1. Metric: `log_ratio` (nats).
    """
    log_cdf_b = checks.floats("log_cdf_b", log_cdf_b, rank=1)
    target_b = (n - 1.0) * log_cdf_b + math.log(n)
    return _regression(log_probs_b, reference_b, target_b, weight_b)


def qrpo(
    log_probs_b, reference_b, quantile_b, *, beta, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """(log π(y)/π_ref(y) − F(y)/β + log[β·(e^{1/β} − 1)])². Source: QRPO, arXiv 2507.08068.

    `quantile_b` is F, in [0, 1], and β is above 0. Its minimiser is π_ref·e^{F/β} over its
    normaliser, which is known because F is uniform. (The paper's loss is β² times this.) Metric:
    `log_ratio` (nats).
    """
    quantile_b = checks.floats("quantile_b", quantile_b, rank=1)
    log_normaliser = 1.0 / beta + math.log(beta * -math.expm1(-1.0 / beta))
    return _regression(log_probs_b, reference_b, quantile_b / beta - log_normaliser, weight_b)


def bon_sft(best_b, *, weight_b=None) -> tuple[Mean, dict[str, Mean]]:
    """−log π(y) of draws from Best-of-N: its cross-entropy, minimal at π_BoN; without metrics."""
    best_b = checks.floats("best_b", best_b, rank=1)
    weight_b = _weights(weight_b, best_b.shape)
    return _weighted(-best_b, weight_b), {}


def kl_to_reference(log_probs_b, reference_b, *, weight_b=None) -> tuple[Mean, dict[str, Mean]]:
    """KL(π ‖ π_ref) from draws of π_ref: the mean of ρ·log ρ − ρ + 1, ρ = π/π_ref, never negative.

    In nats, without metrics. What `bon_sft_kl` adds to `bon_sft`. log ρ is cut at 20 above.
    """
    log_probs_b = checks.floats("log_probs_b", log_probs_b, rank=1)
    weight_b = _weights(weight_b, log_probs_b.shape)
    log_ratio_b = log_probs_b - checks.floats("reference_b", reference_b, log_probs_b.shape)
    log_ratio_b = jnp.minimum(jnp.where(weight_b > 0, log_ratio_b, 0.0), _LARGEST_LOG_RATIO)
    ratio_b = jnp.exp(log_ratio_b)
    return _weighted(ratio_b * log_ratio_b - ratio_b + 1.0, weight_b), {}


def policy_gradient(
    log_probs_b, old_log_probs_b, advantage_b, *, clip=math.inf, weight_b=None
) -> tuple[Mean, dict[str, Mean]]:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) of whole responses, ρ = π/π_old.

    Of the policy's own draws, π_old being the policy that drew them. Its gradient at π = π_old is
    the policy gradient; an infinite clip is −ρ·A. The backward half of BOND (arXiv 2407.14622,
    section 4), whose A is (N−1)·log F − log π/π_ref minus a baseline; the forward half is
    `bon_sft`. Metric: `ratio` (ρ).
    """
    log_probs_b = checks.floats("log_probs_b", log_probs_b, rank=1)
    shape = log_probs_b.shape
    weight_b = _weights(weight_b, shape)
    log_ratio_b = log_probs_b - checks.floats("old_log_probs_b", old_log_probs_b, shape)
    advantage_b = checks.floats("advantage_b", advantage_b, shape)
    loss_b, log_ratio_b = _surrogate(log_ratio_b, advantage_b, weight_b > 0, clip)
    metrics = {"ratio": _weighted(jnp.exp(log_ratio_b), weight_b)}
    return _weighted(loss_b, weight_b), jax.lax.stop_gradient(metrics)


def _surrogate(log_ratio, advantages, counts, clip) -> tuple[Array, Array]:
    """−min(ρ·A, clip(ρ, 1−ε, 1+ε)·A) where it counts, and log ρ, cut where ρ would overflow."""
    log_ratio = jnp.where(counts, log_ratio, 0.0)
    log_ratio = jnp.clip(log_ratio, -_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    advantages, ratio = jnp.where(counts, advantages, 0.0), jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    return -jnp.minimum(ratio * advantages, clipped * advantages), log_ratio


def _regression(log_probs_b, reference_b, target_b, weight_b) -> tuple[Mean, dict[str, Mean]]:
    """(log-ratio − target)², and the metric `log_ratio`."""
    log_probs_b = checks.floats("log_probs_b", log_probs_b, rank=1)
    shape = log_probs_b.shape
    weight_b = _weights(weight_b, shape)
    ratio_b = log_probs_b - checks.floats("reference_b", reference_b, shape)
    ratio_b = jnp.where(weight_b > 0, ratio_b, 0.0)
    error_b = ratio_b - jnp.where(weight_b > 0, checks.floats("target_b", target_b, shape), 0.0)
    metrics = {"log_ratio": jax.lax.stop_gradient(_weighted(ratio_b, weight_b))}
    return _weighted(error_b**2, weight_b), metrics


def _pairs(best_b, worst_b, reference_best_b, reference_worst_b, weight_b):
    """Checked: log π(best), h and the weights; 0 where a pair does not count."""
    best_b = checks.floats("best_b", best_b, rank=1)
    shape = best_b.shape
    weight_b = _weights(weight_b, shape)
    worst_b = checks.floats("worst_b", worst_b, shape)
    h_b = best_b - checks.floats("reference_best_b", reference_best_b, shape)
    h_b -= worst_b - checks.floats("reference_worst_b", reference_worst_b, shape)
    counts_b = weight_b > 0
    return jnp.where(counts_b, best_b, 0.0), jnp.where(counts_b, h_b, 0.0), weight_b


def _pair_loss(loss_b: Array, h_b: Array, weight_b: Array) -> tuple[Mean, dict[str, Mean]]:
    metrics = {"margin": _weighted(h_b, weight_b), "accuracy": _weighted(h_b > 0, weight_b)}
    return _weighted(loss_b, weight_b), jax.lax.stop_gradient(metrics)


def _weights(weight_b, shape: tuple[int, ...]) -> Array:
    return jnp.ones(shape) if weight_b is None else checks.floats("weight_b", weight_b, shape)


def _weighted(values_b: Array, weight_b: Array) -> Mean:
    """The weighted sum and the sum of the weights; where the weight is 0, nothing is read."""
    total = jnp.sum(jnp.where(weight_b > 0, weight_b * values_b, 0.0))
    return Mean(total, jnp.sum(weight_b))


def _mean(values: Array, mask: Array) -> Mean:
    """The sum of the values under the mask, and how many there are, both of the values' dtype."""
    dtype = values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.float32
    total = jnp.sum(jnp.where(mask, values.astype(dtype), 0.0))
    return Mean(total, jnp.sum(mask).astype(dtype))
