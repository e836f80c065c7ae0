"""What rows mean: every shape and form, and what is refused before anything is computed."""

import json
import logging
import pathlib
import re
import types

import pytest

from vbon_jax.config import defaults
from vbon_jax.data import formats, tokenizers
from vbon_jax.data.response_ids import Ends
from vbon_jax.data.sources import Table, read
from vbon_jax.study import materials
from vbon_jax.types import InputError

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if loop.index0 % 2 != (m.role == 'assistant') %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<{{ m.role }}>{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """One with a chat template that trims contents and marks the end of every turn."""
    trained = tokenizers.train_tokenizer(["a small text"], vocab_size=260)
    trained.chat_template = TEMPLATE
    trained.name_or_path = "folder/of/policy"
    return trained


def table(*content, textual=False) -> Table:
    return Table(list(content), "f.jsonl", list(range(1, len(content) + 1)), "line", textual)


def say(*contents) -> list[dict]:
    """A conversation that a user begins."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def answer(text) -> list[dict]:
    return [{"role": "assistant", "content": text}]


# Texts and prompts --------------------------------------------------------------------------------


def test_a_template_that_writes_the_date_gives_the_same_prompts_on_any_day(tokenizer, monkeypatch):
    """As Llama 3.2's does: with a clock a cache of yesterday's prompts was another's."""
    template = "{{ strftime_now('%d %b %Y') }}: {% for m in messages %}{{ m.content }}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", template)
    prompts = formats.prompts(table({"p": say("hi")}), name="p", tokenizer=tokenizer)
    assert prompts == ["26 Jul 2024: hi"]


def test_prompts_and_texts_are_texts_or_conversations(tokenizer):
    mixed = table({"p": "plain"}, {"p": say("hi", "yes?", " what ")})
    bos = tokenizer.bos_token or ""
    rendered = f"{bos}<user>hi<end>\n<assistant>yes?<end>\n<user>what<end>\n"
    assert formats.prompts(mixed, name="p", tokenizer=tokenizer) == [
        "plain",
        f"{rendered}<assistant>",
    ]
    assert formats.texts(mixed, name="p", tokenizer=tokenizer) == ["plain", rendered]
    assert formats.prompts(table({"prompt": ""})) == [""]


def test_a_tokenizer_without_a_template_is_named(tokenizer):
    plain = tokenizers.train_tokenizer(["a small text"], vocab_size=260)
    plain.name_or_path = "folder/of/gpt2"
    conversation = table({"prompt": say("hi")})
    with pytest.raises(
        InputError, match=r"folder/of/gpt2: the tokenizer has no chat template, and f"
    ):
        formats.prompts(conversation, tokenizer=plain)
    with pytest.raises(InputError, match=r"no tokenizer: .* f\.jsonl: line 1 has a list of mess"):
        formats.prompts(conversation)
    with pytest.raises(
        InputError, match=r"line 1: the chat template of folder/of/policy refuses.*al"
    ):
        formats.prompts(table({"prompt": answer("hi")}), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"f\.jsonl: line 2: field 'prompt' is NoneType, not str; correct"),
        (3, r"line 2: field 'prompt' is int, not str"),
        ([], r"line 2: field 'prompt' is not a list of messages; give at least one"),
        (["hi"], r"line 2: field 'prompt': message 1 is not \{'role'"),
        ([{"role": "user", "content": None}], r"message 1 is not"),
        ([*say("hi"), {"role": "assistant"}], r"message 2 is not"),
        (say("hi", "yes"), r"line 2: the prompt ends with a message of the assistant"),
    ],
)
def test_what_is_no_prompt(tokenizer, value, message):
    with pytest.raises(InputError, match=message):
        formats.prompts(table({"prompt": "a"}, {"prompt": value}), tokenizer=tokenizer)


def test_a_missing_field_says_which_there_are():
    message = r"line 2 has no field 'prompt' \(it has: query, text\); add the field, or name"
    with pytest.raises(InputError, match=message):
        formats.prompts(table({"prompt": "a"}, {"text": "b", "query": "c"}))
    with pytest.raises(InputError, match=r"\(it has: none\)"):
        formats.texts(table({}))


