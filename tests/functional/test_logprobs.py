"""Log-probabilities and divergences: hand-worked numbers and gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from tests.numerics import both_ways, check_gradient
from vbon_jax.functional import logprobs

# One program is compiled faster than its operations one by one.
token_log_probs = jax.jit(logprobs.token_log_probs)
kl_divergence = jax.jit(logprobs.kl_divergence)
kl_k3 = jax.jit(logprobs.kl_k3)

# The functions that sum over the vocabulary, of logits, tokens and a reference's logits.
STATISTICS = {
    "token_log_probs": lambda logits, tokens, _: logprobs.token_log_probs(logits, tokens),
    "kl_divergence": lambda logits, _, reference: logprobs.kl_divergence(logits, reference),
}


def logits_of(shape, seed, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 3, shape).astype(dtype)


def test_token_log_probs_by_hand():
    # softmax of (log 1, log 2, log 5) is (1/8, 2/8, 5/8)
    logits_btv = np.log([[[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]]])
    result = both_ways(logprobs.token_log_probs, logits_btv, np.array([[2, 0]]))
    np.testing.assert_allclose(result, np.log([[5 / 8, 1 / 4]]), rtol=1e-6)
    assert result.dtype == np.float32


def test_sequence_log_probs_by_hand_ignores_what_is_masked():
    token_log_probs_bt = np.array([[-1.0, -2.0, np.nan], [-3.0, np.inf, -np.inf], [np.nan] * 3])
    mask_bt = np.array([[True, True, False], [True, False, False], [False] * 3])
    result = both_ways(logprobs.sequence_log_probs, token_log_probs_bt, mask_bt)
    np.testing.assert_array_equal(result, [-3.0, -3.0, 0.0])
    weights = mask_bt.astype(np.float32) * 0.5
    np.testing.assert_array_equal(
        logprobs.sequence_log_probs(token_log_probs_bt, weights), [-1.5, -1.5, 0.0]
    )
    gradient = jax.jit(jax.grad(lambda x: logprobs.sequence_log_probs(x, mask_bt).sum()))(
        token_log_probs_bt
    )
    np.testing.assert_array_equal(gradient, np.asarray(mask_bt, np.float32))


def test_kl_by_hand():
    uniform = np.zeros((1, 1, 4))
    p = np.array([[[math.log(0.5), math.log(0.25), math.log(0.25), -np.inf]]])
    # KL(p || uniform) = log 4 − H(p)
    expected = math.log(4) - 1.5 * math.log(2)
    assert both_ways(logprobs.kl_divergence, p, uniform)[0, 0] == pytest.approx(expected, rel=1e-6)
    assert kl_divergence(uniform, p)[0, 0] == np.inf  # p has no mass where uniform has


def test_k3_by_hand():
    log_p, log_q = np.log([0.5, 0.2]), np.log([0.25, 0.4])
    expected = [0.5 - 1 + math.log(2), 2 - 1 - math.log(2)]
    np.testing.assert_allclose(both_ways(logprobs.kl_k3, log_p, log_q), expected, rtol=1e-6)
    # exp(x) − 1 − x taken literally has lost every digit at 1e-4 in float32
    tiny = kl_k3(np.zeros(2), np.array([1e-4, -1e-4]))
    np.testing.assert_allclose(tiny, [5.000166671e-9, 4.999833338e-9], rtol=1e-6)
    far = np.linspace(-30.0, 30.0, 101, dtype=np.float32).astype(np.float64)
    np.testing.assert_allclose(kl_k3(np.zeros(101), far), np.expm1(far) - far, rtol=1e-6)


def test_k3_averages_to_the_full_divergence():
    logits, reference = logits_of((1, 1, 6), 0), logits_of((1, 1, 6), 1)
    log_p, log_q = (scipy.special.log_softmax(each[0, 0]) for each in (logits, reference))
    average = np.sum(np.exp(log_p) * kl_k3(log_p, log_q))
    assert average == pytest.approx(float(kl_divergence(logits, reference)[0, 0]), rel=1e-5)


def test_divergence_is_zero_at_equal_logits_and_never_negative():
    logits = logits_of((4, 8, 1000), 2) - 60.0  # GPT-2's logits lie about there
    assert np.all(kl_divergence(logits, logits) == 0.0)
    assert np.all(np.abs(kl_divergence(logits, logits + np.float32(7.0))) < 1e-9)
    for size in (1e-4, 1e-2, 1.0):
        near = logits + np.float32(size) * logits_of((4, 8, 1000), 3)
        result = np.asarray(kl_divergence(logits, near), np.float64)
        p, q = (scipy.special.log_softmax(each.astype(float), axis=-1) for each in (logits, near))
        expected = (np.exp(p) * (p - q)).sum(-1)
        assert np.all(result >= 0.0)
        np.testing.assert_allclose(result, expected, rtol=2e-3 if size == 1e-4 else 1e-4)


def test_masked_vocabulary_entries_leave_no_nan():
    logits, reference = logits_of((2, 3, 8), 4), logits_of((2, 3, 8), 5)
    logits[..., [0, 1, 5]] = reference[..., :2] = -np.inf
    tokens = np.full((2, 3), 6)
    for name, function in STATISTICS.items():
        value, gradient = jax.jit(
            jax.value_and_grad(lambda x, f=function: f(x, tokens, reference).sum())
        )(logits)
        assert np.isfinite(value) and np.all(np.isfinite(gradient)), name
        assert np.all(np.asarray(gradient)[..., :2] == 0.0), name
    p, q = (scipy.special.softmax(each.astype(float), axis=-1) for each in (logits, reference))
    keep = p[0, 0] > 0
    expected = np.sum(p[..., keep] * np.log(p[..., keep] / q[..., keep]), axis=-1)
    np.testing.assert_allclose(kl_divergence(logits, reference), expected, rtol=1e-4)
    reference_gradient = jax.jit(jax.grad(lambda q: kl_divergence(logits, q).sum()))(reference)
    assert np.all(np.isfinite(reference_gradient))


@pytest.mark.parametrize("name", STATISTICS)
def test_gradients_against_finite_differences(name):
    with jax.enable_x64(True):
        logits, reference = (logits_of((2, 3, 5), s, np.float64) for s in (6, 7))
        weights = np.random.default_rng(8).normal(size=(2, 3))
        tokens = np.array([[0, 1, 2], [3, 4, 0]])

        def value(x):
            return jnp.sum(weights * STATISTICS[name](x, tokens, reference))

        assert jax.eval_shape(value, logits).dtype == np.float64
        check_gradient(value, logits, step=1e-5)


def test_bfloat16_logits_have_float32_statistics():
    logits = logits_of((2, 4, 300), 13, jnp.bfloat16)
    tokens = np.zeros((2, 4), np.int32)
    wide = logits.astype(np.float32)
    np.testing.assert_allclose(
        token_log_probs(logits, tokens), scipy.special.log_softmax(wide, axis=-1)[..., 0], rtol=1e-6
    )
    np.testing.assert_allclose(
        kl_divergence(logits, -logits), kl_divergence(wide, -wide), rtol=1e-6
    )


def test_bad_arguments_are_refused_by_name():
    logits, tokens = np.zeros((2, 3, 4)), np.zeros((2, 3), np.int32)
    for kind, name, function, *arguments in (
        (TypeError, "logits_btv", logprobs.token_log_probs, logits.astype(int), tokens),
        (TypeError, "tokens_bt", logprobs.token_log_probs, logits, tokens.astype(float)),
        (ValueError, "logits_btv", logprobs.token_log_probs, logits[0], tokens),
        (ValueError, "tokens_bt", logprobs.token_log_probs, logits, tokens[:, :2]),
        (ValueError, "reference_logits_btv", logprobs.kl_divergence, logits, logits[:, :2]),
        (ValueError, "mask_bt", logprobs.sequence_log_probs, logits[0], np.ones((3, 3))),
        (ValueError, "reference_log_probs", logprobs.kl_k3, np.zeros(3), np.zeros(4)),
    ):
        with pytest.raises(kind, match=name):
            function(*arguments)
