"""Every family and shape against transformers' torch models: docs/models.md is what is measured.

`WRITE_DOCS=1` in the environment writes that table anew.
"""

import dataclasses
import json
import math
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests import families
from tests.tiny_config import check_refusal
from vbon_jax.models import classifier, decoder, disentangled, encoder
from vbon_jax.models.huggingface import model_folder

TOLERANCE = 1e-4  # of a logit, in float32
# Of the largest logit, in bfloat16: of a vocabulary at every token, and of the few numbers that a
# head gives, where torch's own bfloat16 is 1 to 4 % away from its float32.
ROUGH, ROUGH_HEAD = 0.05, 0.08
DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "models.md"
BEGIN, END = "<!-- measured: begin -->\n", "<!-- measured: end -->\n"
HEADER = (
    "| family | shape | prefill | cached decode | head | round trip | bfloat16 |\n"
    "|---|---|---|---|---|---|---|\n"
)
DECODERS, ENCODERS = (
    [
        pytest.param(family, shape, id=f"{family}: {shape}")
        for family, shapes in kind.items()
        for shape in shapes
    ]
    for kind in (families.DECODERS, families.ENCODERS)
)


@pytest.fixture(scope="module")
def measured():
    """Rows of the table, by family and shape; written at the end where the environment asks."""
    rows: dict[tuple[str, str], str] = {}
    yield rows
    if os.environ.get("WRITE_DOCS") == "1":
        text = DOCUMENT.read_text()
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        DOCUMENT.write_text(f"{before}{BEGIN}{HEADER}{''.join(rows.values())}{END}{after}")


def rounded_up(error: float) -> str:
    """A bound of one digit: 3.1e-6 becomes 4e-6."""
    if error == 0:
        return "0"
    power = math.floor(math.log10(error))
    digit = math.ceil(error / 10**power - 1e-9)
    return f"{digit}e{power}" if digit < 10 else f"1e{power + 1}"


def row(family: str, shape: str, errors: list[float | None], rough: float) -> str:
    cells = ["–" if error is None else rounded_up(error) for error in errors]
    return f"| {family} | {shape} | {' | '.join(cells)} | {100 * rough:.1f} % |\n"


