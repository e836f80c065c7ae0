"""What is refused before anything is computed: networks without heads, labels, given pairs."""

import json
import pathlib

import pytest

from tests.tiny_config import check_refusal, refuse
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import check, plan


@pytest.fixture
def config(tiny):
    config = defaults()
    config.policy.path = str(tiny / "policy")
    config.data.train = config.data.eval = str(tiny / "reviews")
    config.reward.function = "tests.reward_functions:vowels"
    return config


def checked(config):
    plan.plan(config, pathlib.Path("work"))
    return check.check(config, [])


def refused(config, *words):
    check_refusal(lambda: checked(config), *words)


def test_a_judge_or_a_reward_without_a_head(config, tiny):
    words = ("config.json", "architectures", "GPT2ForSequenceClassification")
    with config.unlocked():
        config.judges.gold = {"path": str(tiny / "policy")}
    refused(config, *words)
    with config.unlocked():
        del config.judges.gold
    config.reward.function, config.reward.path = "", str(tiny / "policy")
    refused(config, *words)


def test_a_policy_that_is_none(config, tmp_path):
    config.policy.path = str(tmp_path)
    refused(config, str(tmp_path), "config.json")


def test_a_label_that_a_stage_will_not_have(config, tmp_path):
    """A model of preferences has one score, LABEL_0."""
    rows = tmp_path / "train.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}) + "\n")
    config.reward.function, config.reward.path = "", "stage:scored"
    with config.unlocked():
        config.stages.scored = {
            "base": config.policy.path,
            "method": "reward_model",
            "data": {"train": str(rows), "label_field": ""},
        }
    refused(config, "reward (stage:scored)", "no label 'POSITIVE'", "0 LABEL_0")
    config.reward.label = "0"
    checked(config)


def test_given_pairs_of_any_cell(config, tmp_path):
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "a"}) + "\n")
    config.pairs.path = str(rows)
    config.methods = ("vbon", "dpo")
    refused(config, "pairs.jsonl: line 1: chosen and rejected are equal", "pairs.on_tie=drop")


@pytest.mark.slow
def test_a_comparison_is_refused_before_its_stages(tiny, tmp_path):
    """In one line, and nothing was made."""
    arguments = ["--config", "configs/demo.py", f"--config.reward.path={tiny / 'policy'}"]
    refuse("architectures", "compare", "--workdir", tmp_path / "work", *arguments)
    assert not (tmp_path / "work").exists()


def test_a_configuration_without_data_or_models(config):
    config.policy.path = config.data.eval = ""
    refused(config, "config.data.eval, config.policy.path: nothing is given", "configs/demo.py")
    config.method, config.reward.function = "sft", ""
    run = plan.single(config, pathlib.Path("work"))
    check_refusal(lambda: check.check_text(config, run), "config.policy.path: nothing")
    config.reward.path, config.reward.function = "both", "tests.reward_functions:vowels"
    refused(config, "reward.path and reward.function are both given")


def test_prompts_of_given_pairs_and_of_stages_are_not_held_out(config, tiny, tmp_path):
    """Whichever run reads the pairs, and whatever a program trains: one set for the directory."""
    tokenizer = model_folder.load_tokenizer(tiny / "policy")

    def held_out():
        return prompt_sets.make_sets(config, check.check(config, []), tokenizer, 40).eval

    config.data.eval_limit = 0
    before = held_out()
    pairs = [{"prompt": text, "chosen": "a", "rejected": "b"} for text in before.texts[:3]]
    files.write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with config.unlocked():
        config.by_method.dpo = {"pairs": {"path": str(tmp_path / "pairs.jsonl")}}
    config.methods = ("vbon", "dpo")
    assert not {row["prompt"] for row in pairs} & set(held_out().texts)
    assert held_out().learned == before.learned + 3
    learned = [{"text": text} for text in before.whole[4:6]]
    files.write_jsonl(tmp_path / "train.jsonl", learned)
    with config.unlocked():
        config.stages.sft = {"base": str(tiny / "policy"), "data": {"train": str(tmp_path)}}
    assert not {row["text"] for row in learned} & set(held_out().whole)
    assert held_out().learned == before.learned + 5
