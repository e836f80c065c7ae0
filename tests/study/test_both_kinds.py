"""Each path that decoders and encoders both take: a stage, a run, its export, what a run makes."""

import json
import shutil

import jax
import numpy as np
import pytest

from tests.tiny_config import check_refusal, make_reviews, refuse, succeed
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.data import sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import check, plan, stages
from vbon_jax.training import methods

ENCODER = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
ENCODER |= {"intermediate_size": 8, "max_position_embeddings": 40}
NETWORKS = {
    name: {"model_type": name, **ENCODER, **changes}
    for name, changes in {
        "distilbert": {"hidden_dim": 8},
        "bert": {},
        "roberta": {"max_position_embeddings": 44},
        "deberta-v2": {"relative_attention": True, "pos_att_type": ["c2p"]},
        "qwen2": {"num_key_value_heads": 2},
    }.items()
}
TRAIN = {"steps": 2, "batch_size": 8, "text_tokens": 32, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    return make_reviews(tmp_path_factory.mktemp("reviews"))


def configured(reviews, **stages_by_name):
    """A configuration with stages; each has a `network` or a `base`, and a method."""
    config = defaults()
    with config.unlocked():
        for name, keys in stages_by_name.items():
            data = {"train": str(reviews), "over_long": "truncate"}
            shared = {"method": "reward_model", "vocab_size": 300, "train": TRAIN, "data": data}
            config.stages[name] = shared | keys
    return config


def moved(before: dict, after: dict) -> bool:
    """Whether any parameter has changed."""
    differ = jax.tree.map(lambda a, b: (np.asarray(a) != np.asarray(b)).any(), before, after)
    return any(jax.tree.leaves(differ))


@pytest.mark.slow
@pytest.mark.parametrize("family", NETWORKS)
def test_a_stage_of_each_family_is_trained_saved_and_gone_on_with(reviews, tmp_path, family):
    """From nothing, and from that stage's own model; a language model too."""
    method = "sft" if family == "qwen2" else "reward_model"
    first = {"network": NETWORKS[family], "method": method}
    config = configured(reviews, first=first, second={"base": "stage:first", "method": method})
    check.check_stages(config)
    folder = stages.train(config, tmp_path, "second")
    trained = model_folder.load(folder)
    begun = model_folder.load(tmp_path / "stages" / "first" / "model")
    assert trained.config == begun.config
    assert moved(begun.params, trained.params)
    tokenizer = model_folder.load_tokenizer(folder)
    rows = sources.read(reviews).rows[:20]
    texts = [row["text"] for row in rows]
    assert tokenizer(texts)["input_ids"] == stages_tokenizer(tmp_path)(texts)["input_ids"]
    assert trained.config.labels == (("LABEL_0", "LABEL_1") if method == "reward_model" else ())


def stages_tokenizer(workdir):
    """The tokenizer of the first stage."""
    return model_folder.load_tokenizer(workdir / "stages" / "first" / "model")


@pytest.fixture(scope="module")
def run(reviews, tmp_path_factory):
    """A working directory with a run of an encoder that a stage made, beside stages of no use."""
    workdir = tmp_path_factory.mktemp("work") / "here"
    recipe = workdir.parent / "recipe.py"
    first = {"network": NETWORKS["distilbert"], "method": "reward_model", "vocab_size": 300}
    unread = {"network": NETWORKS["qwen2"], "method": "sft", "vocab_size": 300}
    data = {"train": str(reviews), "over_long": "truncate"}
    recipe.write_text(
        "from vbon_jax.config import defaults\n"
        "def get_config(arg=None):\n"
        "    config = defaults()\n"
        "    with config.unlocked():\n"
        f"        config.stages.first = {first | {'train': TRAIN, 'data': data}!r}\n"
        f"        config.stages.unread = {unread | {'train': TRAIN, 'data': data}!r}\n"
        "    return config.lock()\n"
    )
    keys = {"method": "reward_model", "reward.path": "stage:first"}
    keys |= {"data.train": reviews, "data.over_long": "truncate"}
    keys |= {f"train.{name}": value for name, value in TRAIN.items()} | {"train.minibatches": 1}
    options = [f"--config.{name}={value}" for name, value in keys.items()]
    succeed("train", "--config", recipe, "--workdir", workdir, *options)
    return workdir / "runs" / "reward_model-n4-s0"


@pytest.mark.slow
def test_a_run_makes_the_models_that_it_reads(run):
    assert [folder.name for folder in (run.parents[1] / "stages").iterdir()] == ["first"]
    assert not (run.parents[1] / "references").exists()


@pytest.mark.slow
def test_an_encoder_is_exported_wherever_its_directory_was_moved(run, tmp_path):
    workdir = tmp_path / "moved"
    shutil.copytree(run.parents[1], workdir)
    hidden = run.parents[1].rename(run.parents[1].with_name("gone"))
    try:
        moved_run = workdir / "runs" / run.name
        succeed("export", "--run", moved_run, "--output", tmp_path / "out")
    finally:
        hidden.rename(run.parents[1])
    begun = model_folder.load(workdir / "stages" / "first" / "model")
    exported = model_folder.load(tmp_path / "out", kind="classifier")
    assert exported.config == begun.config
    assert moved(begun.params, exported.params)
    # Two tokens that were exchanged since are another tokenizer than the run's.
    file = workdir / "stages" / "first" / "model" / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[-2:]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    file.write_text(json.dumps(content))
    words = "not the reward that"
    refuse(words, "export", "--run", moved_run, "--output", tmp_path / "changed")
    assert not (tmp_path / "changed").exists()
    base = run.parents[1] / "stages" / "first" / "model"
    arguments = ["--run", moved_run, "--output", tmp_path / "again", "--base", base]
    succeed("export", *arguments)


@pytest.mark.slow
def test_what_else_an_export_refuses(run, tmp_path):
    stage = run.parents[1] / "stages" / "first" / "run"
    refuse("the run of a stage", "export", "--run", stage, "--output", tmp_path / "out")


# ---------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [{"text": "a", "label": 1}, {"text": "b", "label": 10**7}],
            "line 2: field 'label' is 10000000",
        ),
        ([{"text": "a", "label": 2**40}], "line 1: field 'label' is 1099511627776"),
        ([{"text": "a"}], "line 1 has no field 'label'"),
        ([{"text": "a", "label": "pos"}], "line 1: field 'label' is str, not int"),
        ([{"text": "a", "label": None}], "line 1: field 'label' is NoneType, not int"),
        ([{"text": "a", "label": 1.0}], "line 1: field 'label' is float, not int"),
    ],
)
def test_no_head_is_made_from_rows_that_are_not_in_order(tmp_path, rows, words):
    """Nor are the labels of a reward's stage read from them."""
    file = tmp_path / "rows.jsonl"
    files.write_jsonl(file, rows)
    config = configured(file, first={"network": NETWORKS["bert"]})
    check_refusal(lambda: stages.labels(config, "first"), "rows.jsonl", words)
    check_refusal(lambda: check.check_stages(config), "rows.jsonl", words)


