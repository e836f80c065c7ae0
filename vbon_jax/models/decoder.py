"""A causal language model: one configurable decoder behind plain functions.

The network is a Flax NNX module; everybody else sees functions of (config, params, tokens). A
config is hashable, so it is a static argument of `jax.jit`; params are a nested dict of arrays.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx

from vbon_jax.models import layers
from vbon_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    `max_positions` bounds prompt plus response, in tokens. `dtype` is what activations are
    computed in; parameters are float32.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int
    norm_epsilon: float = 1e-5
    activation: str = "gelu_new"
    tie_embeddings: bool = True
    head_bias: bool = False
    scale_attention: bool = True  # divide scores by the square root of a head's width
    scale_attention_by_layer: bool = False  # and by the layer's number, from 1
    initializer_std: float = 0.02
    dtype: str = "float32"


class Cache(NamedTuple):
    """Keys and values: of each prompt once, and of its N rows; a tuple entry a layer."""

    prompt_keys: tuple[Array, ...]  # L x [B, H, P, D/H]
    prompt_values: tuple[Array, ...]
    keys: tuple[Array, ...]  # L x [B * N * H, G, D/H]
    values: tuple[Array, ...]
    prompt_mask_bp: Array  # [B, P] bool

    def layer(self, index: int) -> tuple[Array, Array, Array, Array]:
        """Prompt keys and values, own keys and values of one layer."""
        return (
            self.prompt_keys[index],
            self.prompt_values[index],
            self.keys[index],
            self.values[index],
        )


def _at(x_btd: Array, index_b: Array) -> Array:
    """One entry of each row, [B, 1, D]."""
    return jnp.take_along_axis(x_btd, index_b[:, None, None], axis=1)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each on the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, index: int):
        dtype, std = jnp.dtype(config.dtype), config.initializer_std
        output_std = std / (2 * config.num_layers) ** 0.5
        scale = (config.width // config.num_heads) ** -0.5 if config.scale_attention else 1.0
        if config.scale_attention_by_layer:
            scale /= index + 1
        self.norm_1 = layers.LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.attention = layers.Attention(
            rngs,
            width=config.width,
            num_heads=config.num_heads,
            scale=scale,
            dtype=dtype,
            std=std,
            output_std=output_std,
        )
        self.norm_2 = layers.LayerNorm(config.width, epsilon=config.norm_epsilon)
        self.mlp = layers.Mlp(
            rngs,
            width=config.width,
            hidden=config.mlp_width,
            activation=config.activation,
            dtype=dtype,
            std=std,
            output_std=output_std,
        )

    def __call__(self, x_btd: Array, mask_bqt: Array, last_b: Array | None = None):
        """All tokens, or with `last_b` that one token of each row alone; all keys and values."""
        normed_btd = self.norm_1(x_btd)
        asking_bqd, x_bqd = normed_btd, x_btd
        if last_b is not None:
            asking_bqd, x_bqd = _at(normed_btd, last_b), _at(x_btd, last_b)
        mixed, keys, values = self.attention(asking_bqd, normed_btd, mask_bqt)
        x_bqd = x_bqd + mixed
        return x_bqd + self.mlp(self.norm_2(x_bqd)), keys, values

    def decode(self, x_bnd: Array, cache, prompt_mask_bp: Array, slot: Array):
        mixed, keys, values = self.attention.decode(self.norm_1(x_bnd), cache, prompt_mask_bp, slot)
        x_bnd = x_bnd + mixed
        return x_bnd + self.mlp(self.norm_2(x_bnd)), keys, values


class Decoder(nnx.Module):
    """Embeddings, blocks, a final norm, and the head where it is not the embedding."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        std, dtype = config.initializer_std, jnp.dtype(config.dtype)
        embed = functools.partial(
            nnx.Embed, dtype=dtype, embedding_init=nnx.initializers.normal(std), rngs=rngs
        )
        self.num_layers = config.num_layers
        self.tokens = embed(config.vocab_size, config.width)
        self.positions = embed(config.max_positions, config.width)
        for index in range(config.num_layers):
            setattr(self, f"layer_{index}", Block(config, rngs, index))
        self.norm_f = layers.LayerNorm(config.width, epsilon=config.norm_epsilon)
        if not config.tie_embeddings:
            self.head = layers.linear(
                rngs, config.width, config.vocab_size, dtype=dtype, std=std, bias=config.head_bias
            )

    def blocks(self) -> list[Block]:
        return [getattr(self, f"layer_{index}") for index in range(self.num_layers)]

    def embed(self, tokens: Array, positions: Array) -> Array:
        return self.tokens(tokens) + self.positions(positions)

    def __call__(self, tokens_bt: Array, mask_bt: Array | None, *, last_b: Array | None = None):
        """Hidden states after the final norm [B, T, D], and every layer's keys and values.

        With `last_b` [B] those of that one token of each row alone, [B, 1, D]: in the last layer
        nothing but keys and values is needed of the others.
        """
        batch, width = tokens_bt.shape
        if mask_bt is None:
            positions = jnp.broadcast_to(jnp.arange(width), (batch, width))
            mask = jnp.ones((1, width), bool)
        else:
            positions = jnp.maximum(jnp.cumsum(mask_bt, axis=1) - 1, 0)
            mask = mask_bt
        # A row of padding sees itself, so that no softmax is over nothing.
        sees = jnp.tril(jnp.ones((width, width), bool)) & mask[:, None] | jnp.eye(width, dtype=bool)
        sees = jnp.broadcast_to(sees, (batch, width, width))
        x, keys, values = self.embed(tokens_bt, positions), [], []
        for index, block in enumerate(self.blocks()):
            if last_b is not None and index == self.num_layers - 1:
                x, key, value = block(x, _at(sees, last_b), last_b)
            else:
                x, key, value = block(x, sees)
            keys.append(key)
            values.append(value)
        return self.norm_f(x), keys, values

    def logits(self, hidden: Array) -> Array:
        return self.head(hidden) if hasattr(self, "head") else self.tokens.attend(hidden)


