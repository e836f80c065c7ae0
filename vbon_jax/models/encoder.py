"""A text classifier: one configurable bidirectional encoder behind plain functions.

The twin of `decoder.py`: a Flax NNX module inside, functions of (config, params, tokens) outside.
"""

import dataclasses
import functools

import jax.numpy as jnp
from flax import nnx

from vbon_jax.models import disentangled, layers, sharding
from vbon_jax.models.disentangled import RelativePositions
from vbon_jax.types import Array, Params


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """The shape of an encoder that ends in a classifier.

    `max_positions` bounds a text, in tokens, its special tokens counted. `labels` names the
    classes in the order of the logits. `dtype` is what activations are computed in; parameters
    and logits are float32. What is not given is DistilBERT's.
    """

    vocab_size: int
    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    max_positions: int
    position_table: bool = True  # a learned vector of each position, added to the token's
    first_position: int = 0  # row of that table at which a text begins
    token_types: int = 0  # rows of another such table; a text is of type 0 throughout
    relative: RelativePositions | None = None  # seen by attention
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    head_activation: str = "relu"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    initializer_std: float = 0.02
    dtype: str = "float32"

    @property
    def num_labels(self) -> int:
        """How many logits a text gets."""
        return len(self.labels)


class Block(nnx.Module):
    """Attention and MLP, each added to its input and normalised after (post-norm)."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        width, std = config.width, config.initializer_std
        dense = functools.partial(layers.linear, rngs, dtype=jnp.dtype(config.dtype), std=std)
        head_width = width // config.num_heads
        if config.relative is not None:
            self.attention = disentangled.Attention(
                dense, config.relative, width=width, head_width=head_width
            )
        else:
            heads = layers.Heads(
                config.num_heads, config.num_heads, head_width, scale=head_width**-0.5
            )
            self.attention = layers.Attention(dense, heads, width=width, output_std=std)
        self.norm_1 = layers.LayerNorm(width, epsilon=config.norm_epsilon)
        self.mlp = layers.Mlp(
            dense,
            width=width,
            hidden=config.mlp_width,
            activation=config.activation,
            output_std=std,
        )
        self.norm_2 = layers.LayerNorm(width, epsilon=config.norm_epsilon)

    def __call__(
        self, x_btd: Array, real_bt: Array, table_rd: Array | None, *, num_queries: int | None
    ) -> Array:
        """The first `num_queries` tokens (None: all) after they have seen all real ones.

        table_rd is that of relative positions, where there are any.
        """
        batch, width = x_btd.shape[:2]
        mask_bqt = jnp.broadcast_to(real_bt[:, None], (batch, num_queries or width, width))
        query_bqd = x_btd[:, :num_queries]
        if table_rd is None:
            mixed, _, _ = self.attention(query_bqd, x_btd, mask_bqt)
        else:
            mixed = self.attention(query_bqd, x_btd, mask_bqt, table_rd)
        x_btd = self.norm_1(query_bqd + mixed)
        return self.norm_2(x_btd + self.mlp(x_btd))


class RelativeTable(nnx.Module):
    """The vectors of relative positions that all layers share, normed where the config says so."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        init = nnx.initializers.normal(config.initializer_std)
        rows = 2 * config.relative.span
        self.positions = nnx.Embed(rows, config.width, embedding_init=init, rngs=rngs)
        if config.relative.normed:
            self.norm = layers.LayerNorm(config.width, epsilon=config.norm_epsilon)

    def __call__(self) -> Array:
        table_rd = self.positions.embedding[...]
        return self.norm(table_rd) if hasattr(self, "norm") else table_rd


class Encoder(nnx.Module):
    """Embeddings and their norm, blocks, and a two-layer classifier on the first token."""

    def __init__(self, config: EncoderConfig, rngs: nnx.Rngs):
        std, dtype = config.initializer_std, jnp.dtype(config.dtype)
        embed = functools.partial(
            nnx.Embed, dtype=dtype, embedding_init=nnx.initializers.normal(std), rngs=rngs
        )
        self.config = config
        self.tokens = embed(config.vocab_size, config.width)
        if config.position_table:
            self.positions = embed(config.first_position + config.max_positions, config.width)
        if config.token_types:
            self.types = embed(config.token_types, config.width)
        if config.relative is not None:
            self.relative = RelativeTable(config, rngs)
        self.norm_0 = layers.LayerNorm(config.width, epsilon=config.norm_epsilon)
        for index in range(config.num_layers):
            setattr(self, f"layer_{index}", Block(config, rngs))
        self.pre_classifier = layers.linear(rngs, config.width, config.width, dtype=dtype, std=std)
        self.classifier = layers.linear(
            rngs, config.width, config.num_labels, dtype=jnp.float32, std=std
        )

    def embed(self, tokens_bt: Array) -> Array:
        """The normed sum of what a token, its position and its type bring in, [B, T, D]."""
        x_btd = self.tokens(tokens_bt)
        if self.config.position_table:
            x_btd += self.positions(self.config.first_position + jnp.arange(tokens_bt.shape[1]))
        if self.config.token_types:
            x_btd += self.types(jnp.zeros((1,), jnp.int32))
        return sharding.split_rows(self.norm_0(x_btd))

    def __call__(self, tokens_bt: Array, lengths_b: Array) -> Array:
        real_bt = jnp.arange(tokens_bt.shape[1]) < lengths_b[:, None]
        x_btd = self.embed(tokens_bt)
        table_rd = None if self.config.relative is None else self.relative()
        for index in range(self.config.num_layers):
            # Only the first token is pooled, so the last block computes no other: 2/5 less work
            # for two blocks.
            queries = 1 if index == self.config.num_layers - 1 else None
            block = getattr(self, f"layer_{index}")
            x_btd = sharding.split_rows(block(x_btd, real_bt, table_rd, num_queries=queries))
        activation = layers.ACTIVATIONS[self.config.head_activation]
        pooled_bd = activation(self.pre_classifier(x_btd[:, 0]))
        return self.classifier(pooled_bd.astype(jnp.float32))


@functools.lru_cache(maxsize=64)
def _graphdef(config: EncoderConfig):
    return nnx.split(nnx.eval_shape(lambda: Encoder(config, nnx.Rngs(0))))[0]


def init(config: EncoderConfig, key: Array) -> Params:
    """Random parameters (normal kernels, zero biases), a nested dict of float32 arrays."""
    if config.width % config.num_heads:
        raise ValueError(f"width {config.width} is not a multiple of {config.num_heads} heads")
    return nnx.to_pure_dict(nnx.split(Encoder(config, nnx.Rngs(key)))[1])


def classify(config: EncoderConfig, params: Params, tokens_bt: Array, lengths_b: Array) -> Array:
    """Logits [B, C] float32 of each text's class; differentiable in `params`.

    `tokens_bt` [B, T] int32 holds texts from their first (pooled) token on, padded on the right;
    `lengths_b` [B] int32 counts each text's tokens, T <= max_positions.
    The classifiers of BERT (Devlin et al. 2018, https://arxiv.org/abs/1810.04805), of RoBERTa
    (Liu et al. 2019, https://arxiv.org/abs/1907.11692), of DistilBERT (Sanh et al. 2019,
    https://arxiv.org/abs/1910.01108) and of DeBERTa (see `disentangled.py`).
    """
    return nnx.merge(_graphdef(config), params)(tokens_bt, lengths_b)
