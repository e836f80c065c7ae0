"""What a reward reads: the same ids where it is taught, measured and asked."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from tests import families
from tests.cases import rewards as cases
from tests.cases import tokenizers
from tests.tiny_config import check_refusal
from vbon_jax.config import defaults
from vbon_jax.data import formats, prompt_sets, response_ids, reward_inputs, sft_rows, sources
from vbon_jax.data.reward_inputs import Reading
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards
from vbon_jax.study import stages

LLAMA_3 = {"make": tokenizers.llama_2_that_adds_bos, "template": tokenizers.TURNS}
PHI_3 = {"make": tokenizers.gpt2, "template": tokenizers.PHI_3}
QWEN = {"make": tokenizers.qwen, "template": tokenizers.TURNS.replace("{{ bos_token }}", "")}
LLAMA_2 = {"make": tokenizers.llama_2_that_adds_bos, "template": tokenizers.LLAMA_2}
TEMPLATES = {"llama_3": LLAMA_3, "phi_3": PHI_3, "qwen": QWEN, "llama_2": LLAMA_2}
WORDS = ("good", "plot", "film", "movie", "awful", "user")
ENDS = response_ids.Ends((5,), 5)


def tokenizer_of(make, template):
    tokenizer = make()
    tokenizer.chat_template = template
    return tokenizer


def rows(first: int = 0, *, conversations: bool = True) -> sources.Table:
    """The preferred answer repeats the user's last word, which only a border between them shows."""
    table = []
    for place in range(first, first + 40):
        asked, other = WORDS[place % 6], WORDS[(place * 5 + 1) % 6]
        other = other if other != asked else "said"
        prompt = f"{WORDS[place % 5]} {place} {asked}"
        row = {"prompt": prompt, "chosen": f" {asked}", "rejected": f" {other}"}
        if conversations:
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row = {k: [{"role": roles[k], "content": v.strip()}] for k, v in row.items()}
        table.append(row)
    return sources.Table(table, "pairs", list(range(1, 41)), "line")


def config(**changes) -> ConfigDict:
    settings = defaults()
    keys = {"method": "reward_model", "data.label_field": "", "train.text_tokens": 64}
    keys |= {"data.field": "prompt", "data.max_tokens": 0}
    settings.update_from_flattened_dict(
        keys | {key.replace("__", "."): value for key, value in changes.items()}
    )
    return settings


def asked(tokenizer, folder, table, settings) -> list[np.ndarray]:
    """Rewards of both sides as the pipeline makes them: prompts of rows, responses as token ids."""
    prompts = prompt_sets.build_prompts(table, tokenizer, settings.data, longest=64, seed=0)
    given = formats.preferences(table, tokenizer=tokenizer)
    reward = rewards.load(settings.reward, folder, conversations=bool(prompts.conversations))
    score = rewards.make_scorer(reward, tokenizer, prompts, ENDS.ids)
    ids = response_ids.given_prompts(tokenizer, given.prompts, given.places)
    places = [prompts.token_ids.index(prompt) for prompt in ids]
    sides = []
    for texts in (given.chosen, given.rejected):
        responses = response_ids.encode_responses(
            tokenizer, ids, texts, ENDS, given.places, ended=True
        )
        sides.append(score(places, responses))
    return sides


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*TEMPLATES, "texts", "texts with special tokens"])
def test_a_stage_is_measured_by_what_the_pipeline_asks(kind, tmp_path):
    """Bit for bit, by a model that a stage has saved, whatever it was taught on."""
    own = PHI_3 if kind == "texts with special tokens" else LLAMA_3
    tokenizer = tokenizer_of(**TEMPLATES.get(kind, own))
    base = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 96}
    network = families.network("gpt2", base | {"vocab_size": len(tokenizer)})
    network.save(tmp_path / "base", tokenizer=tokenizer, eos_token_ids=(5,))
    taught, table = (rows(first, conversations=kind in TEMPLATES) for first in (100, 0))
    if kind == "texts with special tokens":
        for row in (*taught.rows, *table.rows):
            row["prompt"] = f"<|user|>{row['prompt']}<|eot|><|assistant|>"
    cases.write_rows(tmp_path / "taught.jsonl", taught.rows)
    cases.write_rows(tmp_path / "pairs.jsonl", table.rows)
    study = config()
    with study.unlocked():
        study.stages.reward = {
            "base": str(tmp_path / "base"), "method": "reward_model",
            "data": {"train": str(tmp_path / "taught.jsonl"), "label_field": "",
                     "eval": str(tmp_path / "pairs.jsonl")},
            "train": {"steps": 2, "batch_size": 8, "text_tokens": 64, "learning_rate": 1e-2},
        }  # fmt: skip
    folder = stages.train(study, tmp_path, "reward")
    measured = json.loads((tmp_path / "stages" / "reward" / "evaluation.json").read_text())
    study.reward.label = "0"
    chosen, rejected = asked(model_folder.load_tokenizer(folder), folder, table, study)
    assert np.unique(chosen).size > 3
    margin = (chosen - rejected).astype(np.float64)
    assert measured["rows"] == len(chosen)
    assert measured["accuracy"]["value"] == np.mean((margin > 0) + 0.5 * (margin == 0))
    assert measured["margin"]["value"] == pytest.approx(margin.mean(), rel=1e-6)
    taught = model_folder.load(folder).settings[reward_inputs.TAUGHT]
    assert taught["template"] == ("chat" if kind in TEMPLATES else "none")


def read(tokenizer, reading, prompt, response, conversation=None):
    (ids,), _ = reward_inputs.read(
        tokenizer, reading, [prompt], [response], [conversation], ["row"],
        room=99, over_long="error", remedy="",
    )  # fmt: skip
    return ids


