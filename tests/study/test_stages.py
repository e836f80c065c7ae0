"""Stages: refusals, models that are trained once, and both papers' tasks end to end."""

import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

from configs import demo, hh, tldr
from tests import families, toy_tasks
from tests.cases import tokenizers as cases
from tests.cases import unread_keys
from tests.documents import documented
from tests.tiny_config import check_refusal, succeed, write_times
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets, sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import check, materials, plan, stages
from vbon_jax.workdir import results

SIZES = {
    "data.train_limit": 16,
    "data.eval_limit": 8,
    "references.samples_per_prompt": 8,
    "sampling.max_new_tokens": 8,
    "budget.sampled_tokens": 1600,
    "train.steps": 2,
    "train.batch_size": 8,
    "evaluation.samples_per_prompt": 2,
    "evaluation.resamples": 50,
    "evaluation.ruler_n": "1,2,4",
    "evaluation.temperatures": 1.0,
    "n_values": 2,
}
STAGES = {"sft": 4, "reward_model": 3, "judge": 3}
SMALL_STAGES = {f"stages.{name}.train.steps": steps for name, steps in STAGES.items()} | {
    f"stages.{name}.train.batch_size": 8 for name in STAGES
}
SMALL_STAGES |= {f"stages.{name}.network.num_hidden_layers": 1 for name in ("sft", "judge")}


def arguments(config: str, workdir, folders: dict, **changes) -> list[str]:
    """The README's command with a configuration, its folders filled in, as a run of seconds."""
    (printed,) = (line for line in documented() if f"--config {config} " in line)
    printed = printed.replace(f"runs/{printed.partition(' runs/')[2].split()[0]}", str(workdir))
    for name, folder in folders.items():
        printed = re.sub(rf"={name}\b", f"={folder}", printed)
    values = SIZES | changes
    if config.endswith("small"):
        values |= SMALL_STAGES | changes
    sizes = [f"--config.{key}={value}" for key, value in values.items()]
    return [*shlex.split(printed)[3:], *sizes]  # without python -m experiments.compare


@pytest.fixture(scope="module")
def posts(tmp_path_factory):
    return toy_tasks.make_tldr(tmp_path_factory.mktemp("tldr"), posts=160)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    return toy_tasks.make_hh(tmp_path_factory.mktemp("hh"), dialogues=120)


def models(workdir) -> dict:
    """The models that the stages of a working directory trained, by the names of the README."""
    names = {"POLICY": "sft", "REWARD": "reward_model", "JUDGE": "judge"}
    return {name: workdir / "stages" / stage / "model" for name, stage in names.items()}


def check_stages(workdir, family: str) -> None:
    """Each stage was trained, measured and saved, the judge larger than the others."""
    for name in STAGES:
        measures = json.loads((workdir / "stages" / name / "evaluation.json").read_text())
        measure = "perplexity" if name == "sft" else "accuracy"
        assert measures[measure]["lo"] <= measures[measure]["value"] <= measures[measure]["hi"]
        saved = json.loads((workdir / "stages" / name / "model" / "config.json").read_text())
        assert saved["model_type"] == family
    policy = model_folder.load(workdir / "stages" / "sft" / "model", kind="decoder")
    reward = model_folder.load(workdir / "stages" / "reward_model" / "model", kind="classifier")
    assert reward.config.width == policy.config.width
    judge = model_folder.load(workdir / "stages" / "judge" / "model", kind="classifier")
    assert judge.config.width > policy.config.width


def check_comparison(workdir, methods: set[str]) -> list[dict]:
    """Every method is in the results and was judged; the page shows the stages. The results."""
    rows = results.read_results(workdir / "results.csv")
    trained = {row["method"] for row in rows} - {"reference", "best_of_n", "soft_best_of_n"}
    assert trained == methods
    judged = (workdir / "judges.csv").read_text()
    assert all(method in judged for method in trained)
    assert "Models trained first" in (workdir / "report.html").read_text()
    return rows


def check_given(recipe, rows: dict, trained, folder) -> None:
    """With given models in place of stages the same task scores, and trains no stage."""
    config = recipe.get_config()
    config.update_from_flattened_dict(
        rows | {"data.train_limit": 16, "data.eval_limit": 8, "sampling.max_new_tokens": 8}
    )
    given = {name: str(path) for name, path in models(trained).items()}
    config.policy.path, config.reward.path = given["POLICY"], given["REWARD"]
    config.judges.judge.path = given["JUDGE"]
    plan.plan(config, folder)
    rows = check.check(config, [])
    paths = stages.make(config, folder)
    assert paths == (given["POLICY"], given["REWARD"], {"judge": given["JUDGE"]})
    assert not folder.exists()
    shared = materials.load(config, folder, paths, rows)
    scores = shared.scorer(shared.eval_prompts)([0, 1], [[5, 6], [7]])
    assert scores.shape == (2,)
    assert np.isfinite(scores).all()


