"""Hugging Face folders: round trips with transformers, and an error in one line for every fault."""

import dataclasses
import json
import pathlib
import re
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
import safetensors.numpy

from tests.cases import model_folders as cases
from tests.families import network
from tests.tiny_config import check_refusal
from vbon_jax.models.huggingface import model_folder, safe_files
from vbon_jax.types import InputError

SMALL = {"vocab_size": 23, "n_embd": 6, "n_layer": 2, "n_head": 2, "n_inner": 10, "n_positions": 8}
ODD = {"tie_word_embeddings": False, "activation_function": "relu"}
ODD |= {"scale_attn_by_inverse_layer_idx": True}
READER = {"vocab_size": 19, "dim": 6, "n_layers": 2, "n_heads": 3, "hidden_dim": 9}
READER |= {"max_position_embeddings": 8}
GPT2, UNTIED = network("gpt2", SMALL), network("gpt2", SMALL | ODD)
DISTILBERT = network("distilbert", READER, labels=("bad", "fine", "good"))


def equal(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def edit(folder, file="config.json", **fields):
    """Change fields of a JSON file (None removes)."""
    value = json.loads((folder / file).read_text()) | fields
    (folder / file).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))


def edit_weights(folder, change):
    """Write what `change` returns for the tensors of a folder by name."""
    file = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(file)
    safetensors.numpy.save_file(change(tensors), file, metadata={"format": "pt"})


def check_load(folder, *words):
    """The folder is refused, in one line with these words."""
    check_refusal(lambda: model_folder.load(folder), *words)


@pytest.fixture
def folder(tmp_path):
    """A small decoder on disk."""
    GPT2.save(tmp_path / "policy", eos_token_ids=(3,))
    return tmp_path / "policy"


@pytest.fixture
def reader(tmp_path):
    """A small classifier on disk."""
    DISTILBERT.save(tmp_path / "reward")
    return tmp_path / "reward"


def tokenizer_of(words):
    """A tokenizer of whole words, the first of which ends a text."""
    import tokenizers
    import transformers

    inside = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, words[0])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(inside), eos_token=words[0], unk_token=words[0]
    )


# ---------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("model", [GPT2, UNTIED, DISTILBERT])
def test_save_and_load_are_inverse(model, tmp_path):
    model.save(tmp_path / "model")
    checkpoint = model_folder.load(tmp_path / "model")
    assert checkpoint.config == model.config
    equal(checkpoint.params, model.params)
    model.save(tmp_path / "again", settings=checkpoint.settings)
    assert model_folder.fingerprint(tmp_path / "again") == model_folder.fingerprint(
        tmp_path / "model"
    )


def test_transformers_loads_what_is_saved_beside_the_weights(tmp_path):
    """Its end of text, its tokenizer, its class and the names of its labels."""
    import transformers

    words = ["<end>", "a", "fine", "film"]
    UNTIED.save(tmp_path / "m", tokenizer=tokenizer_of(words))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    assert type(model).__name__ == "GPT2LMHeadModel"
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 0
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    assert tokenizer.get_vocab()["film"] == 3
    assert len(model_folder.load_tokenizer(tmp_path / "m")) == 4
    DISTILBERT.save(tmp_path / "r")
    labels = transformers.AutoConfig.from_pretrained(tmp_path / "r").id2label
    assert labels == {0: "bad", 1: "fine", 2: "good"}