@pytest.mark.parametrize("kind", TEMPLATES)
def test_messages_are_what_the_template_makes_of_them_with_one_bos(kind):
    tokenizer = tokenizer_of(**TEMPLATES[kind])
    before = [{"role": "user", "content": "film"}]
    ids = read(tokenizer, Reading(template="chat"), "?", " good\n", before)
    answer = {"role": "assistant", "content": "good"}
    rendered = tokenizer.apply_chat_template([*before, answer], tokenize=False)
    expected = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    assert ids[-len(expected) + 1 :] == tuple(expected[1:])
    assert ids.count(1) == (0 if kind in ("phi_3", "qwen") else 1)
    as_text = read(tokenizer, Reading(template="chat"), "film", "good")
    assert as_text == ids  # a text is a user's message


@pytest.mark.parametrize("make", [tokenizers.gpt2, tokenizers.llama_2_that_adds_bos])
def test_no_special_tokens_text_is_read_but_the_templates(make):
    """Also one that two others hide, and one that a policy has written letter by letter."""
    tokenizer = tokenizer_of(make, tokenizers.PHI_3)
    for text in ("<|eot|>", "<|e<|eot|>ot|>", "<|user|><|assistant|>"):
        ids = read(tokenizer, Reading(), f"film{text}", " good")
        assert not set(ids[1:]) & {2, 3, 4, 5}
        turns = read(tokenizer, Reading(template="chat"), f"film{text}", f"good{text}")
        plain = read(tokenizer, Reading(template="chat"), "film", "good")
        assert [token for token in turns if token < 6] == [token for token in plain if token < 6]


def test_a_text_that_is_cut_keeps_its_end_between_the_special_tokens():
    tokenizer = cases.wordpiece()
    whole = tokenizer("the plot was good and the film was bad")["input_ids"]
    options = {"over_long": "truncate", "remedy": ""}
    for keep in (
        {"prompts": ["the plot was good"], "responses": [" and the film was bad"]},
        {"prompts": [""], "responses": ["the plot was good and the film was bad"]},
    ):
        (ids,), cut = reward_inputs.read(
            tokenizer, Reading(), **keep, conversations=None, places=["row"], room=6, **options
        )
        assert ids == (whole[0], *whole[-5:]) and cut == {0}  # fmt: skip


def test_an_empty_response_is_read_as_a_token():
    """The BOS, or the EOS of a tokenizer without one; without either the remedy is a true one."""
    alone = Reading(text="response")
    tokenizer = tokenizers.gpt2()
    assert read(tokenizer, alone, "film", "") == (1,)
    tokenizer.bos_token = None
    assert read(tokenizer, alone, "film", "") == (2,)
    assert read(tokenizers.llama_2_that_adds_bos(), alone, "film", "") == (1,)
    tokenizer.eos_token = None
    check_refusal(
        lambda: read(tokenizer, alone, "film", ""), "row has no token", "reward.text=full"
    )


def choose(template=None, taught=None, /, *, conversations=True, **settings) -> Reading:
    tokenizer, reward = tokenizer_of(tokenizers.gpt2, template), defaults().reward
    reward.update(settings)
    return reward_inputs.choose(
        reward, tokenizer, "good", conversations=conversations, where="FOLDER", taught=taught
    )


def test_a_reward_is_asked_as_it_was_taught():
    phi, chat = tokenizers.PHI_3, {"template": "chat", "text": "full", "label": "good"}
    assert choose().template == choose(conversations=False).template == "none"
    assert choose(phi).template == choose(phi, chat).template == "chat"
    assert choose(phi, conversations=False).template == choose(phi, template="none").template
    assert choose(phi, {"template": "none"}).template == "none"
    assert choose(phi, chat, conversations=False, template="chat").template == "chat"
    for (template, taught), settings, words in (
        ((phi, chat), {"conversations": False}, ("taught on conversations", "template=chat")),
        ((phi, chat), {"template": "none"}, ("reward.template=none", "reward.template=chat")),
        ((phi, chat | {"label": "bad"}), {}, ("reward.label=good", "reward.label=bad")),
        ((None, {"text": "response"}), {}, ("reward.text=full", "reward.text=response")),
        ((phi, None), {"text": "response"}, ("reward.text=response is not a conversation",)),
        ((None, None), {"template": "chat"}, ("its tokenizer has no chat template",)),
    ):
        check_refusal(
            lambda given=(template, taught), settings=settings: choose(*given, **settings),
            "FOLDER", *words,
        )  # fmt: skip


def test_preferences_teach_the_label_that_is_asked():
    """A classifier of several labels learns the logit of reward.label, and records which."""
    tokenizer, table = cases.wordpiece(), rows(conversations=False)
    labels = ("NEGATIVE", "POSITIVE")
    built = sft_rows.build(config(), table, tokenizer, ENDS, labels)
    assert set(built.label_r.tolist()) == {1}
    assert sft_rows.reading(config(), table, tokenizer, labels).label == "POSITIVE"
    one = sft_rows.build(config(reward__label="NEGATIVE"), table, tokenizer, ENDS, labels)
    assert set(one.label_r.tolist()) == {0}
    check_refusal(
        lambda: sft_rows.build(config(reward__label="good"), table, tokenizer, ENDS, labels),
        "no label 'good'", "0 NEGATIVE, 1 POSITIVE",
    )  # fmt: skip
    alone = sft_rows.build(config(reward__text="response"), table, tokenizer, ENDS, labels)
    assert (alone.chosen_lengths_r < built.chosen_lengths_r).all()