@pytest.mark.slow
def test_summaries_from_nothing(posts, tmp_path):
    """From rows to the report, in and out of distribution; a second call trains nothing again."""
    expected = ("vbon", "bonbon", "dpo", "kl_rl", "bon_sft")
    assert tldr.get_config("small,ood").methods == expected == tldr.get_config().methods
    folders = {"POSTS": posts / "posts", "PREFERENCES": posts / "preferences"}
    workdir = tmp_path / "small"
    two = {"methods": "vbon,bonbon", "evaluation.temperatures": "0.5,1.0"}
    command = arguments("configs/tldr.py:small", workdir, folders, **two)
    command[command.index("configs/tldr.py:small")] += ",ood"
    done = succeed("compare", *command)
    rows = check_comparison(workdir, {"vbon", "bonbon"})
    assert {row["temperature"] for row in rows if row["method"] == "vbon"} == {0.5, 1.0}
    check_stages(workdir, "gpt_neox")
    with (posts / "posts" / "train.jsonl").open() as file:
        named = {row["prompt"] for row in map(json.loads, file) if "relation" in row["subreddit"]}
    counted = int(re.search(r"train prompts: \d+ distinct of (\d+) rows", done.stderr)[1])
    assert counted == len(named)
    stamps = write_times(workdir, "stages/**/*.safetensors")
    assert len(stamps) >= 3
    stages.make(from_posts(posts, arg="small,ood"), workdir)
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    rows = {f"data.{split}": str(posts / "posts") for split in ("train", "eval")}
    check_given(tldr, rows, workdir, tmp_path / "given")


@pytest.mark.slow
def test_dialogue_from_nothing(dialogues, tmp_path):
    folders = {"PROMPTS": dialogues / "prompts", "DIALOGUES": dialogues / "dialogues"}
    workdir = tmp_path / "small"
    command = arguments("configs/hh.py:small", workdir, folders, methods="bonbon")
    succeed("compare", *command)
    check_comparison(workdir, {"bonbon"})
    check_stages(workdir, "llama")
    rows = {f"data.{split}": str(dialogues / "prompts") for split in ("train", "eval")}
    check_given(hh, rows | {"data.longest_prompt": 160}, workdir, tmp_path / "given")


def configured(recipe, arg="small", **changes):
    """A recipe's small configuration with few steps and these changes, `__` for a dot."""
    config = recipe.get_config(arg)
    values = SMALL_STAGES | {key.replace("__", "."): str(value) for key, value in changes.items()}
    config.update_from_flattened_dict(values)
    return config


@pytest.mark.slow
def test_real_dialogues(shared, tmp_path):
    """Answers in their prompts become preferences, and the prompts are prompts."""
    prompts = shared / "data" / "hh" / "prompts.jsonl"
    toy_tasks.make_hh_from(prompts, tmp_path)
    rows = {f"stages__sft__data__{split}": tmp_path / "dialogues" for split in ("train", "eval")}
    config = configured(hh, data__train=prompts, data__eval=prompts, **rows)
    config.data.train_limit, config.data.eval_limit = 16, 8
    rows = check.check(config, [])
    tokenizer = model_folder.load_tokenizer(stages.train(config, tmp_path, "sft"))
    train, held_out, _ = prompt_sets.make_sets(config, rows, tokenizer, config.data.longest_prompt)
    assert (len(train.texts), len(held_out.texts)) == (16, 8)
    assert not set(train.token_ids) & set(held_out.token_ids)


# ---------------------------------------------------------------------------------------- refusals


def refused(change, *words):
    """The configuration after a change is refused, in one line with these words."""
    config = tldr.get_config("small")
    with config.unlocked():
        config.stages.reward_model.data.train = "somewhere"
        config.data.train = "somewhere"
        change(config)
    check_refusal(lambda: stages.check(config), *words)