@pytest.mark.parametrize("name", ["gpt2-imdb-mini", "distilbert-imdb-mini"])
def test_real_checkpoints_survive_a_round_trip(shared, tmp_path, name):
    source = shared / "models" / name
    checkpoint, tokenizer = model_folder.load(source), model_folder.load_tokenizer(source)
    options = {"settings": checkpoint.settings, "tokenizer": tokenizer}
    model_folder.save(tmp_path / "copy", *checkpoint[:2], **options)
    again = model_folder.load(tmp_path / "copy")
    assert again.config == checkpoint.config
    assert again.eos_token_ids == checkpoint.eos_token_ids
    equal(again.params, checkpoint.params)
    written = safetensors.numpy.load_file(tmp_path / "copy" / "model.safetensors")
    equal(written, safetensors.numpy.load_file(source / "model.safetensors"))
    for field, value in checkpoint.settings.items():
        if field != "transformers_version":
            assert again.settings[field] == value, field
    text = "A film without a soul."
    assert model_folder.load_tokenizer(tmp_path / "copy")(text) == tokenizer(text)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_on_disk(folder, dtype):
    """The weights are those that were rounded, widened to float32."""
    exact = model_folder.load(folder).params
    edit_weights(folder, lambda tensors: {k: v.astype(dtype) for k, v in tensors.items()})
    rounded = model_folder.load(folder)
    expected = jax.tree.map(lambda x: np.asarray(x).astype(dtype).astype(np.float32), exact)
    equal(rounded.params, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(rounded.params)} == {np.dtype("float32")}
    assert rounded.config.dtype == "float32"


def test_shards(tmp_path):
    from transformers import AutoModelForCausalLM

    params = UNTIED.params
    UNTIED.save(tmp_path / "m", max_shard_bytes=1000)
    shards = sorted(file.name for file in (tmp_path / "m").glob("*.safetensors"))
    assert len(shards) > 3
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    assert all((tmp_path / "m" / shard).stat().st_size < 1000 + 2000 for shard in shards)
    equal(model_folder.load(tmp_path / "m").params, params)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    np.testing.assert_array_equal(model.lm_head.weight.detach().T, params["head"]["kernel"])
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert index["metadata"]["total_size"] == 4 * count
    (tmp_path / "m" / shards[1]).unlink()
    check_load(tmp_path / "m", shards[1], "no such file", "fetch it")
    edit(tmp_path / "m", "model.safetensors.index.json", weight_map=[1])
    check_load(tmp_path / "m", "weight_map is not a table of files")


def test_names_without_prefix_and_buffers(folder):
    """The names of the first GPT-2 checkpoints, with the causal masks that they carried."""
    expected = model_folder.load(folder).params

    def old(tensors):
        tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
        tensors["h.0.attn.bias"] = np.ones((1, 1, 8, 8), np.float32)
        tensors["h.1.attn.masked_bias"] = np.float32([-1e4])
        tensors["lm_head.weight"] = tensors["wte.weight"]
        return tensors

    edit_weights(folder, old)
    edit(folder, architectures=["GPT2Model"])
    equal(model_folder.load(folder).params, expected)


def test_fields_that_config_json_leaves_out(folder):
    """Their meaning is transformers' default: n_inner null is 4 * n_embd; heads are tied."""
    for field in ("activation_function", "tie_word_embeddings", "scale_attn_weights", "dtype"):
        edit(folder, **{field: None})
    assert model_folder.load(folder).config == GPT2.config
    edit(folder, n_inner=None)
    check_load(folder, "[6, 10], and config.json asks for [6, 24]")


def test_what_is_saved_is_true_of_the_model(tmp_path):
    """Fields of the source are kept, but for those that would be false of what is written."""
    settings = GPT2.settings | {"torch_dtype": "float16", "resid_pdrop": 0.3, "eos_token_id": 7}
    settings |= {"auto_map": {"AutoModel": "evil.py"}, "_name_or_path": "x/y"}
    before = dict(settings)
    GPT2.save(tmp_path / "m", settings=settings)
    assert settings == before
    checkpoint = model_folder.load(tmp_path / "m")
    assert checkpoint.config == GPT2.config
    assert checkpoint.eos_token_ids == (7,)
    assert checkpoint.settings["resid_pdrop"] == 0.3
    assert not {"auto_map", "_name_or_path", "torch_dtype"} & set(checkpoint.settings)


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [(5, 6, (5,)), ([5, 9], 6, (5, 9)), (None, 6, (6,)), (None, [1, 2], (1, 2)), (None, None, ())],
)
def test_eos_token_ids(folder, generation, config, expected):
    edit(folder, "generation_config.json", eos_token_id=generation)
    edit(folder, eos_token_id=config)
    assert model_folder.load(folder).eos_token_ids == expected
    (folder / "generation_config.json").unlink()
    assert model_folder.load(folder).eos_token_ids == (
        () if config is None else tuple(np.atleast_1d(config).tolist())
    )


