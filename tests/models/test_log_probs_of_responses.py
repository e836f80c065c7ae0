"""Log-probabilities of tokens from hidden states: in parts they are what they are at once."""

import jax
import numpy as np
import pytest
import scipy.special

from tests.families import forward, random_params
from tests.models.test_models import SMALL, tokens_of
from vbon_jax.models import decoder, log_probs


@pytest.mark.slow
def test_parts_give_the_same_numbers_and_gradients(monkeypatch):
    params, tokens = random_params(SMALL), tokens_of(SMALL, (3, 9))

    def compiled():
        def total(params):
            hidden = decoder.hidden(SMALL, params, tokens[:, :-1])
            values = log_probs.token_log_probs(
                SMALL, params, hidden, tokens[:, 1:], temperature=0.7
            )
            return (values * np.arange(1, 9)).sum(), values

        return jax.jit(jax.value_and_grad(total, has_aux=True))

    (_, whole), slope = compiled()(params)
    logits = np.asarray(forward(SMALL, params, tokens))[:, :-1] / 0.7
    expected = scipy.special.log_softmax(logits, axis=-1)
    expected = np.take_along_axis(expected, tokens[:, 1:, None], axis=2)[..., 0]
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    for steps in (1, 3, 8):
        monkeypatch.setattr(log_probs, "LOGIT_BYTES", steps * 4 * 3 * SMALL.vocab_size)
        (_, parts), again = compiled()(params)
        np.testing.assert_allclose(parts, whole, atol=1e-6)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), again, slope)
