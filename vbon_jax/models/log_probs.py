"""Log-probabilities of responses under a decoder.

Logits are made for the G response positions of a sequence, never for its prompt, and for a few of
those at a time where they are large: `map_logits` is the one place that divides them.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vbon_jax.functional import logprobs
from vbon_jax.models import decoder, sharding
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.types import Array, InputError, Params, Sequences

LOGIT_BYTES = 2**28  # of the float32 logits that exist at once on a device


class Network(NamedTuple):
    """A decoder whose logits are wanted: at each position, softmax(logits / temperature)."""

    params: Params
    hidden_std: Array
    temperature: float | Array = 1.0


def on_host(results: Any, network: str) -> Any:
    """What a network computed, a tree of arrays, as numpy arrays.

    Raises InputError, beginning with `network` (its folder, or what it is), where a number is not
    finite. All log-probabilities that are sampled or scored come to the host by this function.
    """
    results = jax.device_get(results)
    for values in jax.tree.leaves(results):
        bad = ~np.isfinite(values)  # whole numbers all are
        if bad.any():
            raise InputError(
                f"{network}: {bad.sum()} of {bad.size} numbers that it gives are not finite (the "
                f"first in row {np.argwhere(bad)[0][0]}): it overflows, or its training diverged; "
                "take float32, an earlier checkpoint, or a smaller train.learning_rate"
            )
    return results


def response_tokens(sequences: Sequences, *, new_tokens: int) -> tuple[Array, Array]:
    """The response tokens of each sequence, [S, G] int32, and which are real, [S, G] bool."""
    offset = jnp.arange(new_tokens)
    index = jnp.minimum(
        sequences.prompt_lengths_s[:, None] + offset, sequences.tokens_st.shape[1] - 1
    )
    mask_sg = offset < (sequences.lengths_s - sequences.prompt_lengths_s)[:, None]
    tokens_sg = jnp.take_along_axis(sequences.tokens_st, index, axis=1)
    return jnp.where(mask_sg, tokens_sg, 0), mask_sg


def response_hidden(
    model: DecoderConfig, params: Params, sequences: Sequences, *, new_tokens: int
) -> Array:
    """The hidden states [S, G, D] that each response token is predicted from."""
    states_std = decoder.hidden(model, params, sequences.tokens_st)
    index = sequences.prompt_lengths_s[:, None] - 1 + jnp.arange(new_tokens)
    index = jnp.minimum(index, states_std.shape[1] - 1)
    return jnp.take_along_axis(states_std, index[..., None], axis=1)


def map_logits(
    function: Callable[..., Any],
    model: DecoderConfig,
    networks: tuple[Network, ...],
    tokens_st: Array,
) -> Any:
    """function(*logits, tokens), a tree of [S, T] arrays, from chunks of positions.

    `function` takes the logits [S, C, V] of each network, divided by its temperature, and the
    tokens [S, C], and must treat positions alone. Where the logits of all T positions are large
    they are made for C of them at a time, and made again for the gradient.
    """

    def of_chunk(hidden_chunks: tuple[Array, ...], tokens_sc: Array):
        logits = [
            decoder.logits(model, network.params, sharding.split_rows(hidden_scd))
            / network.temperature
            for network, hidden_scd in zip(networks, hidden_chunks, strict=True)
        ]
        return function(*logits, tokens_sc)

    hidden = tuple(network.hidden_std for network in networks)
    count, time = tokens_st.shape
    rows = sharding.rows_a_device(hidden[0])
    steps = max(1, LOGIT_BYTES // (4 * rows * model.vocab_size * len(networks)))
    if steps >= time:
        return of_chunk(hidden, tokens_st)

    def chunks(array: Array) -> Array:
        """[S, T, ...] as [T / C, S, C, ...]."""
        padding = [(0, 0), (0, -time % steps)] + [(0, 0)] * (array.ndim - 2)
        padded = jnp.pad(array, padding).reshape(count, -1, steps, *array.shape[2:])
        return jnp.moveaxis(padded, 1, 0)

    results = jax.lax.map(
        lambda chunk: jax.checkpoint(of_chunk)(*chunk),
        (jax.tree.map(chunks, hidden), chunks(tokens_st)),
    )
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(count, -1)[:, :time], results)


def token_log_probs(
    model: DecoderConfig,
    params: Params,
    hidden_std: Array,
    tokens_st: Array,
    *,
    temperature: float = 1.0,
) -> Array:
    """log pi of tokens [S, T] from the hidden states that predict them: float32, nats."""
    network = Network(params, hidden_std, temperature)
    return map_logits(logprobs.token_log_probs, model, (network,), tokens_st)


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "temperature"))
def response_log_probs(
    model: DecoderConfig,
    params: Params,
    sequences: Sequences,
    *,
    new_tokens: int,
    temperature: float,
) -> tuple[Array, Array, Array]:
    """log pi of response tokens, which of them are real, and the states they are predicted from.

    `(log_probs_sg, mask_sg, hidden_sgd)`: float32 in nats at a temperature above 0, and 0 behind
    a response's end; bool; the model's dtype. `new_tokens` (G) bounds a response's length.
    """
    tokens_sg, mask_sg = response_tokens(sequences, new_tokens=new_tokens)
    hidden_sgd = response_hidden(model, params, sequences, new_tokens=new_tokens)
    log_probs_sg = token_log_probs(model, params, hidden_sgd, tokens_sg, temperature=temperature)
    return jnp.where(mask_sg, log_probs_sg, 0.0), mask_sg, hidden_sgd


@functools.partial(jax.jit, static_argnames=("model", "new_tokens", "temperature"))
def sequence_log_probs(
    model: DecoderConfig,
    params: Params,
    sequences: Sequences,
    *,
    new_tokens: int,
    temperature: float,
) -> Array:
    """log pi of whole responses, [S] float32, nats: the sum of `response_log_probs`."""
    log_probs_sg, _, _ = response_log_probs(
        model, params, sequences, new_tokens=new_tokens, temperature=temperature
    )
    return log_probs_sg.sum(axis=1)
