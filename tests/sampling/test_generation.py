"""Text from a model: what is shown while it is made, what is written, and what is refused."""

import contextlib
import io
import json
import os
import pty
import re
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reward_functions import vowels
from tests.tiny_config import ROOT, program
from vbon_jax.data import batching, toy_reviews
from vbon_jax.data import tokenizers as tokenizers_module
from vbon_jax.models import encoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import generation as generate
from vbon_jax.sampling import rewards, sampler, terminal
from vbon_jax.types import InputError, Responses

NEW = 10  # tokens, in most of these tests: few programs are compiled
VOWELS = "tests.reward_functions:vowels"


# The text of a response ---------------------------------------------------------------------------


def byte_level():
    return tokenizers_module.train_tokenizer(["the plot is good"], vocab_size=280)


def byte_fallback():
    """A tokenizer in Llama's shape: words with their space in front, and a token for each byte."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁plot", "s", "☃", "\n"]
    raw = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            {word: index for index, word in enumerate(words)},
            [],
            unk_token="<unk>",
            byte_fallback=True,
        )
    )
    raw.decoder = tokenizers.decoders.Sequence(
        [
            tokenizers.decoders.Replace("▁", " "),
            tokenizers.decoders.ByteFallback(),
            tokenizers.decoders.Fuse(),
            tokenizers.decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


TOKENIZERS = {"byte_level": byte_level(), "byte_fallback": byte_fallback()}


def ids_of(tokenizer, *words: str) -> list[int]:
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


def byte_ids(written: str) -> list[int]:
    names = [f"<0x{byte:02X}>" for byte in written.encode()]
    return ids_of(TOKENIZERS["byte_fallback"], *names)


def beginnings(ids: list[int]) -> list[list[int]]:
    return [ids[:length] for length in range(1, len(ids) + 1)]


def test_a_response_is_read_behind_its_prompt():
    tokenizer = TOKENIZERS["byte_fallback"]
    prompt, answer = ids_of(tokenizer, "<s>", "▁the"), ids_of(tokenizer, "▁plot", "s", "</s>")
    assert rewards.texts(tokenizer, [()], [answer]) == ["plots"]  # alone it loses its space
    assert terminal.response(tokenizer, prompt, answer) == " plots"
    assert terminal.response(tokenizer, prompt[:1], answer) == "plots"
    # A character that was cut between the two is none of the response's.
    assert (
        terminal.response(tokenizer, prompt + byte_ids("☃")[:1], byte_ids("☃")[1:]) == "\ufffd" * 2
    )


def test_no_piece_ends_inside_a_character():
    tokenizer = TOKENIZERS["byte_level"]
    prompt = tokenizer("the")["input_ids"]
    ids = tokenizer(" ☃😀 plot")["input_ids"]
    parts = list(terminal.pieces(tokenizer, prompt, beginnings(ids)))
    assert parts[:3] == [" ", "☃", "😀"]
    assert "".join(parts) == " ☃😀 plot"
    # Here a run of bytes is no character at all unless the whole of it is some.
    tokenizer = TOKENIZERS["byte_fallback"]
    run = byte_ids("☃😀")
    ended = [*run, *ids_of(tokenizer, "▁plot")]
    assert list(terminal.pieces(tokenizer, [], beginnings(ended))) == ["☃😀 plot"]
    broken = [*run[:5], *ids_of(tokenizer, "</s>")]
    assert list(terminal.pieces(tokenizer, [], beginnings(broken))) == ["\ufffd" * 5]
    assert list(terminal.pieces(tokenizer, [], [])) == []


@settings(deadline=None, max_examples=100, derandomize=True)
@given(st.sampled_from(sorted(TOKENIZERS)), st.data())
def test_pieces_of_any_tokens_are_together_the_response(name, drawn):
    tokenizer = TOKENIZERS[name]
    snow = byte_ids("☃") if name == "byte_fallback" else tokenizer("☃")["input_ids"]
    token = st.one_of(st.sampled_from(snow), st.integers(0, len(tokenizer) - 1))
    prompt = tokenizer("the ☃")["input_ids"]
    ids = drawn.draw(st.lists(token, min_size=1, max_size=12))
    cuts = sorted(drawn.draw(st.sets(st.integers(1, len(ids)))) | {len(ids)})
    parts = list(terminal.pieces(tokenizer, prompt, [ids[:cut] for cut in cuts]))
    assert "".join(parts) == terminal.response(tokenizer, prompt, ids)
    assert all(parts)


def test_control_characters_are_made_harmless():
    assert (
        terminal.harmless("\x1b[31mred\x07 \r\x9b \u202eabc") == r"\x1b[31mred\x07 \r\x9b \u202eabc"
    )
    assert terminal.harmless("\ud800\0\x7f") == r"\ud800\x00\x7f"
    written = "a\tb\nc\\x ü ☃ 👩‍🚀"
    assert terminal.harmless(written) == written


# The program --------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch):
    type_in(monkeypatch, b"")


def type_in(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def run(tiny, **changes) -> None:
    model = changes.pop("model", tiny / "policy")
    generate.main(generate.Options(str(model), **{"max_new_tokens": NEW} | changes))


def rows(tiny, tmp_path, name="out.jsonl", **changes) -> list[dict]:
    output = tmp_path / name
    run(tiny, output=str(output), **changes)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def policy(tiny):
    return model_folder.load(tiny / "policy", kind="decoder"), model_folder.load_tokenizer(
        tiny / "policy"
    )


def draw(policy, prompt: str, index: int, num_samples: int, **sampling) -> tuple[list, Responses]:
    """A prompt's ids and samples, by the sampler alone."""
    checkpoint, tokenizer = policy
    ids = tokenizer(prompt)["input_ids"]
    samples = sampler.generate(
        checkpoint.config,
        checkpoint.params,
        batching.pad_prompts([ids]),
        sampler.prompt_keys(jax.random.key(3), np.array([index])),
        num_samples=num_samples,
        sampling=sampler.Sampling(NEW, eos_token_ids=(tokenizer.eos_token_id,), **sampling),
    )
    return ids, jax.device_get(samples)


