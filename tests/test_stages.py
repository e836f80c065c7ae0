"""Stages: what is refused, models that are made once, and both papers' tasks end to end."""

import json
import re

import jax
import numpy as np
import pytest

from configs import base, hh, tldr
from experiments import results, stages
from tests import made
from tests.tiny import program
from vbon_jax.models import hub
from vbon_jax.types import InputError

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


def arguments(config: str, workdir, data: dict, **changes) -> list[str]:
    """A run of seconds of a configuration that makes all its models."""
    values = SIZES | {f"stages.{name}.train.steps": steps for name, steps in STAGES.items()}
    values |= data | changes
    sizes = [f"--config.{key}={value}" for key, value in values.items()]
    return ["compare", "--config", config, "--workdir", workdir, *sizes]


@pytest.fixture(scope="module")
def posts(tmp_path_factory):
    return made.make_tldr(tmp_path_factory.mktemp("tldr"), posts=160)


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory):
    return made.make_hh(tmp_path_factory.mktemp("hh"), dialogues=120)


def tldr_data(folder) -> dict:
    return {
        "data.train": folder / "posts",
        "data.eval": folder / "posts",
        "stages.reward_model.data.train": folder / "preferences",
        "stages.reward_model.data.eval": folder / "preferences",
    }


def hh_data(folder) -> dict:
    return {
        "data.train": folder / "prompts",
        "data.eval": folder / "prompts",
        "stages.sft.data.train": folder / "dialogues",
        "stages.sft.data.eval": folder / "dialogues",
    }


def check_comparison(workdir, family: str, methods: set[str]) -> None:
    """Every method stands in the results, the judge has judged, and each stage was measured."""
    rows = results.read_results(workdir / "results.csv")
    trained = {row["method"] for row in rows} - {"reference", "best_of_n", "soft_best_of_n"}
    assert trained == methods
    judged = (workdir / "judges.csv").read_text()
    assert all(method in judged for method in trained)
    page = (workdir / "report.html").read_text()
    assert "Models made on the way" in page
    for name in STAGES:
        found = json.loads((workdir / "stages" / name / "evaluation.json").read_text())
        measure = "perplexity" if name == "sft" else "accuracy"
        assert found[measure]["lo"] <= found[measure]["value"] <= found[measure]["hi"]
        settings = json.loads((workdir / "stages" / name / "model" / "config.json").read_text())
        assert settings["model_type"] == family
    policy = hub.load(workdir / "stages" / "sft" / "model", kind="decoder")
    reward = hub.load(workdir / "stages" / "reward_model" / "model", kind="classifier")
    assert reward.config.width == policy.config.width
    judge = hub.load(workdir / "stages" / "judge" / "model", kind="classifier")
    assert judge.config.width > policy.config.width


def test_summaries_from_nothing(posts, tmp_path):
    """From rows to the report, in and out of distribution; a second call makes nothing again."""
    command = arguments("configs/tldr.py:small,ood", tmp_path, tldr_data(posts))
    done = program(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    check_comparison(tmp_path, "gpt_neox", {"vbon", "bonbon", "dpo", "kl_rl", "bon_sft"})
    with (posts / "posts" / "train.jsonl").open() as file:
        named = {row["prompt"] for row in map(json.loads, file) if "relation" in row["subreddit"]}
    counted = int(re.search(r"train prompts: \d+ distinct of (\d+) rows", done.stderr)[1])
    assert counted == len(named)
    stamps = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.safetensors")
    }
    again = program(*command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout == done.stdout
    assert stamps == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "stages").rglob("*.safetensors")
    }


def test_dialogue_from_nothing(dialogues, tmp_path):
    few = {"methods": "bonbon"}  # the test above has all
    done = program(*arguments("configs/hh.py:small", tmp_path, hh_data(dialogues), **few))
    assert done.returncode == 0, done.stderr[-3000:]
    check_comparison(tmp_path, "llama", {"bonbon"})


# ---------------------------------------------------------------------------------------- refusals


def refused(change, *words, config=None):
    """The configuration after a change is refused, in one line with these words."""
    config = config or tldr.get_config("small")
    with config.unlocked():
        config.stages.reward_model.data.train = "somewhere"
        config.data.train = "somewhere"
        change(config)
    with pytest.raises(InputError) as error:
        stages.check(config)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def _with(config):
    """A configuration with the keys that `refused` fills in."""
    with config.unlocked():
        config.stages.reward_model = {"base": "x", "data": {"train": ""}}
    return config