def test_labels_are_whole_numbers():
    rows = table({"text": "a", "label": 2}, {"text": "b", "label": 0})
    assert formats.labelled(rows) == (["a", "b"], [2, 0])
    written = table({"review": "a", "stars": "2"}, textual=True)
    assert formats.labelled(written, name="review", label="stars") == (["a"], [2])
    for value, message in (
        ("1", "field 'label' is str, not int; correct"),
        (True, "field 'label' is bool, not int"),
        (1.0, "field 'label' is float, not int"),
        (-1, "field 'label' is -1, and the classifier's classes are 0 to 999; number them from 0"),
        (2**40, "field 'label' is 1099511627776, and"),
        (10**7, "field 'label' is 10000000, and"),
        (None, "field 'label' is NoneType, not int"),
    ):
        with pytest.raises(InputError, match=f"f.jsonl: line 1: {message}"):
            formats.labelled(table({"text": "a", "label": value}))
    for value in ("1.0", "9" * 5000):
        with pytest.raises(InputError, match="field 'label' is str, not int"):
            formats.labelled(table({"text": "a", "label": value}, textual=True))
    one_to_two = table({"text": "a", "label": 1}, {"text": "b", "label": 2})
    with pytest.raises(InputError, match=r"line 2: field 'label' is 2, .* classes are 0 to 1;"):
        formats.labelled(one_to_two, classes=2)


def test_completions(tokenizer):
    rows = table(
        {"prompt": "a", "completion": " b"},
        {"prompt": say("hi"), "completion": answer(" yes ")},
        {"prompt": "hi", "completion": answer("yes")},
        {"prompt": say("hi"), "completion": "yes"},
    )
    given = formats.completions(rows, tokenizer=tokenizer)
    rendered = formats.prompts(table({"prompt": say("hi")}), tokenizer=tokenizer)[0]
    assert given.prompts == ["a", rendered, rendered, rendered]
    assert given.completions == [" b", "yes", "yes", "yes"]
    assert given.places == rows.places
    for empty in ("", " \n", answer(" ")):
        with pytest.raises(InputError, match=r"line 1: field 'completion' is empty; give"):
            formats.completions(table({"prompt": "a", "completion": empty}), tokenizer=tokenizer)
    with pytest.raises(InputError, match=r"line 1 has no field 'completion' \(it has: prompt\)"):
        formats.completions(table({"prompt": "a"}))


# Preferences --------------------------------------------------------------------------------------


def test_pairs_with_their_prompts():
    given = formats.preferences(
        table(
            {"prompt": "p", "chosen": " a", "rejected": " b"},
            {"prompt": "q", "best": " c", "worst": " d"},
        )
    )
    places = ["f.jsonl: line 1", "f.jsonl: line 2"]
    assert given[:8] == (["p", "q"], [" a", " c"], [" b", " d"], places, "f.jsonl", 0, 0, 0)


def test_dialogues_share_their_prompt():
    start = "\n\nHuman: hi\n\nAssistant: yes?\n\nHuman: why\n\nAssistant:"
    rows = table(
        {"chosen": f"{start} because", "rejected": f"{start} be it so"},
        {"chosen": f"{start} a", "rejected": f"{start} a"},
    )
    given = formats.preferences(rows, on_tie="drop")
    assert given[:3] == ([start], [" because"], [" be it so"])
    assert given.tied == 1
    apart = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: b"}
    with pytest.raises(
        InputError, match=r"line 1: chosen and rejected share no beginning up to an"
    ):
        formats.preferences(table(apart))
    with pytest.raises(InputError, match=r"has no field 'prompt' \(it has: chosen, rejected\)"):
        formats.preferences(table({"chosen": "a", "rejected": "b"}))


def test_conversations_with_and_without_their_prompt(tokenizer):
    rendered = formats.prompts(table({"prompt": say("hi")}), tokenizer=tokenizer)[0]
    rows = table(
        {"prompt": say("hi"), "chosen": answer("good"), "rejected": answer("bad")},
        {"prompt": "hi", "chosen": answer("good"), "rejected": answer("bad")},
        {"chosen": say("hi", "good"), "rejected": say("hi", "bad")},
        {"prompt": "hi", "chosen": say("hi", "good"), "rejected": say("hi", "bad")},
        {"prompt": None, "chosen": say("hi", " good "), "rejected": say("hi", "bad\n")},
        {"prompt": say("hi"), "chosen": "good", "rejected": "bad"},
    )
    given = formats.preferences(rows, tokenizer=tokenizer)
    assert given.prompts == [rendered] * 6
    assert given.chosen == ["good"] * 6
    assert given.rejected == ["bad"] * 6
    long = table({"chosen": say("a", "b", "c", "d"), "rejected": say("a", "b", "c", "e")})
    given = formats.preferences(long, tokenizer=tokenizer)
    assert given.prompts[0].endswith("<assistant>b<end>\n<user>c<end>\n<assistant>")
    assert (given.chosen, given.rejected) == (["d"], ["e"])
    with pytest.raises(InputError, match=r"line 1: chosen and rejected share no first message"):
        formats.preferences(
            table({"chosen": say("a", "b"), "rejected": say("c", "b")}), tokenizer=tokenizer
        )


