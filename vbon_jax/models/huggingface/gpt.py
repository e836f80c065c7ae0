"""The families of GPT: GPT-2 and GPT-NeoX (Pythia)."""

import re
from collections.abc import Iterator
from typing import Any

from vbon_jax.models import decoder, layers
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.huggingface.families import (
    Family,
    Tensor,
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

# ------------------------------------------------------------------------------------------ GPT-2


def _read_gpt2(fields: Fields) -> DecoderConfig:
    fields.refuse("add_cross_attention", "cross-attention")
    width = fields.size("n_embd", 768)
    # reorder_and_upcast_attn needs no reading: it computes the same numbers in float32, as we do.
    return DecoderConfig(
        vocab_size=fields.size("vocab_size", 50257),
        width=width,
        num_layers=fields.size("n_layer", 12),
        num_heads=heads(fields, "n_head", 12, width),
        mlp_width=fields.size("n_inner", 4 * width),
        max_positions=fields.size("n_positions", 1024),
        norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
        activation=fields.choice("activation_function", tuple(layers.ACTIVATIONS), "gelu_new"),
        tie_embeddings=fields.flag("tie_word_embeddings", True),
        attention_scale=None if fields.flag("scale_attn_weights", True) else 1.0,
        scale_attention_by_layer=fields.flag("scale_attn_by_inverse_layer_idx", False),
        initializer_std=fields.positive("initializer_range", 0.02),
    )


def _write_gpt2(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(config, "GPT-2", head_bias=False)
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
        "scale_attn_weights": config.attention_scale is None,
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
        yield from norm(f"{theirs}.ln_1", f"{ours}/norm_1")
        yield Tensor(f"{theirs}.attn.c_attn.weight", tuple(f"{part}/kernel" for part in qkv))
        yield Tensor(f"{theirs}.attn.c_attn.bias", tuple(f"{part}/bias" for part in qkv))
        yield from dense(f"{theirs}.attn.c_proj", f"{ours}/attention/output", transposed=False)
        yield from norm(f"{theirs}.ln_2", f"{ours}/norm_2")
        yield from dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", transposed=False)
        yield from dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", transposed=False)
    yield from norm("transformer.ln_f", "norm_f")
    yield from head(config)


# ---------------------------------------------------------------------------------------- GPT-NeoX


def _read_gpt_neox(fields: Fields) -> DecoderConfig:
    width = fields.size("hidden_size", 6144)
    name, table = rope_table(fields)
    theta = fields.positive("rotary_emb_base", 10000.0)
    bias = fields.flag("attention_bias", True)
    return DecoderConfig(
        vocab_size=fields.size("vocab_size", 50432),
        width=width,
        num_layers=fields.size("num_hidden_layers", 44),
        num_heads=heads(fields, "num_attention_heads", 64, width),
        mlp_width=fields.size("intermediate_size", 24576),
        max_positions=fields.size("max_position_embeddings", 2048),
        activation=fields.choice("hidden_act", tuple(layers.ACTIVATIONS), "gelu"),
        attention_bias=bias,
        output_bias=bias,
        norm_epsilon=fields.positive("layer_norm_eps", 1e-5),
        parallel_residual=fields.flag("use_parallel_residual", True),
        rope=read_rope(
            fields, name, table, theta=theta, fraction=fields.positive("rotary_pct", 0.25)
        ),
        tie_embeddings=fields.flag("tie_word_embeddings", False),
        initializer_std=fields.positive("initializer_range", 0.02),
    )


def _write_gpt_neox(config: DecoderConfig) -> dict[str, Any]:
    refuse_unless(config, "GPT-NeoX", head_bias=False, output_bias=config.attention_bias)
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": config.activation,
        "attention_bias": config.attention_bias,
        "layer_norm_eps": config.norm_epsilon,
        "use_parallel_residual": config.parallel_residual,
        "rope_parameters": write_rope(config.rope)
        | {"partial_rotary_factor": config.rope.fraction},
        "rope_scaling": None,
        "rotary_emb_base": config.rope.theta,
        "rotary_pct": config.rope.fraction,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_std,
    }


def _gpt_neox_tensors(config: DecoderConfig) -> Iterator[Tensor]:
    """GPT-NeoX joins q, k and v head by head, and calls its head `embed_out`."""
    yield Tensor("gpt_neox.embed_in.weight", ("tokens/embedding",))
    for index in range(config.num_layers):
        theirs, ours = f"gpt_neox.layers.{index}", f"layer_{index}"
        yield from norm(f"{theirs}.input_layernorm", f"{ours}/norm_1")
        yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_2")
        qkv = [f"{ours}/attention/{part}" for part in ("query", "key", "value")]
        joined = f"{theirs}.attention.query_key_value"
        for end, name in (("weight", "kernel"), ("bias", "bias"))[: 1 + config.attention_bias]:
            yield Tensor(
                f"{joined}.{end}",
                tuple(f"{part}/{name}" for part in qkv),
                transposed=end == "weight",
                heads=config.num_heads,
            )
        output = f"{ours}/attention/output"
        yield from dense(f"{theirs}.attention.dense", output, bias=config.output_bias)
        yield from dense(f"{theirs}.mlp.dense_h_to_4h", f"{ours}/mlp/up")
        yield from dense(f"{theirs}.mlp.dense_4h_to_h", f"{ours}/mlp/down")
    yield from norm("gpt_neox.final_layer_norm", "norm_f")
    for tensor in head(config):
        yield tensor._replace(name=tensor.name.replace("lm_head", "embed_out"))


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        config_class=DecoderConfig,
        architectures={
            "decoder": ("GPT2LMHeadModel", "GPT2Model"),
            "classifier": ("GPT2ForSequenceClassification",),
        },
        prefix="transformer.",
        ignored=re.compile(r"h\.\d+\.attn\.(masked_)?bias"),
        read_config=_read_gpt2,
        write_config=_write_gpt2,
        tensors=_gpt2_tensors,
        init=decoder.init,
    ),
    "gpt_neox": Family(
        config_class=DecoderConfig,
        architectures={
            "decoder": ("GPTNeoXForCausalLM", "GPTNeoXModel"),
            "classifier": ("GPTNeoXForSequenceClassification",),
        },
        prefix="gpt_neox.",
        ignored=re.compile(r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)"),
        read_config=_read_gpt_neox,
        write_config=_write_gpt_neox,
        tensors=_gpt_neox_tensors,
        init=decoder.init,
    ),
}