@pytest.mark.parametrize(("highest", "kind"), [(2, "stage"), (5, "stage"), (2, "run"), (2, "held")])
def test_labels_are_among_those_of_the_classifier(shared, tmp_path, highest, kind):
    """Whether it is given or its head is made for the training rows."""
    given = str(shared / "models" / "distilbert-imdb-mini")
    file, few = tmp_path / "rows.jsonl", tmp_path / "few.jsonl"
    files.write_jsonl(file, [{"text": "a", "label": n} for n in range(1, highest + 1)])
    files.write_jsonl(few, [{"text": "a", "label": n} for n in range(2)])
    words = ("rows.jsonl", "line 2", "classes are 0 to 1")
    if kind == "stage":
        config = configured(file, first={"base": given})
        check_refusal(lambda: check.check_stages(config), *words)
    elif kind == "held":
        rows = {"train": str(few), "eval": str(file)}
        config = configured(few, first={"network": NETWORKS["bert"], "data": rows})
        check_refusal(lambda: check.check_stages(config), *words)
    else:
        config = defaults()
        config.method, config.reward.path, config.data.train = "reward_model", given, str(file)
        single = plan.single(config, tmp_path)
        check_refusal(lambda: check.check_text(config, single), *words)


def test_what_each_method_trains_is_a_key_of_the_configuration():
    config = defaults()
    assert {method.model for method in methods.METHODS.values()} == {"policy", "reward"}
    assert all(config[method.model].path == "" for method in methods.METHODS.values())