@pytest.mark.parametrize(
    "change",
    [
        {"rejected": say("hi", "b", "more", "c")},
        {"rejected": say("hi", "b", "thanks")},
        {"rejected": [*say("hi"), *say("are you there?", "b")]},
        {"rejected": [*say("hi", "b"), *answer("c")]},
        {"rejected": [*say("hi"), {"role": "system", "content": "c"}]},
        {"rejected": say("hi")[:1] * 2},
    ],
)
def test_an_answer_is_one_message_of_the_assistant(tokenizer, change):
    row = {"prompt": say("hi"), "chosen": say("hi", "a"), "rejected": say("hi", "b")}
    with pytest.raises(InputError, match=r"line 2: an answer is one .*pairs\.on_turns=drop"):
        formats.preferences(table(row, row | change), tokenizer=tokenizer)
    rows = table(row, row | change, row)
    given = formats.preferences(rows, tokenizer=tokenizer, on_turns="drop")
    assert (len(given.prompts), given.turns) == (2, 1)
    completion = {"prompt": "hi", "completion": change["rejected"][1:]}
    with pytest.raises(InputError, match=r"line 1: an answer is one message of the assistant"):
        formats.completions(table(completion), tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (" b\n\nHuman: c\n\nAssistant: d", " e\n\nHuman: c\n\nAssistant: d"),
        (" b", " e\n\nHuman: thanks"),
        (" b\n\nAssistant: c", " e"),
    ],
)
def test_the_answers_of_dialogues_are_one_turn(chosen, rejected):
    start = "\n\nHuman: a\n\nAssistant:"
    row = {"chosen": f"{start}{chosen}", "rejected": f"{start}{rejected}"}
    with pytest.raises(InputError, match=r"line 1: chosen and rejected part before their last"):
        formats.preferences(table(row))
    other = {"chosen": f"{start} b", "rejected": f"{start} e"}
    given = formats.preferences(table(row, other), on_turns="drop")
    assert (given.chosen, given.turns) == ([" b"], 1)


def test_a_conversation_is_no_prompt_that_is_cut(tokenizer):
    rows = table({"prompt": "plain"}, {"prompt": say("hi")})
    with pytest.raises(InputError, match=r"line 2: field 'prompt' is a conv.*data\.max_tokens=0"):
        formats.prompts(rows, tokenizer=tokenizer, max_tokens=8)


def test_a_template_that_does_not_continue_its_prompt(tokenizer):
    odd = tokenizers.train_tokenizer(["a small text"], vocab_size=260)
    odd.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    odd.name_or_path = "folder/of/odd"
    with pytest.raises(InputError, match=r"template of folder/of/odd does not continue the prompt"):
        formats.preferences(
            table({"prompt": "a", "chosen": answer("b"), "rejected": answer("c")}), tokenizer=odd
        )


def test_ties_and_empty_responses_are_a_choice(tokenizer):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    tie, empty = row | {"rejected": "a"}, row | {"rejected": " "}
    rewards = row | {"chosen_reward": 1.0, "rejected_reward": 1}
    talk = {"chosen": say("hi", "yes"), "rejected": say("hi", "yes")}
    given = formats.preferences(
        table(row, tie, row, rewards, talk), tokenizer=tokenizer, on_tie="drop"
    )
    assert (len(given.prompts), given.tied, given.places) == (
        2,
        3,
        [f"f.jsonl: line {n}" for n in (1, 3)],
    )
    with pytest.raises(
        InputError, match=r"f\.jsonl: line 2: chosen and rejected are equal.*on_tie"
    ):
        formats.preferences(table(row, tie))
    with pytest.raises(InputError, match=r"f\.jsonl: line 2: the rejected response is empty; give"):
        formats.preferences(table(row, empty))
    with pytest.raises(InputError, match=r"line 1: the chosen response is empty"):
        formats.preferences(table(row | {"chosen": ""}))
    given = formats.preferences(table(row, empty), on_empty="drop")
    assert (len(given.prompts), given.tied, given.empty) == (1, 0, 1)
    with pytest.raises(
        InputError, match=r"none of 2 pairs is left \(1 with equal responses, 1 with"
    ):
        formats.preferences(table(tie, empty), on_tie="drop", on_empty="drop")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chosen": 3}, r"line 1: field 'chosen' is int, not str"),
        ({"rejected": None}, r"line 1: field 'rejected' is NoneType, not str"),
        ({"prompt": 1}, r"line 1: field 'prompt' is int, not str"),
        ({"rejected": answer("b")}, r"line 1: field 'rejected' is list, not str"),
        ({"chosen": answer("b")}, r"line 1: field 'rejected' is not a list of messages"),
        ({"best_reward": 1.0, "worst_reward": 2.0}, r"best_reward = 1 is below worst_reward = 2"),
        ({"best_reward": 1.0}, r"line 1 has no field 'worst_reward'"),
        ({"best_reward": float("nan"), "worst_reward": 0.0}, r"'best_reward' is nan; give a fin"),
        ({"chosen_reward": "1", "rejected_reward": 0}, r"'chosen_reward' is str, not a number"),
        ({"chosen_reward": True, "rejected_reward": 0}, r"'chosen_reward' is bool, not a num"),
    ],
)
def test_what_is_no_pair(tokenizer, change, message):
    row = {"prompt": "p", "chosen": "a", "rejected": "b"} | change
    with pytest.raises(InputError, match=message):
        formats.preferences(table(row), tokenizer=tokenizer)


