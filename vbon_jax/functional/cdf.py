"""log F of a reward inside its prompt's reference law, from M reference rewards (docs/methods.md).

F(r) = P_{y'~π_ref}(r(x, y') < r), F⁺(r) the same with <=. Every estimate is finite, <= 0 and
monotone in r, and those made from counts see nothing but ranks: a strictly increasing map of all
rewards leaves them bit for bit the same.

    harmonic         H_k − H_M, H_k = Σ_{j<=k} 1/j. Its mean over k ~ Binomial(M, F) is the log
                     series cut at M, −Σ_{j<=M} (1−F)^j / j: unbiased up to (1−F)^M.
    add_one          log((k+1)/(M+1)), what the vBoN paper's released code does.
    exponential_fit  −a·e^{−b·r} − c with a, b, c >= 0, fitted to each prompt's references; the
                     released code's optional smoother.

No estimate resolves F below about 1/M. rewards_b are [B], or [B, N] for N samples of each prompt,
reference_bm [B, M] the rewards of M >= 1 reference samples of the same prompts, both floating;
results are of the first one's shape, in nats, finite and <= 0. A wrong dtype is a TypeError; a
wrong rank or shape and an unknown estimator are ValueErrors. Both name the argument.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import checks
from vbon_jax.types import Array

ESTIMATORS = ("harmonic", "add_one", "exponential_fit")
TIES = ("half", "exclude")

# The rates tried by `exponential_fit`, per range of a prompt's references, and how finely the
# neighbourhood of the best one is searched again.
_COARSE_RATES = np.geomspace(1e-2, 1e3, 56)
_FINE_RATES = np.geomspace(_COARSE_RATES[0] / _COARSE_RATES[1], _COARSE_RATES[1] / 1e-2, 25)
_LARGEST_EXPONENT = 30.0
_LOWEST = -30.0  # nats: far below its references the curve would fall to -1e11, and F to nothing


def log_cdf(rewards_b, reference_bm, *, estimator: str = "harmonic", ties: str = "half") -> Array:
    """log F(r): the log of the share of the prompt's reference law below each reward.

    `ties` says how many of the references equal to the reward count as below it: "half" of them
    (the midrank, H_k then being digamma(k+1) + γ), or none, "exclude", which is the F that goes
    with `log_cdf_inclusive` in the exact law. `exponential_fit` is a law without ties and does not
    depend on it.
    """
    if ties not in TIES:
        raise ValueError(f"ties must be one of {', '.join(TIES)}, got {ties!r}")
    return _estimate(rewards_b, reference_bm, estimator, ties)


def log_cdf_inclusive(rewards_b, reference_bm, *, estimator: str = "harmonic") -> Array:
    """log F⁺(r): the log of the share of the prompt's reference law at or below each reward.

    The twin of `log_cdf(..., ties="exclude")`; the two are equal where no reference has the
    reward, and there `bon.log_ratio` takes its limit.
    """
    return _estimate(rewards_b, reference_bm, estimator, "include")


def log_cdf_of_references(reference_bm, *, estimator: str = "harmonic") -> Array:
    """log F of each of M >= 2 reference rewards, from the M - 1 others; a tie counts half. [B, M].

    A sample that counted itself would never be the lowest. The exponential fit is of all M: it
    smooths over each of them.
    """
    if estimator == "exponential_fit":
        return _estimate(reference_bm, reference_bm, estimator, "half")
    twice_k_bm, reference_bm = _among_the_others(reference_bm)
    return _at_half_ranks(twice_k_bm, reference_bm[:, 1:], estimator)


def cdf_of_references(reference_bm) -> Array:
    """F of each reference reward among the prompt's other M − 1, a tie counting one half, [B, M].

    0 below all others, 1 above all others; M >= 2.
    """
    twice_k_bm, reference_bm = _among_the_others(reference_bm)
    return twice_k_bm.astype(reference_bm.dtype) / (2 * (reference_bm.shape[1] - 1))


def _estimate(rewards_b, reference_bm, estimator: str, ties: str) -> Array:
    """log F (ties: half, exclude) or log F⁺ (include), of the shape of rewards_b."""
    rewards_b = checks.floats("rewards_b", rewards_b)
    reference_bm = checks.floats("reference_bm", reference_bm, rank=2)
    if reference_bm.shape[1] < 1:
        raise ValueError("reference_bm must have at least 1 reward per prompt, got 0")
    if rewards_b.ndim not in (1, 2) or rewards_b.shape[0] != reference_bm.shape[0]:
        raise ValueError(
            f"rewards_b must be [B] or [B, N] with the B of reference_bm, got shapes "
            f"{rewards_b.shape} and {reference_bm.shape}"
        )
    rewards_bn = rewards_b.reshape(rewards_b.shape[0], -1)
    if estimator == "exponential_fit":
        return _exponential_fit(rewards_bn, reference_bm).reshape(rewards_b.shape)
    below_bn, at_or_below_bn = _counts(rewards_bn, reference_bm)
    twice_k_bn = {
        "half": below_bn + at_or_below_bn,
        "exclude": 2 * below_bn,
        "include": 2 * at_or_below_bn,
    }[ties]
    return _at_half_ranks(twice_k_bn, reference_bm, estimator).reshape(rewards_b.shape)


def _among_the_others(reference_bm) -> tuple[Array, Array]:
    """Twice the midrank of each reference among the prompt's M − 1 others, and the references."""
    reference_bm = checks.floats("reference_bm", reference_bm, rank=2)
    if reference_bm.shape[1] < 2:
        raise ValueError("reference_bm must have at least 2 rewards per prompt, got 1")
    below_bm, at_or_below_bm = _counts(reference_bm, reference_bm)
    return below_bm + at_or_below_bm - 1, reference_bm


