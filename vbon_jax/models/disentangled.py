"""Disentangled attention: scores of content and of relative positions, each with its own vectors.

He et al. 2021, https://arxiv.org/abs/2006.03654 (DeBERTa); the buckets are those of its v2 and v3.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vbon_jax.models import layers
from vbon_jax.types import Array


@dataclasses.dataclass(frozen=True)
class RelativePositions:
    """How attention sees an offset: the query's position less the key's.

    Every offset has a row of one table, which all layers share. Without buckets those
    from -reach to reach - 1 have a row each, and farther ones the nearest of these. With buckets
    those up to half of `buckets` have a row each, and farther ones share rows by their logarithm,
    which runs out at `reach`.
    """

    reach: int
    buckets: int = 0  # 0: none
    content_to_position: bool = True  # the query's content meets the offset's key
    position_to_content: bool = True  # the key's content meets the offset's query
    shared: bool = False  # the projections of content serve the table too
    normed: bool = False  # the table is normed before it is projected

    @property
    def span(self) -> int:
        """Half of the table's rows."""
        return self.buckets or self.reach

    @property
    def terms(self) -> int:
        """How many products make up a score, that of two contents counted."""
        return 1 + self.content_to_position + self.position_to_content

    def rows(self, offsets: np.ndarray) -> np.ndarray:
        """The table's row of each offset, of any shape, int."""
        numbers = self._buckets(offsets) if self.buckets else offsets
        return np.clip(numbers + self.span, 0, 2 * self.span - 1)

    def _buckets(self, offsets: np.ndarray) -> np.ndarray:
        """The sign is kept. In float32, for an exact power must round as it does in torch."""
        middle = self.buckets // 2
        if np.abs(offsets).max() <= middle:
            return offsets
        far = np.log(np.maximum(np.abs(offsets), middle).astype(np.float32) / np.float32(middle))
        share = far / np.log(np.float32((self.reach - 1) / middle))
        logarithmic = np.ceil(share * np.float32(middle - 1)) + middle
        near = np.abs(offsets) <= middle
        return np.where(near, offsets, np.sign(offsets) * logarithmic).astype(int)


def shifted(scores: Array, columns: int) -> Array:
    """Entry [r, c] of the last two axes is [r, c - r + R - 1] of `scores` [..., R, R + columns].

    What R rows say of R + columns offsets becomes what they say of `columns` positions, by
    reshapes alone: the gradient of a gather would be a scatter, which accelerators are slow at.
    The last offset is not read. Huang et al. 2018, https://arxiv.org/abs/1809.04281.
    """
    rows, width = scores.shape[-2:]
    flat = scores.reshape(*scores.shape[:-2], rows * width)[..., rows - 1 : rows * width - 1]
    return flat.reshape(*scores.shape[:-1], width - 1)[..., :columns]


class PositionProjections(nnx.Module):
    """Queries and keys of offsets, where those of content do not serve them."""

    def __init__(self, dense: layers.Dense, relative: RelativePositions, *, width: int):
        if relative.content_to_position:
            self.key = dense(width, width)
        if relative.position_to_content:
            self.query = dense(width, width)


class Attention(nnx.Module):
    """Multi-head attention with scores of relative positions: `layers.Attention`'s counterpart."""

    def __init__(
        self, dense: layers.Dense, relative: RelativePositions, *, width: int, head_width: int
    ):
        self.relative, self.head_width = relative, head_width
        self.scale = (relative.terms * head_width) ** -0.5
        for name in ("query", "key", "value", "output"):
            setattr(self, name, dense(width, width))
        if not relative.shared:
            self.positions = PositionProjections(dense, relative, width=width)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], -1, self.head_width)

    def _of_positions(self, query_bqhd: Array, key_bthd: Array, table_rd: Array) -> Array | None:
        """The offsets' part of the scores of the first Q tokens, [B, H, Q, T] float32."""
        project = self if self.relative.shared else self.positions
        queries, keys = query_bqhd.shape[1], key_bthd.shape[1]
        parts = []
        if self.relative.content_to_position:
            offsets = np.arange(queries - 1, -keys - 1, -1)
            keys_ohd = self._heads(project.key(table_rd[self.relative.rows(offsets)]))
            scores = _products("bqhd,ohd->bhqo", query_bqhd, keys_ohd)
            parts.append(shifted(scores, keys))
        if self.relative.position_to_content:
            offsets = np.arange(1 - keys, queries + 1)
            queries_ohd = self._heads(project.query(table_rd[self.relative.rows(offsets)]))
            scores = _products("bthd,ohd->bhto", key_bthd, queries_ohd)
            parts.append(jnp.swapaxes(shifted(scores, queries), -1, -2))
        return sum(parts) if parts else None

    def __call__(self, query_bqd: Array, x_btd: Array, mask_bqt: Array, table_rd: Array) -> Array:
        """The output of the first Q tokens of a sequence of T, [B, Q, D].

        mask_bqt is true where a query sees a key; table_rd has a row for each kind of offset.
        """
        query = self._heads(self.query(query_bqd))
        key, value = self._heads(self.key(x_btd)), self._heads(self.value(x_btd))
        scores = self._of_positions(query, key, table_rd)
        mixed = jax.nn.dot_product_attention(
            query,
            key,
            value,
            bias=None if scores is None else self.scale * scores,
            mask=mask_bqt[:, None],
            scale=self.scale,
        )
        return self.output(mixed.reshape(query_bqd.shape))


def _products(axes: str, left: Array, right: Array) -> Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)