PROMPTS = ["the plot", "a", "on the whole, the second act of this film is", "the cast"]


def test_rows_are_what_the_sampler_draws(tiny, tmp_path, policy, capsys):
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS) + "\n\n")
    found = rows(tiny, tmp_path, input=str(source), samples=2, seed=3, batch=6, top_k=50)
    assert capsys.readouterr().out == ""
    assert [row["prompt"] for row in found] == [prompt for prompt in PROMPTS for _ in range(2)]
    for index, prompt in enumerate(PROMPTS):
        ids, samples = draw(policy, prompt, index, 2, top_k=50)
        for n, row in enumerate(found[2 * index : 2 * index + 2]):
            tokens = samples.tokens_bng[0, n, : samples.lengths_bn[0, n]].tolist()
            assert row["tokens"] == tokens
            assert row["response"] == terminal.response(policy[1], ids, tokens)
            assert row["log_prob"] == pytest.approx(samples.log_probs_bng[0, n].sum(), abs=1e-4)
            assert row["finished"] == samples.finished_bn[0, n]
            assert row.keys() == {"prompt", "response", "log_prob", "tokens", "finished"}
    as_rows = tmp_path / "prompts.jsonl"
    as_rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    again = rows(
        tiny, tmp_path, "2.jsonl", input=str(as_rows), samples=2, seed=3, batch=6, top_k=50
    )
    assert again == found


def test_a_streamed_text_is_the_sampled_one(tiny, tmp_path, monkeypatch, capsys):
    """The random policy writes bytes of all kinds: pieces of characters, control characters."""
    prompts = tuple(PROMPTS[:2])
    found = rows(tiny, tmp_path, prompts=prompts)
    shown = []
    for stream in (True, False):
        run(tiny, prompts=prompts, stream=stream)
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1]
    expected = [f">>> {row['prompt']}\n{terminal.harmless(row['response'])}\n\n" for row in found]
    assert shown[0] == "".join(expected)
    assert not re.search("[\0-\x08\x0b-\x1f\x7f]", shown[0])
    assert any(terminal.harmless(row["response"]) != row["response"] for row in found)
    # Pieces arrive while the text is made; together they are the text, byte for byte.
    pieces = []
    monkeypatch.setattr(generate, "tell", pieces.append)
    run(tiny, prompts=prompts[:1], stream=True)
    assert "".join(pieces) == found[0]["response"] + "\n"
    assert len([piece for piece in pieces[:-1] if piece]) > 1


