"""Hugging Face folders in and out.

Only JSON and safetensors are read; pickled weights are refused and remote code is never run.
A family of models joins by an entry in `FAMILIES`: how its config.json is read, and its tensors.
"""

import dataclasses
import operator
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vbon_jax.models import classifier
from vbon_jax.models.huggingface import bert, exact_tokenizer, gpt, llama, safe_files
from vbon_jax.models.huggingface.families import (
    Config,
    Family,
    Tensor,
    field_error,
    read_fields,
)
from vbon_jax.models.huggingface.safe_files import CONFIG_FILE, GENERATION_FILE
from vbon_jax.types import InputError, Params

Path = str | pathlib.Path

FAMILIES: dict[str, Family] = gpt.FAMILIES | llama.FAMILIES | bert.FAMILIES

fingerprint = safe_files.fingerprint

# Fields of a source folder that would be untrue of the one that is written.
DROPPED_FIELDS = ("_name_or_path", "auto_map", "torch_dtype", "transformers_version", "num_labels")
DROPPED_FIELDS += ("architectures", "quantization_config")
EXPERTS = "a mixture of experts is"
UNSUPPORTED = dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), EXPERTS)
UNSUPPORTED |= {"quantization_config": "quantised weights are", "pruned_heads": "pruned heads are"}
TOKEN_FIELDS = ("bos_token_id", "eos_token_id", "pad_token_id")
ADAPTERS = (safe_files.ADAPTER_CONFIG_FILE, "adapter_model.*")  # of peft


class Checkpoint(NamedTuple):
    """The content of a model folder; `settings` is its raw config.json."""

    config: Config
    params: Params  # nested dict of float32 arrays on the default device
    settings: dict[str, Any]
    eos_token_ids: tuple[int, ...]  # empty where the folder names none


# ----------------------------------------------------------------------------------- in and out


def load(path: Path, *, kind: str | None = None) -> Checkpoint:
    """Read a Hugging Face folder (or, where none is there, the hub's `owner/name`).

    `kind` is "decoder" (a language model) or "classifier" where only one will do. Weights of
    float32, float16 or bfloat16 become float32. Raises InputError, in one line that names file and
    field or tensor, for everything that cannot be read faithfully.
    """
    folder = safe_files.find(path)
    config, family, settings = _read_config(folder, kind)
    eos_token_ids = _eos_token_ids(folder, settings)
    params = _read_params(folder, family, config)
    return Checkpoint(config, params, settings, eos_token_ids)


def read_config(path: Path, *, kind: str | None = None) -> Config:
    """The network that a folder holds, by its config.json alone; raises InputError as `load`."""
    return _read_config(safe_files.find(path), kind)[0]


def config_of(settings: Mapping[str, Any], *, labels: tuple[str, ...] = (), source: str) -> Config:
    """The config of a network that a config.json would describe; with labels, of a classifier.

    Raises InputError, naming `source` and the field, as `load` does.
    """
    file = pathlib.Path(source)
    family, _ = _family(file, settings, "classifier" if labels else "decoder")
    config = family.read_config(read_fields(file, settings))
    return dataclasses.replace(config, labels=_distinct(file, labels)) if labels else config