def prompts_of(config, seed=0):
    """Three prompts of 9, 4 and 1 tokens, and two responses of 7 to each."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(3, config.vocab_size, (3, 9)).astype(np.int32)
    responses = rng.integers(3, config.vocab_size, (3, 2, 7)).astype(np.int32)
    return prompts, np.array([9, 4, 1]), responses


def decoder_errors(model, checkpoint, folder) -> tuple[list[float], float]:
    """Largest differences of prefill, cached decoding and a round trip, and of bfloat16."""
    config, params = checkpoint.config, checkpoint.params
    prompts, lengths, responses = prompts_of(config)
    tokens = families.joined(prompts, lengths, responses)
    real = np.arange(16) < np.repeat(lengths + 7, 2)[:, None]
    theirs = families.torch_logits(model, tokens, real)
    assert np.abs(theirs[real]).max() > 0.5  # differences of nothing would be small
    ours = np.asarray(families.forward(config, params, tokens))
    prefill = np.abs(ours - theirs)[real].max()

    cached = np.asarray(families.decode_all(config, params, prompts, lengths, responses))
    at = (lengths - 1)[:, None] + np.arange(8)
    expected = np.take_along_axis(theirs.reshape(3, 2, 16, -1), at[:, None, :, None], axis=2)
    cached_error = np.abs(cached - expected).max()

    model_folder.save(folder / "again", config, params, settings=checkpoint.settings)
    again = families.torch_logits(loaded(folder / "again"), tokens, real)
    low = np.float32(
        families.forward(dataclasses.replace(config, dtype="bfloat16"), params, tokens)
    )
    rough = np.abs(low - ours)[real].max() / np.abs(ours[real]).max()
    return [prefill, cached_error, np.abs(again - theirs)[real].max()], rough


def loaded(folder, *, head=False):
    """The model that transformers reads from a folder, no parameter missing or left over."""
    import transformers

    name = "SequenceClassification" if head else "CausalLM"
    auto = getattr(transformers, f"AutoModelFor{name}")
    model, report = auto.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not any(report.values()), report
    return model


def head_errors(family, settings, seed, folder, lengths) -> tuple[list[float], tuple]:
    """Largest differences of a classifier's logits, before and after a round trip.

    And config, parameters, tokens and logits of the classifier.
    """
    model = families.random_model(family, settings, seed=seed, head=True)
    model.save_pretrained(folder / "head")
    checkpoint = model_folder.load(folder / "head", kind="classifier")
    config, params = checkpoint.config, checkpoint.params
    assert config.labels == tuple(f"LABEL_{i}" for i in range(settings.get("num_labels", 2)))
    tokens = np.random.default_rng(4).integers(4, config.vocab_size, (4, lengths[0]))
    real = np.arange(lengths[0]) < lengths[:, None]
    tokens = np.where(real, tokens, 0).astype(np.int32)
    theirs = families.torch_logits(model, tokens, real)
    assert np.abs(theirs).max() > 0.2  # differences of nothing would be small
    ours = np.asarray(classifier.logits(config, params, tokens, lengths))
    assert ours.shape == theirs.shape == (4, config.num_labels)
    model_folder.save(folder / "head again", config, params, settings=checkpoint.settings)
    assert model_folder.load(folder / "head again", kind="classifier").config == config
    again = families.torch_logits(loaded(folder / "head again", head=True), tokens, real)
    errors = [np.abs(ours - theirs).max(), np.abs(again - theirs).max()]
    return errors, (config, params, tokens, ours)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "shape"), DECODERS)
def test_decoders_are_those_of_transformers(family, shape, tmp_path, measured):
    settings, seed = families.DECODERS[family][shape], len(shape)
    model = families.random_model(family, settings, seed=seed)
    model.save_pretrained(tmp_path / "model")
    checkpoint = model_folder.load(tmp_path / "model")
    assert checkpoint.config.labels == ()
    (prefill, cached, trip), rough = decoder_errors(model, checkpoint, tmp_path)
    three = settings | {"num_labels": 3}
    head, _ = head_errors(family, three, seed, tmp_path, np.array([14, 1, 6, 9]))
    errors = [prefill, cached, max(head), trip]
    measured[family, shape] = row(family, shape, errors, rough)
    assert max(errors) <= TOLERANCE, measured[family, shape]
    assert 0 < rough < ROUGH


@pytest.mark.slow
@pytest.mark.parametrize(("family", "shape"), ENCODERS)
def test_encoders_are_those_of_transformers(family, shape, tmp_path, measured):
    settings = families.ENCODERS[family][shape]
    lengths = np.array([21, 1, 8, 15])
    result = head_errors(family, settings, len(shape), tmp_path, lengths)
    (head, trip), (config, params, tokens, ours) = result
    low = classifier.logits(dataclasses.replace(config, dtype="bfloat16"), params, tokens, lengths)
    assert low.dtype == ours.dtype == jnp.float32
    rough = np.abs(low - ours).max() / np.abs(ours).max()
    measured[family, shape] = row(family, shape, [None, None, head, trip], rough)
    assert max(head, trip) <= TOLERANCE, measured[family, shape]
    assert 0 < rough < ROUGH_HEAD


# ------------------------------------------------------------------- encoders, beside the table


def test_rows_of_offsets_by_hand():
    plain = disentangled.RelativePositions(reach=3)
    assert plain.rows(np.arange(-4, 5)).tolist() == [0, 0, 1, 2, 3, 4, 5, 5, 5]
    # Half of 8 buckets is 4: offset 4 * 8^(i/3) is the last of bucket 4 + i; the 9th is not there.
    logarithmic = disentangled.RelativePositions(reach=33, buckets=8)
    offsets = np.array([0, 1, 4, 5, 8, 9, 16, 17, 32, 33])
    assert (logarithmic.rows(offsets) - 8).tolist() == [0, 1, 4, 5, 5, 6, 6, 7, 7, 7]
    assert (logarithmic.rows(-offsets) - 8).tolist() == [0, -1, -4, -5, -5, -6, -6, -7, -7, -8]


@pytest.mark.parametrize(
    ("buckets", "reach"), [(2, 6), (5, 12), (8, 24), (32, 129), (256, 512), (320, 514), (512, 512)]
)
def test_buckets_are_those_of_transformers(buckets, reach):
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    offsets = np.arange(-reach, reach + 1)
    theirs = make_log_bucket_position(torch.tensor(offsets), buckets, reach).long().numpy()
    ours = disentangled.RelativePositions(reach=reach, buckets=buckets).rows(offsets)
    np.testing.assert_array_equal(ours, np.clip(theirs + buckets, 0, 2 * buckets - 1))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 4), (3, 3), (4, 2), (2, 5)])
def test_shifted_scores_by_hand(rows, columns):
    scores = np.arange(2 * rows * (rows + columns)).reshape(2, rows, rows + columns)
    shifted = disentangled.shifted(jnp.array(scores), columns)
    for row in range(rows):
        for column in range(columns):
            expected = scores[:, row, column - row + rows - 1]
            np.testing.assert_array_equal(shifted[:, row, column], expected)


@pytest.mark.slow
def test_every_parameter_of_an_encoder_is_trained(tmp_path):
    """But for rows that no text reads, and biases that softmax does not see."""
    relative = disentangled.RelativePositions(reach=5, normed=True)
    config = encoder.EncoderConfig(
        vocab_size=13, width=12, num_layers=2, num_heads=2, mlp_width=10, max_positions=7,
        first_position=2, token_types=2, relative=relative, head_activation="tanh",
    )  # fmt: skip
    params, rng = families.random_params(config), np.random.default_rng(2)
    tokens, lengths = rng.integers(0, 13, (3, 7)), np.array([7, 2, 4])

    def loss(params):
        return jnp.square(classifier.classify(config, params, tokens, lengths)).sum()

    slopes = jax.jit(jax.grad(loss))(params)
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.isfinite(slope).all(), path
        assert np.abs(slope).max() > 0, path
    reads = {
        name: np.abs(slopes[name]["embedding"]).max(axis=1) > 0 for name in ("positions", "types")
    }
    assert reads["positions"].tolist() == [False, False] + [True] * 7
    assert reads["types"].tolist() == [True, False]
    assert np.abs(slopes["relative"]["positions"]["embedding"]).max(axis=1).all()


@pytest.mark.parametrize(
    ("family", "prefix", "more"),
    [
        ("bert", "bert.", ["embeddings.position_ids"]),
        ("roberta", "roberta.", ["embeddings.position_ids", "roberta.pooler.dense.weight"]),
        (
            "deberta-v2",
            "deberta.",
            ["lm_predictions.lm_head.bias", "embeddings.position_embeddings.weight"],
        ),
    ],
)
def test_tensors_that_no_classifier_reads_and_names_without_prefix(family, prefix, more, tmp_path):
    shape = next(iter(families.ENCODERS[family].values()))
    model = families.network(family, {"pad_token_id": 1} | shape, labels=("LABEL_0", "LABEL_1"))
    model.save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    tensors |= {name: np.zeros(3, np.float32) for name in more}
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    checkpoint = model_folder.load(tmp_path / "m", kind="classifier")
    assert checkpoint.config == model.config
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, model.params)
    tensors["embeddings.extra"] = np.zeros(3, np.float32)
    safetensors.numpy.save_file(tensors, file, metadata={"format": "pt"})
    check_refusal(lambda: model_folder.load(tmp_path / "m"), "unknown tensor embeddings.extra")


def test_the_table_lists_every_family_and_shape():
    text = DOCUMENT.read_text()
    rows = re.findall(
        r"^\| (\S+) \| (.+?) \| .*$", text.partition(BEGIN)[2].partition(END)[0], re.M
    )
    both = families.DECODERS | families.ENCODERS
    every = [(f, s) for f, shapes in both.items() for s in shapes]
    assert [pair for pair in rows if pair[0] != "family"] == every


ROPE = "rope_parameters"
DEBERTA = "deberta-v2"
NO_OFFSETS = {"relative_attention": False}


@pytest.mark.parametrize(
    ("family", "fields", "words"),
    [
        ("llama", {ROPE: {"rope_type": "yarn", "factor": 2.0}}, "'yarn' is not supported"),
        ("llama", {ROPE: {"rope_type": "linear"}}, "{'factor'}"),
        ("llama", {ROPE: {"type": "dynamic", "factor": 2.0}}, "'dynamic' | llama3"),
        ("llama", {ROPE: 3}, "give an object"),
        ("llama", {ROPE: {"rope_type": "linear", "factor": "2"}}, "factor, a number above 0"),
        ("llama", {"vocab_size": "61"}, 'vocab_size = "61" | give a whole number'),
        ("llama", {"num_attention_heads": 5}, "hidden size (24) | not a multiple"),
        ("llama", {"hidden_act": "mish"}, "silu"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantised"),
        ("gpt_neox", {ROPE: {"rope_type": "longrope"}}, "'longrope'"),
        ("gemma3_text", {ROPE: {"rope_theta": 5.0}}, "full_attention | sliding_attention"),
        ("gemma3_text", {"attn_logit_softcapping": 5.0}, "not supported"),
        ("gemma2", {"use_bidirectional_attention": True}, "later tokens"),
        ("gemma2", {"layer_types": ["full_attention"]}, "number of `layer_types` (1)"),
        ("gemma2", {"layer_types": ["chunked_attention"] * 2}, "give 2 of sliding_attention"),
        ("mistral", {"layer_types": ["full_attention"] * 2}, "windowed layers"),
        ("mistral", {"num_attention_heads": 5}, "the width 24"),
        ("qwen2", {"max_window_layers": -1, "use_sliding_window": True}, "at least 0"),
        ("qwen2", {"num_experts": 4}, "mixture of experts"),
        ("qwen3", {"num_key_value_heads": 3}, "not a multiple"),
        ("bert", {"position_embedding_type": "relative_key"}, "use a model with one of absolute"),
        ("bert", {"is_decoder": True}, "is_decoder = true | not supported"),
        ("bert", {"add_cross_attention": True}, "add_cross_attention = true | not supported"),
        ("bert", {"hidden_act": "mish"}, 'hidden_act = "mish" | gelu_new'),
        ("bert", {"pruned_heads": {"0": [1]}}, "not supported"),
        ("bert", {"num_attention_heads": 5}, "num_attention_heads = 5 | the width 24"),
        ("bert", {"type_vocab_size": 0}, "type_vocab_size = 0 | at least 1"),
        ("bert", {"architectures": ["BertForMaskedLM"]}, "a BertForSequenceClassification"),
        ("roberta", {"pad_token_id": None}, "pad_token_id = null | give a token id"),
        ("roberta", {"max_position_embeddings": 2}, "max_position_embeddings = 2 | more than 2"),
        ("roberta", {"position_embedding_type": "relative_key_query"}, "one of absolute"),
        (DEBERTA, {"conv_kernel_size": 3}, "conv_kernel_size = 3 | not supported"),
        (DEBERTA, {"embedding_size": 12}, "embedding_size = 12 | only the width 24"),
        (DEBERTA, {"pooler_hidden_size": 9}, "pooler_hidden_size = 9 | only the width 24"),
        (DEBERTA, {"attention_head_size": 7}, "attention_head_size = 7 | heads 6"),
        (DEBERTA, {"pos_att_type": "c2p|p2p"}, 'pos_att_type = "c2p|p2p" | c2p and p2c'),
        (DEBERTA, {"pos_att_type": {"c2p": 1}}, '{"c2p": 1} | a text or a list'),
        (DEBERTA, {"norm_rel_ebd": "batch"}, 'norm_rel_ebd = "batch" | none, layer_norm'),
        (DEBERTA, NO_OFFSETS, "pos_att_type | relative_attention is not"),
        (DEBERTA, NO_OFFSETS | {"pos_att_type": None}, 'norm_rel_ebd = "layer_norm" | is not true'),
        (DEBERTA, {"relative_attention": 1}, "relative_attention = 1 | true or false"),
        (DEBERTA, {"position_buckets": 1}, "position_buckets = 1 | from 2 to 49"),
        (DEBERTA, {"position_buckets": 20, "max_relative_positions": 11}, "from 2 to 19 for 11"),
        (DEBERTA, {"position_buckets": "8"}, "whole number"),
        (DEBERTA, {"max_relative_positions": 1.5}, "max_relative_positions = 1.5 | whole number"),
        (DEBERTA, {"pooler_hidden_act": "mish"}, 'pooler_hidden_act = "mish" | relu'),
        (DEBERTA, {"type_vocab_size": -1}, "type_vocab_size = -1 | at least 0"),
    ],
)
def test_fields_that_cannot_be_honoured(family, fields, words, tmp_path):
    """A folder of config.json alone, which is read and judged before any weight."""
    kind = "decoder" if family in families.DECODERS else "classifier"
    shapes = (families.DECODERS | families.ENCODERS)[family]
    settings = {"model_type": family} | next(iter(shapes.values())) | fields
    (tmp_path / "config.json").write_text(json.dumps(settings))
    file, field = str(tmp_path / "config.json"), next(iter(fields))
    check_refusal(lambda: model_folder.load(tmp_path, kind=kind), file, field, *words.split(" | "))


def test_positions_as_older_releases_write_them(tmp_path):
    """rope_scaling and rope_theta of transformers 4, which stay as the folder had them."""
    older = {"rope_theta": 500.0, "rope_scaling": {"type": "linear", "factor": 3.0}}
    model = families.network("llama", families.BASE | older)
    assert model.config.rope == decoder.Rope(theta=500.0, factor=3.0)
    model.save(tmp_path / "m")
    written = json.loads((tmp_path / "m" / "config.json").read_text())
    assert {name: written[name] for name in older} == older
    assert model_folder.load(tmp_path / "m").config == model.config


@pytest.mark.parametrize(
    ("older", "full", "local"),
    [
        ({"rope_theta": 7.0, "rope_local_base_freq": 3.0}, {"theta": 7.0}, {"theta": 3.0}),
        (
            {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
            {"theta": 1e6, "factor": 8.0},
            {"theta": 1e4},
        ),
    ],
)
def test_positions_as_older_folders_of_gemma_3_write_them(older, full, local):
    config = families.network("gemma3_text", families.BASE | {"head_dim": 8} | older).config
    assert config.rope == decoder.Rope(**full)
    assert config.window_rope == decoder.Rope(**local)
