"""Log-probabilities and divergences from logits, in nats.

Logits are [B, T, V], of any floating dtype, position t predicting token t; results are float32
(float64 for float64 logits). Logits are taken whole: `models.log_probs` makes them for a few tokens
at a time where they are large. A wrong dtype is a TypeError and a wrong rank or shape a ValueError;
both name the argument.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import checks
from vbon_jax.types import Array


def token_log_probs(logits_btv, tokens_bt) -> Array:
    """log π(token) [B, T]: the token's logit minus the log-sum-exp over the vocabulary.

    tokens_bt: [B, T] integer, 0 <= token < V (anything in range where it is masked later).
    """
    logits_btv = checks.array("logits_btv", logits_btv, np.floating, rank=3)
    tokens_bt = checks.array("tokens_bt", tokens_bt, np.integer, logits_btv.shape[:2])
    maximum_bt = jax.lax.stop_gradient(_widen(jnp.max(logits_btv, axis=-1)))
    total_bt = jnp.sum(jnp.exp(_widen(logits_btv) - maximum_bt[..., None]), axis=-1)
    token_logits_bt = jnp.take_along_axis(logits_btv, tokens_bt[..., None], axis=-1)[..., 0]
    return _widen(token_logits_bt) - maximum_bt - jnp.log(total_bt)


def sequence_log_probs(token_log_probs_bt, mask_bt) -> Array:
    """log π(y|x) = Σ_t log π(y_t|x, y_<t) over the masked positions [B]: a sum, never an average.

    mask_bt: boolean, or floating weights. 0 leaves a position out, whatever it holds, NaN included;
    the sum of nothing is 0.
    """
    token_log_probs_bt = checks.floats("token_log_probs_bt", token_log_probs_bt, rank=2)
    mask_bt = jnp.asarray(mask_bt)
    if mask_bt.dtype == jnp.bool_:
        mask_bt = mask_bt.astype(token_log_probs_bt.dtype)
    mask_bt = checks.floats("mask_bt", mask_bt, token_log_probs_bt.shape)
    return jnp.sum(jnp.where(mask_bt != 0, token_log_probs_bt, 0.0) * mask_bt, axis=1)


def kl_divergence(logits_btv, reference_logits_btv) -> Array:
    """KL(p‖q) = Σ_v p(v) (log p(v) − log q(v)) [B, T] >= 0, over the whole vocabulary.

    Of the laws of the first and of the second logits. Summed as Σ p·(e^{−δ} − 1 + δ) with δ = log p
    − log q, whose terms are never negative: as both laws sum to one it is the same number, and a
    rounding error in a normaliser enters it squared. It is 0 for equal logits. A logit of −inf is a
    token of probability 0; in q and not in p it makes the divergence infinite.
    """
    log_p, outside_p = _log_softmax("logits_btv", logits_btv)
    log_q, outside_q = _log_softmax("reference_logits_btv", reference_logits_btv, log_p.shape)
    p, q = jnp.exp(log_p), jnp.where(outside_q, 0.0, jnp.exp(log_q))
    delta = log_p - log_q
    near = jnp.abs(delta) < 0.25
    inside = jnp.where(
        near, p * _beyond_linear_series(jnp.where(near, -delta, 0.0)), q - p + p * delta
    )
    # p(v) = 0 leaves q(v) of the sum; p(v) > 0 = q(v) is an infinite divergence
    inside = jnp.where(outside_p, q, inside)
    return jnp.sum(jnp.where(outside_q & ~outside_p, jnp.inf, inside), axis=-1)


def kl_k3(log_probs, reference_log_probs) -> Array:
    """q/p − 1 − log(q/p) at samples of p: the unbiased estimate of KL(p‖q) that is never negative.

    Of log p and log q of the samples, floating, of one shape. Source: Schulman, "Approximating KL
    Divergence", 2020, k3.
    """
    log_probs = checks.floats("log_probs", log_probs)
    x = checks.floats("reference_log_probs", reference_log_probs, log_probs.shape) - log_probs
    near = jnp.abs(x) < 0.25  # where the parts of e^x − 1 − x cancel
    return jnp.where(near, _beyond_linear_series(jnp.where(near, x, 0.0)), jnp.expm1(x) - x)


def _log_softmax(name: str, logits_btv, shape=None) -> tuple[Array, Array]:
    """Log-probabilities, 0 where the logit is −inf, and where that is."""
    logits_btv = checks.array(name, logits_btv, np.floating, shape, rank=3)
    outside = jnp.isneginf(logits_btv)
    maximum = jax.lax.stop_gradient(jnp.max(logits_btv, axis=-1, keepdims=True))
    shifted = _widen(jnp.where(outside, 0.0, logits_btv)) - jnp.where(outside, 0.0, maximum)
    total = jnp.sum(jnp.where(outside, 0.0, jnp.exp(shifted)), axis=-1, keepdims=True)
    return jnp.where(outside, 0.0, shifted - jnp.log(total)), outside


def _beyond_linear_series(x: Array) -> Array:
    """e^x − 1 − x = x²·Σ_k x^k / (k+2)! for |x| < 0.25, to 1e-11 of itself."""
    coefficients = np.array([1.0 / math.factorial(k) for k in range(9, 1, -1)]).astype(x.dtype)
    return x**2 * jnp.polyval(coefficients, x)


def _widen(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