def test_settings_that_cannot_be():
    refused(lambda c: c.stages.sft.update(method="vbon"), "stages.sft.method='vbon'", "sft")
    refused(lambda c: c.stages.sft.update(base="x"), "stages.sft", "base", "network")
    refused(lambda c: c.stages.sft.__delattr__("network"), "stages.sft", "base", "network")
    refused(lambda c: c.stages.sft.data.update(train=""), "stages.sft.data.train is empty")
    refused(lambda c: c.stages.__setattr__("extra", 3), "stages.extra is 3", "dictionary")
    refused(lambda c: c.stages.sft.train.update(step=3), "stages.sft", "train.step")
    refused(lambda c: c.stages.sft.train.update(seed="x"), "train.seed")
    refused(lambda c: c.stages.sft.train.update(steps=0), "train.steps=0", "from 1")
    centring = "reward_model.centring=-1.0"
    refused(lambda c: c.stages.reward_model.reward_model.update(centring=-1.0), centring)
    refused(lambda c: c.stages.reward_model.update(base="stage:dpo"), "no 'dpo'", "judge")
    refused(lambda c: c.stages.judge.update(init_seed="x"), "stages.judge.init_seed='x'", "whole")
    for key, value in (("init_seed", -1), ("init_seed", 2**32), ("vocab_size", 0)):
        refused(
            lambda c, k=key, v=value: c.stages.judge.update({k: v}), f"judge.{key}={value}: give"
        )
    refused(lambda c: c.stages.sft.train.update(trainable="last:1"), "a fresh network is trained")
    refused(
        lambda c: c.stages.sft.train.update(beta1="many"), "train.beta1='many' is str, not float"
    )


@pytest.mark.parametrize("keys", unread_keys.STAGE)
def test_a_key_that_a_stage_does_not_read_is_refused(keys):
    ((group, inner),) = keys.items()
    refused(lambda c: c.stages.sft.update(keys), "stages.sft", f"{group}.{next(iter(inner))}")


def test_a_stage_has_the_defaults_of_every_run():
    config = defaults()
    with config.unlocked():
        config.stages.sft = {"base": "FOLDER", "data": {"train": "rows"}}
    run, default = stages.read(config, "sft").run, defaults()
    default.method, default.data.train = "sft", "rows"
    assert run.to_dict() == default.to_dict()


def test_a_stage_in_the_wrong_place():
    words = ("config.policy.path='stage:judge'", "method reward_model", "sft")
    refused(lambda c: c.policy.update(path="stage:judge"), *words)
    refused(lambda c: c.judges.judge.update(path="stage:sft"), "judges.judge.path", "method sft")
    adapters = {"lora": {"pattern": ".*"}}
    words = ("stages.judge", "policy.lora", "base")
    refused(lambda c: c.stages.judge.update(policy=adapters), *words)


def from_posts(posts, **changes):
    """The configuration of a comparison from posts and preferences, models of few steps."""
    folders = {"data": posts / "posts", "stages__reward_model__data": posts / "preferences"}
    both = {f"{key}__{split}": folders[key] for key in folders for split in ("train", "eval")}
    return configured(tldr, **both | changes)


@pytest.mark.slow
def test_a_stage_of_adapters_is_merged(posts, tmp_path):
    """Only what the pattern names has moved, and the new head."""
    config = from_posts(posts)
    with config.unlocked():
        config.stages.reward_model.policy = {"lora": {"pattern": r"layer_0/attention/query"}}
    config.judges.judge.path = "stage:reward_model"
    before = config.to_dict()
    paths = stages.make(config, tmp_path)
    assert config.to_dict() == before
    folder = tmp_path / "stages"
    reward = str(folder / "reward_model" / "model")
    assert paths == (str(folder / "sft" / "model"), reward, {"judge": reward})
    params = model_folder.load(reward, kind="classifier").params
    base = model_folder.load(tmp_path / "stages" / "sft" / "model", kind="decoder").params
    assert params.pop("score")["kernel"].shape == (64, 1)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), params,
                         {name: base[name] for name in params})  # fmt: skip
    assert moved["layer_0"]["attention"]["query"].pop("kernel")
    assert not any(jax.tree.leaves(moved))


