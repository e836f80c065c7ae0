"""The layers that the decoder and the encoder are built from, as Flax NNX modules.

Parameter names are those of the table of logical axes in `models/sharding.py`: `tokens`,
`positions`, `query`, `key`, `value`, `output`, `gate`, `up`, `down`, `norm_*`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vbon_jax.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
}


class Linear(nnx.Linear):
    """A dense layer with float32 parameters; once adapted, with a low-rank term beside its kernel.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685: alpha / rank times x A B, B zero at first.
    """

    def adapt(self, *, rank: int, alpha: float, rngs: nnx.Rngs) -> None:
        """Add the low-rank term."""
        self.lora = nnx.LoRA(self.in_features, rank, self.out_features, dtype=self.dtype, rngs=rngs)
        self.share = alpha / rank

    def low_rank(self, x: Array) -> Array | float:
        """The output of the low-rank term; 0 where there is none."""
        return self.share * self.lora(x) if hasattr(self, "lora") else 0.0

    def __call__(self, x: Array) -> Array:
        return super().__call__(x) + self.low_rank(x)


def linear(rngs: nnx.Rngs, inputs: int, outputs: int, *, dtype, std: float, bias: bool = True):
    """A dense layer that computes in `dtype`."""
    return Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(std),
        rngs=rngs,
    )


Dense = Callable[..., Linear]  # `linear` with all but the widths given

# ----------------------------------------------------------------------------------------- norms


@functools.partial(jax.jit, static_argnames="epsilon")
def standardize(x: Array, *, epsilon: float) -> Array:
    """Mean 0 and variance 1 over the last axis, in float32 and in two passes.

    `jax.nn.standardize` takes mean(x^2) - mean(x)^2 by default, which has lost three digits where
    the mean is 100 times the deviation, and is not positive where epsilon is DistilBERT's 1e-12.
    A jit of its own: it is traced and lowered once, not once a layer.
    """
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + epsilon)


@functools.partial(jax.jit, static_argnames="epsilon")
def to_unit_square(x: Array, *, epsilon: float) -> Array:
    """Mean square 1 over the last axis, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + epsilon)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis; statistics in float32 whatever the input is."""

    def __init__(self, width: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        normed = standardize(x, epsilon=self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


class RmsNorm(nnx.Module):
    """Division by the root of the mean square over the last axis; `offset` is added to the scale.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467; Gemma keeps its scales less 1.
    """

    def __init__(self, width: int, *, epsilon: float, offset: float = 0.0):
        self.epsilon, self.offset = epsilon, offset
        self.scale = nnx.Param(jnp.full((width,), 1.0 - offset, jnp.float32))

    def __call__(self, x: Array) -> Array:
        normed = to_unit_square(x, epsilon=self.epsilon)
        return (normed * (self.offset + self.scale[...])).astype(x.dtype)


# -------------------------------------------------------------------------------- rotary positions


class Angles(NamedTuple):
    """Cosine and sine by which the pairs of a head's numbers are rotated, each [B, T, R / 2]."""

    cosine: Array
    sine: Array