def test_several_eos_tokens_survive(tmp_path):
    for tokens in ((3, 5), ()):
        GPT2.save(tmp_path / "m", eos_token_ids=tokens)
        assert model_folder.load(tmp_path / "m").eos_token_ids == tokens


# --------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        (GPT2, {"model_type": "mamba"}, 'model_type = "mamba" | use one of gpt2,  | distilbert'),
        (GPT2, {"model_type": None}, "model_type = null | use one of gpt2, "),
        (GPT2, {"num_local_experts": 8}, "num_local_experts = 8 | mixture of experts"),
        (GPT2, {"add_cross_attention": True}, "add_cross_attention = true | cross-attention"),
        (GPT2, {"activation_function": "mish"}, '= "mish" | gelu_new | relu'),
        (
            GPT2,
            {"architectures": ["GPT2ForTokenClassification"]},
            "architectures | GPT2LMHeadModel",
        ),
        (GPT2, {"quantization_config": {"bits": 4}}, "quantization_config | quantised"),
        (GPT2, {"n_head": 4}, "n_head = 4 | width 6"),
        (GPT2, {"n_layer": 0}, "n_layer = 0 | at least 1"),
        (GPT2, {"n_embd": "wide"}, 'n_embd = "wide" | whole number'),
        (GPT2, {"layer_norm_epsilon": -1.0}, "layer_norm_epsilon = -1.0 | above 0"),
        (GPT2, {"layer_norm_epsilon": -1}, "= -1 | number with a decimal point"),
        (GPT2, {"scale_attn_weights": 1}, "scale_attn_weights = 1 | true or false"),
        (GPT2, {"eos_token_id": "<end>"}, 'eos_token_id = "<end>" | token id'),
        (GPT2, {"tie_word_embeddings": False}, "no tensor lm_head.weight"),
        (DISTILBERT, {"pruned_heads": {"0": [1]}}, "pruned_heads | not supported"),
        (DISTILBERT, {"id2label": {"1": "good"}}, "id2label | a name for each of 0, 1"),
        (DISTILBERT, {"id2label": ["bad", "good"]}, "id2label | a name for each of 0, 1"),
        (DISTILBERT, {"architectures": ["DistilBertForMaskedLM"]}, "ForSequenceClassification"),
    ],
)
def test_settings_that_cannot_be_honoured(tmp_path, model, fields, words):
    model.save(tmp_path / "m")
    edit(tmp_path / "m", **fields)
    place = tmp_path / "m" / ("" if "tie_word_embeddings" in fields else "config.json")
    check_load(tmp_path / "m", str(place), *words.split(" | "))


def test_the_wrong_kind(folder, reader):
    words = (str(folder), '["GPT2LMHeadModel"]', "use a GPT2ForSequenceClassification")
    check_refusal(lambda: model_folder.load(folder, kind="classifier"), *words)
    words = ('model_type = "distilbert"', "use one of gpt2, gpt_neox")
    check_refusal(lambda: model_folder.load(reader, kind="decoder"), *words)


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("transformer.h.1.mlp.c_fc.bias", None, "no tensor transformer.h.1.mlp.c_fc"),
        ("v_head", np.zeros(3, np.float32), "unknown tensor v_head"),
        (
            "transformer.wpe.weight",
            np.zeros((9, 6), np.float32),
            "wpe.weight is [9, 6] | for [8, 6]",
        ),
        ("transformer.ln_f.bias", np.zeros(6, np.int8), "ln_f.bias is I8 | F32, F16, BF16"),
        ("lm_head.weight", np.zeros((23, 6), np.float32), "lm_head.weight differs | set tie_word"),
        ("wpe.weight", np.zeros((8, 6), np.float32), "duplicate tensor, with and without 'trans"),
    ],
)
def test_weights_that_do_not_fit(folder, name, tensor, words):
    added = {} if tensor is None else {name: tensor}
    edit_weights(folder, lambda t: {k: v for k, v in t.items() if k != name} | added)
    check_load(folder, str(folder), *words.split(" | "))


