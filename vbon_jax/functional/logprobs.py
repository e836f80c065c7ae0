"""Log-probabilities, entropies and divergences from logits, without a `[B, T, V]` float32 array.

Everything is in nats and in float32 (float64 for float64 logits), also where the logits are
bfloat16. Whatever reduces the vocabulary goes through `_reduce_vocabulary`, which takes a large
batch a few time steps at once, forward and backward, so that a temporary never has the size of
the logits. It walks along time and leaves the batch axis whole: that is the axis a mesh shards.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import checks
from vbon_jax.types import Array

_CHUNK_BYTES = 2**23  # one temporary [B, steps, V] at the statistics' width; a time step at least


def token_log_probs(logits_btv, tokens_bt) -> Array:
    """log π(token) at every position: the token's logit minus the log-sum-exp over the vocabulary.

    Args:
        logits_btv: [B, T, V] floating, bfloat16 welcome; position t predicts tokens_bt[:, t].
        tokens_bt: [B, T] integer, 0 <= token < V (anything in range where it is masked later).

    Returns:
        [B, T] float32 in nats.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank, or shapes that do not agree.
    """
    logits_btv = checks.logits("logits_btv", logits_btv, rank=3)
    tokens_bt = checks.integers("tokens_bt", tokens_bt, rank=2)
    checks.check_shape("tokens_bt", tokens_bt, logits_btv.shape[:2])
    return _reduce_vocabulary(_token_statistic, (logits_btv,), (tokens_bt,))


def sequence_log_probs(token_log_probs_bt, mask_bt) -> Array:
    """log π(y|x) = Σ_t log π(y_t|x, y_<t) over the masked positions: a sum, never an average.

    Args:
        token_log_probs_bt: [B, T] floating, in nats. Masked entries may be anything, NaN included.
        mask_bt: [B, T] boolean, or floating weights; 0 leaves a position out.

    Returns:
        [B] in nats; 0 where nothing is counted.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank, or shapes that do not agree.
    """
    token_log_probs_bt = checks.floats("token_log_probs_bt", token_log_probs_bt, rank=2)
    mask_bt = jnp.asarray(mask_bt)
    if mask_bt.dtype == jnp.bool_:
        mask_bt = mask_bt.astype(token_log_probs_bt.dtype)
    mask_bt = checks.floats("mask_bt", mask_bt, rank=2)
    checks.check_shape("mask_bt", mask_bt, token_log_probs_bt.shape)
    return jnp.sum(jnp.where(mask_bt != 0, token_log_probs_bt, 0.0) * mask_bt, axis=1)


def entropy(logits_btv) -> Array:
    """−Σ_v π(v) log π(v) at every position. A logit of −inf is a token of probability 0.

    Args:
        logits_btv: [B, T, V] floating.

    Returns:
        [B, T] float32 in nats, between 0 and log V.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank.
    """
    logits_btv = checks.logits("logits_btv", logits_btv, rank=3)
    return _reduce_vocabulary(_entropy_statistic, (logits_btv,), ())


def kl_divergence(logits_btv, reference_logits_btv) -> Array:
    """KL(p‖q) = Σ_v p(v) (log p(v) − log q(v)) at every position, over the whole vocabulary.

    Summed as Σ p·(e^{−δ} − 1 + δ) with δ = log p − log q, whose terms are never negative: as both
    laws sum to one it is the same number, and a rounding error in a normaliser enters it squared.
    It is 0 for equal logits.

    Args:
        logits_btv: [B, T, V] floating, the logits of p.
        reference_logits_btv: [B, T, V] floating, the logits of q. A logit of −inf is a token of
            probability 0; in q and not in p it makes the divergence infinite.

    Returns:
        [B, T] float32 in nats, >= 0.

    Raises:
        TypeError: a wrong dtype. ValueError: a wrong rank, or shapes that do not agree.
    """
    logits_btv = checks.logits("logits_btv", logits_btv, rank=3)
    reference_logits_btv = checks.logits("reference_logits_btv", reference_logits_btv, rank=3)
    checks.check_shape("reference_logits_btv", reference_logits_btv, logits_btv.shape)
    return _reduce_vocabulary(_kl_statistic, (logits_btv, reference_logits_btv), ())


def kl_k1(log_probs, reference_log_probs) -> Array:
    """log p − log q at samples of p: the unbiased estimate of KL(p‖q) that may be negative.

    Source: Schulman, "Approximating KL Divergence", 2020, k1.

    Args:
        log_probs: log p of the samples, floating, any shape.
        reference_log_probs: log q of the same samples, of the same shape.

    Returns:
        The estimate per sample in nats.

    Raises:
        TypeError: a wrong dtype. ValueError: shapes that differ.
    """
    log_probs, reference_log_probs = _pair(log_probs, reference_log_probs)
    return log_probs - reference_log_probs


def kl_k3(log_probs, reference_log_probs) -> Array:
    """q/p − 1 − log(q/p) at samples of p: the unbiased estimate of KL(p‖q) that is never negative.

    Source: Schulman, "Approximating KL Divergence", 2020, k3. Arguments, result and errors are
    those of `kl_k1`.
    """
    log_probs, reference_log_probs = _pair(log_probs, reference_log_probs)
    return _exp_beyond_linear(reference_log_probs - log_probs)


# ------------------------------------------------------- statistics of one chunk of positions


def _token_statistic(logits_btv: Array, tokens_bt: Array) -> Array:
    maximum_bt = jax.lax.stop_gradient(_widen(jnp.max(logits_btv, axis=-1)))
    total_bt = jnp.sum(jnp.exp(_widen(logits_btv) - maximum_bt[..., None]), axis=-1)
    token_logits_bt = jnp.take_along_axis(logits_btv, tokens_bt[..., None], axis=-1)[..., 0]
    return _widen(token_logits_bt) - maximum_bt - jnp.log(total_bt)


def _entropy_statistic(logits_btv: Array) -> Array:
    log_p, outside = _log_softmax(logits_btv)
    return -jnp.sum(jnp.where(outside, 0.0, jnp.exp(log_p) * log_p), axis=-1)


def _kl_statistic(logits_btv: Array, reference_logits_btv: Array) -> Array:
    log_p, outside_p = _log_softmax(logits_btv)
    log_q, outside_q = _log_softmax(reference_logits_btv)
    p, q = jnp.exp(log_p), jnp.where(outside_q, 0.0, jnp.exp(log_q))
    delta = log_p - log_q
    near = jnp.abs(delta) < 0.25
    inside = jnp.where(
        near, p * _beyond_linear_series(jnp.where(near, -delta, 0.0)), q - p + p * delta
    )
    # p(v) = 0 leaves q(v) of the sum; p(v) > 0 = q(v) is an infinite divergence
    inside = jnp.where(outside_p, q, inside)
    return jnp.sum(jnp.where(outside_q & ~outside_p, jnp.inf, inside), axis=-1)


def _log_softmax(logits_btv: Array) -> tuple[Array, Array]:
    """Log-probabilities of one chunk, 0 where the logit is −inf, and where that is."""
    outside = jnp.isneginf(logits_btv)
    maximum = jax.lax.stop_gradient(jnp.max(logits_btv, axis=-1, keepdims=True))
    shifted = _widen(jnp.where(outside, 0.0, logits_btv)) - jnp.where(outside, 0.0, maximum)
    total = jnp.sum(jnp.where(outside, 0.0, jnp.exp(shifted)), axis=-1, keepdims=True)
    return jnp.where(outside, 0.0, shifted - jnp.log(total)), outside


def _exp_beyond_linear(x: Array) -> Array:
    """e^x − 1 − x >= 0; a series near 0, where its parts cancel."""
    near = jnp.abs(x) < 0.25
    return jnp.where(near, _beyond_linear_series(jnp.where(near, x, 0.0)), jnp.expm1(x) - x)


def _beyond_linear_series(x: Array) -> Array:
    """e^x − 1 − x = x²·Σ_k x^k / (k+2)! for |x| < 0.25, to 1e-11 of itself."""
    coefficients = np.array([1.0 / math.factorial(k) for k in range(9, 1, -1)]).astype(x.dtype)
    return x**2 * jnp.polyval(coefficients, x)


def _widen(array: Array) -> Array:
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


# ------------------------------------------------------------------------- bounded memory


def _reduce_vocabulary(
    statistic: Callable[..., Array], logits: tuple[Array, ...], tokens: tuple[Array, ...]
) -> Array:
    """statistic(*logits, *tokens), [B, T], a few time steps at once when the logits are large."""
    batch, time, vocabulary = logits[0].shape
    width = jnp.promote_types(logits[0].dtype, jnp.float32).itemsize
    steps = max(1, _CHUNK_BYTES // max(1, batch * vocabulary * width))
    if steps >= time:
        return statistic(*logits, *tokens)
    return _chunked(statistic, steps, logits, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked(statistic, steps: int, logits, tokens) -> Array:
    """The statistic chunk by chunk along time. Chunks are slices of the logits, never a copy.

    The last chunk starts early enough to be full; the positions it shares with the one before it
    are simply written twice.
    """

    def body(index, result_bt):
        start = _chunk_start(index, steps, time)
        parts = [_chunk(array, start, steps) for array in (*logits, *tokens)]
        return jax.lax.dynamic_update_slice_in_dim(result_bt, statistic(*parts), start, axis=1)

    time = logits[0].shape[1]
    dtype = jnp.promote_types(logits[0].dtype, jnp.float32)
    return jax.lax.fori_loop(0, -(-time // steps), body, jnp.zeros(logits[0].shape[:2], dtype))


def _chunked_forward(statistic, steps: int, logits, tokens):
    return _chunked(statistic, steps, logits, tokens), (logits, tokens)


def _chunked_backward(statistic, steps: int, residuals, cotangent_bt):
    """Each chunk is computed again and its gradient written in place: positions are independent."""
    logits, tokens = residuals
    time = logits[0].shape[1]

    def body(index, gradients):
        start = _chunk_start(index, steps, time)
        token_parts = [_chunk(array, start, steps) for array in tokens]
        logit_parts = [_chunk(array, start, steps) for array in logits]
        pull_back = jax.vjp(lambda *parts: statistic(*parts, *token_parts), *logit_parts)[1]
        updates = pull_back(_chunk(cotangent_bt, start, steps))
        return tuple(
            jax.lax.dynamic_update_slice_in_dim(gradient, update, start, axis=1)
            for gradient, update in zip(gradients, updates, strict=True)
        )

    empty = tuple(jnp.zeros_like(array) for array in logits)
    gradients = jax.lax.fori_loop(0, -(-time // steps), body, empty)
    return gradients, tuple(np.zeros(array.shape, jax.dtypes.float0) for array in tokens)


_chunked.defvjp(_chunked_forward, _chunked_backward)


def _chunk_start(index: Array, steps: int, time: int) -> Array:
    return jnp.minimum(index * steps, time - steps)


def _chunk(array: Array, start: Array, steps: int) -> Array:
    """Time steps start .. start + steps. A 16-bit float is sliced as bits: XLA on CPU cannot slice
    bfloat16 itself, and would widen all of the array in front of the loop.
    """
    dtype = array.dtype
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize == 2
    bits = jax.lax.bitcast_convert_type(array, jnp.uint16) if half else array
    part = jax.lax.dynamic_slice_in_dim(bits, start, steps, axis=1)
    return jax.lax.bitcast_convert_type(part, dtype) if half else part


def _pair(log_probs, reference_log_probs) -> tuple[Array, Array]:
    log_probs = checks.floats("log_probs", log_probs)
    reference_log_probs = checks.floats("reference_log_probs", reference_log_probs)
    checks.check_shape("reference_log_probs", reference_log_probs, log_probs.shape)
    return log_probs, reference_log_probs