def _counts(rewards_bn: Array, reference_bm: Array) -> tuple[Array, Array]:
    """How many of the prompt's references are below, and at or below, each reward. [B, N] int32."""
    reference_b1m, rewards_bn1 = reference_bm[:, None, :], rewards_bn[:, :, None]
    below_bn = jnp.sum(reference_b1m < rewards_bn1, axis=2, dtype=jnp.int32)
    return below_bn, jnp.sum(reference_b1m <= rewards_bn1, axis=2, dtype=jnp.int32)


def _at_half_ranks(twice_k_bn: Array, reference_bm: Array, estimator: str) -> Array:
    """The estimate at k = twice_k / 2, read from a table of k = 0, ½, 1, … M made in float64."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    m = reference_bm.shape[1]
    if estimator == "harmonic":
        table = _harmonic_table(m)
    else:
        table = np.log((np.arange(2 * m + 1) / 2.0 + 1.0) / (m + 1.0))
    return jnp.asarray(table, reference_bm.dtype)[twice_k_bn]


def _harmonic_table(m: int) -> np.ndarray:
    """H_k − H_M, with H_½ = 2 − 2·log 2 and H_k = H_{k−1} + 1/k."""
    harmonic = np.zeros(2 * m + 1)
    harmonic[1] = 2.0 - 2.0 * np.log(2.0)
    k = np.arange(2, 2 * m + 1) / 2.0
    harmonic[2::2] = np.cumsum(1.0 / k[0::2])
    harmonic[3::2] = harmonic[1] + np.cumsum(1.0 / k[1::2])
    return harmonic - harmonic[-1]


@jax.jit
def _exponential_fit(rewards_bn: Array, reference_bm: Array) -> Array:
    """−a·e^{−b·t} − c at t = (r − lowest reference) / range, least squares per prompt.

    The points fitted are `add_one` at the references' own midranks. For a given rate b the best a
    and c have a closed form, so b alone is searched: over a fixed geometric grid, then over a fine
    one around the best. Nothing can diverge, whatever the references are. Without a range (all
    equal) the law is −a·e^{−(r − reference)}. Far below the references the value stops at −30.
    """
    lowest_b1 = jnp.min(reference_bm, axis=1, keepdims=True)
    range_b1 = jnp.max(reference_bm, axis=1, keepdims=True) - lowest_b1
    scale_b1 = jnp.where(range_b1 > 0, range_b1, 1.0)
    t_bm = (reference_bm - lowest_b1) / scale_b1
    target_bm = _at_half_ranks(sum(_counts(reference_bm, reference_bm)), reference_bm, "add_one")

    def best_rate(rate_kb: Array) -> Array:
        """Of K rates, the one with the least squared error for each prompt. [B]."""
        error_kb = jax.lax.map(lambda rate_b: _fit_at_rate(rate_b, t_bm, target_bm)[2], rate_kb)
        return jnp.take_along_axis(rate_kb, jnp.argmin(error_kb, axis=0)[None, :], axis=0)[0]

    coarse_k1, fine_k1 = (
        jnp.asarray(rates, t_bm.dtype)[:, None] for rates in (_COARSE_RATES, _FINE_RATES)
    )
    rate_b = best_rate(coarse_k1 * jnp.ones_like(t_bm[:, 0]))
    rate_b = jnp.where(range_b1[:, 0] > 0, best_rate(fine_k1 * rate_b), 1.0)
    a_b, c_b, _ = _fit_at_rate(rate_b, t_bm, target_bm)
    exponent_bn = -rate_b[:, None] * ((rewards_bn - lowest_b1) / scale_b1)
    fitted_bn = -a_b[:, None] * jnp.exp(jnp.minimum(exponent_bn, _LARGEST_EXPONENT)) - c_b[:, None]
    return jnp.maximum(fitted_bn, _LOWEST)


def _fit_at_rate(rate_b: Array, t_bm: Array, target_bm: Array) -> tuple[Array, Array, Array]:
    """The a, c >= 0 closest to the target for a given rate, and their mean squared error. [B]."""
    u_bm = jnp.exp(-rate_b[:, None] * t_bm)
    u_b, target_b = jnp.mean(u_bm, axis=1), jnp.mean(target_bm, axis=1)
    centred_bm = u_bm - u_b[:, None]
    variance_b = jnp.mean(centred_bm**2, axis=1)
    flat_b = variance_b <= 0
    slope_b = -jnp.mean(centred_bm * target_bm, axis=1) / jnp.where(flat_b, 1.0, variance_b)
    intercept_b = -(target_b + slope_b * u_b)
    # Outside the quadrant the best point of a convex error lies on its edge; as the target is
    # negative and u positive that edge is c = 0.
    inner_b = ~flat_b & (slope_b >= 0) & (intercept_b >= 0)
    edge_b = -jnp.mean(u_bm * target_bm, axis=1) / jnp.mean(u_bm**2, axis=1)
    a_b = jnp.where(inner_b, slope_b, edge_b)
    c_b = jnp.where(inner_b, intercept_b, 0.0)
    residual_bm = target_bm + a_b[:, None] * u_bm + c_b[:, None]
    return a_b, c_b, jnp.mean(residual_bm**2, axis=1)