@pytest.mark.parametrize("name", cases.WEIGHTS)
def test_weights_that_are_no_numbers_or_have_other_names(folder, name):
    change, words = cases.WEIGHTS[name]
    edit_weights(folder, change)
    check_load(folder, str(folder), *words.split(" | "))


@pytest.mark.parametrize("name", cases.COMPLETE)
def test_complete_models_are_loaded(folder, name):
    """As transformers does."""
    import transformers

    edit_weights(folder, cases.COMPLETE[name])
    params = model_folder.load(folder).params
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    embedding = model.transformer.wte.weight.detach().numpy()
    np.testing.assert_array_equal(params["tokens"]["embedding"], embedding)
    np.testing.assert_array_equal(params["tokens"]["embedding"], GPT2.params["tokens"]["embedding"])


@pytest.mark.parametrize("name", cases.FIELDS)
def test_fields_that_no_network_honours(folder, name):
    fields, words = cases.FIELDS[name]
    edit(folder, **fields)
    (folder / "generation_config.json").unlink()
    words = [str(folder / "config.json"), *words.split(" | ")]
    check_refusal(lambda: model_folder.read_config(folder), *words)  # before weights are read


def test_ids_of_the_generation_config(folder):
    edit(folder, "generation_config.json", eos_token_id=[3, 99])
    check_load(folder, "generation_config.json: eos_token_id = [3, 99]", "23 tokens")
    edit(folder, "generation_config.json", eos_token_id=3, pad_token_id=-1)
    assert model_folder.load(folder).eos_token_ids == (3,)


@pytest.mark.parametrize("name", cases.FILES)
def test_what_lies_beside_a_model(folder, name):
    (folder / name).write_text("{}")
    check_load(folder, str(folder), *cases.FILES[name].split(" | "))
    if name.startswith("adapter"):
        (folder / "config.json").unlink()
        check_load(folder, str(folder / name), "an adapter")