def test_the_best_of_n_is_shown_with_its_reward(tiny, tmp_path, policy, capsys):
    found = rows(
        tiny, tmp_path, prompts=tuple(PROMPTS[:2]), samples=3, best_of=4, seed=3,
        reward_function=VOWELS,
    )  # fmt: skip
    for index, prompt in enumerate(PROMPTS[:2]):
        ids, samples = draw(policy, prompt, index, 12)
        responses = [
            tokens[:length].tolist()
            for tokens, length in zip(samples.tokens_bng[0], samples.lengths_bn[0], strict=True)
        ]
        scores = vowels(*rewards.texts(policy[1], [ids] * 12, responses))
        for k, row in enumerate(found[3 * index : 3 * index + 3]):
            group = scores[4 * k : 4 * k + 4]
            assert row["reward"] == pytest.approx(max(group), rel=1e-6)
            assert row["tokens"] == responses[4 * k + int(np.argmax(group))]
    run(tiny, prompts=("the plot",), samples=3, best_of=4, seed=3, reward_function=VOWELS)
    shown = capsys.readouterr().out
    for number, row in enumerate(found[:3], 1):
        note = f"-- sample {number} of 3, reward {row['reward']:.4f}, best of 4\n"
        assert f"{terminal.harmless(row['response'])}\n{note}" in shown


def test_a_classifier_is_a_reward(tiny, tmp_path, policy):
    wordpiece = tokenizers_module.train_wordpiece(
        (r.text for r in toy_reviews.generate(60, seed=0)), vocab_size=200
    )
    config = encoder.EncoderConfig(
        vocab_size=len(wordpiece), width=8, num_layers=1, num_heads=2, mlp_width=16,
        max_positions=64, labels=("NEGATIVE", "POSITIVE"),
    )  # fmt: skip
    folder = tmp_path / "classifier"
    model_folder.save(folder, config, encoder.init(config, jax.random.key(0)), tokenizer=wordpiece)
    options = {"prompts": ("the plot",), "reward": str(folder), "reward_label": "NEGATIVE"}
    (row,) = rows(tiny, tmp_path, **options)
    ids = policy[1]("the plot")["input_ids"]
    score = rewards.classifier(folder, label="NEGATIVE").score
    expected = score(*rewards.texts(policy[1], [ids], [row["tokens"]]))
    assert row["reward"] == pytest.approx(float(expected[0]), abs=1e-5)
    with pytest.raises(InputError, match="no label 'GOOD'; choose one of: 0 NEGATIVE, 1 POSITIVE"):
        run(tiny, **options | {"reward_label": "GOOD"})
    with pytest.raises(InputError, match=r"architectures|model_type"):
        run(tiny, prompts=("a",), model=folder)


def test_a_prompt_from_a_pipe(tiny, monkeypatch, capsys):
    run(tiny, prompts=("two\nlines ",), temperature=0.0)
    expected = capsys.readouterr().out
    type_in(monkeypatch, b"two\nlines \n")
    run(tiny, temperature=0.0)
    assert capsys.readouterr().out == expected
    run(tiny, prompts=("",))  # from the beginning of a text
    assert capsys.readouterr().out


def test_chat_renders_the_prompt_as_a_message(tiny, tmp_path, policy):
    folder = tmp_path / "chat"
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    checkpoint = policy[0]
    model_folder.save(folder, checkpoint.config, checkpoint.params, tokenizer=tokenizer)
    (row,) = rows(tiny, tmp_path, model=folder, prompts=("the plot",), chat=True, temperature=0.0)
    _, samples = draw(policy, "<|endoftext|>user: the plot\nassistant:", 0, 1, temperature=0.0)
    assert row["tokens"] == samples.tokens_bng[0, 0, : samples.lengths_bn[0, 0]].tolist()
    assert row["prompt"] == "the plot"
    with pytest.raises(InputError, match=f"{tiny / 'policy'}: its tokenizer has no chat template"):
        run(tiny, prompts=("the plot",), chat=True)


def fake_generate(shapes: list, *, interrupted_after: int = 1 << 30):
    """A sampler that computes nothing and notes the shape of every batch."""

    def generate(config, params, prompts, keys_b, *, num_samples, sampling):
        if len(shapes) == interrupted_after:
            raise KeyboardInterrupt
        shapes.append(prompts.tokens_bp.shape)
        shape = (len(prompts.tokens_bp), num_samples)
        tokens = np.zeros((*shape, NEW), np.int32)
        ones = np.ones(shape, np.int32)
        return Responses(tokens, ones, ones.astype(bool), np.zeros(tokens.shape, np.float32))

    return generate


def test_few_shapes_for_many_prompts(tiny, tmp_path, monkeypatch):
    shapes = []
    monkeypatch.setattr(sampler, "generate", fake_generate(shapes))
    prompts = tuple("the plot " * (1 + index % 5) for index in range(37))
    assert len(rows(tiny, tmp_path, prompts=prompts, batch=10, samples=2)) == 74
    assert len(shapes) == 8
    assert {height for height, _ in shapes} == {5}
    assert {width % 8 for _, width in shapes} == {0}