def test_numbers_of_a_textual_file():
    rows = table({"r": "1.5e1"}, {"r": "x"}, {"r": ""}, textual=True)
    assert rows.number(0, "r") == 15.0
    for row in (1, 2):
        with pytest.raises(InputError, match=rf"line {row + 1}: field 'r' is '.?', not a number"):
            rows.number(row, "r")


# Given pairs --------------------------------------------------------------------------------------


def given_pairs(path, **changes):
    tokenizer = tokenizers.train_tokenizer(["a small text"], vocab_size=260)
    shared = types.SimpleNamespace(
        tokenizer=tokenizer,
        models=types.SimpleNamespace(policy="policy"),
        ends=Ends((tokenizer.eos_token_id,), tokenizer.eos_token_id),
        checkpoint=types.SimpleNamespace(config=types.SimpleNamespace(max_positions=120)),
    )
    config = defaults()
    with config.unlocked():
        config.pairs.update({"path": str(path), **changes})
    return materials.given_pairs(config, shared), tokenizer


def test_pairs_of_dialogues_filtered_and_renamed(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    start = "\n\nHuman: hi\n\nAssistant:"
    rows = [
        {"better": f"{start} yes", "worse": f"{start} no", "kind": "good"},
        {"better": f"{start} same", "worse": f"{start} same", "kind": "good"},
        {"better": f"{start} other", "worse": f"{start} no", "kind": "bad"},
        {"better": f"{start} a", "worse": start, "kind": "good"},
    ]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    changes = {"columns": {"chosen": "better", "rejected": "worse"}, "filter": {"kind": "good"}}
    with pytest.raises(InputError, match=r"train\.json: row 4: the rejected response is empty"):
        given_pairs(tmp_path, on_tie="drop", **changes)
    pairs, tokenizer = given_pairs(tmp_path, on_tie="drop", on_empty="drop", **changes)
    assert [tokenizer.decode(ids) for ids in pairs.prompt_ids] == [start]
    assert [tokenizer.decode(ids[:-1]) for ids in pairs.chosen_ids] == [" yes"]
    assert [tokenizer.decode(ids[:-1]) for ids in pairs.rejected_ids] == [" no"]
    assert pairs.tied == 1
    assert "1 pairs in" in caplog.text
    assert "1 with equal responses left out, 1 with an empty one" in caplog.text
    with pytest.raises(InputError, match=r"row 2: chosen and rejected are equal"):
        given_pairs(tmp_path, **changes)


def test_an_over_long_pair_is_named_by_its_place(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "a"}, {"prompt": "p", "chosen": "b" * 50,
            "rejected": "c"}]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"train\.jsonl: line 2: field 'chosen' has \d+ tokens"):
        given_pairs(tmp_path, on_tie="drop")


# The BoNBoN release -------------------------------------------------------------------------------

RELEASED = {
    "\n\nHuman: a\n\nAssistant:": {
        "pairs": [[0, 1], [2, 3]],
        "responses": [" best", " worst", " same", " same"],
        "sft_target": " same",
    },
    "\n\nHuman: b\n\nAssistant:": {
        "pairs": [[1, 0]],
        "responses": [" bad", " good"],
        "sft_target": " good",
    },
}


def test_the_documents_recipe_for_the_released_best_and_worst(tmp_path, monkeypatch):
    document = (pathlib.Path(__file__).parents[2] / "docs" / "data.md").read_text()
    (recipe,) = re.findall(r"```python\n([^`]*BEST_AND_WORST[^`]*)```", document)
    monkeypatch.chdir(tmp_path)
    pathlib.Path("BEST_AND_WORST.json").write_text(json.dumps(RELEASED))
    exec(compile(recipe, "docs/data.md", "exec"), {})
    given = formats.preferences(read("PAIRS.jsonl"), on_tie="drop")
    assert given.prompts == list(RELEASED)
    assert given.chosen == [" best", " good"]
    assert given.rejected == [" worst", " bad"]
    assert given.tied == 1