@functools.lru_cache(maxsize=64)
def _graphdef(config: DecoderConfig):
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))[0]


def _network(config: DecoderConfig, params: Params) -> Decoder:
    return nnx.merge(_graphdef(config), params)


def init(config: DecoderConfig, key: Array) -> Params:
    """Random parameters (GPT-2's initialisation), a nested dict of float32 arrays."""
    if config.width % config.num_heads:
        raise ValueError(f"width {config.width} is not a multiple of {config.num_heads} heads")
    return nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(key)))[1])


def hidden(
    config: DecoderConfig, params: Params, tokens_bt: Array, *, mask_bt: Array | None = None
) -> Array:
    """Hidden states after the final norm, [B, T, D].

    Without a mask every token is real (or padding on the right, which no real token sees); with
    one, `mask_bt` [B, T] bool marks the real tokens and positions are counted along it.
    """
    return _network(config, params)(tokens_bt, mask_bt)[0]


def logits(config: DecoderConfig, params: Params, hidden: Array) -> Array:
    """Unnormalised log-probabilities [..., V] of the token that follows each hidden state."""
    return _network(config, params).logits(hidden)


def forward(
    config: DecoderConfig, params: Params, tokens_bt: Array, *, mask_bt: Array | None = None
) -> Array:
    """Logits [B, T, V] of every position's next token."""
    return logits(config, params, hidden(config, params, tokens_bt, mask_bt=mask_bt))


def prefill(
    config: DecoderConfig,
    params: Params,
    tokens_bp: Array,
    mask_bp: Array,
    *,
    num_samples: int,
) -> tuple[Array, Cache]:
    """Run each prompt once: the hidden state of its last token [B, D], and a cache for N rows.

    The cache has no slot for a new token yet; see `grow`.
    """
    batch, width = tokens_bp.shape
    last_b = width - 1 - jnp.argmax(mask_bp[:, ::-1], axis=1)
    last_b1d, keys, values = _network(config, params)(tokens_bp, mask_bp, last_b=last_b)
    heads, head_width = keys[0].shape[2:]
    empty = jnp.zeros((batch * num_samples * heads, 0, head_width), keys[0].dtype)
    cache = Cache(
        prompt_keys=tuple(jnp.moveaxis(key, 1, 2) for key in keys),
        prompt_values=tuple(jnp.moveaxis(value, 1, 2) for value in values),
        keys=(empty,) * config.num_layers,
        values=(empty,) * config.num_layers,
        prompt_mask_bp=mask_bp,
    )
    return last_b1d[:, 0], cache


def grow(cache: Cache, slots: int) -> Cache:
    """The cache with `slots` slots (no fewer than it has) for new tokens in each row."""
    missing = slots - cache.keys[0].shape[1]
    keys, values = (
        tuple(jnp.pad(part, ((0, 0), (0, missing), (0, 0))) for part in parts)
        for parts in (cache.keys, cache.values)
    )
    return cache._replace(keys=keys, values=values)


def decode(
    config: DecoderConfig, params: Params, cache: Cache, tokens_bn: Array, slot: Array
) -> tuple[Array, Cache]:
    """One more token a row: its hidden state [B, N, D] and the cache with it written at `slot`.

    `slot` counts from 0 the new tokens that were fed so far; it is the same in every row.
    """
    network = _network(config, params)
    positions = cache.prompt_mask_bp.sum(axis=1)[:, None] + slot
    x = network.embed(tokens_bn, jnp.broadcast_to(positions, tokens_bn.shape))
    keys, values = [], []
    for index, block in enumerate(network.blocks()):
        x, key, value = block.decode(x, cache.layer(index), cache.prompt_mask_bp, slot)
        keys.append(key)
        values.append(value)
    return network.norm_f(x), cache._replace(keys=tuple(keys), values=tuple(values))


def init_value_head(config: DecoderConfig) -> Params:
    """A linear value head that predicts zero everywhere until it is trained."""
    return {"kernel": jnp.zeros((config.width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def values(params: Params, hidden: Array) -> Array:
    """The value head on hidden states [..., D]: float32 [...], in units of the shaped reward."""
    return hidden.astype(jnp.float32) @ params["kernel"] + params["bias"]
