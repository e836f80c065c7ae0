"""Llama 2 and 3, and the families that keep its names: Mistral, Qwen 2 and 3, Gemma 2 and 3."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vbon_jax.models import decoder, layers
from vbon_jax.models.decoder import DecoderConfig, Rope
from vbon_jax.models.huggingface.families import (
    Family,
    Tensor,
    both_names,
    dense,
    head,
    heads,
    norm,
    read_rope,
    refuse_unless,
    rope_table,
    write_rope,
)
from vbon_jax.models.huggingface.safe_files import Fields
from vbon_jax.types import InputError

SLIDING, FULL = "sliding_attention", "full_attention"


def _read_common(fields: Fields, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """What the descendants of Llama have in common; `defaults` are transformers' own."""
    width = fields.size("hidden_size", defaults["hidden_size"])
    queries = fields.size("num_attention_heads", defaults.get("num_attention_heads", 32))
    given = fields.settings.get("head_dim") or defaults.get("head_dim")
    if not given:
        heads(fields, "num_attention_heads", queries, width)
    head_width = fields.size("head_dim", given or width // queries)
    keys = fields.size("num_key_value_heads", defaults.get("num_key_value_heads") or queries)
    if queries % keys:
        raise fields.error("num_key_value_heads", f"{queries} query heads are no multiple of it")
    return {
        "vocab_size": fields.size("vocab_size", defaults["vocab_size"]),
        "width": width,
        "num_layers": fields.size("num_hidden_layers", defaults.get("num_hidden_layers", 32)),
        "num_heads": queries,
        "num_key_heads": keys,
        "head_width": head_width,
        "mlp_width": fields.size("intermediate_size", defaults["intermediate_size"]),
        "max_positions": fields.size(
            "max_position_embeddings", defaults["max_position_embeddings"]
        ),
        "activation": fields.choice(
            defaults.get("activation_field", "hidden_act"),
            tuple(layers.ACTIVATIONS),
            defaults.get("activation", "silu"),
        ),
        "gated_mlp": True,
        "mlp_bias": False,
        "norm": "rms",
        "norm_epsilon": fields.positive("rms_norm_eps", 1e-6),
        "tie_embeddings": fields.flag("tie_word_embeddings", defaults.get("tied", False)),
        "initializer_std": fields.positive("initializer_range", 0.02),
    }


def _write_common(config: DecoderConfig, family: str) -> dict[str, Any]:
    refuse_unless(config, family, head_bias=False, norm="rms", gated_mlp=True)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_key_heads or config.num_heads,
        "head_dim": config.head_width or config.width // config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": config.activation,
        "rms_norm_eps": config.norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_std,
    }


def _plain_rope(fields: Fields) -> Rope:
    theta = fields.positive("rope_theta", 10000.0)
    fraction = fields.positive("partial_rotary_factor", 1.0)
    return read_rope(fields, *rope_table(fields), theta=theta, fraction=fraction)


