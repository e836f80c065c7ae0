"""Given responses as token ids: the text that was given, and one end, of every family's shape."""

import ast
import logging
import re
import types

import pytest

from tests.cases import tokenizers as cases
from tests.tiny_config import ROOT
from vbon_jax.config import defaults
from vbon_jax.data import formats, prompt_sets, response_ids, sft_rows, sources, token_ids
from vbon_jax.data.response_ids import Ends
from vbon_jax.sampling import external_samples, scoring
from vbon_jax.types import InputError

EOS, EOT = 2, 5
ENDS = Ends((EOS, EOT), EOT)
# Prompt and response: spaces, line feeds, inside of a word, behind a space, empty, marks.
ROWS = (
    ("The film", " is good."),
    ("The film", "is good."),
    ("The pl", "ot is good."),
    ("said the user:\n", "yes, a good movie"),
    ("the user: ", "it is so"),
    ("The film", "\n is\n\ngood"),
    ("The film\n", "\n\nis"),
    ("a film", "  the  user "),
    ("a film", ""),
    ("it is", " so</s>"),
    ("it is", "<|eot|>"),
)


@pytest.fixture(scope="module", params=cases.ALL, ids=lambda case: case.__name__)
def tokenizer(request):
    return request.param()


def encode(tokenizer, *rows, ends=ENDS, ended=False):
    """Prompt ids and response ids of rows."""
    prompts, responses = zip(*rows, strict=True)
    places = [f"row {number}" for number in range(1, len(rows) + 1)]
    ids = response_ids.given_prompts(tokenizer, prompts, places)
    return list(
        zip(
            ids,
            response_ids.encode_responses(tokenizer, ids, responses, ends, places, ended=ended),
            strict=True,
        )
    )


def decode(tokenizer, ids) -> str:
    return tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


# Texts --------------------------------------------------------------------------------------------


def test_a_response_is_read_back_as_it_is_given(tokenizer):
    if tokenizer.convert_tokens_to_ids("\n") in (0, None):
        rows = [row for row in ROWS if "\n" not in "".join(row)]  # no byte fallback
    else:
        rows = ROWS
    for (prompt, response), (before, ids) in zip(rows, encode(tokenizer, *rows), strict=True):
        assert decode(tokenizer, before + ids) == decode(tokenizer, before) + response
        # where the whole text has a border there, these are its tokens
        whole = token_ids.prompt_ids(tokenizer, [prompt + response], ["whole"])[0]
        if whole[: len(before)] == before:
            assert whole == before + ids


def test_byte_level_tokens_are_those_of_the_response_alone():
    for tokenizer in (cases.gpt2(), cases.qwen()):
        alone = token_ids.plain_ids(tokenizer, [response for _, response in ROWS])
        assert [ids for _, ids in encode(tokenizer, *ROWS)] == alone


def test_sampled_tokens_survive_their_text():
    """Every token by itself and every pair of words, behind a prompt, as an import reads them."""
    for make in (cases.llama_2, cases.llama, cases.gemma, cases.gpt2):
        tokenizer = make()
        words = ["▁film", "▁is", "good", "is", ".", "▁the"]
        words = [word.replace("▁", "Ġ") if make is cases.gpt2 else word for word in words]
        index = [tokenizer.convert_tokens_to_ids(word) for word in words]
        index = [token for token in index if token not in (None, 0)]
        (prompt,) = token_ids.prompt_ids(tokenizer, ["The film"], ["row"])
        sampled = [(first, second) for first in index for second in index]
        start = decode(tokenizer, prompt)
        texts = [decode(tokenizer, prompt + ids).removeprefix(start) for ids in sampled]
        rows = encode(tokenizer, *(("The film", text) for text in texts))
        same = [ids == after for ids, (_, after) in zip(sampled, rows, strict=True)]
        canonical = token_ids.prompt_ids(tokenizer, ["The film" + t for t in texts], texts)
        expected = [(*prompt, *ids) == whole for ids, whole in zip(sampled, canonical, strict=True)]
        assert same == expected
        assert sum(same) > len(same) // 3


def test_behind_a_special_token_the_tokenizers_own_space_is_kept():
    for tokenizer, expected in ((cases.llama_2(), "▁yes"), (cases.llama(), "yes")):
        (_, bare), (_, spaced) = encode(
            tokenizer, ("hi<|assistant|>", "yes"), ("hi<|assistant|>", " yes")
        )
        assert tokenizer.convert_ids_to_tokens(list(bare)) == [expected]
        assert tokenizer.convert_ids_to_tokens(list(spaced)) == ["▁yes"]
        rows = encode(tokenizer, ("hi", " a<|user|>b"), ("hi", " a <|user|> b"))
        assert all(cases.SPECIAL.index("<|user|>") in ids for _, ids in rows)


