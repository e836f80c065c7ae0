"""Llama 2 and 3, and the families that keep its names: Mistral, Qwen 2 and 3, Gemma 2 and 3."""

from collections.abc import Callable, Iterator
from typing import Any

from vbon_jax.models.decoder import DecoderConfig, Rope
from vbon_jax.models.huggingface.families import Family, Fields, Tensor, dense, family, head, norm

SLIDING, FULL = "sliding_attention", "full_attention"


def _read(fields: Fields, **differences: Any) -> DecoderConfig:
    """The config of a descendant of Llama, from its differences from Llama 2."""
    config, sizes = fields.config, fields.causal_sizes()
    queries, keys = sizes["num_heads"], fields.size("num_key_value_heads")
    if queries % keys:
        raise fields.error("num_key_value_heads", f"{queries} query heads are not a multiple of it")
    head_width = getattr(config, "head_dim", None)
    common = sizes | {
        "num_key_heads": keys,
        "head_width": sizes["width"] // queries if head_width is None else fields.size("head_dim"),
        "mlp_width": fields.size("intermediate_size"),
        "gated_mlp": True,
        "mlp_bias": False,
        "norm": "rms",
        "norm_epsilon": fields.positive("rms_norm_eps"),
        "tie_embeddings": config.tie_word_embeddings,
    }
    if "activation" not in differences:
        common["activation"] = fields.activation("hidden_act")
    if "rope" not in differences:
        common["rope"] = fields.rope(config.rope_parameters)
    return DecoderConfig(**common | differences)


def _windows(fields: Fields, layer_types: list[str]) -> dict[str, Any]:
    """A window and the layers that have it; nothing where none has."""
    if not set(layer_types) <= {SLIDING, FULL}:
        raise fields.error("layer_types", f"give {len(layer_types)} of {SLIDING} and {FULL}")
    if SLIDING not in layer_types or fields.config.sliding_window is None:
        return {}
    windowed = tuple(kind == SLIDING for kind in layer_types)
    return {"window": fields.size("sliding_window"), "windowed": windowed}


def _read_llama(fields: Fields) -> DecoderConfig:
    bias = fields.config.attention_bias
    return _read(fields, attention_bias=bias, output_bias=bias, mlp_bias=fields.config.mlp_bias)


def _read_mistral(fields: Fields) -> DecoderConfig:
    fields.refuse("layer_types", "a choice of windowed layers in Mistral")
    windows = _windows(fields, [SLIDING] * fields.config.num_hidden_layers)
    return _read(fields, attention_bias=False, output_bias=False, **windows)


def _read_qwen2(fields: Fields) -> DecoderConfig:
    """Biases on queries, keys and values, and nowhere else."""
    return _read(fields, attention_bias=True, output_bias=False, **_qwen_windows(fields))


def _read_qwen3(fields: Fields) -> DecoderConfig:
    """Normed queries and keys; a field says whether all four projections have biases."""
    bias, windows = fields.config.attention_bias, _qwen_windows(fields)
    return _read(fields, attention_bias=bias, output_bias=bias, head_norm=True, **windows)


def _qwen_windows(fields: Fields) -> dict[str, Any]:
    fields.size("max_window_layers", least=0)
    return _windows(fields, fields.config.layer_types)


def _read_gemma2(fields: Fields) -> DecoderConfig:
    cap = _cap(fields, "attn_logit_softcapping")
    return _read_gemma(fields, attention_cap=cap, rope=fields.rope(fields.config.rope_parameters))


def _read_gemma3(fields: Fields) -> DecoderConfig:
    # The field exists, no released model has it, and transformers does not apply it.
    fields.refuse("attn_logit_softcapping", "a cap on Gemma 3's scores")
    tables = fields.config.rope_parameters
    if set(tables) != {FULL, SLIDING}:
        raise fields.error("rope_parameters", f"give one object for {FULL}, one for {SLIDING}")
    full, local = fields.rope(tables[FULL]), fields.rope(tables[SLIDING])
    return _read_gemma(fields, head_norm=True, rope=full, window_rope=local)


def _read_gemma(fields: Fields, *, rope: Rope, **differences: Any) -> DecoderConfig:
    fields.refuse("use_bidirectional_attention", "attention to later tokens")
    bias = fields.config.attention_bias
    return _read(
        fields,
        **_windows(fields, fields.config.layer_types),
        **differences,
        rope=rope,
        activation=fields.activation("hidden_activation"),
        attention_bias=bias,
        output_bias=bias,
        norm_offset=1.0,
        output_norms=True,
        attention_scale=fields.positive("query_pre_attn_scalar") ** -0.5,
        logits_cap=_cap(fields, "final_logit_softcapping"),
        embedding_scale=fields.config.hidden_size**0.5,
    )


def _cap(fields: Fields, name: str) -> float:
    """A soft cap; null means none."""
    return 0.0 if getattr(fields.config, name) is None else fields.positive(name)


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


def _like_llama(
    stem: str, read_config: Callable[[Fields], DecoderConfig], *, classifier: str = ""
) -> Family:
    ignored = r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
    return family(
        stem, "model.", ignored, read_config, _llama_tensors, decoder=True, classifier=classifier
    )


FAMILIES: dict[str, Family] = {
    "llama": _like_llama("Llama", _read_llama),
    "mistral": _like_llama("Mistral", _read_mistral),
    "qwen2": _like_llama("Qwen2", _read_qwen2),
    "qwen3": _like_llama("Qwen3", _read_qwen3),
    "gemma2": _like_llama("Gemma2", _read_gemma2),
    "gemma3_text": _like_llama("Gemma3", _read_gemma3, classifier="Text"),
}