def _layer_types(fields: Fields, count: int, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Which layers have a window, by `layer_types`, or where it is absent by a rule."""
    given = fields.settings.get("layer_types")
    if given is None:
        return tuple(default(index) for index in range(count))
    if not isinstance(given, list) or len(given) != count or not set(given) <= {SLIDING, FULL}:
        raise fields.error("layer_types", f"give {count} of {SLIDING} and {FULL}")
    return tuple(kind == SLIDING for kind in given)


def _windows(fields: Fields, windowed: tuple[bool, ...], default: int) -> dict[str, Any]:
    """A window and the layers that have it; both empty where none has."""
    if not any(windowed):
        return {}
    return {"window": fields.size("sliding_window", default), "windowed": windowed}


def _write_layer_types(config: DecoderConfig) -> list[str]:
    return [SLIDING if config.is_windowed(i) else FULL for i in range(config.num_layers)]


LLAMA = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008}
MISTRAL = LLAMA | {"intermediate_size": 14336, "num_key_value_heads": 8}
QWEN = {"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016}
QWEN |= {"max_position_embeddings": 32768, "num_key_value_heads": 32}
GEMMA2 = {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216}
GEMMA2 |= {"num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4}
GEMMA2 |= {"head_dim": 256, "max_position_embeddings": 8192, "tied": True}
GEMMA2 |= {"activation_field": "hidden_activation", "activation": "gelu_pytorch_tanh"}
GEMMA3 = GEMMA2 | {"vocab_size": 262208, "max_position_embeddings": 131072}


def _read_llama(fields: Fields) -> DecoderConfig:
    bias = fields.flag("attention_bias", False)
    common = _read_common(fields, LLAMA | {"max_position_embeddings": 2048})
    common["mlp_bias"] = fields.flag("mlp_bias", False)
    return DecoderConfig(**common, attention_bias=bias, output_bias=bias, rope=_plain_rope(fields))


def _write_llama(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(config, "Llama", output_bias=config.attention_bias)
    return (
        _write_common(config, "Llama")
        | {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias}
        | both_names(config.rope)
    )


def _read_mistral(fields: Fields) -> DecoderConfig:
    fields.refuse("layer_types", "a choice of windowed layers in Mistral")
    common = _read_common(fields, MISTRAL | {"max_position_embeddings": 131072})
    windowed = fields.settings.get("sliding_window", 4096) is not None
    return DecoderConfig(
        **common,
        **_windows(fields, (windowed,) * common["num_layers"], 4096),
        attention_bias=False,
        output_bias=False,
        rope=_plain_rope(fields),
    )


def _write_mistral(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(config, "Mistral", attention_bias=False, output_bias=False, mlp_bias=False)
    if len(set(config.windowed)) > 1:
        raise InputError("windowed: Mistral has the window in every layer or in none")
    window = config.window if any(config.windowed) else None
    return _write_common(config, "Mistral") | {"sliding_window": window} | both_names(config.rope)


def _read_qwen(fields: Fields, *, head_norm: bool) -> DecoderConfig:
    common = _read_common(fields, QWEN | ({"head_dim": 128} if head_norm else {}))
    count, windowed = common["num_layers"], (False,) * common["num_layers"]
    if fields.flag("use_sliding_window", False) and fields.settings.get("sliding_window", 1):
        first = fields.settings.get("max_window_layers", 28)
        if not isinstance(first, int) or isinstance(first, bool) or first < 0:
            raise fields.error("max_window_layers", "give a whole number from 0")
        windowed = _layer_types(fields, count, lambda index: index >= first)
    # Qwen 2 has biases on q, k and v and nowhere else; Qwen 3 says so in a field, of all four.
    bias = fields.flag("attention_bias", False) if head_norm else True
    return DecoderConfig(
        **common,
        **_windows(fields, windowed, 4096),
        attention_bias=bias,
        output_bias=bias and head_norm,
        head_norm=head_norm,
        rope=_plain_rope(fields),
    )


def _write_qwen2(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(config, "Qwen 2", attention_bias=True, output_bias=False, mlp_bias=False)
    fields = _write_qwen(config, "Qwen 2")
    if fields.pop("head_dim") * config.num_heads != config.width:
        raise InputError(f"head_width = {config.head_width}: Qwen 2 has width / num_heads")
    return fields


def _write_qwen3(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(
        config, "Qwen 3", output_bias=config.attention_bias, mlp_bias=False, head_norm=True
    )
    return _write_qwen(config, "Qwen 3") | {"attention_bias": config.attention_bias}


def _write_qwen(config: DecoderConfig, family: str) -> dict[str, Any]:
    windowed = any(config.windowed)
    window = {"use_sliding_window": windowed, "sliding_window": config.window if windowed else None}
    window["layer_types"] = _write_layer_types(config)
    return _write_common(config, family) | window | both_names(config.rope)


def _cap(fields: Fields, name: str, default: float | None) -> float:
    """A soft cap; null means none."""
    value = fields.settings.get(name, default)
    return 0.0 if value is None else fields.positive(name, value)


def _read_gemma(fields: Fields, *, newer: bool) -> DecoderConfig:
    fields.refuse("use_bidirectional_attention", "attention to later tokens")
    if newer:  # the field exists, no released model has it, and transformers does not apply it
        fields.refuse("attn_logit_softcapping", "a cap on Gemma 3's scores")
    common = _read_common(fields, GEMMA3 if newer else GEMMA2)
    pattern = fields.size("sliding_window_pattern", 6 if newer else 2)
    windowed = _layer_types(fields, common["num_layers"], lambda index: (index + 1) % pattern > 0)
    bias = fields.flag("attention_bias", False)
    full, local = _gemma3_ropes(fields) if newer else (_plain_rope(fields), None)
    return DecoderConfig(
        **common,
        **_windows(fields, windowed, 4096),
        attention_bias=bias,
        output_bias=bias,
        norm_offset=1.0,
        head_norm=newer,
        output_norms=True,
        rope=full,
        window_rope=local,
        attention_scale=fields.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_cap=0.0 if newer else _cap(fields, "attn_logit_softcapping", 50.0),
        logits_cap=_cap(fields, "final_logit_softcapping", None if newer else 30.0),
        embedding_scale=common["width"] ** 0.5,
    )


def _gemma3_ropes(fields: Fields) -> tuple[Rope, Rope]:
    """Of full and of windowed layers; in older folders the second is a base frequency alone."""
    tables = fields.settings.get("rope_parameters") or {}
    older = fields.settings.get("rope_scaling") or {}
    for name, value in (("rope_parameters", tables), ("rope_scaling", older)):
        if not isinstance(value, dict):
            raise fields.error(name, "give an object")
    if tables and not set(tables) <= {FULL, SLIDING}:
        raise fields.error("rope_parameters", f"give one object for {FULL}, one for {SLIDING}")
    theta = fields.positive("rope_theta", 1_000_000.0)
    local = fields.positive("rope_local_base_freq", 10_000.0)
    full = (tables.get(FULL) or {}) | older
    name = "rope_scaling" if older else "rope_parameters"
    return (
        read_rope(fields, name, full, theta=theta),
        read_rope(fields, "rope_parameters", tables.get(SLIDING) or {}, theta=local),
    )


def _write_gemma(config: DecoderConfig, *, newer: bool) -> dict[str, Any]:
    family = "Gemma 3" if newer else "Gemma 2"
    refuse_unless(
        config,
        family,
        output_bias=config.attention_bias,
        mlp_bias=False,
        norm_offset=1.0,
        head_norm=newer,
        output_norms=True,
        embedding_scale=config.width**0.5,
        attention_cap=0.0 if newer else config.attention_cap,
    )
    fields = _write_common(config, family)
    fields["hidden_activation"] = fields.pop("hidden_act")
    fields |= {
        "attention_bias": config.attention_bias,
        "query_pre_attn_scalar": _whole(config.attention_scale**-2),
        "attn_logit_softcapping": config.attention_cap or None,
        "final_logit_softcapping": config.logits_cap or None,
        "sliding_window": config.window or 4096,
        "layer_types": _write_layer_types(config),
    }
    if not newer:
        return fields | both_names(config.rope)
    local = config.window_rope or config.rope
    return fields | {
        "rope_parameters": {FULL: write_rope(config.rope), SLIDING: write_rope(local)},
        "rope_scaling": None,
        "rope_theta": config.rope.theta,
        "rope_local_base_freq": local.theta,
    }


def _whole(value: float) -> float | int:
    """A number that a root and a square have left a little off a whole one."""
    return round(value) if abs(value - round(value)) < 1e-6 * value else value


def _llama_tensors(config: DecoderConfig) -> Iterator[Tensor]:
    """Llama's names, which its descendants keep; Gemma renames the norms around its MLP."""
    yield Tensor("model.embed_tokens.weight", ("tokens/embedding",))
    for index in range(config.num_layers):
        theirs, ours = f"model.layers.{index}", f"layer_{index}"
        for part, name in (("query", "q"), ("key", "k"), ("value", "v"), ("output", "o")):
            bias = config.output_bias if part == "output" else config.attention_bias
            yield from dense(
                f"{theirs}.self_attn.{name}_proj", f"{ours}/attention/{part}", bias=bias
            )
        if config.head_norm:
            for part, name in (("query", "q"), ("key", "k")):
                path = f"{ours}/attention/{part}_norm"
                yield from norm(f"{theirs}.self_attn.{name}_norm", path, bias=False)
        for part in ("gate", "up", "down"):
            name = f"{theirs}.mlp.{part}_proj"
            yield from dense(name, f"{ours}/mlp/{part}", bias=config.mlp_bias)
        names = {"input_layernorm": "norm_1", "post_attention_layernorm": "norm_2"}
        if config.output_norms:
            names = {
                "input_layernorm": "norm_1",
                "post_attention_layernorm": "norm_3",
                "pre_feedforward_layernorm": "norm_2",
                "post_feedforward_layernorm": "norm_4",
            }
        for name, part in names.items():
            yield from norm(f"{theirs}.{name}", f"{ours}/{part}", bias=False)
    yield from norm("model.norm", "norm_f", bias=False)
    yield from head(config)


def _of_llama(stem: str, read: Callable, write: Callable, *, text: str = "") -> Family:
    """A family with Llama's names; `text` is what its classifier's adds to the stem."""
    return Family(
        config_class=DecoderConfig,
        architectures={
            "decoder": (f"{stem}ForCausalLM", f"{stem}Model"),
            "classifier": (f"{stem}{text}ForSequenceClassification",),
        },
        prefix="model.",
        ignored=re.compile(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"),
        read_config=read,
        write_config=write,
        tensors=_llama_tensors,
        init=decoder.init,
    )


FAMILIES: dict[str, Family] = {
    "llama": _of_llama("Llama", _read_llama, _write_llama),
    "mistral": _of_llama("Mistral", _read_mistral, _write_mistral),
    "qwen2": _of_llama("Qwen2", lambda f: _read_qwen(f, head_norm=False), _write_qwen2),
    "qwen3": _of_llama("Qwen3", lambda f: _read_qwen(f, head_norm=True), _write_qwen3),
    "gemma2": _of_llama(
        "Gemma2",
        lambda f: _read_gemma(f, newer=False),
        lambda c: _write_gemma(c, newer=False),
    ),
    "gemma3_text": _of_llama(
        "Gemma3",
        lambda f: _read_gemma(f, newer=True),
        lambda c: _write_gemma(c, newer=True),
        text="Text",
    ),
}