def test_a_response_at_the_beginning_of_a_text():
    for tokenizer in (cases.llama_2(), cases.llama(), cases.llama_2_that_adds_bos()):
        ((prompt, ids),) = encode(tokenizer, ("", "is good"))
        assert prompt == (tokenizer.bos_token_id,)
        assert list(ids) == tokenizer("is good", add_special_tokens=False)["input_ids"]
        ((_, ids),) = encode(tokenizer, ("", " is good"))
        assert list(ids) == tokenizer(" is good", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    ("make", "row", "message"),
    [
        (
            cases.no_byte_fallback,
            ("it is", " so ☃"),
            r"row 2 cannot .*'☃' of .* as '<unk>'.*1 of 2",
        ),
        (cases.no_byte_fallback, ("it is ☃", " so"), r"row 2: the prompt cannot be tokenised: '☃'"),
        (cases.no_byte_fallback, ("", "☃"), r"row 2 cannot be tokenised: '☃' of it would be"),
    ],
)
def test_what_a_tokenizer_cannot_write_is_refused(make, row, message):
    with pytest.raises(InputError, match=message):
        encode(make(), ("it is", " so"), row)


def test_characters_that_are_composed_are_the_same():
    ((_, ids),) = encode(cases.qwen(), ("it is", " cafe\u0301"))
    assert decode(cases.qwen(), ids) == " caf\u00e9"


# Every door ---------------------------------------------------------------------------------------


def table(**columns) -> sources.Table:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return sources.Table(rows, "file", list(range(1, len(rows) + 1)), "line")


def test_pairs_completions_imports_and_scores_have_the_same_ids(tokenizer, tmp_path, monkeypatch):
    prompt, texts = "The pl", ["ot is good.", "um is awful!"]
    expected = [ids for _, ids in encode(tokenizer, *((prompt, text) for text in texts))]
    places = ["line 1"]
    (before,) = token_ids.prompt_ids(tokenizer, [prompt], places)

    given = formats.Preferences([prompt], texts[:1], texts[1:], places, "file")
    pairs = prompt_sets.build_pairs(given, tokenizer, ends=ENDS, new_tokens=30, longest=30)
    assert [*pairs.chosen_ids, *pairs.rejected_ids] == [(*ids, EOT) for ids in expected]

    completions = formats.Completions([prompt] * 2, texts, places * 2)
    rows, _ = sft_rows.completion_rows(completions, tokenizer, ENDS, 60, "error")
    for row, length, ids in zip(rows.tokens_st, rows.lengths_s, expected, strict=True):
        assert tuple(row[:length]) == (*before, *ids, EOT)

    samples = table(prompt=[prompt], responses=[texts], finished=[[True, False]])
    monkeypatch.setattr(sources, "read", lambda _: samples)
    prompts = prompt_sets.PromptSet([before], [prompt])
    imported = external_samples.read(
        "file", prompts, tokenizer, samples_per_prompt=2, new_tokens=30, ends=ENDS
    )
    lists = imported.responses.token_ids()
    assert [tuple(ids) for ids in lists] == [(*expected[0], EOT), expected[1]]

    scored = table(prompt=[prompt] * 2, response=texts)
    pairs = scoring.encode(scored, tokenizer, ENDS, longest=90)
    assert pairs == [(before, ids) for ids in expected]


# Ends ---------------------------------------------------------------------------------------------


def checkpoint(*ids) -> types.SimpleNamespace:
    return types.SimpleNamespace(eos_token_ids=ids)


@pytest.mark.parametrize(
    ("template", "ids", "written", "warnings"),
    [
        (cases.TURNS, (EOS, EOT), EOT, 0),  # Llama 3's list: its first is not the turn's end
        (cases.TURNS, (EOT, EOS), EOT, 0),
        (cases.PHI_3, (0, EOS, EOT), EOT, 0),  # and not the second end behind a conversation
        (cases.LLAMA_2, (EOT, EOS), EOS, 0),
        (None, (EOT, EOS), EOS, 0),  # no template: the tokenizer's
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", (EOT, EOS), EOS, 0),
        ("{{ raise_exception('never') }}", (EOT, EOS), EOS, 0),
        (cases.TURNS, (EOS,), EOS, 1),  # a base model with a template for chat
        (cases.TURNS, (3,), 3, 2),
        (None, (4, 3), 4, 1),
        (None, (), EOS, 0),  # the folder names none
    ],
)
def test_the_end_behind_an_answer(template, ids, written, warnings, caplog):
    tokenizer = cases.gpt2()
    tokenizer.chat_template = template
    with caplog.at_level(logging.WARNING):
        ends = response_ids.response_ends(checkpoint(*ids), tokenizer, "some/folder")
    assert ends == Ends(ids or (EOS,), written)
    assert caplog.text.count("some/folder: ") == warnings
    if template == cases.TURNS and warnings:
        assert "the chat template ends an answer with '<|eot|>' (5)" in caplog.text


