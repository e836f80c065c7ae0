"""The decoder and the encoder: hand-worked numbers, properties, and transformers' torch models."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import families
from tests.families import forward, random_params
from vbon_jax.models import decoder, encoder, layers
from vbon_jax.models.huggingface import model_folder

TOLERANCE = 1e-4  # of a logit, against torch in float32

SMALL = decoder.DecoderConfig(
    vocab_size=29, width=12, num_layers=2, num_heads=3, mlp_width=20, max_positions=16
)
READER = encoder.EncoderConfig(
    vocab_size=31, width=12, num_layers=2, num_heads=2, mlp_width=10, max_positions=12
)

classify = jax.jit(encoder.classify, static_argnums=0)
init_decoder = jax.jit(decoder.init, static_argnums=0)


def tokens_of(config, shape, seed=0):
    return np.random.default_rng(seed).integers(0, config.vocab_size, shape).astype(np.int32)


# --------------------------------------------------------------------------------- hand-worked


def test_decoder_by_hand():
    """Blocks of zeros leave [1, 0]; its norm is [1, -1]; the tied head reads rows of embeddings."""
    config = decoder.DecoderConfig(
        vocab_size=3, width=2, num_layers=1, num_heads=1, mlp_width=2, max_positions=2,
        norm_epsilon=1e-12,
    )  # fmt: skip
    params = jax.tree.map(np.zeros_like, random_params(config))
    params["norm_f"]["scale"] = jnp.ones(2)
    params["tokens"]["embedding"] = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 5.0]])
    logits = forward(config, params, jnp.array([[0, 1]]))
    np.testing.assert_allclose(logits[0], [[1, -1, -2], [-1, 1, 2]], atol=1e-6)


def test_encoder_by_hand():
    """[1, 0] is normed to [1, -1] three times over; ReLU keeps 1; the classifier adds its bias."""
    config = dataclasses.replace(READER, width=2, num_heads=1, num_layers=1)
    params = jax.tree.map(np.zeros_like, random_params(config))
    for norm in (params["norm_0"], params["layer_0"]["norm_1"], params["layer_0"]["norm_2"]):
        norm["scale"] = jnp.ones(2)
    params["tokens"]["embedding"][7] = [1.0, 0.0]
    params["pre_classifier"]["kernel"] = jnp.eye(2)
    params["classifier"] = {
        "kernel": jnp.array([[2.0, 3.0], [9.0, 9.0]]),
        "bias": jnp.array([0, 1]),
    }
    logits = classify(config, params, jnp.array([[7, 0, 0]]), jnp.array([1]))
    np.testing.assert_allclose(logits, [[2.0, 4.0]], atol=1e-5)


def test_layer_norm_by_hand_and_far_from_zero():
    import torch

    by_hand = layers.standardize(jnp.array([1.0, 2.0, 3.0]), epsilon=1e-12)
    np.testing.assert_allclose(by_hand, [-np.sqrt(1.5), 0, np.sqrt(1.5)], rtol=1e-6, atol=1e-7)
    # Epsilon is under the root: variance 1 and epsilon 3 halve the numbers.
    halved = layers.standardize(jnp.array([-1.0, 1.0]), epsilon=3.0)
    np.testing.assert_allclose(halved, [-0.5, 0.5], rtol=1e-6)
    far = 100 + np.random.default_rng(0).normal(size=(8, 64)).astype(np.float32)
    expected = torch.nn.functional.layer_norm(torch.tensor(far), (64,), eps=1e-12).numpy()
    np.testing.assert_allclose(
        layers.standardize(jnp.array(far), epsilon=1e-12), expected, atol=1e-4
    )


def test_number_of_parameters():
    """V*D + P*D + L*(4*D*D + 2*D*F + 9*D + F) + 2*D, worked out for D 12, F 20, L 2, V 29, P 16."""
    count = sum(leaf.size for leaf in jax.tree.leaves(random_params(SMALL)))
    assert count == 29 * 12 + 16 * 12 + 2 * (4 * 144 + 2 * 240 + 9 * 12 + 20) + 24 == 2932


# ----------------------------------------------------------------------------------- properties


@pytest.mark.parametrize("tied", [True, False])
def test_cached_decoding_is_the_full_forward(tied):
    config = dataclasses.replace(SMALL, tie_embeddings=tied, scale_attention_by_layer=True)
    params = random_params(config)
    lengths, new = np.array([5, 2, 1]), 4
    prompts, responses = tokens_of(config, (3, 5)), tokens_of(config, (3, 2, new), seed=1)
    full = np.asarray(forward(config, params, families.joined(prompts, lengths, responses)))
    cached = families.decode_all(config, params, prompts, lengths, responses)
    for row, length in enumerate(lengths):
        expected = full[2 * row : 2 * row + 2, length - 1 : length + new]
        np.testing.assert_allclose(cached[row], expected, atol=2e-5)


def test_padding_changes_no_real_position():
    params, tokens = random_params(SMALL), tokens_of(SMALL, (1, 9))
    padded = np.asarray(forward(SMALL, params, tokens))[0]
    alone = forward(SMALL, params, tokens[:, :6])[0]
    np.testing.assert_allclose(padded[:6], alone, atol=2e-5)
    assert np.isfinite(padded).all()


def test_no_position_sees_the_future():
    params = random_params(SMALL)
    tokens = tokens_of(SMALL, (1, 8))
    changed = tokens.copy()
    changed[0, 5] = (tokens[0, 5] + 1) % SMALL.vocab_size
    before, after = (forward(SMALL, params, t)[0] for t in (tokens, changed))
    np.testing.assert_array_equal(before[:5], after[:5])
    assert np.abs(np.asarray(before - after)[5:]).max() > 1e-3


def test_text_behind_the_end_is_not_read():
    params = random_params(READER)
    lengths = np.array([9, 1, 4])
    tokens = tokens_of(READER, (3, 9))
    behind = np.arange(9) >= lengths[:, None]
    rubbish = np.where(behind, tokens_of(READER, (3, 9), seed=7), tokens)
    logits = classify(READER, params, tokens, lengths)
    np.testing.assert_array_equal(classify(READER, params, rubbish, lengths), logits)
    alone = classify(READER, params, tokens[2:, :4], lengths[2:])
    np.testing.assert_allclose(alone[0], logits[2], atol=1e-5)


@pytest.mark.slow
def test_every_parameter_is_trained():
    tokens, lengths = tokens_of(SMALL, (2, 16)), jnp.array([12, 7])
    untied = dataclasses.replace(SMALL, num_layers=1, tie_embeddings=False)
    params = random_params(untied)

    def loss(params, reader):
        logits = forward(untied, params, tokens), classify(READER, reader, tokens[:, :12], lengths)
        return jnp.square(logits[0]).sum() + jnp.square(logits[1]).sum()

    reader = random_params(READER)
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, reader)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
        if "key']['bias" not in jax.tree_util.keystr(path):  # softmax does not see it
            assert np.abs(slope).max() > 0, path


@pytest.mark.slow
def test_an_encoder_learns():
    """Whether token 3 is in the text, from scratch, by plain gradient descent with momentum."""
    config = dataclasses.replace(READER, num_layers=1)
    tokens, labels = tokens_of(config, (64, 8)), np.arange(64) < 32
    tokens[32:][tokens[32:] == 3] = 4
    tokens[:32, 4] = 3

    def loss(params):
        logits = encoder.classify(config, params, tokens, np.full(64, 8))
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(64), labels.astype(int)])

    @jax.jit
    def step(params, velocity):
        value, slope = jax.value_and_grad(loss)(params)
        velocity = jax.tree.map(lambda v, g: 0.9 * v + g, velocity, slope)
        return jax.tree.map(lambda p, v: p - 0.05 * v, params, velocity), velocity, value

    params = jax.tree.map(lambda leaf: leaf / 2, random_params(config))
    velocity = jax.tree.map(np.zeros_like, params)
    losses = []
    for _ in range(200):
        params, velocity, value = step(params, velocity)
        losses.append(float(value))
    assert losses[0] > 0.5
    assert losses[-1] < 0.1


def test_a_config_is_a_static_argument():
    """Equal configs share one compilation."""
    params, tokens = random_params(SMALL), tokens_of(SMALL, (2, 6))
    forward(SMALL, params, tokens)
    compiled = forward._cache_size()
    forward(dataclasses.replace(SMALL), params, tokens)
    assert forward._cache_size() == compiled


@pytest.mark.slow
def test_initial_parameters():
    wide = dataclasses.replace(SMALL, width=96, mlp_width=384, dtype="bfloat16")
    params, again, other = (init_decoder(wide, jax.random.key(k)) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, params, again)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert not np.array_equal(params["tokens"]["embedding"], other["tokens"]["embedding"])
    block = params["layer_1"]
    assert np.asarray(block["mlp"]["up"]["kernel"]).std() == pytest.approx(0.02, rel=0.05)
    # Residual outputs are smaller by the root of the number of residual additions, 2 * L.
    assert np.asarray(block["mlp"]["down"]["kernel"]).std() == pytest.approx(0.01, rel=0.05)
    one = dataclasses.replace(READER, num_layers=1, dtype="bfloat16")
    reader = jax.jit(encoder.init, static_argnums=0)(one, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(reader)} == {jnp.dtype("float32")}
    assert np.asarray(reader["classifier"]["kernel"]).std() == pytest.approx(0.02, rel=0.4)
    head = decoder.init_value_head(SMALL)
    assert not np.asarray(decoder.values(head, jnp.ones((2, 3, 12)))).any()


@pytest.mark.parametrize(("module", "config"), [(decoder, SMALL), (encoder, READER)])
def test_heads_must_divide_the_width(module, config):
    with pytest.raises(ValueError, match="width 12 is not a multiple of 5 heads"):
        module.init(dataclasses.replace(config, num_heads=5), jax.random.key(0))


# ----------------------------------------------------------------- transformers' torch models


@pytest.mark.slow
def test_real_decoder_against_torch(shared):
    from transformers import AutoModelForCausalLM

    path = shared / "models" / "gpt2-imdb-mini"
    checkpoint = model_folder.load(path, kind="decoder")
    model = AutoModelForCausalLM.from_pretrained(path)
    tokens = tokens_of(checkpoint.config, (2, checkpoint.config.max_positions))
    ours = forward(checkpoint.config, checkpoint.params, tokens)
    np.testing.assert_allclose(ours, families.torch_logits(model, tokens), atol=TOLERANCE)
    assert checkpoint.eos_token_ids == (0,)
    assert sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params)) == 4_273_664


@pytest.mark.slow
def test_real_encoder_against_torch(shared):
    from transformers import AutoModelForSequenceClassification

    path = shared / "models" / "distilbert-imdb-mini"
    checkpoint = model_folder.load(path, kind="classifier")
    model = AutoModelForSequenceClassification.from_pretrained(path)
    tokens, lengths = tokens_of(checkpoint.config, (5, 60)), np.array([60, 1, 17, 33, 2])
    ours = classify(checkpoint.config, checkpoint.params, tokens, lengths)
    theirs = families.torch_logits(model, tokens, np.arange(60) < lengths[:, None])
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    assert checkpoint.config.labels == ("NEGATIVE", "POSITIVE")


@pytest.mark.slow
@pytest.mark.parametrize(
    "odd",
    [
        {"n_embd": 30, "n_head": 5, "n_inner": 44, "vocab_size": 101},
        {"n_embd": 7, "n_head": 1, "n_layer": 1, "tie_word_embeddings": False, "vocab_size": 13},
        {"n_embd": 24, "n_head": 12, "activation_function": "gelu", "layer_norm_epsilon": 1e-3},
        {"n_embd": 18, "n_head": 2, "activation_function": "relu", "scale_attn_weights": False},
        {
            "n_layer": 3,
            "activation_function": "silu",
            "scale_attn_by_inverse_layer_idx": True,
            "tie_word_embeddings": False,
        },
        {"activation_function": "gelu_pytorch_tanh", "reorder_and_upcast_attn": True},
    ],
)
def test_odd_decoders_against_torch(odd, tmp_path):
    settings = {"n_embd": 16, "n_head": 2, "n_layer": 2, "vocab_size": 57, "n_positions": 19}
    settings |= {"bos_token_id": 0, "eos_token_id": 0} | odd
    model = families.random_model("gpt2", settings, seed=len(odd))
    model.save_pretrained(tmp_path)
    checkpoint = model_folder.load(tmp_path)
    tokens = tokens_of(checkpoint.config, (3, 19))
    ours = forward(checkpoint.config, checkpoint.params, tokens)
    theirs = families.torch_logits(model, tokens)
    assert np.abs(theirs).max() > 1
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
