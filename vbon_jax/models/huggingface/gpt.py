"""The families of GPT: GPT-2 and GPT-NeoX (Pythia)."""

from collections.abc import Iterator

from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.huggingface.families import Family, Fields, Tensor, dense, family, head, norm

# ------------------------------------------------------------------------------------------ GPT-2


def _read_gpt2(fields: Fields) -> DecoderConfig:
    fields.refuse("add_cross_attention", "cross-attention")
    config, sizes = fields.config, fields.causal_sizes()
    # reorder_and_upcast_attn needs no reading: it computes the same numbers in float32, as we do.
    return DecoderConfig(
        **sizes,
        mlp_width=4 * sizes["width"] if config.n_inner is None else fields.size("n_inner"),
        norm_epsilon=fields.positive("layer_norm_epsilon"),
        activation=fields.activation("activation_function"),
        tie_embeddings=config.tie_word_embeddings,
        attention_scale=None if config.scale_attn_weights else 1.0,
        scale_attention_by_layer=config.scale_attn_by_inverse_layer_idx,
    )


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
    config = fields.config
    return DecoderConfig(
        **fields.causal_sizes(),
        mlp_width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        attention_bias=config.attention_bias,
        output_bias=config.attention_bias,
        norm_epsilon=fields.positive("layer_norm_eps"),
        parallel_residual=config.use_parallel_residual,
        rope=fields.rope(config.rope_parameters, partial=True),
        tie_embeddings=config.tie_word_embeddings,
    )


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
    yield from head(config, "embed_out")


FAMILIES: dict[str, Family] = {
    "gpt2": family(
        "GPT2",
        "transformer.",
        r"h\.\d+\.attn\.(masked_)?bias",
        _read_gpt2,
        _gpt2_tensors,
        decoder=True,
    ),
    "gpt_neox": family(
        "GPTNeoX",
        "gpt_neox.",
        r"layers\.\d+\.attention\.((masked_)?bias|rotary_emb\.inv_freq)",
        _read_gpt_neox,
        _gpt_neox_tensors,
        decoder=True,
    ),
}
