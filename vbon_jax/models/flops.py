"""FLOPs of an update, counted from the sizes of a network: the same on all devices.

A product of matrices [m, k] and [k, n] is 2 m k n. Counted are the products of dense layers, of
attention (for all pairs of positions, those that a mask hides too), of adapters and of logits,
with all padding. Norms, activations, the value head and the optimiser are not.

`update` counts a product once forward, once more for the gradient of its input where anything
before it is trained, and once more for that of its kernel where that is trained: three times where
everything is. Attention's products have two inputs and no kernel. What is made again to save memory
counts once.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from vbon_jax.models.classifier import Config
from vbon_jax.models.encoder import EncoderConfig

Shapes = Mapping[str, tuple[int, ...]]  # of a network's parameters, by name

# The parts of each kind of network in the order of a forward pass; a row reads the same input.
DECODER = (
    ("norm_1",),
    ("query", "key", "value"),
    ("query_norm", "key_norm"),
    ("scores",),
    ("output",),
    ("norm_3",),
    ("norm_2",),
    ("gate", "up"),
    ("down",),
    ("norm_4",),
    ("norm_f",),
    ("head", "score"),
)
ENCODER = (
    ("query", "key", "value"),
    ("scores",),
    ("output",),
    ("norm_1",),
    ("up",),
    ("down",),
    ("norm_2",),
    ("pre_classifier",),
    ("classifier",),
)


class Rows(NamedTuple):
    """The size of what a network reads in one pass."""

    count: int
    width: int  # tokens of a row, its padding counted
    logits: int  # positions of a row that a language model makes logits for


class Product(NamedTuple):
    """A product of the forward pass: its FLOPs, where it is made, and its kernel if it has one."""

    flops: float
    part: str  # a name with its layer and the part of the network
    kernel: str | None = None


def forward(config: Config, shapes: Shapes, rows: Rows) -> Iterator[Product]:
    """The products of a forward pass of either kind of network.

    A classifier reads one token of a row in the end, so its last layer has one query a row.
    """
    queries = [rows.width] * config.num_layers
    if config.num_labels:
        queries[-1] = 1
    for name, shape in shapes.items():
        if len(shape) == 2 and not name.endswith("embedding"):
            positions = _positions(name, queries, rows)
            yield Product(2.0 * positions * shape[0] * shape[1], name, name)
    if not config.num_labels and "head/kernel" not in shapes:
        vocabulary, width = shapes["tokens/embedding"]
        flops = 2.0 * rows.count * rows.logits * vocabulary * width
        yield Product(flops, "head", "tokens/embedding")
    for layer, count in enumerate(queries):
        inner = shapes[f"layer_{layer}/attention/output/kernel"][0]
        yield Product(4.0 * rows.count * count * rows.width * inner, f"layer_{layer}/scores")
        if isinstance(config, EncoderConfig) and config.relative is not None:
            yield from _relative(config, shapes, layer, count, rows)


def _positions(name: str, queries: list[int], rows: Rows) -> int:
    """How many vectors a dense layer is applied to."""
    part = name.split("/")
    if "positions" in part:  # projections of relative positions, not of tokens
        return queries[int(part[0].removeprefix("layer_"))] + rows.width
    if not name.startswith("layer_"):
        return rows.count * (rows.logits if part[0] == "head" else 1)
    if {"key", "value"} & set(part):
        return rows.count * rows.width
    return rows.count * queries[int(part[0].removeprefix("layer_"))]


def _relative(
    config: EncoderConfig, shapes: Shapes, layer: int, queries: int, rows: Rows
) -> Iterator[Product]:
    """DeBERTa's scores of content and offsets, and where content's kernels serve offsets those."""
    relative, where = config.relative, f"layer_{layer}/attention"
    offsets, width = queries + rows.width, shapes[f"{where}/output/kernel"][0]
    terms = {"key": (relative.content_to_position, queries)}
    terms |= {"query": (relative.position_to_content, rows.width)}
    for part, (used, tokens) in terms.items():
        if used:
            yield Product(2.0 * rows.count * tokens * offsets * width, f"layer_{layer}/scores")
        if used and relative.shared:
            name = f"{where}/{part}/kernel"
            yield Product(2.0 * offsets * width * width, name, name)


def update(config: Config, shapes: Shapes, trained: set[str], rows: Rows) -> float:
    """FLOPs of a forward and a backward pass; `trained` names the parameters that are trained."""
    order = ENCODER if isinstance(config, EncoderConfig) else DECODER

    def place(name: str) -> tuple[int, int, bool]:
        """Where a part comes in a pass: its layer, its row of the order, B of an adapter last."""
        layer, parts = re.match(r"layer_(\d+)/", name), set(name.split("/"))
        row = next((row for row, names in enumerate(order) if parts & set(names)), -1)
        outside = -1 if row < 0 else config.num_layers  # embeddings; the final norm and heads
        return int(layer[1]) if layer else outside, row, name.endswith("lora_b")

    first = min(map(place, trained), default=(config.num_layers + 1,))
    total = 0.0
    for product in forward(config, shapes, rows):
        of_inputs = (1 if product.kernel else 2) * (place(product.part) > first)
        total += product.flops * (1 + of_inputs + (product.kernel in trained))
    return total
