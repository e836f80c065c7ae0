"""What a family of Hugging Face models is: its config.json and its tensors, both ways.

The families themselves stand in `gpt_families.py`, `llama_families.py` and `encoder_families.py`.
These files and `hub.py` are the only ones that know foreign tensor and field names.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from vbon_jax.models.decoder import DecoderConfig, Rope
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.huggingface.safe_files import Fields
from vbon_jax.types import InputError, Params

Config = DecoderConfig | EncoderConfig

ROPES = ("default", "linear", "llama3")


class Tensor(NamedTuple):
    """One foreign tensor: ours (`paths`) joined along the last axis, then maybe transposed.

    With `heads` they are joined head by head: the first head of each, then the second of each.
    """

    name: str
    paths: tuple[str, ...]  # "layer_0/attention/query/kernel"
    transposed: bool = False
    heads: int = 1
    copy: bool = False  # of a tensor named before it: may be there, must agree, is not written


class Family(NamedTuple):
    """How one `model_type` is read and written."""

    config_class: type
    architectures: dict[str, tuple[str, ...]]  # by kind, decoder | classifier; first = as written
    prefix: str  # that a folder of the bare network leaves out
    ignored: re.Pattern  # buffers that hold no parameter
    read_config: Callable[[Fields], Config]  # of a classifier: `labels` are set afterwards
    write_config: Callable[[Any], dict[str, Any]]  # but for the labels
    tensors: Callable[[Any], Iterator[Tensor]]
    init: Callable[..., Params]


def heads(fields: Fields, name: str, default: int, width: int) -> int:
    """A number of heads that divides the width."""
    count = fields.size(name, default)
    if width % count:
        raise fields.error(name, f"the width {width} is no multiple of it; correct one of both")
    return count


def dense(name: str, path: str, *, transposed: bool = True, bias: bool = True) -> Iterator[Tensor]:
    """Weight and bias of a dense layer, which torch keeps as [outputs, inputs]."""
    yield Tensor(f"{name}.weight", (f"{path}/kernel",), transposed)
    if bias:
        yield Tensor(f"{name}.bias", (f"{path}/bias",))


def norm(name: str, path: str, *, bias: bool = True) -> Iterator[Tensor]:
    """Scale and bias of a norm."""
    yield Tensor(f"{name}.weight", (f"{path}/scale",))
    if bias:
        yield Tensor(f"{name}.bias", (f"{path}/bias",))


def head(config: DecoderConfig) -> Iterator[Tensor]:
    """What reads the last hidden state: the scores of a classifier, or the next token's logits."""
    if config.labels:
        yield Tensor("score.weight", ("score/kernel",), transposed=True)
    elif config.tie_embeddings:
        yield Tensor("lm_head.weight", ("tokens/embedding",), copy=True)
    else:
        yield Tensor("lm_head.weight", ("head/kernel",), transposed=True)


def refuse_unless(config: Config, family: str, **values: Any) -> None:
    """InputError where a config has what the family's config.json cannot say."""
    for name, value in values.items():
        if getattr(config, name) != value:
            raise InputError(
                f"{name} = {getattr(config, name)}: {family} has {value} and no field for it; "
                "train with that"
            )


# ------------------------------------------------------------------------------- rotary positions


def read_rope(
    fields: Fields, name: str, table: Mapping[str, Any], *, theta: float, fraction: float = 1.0
) -> Rope:
    """A table of rotary positions: of the field `name`, with defaults for what it leaves out."""
    kind = table.get("rope_type", table.get("type", "default"))
    if kind not in ROPES:
        raise fields.error(name, f"rope type {kind!r} is not supported; use {', '.join(ROPES)}")
    part = Fields(fields.file, dict(table), f"{name}.")
    factor, long_context = 1.0, None
    if kind != "default":
        factor = part.positive("factor", None)
    if kind == "llama3":
        positions = fields.size("max_position_embeddings", 2048)
        long_context = (
            part.positive("low_freq_factor", None),
            part.positive("high_freq_factor", None),
            part.size("original_max_position_embeddings", positions),
        )
    return Rope(
        theta=part.positive("rope_theta", theta),
        fraction=part.positive("partial_rotary_factor", fraction),
        factor=factor,
        long_context=long_context,
    )


def rope_table(fields: Fields) -> tuple[str, dict[str, Any]]:
    """The field that describes rotary positions, and what it holds: the older name goes first."""
    for name in ("rope_scaling", "rope_parameters"):
        value = fields.settings.get(name)
        if value:
            if not isinstance(value, dict):
                raise fields.error(name, "give an object with a rope_type")
            return name, value
    return "rope_parameters", {}


def write_rope(rope: Rope) -> dict[str, Any]:
    """A table of rotary positions as `read_rope` reads it."""
    table: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if rope.fraction != 1.0:
        table["partial_rotary_factor"] = rope.fraction
    if rope.factor != 1.0:
        table |= {"rope_type": "linear", "factor": rope.factor}
    if rope.long_context is not None:
        low, high, positions = rope.long_context
        table |= {
            "rope_type": "llama3",
            "factor": rope.factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": positions,
        }
    return table


def both_names(rope: Rope) -> dict[str, Any]:
    """Rotary positions as transformers 5 reads them, and as its earlier releases do."""
    table = write_rope(rope)
    older = None if table["rope_type"] == "default" else table
    return {"rope_parameters": table, "rope_theta": rope.theta, "rope_scaling": older}
