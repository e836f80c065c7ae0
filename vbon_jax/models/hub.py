"""Hugging Face folders in and out: the only file that knows foreign tensor and field names.

Only JSON and safetensors are read; pickled weights are refused and remote code is never run.
A family of models joins by an entry in `FAMILIES`: its config and its tensors, both ways.
"""

import functools
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vbon_jax.models import decoder, encoder, folders, layers
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.folders import CONFIG_FILE, GENERATION_FILE, Fields
from vbon_jax.types import InputError, Params

Config = DecoderConfig | EncoderConfig
Path = str | pathlib.Path

fingerprint = folders.fingerprint

# Fields of a source folder that would be untrue of the one that is written.
DROPPED_FIELDS = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version", "num_labels")
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")


class Checkpoint(NamedTuple):
    """What a folder holds: `settings` is its raw config.json."""

    config: Config
    params: Params  # nested dict of float32 arrays on the default device
    settings: dict[str, Any]
    eos_token_ids: tuple[int, ...]  # empty where the folder names none


class Tensor(NamedTuple):
    """One foreign tensor: ours (`paths`) joined along the last axis, then maybe transposed."""

    name: str
    paths: tuple[str, ...]  # "layer_0/attention/query/kernel"
    transposed: bool = False
    copy: bool = False  # of a tensor named before it: may be there, must agree, is not written


class Family(NamedTuple):
    """How one `model_type` is read and written."""

    kind: str
    config_class: type
    architectures: tuple[str, ...]  # the first is what is written
    prefix: str  # that a folder of the bare network leaves out
    ignored: re.Pattern  # buffers that hold no parameter
    read_config: Callable[[Fields], Config]
    write_config: Callable[[Any], dict[str, Any]]
    tensors: Callable[[Any], Iterator[Tensor]]
    init: Callable[..., Params]


# ------------------------------------------------------------------------------ reading config.json


def _heads(fields: Fields, name: str, default: int, width: int) -> int:
    heads = fields.size(name, default)
    if width % heads:
        raise fields.error(name, f"the width {width} is no multiple of it; correct one of both")
    return heads


def _labels(fields: Fields) -> tuple[str, ...]:
    """The classes' names from `id2label`, in the order of their numbers."""
    names = fields.settings.get("id2label")
    if names is None:
        return tuple(f"LABEL_{index}" for index in range(fields.size("num_labels", 2)))
    if isinstance(names, dict) and names:
        in_order = [str(index) for index in range(len(names))]
        if set(names) == set(in_order):
            return tuple(str(names[index]) for index in in_order)
    raise fields.error("id2label", "give an object with a name for each of 0, 1, ...")