def test_what_was_finished_is_kept(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sampler, "generate", fake_generate([], interrupted_after=2))
    with pytest.raises(SystemExit) as left:
        rows(tiny, tmp_path, prompts=tuple("abcdefg"), batch=2)
    assert left.value.code == 130
    output = tmp_path / "out.jsonl"
    assert f"interrupted; what was finished stands in {output}" in capsys.readouterr().err
    kept = output.read_text()
    assert [json.loads(line)["prompt"] for line in kept.splitlines()] == list("abcd")
    with pytest.raises(InputError, match="it is there already"):
        rows(tiny, tmp_path, prompts=("a",))
    assert output.read_text() == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": ("a", "the plot " * 30)}, "tokens, which with --max_new_tokens=10 is more"),
        ({"prompts": ("a",), "max_new_tokens": 48}, "48 positions of"),
        ({"prompts": ("a",), "input": "rows.txt"}, "--prompt and --input"),
        ({"prompts": ("a",), "reward": "x", "reward_function": VOWELS}, "keep one"),
        ({"prompts": ("a",), "best_of": 4}, "--best_of=4 needs a reward"),
        ({"prompts": ("a",), "stream": True, "samples": 2}, "--stream shows the one response"),
        ({"prompts": ("a",), "top_p": 0.0}, "--top_p is 0.0"),
        ({"prompts": ("a",), "temperature": -1.0}, "--temperature is -1.0"),
        ({"prompts": ("\udcff",)}, "no Unicode text"),
        ({"prompts": ("a",), "reward_function": "nowhere:f"}, "cannot import nowhere"),
        (
            {"prompts": ("a",), "reward_function": "tests.reward_functions:not_a_number"},
            "is not finite",
        ),
        ({"input": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"input": "bad.txt"}, "bad.txt is not UTF-8"),
        ({"input": "bad.jsonl"}, "bad.jsonl: line 2 has no field 'prompt'"),
        ({"prompts": ("a",), "output": "."}, "Is a directory; give a file"),
        ({"prompts": ("a",), "model": "nowhere"}, "nowhere: no such folder"),
        ({}, "there is no prompt"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(tiny, tmp_path, monkeypatch, changes, message):
    (tmp_path / "bad.txt").write_bytes(b"a\n\xff\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "a"}\n')
    monkeypatch.setattr(sampler, "generate", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=re.escape(message)):
        run(tiny, **changes)


def test_an_empty_prompt_needs_a_beginning(tiny, tmp_path, policy):
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    tokenizer.bos_token = None
    source = tmp_path / "prompts.txt"
    source.write_text("a\n\nb\n")
    lines = generate.read_prompts(generate.Options("m", input=str(source)))
    with pytest.raises(
        InputError, match=r"prompts.txt: line 2 has an empty prompt .* no BOS token"
    ):
        generate.encode(lines, tokenizer, generate.Options("m"))


# At a terminal ------------------------------------------------------------------------------------


def test_a_conversation_at_a_terminal(tiny, tmp_path):
    """Asked at a prompt, answered while the text is made; a mistake does not end it."""
    main, side = pty.openpty()
    output = tmp_path / "said.jsonl"
    flags = [f"--model={tiny / 'policy'}", f"--max_new_tokens={NEW}", "--output"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.generate", *flags, str(output)],
        cwd=ROOT, stdin=side, stdout=side, stderr=subprocess.PIPE,
        env=os.environ | {"TERM": "dumb", "PYTHONUTF8": "1"},
    )  # fmt: skip
    os.close(side)
    typed = [b"the plot\n", b"the plot " * 40 + b"\n", b"a\n", b"\x04"]
    shown = b""
    with contextlib.suppress(OSError):  # the terminal is closed at the end
        while part := os.read(main, 4096):
            shown += part
            if typed and shown.endswith(b"prompt> "):
                os.write(main, typed.pop(0))
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait() == 0, errors[-3000:]
    os.close(main)
    assert "error: the prompt: the prompt has" in errors
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in said] == ["the plot", "a"]
    screen = shown.decode().replace("\r\n", "\n")
    for row in said:
        assert terminal.harmless(row["response"]) in screen
    assert not typed


def test_mistakes_are_one_line(tiny):
    done = program("generate", "--model", tiny / "policy", "--prompt=a", "--best_of=2")
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.strip().splitlines()) == 1
    assert done.stderr.startswith("error: --best_of=2 needs a reward")
