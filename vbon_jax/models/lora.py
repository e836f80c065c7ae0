"""Low-rank adapters (LoRA) as parameters: added, merged into the kernels, saved for `peft`.

Hu et al. 2021, https://arxiv.org/abs/2106.09685. The layers themselves are Flax's `nnx.LoRA`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from vbon_jax.functional import streams
from vbon_jax.models import decoder
from vbon_jax.models.classifier import Config
from vbon_jax.models.decoder import DecoderConfig, Lora
from vbon_jax.models.huggingface import model_folder, safe_files
from vbon_jax.models.huggingface.families import Tensor
from vbon_jax.types import Array, InputError, Params

WEIGHTS_FILE = "adapter_model.safetensors"
# What a run with adapters trains, by name: them, and as in peft the head of a classifier.
TRAINED = r".*/lora/lora_[ab]|classifier/score/.*"


def with_adapters(
    config: ConfigDict, model: Config, params: Params, source: str
) -> tuple[Config, Params]:
    """The network with fresh adapters where `policy.lora` asks for them, drawn by `seed`.

    Raises InputError where the network, that of the folder `source`, is an encoder.
    """
    settings = config.policy.lora
    if not settings.pattern:
        return model, params
    if not isinstance(model, DecoderConfig):
        raise InputError(
            f"policy.lora.pattern={settings.pattern!r}: {source} is an encoder, which takes no "
            "adapters; leave the pattern empty"
        )
    lora = Lora(settings.pattern, settings.rank, float(settings.alpha))
    return add(model, params, lora, _key(config.seed))


def add(
    config: DecoderConfig, params: Params, lora: Lora, key: Array
) -> tuple[DecoderConfig, Params]:
    """The config and parameters with fresh adapters, which change nothing yet (B is zero).

    Raises InputError where the pattern is not a regular expression or fits no dense layer.
    """
    try:
        re.compile(lora.pattern)
    except re.error as error:
        raise InputError(
            f"lora.pattern={lora.pattern!r} is not a regular expression ({error})"
        ) from error
    if lora.rank < 1 or not lora.alpha > 0:
        raise InputError(f"lora.rank={lora.rank}, lora.alpha={lora.alpha}; give numbers above 0")
    config = dataclasses.replace(config, lora=lora)
    shapes = jax.eval_shape(lambda: decoder.init(config, jax.random.key(0)))
    flat = traverse_util.flatten_dict(params, sep="/")
    missing = {
        name: leaf.shape
        for name, leaf in sorted(traverse_util.flatten_dict(shapes, sep="/").items())
        if name not in flat
    }
    if not missing:
        layers = [name.rpartition("/")[0] for name in sorted(flat) if name.endswith("query/kernel")]
        raise InputError(
            f"lora.pattern={lora.pattern!r} fits no dense layer; names look like {layers[0]}"
        )

    flat |= _drawn(missing, key)
    return config, traverse_util.unflatten_dict(flat, sep="/")


def redrawn(params: Params, seed: int) -> Params:
    """The parameters with adapters that are drawn by another seed; as they are without adapters."""
    flat = traverse_util.flatten_dict(params, sep="/")
    shapes = {name: leaf.shape for name, leaf in sorted(flat.items()) if "/lora/lora_" in name}
    if not shapes:
        return params
    flat |= _drawn(shapes, _key(seed))
    return traverse_util.unflatten_dict(flat, sep="/")


def _key(seed: int) -> Array:
    return streams.key("adapters", seed)


def _drawn(shapes: dict[str, tuple[int, ...]], key: Array) -> dict[str, Array]:
    """Adapters of these names and shapes: A is random, B is zero."""

    def drawn(key: Array) -> dict[str, Array]:
        first = jax.nn.initializers.he_uniform()
        return {
            name: first(jax.random.fold_in(key, index), shape, jnp.float32)
            if name.endswith("lora_a")
            else jnp.zeros(shape, jnp.float32)
            for index, (name, shape) in enumerate(shapes.items())
        }

    return jax.jit(drawn)(key)


def merge(config: Config, params: Params) -> tuple[Config, Params]:
    """The same network without adapters: each kernel has taken its low-rank term in."""
    if not isinstance(config, DecoderConfig) or config.lora is None:
        return config, params
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    share = config.lora.alpha / config.lora.rank
    for name in [name for name in flat if name.endswith("/lora/lora_a")]:
        layer = name.removesuffix("/lora/lora_a")
        first, second = flat.pop(name), flat.pop(f"{layer}/lora/lora_b")
        flat[f"{layer}/kernel"] = flat[f"{layer}/kernel"] + share * first @ second
    return dataclasses.replace(config, lora=None), traverse_util.unflatten_dict(flat, sep="/")


# ------------------------------------------------------------------------------------------- peft


class _Module(NamedTuple):
    """Adapters of one foreign dense layer: [inputs, rank] and [rank, outputs]."""

    name: str  # without ".weight"
    first: np.ndarray
    second: np.ndarray
    parts: int  # ours in it that have adapters; its rank and alpha are that many times ours
    transposed: bool  # kept as [outputs, inputs]


def save(
    path: str | pathlib.Path,
    config: DecoderConfig,
    params: Params,
    *,
    settings: dict[str, Any],
    base: str,
) -> None:
    """Write the adapters of a language model in the format of `peft`, whole or not at all.

    `settings` is the raw config.json of the model that they adapt, `base` its folder or hub name.
    A dense layer that is several of ours (GPT-2's and GPT-NeoX's query, key and value) has their
    ranks together: its first factor is theirs side by side, its second is theirs in blocks.
    """
    if config.lora is None:
        raise ValueError("this model has no adapters")
    if config.labels:
        raise InputError("adapters of a classifier are not saved alone; merge them")
    flat = {
        name: np.asarray(value)
        for name, value in traverse_util.flatten_dict(params, sep="/").items()
    }
    plain = dataclasses.replace(config, lora=None)
    family = model_folder.FAMILIES[settings["model_type"]]
    modules = list(_modules(family.tensors(plain), flat))
    tensors = {}
    for module in modules:
        name = f"base_model.model.{module.name}"
        tensors[f"{name}.lora_A.weight"] = module.first.T
        tensors[f"{name}.lora_B.weight"] = module.second.T
    description = _adapter_config(config.lora, modules) | {"base_model_name_or_path": base}
    with safe_files.whole(path) as folder:
        safe_files.write_json(folder / safe_files.ADAPTER_CONFIG_FILE, description)
        safe_files.write_file(folder / WEIGHTS_FILE, tensors)


def _adapter_config(lora: Lora, modules: list[_Module]) -> dict[str, Any]:
    """peft's description of the adapters, but for the model that they adapt."""
    several = [module for module in modules if module.parts > 1]
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "rank_pattern": {module.name: lora.rank * module.parts for module in several},
        "alpha_pattern": {module.name: lora.alpha * module.parts for module in several},
        "target_modules": [module.name for module in modules],
        "fan_in_fan_out": not any(module.transposed for module in modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }


def _modules(tensors: Iterator[Tensor], flat: dict[str, np.ndarray]) -> Iterator[_Module]:
    """The foreign dense layers of which any part has adapters."""
    for tensor in tensors:
        layers = [path.removesuffix("/kernel") for path in tensor.paths]
        adapted = [layer for layer in layers if f"{layer}/lora/lora_a" in flat]
        if tensor.copy or not adapted:
            continue
        firsts = [flat[f"{layer}/lora/lora_a"] for layer in adapted]
        ranks = firsts[0].shape[1] * len(adapted)
        blocks = []
        for layer in layers:
            block = np.zeros((ranks, flat[f"{layer}/kernel"].shape[1]), np.float32)
            if layer in adapted:
                second = flat[f"{layer}/lora/lora_b"]
                start = adapted.index(layer) * len(second)
                block[start : start + len(second)] = second
            blocks.append(block)
        yield _Module(
            tensor.name.removesuffix(".weight"),
            np.concatenate(firsts, axis=1),
            model_folder.join(tensor._replace(transposed=False), blocks),
            len(adapted),
            tensor.transposed,
        )
