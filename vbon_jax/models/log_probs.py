"""What a policy says of responses: hidden states and log-probabilities at response tokens alone.

Logits are made for the G response slots of a sequence and never for its prompt.
"""

import jax
import jax.numpy as jnp

from vbon_jax.functional import logprobs
from vbon_jax.models import decoder
from vbon_jax.types import Array, Params, Sequences

LOGIT_BYTES = 2**28  # of the logits that are held at once


def slots(sequences: Sequences, *, new_tokens: int) -> tuple[Array, Array]:
    """The response tokens of each sequence, [S, G] int32, and which are real, [S, G] bool."""
    offset = jnp.arange(new_tokens)
    index = jnp.minimum(
        sequences.prompt_lengths_s[:, None] + offset, sequences.tokens_st.shape[1] - 1
    )
    mask_sg = offset < (sequences.lengths_s - sequences.prompt_lengths_s)[:, None]
    tokens_sg = jnp.take_along_axis(sequences.tokens_st, index, axis=1)
    return jnp.where(mask_sg, tokens_sg, 0), mask_sg


def hidden(
    config: decoder.DecoderConfig, params: Params, sequences: Sequences, *, new_tokens: int
) -> Array:
    """The hidden states [S, G, D] that each response token is predicted from."""
    states_std = decoder.hidden(config, params, sequences.tokens_st)
    index = sequences.prompt_lengths_s[:, None] - 1 + jnp.arange(new_tokens)
    index = jnp.minimum(index, states_std.shape[1] - 1)
    return jnp.take_along_axis(states_std, index[..., None], axis=1)


def logits(
    config: decoder.DecoderConfig, params: Params, hidden_sgd: Array, *, temperature: float
) -> Array:
    """Logits [S, G, V] of each response token's law at a temperature above 0, in nats."""
    return decoder.logits(config, params, hidden_sgd) / temperature


def log_probs(
    config: decoder.DecoderConfig,
    params: Params,
    hidden_sgd: Array,
    tokens_sg: Array,
    mask_sg: Array,
    *,
    temperature: float,
) -> Array:
    """log pi(token) of the response tokens, [S, G] float32, and 0 behind the end."""
    said_sg = token_log_probs(config, params, hidden_sgd, tokens_sg, temperature=temperature)
    return jnp.where(mask_sg, said_sg, 0.0)


def token_log_probs(
    config: decoder.DecoderConfig,
    params: Params,
    hidden_std: Array,
    tokens_st: Array,
    *,
    temperature: float = 1.0,
) -> Array:
    """log pi of tokens [S, T] from the hidden states that they are predicted from: float32, nats.

    Where the logits of all are large they are made for a few tokens of every sequence at a time,
    and made again for the gradient, so that [S, T, V] is never held.
    """

    def some(hidden_std: Array, tokens_st: Array) -> Array:
        logits_stv = logits(config, params, hidden_std, temperature=temperature)
        return logprobs.token_log_probs(logits_stv, tokens_st)

    count, time = tokens_st.shape
    steps = max(1, LOGIT_BYTES // (4 * count * config.vocab_size))
    if steps >= time:
        return some(hidden_std, tokens_st)
    missing = -time % steps

    def parts(array: Array) -> Array:
        """[T / steps, S, steps, ...]."""
        padding = [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, padding).reshape(count, -1, steps, *array.shape[2:])
        return jnp.moveaxis(padded, 1, 0)

    said = jax.lax.map(
        lambda part: jax.checkpoint(some)(*part), (parts(hidden_std), parts(tokens_st))
    )
    return jnp.moveaxis(said, 0, 1).reshape(count, -1)[:, :time]


def response_log_probs(
    config: decoder.DecoderConfig,
    params: Params,
    sequences: Sequences,
    *,
    new_tokens: int,
    temperature: float,
) -> tuple[Array, Array, Array]:
    """`log_probs` of the response tokens [S, G], which are real [S, G], and their `hidden`."""
    tokens_sg, mask_sg = slots(sequences, new_tokens=new_tokens)
    hidden_sgd = hidden(config, params, sequences, new_tokens=new_tokens)
    said_sg = log_probs(config, params, hidden_sgd, tokens_sg, mask_sg, temperature=temperature)
    return said_sg, mask_sg, hidden_sgd