@pytest.mark.slow
def test_a_stage_keeps_all_ends_and_writes_the_templates(tmp_path):
    """A folder with Llama 3's list, of which the first is not the end of a turn."""
    tokenizer = cases.gpt2()
    tokenizer.chat_template = cases.TURNS
    base = families.network("gpt2", {"n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 420})
    base.save(tmp_path / "base", tokenizer=tokenizer, eos_token_ids=(2, 5))
    rows = [{"prompt": "it is", "completion": " so"}, {"prompt": "so it", "completion": " is"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = defaults()
    with config.unlocked():
        config.stages.sft = {
            "base": str(tmp_path / "base"),
            "data": {"train": str(tmp_path / "rows.jsonl"), "field": "prompt"},
            "train": {"steps": 1, "batch_size": 8, "text_tokens": 16},
        }
        config.stages.sft.data.completion_field = "completion"
    folder = pathlib.Path(stages.train(config, tmp_path / "work", "sft"))
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text())["eos_token_id"] == [2, 5]
    stage = stages.read(config, "sft")
    start = stages._from_base(stage, sources.read(tmp_path / "rows.jsonl"))
    assert start.ends == ((2, 5), 5)


def test_a_stage_that_begins_with_itself():
    def circle(config):
        del config.stages.sft.network
        config.stages.sft.base = "stage:reward_model"

    refused(circle, "begins with itself")


def test_what_a_stage_inherits_and_sets():
    config = hh.get_config("small")
    with config.unlocked():
        config.stages.sft.data.train = "dialogues"
        config.train.trainable = "decoder/.*"
        config.train.learning_rate = 9.0
    stage = stages.read(config, "judge")
    assert stage.network["hidden_size"] == 96
    run = stage.run
    assert run.data.train == "dialogues"  # follows the policy's data
    assert run.method == "reward_model"
    assert run.train.learning_rate == 2e-3
    assert run.train.trainable == ""
    assert (run.train.warmup_updates, run.train.epochs, run.train.minibatches) == (10, 1, 1)
    default = defaults()
    assert run.train.max_gradient_norm == default.train.max_gradient_norm
    with pytest.raises(ValueError, match="not known"):
        hh.get_config("large")
    with pytest.raises(ValueError, match="'large' is not small or ood"):
        tldr.get_config("small,large")


@pytest.mark.slow
def test_rows_longer_than_the_network(posts, tmp_path):
    """Refused by name before anything is trained."""
    config = from_posts(posts)
    config.stages.sft.train.text_tokens = 400
    check_refusal(lambda: stages.make(config, tmp_path), "text_tokens=400", "192 positions")
    assert not (tmp_path / "stages" / "sft" / "run").exists()


@pytest.mark.parametrize(
    ("key", "row", "words"),
    [
        ("stages.reward_model.data.eval", {"chosen": "b"}, ["line 1", "'rejected'"]),
        (
            "stages.reward_model.data.train",
            {"chosen": "b", "rejected": "b"},
            ["line 1", "chosen and rejected are equal", "pairs.on_tie=drop"],
        ),
        ("data.train", {"completion": " ", "subreddit": "relationships"}, ["empty"]),
        ("data.eval", {"subreddit": "relationships"}, ["line 1", "'completion'"]),
        ("data.eval", {"completion": "b"}, ["'subreddit'"]),
    ],
)
def test_bad_rows_of_any_stage_are_found_before_the_first(posts, tmp_path, key, row, words):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "a"} | row) + "\n")
    config = from_posts(posts, **{key.replace(".", "__"): file})
    check_refusal(lambda: check.check(config, []), "rows.jsonl", *words)


@pytest.mark.slow
def test_one_held_out_row_has_no_interval(posts, tmp_path):
    file = tmp_path / "rows.jsonl"
    row = {"prompt": "a", "completion": "b", "subreddit": "relationships"}
    file.write_text(json.dumps(row) + "\n")
    config = from_posts(posts, data__eval=file)
    check_refusal(lambda: stages.train(config, tmp_path, "sft"), "1 held-out rows are left")


@pytest.mark.slow
def test_held_out_rows_of_a_stage_are_none_that_it_learns_from(posts, tmp_path, caplog):
    """Its accuracy would be that of what it has seen."""
    rows = files.read_jsonl(posts / "preferences" / "train.jsonl")
    config = from_posts(posts)
    stage = stages.read(config, "reward_model")
    stage.run.data.train, stage.run.data.eval = (str(tmp_path / f"{n}.jsonl") for n in "ab")
    files.write_jsonl(tmp_path / "a.jsonl", rows[:20])
    files.write_jsonl(tmp_path / "b.jsonl", rows[15:25])
    folder = stages.train(config, tmp_path, "sft")
    table = sources.read_split(stage.run.data, "train")
    start = stages._from_base(stage._replace(base=folder), table)
    learned = stages._rows(stage.run, table, start)
    with caplog.at_level("INFO"):
        held_out = stages._held_out(stage.run, start, learned)
    assert len(held_out.chosen_rt) == 5
    assert "5 held-out rows are left out" in caplog.text
    files.write_jsonl(tmp_path / "b.jsonl", rows[3:21])
    words = "1 held-out rows are left", "rows that the stage does not learn from"
    check_refusal(lambda: stages._held_out(stage.run, start, learned), *words)


@pytest.mark.slow
def test_labels_are_those_that_the_network_names(tmp_path):
    config = demo.get_config()
    assert stages.labels(config, "reward") == ("NEGATIVE", "POSITIVE")
    with config.unlocked():
        del config.stages.reward.network.id2label
    assert stages.labels(config, "reward") == ("LABEL_0", "LABEL_1")
    with config.unlocked():
        config.stages.reward.network.id2label = {"0": "ONE"}
    check_refusal(lambda: stages.labels(config, "reward"), "toy_reviews", "2 classes", "id2label 1")