def apply_rope(x_bthd: Array, angles: Angles | None) -> Array:
    """Rotary position embedding of queries or keys; None leaves them as they are.

    The first R numbers of a head are rotated, number i together with number i + R / 2.
    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    if angles is None:
        return x_bthd
    cosine, sine = (part[:, :, None] for part in angles)
    half = cosine.shape[-1]
    x = x_bthd.astype(jnp.float32)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    rotated = [first * cosine - second * sine, second * cosine + first * sine, rest]
    return jnp.concatenate(rotated, axis=-1).astype(x_bthd.dtype)


# -------------------------------------------------------------------------------------- attention


@dataclasses.dataclass(frozen=True)
class Heads:
    """The shape of an attention; K of its H heads have keys and values, each for H / K queries."""

    num_heads: int
    num_key_heads: int
    width: int  # of a head
    scale: float  # of scores
    cap: float = 0.0  # scores are bounded to +-cap by a tanh; 0 = not
    bias: bool = True  # of query, key and value
    output_bias: bool = True


class Attention(nnx.Module):
    """Multi-head attention: over a whole sequence, or of one new token over a cache.

    `dense` makes a layer from its two widths; `head_norm` makes the norm of queries and keys, head
    by head, where there is one.
    """

    def __init__(
        self,
        dense: Dense,
        heads: Heads,
        *,
        width: int,
        output_std: float,
        head_norm: Callable[[int], nnx.Module] | None = None,
    ):
        self.heads = heads
        inner, kept = heads.num_heads * heads.width, heads.num_key_heads * heads.width
        self.query = dense(width, inner, bias=heads.bias)
        self.key = dense(width, kept, bias=heads.bias)
        self.value = dense(width, kept, bias=heads.bias)
        self.output = dense(inner, width, std=output_std, bias=heads.output_bias)
        if head_norm is not None:
            self.query_norm, self.key_norm = head_norm(heads.width), head_norm(heads.width)

    def _split(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], -1, self.heads.width)

    def _grouped(self, query: Array) -> Array:
        """Queries [B, T, H, D/H] by the keys that they share, [B, T, K, H / K, D/H]."""
        return query.reshape(*query.shape[:2], self.heads.num_key_heads, -1, self.heads.width)

    def _norm_and_rotate(
        self, query: Array, key: Array, query_angles: Angles | None, key_angles: Angles | None
    ) -> tuple[Array, Array]:
        """Queries and keys [B, T, heads, D/H], normed where there is a norm, and rotated."""
        if hasattr(self, "query_norm"):
            query, key = self.query_norm(query), self.key_norm(key)
        return apply_rope(query, query_angles), apply_rope(key, key_angles)

    def _project(self, x: Array) -> list[Array]:
        """Query, key and value by one product of joined kernels.

        For a few rows XLA takes one CPU thread for each of three narrow products and all of them
        for a wide one; it joins the kernels once, before the decoding loop.
        """
        parts = (self.query, self.key, self.value)
        kernels = [part.kernel[...] for part in parts]
        joined = x @ jnp.concatenate(kernels, axis=1).astype(x.dtype)
        if self.query.bias is not None:
            joined += jnp.concatenate([part.bias[...] for part in parts]).astype(x.dtype)
        inner, kept = kernels[0].shape[1], kernels[1].shape[1]
        split = jnp.split(joined, [inner, inner + kept], axis=-1)
        return [full + part.low_rank(x) for full, part in zip(split, parts, strict=True)]

    def _scores(self, products: Array) -> Array:
        """Scores from products of queries and keys: float32, scaled and maybe bounded."""
        scores, cap = products.astype(jnp.float32) * self.heads.scale, self.heads.cap
        return cap * jnp.tanh(scores / cap) if cap else scores

    def __call__(
        self,
        query_bqd: Array,
        x_btd: Array,
        mask_bqt: Array,
        query_angles: Angles | None = None,
        key_angles: Angles | None = None,
    ) -> tuple[Array, Array, Array]:
        """Attention of some tokens of a sequence, or of all, over the sequence.

        mask_bqt is true where a query (axis 1) sees a key (axis 2). Returns the output [B, Q, D]
        and the sequence's keys and values, [B, T, K, D/H].
        """
        query = self._split(self.query(query_bqd))
        key, value = self._split(self.key(x_btd)), self._split(self.value(x_btd))
        query, key = self._norm_and_rotate(query, key, query_angles, key_angles)
        if self.heads.cap:
            scores = self._scores(jnp.einsum("bqkgd,btkd->bkgqt", self._grouped(query), key))
            weights = jax.nn.softmax(jnp.where(mask_bqt[:, None, None], scores, -jnp.inf), axis=-1)
            mixed = jnp.einsum("bkgqt,btkd->bqkgd", weights.astype(value.dtype), value)
        else:
            mixed = jax.nn.dot_product_attention(
                query, key, value, mask=mask_bqt[:, None], scale=self.heads.scale
            )
        return self.output(mixed.reshape(*query_bqd.shape[:2], -1)), key, value

    def decode(
        self,
        x_bnd: Array,
        cache,
        prompt_mask_bp: Array,
        new_mask_bg: Array,
        slot: Array,
        angles: Angles | None = None,
    ):
        """Attend from one new token a row to its prompt (shared by N rows) and to its row's tokens.

        cache is (prompt keys, prompt values [B, K, P, D/H], keys, values [B * N * K, G, D/H] of new
        tokens); the new token's key and value are written at `slot`, and the masks say what is
        seen. New tokens' have one leading axis because a reshape between write and read makes XLA
        write twice, into two copies of the cache.
        Returns the output [B, N, D] and the keys and values of the new tokens.
        """
        prompt_keys, prompt_values, keys, values = cache
        query, key, value = (self._split(part) for part in self._project(x_bnd))
        query, key = self._norm_and_rotate(query, key, angles, angles)
        one, row = (-1, 1, self.heads.width), (len(keys), -1, self.heads.width)
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key.reshape(one), slot, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, value.reshape(one), slot, axis=1)
        grouped = self._grouped(query)
        by_head, prompt_width = (*grouped.shape[:-1], -1), prompt_keys.shape[2]
        scores = jnp.concatenate(
            [
                jnp.einsum("bnkgd,bkpd->bnkgp", grouped, prompt_keys),
                jnp.einsum("rqd,rgd->rqg", query.reshape(row), keys).reshape(by_head),
            ],
            axis=-1,
        )
        new_mask_bg = jnp.broadcast_to(new_mask_bg, (len(prompt_mask_bp), new_mask_bg.shape[1]))
        mask = jnp.concatenate([prompt_mask_bp, new_mask_bg], axis=-1)[:, None, None, None]
        scores = jnp.where(mask, self._scores(scores), -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(x_bnd.dtype)
        mixed = jnp.einsum("bnkgp,bkpd->bnkgd", weights[..., :prompt_width], prompt_values)
        new_weights = weights[..., prompt_width:].reshape(len(values), -1, values.shape[1])
        mixed += jnp.einsum("rqg,rgd->rqd", new_weights, values).reshape(by_head)
        return self.output(mixed.reshape(*x_bnd.shape[:2], -1)), keys, values


class Mlp(nnx.Module):
    """Two dense layers with an activation between them; with a gate, which the first multiplies.

    Shazeer 2020, https://arxiv.org/abs/2002.05202.
    """

    def __init__(
        self,
        dense: Dense,
        *,
        width: int,
        hidden: int,
        activation: str,
        output_std: float,
        bias: bool = True,
        gated: bool = False,
    ):
        self.activation = ACTIVATIONS[activation]
        if gated:
            self.gate = dense(width, hidden, bias=bias)
        self.up = dense(width, hidden, bias=bias)
        self.down = dense(hidden, width, std=output_std, bias=bias)

    def __call__(self, x: Array) -> Array:
        if hasattr(self, "gate"):
            return self.down(self.activation(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))