def test_settings_that_cannot_be():
    refused(lambda c: c.stages.sft.update(method="vbon"), "stages.sft.method='vbon'", "sft")
    refused(lambda c: c.stages.sft.update(base="x"), "stages.sft", "base", "network")
    refused(lambda c: c.stages.sft.__delattr__("network"), "stages.sft", "base", "network")
    refused(lambda c: c.stages.sft.data.update(train=""), "stages.sft.data.train is empty")
    refused(lambda c: c.stages.__setattr__("extra", 3), "stages.extra is 3", "dictionary")
    refused(lambda c: c.stages.sft.train.update(step=3), "stages.sft", "train.step")
    refused(lambda c: c.stages.sft.train.update(seed="x"), "train.seed")
    refused(lambda c: c.stages.sft.train.update(steps=0), "train.steps=0", "from 1")
    refused(
        lambda c: c.stages.reward_model.reward_model.update(centring=-1.0),
        "reward_model.centring=-1.0",
    )
    refused(lambda c: c.stages.reward_model.update(base="stage:dpo"), "no 'dpo'", "judge")
    strings = base.get_config()
    with strings.unlocked():
        strings.stages.one = {"base": "x", "train": {"steps": "many"}}
    refused(lambda c: None, "train.steps='many' is str, not int", config=_with(strings))


def test_a_stage_in_the_wrong_place():
    refused(
        lambda c: c.policy.update(path="stage:judge"),
        "config.policy.path='stage:judge'", "method reward_model", "sft",
    )  # fmt: skip
    refused(lambda c: c.judges.judge.update(path="stage:sft"), "judges.judge.path", "method sft")
    refused(
        lambda c: c.stages.judge.update(policy={"lora": {"pattern": ".*"}}),
        "stages.judge", "policy.lora", "base",
    )  # fmt: skip


def test_a_stage_of_adapters_is_merged(posts, tmp_path):
    """Only what the pattern names has moved, and the new head."""
    config = tldr.get_config("small")
    config.data.train = str(posts / "posts")
    config.stages.reward_model.data.train = str(posts / "preferences")
    with config.unlocked():
        for name, steps in STAGES.items():
            config.stages[name].train.steps = steps
        config.stages.reward_model.policy = {"lora": {"pattern": r"layer_1/attention/query"}}
    folder = stages.make(config, tmp_path, "reward_model")
    made = hub.load(folder, kind="classifier").params
    base = hub.load(tmp_path / "stages" / "sft" / "model", kind="decoder").params
    assert made.pop("score")["kernel"].shape == (64, 1)
    moved = jax.tree.map(lambda a, b: bool((np.asarray(a) != np.asarray(b)).any()), made,
                         {name: base[name] for name in made})  # fmt: skip
    assert moved["layer_1"]["attention"]["query"].pop("kernel")
    assert not any(jax.tree.leaves(moved))


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
    own, run = stages.settings(config, "judge")
    assert own.network.hidden_size == 96
    assert run.data.train == "dialogues"  # follows the policy's data
    assert run.method == "reward_model"
    assert run.train.learning_rate == 2e-3
    assert run.train.trainable == ""
    assert run.train.warmup_updates == 10
    defaults = base.get_config()
    assert run.train.max_gradient_norm == defaults.train.max_gradient_norm
    with pytest.raises(ValueError, match="not known"):
        hh.get_config("large")
    with pytest.raises(ValueError, match="'large' is not small or ood"):
        tldr.get_config("small,large")


def test_rows_longer_than_the_network(posts, tmp_path):
    """Refused by name before anything is trained."""
    data = tldr_data(posts)
    long = {"stages.sft.train.text_tokens": 400}
    done = program(*arguments("configs/tldr.py:small", tmp_path / "long", data, **long))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "text_tokens=400" in last
    assert "192 positions" in last
    assert not (tmp_path / "long" / "stages" / "sft" / "run").exists()


@pytest.mark.parametrize(
    ("key", "row", "words"),
    [
        ("stages.reward_model.data.eval", {"prompt": "a", "chosen": "b"}, ["line 1", "'rejected'"]),
        (
            "stages.reward_model.data.train",
            {"prompt": "a", "chosen": "b", "rejected": "b"},
            ["line 1", "chosen and rejected are equal", "pairs.on_tie=drop"],
        ),
        ("data.train", {"prompt": "a", "completion": " ", "subreddit": "relationships"}, ["empty"]),
        ("data.eval", {"text": "a", "subreddit": "relationships"}, ["line 1", "'completion'"]),
        ("data.eval", {"prompt": "a", "completion": "b"}, ["'subreddit'"]),
        (
            "data.eval",
            {"prompt": "a", "completion": "!", "subreddit": "relationships"},
            ["line 1", "'completion'", "a text with words"],
        ),
    ],
)
def test_bad_rows_of_any_stage_are_found_before_the_first(posts, tmp_path, key, row, words):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    data = tldr_data(posts) | {key: file}
    done = program(*arguments("configs/tldr.py:small", tmp_path / "work", data))
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    for word in [*words, "rows.jsonl"]:
        assert word in last, last
    assert not (tmp_path / "work" / "stages").exists()
