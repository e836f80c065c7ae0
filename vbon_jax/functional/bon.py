"""The Best-of-N law, the vBoN rewards made from it, and Best-of-N's own rulers (docs/methods.md).

Notation: F = P(r' < r) and F⁺ = P(r' <= r) under the reference law of one prompt, p = π_ref(y|x),
N any real number >= 1. Everything is in nats. With m = N − 1 and x = log F⁺ − log F >= 0,

    log π_BoN − log π_ref = log[(F⁺^N − F^N) / (F⁺ − F)] = m·log F⁺ + log(1 + m·ρ),
    m·ρ = (1 − e^{−m·x}) / (e^x − 1),

which is m·log F⁺ + log(1 − e^{−N·x}) − log(1 − e^{−x}) with its last two terms brought together.
Nothing cancels in ρ, and each limit is a value of the formula and not a branch: ρ = 1 at x = 0 (one
response of no mass), ρ → 0 as x → ∞ (F = 0), and at N = 1 the ratio is 0 and its slope in N is
log F⁺ + ρ.
Source: the vBoN paper (Amini, Vieira, Ash, Cotterell, 2024, "Variational Best-of-N Alignment"),
whose binomial sum this is without its binomial coefficients.

Values and gradients of these are worked out in float64 and returned in the dtype of the arguments:
where F + p is near 1, log(F + p) is a difference of nearly equal numbers, multiplied by N.

An argument is floating and of its suffix's shape, [B, M] for M reference rewards of B prompts, and
of any shape without one; arrays that are given together broadcast. N is a Python number or, but for
what counts draws, a (traced) array. A wrong dtype is a TypeError; a wrong rank or shape, or an N
that is out of range, is a ValueError. Both name the argument.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import checks
from vbon_jax.types import Array

BOUNDS = ("l1", "exact")


# ---------------------------------------------------------------------------------- the law


def log_ratio(log_cdf, log_cdf_inclusive, n) -> Array:
    """log π_BoN(y|x) − log π_ref(y|x) = log[(F⁺^N − F^N) / (F⁺ − F)], ties broken uniformly.

    In nats; 0 at N = 1. log F may be −inf (nothing is below); log F⁺ >= log F is finite, and where
    they are equal the ratio is the limit log N + (N−1)·log F⁺.
    """
    log_cdf, log_cdf_inclusive, n = _arguments(
        ("log_cdf", "log_cdf_inclusive"), (log_cdf, log_cdf_inclusive), n
    )
    return _in_float64(_log_ratio_formula)(log_cdf, log_cdf_inclusive, n)


def vbon_reward(log_cdf, *, n, bound: str = "l1", log_cdf_inclusive=None) -> Array:
    """The reward vBoN maximises against (1/(N−1))·KL(π_θ‖π_ref): log F, or log-ratio / (N−1).

    In nats, for log F (`functional.cdf` estimates it). The bound "l1" keeps (N−1)·log F of the
    ratio; "exact" keeps all of it and needs log F⁺, finite, which "l1" does not read. Both are
    divided by N − 1, so that `kl_coefficient` is the same for both; at N = 1 "exact" is its limit
    log F⁺ + x/(e^x − 1), x = log F⁺ − log F.
    """
    if bound not in BOUNDS:
        raise ValueError(f"bound must be one of {', '.join(BOUNDS)}, got {bound!r}")
    if bound == "l1":
        log_cdf = checks.floats("log_cdf", log_cdf)
        checks.best_of(n, log_cdf.dtype)
        return log_cdf
    if log_cdf_inclusive is None:
        raise ValueError("log_cdf_inclusive must be given when bound is 'exact'")
    log_cdf, log_cdf_inclusive, n = _arguments(
        ("log_cdf", "log_cdf_inclusive"), (log_cdf, log_cdf_inclusive), n
    )
    return _in_float64(_exact_reward_formula)(log_cdf, log_cdf_inclusive, n)


def kl_coefficient(n: float) -> float:
    """β = 1/(N−1), the weight of the KL beside either `vbon_reward`; infinite at N = 1."""
    checks.best_of(n, np.float32)
    return math.inf if n == 1 else 1.0 / (n - 1.0)


def bonbon_target(n: int) -> float:
    """1/(2 beta*_n) = (N-1)·H_{N-1}: the gap of log-ratios between the best and the worst of N.

    (N-1)·E[log F(best) - log F(worst)], as E log F is -1/N at the best and -H_N at the worst.
    Source: arXiv 2406.00832 (N = 8: 18.15). 0 for N = 1.
    """
    n = checks.whole("n", n)
    return (n - 1) * math.fsum(1.0 / k for k in range(1, n))


def bonbon_beta(n: int) -> float:
    """β*_n = 1/(2·`bonbon_target`), the β at which IPO aims at Best-of-N. ValueError for n < 2."""
    if n < 2:
        raise ValueError(f"n is {n}: a pair needs the best and the worst of at least 2 draws")
    return 0.5 / bonbon_target(n)


def win_rate(n) -> np.ndarray:
    """N/(N+1): the chance that Best-of-N beats its reference, continuous rewards.

    An upper bound when rewards tie (a tie counts half) or one response is likely. n is a number or
    a NumPy array of them, and the result float64.
    """
    n = _numbers(n)
    return n / (n + 1.0)


def kl(n) -> np.ndarray:
    """KL(π_BoN‖π_ref) = log N − (N−1)/N in nats, continuous rewards; an upper bound otherwise.

    With u = (N−1)/N this is −log(1−u) − u = Σ_{k>=2} u^k / k, whose terms are all positive: it is
    summed so near N = 1, where the two parts of the formula cancel. Source: Beirami et al., 2024,
    "Theoretical guarantees on the best-of-n alignment policy". n as for `win_rate`.
    """
    n = _numbers(n)
    share = (n - 1.0) / n
    series = share**2 * np.polyval([1.0 / k for k in range(31, 1, -1)], share)
    return np.where(share < 0.25, series, np.log(n) - share)[()]


# ---------------------------------------------------------------- rulers made from a sample


def order_statistic_weights(m: int, n: int) -> np.ndarray:
    """The chance that the j-th smallest of M draws is the best of N of them, j = 1..M, [M] float64.

    C(j−1, N−1) / C(M, N), by the ratio of neighbours from the top down (N/M at j = M), so that no
    binomial coefficient is ever formed. Ties are broken by position. Ascending, of sum 1.
    """
    m = checks.whole("m", m)
    n = checks.whole("n", n, m)
    rank = np.arange(m - 1, n - 1, -1, dtype=np.float64)  # j = M−1 .. N
    ratio = (rank - n + 1) / rank  # weight of j over weight of j + 1
    weights = np.zeros(m)
    weights[n - 1 :] = (n / m * np.concatenate([[1.0], np.cumprod(ratio)]))[::-1]
    return weights


class EmpiricalBest(NamedTuple):
    """Best-of-N on a prompt whose reference law is the sample itself."""

    reward_b: Array  # [B] expected reward, in the rewards' unit
    win_rate_b: Array  # [B] against one reference draw, a tie is half
    kl_b: Array  # [B] KL(BoN ‖ reference) in nats


def empirical_best_of_n(rewards_bm, n, judge_bm=None) -> EmpiricalBest:
    """The exact Best-of-N law of the empirical reference law: M equally likely responses.

    Equal rewards form one group of mass q = F⁺ − F, which Best-of-N gives the mass F⁺^N − F^N,
    uniformly inside the group. Unlike the curves `win_rate` and `kl` it knows about ties, and real
    N is as good as whole N. (N draws *with* replacement: `evaluation.best_of_n` is unbiased.)
    `judge_bm` is another reward of the same responses, whose reward and win rate of the best by
    `rewards_bm` are returned; None is `rewards_bm` itself.
    """
    rewards_bm = checks.floats("rewards_bm", rewards_bm, rank=2)
    m = rewards_bm.shape[1]
    if m < 1:
        raise ValueError("rewards_bm must have at least 1 reward per prompt, got 0")
    below_bm, at_or_below_bm = _counts(rewards_bm)
    log_table = jnp.asarray(_log_fractions(m), rewards_bm.dtype)  # log(k / M), k = 0..M
    log_ratio_bm = log_ratio(log_table[below_bm], log_table[at_or_below_bm], n)
    mass_bm = jnp.exp(log_ratio_bm) / m
    if judge_bm is None:
        judge_bm = rewards_bm
    else:
        judge_bm = checks.floats("judge_bm", judge_bm, rewards_bm.shape)
        below_bm, at_or_below_bm = _counts(judge_bm)
    middle_bm = (below_bm + at_or_below_bm).astype(rewards_bm.dtype) / (2 * m)
    return EmpiricalBest(
        reward_b=jnp.sum(mass_bm * judge_bm, axis=1),
        win_rate_b=jnp.sum(mass_bm * middle_bm, axis=1),
        kl_b=jnp.sum(mass_bm * log_ratio_bm, axis=1),
    )


def empirical_soft_best_of_n(
    rewards_bm, n: int, key: Array, *, temperature: float, draws: int = 256
) -> EmpiricalBest:
    """Soft Best-of-N, which returns draw i of N with the chance softmax(r / τ)_i, on that same law.

    Temperature 0 is Best-of-N and an infinite one the reference itself. Source: arXiv 2505.03156.
    The density against the reference is ρ(y) = E[N·e^{r/τ} / (e^{r/τ} + Σ_{j<N} e^{r_j/τ})] over
    N − 1 further draws, here the mean over `draws` of them from the M rewards, the same for every
    y; it is divided by its own mean, which is 1 in expectation. N is whole, τ > 0 in the rewards'
    unit; one `key` gives the same draws again.
    """
    rewards_bm = checks.floats("rewards_bm", rewards_bm, rank=2)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    (b, m), n = rewards_bm.shape, checks.whole("n", n)
    logits_bm = rewards_bm / temperature
    others_bkn = jax.random.randint(key, (b, draws, n - 1), 0, m)
    others_bkn = jnp.take_along_axis(logits_bm[:, None], others_bkn, axis=2)
    rest_bk = jax.nn.logsumexp(others_bkn, axis=2)  # -inf for N = 1: then ρ is 1
    density_bm = jnp.mean(jax.nn.sigmoid(logits_bm[:, :, None] - rest_bk[:, None]), axis=2)
    density_bm /= jnp.mean(density_bm, axis=1, keepdims=True)
    below_bm, at_or_below_bm = _counts(rewards_bm)
    middle_bm = (below_bm + at_or_below_bm).astype(rewards_bm.dtype) / (2 * m)
    return EmpiricalBest(
        reward_b=jnp.mean(density_bm * rewards_bm, axis=1),
        win_rate_b=jnp.mean(density_bm * middle_bm, axis=1),
        kl_b=jnp.mean(jax.scipy.special.xlogy(density_bm, density_bm), axis=1),
    )


def select_best_worst(rewards_bn) -> tuple[Array, Array, Array]:
    """Which of a prompt's N samples is best and which is worst; the first one where several are.

    Returns best_b and worst_b, [B] int32 places among the N, and tied_b, [B] bool: the best reward
    equals the worst, so the pair says nothing (N = 1 is such a pair).
    """
    rewards_bn = checks.floats("rewards_bn", rewards_bn, rank=2)
    if rewards_bn.shape[1] < 1:
        raise ValueError("rewards_bn must have at least 1 sample per prompt, got 0")
    best_b = jnp.argmax(rewards_bn, axis=1).astype(jnp.int32)
    worst_b = jnp.argmin(rewards_bn, axis=1).astype(jnp.int32)
    tied_b = jnp.max(rewards_bn, axis=1) == jnp.min(rewards_bn, axis=1)
    return best_b, worst_b, tied_b


# ---------------------------------------------------------------------- the formulas, inside


def _log_ratio_formula(log_cdf: Array, log_cdf_inclusive: Array, n: Array) -> Array:
    gap, empty = _gap(log_cdf, log_cdf_inclusive)
    spread = jnp.log1p((n - 1) * _rho(gap, n))
    return (n - 1) * log_cdf_inclusive + jnp.where(empty, 0.0, spread)


def _exact_reward_formula(log_cdf: Array, log_cdf_inclusive: Array, n: Array) -> Array:
    gap, empty = _gap(log_cdf, log_cdf_inclusive)
    rho = _rho(gap, n)
    spread = rho * _log1p_over_x((n - 1) * rho)
    return log_cdf_inclusive + jnp.where(empty, 0.0, spread)


def _gap(log_cdf: Array, log_cdf_inclusive: Array) -> tuple[Array, Array]:
    """x = log F⁺ − log F >= 0, and where F = 0 (there x is infinite and set to 1)."""
    empty = jnp.isneginf(log_cdf)
    difference = log_cdf_inclusive - jnp.where(empty, log_cdf_inclusive - 1.0, log_cdf)
    return jnp.where(difference >= 0, difference, 0.0), empty


def _rho(gap: Array, n: Array) -> Array:
    """(1 − e^{−m·x}) / (m·(e^x − 1)) for m = N − 1, between 0 and 1; 1 at x = 0."""
    return jnp.exp(_log_mean_decay((n - 1) * gap) - _log_mean_decay(gap) - gap)


@jax.custom_jvp
def _log_mean_decay(x: Array) -> Array:
    """log[(1 − e^{−x}) / x], the log of the mean of e^{−s} over 0 <= s <= x; 0 at x = 0."""
    positive = x > 0
    safe = jnp.where(positive, x, 1.0)
    return jnp.where(positive, jnp.log(-jnp.expm1(-safe) / safe), 0.0)


@_log_mean_decay.defjvp
def _log_mean_decay_jvp(primals, tangents):
    # 1/(e^x − 1) − 1/x; its parts cancel near 0, where the Bernoulli series takes over.
    (x,), (tangent,) = primals, tangents
    small = x < 0.5
    safe = jnp.where(small, 1.0, x)
    closed = jnp.exp(-safe) / -jnp.expm1(-safe) - 1.0 / safe
    s = jnp.where(small, x, 0.0)
    odd = 1 / 12 + s**2 * (-1 / 720 + s**2 * (1 / 30240 + s**2 * (-1 / 1209600 + s**2 / 47900160)))
    return _log_mean_decay(x), tangent * jnp.where(small, -0.5 + s * odd, closed)


def _log1p_over_x(x: Array) -> Array:
    """log(1 + x) / x for x >= 0; 1 at x = 0. A series near 0 keeps its derivative accurate too."""
    small = x < 0.25
    safe = jnp.where(small, 1.0, x)
    coefficients = np.array([(-1.0) ** k / (k + 1) for k in range(20, -1, -1)]).astype(x.dtype)
    series = jnp.polyval(coefficients, jnp.where(small, x, 0.0))
    return jnp.where(small, series, jnp.log1p(safe) / safe)


@functools.cache
def _in_float64(formula: Callable[..., Array]) -> Callable[..., Array]:
    """An elementwise `formula`, its value and its derivatives worked out in float64.

    The dtype outside does not change: float32 arguments give a float32 value, with or without x64.
    Derivatives of any order are such functions again, so that no float64 array leaves this one.
    """
    compiled = jax.jit(formula)  # called outside jit, one compilation and not one an operation

    @jax.custom_jvp
    def value(*arguments):
        dtype = arguments[0].dtype
        with jax.enable_x64(True):
            wide = [jax.lax.convert_element_type(a, jnp.float64) for a in arguments]
            return jax.lax.convert_element_type(compiled(*wide), dtype)

    @value.defjvp
    def value_jvp(primals, tangents):
        slopes = [_in_float64(_partial(formula, i))(*primals) for i in range(len(primals))]
        return value(*primals), sum(s * t for s, t in zip(slopes, tangents, strict=True))

    return value


@functools.cache
def _partial(formula: Callable[..., Array], index: int) -> Callable[..., Array]:
    """The partial derivative of an elementwise formula by its argument `index`."""

    def slope(*arguments):
        direction = [jnp.full_like(a, float(i == index)) for i, a in enumerate(arguments)]
        return jax.jvp(formula, arguments, tuple(direction))[1]

    return slope


def _arguments(names: tuple[str, ...], values: tuple, n) -> list[Array]:
    """The floating arguments and n, checked, of one dtype and broadcast to one shape."""
    arrays = [checks.floats(name, value) for name, value in zip(names, values, strict=True)]
    dtype = jnp.result_type(*arrays)
    arrays.append(checks.best_of(n, dtype))
    try:
        shape = np.broadcast_shapes(*(array.shape for array in arrays))
    except ValueError as error:
        shapes = ", ".join(f"{k} {a.shape}" for k, a in zip((*names, "n"), arrays, strict=True))
        raise ValueError(f"shapes do not broadcast: {shapes}") from error
    return [jnp.broadcast_to(array.astype(dtype), shape) for array in arrays]


def _numbers(n) -> np.ndarray:
    """Every N of a curve, float64."""
    n = np.asarray(n, np.float64)
    if not np.all((n >= 1) & (n < np.inf)):
        raise ValueError(f"n must be finite and at least 1, got {n}")
    return n


def _counts(rewards_bm: Array) -> tuple[Array, Array]:
    """How many rewards of the same prompt are below each, and at or below it (itself included)."""
    sorted_bm = jnp.sort(rewards_bm, axis=1)
    below = jax.vmap(functools.partial(jnp.searchsorted, side="left"))
    at_or_below = jax.vmap(functools.partial(jnp.searchsorted, side="right"))
    return below(sorted_bm, rewards_bm), at_or_below(sorted_bm, rewards_bm)


def _log_fractions(m: int) -> np.ndarray:
    """log(k/M) for k = 0..M, float64, −inf at 0."""
    return np.concatenate([[-np.inf], np.log(np.arange(1, m + 1) / m)])
