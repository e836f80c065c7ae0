"""Text classifiers of both kinds, an encoder's or a decoder's, behind the same two functions."""

import functools

import jax

from vbon_jax.models import decoder, encoder
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.types import Array, Params

# The parts of a network, decoder or encoder, that come before its first layer.
BEFORE_LAYERS = ("tokens", "positions", "types", "relative", "norm_0")

Config = DecoderConfig | EncoderConfig


def init(config: Config, key: Array) -> Params:
    """Random parameters of either kind, a nested dict of float32 arrays."""
    network = encoder if isinstance(config, EncoderConfig) else decoder
    return network.init(config, key)


def classify(config: Config, params: Params, tokens_bt: Array, lengths_b: Array) -> Array:
    """Logits [B, C] float32 of each text's class; differentiable in `params`.

    `tokens_bt` [B, T] int32 holds texts from their first token on, padded on the right;
    `lengths_b` [B] int32 counts each text's tokens, T <= max_positions. An encoder reads a text at
    its first token, a decoder at its last.
    """
    network = encoder if isinstance(config, EncoderConfig) else decoder
    return network.classify(config, params, tokens_bt, lengths_b)


logits = functools.partial(jax.jit, static_argnums=0)(classify)
