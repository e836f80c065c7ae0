"""A family of models from a user's own file: StarCoder 2, which the package does not know."""

import numpy as np
import pytest

from tests import families
from vbon_jax.models.decoder import DecoderConfig
from vbon_jax.models.huggingface import model_folder
from vbon_jax.models.huggingface.families import Tensor, dense, family, head, norm


def read_config(fields) -> DecoderConfig:
    config = fields.config
    return DecoderConfig(
        **fields.sizes(),
        num_key_heads=fields.size("num_key_value_heads"),
        mlp_width=fields.size("intermediate_size"),
        activation=fields.activation("hidden_act"),
        attention_bias=config.use_bias,
        output_bias=config.use_bias,
        mlp_bias=config.use_bias,
        norm_epsilon=fields.positive("norm_epsilon"),
        rope=fields.rope(config.rope_parameters),
        tie_embeddings=config.tie_word_embeddings,
    )


def tensors(config):
    yield Tensor("model.embed_tokens.weight", ("tokens/embedding",))
    for index in range(config.num_layers):
        theirs, ours = f"model.layers.{index}", f"layer_{index}"
        for part in ("query", "key", "value", "output"):
            name = f"{theirs}.self_attn.{part[0]}_proj"
            yield from dense(name, f"{ours}/attention/{part}", bias=config.attention_bias)
        yield from dense(f"{theirs}.mlp.c_fc", f"{ours}/mlp/up", bias=config.mlp_bias)
        yield from dense(f"{theirs}.mlp.c_proj", f"{ours}/mlp/down", bias=config.mlp_bias)
        yield from norm(f"{theirs}.input_layernorm", f"{ours}/norm_1")
        yield from norm(f"{theirs}.post_attention_layernorm", f"{ours}/norm_2")
    yield from norm("model.norm", "norm_f")
    yield from head(config)


STARCODER = family("Starcoder2", "model.", "", read_config, tensors, decoder=True)


@pytest.mark.slow
def test_a_family_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setitem(model_folder.FAMILIES, "starcoder2", STARCODER)
    settings = families.BASE | {"num_key_value_heads": 2, "sliding_window": None}
    model = families.random_model("starcoder2", settings, seed=0)
    model.save_pretrained(tmp_path / "model")
    checkpoint = model_folder.load(tmp_path / "model", kind="decoder")
    tokens = np.random.default_rng(0).integers(0, 61, (2, 12))
    ours = families.forward(checkpoint.config, checkpoint.params, tokens)
    np.testing.assert_allclose(ours, families.torch_logits(model, tokens), atol=1e-4)
    model_folder.save(tmp_path / "again", *checkpoint[:2], settings=checkpoint.settings)
    again = model_folder.load(tmp_path / "again")
    assert again.config == checkpoint.config