def _eos_token_ids(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a response: what generation_config.json says, else config.json."""
    sources = [(folder / CONFIG_FILE, settings)]
    if (folder / GENERATION_FILE).exists():
        file = folder / GENERATION_FILE
        sources.insert(0, (file, folders.read_json(file, "correct it or remove it")))
    for file, fields in sources:
        value = fields.get("eos_token_id")
        if value is not None:
            ids = value if isinstance(value, list) else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
                raise Fields(file, fields).error(
                    "eos_token_id", "give a token id or a list of them"
                )
            return tuple(ids)
    return ()


# -------------------------------------------------------------------------------------- families


def _both(name: str, path: str, *, transposed: bool) -> Iterator[Tensor]:
    """Weight and bias of a dense layer."""
    yield Tensor(f"{name}.weight", (f"{path}/kernel",), transposed)
    yield Tensor(f"{name}.bias", (f"{path}/bias",))


def _norm(name: str, path: str) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (f"{path}/scale",))
    yield Tensor(f"{name}.bias", (f"{path}/bias",))


def _read_gpt2(fields: Fields) -> DecoderConfig:
    fields.refuse("add_cross_attention", "cross-attention")
    width = fields.size("n_embd", 768)
    # reorder_and_upcast_attn needs no reading: it computes the same numbers in float32, as we do.
    return DecoderConfig(
        vocab_size=fields.size("vocab_size", 50257),
        width=width,
        num_layers=fields.size("n_layer", 12),
        num_heads=_heads(fields, "n_head", 12, width),
        mlp_width=fields.size("n_inner", 4 * width),
        max_positions=fields.size("n_positions", 1024),
        norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
        activation=fields.choice("activation_function", tuple(layers.ACTIVATIONS), "gelu_new"),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        scale_attention=fields.flag("scale_attn_weights", True),
        scale_attention_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", False),
        initializer_std=fields.positive("initializer_range", 0.02),
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    if config.head_bias:
        raise InputError("head_bias = True: GPT-2 has no bias on its head; train without it")
    return {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "layer_norm_epsilon": config.norm_epsilon,
        "activation_function": config.activation,
        "tie_word_embeddings": config.tie_embeddings,
        "scale_attn_weights": config.scale_attention,
        "scale_attn_by_inverse_layer_idx": config.scale_attention_by_layer,
        "initializer_range": config.initializer_std,
    }


def _gpt2_tensors(config: DecoderConfig) -> Iterator[Tensor]:
    """GPT-2 keeps dense layers as [inputs, outputs] (Conv1D), as we do, and q, k, v as one."""
    yield Tensor("transformer.wte.weight", ("tokens/embedding",))
    yield Tensor("transformer.wpe.weight", ("positions/embedding",))
    for index in range(config.num_layers):
        theirs, ours = f"transformer.h.{index}", f"layer_{index}"
        qkv = [f"{ours}/attention/{part}" for part in ("query", "key", "value")]
        yield from _norm(f"{theirs}.ln_1", f"{ours}/norm_1")
        yield Tensor(f"{theirs}.attn.c_attn.weight", tuple(f"{part}/kernel" for part in qkv))
        yield Tensor(f"{theirs}.attn.c_attn.bias", tuple(f"{part}/bias" for part in qkv))
        yield from _both(f"{theirs}.attn.c_proj", f"{ours}/attention/output", transposed=False)
        yield from _norm(f"{theirs}.ln_2", f"{ours}/norm_2")
        yield from _both(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", transposed=False)
        yield from _both(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", transposed=False)
    yield from _norm("transformer.ln_f", "norm_f")
    if config.tie_embeddings:
        yield Tensor("lm_head.weight", ("tokens/embedding",), copy=True)
    else:
        yield Tensor("lm_head.weight", ("head/kernel",), transposed=True)


def _read_distilbert(fields: Fields) -> EncoderConfig:
    fields.refuse("pruned_heads", "pruning of heads")
    width = fields.size("dim", 768)
    # sinusoidal_pos_embds needs no reading: that table is saved among the weights like any other.
    return EncoderConfig(
        vocab_size=fields.size("vocab_size", 30522),
        width=width,
        num_layers=fields.size("n_layers", 6),
        num_heads=_heads(fields, "n_heads", 12, width),
        mlp_width=fields.size("hidden_dim", 3072),
        max_positions=fields.size("max_position_embeddings", 512),
        activation=fields.choice("activation", tuple(layers.ACTIVATIONS), "gelu"),
        labels=_labels(fields),
        initializer_std=fields.positive("initializer_range", 0.02),
    )


def _write_distilbert(config: EncoderConfig) -> dict[str, Any]:
    if config.norm_epsilon != 1e-12:
        raise InputError(
            f"norm_epsilon = {config.norm_epsilon}: DistilBERT's is 1e-12; train with it"
        )
    return {
        "vocab_size": config.vocab_size,
        "dim": config.width,
        "n_layers": config.num_layers,
        "n_heads": config.num_heads,
        "hidden_dim": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "sinusoidal_pos_embds": False,  # the table may have been trained
        "activation": config.activation,
        "id2label": {str(index): name for index, name in enumerate(config.labels)},
        "label2id": {name: index for index, name in enumerate(config.labels)},
        "initializer_range": config.initializer_std,
    }


def _distilbert_tensors(config: EncoderConfig) -> Iterator[Tensor]:
    """DistilBERT keeps dense layers as [outputs, inputs]."""
    dense = functools.partial(_both, transposed=True)
    embeddings = "distilbert.embeddings"
    yield Tensor(f"{embeddings}.word_embeddings.weight", ("tokens/embedding",))
    yield Tensor(f"{embeddings}.position_embeddings.weight", ("positions/embedding",))
    yield from _norm(f"{embeddings}.LayerNorm", "norm_0")
    for index in range(config.num_layers):
        theirs, ours = f"distilbert.transformer.layer.{index}", f"layer_{index}"
        yield from dense(f"{theirs}.attention.q_lin", f"{ours}/attention/query")
        yield from dense(f"{theirs}.attention.k_lin", f"{ours}/attention/key")
        yield from dense(f"{theirs}.attention.v_lin", f"{ours}/attention/value")
        yield from dense(f"{theirs}.attention.out_lin", f"{ours}/attention/output")
        yield from _norm(f"{theirs}.sa_layer_norm", f"{ours}/norm_1")
        yield from dense(f"{theirs}.ffn.lin1", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.ffn.lin2", f"{ours}/mlp/down")
        yield from _norm(f"{theirs}.output_layer_norm", f"{ours}/norm_2")
    yield from dense("pre_classifier", "pre_classifier")
    yield from dense("classifier", "classifier")


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        kind="decoder",
        config_class=DecoderConfig,
        architectures=("GPT2LMHeadModel", "GPT2Model"),
        prefix="transformer.",
        ignored=re.compile(r"h\.\d+\.attn\.(masked_)?bias"),
        read_config=_read_gpt2,
        write_config=_write_gpt2,
        tensors=_gpt2_tensors,
        init=decoder.init,
    ),
    "distilbert": Family(
        kind="encoder",
        config_class=EncoderConfig,
        architectures=("DistilBertForSequenceClassification",),
        prefix="distilbert.",
        ignored=re.compile(r"embeddings\.position_ids"),
        read_config=_read_distilbert,
        write_config=_write_distilbert,
        tensors=_distilbert_tensors,
        init=encoder.init,
    ),
}


# ----------------------------------------------------------------------------------- in and out


def load(path: Path, *, kind: str | None = None) -> Checkpoint:
    """Read a Hugging Face folder (or, where none is there, the hub's `owner/name`).

    `kind` is "decoder" or "encoder" where only one will do. Weights of float32, float16 or
    bfloat16 become float32. Raises InputError, in one line that names file and field or tensor,
    for everything that cannot be read faithfully.
    """
    folder = folders.find(path)
    file = folder / CONFIG_FILE
    fields = Fields(file, folders.read_json(file, "give the folder of a Hugging Face model"))
    family = _family(fields, kind)
    config = family.read_config(fields)
    params = _read_params(folder, family, config)
    return Checkpoint(config, params, fields.settings, _eos_token_ids(folder, fields.settings))


def save(
    path: Path,
    config: Config,
    params: Params,
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Any = None,
    eos_token_ids: tuple[int, ...] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that transformers (and `load`) reads, whole or not at all.

    `settings` is the raw config.json that the model came from, whose other fields are kept;
    `eos_token_ids` are by default those of `settings`, else the tokenizer's. A model that lies at
    `path` is replaced; InputError where something else does, or the family has no such network.
    """
    settings = dict(settings or {})
    model_type, family = _family_of(config, settings)
    shapes = _shapes(family, config)
    flat = traverse_util.flatten_dict(params, sep="/")
    if {name: tuple(value.shape) for name, value in flat.items()} != shapes:
        raise ValueError("the parameters are not those of this config")
    settings |= family.write_config(config) | _token_fields(settings, tokenizer, eos_token_ids)
    settings |= {"model_type": model_type, "dtype": "float32"}
    settings["architectures"] = [family.architectures[0]]
    tensors = {tensor.name: tensor for tensor in family.tensors(config) if not tensor.copy}
    sizes = {
        name: 4 * sum(int(np.prod(shapes[part])) for part in tensor.paths)
        for name, tensor in tensors.items()
    }
    with folders.whole(path) as folder:
        kept = {name: value for name, value in settings.items() if name not in DROPPED_FIELDS}
        folders.write_json(folder / CONFIG_FILE, kept)
        if family.kind == "decoder":
            ids = {name: kept[name] for name in TOKEN_FIELDS if kept[name] is not None}
            folders.write_json(folder / GENERATION_FILE, ids)
        folders.write_tensors(
            folder,
            sizes,
            lambda name: _join(tensors[name], [flat[part] for part in tensors[name].paths]),
            max_shard_bytes=max_shard_bytes,
        )
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


def _family(fields: Fields, kind: str | None) -> Family:
    """The family that config.json names, unless its network is another than ours."""
    model_type = fields.settings.get("model_type")
    supported = {name: row for name, row in FAMILIES.items() if kind in (None, row.kind)}
    names = ", ".join(f"{name} ({row.kind})" for name, row in supported.items())
    if model_type not in supported:
        raise fields.error("model_type", f"not supported here; use one of: {names}")
    family = supported[model_type]
    written = fields.settings.get("architectures")
    if written and written[0] not in family.architectures:
        raise fields.error("architectures", f"use a {' or '.join(family.architectures)}")
    fields.refuse("quantization_config", "quantised weights")
    return family


def _family_of(config: Config, settings: Mapping[str, Any]) -> tuple[str, Family]:
    """What a config is written as: as it was read, else the first family of its class."""
    name = settings.get("model_type")
    if name in FAMILIES and isinstance(config, FAMILIES[name].config_class):
        return name, FAMILIES[name]
    return next((n, f) for n, f in FAMILIES.items() if isinstance(config, f.config_class))


def _shapes(family: Family, config: Config) -> dict[str, tuple[int, ...]]:
    abstract = jax.eval_shape(lambda: family.init(config, jax.random.key(0)))
    return {n: leaf.shape for n, leaf in traverse_util.flatten_dict(abstract, sep="/").items()}


def _read_params(folder: pathlib.Path, family: Family, config: Config) -> Params:
    """Check every name, type and shape from the headers first, then read."""
    stored, shapes = folders.stored_tensors(folder), _shapes(family, config)
    on_disk = {name.removeprefix(family.prefix): name for name in stored}
    if len(on_disk) < len(stored):
        raise InputError(f"{folder}: a tensor is there twice, with and without {family.prefix!r}")
    flat: dict[str, jax.Array] = {}
    found, copies = [], []
    for tensor in family.tensors(config):
        name = on_disk.pop(tensor.name.removeprefix(family.prefix), None)
        if name is not None:
            stored[name].check(name, _joined_shape(tensor, shapes))
            (copies if tensor.copy else found).append((tensor, name))
        elif not tensor.copy:
            raise InputError(f"{folder}: no tensor {tensor.name}; give a complete model")
    unknown = sorted(name for short, name in on_disk.items() if not family.ignored.fullmatch(short))
    if unknown:
        raise InputError(
            f"{stored[unknown[0]].file}: unknown tensor {unknown[0]} (of {len(unknown)}); "
            f"give a plain {family.architectures[0]}"
        )
    for tensor, name in found:
        for part, value in zip(tensor.paths, _split(tensor, name, stored, shapes), strict=True):
            flat[part] = jnp.array(value)
    for tensor, name in copies:
        if not np.array_equal(folders.read_tensor(name, stored[name]), flat[tensor.paths[0]]):
            raise InputError(
                f"{stored[name].file}: {name} differs from the embeddings that {CONFIG_FILE} ties "
                "it to; set tie_word_embeddings to false"
            )
    return traverse_util.unflatten_dict(flat, sep="/")


def _joined_shape(tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    parts = [shapes[part] for part in tensor.paths]
    joined = (*parts[0][:-1], sum(part[-1] for part in parts))
    return joined[::-1] if tensor.transposed else joined


def _split(tensor: Tensor, name: str, stored: Mapping, shapes: Mapping) -> list[np.ndarray]:
    value = folders.read_tensor(name, stored[name])
    ends = np.cumsum([shapes[part][-1] for part in tensor.paths])[:-1]
    return np.split(value.T if tensor.transposed else value, ends, axis=-1)


def _join(tensor: Tensor, parts: list[jax.Array]) -> np.ndarray:
    value = np.concatenate([np.asarray(part, np.float32) for part in parts], axis=-1)
    return value.T if tensor.transposed else value


def _token_fields(
    settings: Mapping[str, Any], tokenizer: Any, eos_token_ids: tuple[int, ...] | None
) -> dict[str, Any]:
    """Special tokens' ids, all of them: transformers would fill in its own where one is absent."""
    fields = {name: settings.get(name, getattr(tokenizer, name, None)) for name in TOKEN_FIELDS}
    if eos_token_ids is not None:
        several = list(eos_token_ids) or None
        fields["eos_token_id"] = several[0] if several and len(several) == 1 else several
    return fields


# ------------------------------------------------------------------------------------ tokenizers


def load_tokenizer(path: Path) -> Any:
    """The folder's tokenizer, as transformers reads it; InputError where there is none."""
    from transformers import AutoTokenizer

    folder = folders.find(path)
    if not folders.matching(folder, folders.VOCABULARY_FILES):
        names = ", ".join(folders.VOCABULARY_FILES)
        raise InputError(f"{folder}: no tokenizer; add its files (one of {names})")
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {reason}); "
            "save it again with a current transformers"
        ) from error


def check_vocabulary(tokenizer: Any, config: Config, path: Path) -> None:
    """InputError where the tokenizer of `path` has a token that the model has no embedding for."""
    if len(tokenizer) > config.vocab_size:
        raise InputError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens and the model only "
            f"vocab_size = {config.vocab_size}; use the tokenizer that the model was trained with"
        )
