"""A causal language model: one configurable decoder behind plain functions.

The network is a Flax NNX module; everybody else sees functions of (config, params, tokens). A
config is hashable, so it is a static argument of `jax.jit`; params are a nested dict of arrays.
"""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vbon_jax.models import layers, sharding
from vbon_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class Rope:
    """Rotary positions: pair i of R/2 is rotated by position * theta^(-2i/R), before any scaling.

    `fraction` of a head's width is rotated. `factor` divides every frequency (linear scaling). With
    `long_context` it divides low frequencies alone, as Llama 3 does: (low, high, positions) are
    how many turns in the `positions` of the original context count as low and as high.
    """

    theta: float = 10000.0
    fraction: float = 1.0
    factor: float = 1.0
    long_context: tuple[float, float, int] | None = None

    def frequencies(self, head_width: int) -> np.ndarray:
        """Radians a position of each pair, [R / 2] float32."""
        rotated = int(head_width * self.fraction)
        unscaled = self.theta ** (-np.arange(0, rotated, 2, dtype=np.float64) / rotated)
        scaled = unscaled / self.factor
        if self.long_context is not None:
            low, high, positions = self.long_context
            turns = positions * unscaled / (2 * np.pi)
            share = np.clip((turns - low) / (high - low), 0.0, 1.0)
            scaled = (1 - share) * scaled + share * unscaled
        return scaled.astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters: of each dense layer whose whole name fits the regular expression.

    Names are those of parameters without their last part, "layer_0/attention/query".
    """

    pattern: str
    rank: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The shape of a decoder.

    `max_positions` bounds prompt plus response, in tokens. `dtype` is what activations are
    computed in; parameters are float32. What is not given is GPT-2's.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int
    num_key_heads: int | None = None  # heads of keys and values; None = num_heads
    head_width: int | None = None  # None = width / num_heads
    activation: str = "gelu_new"
    gated_mlp: bool = False
    attention_bias: bool = True  # of query, key and value
    output_bias: bool = True  # of what follows them
    mlp_bias: bool = True
    norm: str = "layer"  # layer | rms
    norm_epsilon: float = 1e-5
    norm_offset: float = 0.0  # rms: what is added to a scale
    head_norm: bool = False  # queries and keys are normed, head by head
    output_norms: bool = False  # what attention and MLP add is normed as well
    parallel_residual: bool = False  # attention and MLP read the same input
    rope: Rope | None = None  # None = learned positions
    window: int = 0  # how many tokens, itself included, a windowed layer sees
    windowed: tuple[bool, ...] = ()  # for each layer; () = none
    window_rope: Rope | None = None  # of windowed layers; None = rope
    attention_scale: float | None = None  # of scores; None = 1 / sqrt(head width)
    scale_attention_by_layer: bool = False  # and divided by the layer's number, from 1
    attention_cap: float = 0.0  # scores are bounded to +-cap by a tanh; 0 = not
    logits_cap: float = 0.0  # and logits
    embedding_scale: float = 1.0
    tie_embeddings: bool = True
    labels: tuple[str, ...] = ()  # with labels: a classifier, whose head reads the last token
    lora: Lora | None = None
    initializer_std: float = 0.02
    dtype: str = "float32"

    @property
    def num_labels(self) -> int:
        """How many logits a text gets; 0 for a language model."""
        return len(self.labels)

    def is_windowed(self, layer: int) -> bool:
        """Whether a layer sees its window alone."""
        return bool(self.windowed) and self.windowed[layer]

    def heads(self, layer: int) -> layers.Heads:
        """The shape of a layer's attention."""
        width = self.head_width or self.width // self.num_heads
        scale = width**-0.5 if self.attention_scale is None else self.attention_scale
        return layers.Heads(
            num_heads=self.num_heads,
            num_key_heads=self.num_key_heads or self.num_heads,
            width=width,
            scale=scale / (layer + 1) if self.scale_attention_by_layer else scale,
            cap=self.attention_cap,
            bias=self.attention_bias,
            output_bias=self.output_bias,
        )


