"""The layers that the decoder and the encoder are built from, as Flax NNX modules.

Parameter names are those of the table of logical axes in `train/parallel.py`: `tokens`,
`positions`, `query`, `key`, `value`, `output`, `up`, `down`, `norm_*`.
"""

import functools
from collections.abc import Callable

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
}


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


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis; statistics in float32 whatever the input is."""

    def __init__(self, width: int, *, epsilon: float):
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones((width,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((width,), jnp.float32))

    def __call__(self, x: Array) -> Array:
        normed = standardize(x, epsilon=self.epsilon)
        return (normed * self.scale[...] + self.bias[...]).astype(x.dtype)


def linear(rngs: nnx.Rngs, inputs: int, outputs: int, *, dtype, std: float, bias: bool = True):
    """A dense layer with float32 parameters that computes in `dtype`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=bias,
        dtype=dtype,
        kernel_init=nnx.initializers.normal(std),
        rngs=rngs,
    )


class Attention(nnx.Module):
    """Multi-head attention: over a whole sequence, or of one new token over a cache."""

    def __init__(self, rngs, *, width: int, num_heads: int, scale: float, dtype, std, output_std):
        self.num_heads = num_heads
        self.scale = scale
        self.query = linear(rngs, width, width, dtype=dtype, std=std)
        self.key = linear(rngs, width, width, dtype=dtype, std=std)
        self.value = linear(rngs, width, width, dtype=dtype, std=std)
        self.output = linear(rngs, width, width, dtype=dtype, std=output_std)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)

    def _project(self, x: Array) -> list[Array]:
        """Query, key and value by one product of joined kernels.

        For a few rows XLA takes one CPU thread for each of three narrow products and all of them
        for a wide one; it joins the kernels once, before the decoding loop.
        """
        parts = (self.query, self.key, self.value)
        kernel = jnp.concatenate([part.kernel[...] for part in parts], axis=1).astype(x.dtype)
        bias = jnp.concatenate([part.bias[...] for part in parts]).astype(x.dtype)
        return jnp.split(x @ kernel + bias, 3, axis=-1)

    def __call__(
        self, asking_bqd: Array, x_btd: Array, mask_bqt: Array
    ) -> tuple[Array, Array, Array]:
        """What the tokens that ask (all of a sequence, or some) take from a sequence.

        mask_bqt is true where a query (axis 1) sees a key (axis 2). Returns the output [B, Q, D]
        and the sequence's keys and values, [B, T, H, D/H].
        """
        query = self._heads(self.query(asking_bqd))
        key, value = self._heads(self.key(x_btd)), self._heads(self.value(x_btd))
        mixed = jax.nn.dot_product_attention(
            query, key, value, mask=mask_bqt[:, None], scale=self.scale
        )
        return self.output(mixed.reshape(asking_bqd.shape)), key, value

    def decode(self, x_bnd: Array, cache, prompt_mask_bp: Array, slot: Array):
        """Attend from one new token a row to its prompt (shared by N rows) and its own past.

        cache is (prompt keys, prompt values [B, H, P, D/H], own keys, own values
        [B * N * H, G, D/H]); the new token's key and value are written at `slot`. The own ones
        have one leading axis because a reshape between write and read makes XLA write twice, into
        two copies of the cache.
        Returns the output [B, N, D] and the new own keys and values.
        """
        prompt_keys, prompt_values, keys, values = cache
        query, key, value = (self._heads(part) for part in self._project(x_bnd))
        by_head, row = (*query.shape[:-1], -1), (-1, 1, query.shape[-1])
        keys = jax.lax.dynamic_update_slice_in_dim(keys, key.reshape(row), slot, axis=1)
        values = jax.lax.dynamic_update_slice_in_dim(values, value.reshape(row), slot, axis=1)
        prompt_width = prompt_keys.shape[2]
        scores = jnp.concatenate(
            [
                jnp.einsum("bnhd,bhpd->bnhp", query, prompt_keys),
                jnp.einsum("rqd,rgd->rqg", query.reshape(row), keys).reshape(by_head),
            ],
            axis=-1,
        )
        written = jnp.arange(keys.shape[1]) <= slot
        mask = jnp.concatenate(
            [prompt_mask_bp, jnp.broadcast_to(written, (len(prompt_mask_bp), len(written)))], -1
        )
        scores = jnp.where(mask[:, None, None], scores.astype(jnp.float32) * self.scale, -jnp.inf)
        weights = jax.nn.softmax(scores, axis=-1).astype(x_bnd.dtype)
        mixed = jnp.einsum("bnhp,bhpd->bnhd", weights[..., :prompt_width], prompt_values)
        own = weights[..., prompt_width:].reshape(len(values), 1, -1)
        mixed += jnp.einsum("rqg,rgd->rqd", own, values).reshape(by_head)
        return self.output(mixed.reshape(x_bnd.shape)), keys, values


class Mlp(nnx.Module):
    """Two dense layers with an activation between them."""

    def __init__(self, rngs, *, width: int, hidden: int, activation: str, dtype, std, output_std):
        self.activation = ACTIVATIONS[activation]
        self.up = linear(rngs, width, hidden, dtype=dtype, std=std)
        self.down = linear(rngs, hidden, width, dtype=dtype, std=output_std)

    def __call__(self, x: Array) -> Array:
        return self.down(self.activation(self.up(x)))