def test_a_model_without_ends():
    tokenizer = cases.gpt2()
    tokenizer.eos_token = None
    assert response_ids.response_ends(checkpoint(), tokenizer, "some/folder") == Ends(())


@pytest.mark.parametrize("template", [cases.TURNS, cases.LLAMA_2, cases.PHI_3])
@pytest.mark.parametrize("make", [cases.gpt2, cases.llama, cases.llama_2])
def test_prompt_and_answer_are_the_tokens_of_the_template(make, template):
    """Up to the end of the turn: what the tokenizer makes of the whole rendered conversation."""
    tokenizer = make()
    tokenizer.chat_template = template
    ends = response_ids.response_ends(checkpoint(EOS, EOT), tokenizer, "some/folder")
    turns = [{"role": "user", "content": "is it so"}, {"role": "assistant", "content": "yes"}]
    row = table(prompt=[turns[:1]], completion=[turns[1:]])
    given = formats.completions(row, tokenizer=tokenizer)
    rows, _ = sft_rows.completion_rows(given, tokenizer, ends, 60, "error")
    ids = rows.tokens_st[0][: rows.lengths_s[0]].tolist()
    whole = token_ids.plain_ids(tokenizer, [tokenizer.apply_chat_template(turns, tokenize=False)])
    assert ids == list(whole[0][: len(ids)])
    assert ids[-1] == ends.written
    # the same as a whole text that is learned
    learned, _ = sft_rows.text_rows(table(text=[turns]), "text", tokenizer, ends, 60)
    assert learned.tokens_st[0].tolist() == rows.tokens_st[0].tolist()


def test_conversations_are_learned_with_the_ends_of_all_their_turns():
    tokenizer = cases.gpt2()
    tokenizer.chat_template = cases.TURNS
    contents = ("is it so", "yes", "a good movie", "it is")
    turns = [
        {"role": ("user", "assistant")[place % 2], "content": content}
        for place, content in enumerate(contents)
    ]
    rows, _ = sft_rows.text_rows(table(text=[turns]), "text", tokenizer, ENDS, 90)
    ids = rows.tokens_st[0][: rows.lengths_s[0]].tolist()
    assert ids.count(EOT) == 4 and ids[-1] == EOT and EOS not in ids
    for place, word in enumerate(("</s>", "<|eot|>")):
        changed = [*turns[:2], {"role": "user", "content": f"so{word}"}]
        with pytest.raises(
            InputError,
            match=rf"line 1: message 3 has '{ENDS.ids[place] and word}'".replace("|", r"\|"),
        ):
            sft_rows.text_rows(table(text=[changed]), "text", tokenizer, ENDS, 90)


def test_whole_texts_have_one_end():
    tokenizer = cases.gpt2()
    texts = ["it is so.", "it is so.<|eot|>", "it is so.</s>"]
    rows, _ = sft_rows.text_rows(table(text=texts), "text", tokenizer, ENDS, 60)
    ends = [row[:length].tolist()[-2:] for row, length in zip(rows[0], rows[2], strict=True)]
    dot = tokenizer.convert_tokens_to_ids(".")
    assert ends == [[dot, EOT], [dot, EOT], [dot, EOS]]
    for text in ("it is<|eot|> so", "so</s><|eot|>", "so<|eot|>\n"):
        with pytest.raises(InputError, match="line 1 has an end-of-text token before its end"):
            sft_rows.text_rows(table(text=[text]), "text", tokenizer, ENDS, 60)


def test_no_code_takes_one_of_the_ends_by_its_place():
    for path in [*(ROOT / "vbon_jax").rglob("*.py"), *(ROOT / "experiments").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Subscript):
                assert not re.search(r"eos|ends\.ids", ast.unparse(node.value)), (path, node.lineno)


def test_build_says_where_no_end_is_known():
    config = defaults()
    config.method = "sft"
    with pytest.raises(InputError, match="names no EOS token"):
        sft_rows.build(config, table(text=["so"]), cases.gpt2(), Ends(()))