class Cache(NamedTuple):
    """Keys and values: of each prompt once, and of its N rows; a tuple entry a layer."""

    prompt_keys: tuple[Array, ...]  # L x [B, K, P, D/H], K heads of keys and values
    prompt_values: tuple[Array, ...]
    keys: tuple[Array, ...]  # L x [B * N * K, G, D/H]
    values: tuple[Array, ...]
    prompt_lengths_b: Array  # [B] int32


def _norm(config: DecoderConfig, width: int) -> nnx.Module:
    if config.norm == "rms":
        return layers.RmsNorm(width, epsilon=config.norm_epsilon, offset=config.norm_offset)
    return layers.LayerNorm(width, epsilon=config.norm_epsilon)


class Block(nnx.Module):
    """Pre-norm attention and MLP, each on the residual stream."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs, index: int):
        std, width = config.initializer_std, config.width
        dense = functools.partial(layers.linear, rngs, dtype=jnp.dtype(config.dtype), std=std)
        output_std = std / (2 * config.num_layers) ** 0.5
        self.parallel = config.parallel_residual
        self.norm_1 = _norm(config, width)
        self.attention = layers.Attention(
            dense,
            config.heads(index),
            width=width,
            output_std=output_std,
            head_norm=functools.partial(_norm, config) if config.head_norm else None,
        )
        self.norm_2 = _norm(config, width)
        self.mlp = layers.Mlp(
            dense,
            width=width,
            hidden=config.mlp_width,
            activation=config.activation,
            output_std=output_std,
            bias=config.mlp_bias,
            gated=config.gated_mlp,
        )
        if config.output_norms:
            self.norm_3, self.norm_4 = _norm(config, width), _norm(config, width)

    def _add(self, x: Array, mixed: Array) -> Array:
        """The residual stream behind a block that began with x, whose attention gave `mixed`."""
        if hasattr(self, "norm_3"):
            x = x + self.norm_3(mixed)
            return x + self.norm_4(self.mlp(self.norm_2(x)))
        if self.parallel:
            return x + mixed + self.mlp(self.norm_2(x))
        x = x + mixed
        return x + self.mlp(self.norm_2(x))

    def __call__(self, x_btd: Array, view: "View", last_b: Array | None = None):
        """All tokens, or with `last_b` that one token of each row alone; all keys and values."""
        normed_btd = self.norm_1(x_btd)
        query_bqd, x_bqd = normed_btd, x_btd
        if last_b is not None:
            query_bqd, x_bqd = (
                jnp.take_along_axis(part, last_b[:, None, None], axis=1)
                for part in (normed_btd, x_btd)
            )
        mixed, keys, values = self.attention(
            query_bqd, normed_btd, view.mask_bqt, view.query_angles, view.key_angles
        )
        return self._add(x_bqd, mixed), keys, values

    def decode(self, x_bnd: Array, cache, view: "CacheView", slot: Array):
        """One new token of each row, and the keys and values of the new tokens so far."""
        mixed, keys, values = self.attention.decode(
            self.norm_1(x_bnd), cache, view.prompt_mask_bp, view.new_mask_bg, slot, view.angles
        )
        return self._add(x_bnd, mixed), keys, values


class View(NamedTuple):
    """Which keys the queries of a layer see, and the angles of their positions."""

    mask_bqt: Array
    query_angles: layers.Angles | None
    key_angles: layers.Angles | None


class CacheView(NamedTuple):
    """Which cached keys a new token sees, of its prompt and of its row, and its own angles."""

    prompt_mask_bp: Array
    new_mask_bg: Array
    angles: layers.Angles | None


def _angles(config: DecoderConfig, windowed: bool, positions_bt: Array) -> layers.Angles | None:
    rope = (config.window_rope or config.rope) if windowed else config.rope
    if rope is None:
        return None
    frequencies = rope.frequencies(config.head_width or config.width // config.num_heads)
    angles = positions_bt[..., None].astype(jnp.float32) * frequencies
    return layers.Angles(jnp.cos(angles), jnp.sin(angles))


def _sees(config: DecoderConfig, windowed: bool, offsets: Array) -> Array:
    """Whether a key is seen that lies `offsets` tokens before the query."""
    return (offsets >= 0) & (offsets < config.window) if windowed else offsets >= 0


def _by_layer(config: DecoderConfig, view: Callable[[bool], NamedTuple]) -> list[NamedTuple]:
    """The view of each layer, made once for all windowed ones and once for the others."""
    view = functools.cache(view)
    return [view(config.is_windowed(layer)) for layer in range(config.num_layers)]


class Decoder(nnx.Module):
    """Embeddings, blocks, a final norm, and the head where it is not the embedding."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs):
        std, dtype = config.initializer_std, jnp.dtype(config.dtype)
        embed = functools.partial(
            nnx.Embed, dtype=dtype, embedding_init=nnx.initializers.normal(std), rngs=rngs
        )
        self.config = config
        self.tokens = embed(config.vocab_size, config.width)
        if config.rope is None:
            self.positions = embed(config.max_positions, config.width)
        for index in range(config.num_layers):
            setattr(self, f"layer_{index}", Block(config, rngs, index))
        self.norm_f = _norm(config, config.width)
        head = functools.partial(layers.linear, rngs, config.width, std=std)
        if config.labels:
            self.score = head(config.num_labels, dtype=jnp.float32, bias=False)
        elif not config.tie_embeddings:
            self.head = head(config.vocab_size, dtype=dtype, bias=False)
        if config.lora is not None:
            for path, module in list(nnx.iter_modules(self)):
                name = "/".join(map(str, path))
                dense = isinstance(module, layers.Linear) and name != "score"
                if dense and re.fullmatch(config.lora.pattern, name):
                    module.adapt(rank=config.lora.rank, alpha=config.lora.alpha, rngs=rngs)

    def blocks(self) -> list[Block]:
        return [getattr(self, f"layer_{index}") for index in range(self.config.num_layers)]

    def embed(self, tokens: Array, positions: Array) -> Array:
        x = self.tokens(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * jnp.asarray(self.config.embedding_scale, x.dtype)
        x = x + self.positions(positions) if self.config.rope is None else x
        return sharding.split_rows(x)

    def __call__(self, tokens_bt: Array, *, last_b: Array | None = None):
        """Hidden states after the final norm [B, T, D], and every layer's keys and values.

        With `last_b` [B] those of that one token of each row alone, [B, 1, D]: in the last layer
        nothing but keys and values is needed of the others. Padding is on the right, where no real
        token sees it.
        """
        positions_1t = jnp.arange(tokens_bt.shape[1])[None]

        def view(windowed: bool, positions_bq: Array = positions_1t) -> View:
            angles = [_angles(self.config, windowed, p) for p in (positions_bq, positions_1t)]
            offsets_bqt = positions_bq[:, :, None] - positions_1t[:, None]
            return View(_sees(self.config, windowed, offsets_bqt), *angles)

        final, views = self.config.num_layers - 1, _by_layer(self.config, view)
        if last_b is not None:
            views[final] = view(self.config.is_windowed(final), last_b[:, None])
        x, keys, values = self.embed(tokens_bt, positions_1t), [], []
        for index, block in enumerate(self.blocks()):
            x, key, value = block(x, views[index], last_b if index == final else None)
            x = sharding.split_rows(x)
            keys.append(key)
            values.append(value)
        return self.norm_f(x), keys, values

    def logits(self, hidden: Array) -> Array:
        logits = self.head(hidden) if hasattr(self, "head") else self.tokens.attend(hidden)
        cap = self.config.logits_cap
        return cap * jnp.tanh(logits / cap) if cap else logits


@functools.lru_cache(maxsize=64)
def _graphdef(config: DecoderConfig):
    return nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0))))[0]