def save(
    path: Path,
    config: Config,
    params: Params,
    *,
    settings: Mapping[str, Any],
    tokenizer: Any = None,
    eos_token_ids: tuple[int, ...] | None = None,
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that transformers (and `load`) reads, whole or not at all.

    `settings` is the config.json that describes the network (see `config_of`): its fields are kept,
    but for those that would be false of what is written. `eos_token_ids` are by default those of
    `settings`, else the tokenizer's. A model that lies at `path` is replaced; InputError where
    something else does.
    """
    family, shapes = FAMILIES[settings["model_type"]], _shapes(config)
    settings = _written_settings(config, settings, tokenizer, eos_token_ids)
    flat = traverse_util.flatten_dict(params, sep="/")
    if {name: tuple(value.shape) for name, value in flat.items()} != shapes:
        raise ValueError("the parameters are not those of this config")
    tensors = {tensor.name: tensor for tensor in family.tensors(config) if not tensor.copy}
    sizes = {
        name: 4 * sum(int(np.prod(shapes[part])) for part in tensor.paths)
        for name, tensor in tensors.items()
    }
    with safe_files.whole(path) as folder:
        safe_files.write_json(folder / CONFIG_FILE, settings)
        if not config.labels:
            ids = {name: settings[name] for name in TOKEN_FIELDS if settings[name] is not None}
            safe_files.write_json(folder / GENERATION_FILE, ids)
        safe_files.write_tensors(
            folder,
            sizes,
            lambda name: join(tensors[name], [flat[part] for part in tensors[name].paths]),
            max_shard_bytes=max_shard_bytes,
        )
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)


# --------------------------------------------------------------------------------- config.json


def _read_config(folder: pathlib.Path, kind: str | None) -> tuple[Config, Family, dict[str, Any]]:
    file = folder / CONFIG_FILE
    for adapter in safe_files.matching(folder, ADAPTERS):
        raise InputError(
            f"{adapter}: an adapter, which would not be applied; merge it into its model "
            "(merge_and_unload of peft), or take it out of the folder"
        )
    settings = safe_files.read_json(file, "give the folder of a Hugging Face model")
    family, kind = _family(file, settings, kind)
    config = family.read_config(read_fields(file, settings))
    _check_token_ids(folder, settings, config.vocab_size)
    if kind == "classifier":
        config = dataclasses.replace(config, labels=_labels(file, settings))
    return config, family, settings


def _family(
    file: pathlib.Path, settings: Mapping[str, Any], kind: str | None
) -> tuple[Family, str]:
    """The family that config.json names and which of its kinds, unless the network is another."""
    supported = {
        name: family
        for name, family in FAMILIES.items()
        if kind is None or kind in family.architectures
    }
    model_type = settings.get("model_type")
    if model_type not in supported:
        remedy = f"not supported here; use one of {', '.join(supported)}"
        raise field_error(file, "model_type", model_type, remedy)
    for name, what in UNSUPPORTED.items():
        if settings.get(name):
            remedy = f"{what} not supported; use a model without"
            raise field_error(file, name, settings[name], remedy)
    family = supported[model_type]
    kinds = family.architectures if kind is None else {kind: family.architectures[kind]}
    written = settings.get("architectures")
    if not written:
        return family, next(iter(kinds))
    for name, architectures in kinds.items():
        if written[0] in architectures:
            return family, name
    every = [name for architectures in kinds.values() for name in architectures]
    raise field_error(file, "architectures", written, f"use a {' or '.join(every)}")


def _architecture(family: Family, config: Config) -> str:
    """The name under which a network of this config is written."""
    return family.architectures["classifier" if config.labels else "decoder"][0]


def _labels(file: pathlib.Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The classes' names from `id2label`, in the order of their numbers."""
    names, count = settings.get("id2label"), settings.get("num_labels")
    numbers = settings.get("label2id")
    if names is None:
        if count is not None and (
            not isinstance(count, int) or isinstance(count, bool) or count < 1
        ):
            raise field_error(file, "num_labels", count, "give a whole number of at least 1")
        return tuple(f"LABEL_{index}" for index in range(count or 2))
    if isinstance(names, dict) and names:
        in_order = [str(index) for index in range(len(names))]
        if set(names) == set(in_order):
            labels = tuple(str(names[index]) for index in in_order)
            if isinstance(numbers, dict) and any(
                labels[i] != n for n, i in numbers.items() if i in range(len(labels))
            ):
                raise field_error(file, "label2id", numbers, "it contradicts id2label; correct one")
            return _distinct(file, labels)
    raise field_error(file, "id2label", names, "give an object with a name for each of 0, 1, ...")


def _distinct(file: pathlib.Path, labels: tuple[str, ...]) -> tuple[str, ...]:
    """The labels; InputError where two have one name, by which a reward could not choose."""
    if len(set(labels)) < len(labels):
        raise field_error(file, "id2label", labels, "give each label a name of its own")
    return labels


def _token_fields(
    folder: pathlib.Path, settings: Mapping[str, Any]
) -> Iterator[tuple[pathlib.Path, Mapping[str, Any]]]:
    """The files of a folder that name special tokens, generation_config.json first."""
    file = folder / GENERATION_FILE
    if file.exists():
        yield file, safe_files.read_json(file, "correct it or remove it")
    yield folder / CONFIG_FILE, settings


def _eos_token_ids(folder: pathlib.Path, settings: Mapping[str, Any]) -> tuple[int, ...]:
    """The ids that end a response: what generation_config.json says, else config.json."""
    for _, fields in _token_fields(folder, settings):
        value = fields.get("eos_token_id")
        if value is not None:
            return tuple(value) if isinstance(value, list) else (value,)
    return ()


def _check_token_ids(folder: pathlib.Path, settings: Mapping[str, Any], vocab_size: int) -> None:
    """InputError for a special token that has no row in the embedding, as in a model made small."""
    for file, fields in _token_fields(folder, settings):
        for name in TOKEN_FIELDS:
            value = fields.get(name)
            ids = value if isinstance(value, list) else [] if value is None else [value]
            if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
                raise field_error(file, name, value, "give a token id or a list of them")
            least = -1 if name == "pad_token_id" else 0  # -1 is written for no padding
            if not all(least <= i < vocab_size for i in ids):
                remedy = f"outside of the vocabulary of {vocab_size} tokens; correct it"
                raise field_error(file, name, value, remedy)


def _written_settings(
    config: Config,
    settings: Mapping[str, Any],
    tokenizer: Any,
    eos_token_ids: tuple[int, ...] | None,
) -> dict[str, Any]:
    """The config.json of what is written; ValueError where `settings` describe another network."""
    written = {name: value for name, value in settings.items() if name not in DROPPED_FIELDS}
    # All special tokens' ids: transformers would fill in its own where one is absent.
    written |= {name: settings.get(name, getattr(tokenizer, name, None)) for name in TOKEN_FIELDS}
    if eos_token_ids is not None:
        # transformers writes one id as a number, and several as a list.
        (*several,) = eos_token_ids
        written["eos_token_id"] = several.pop() if len(several) == 1 else several or None
    described = config_of(written, labels=config.labels, source=CONFIG_FILE)
    if dataclasses.replace(config, dtype=described.dtype) != described:
        raise ValueError(f"the settings describe {described}, the config is {config}")
    architecture = _architecture(FAMILIES[settings["model_type"]], config)
    written |= {"dtype": "float32", "architectures": [architecture]}
    if config.labels:
        written["id2label"] = {str(index): name for index, name in enumerate(config.labels)}
        written["label2id"] = {name: index for index, name in enumerate(config.labels)}
    return written


# ------------------------------------------------------------------------------------- weights


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    abstract = jax.eval_shape(lambda: classifier.init(config, jax.random.key(0)))
    return {n: leaf.shape for n, leaf in traverse_util.flatten_dict(abstract, sep="/").items()}


def _read_params(folder: pathlib.Path, family: Family, config: Config) -> Params:
    """Check every name, type and shape from the headers first, then read."""
    stored = safe_files.stored_tensors(folder)
    if config.num_layers > len(stored):  # before so many are built
        raise InputError(
            f"{folder / 'config.json'}: {config.num_layers} layers, and the weights have "
            f"{len(stored)} tensors; correct the number of layers"
        )
    shapes = _shapes(config)
    on_disk = {name.removeprefix(family.prefix): name for name in stored}
    if len(on_disk) < len(stored):
        raise InputError(f"{folder}: duplicate tensor, with and without {family.prefix!r}")
    flat: dict[str, jax.Array] = {}
    originals, copies = {}, []
    for tensor in sorted(family.tensors(config), key=operator.attrgetter("copy")):
        name = on_disk.pop(tensor.name.removeprefix(family.prefix), None)
        if name is not None:
            stored[name].check(name, _joined_shape(tensor, shapes))
            if tensor.copy and tensor.paths in originals:
                copies.append((tensor, name))
            else:
                originals[tensor.paths] = tensor, name
    for tensor in family.tensors(config):
        if tensor.paths not in originals:
            raise InputError(_missing(folder, tensor.name, family.prefix, stored))
    unknown = sorted(name for short, name in on_disk.items() if not family.ignored.fullmatch(short))
    if unknown:
        raise InputError(
            f"{stored[unknown[0]].file}: unknown tensor {unknown[0]} (of {len(unknown)}); "
            f"give a plain {_architecture(family, config)}"
        )
    for tensor, name in originals.values():
        for part, value in zip(tensor.paths, _split(tensor, name, stored, shapes), strict=True):
            flat[part] = jnp.array(value)
    for tensor, name in copies:
        if not np.array_equal(safe_files.read_tensor(name, stored[name]), flat[tensor.paths[0]]):
            raise InputError(
                f"{stored[name].file}: {name} differs from the embeddings that {CONFIG_FILE} ties "
                "it to; set tie_word_embeddings to false"
            )
    return traverse_util.unflatten_dict(flat, sep="/")


def _missing(folder: pathlib.Path, name: str, prefix: str, stored: Iterable[str]) -> str:
    """Why a tensor is not there: all are named otherwise, as by a wrapper, or it is missing."""
    short = name.removeprefix(prefix)
    for other in stored:
        if other.endswith(f".{short}"):
            before = other.removesuffix(name).removesuffix(short)
            return (
                f"{folder}: no tensor {name}, but {other}; take the prefix {before!r} off all "
                "names (save the model inside of its wrapper)"
            )
    return f"{folder}: no tensor {name}; give a complete model"


def _joined_shape(tensor: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    parts = [shapes[part] for part in tensor.paths]
    joined = (*parts[0][:-1], sum(part[-1] for part in parts))
    return joined[::-1] if tensor.transposed else joined


def _split(tensor: Tensor, name: str, stored: Mapping, shapes: Mapping) -> list[np.ndarray]:
    """Our parts of a foreign tensor."""
    value = safe_files.read_tensor(name, stored[name])
    value = value.T if tensor.transposed else value
    by_head = value.reshape(*value.shape[:-1], tensor.heads, -1)
    ends = np.cumsum([shapes[part][-1] // tensor.heads for part in tensor.paths])[:-1]
    parts = np.split(by_head, ends, axis=-1)
    return [part.reshape(shapes[path]) for part, path in zip(parts, tensor.paths, strict=True)]


def join(tensor: Tensor, parts: list[jax.Array]) -> np.ndarray:
    """The foreign tensor of our parts."""
    arrays = [np.asarray(part, np.float32) for part in parts]
    by_head = [array.reshape(*array.shape[:-1], tensor.heads, -1) for array in arrays]
    joined = np.concatenate(by_head, axis=-1)
    value = joined.reshape(*joined.shape[:-2], -1)
    return value.T if tensor.transposed else value


# ------------------------------------------------------------------------------------ tokenizers


def load_tokenizer(path: Path) -> Any:
    """The tokenizer of a model's folder: its tokenizer.json, to the letter, where it has one.

    Its special tokens and chat template are those that transformers finds in the folder. Raises
    InputError where there is no tokenizer, or it has a token that the model has no embedding for.
    """
    folder = safe_files.find(path)
    if not safe_files.matching(folder, safe_files.VOCABULARY_FILES):
        names = ", ".join(safe_files.VOCABULARY_FILES)
        raise InputError(f"{folder}: no tokenizer; add its files (one of {names})")
    try:
        tokenizer = exact_tokenizer.read(folder)
    except InputError:
        raise
    except Exception as error:  # the tokenizers library raises bare Exception
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"{folder}: its tokenizer cannot be read ({type(error).__name__}: {reason}); "
            "save it again with a current transformers"
        ) from error
    size = read_config(path).vocab_size
    token, largest = max(tokenizer.get_vocab().items(), key=operator.itemgetter(1))
    if largest >= size:
        raise InputError(
            f"{folder}: its tokenizer has the token {token!r} with id {largest}, and the model "
            f"vocab_size = {size}; use the tokenizer that the model was trained with"
        )
    return tokenizer