def test_heads_that_are_turned_in_part(tmp_path):
    """transformers ignores the field, and other programs apply it."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"vocab_size": 23, "num_hidden_layers": 1, "intermediate_size": 8}
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        words = ("config.json", "partial_rotary_factor", "turns whole heads")
        settings = sizes | {"model_type": family, "max_position_embeddings": 32}
        for given in ({"partial_rotary_factor": 0.5},
                      {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5,
                                           "rope_type": "default"}}):  # fmt: skip
            (tmp_path / "config.json").write_text(json.dumps(settings | given))
            check_refusal(lambda: model_folder.read_config(tmp_path), *words)
        (tmp_path / "config.json").write_text(json.dumps(settings | {"partial_rotary_factor": 1.0}))
        assert model_folder.read_config(tmp_path).rope.fraction == 1


def test_folders_that_hold_no_model(folder, tmp_path):
    check_load(tmp_path / "nothing" / "here", "no such folder")
    check_load("./nothing", "no such folder")
    check_load(folder / "config.json", "not a folder")
    (tmp_path / "empty").mkdir()
    check_load(tmp_path / "empty", "config.json: no such file")
    (folder / "config.json").write_text("[1]")
    check_load(folder, "not a JSON object")
    (folder / "config.json").write_text("{,")
    check_load(folder, str(folder / "config.json"), "not JSON")


def test_pickled_and_damaged_weights_are_refused(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    check_load(folder, str(weights), "damaged", "fetch it again")
    weights.unlink()
    check_load(folder, "neither model.safetensors nor")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    check_load(folder, str(folder / "pytorch_model.bin"), "pickled", "convert them to")


def test_settings_config_and_parameters_must_agree(tmp_path):
    with pytest.raises(ValueError, match=r"the settings describe DecoderConfig\(.*, the config is"):
        GPT2.save(tmp_path / "m", settings=UNTIED.settings)
    loose = dataclasses.replace(DISTILBERT.config, norm_epsilon=1e-5)
    with pytest.raises(ValueError, match=r"the settings describe EncoderConfig\(.*, the config is"):
        DISTILBERT._replace(config=loose).save(tmp_path / "m")
    with pytest.raises(ValueError, match="parameters are not those of this config"):
        GPT2._replace(params=UNTIED.params).save(tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------- whole or not


class Broken:
    """A tokenizer on a full disk."""

    def save_pretrained(self, folder):
        (folder / "tokenizer.json").write_text("{")
        raise OSError("no space left")


def test_a_failed_save_leaves_the_earlier_model(folder):
    before = model_folder.fingerprint(folder)
    with pytest.raises(InputError, match="no space left"):
        UNTIED.save(folder, tokenizer=Broken())
    assert model_folder.fingerprint(folder) == before
    assert [entry.name for entry in folder.parent.iterdir()] == ["policy"]
    (folder.parent / ".policy.partial").mkdir()  # of a save that was killed
    UNTIED.save(folder)
    assert model_folder.load(folder).config == UNTIED.config
    assert [entry.name for entry in folder.parent.iterdir()] == ["policy"]


def test_a_save_killed_between_its_renames_is_mended(folder):
    before = model_folder.fingerprint(folder)
    folder.rename(folder.with_name(".policy.replaced"))
    with pytest.raises(InputError, match="no space left"):
        UNTIED.save(folder, tokenizer=Broken())
    assert model_folder.fingerprint(folder) == before


def test_nothing_but_a_model_is_replaced(folder):
    (folder / "thesis.tex").write_text("years of work")
    check_refusal(lambda: GPT2.save(folder), str(folder), "thesis.tex", "choose another folder")
    check_refusal(lambda: GPT2.save(folder / "thesis.tex"), "is a file")
    check_refusal(lambda: GPT2.save(folder / "thesis.tex" / "m"), "cannot be written")
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_saved_files_can_be_read_by_those_who_read_the_folder(folder):
    modes = {file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert modes == {folder.stat().st_mode & 0o666}


# ---------------------------------------------------------------------- hub, tokenizers, identity


def test_a_hub_name_is_fetched(folder, monkeypatch):
    calls = []

    def fetch(name, **patterns):
        calls.append((name, patterns))
        if len(calls) > 1:
            raise huggingface_hub.errors.LocalEntryNotFoundError("offline\nmore of it")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert model_folder.load("someone/gpt2-small").config == GPT2.config
    ((name, patterns),) = calls
    assert name == "someone/gpt2-small"
    assert "*.safetensors" in patterns["allow_patterns"]
    assert not any("bin" in p or p.endswith(".py") for p in patterns["allow_patterns"])
    assert patterns["ignore_patterns"] == ["*/*"]
    words = ("someone/gpt2-small", "hub did not give it", "offline", "correct the path")
    check_load("someone/gpt2-small", *words)


@pytest.mark.parametrize("path", ["/a/b", "./a/b", "../b", "a", "a/b/c", "a//b", "a/.b", "~/b"])
def test_paths_are_never_fetched(path, monkeypatch):
    monkeypatch.setattr(safe_files, "_download", lambda name: pytest.fail(name))
    check_load(path, "no such folder")


def test_tokenizers_that_are_missing_or_broken(folder):
    def load():
        return model_folder.load_tokenizer(folder)

    check_refusal(load, str(folder), "no tokenizer", "tokenizer.json")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    check_refusal(load, str(folder), "tokenizer cannot be read")


def test_fingerprint(folder, tmp_path):
    """Of content and names, not of place, time or files that no model reads."""
    before = model_folder.fingerprint(folder)
    assert re.fullmatch("[0-9a-f]{64}", before)
    copy = pathlib.Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "README.md").write_text("of no matter")
    assert model_folder.fingerprint(copy) == before
    bias = "transformer.ln_f.bias"
    edit_weights(copy, lambda tensors: tensors | {bias: tensors[bias] + np.float32(1e-6)})
    assert model_folder.fingerprint(copy) != before
    shutil.copy(folder / "model.safetensors", copy)
    assert model_folder.fingerprint(copy) == before
    (copy / "merges.txt").write_text("a b")
    assert model_folder.fingerprint(copy) != before