def _network(config: DecoderConfig, params: Params) -> Decoder:
    return nnx.merge(_graphdef(config), params)


def init(config: DecoderConfig, key: Array) -> Params:
    """Random parameters (GPT-2's initialisation), a nested dict of float32 arrays."""
    if config.head_width is None and config.width % config.num_heads:
        raise ValueError(f"width {config.width} is not a multiple of {config.num_heads} heads")
    return nnx.to_pure_dict(nnx.split(Decoder(config, nnx.Rngs(key)))[1])


def hidden(config: DecoderConfig, params: Params, tokens_bt: Array) -> Array:
    """Hidden states after the final norm, [B, T, D].

    Every token is real, or padding on the right, which no real token sees.
    """
    return _network(config, params)(tokens_bt)[0]


def logits(config: DecoderConfig, params: Params, hidden: Array) -> Array:
    """Unnormalised log-probabilities [..., V] of the token that follows each hidden state."""
    return _network(config, params).logits(hidden)


def forward(config: DecoderConfig, params: Params, tokens_bt: Array) -> Array:
    """Logits [B, T, V] of every position's next token."""
    return logits(config, params, hidden(config, params, tokens_bt))


def prefill(
    config: DecoderConfig,
    params: Params,
    tokens_bp: Array,
    lengths_b: Array,
    *,
    num_samples: int,
) -> tuple[Array, Cache]:
    """Run each prompt once: the hidden state of its last token [B, D], and a cache for N rows.

    Prompts are padded on the right. The cache has no slot for a new token yet; see `grow`.
    """
    last_b1d, keys, values = _network(config, params)(tokens_bp, last_b=lengths_b - 1)
    heads, head_width = keys[0].shape[2:]
    empty = jnp.zeros((len(tokens_bp) * num_samples * heads, 0, head_width), keys[0].dtype)
    cache = Cache(
        prompt_keys=tuple(jnp.moveaxis(key, 1, 2) for key in keys),
        prompt_values=tuple(jnp.moveaxis(value, 1, 2) for value in values),
        keys=(empty,) * config.num_layers,
        values=(empty,) * config.num_layers,
        prompt_lengths_b=lengths_b,
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
    positions_b1 = cache.prompt_lengths_b[:, None] + slot
    x = network.embed(tokens_bn, jnp.broadcast_to(positions_b1, tokens_bn.shape))
    prompt = jnp.arange(cache.prompt_keys[0].shape[2])
    real_bp = prompt < cache.prompt_lengths_b[:, None]
    slots = jnp.arange(cache.keys[0].shape[1])

    def view(windowed: bool) -> CacheView:
        return CacheView(
            real_bp & _sees(config, windowed, positions_b1 - prompt),
            _sees(config, windowed, slot - slots)[None],
            _angles(config, windowed, positions_b1),
        )

    keys, values = [], []
    views = _by_layer(config, view)
    for block, layer_view, *layer_cache in zip(network.blocks(), views, *cache[:4], strict=True):
        x, key, value = block.decode(x, layer_cache, layer_view, slot)
        keys.append(key)
        values.append(value)
    return network.norm_f(x), cache._replace(keys=tuple(keys), values=tuple(values))


def classify(config: DecoderConfig, params: Params, tokens_bt: Array, lengths_b: Array) -> Array:
    """Logits [B, C] float32 of each text's class, read at its last token.

    `tokens_bt` [B, T] int32 is padded on the right; `lengths_b` [B] int32 counts each text's
    tokens. Padding is told by the lengths, so a text may hold or end with any token.
    """
    network = _network(config, params)
    last_b1d, _, _ = network(tokens_bt, last_b=lengths_b - 1)
    return network.score(last_b1d[:, 0].astype(jnp.float32))


def with_score(
    config: DecoderConfig, params: Params, labels: tuple[str, ...], key: Array
) -> tuple[DecoderConfig, Params]:
    """A language model as a classifier: its head makes room for a random score of each label."""
    kernel = config.initializer_std * jax.random.normal(key, (config.width, len(labels)))
    kept = {name: part for name, part in params.items() if name != "head"}
    return dataclasses.replace(config, labels=labels), kept | {"score": {"kernel": kernel}}


def init_value_head(config: DecoderConfig) -> Params:
    """A linear value head that predicts zero everywhere until it is trained."""
    return {"kernel": jnp.zeros((config.width,), jnp.float32), "bias": jnp.zeros((), jnp.float32)}


def values(params: Params, hidden: Array) -> Array:
    """The value head on hidden states [..., D]: float32 [...], in units of the shaped reward."""
    return hidden.astype(jnp.float32) @ params["kernel"] + params["bias"]
