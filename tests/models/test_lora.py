"""Low-rank adapters: they change nothing at first, merge exactly, and peft reads them."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from tests import families
from tests.families import forward
from vbon_jax.models import decoder
from vbon_jax.models import lora as adapters
from vbon_jax.models.decoder import Lora
from vbon_jax.models.huggingface import model_folder
from vbon_jax.types import InputError

TOLERANCE = 1e-4  # of a logit, in float32
EVERY = ".*"
LLAMA = families.network("llama", families.DECODERS["llama"]["grouped heads"])


def trained(params):
    """Adapters as training leaves them: no factor is zero."""
    rng = np.random.default_rng(1)
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: (
            np.float32(rng.normal(size=leaf.shape) * 0.2)
            if "lora" in jax.tree_util.keystr(path)
            else leaf
        ),
        params,
    )


def adapted(model, pattern=EVERY):
    """Config and parameters of a model with fresh adapters."""
    return adapters.add(model.config, model.params, Lora(pattern, 3, 5.0), jax.random.key(0))


@pytest.mark.slow
def test_fresh_adapters_change_nothing():
    config, params = adapted(LLAMA)
    tokens = np.random.default_rng(0).integers(3, 60, (2, 9))
    before = forward(LLAMA.config, LLAMA.params, tokens)
    np.testing.assert_array_equal(forward(config, params, tokens), before)
    first = params["layer_0"]["attention"]["query"]["lora"]["lora_a"]
    assert np.asarray(first).std() > 0
    jax.tree.map(np.testing.assert_array_equal, params, adapted(LLAMA)[1])


def test_by_hand():
    """x A B alpha / rank beside x K: 2 * 3 * 5 * 4 / 1 on top of what was there."""
    from flax import nnx

    from vbon_jax.models import layers

    dense = layers.linear(nnx.Rngs(0), 1, 1, dtype="float32", std=0.1)
    plain = float(dense(np.float32([[2.0]]))[0, 0])
    dense.adapt(rank=1, alpha=4.0, rngs=nnx.Rngs(0))
    dense.lora.lora_a[...], dense.lora.lora_b[...] = np.float32([[3.0]]), np.float32([[5.0]])
    assert float(dense(np.float32([[2.0]]))[0, 0]) == pytest.approx(plain + 120.0)


def test_the_pattern_chooses_layers():
    _, params = adapted(LLAMA, pattern=r"layer_1/attention/(query|value)")
    names = [
        "/".join(entry.key for entry in path)
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]
    layers = {name.partition("/lora")[0] for name in names if "/lora/" in name}
    assert layers == {"layer_1/attention/query", "layer_1/attention/value"}


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (Lora("layer_9/.*", 2, 1.0), r"fits no dense layer; names look like layer_0/attention"),
        (Lora("(", 2, 1.0), r"not a regular expression"),
        (Lora(EVERY, 0, 1.0), r"lora\.rank=0"),
        (Lora(EVERY, 2, 0.0), r"lora\.alpha=0"),
    ],
)
def test_adapters_that_have_no_meaning(lora, message):
    with pytest.raises(InputError, match=message):
        adapters.add(LLAMA.config, LLAMA.params, lora, jax.random.key(0))


# peft asks transformers for a property by its old name.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("family", list(families.DECODERS))
def test_merged_and_peft_have_the_same_logits(family, tmp_path):
    """ours = merged = transformers of the merged folder = peft of the adapters on the base."""
    import peft
    import transformers

    pattern = r"layer_0/attention/(query|value|output)|layer_1/.*"
    settings = next(iter(families.DECODERS[family].values()))
    families.random_model(family, settings, seed=0).save_pretrained(tmp_path / "base")
    checkpoint = model_folder.load(tmp_path / "base", kind="decoder")
    config, params = adapted(checkpoint, pattern)
    params = trained(params)
    tokens = np.random.default_rng(0).integers(3, 57, (2, 14))
    ours = np.asarray(forward(config, params, tokens))
    plain = np.asarray(forward(checkpoint.config, checkpoint.params, tokens))
    assert np.abs(ours - plain).max() > 0.1

    merged_config, merged = adapters.merge(config, params)
    assert merged_config == checkpoint.config
    np.testing.assert_allclose(forward(merged_config, merged, tokens), ours, atol=TOLERANCE)
    model_folder.save(tmp_path / "merged", merged_config, merged, settings=checkpoint.settings)
    auto = transformers.AutoModelForCausalLM
    theirs = families.torch_logits(auto.from_pretrained(tmp_path / "merged"), tokens)
    np.testing.assert_allclose(theirs, ours, atol=TOLERANCE)

    adapters.save(tmp_path / "adapters", config, params, settings=checkpoint.settings, base="base")
    base = auto.from_pretrained(tmp_path / "base")
    with_adapters = peft.PeftModel.from_pretrained(base, tmp_path / "adapters")
    np.testing.assert_allclose(families.torch_logits(with_adapters, tokens), ours, atol=TOLERANCE)


def test_a_new_head_is_trained_and_not_adapted():
    """Whatever the pattern fits: no low-rank term beside a head that no model comes with."""
    scored = decoder.with_score(LLAMA.config, LLAMA.params, ("one",), jax.random.key(0))
    _, params = adapters.add(*scored, Lora(EVERY, 2, 1.0), jax.random.key(0))
    assert set(params["score"]) == {"kernel"}
    assert "lora" in params["layer_0"]["attention"]["query"]
    names = ("classifier/score/kernel", "classifier/layer_0/attention/query/lora/lora_a")
    assert all(re.fullmatch(adapters.TRAINED, name) for name in names)
    assert not re.fullmatch(adapters.TRAINED, "classifier/layer_0/attention/query/kernel")


@pytest.mark.slow
def test_cached_decoding_has_the_adapters_too():
    config, params = adapted(LLAMA)
    params = trained(params)
    tokens = np.random.default_rng(0).integers(3, 57, (2, 6)).astype(np.int32)
    whole = forward(config, params, tokens)

    lengths, responses = np.full(2, 5, np.int32), tokens[:, None, 5:]
    cached = families.decode_all(config, params, tokens[:, :5], lengths, responses)
    np.testing.assert_allclose(cached[:, 0, -1], whole[:, -1], atol=TOLERANCE)


def test_the_description_for_peft(tmp_path):
    model = families.network("gpt2", families.GPT2)
    config, params = adapted(model, r"layer_0/attention/.*")
    adapters.save(tmp_path / "a", config, params, settings=model.settings, base="owner/name")
    described = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == "owner/name"
    assert described["target_modules"] == [
        "transformer.h.0.attn.c_attn",
        "transformer.h.0.attn.c_proj",
    ]
    assert described["rank_pattern"] == {"transformer.h.0.attn.c_attn": 9}
    assert described["alpha_pattern"] == {"transformer.h.0.attn.c_attn": 15.0}
    assert described["fan_in_fan_out"] is True
    with pytest.raises(ValueError, match=re.escape("no adapters")):
        plain = dataclasses.replace(config, lora=None)
        adapters.save(tmp_path / "b", plain, params, settings=model.settings, base="x")


def test_adapters_differ_by_seed_and_not_in_what_they_do():
    """Of runs that share a base: A is drawn anew, B stays zero, no other parameter changes."""
    _, params = adapted(LLAMA)
    drawn = [adapters.redrawn(params, seed) for seed in (0, 0, 1)]
    jax.tree.map(np.testing.assert_array_equal, drawn[0], drawn[1])
    for before, after in ((params, drawn[0]), (drawn[0], drawn[2])):
        leaves = zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True)
        for (path, old), new in leaves:
            changed = bool((np.asarray(old) != np.asarray(new)).any())
            assert changed == ("lora_a" in jax.tree_util.keystr(path)), path
    assert adapters.redrawn(LLAMA.params, 0) is LLAMA.params
