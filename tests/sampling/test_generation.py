"""Text from a model: what is written and shown, and what is refused."""

import io
import json
import re
import sys

import jax
import numpy as np
import pytest
import tokenizers
import transformers
from ml_collections import ConfigDict

from tests.reward_functions import vowels
from tests.tiny_config import program
from vbon_jax import config
from vbon_jax.data import batching
from vbon_jax.data import tokenizers as tokenizers_module
from vbon_jax.functional import streams
from vbon_jax.models import encoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import generation, rewards, sampler
from vbon_jax.types import InputError, Responses

NEW = 10  # tokens, in most of these tests: few programs are compiled
VOWELS = {"function": "tests.reward_functions:vowels"}
PROMPTS = ["the plot", "a", "on the whole, the second act of this film is", "the cast"]


def byte_fallback():
    """A tokenizer in Llama's shape: words with their space in front, and a token for each byte."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["▁", "▁the", "▁plot", "s", "☃", "\n"]
    vocabulary = {word: index for index, word in enumerate(words)}
    raw = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True)
    )
    decoders = tokenizers.decoders
    raw.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def test_a_response_is_read_behind_its_prompt():
    tokenizer = byte_fallback()

    def ids(*words):
        return [tokenizer.convert_tokens_to_ids(word) for word in words]

    prompt, answer = ids("<s>", "▁the"), ids("▁plot", "s", "</s>")
    snow = ids(*(f"<0x{byte:02X}>" for byte in "☃".encode()))
    prompts = [prompt, prompt[:1], [], prompt + snow[:1]]
    assert rewards.texts(tokenizer, prompts, [answer, answer, answer, snow[1:]]) == (
        ["the", "", "", "the"],  # a character that was cut between the two is the response's
        [" plots", "plots", "plots", "☃"],
    )


def test_control_characters_are_made_harmless():
    assert (
        generation.harmless("\x1b[31mred\x07 \r\x9b \u202eabc")
        == r"\x1b[31mred\x07 \r\x9b \u202eabc"
    )
    assert generation.harmless("\ud800\0\x7f") == r"\ud800\x00\x7f"
    written = "a\tb\nc\\x ü ☃ 👩‍🚀"
    assert generation.harmless(written) == written


@pytest.fixture(autouse=True)
def nobody_types(monkeypatch):
    type_in(monkeypatch, b"")


def type_in(monkeypatch, content: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))


def run(tiny, *, reward=None, **changes) -> None:
    options = ConfigDict()
    config.add(options, generation.KEYS)
    options.update({"model": str(tiny / "policy"), "max_new_tokens": NEW} | changes)
    options.reward.update(reward or {})
    generation.main(options)


def rows(tiny, tmp_path, name="out.jsonl", **changes) -> list[dict]:
    output = tmp_path / name
    run(tiny, output=str(output), **changes)
    return [json.loads(line) for line in output.read_text().splitlines()]


@pytest.fixture(scope="module")
def policy(tiny):
    path = tiny / "policy"
    return model_folder.load(path, kind="decoder"), model_folder.load_tokenizer(path)


def draw(policy, prompt: str, index: int, num_samples: int, **sampling) -> tuple[list, Responses]:
    """A prompt's ids and samples, by the sampler alone."""
    checkpoint, tokenizer = policy
    ids = tokenizer(prompt)["input_ids"]
    samples = sampler.generate(
        checkpoint.config,
        checkpoint.params,
        batching.pad_prompts([ids]),
        sampler.prompt_keys(streams.key("generation", 3), np.array([index])),
        num_samples=num_samples,
        sampling=sampler.Sampling(NEW, eos_token_ids=(tokenizer.eos_token_id,), **sampling),
    )
    return ids, jax.device_get(samples)


@pytest.mark.slow
def test_rows_are_what_the_sampler_draws(tiny, tmp_path, policy, capsys):
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS) + "\n\n")
    written = rows(tiny, tmp_path, input=str(source), samples=2, seed=3, batch=6, top_k=50)
    assert capsys.readouterr().out == ""
    assert [row["prompt"] for row in written] == [prompt for prompt in PROMPTS for _ in range(2)]
    for index, prompt in enumerate(PROMPTS):
        ids, samples = draw(policy, prompt, index, 2, top_k=50)
        for n, row in enumerate(written[2 * index : 2 * index + 2]):
            tokens = samples.token_ids()[n]
            assert row["tokens"] == tokens
            assert row["response"] == rewards.texts(policy[1], [ids], [tokens])[1][0]
            assert row["log_prob"] == pytest.approx(samples.log_probs_bng[0, n].sum(), abs=1e-4)
            assert row["finished"] == samples.finished_bn[0, n]
            assert row.keys() == {"prompt", "response", "log_prob", "tokens", "finished"}
    as_rows = tmp_path / "prompts.jsonl"
    as_rows.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    again = rows(
        tiny, tmp_path, "2.jsonl", input=str(as_rows), samples=2, seed=3, batch=6, top_k=50
    )
    assert again == written


@pytest.mark.slow
def test_responses_are_shown_without_control_characters(tiny, tmp_path, capsys):
    """The random policy writes bytes of all kinds."""
    prompts = tuple(PROMPTS[:2])
    written = rows(tiny, tmp_path, prompt=prompts)
    run(tiny, prompt=prompts)
    shown = capsys.readouterr().out
    assert shown == "".join(
        f">>> {row['prompt']}\n{generation.harmless(row['response'])}\n\n" for row in written
    )
    assert not re.search("[\0-\x08\x0b-\x1f\x7f]", shown)
    assert any(generation.harmless(row["response"]) != row["response"] for row in written)


@pytest.mark.slow
def test_the_best_of_n_is_shown_with_its_reward(tiny, tmp_path, policy, capsys):
    options = {"samples": 3, "best_of": 4, "seed": 3, "reward": VOWELS}
    written = rows(tiny, tmp_path, prompt=tuple(PROMPTS[:2]), **options)
    for index, prompt in enumerate(PROMPTS[:2]):
        ids, samples = draw(policy, prompt, index, 12)
        responses = samples.token_ids()
        scores = vowels(*rewards.texts(policy[1], [ids] * 12, responses))
        for k, row in enumerate(written[3 * index : 3 * index + 3]):
            group = scores[4 * k : 4 * k + 4]
            assert row["reward"] == pytest.approx(max(group), rel=1e-6)
            assert row["tokens"] == responses[4 * k + int(np.argmax(group))]
    run(tiny, prompt=("the plot",), **options)
    shown = capsys.readouterr().out
    for number, row in enumerate(written[:3], 1):
        note = f"-- sample {number} of 3, reward {row['reward']:.4f}, best of 4\n"
        assert f"{generation.harmless(row['response'])}\n{note}" in shown


@pytest.mark.slow
def test_a_reward_reads_the_columns_of_the_prompts(tiny, tmp_path):
    source = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "the plot", "label": label} for label in ("ab", "the e")]
    source.write_text("".join(json.dumps(row) + "\n" for row in lines))
    reward = {"function": "tests.reward_functions:shares_of_label"}
    for row, line in zip(
        rows(tiny, tmp_path, input=str(source), best_of=4, reward=reward), lines, strict=True
    ):
        share = sum(c in line["label"] for c in row["response"]) / max(1, len(row["response"]))
        assert row["reward"] == pytest.approx(share)


@pytest.mark.slow
def test_a_classifier_is_a_reward(tiny, tmp_path, policy):
    wordpiece = tokenizers_module.train_wordpiece(PROMPTS, vocab_size=200)
    network = {"model_type": "distilbert", "vocab_size": len(wordpiece), "dim": 8, "n_layers": 1}
    network |= {"n_heads": 2, "hidden_dim": 16, "max_position_embeddings": 64}
    labels = ("NEGATIVE", "POSITIVE")
    model = model_folder.config_of(network, labels=labels, source="network")
    params, folder = encoder.init(model, jax.random.key(0)), tmp_path / "classifier"
    model_folder.save(folder, model, params, settings=network, tokenizer=wordpiece)
    settings = {"path": str(folder), "label": "NEGATIVE"}
    (row,) = rows(tiny, tmp_path, prompt=("the plot",), reward=settings)
    ids = policy[1]("the plot")["input_ids"]
    texts = rewards.texts(policy[1], [ids], [row["tokens"]])
    expected = rewards.classifier(str(folder), label="NEGATIVE").score(*texts)
    assert row["reward"] == pytest.approx(float(expected[0]), abs=1e-5)
    with pytest.raises(InputError, match="no label 'GOOD'; choose one of: 0 NEGATIVE, 1 POSITIVE"):
        run(tiny, prompt=("a",), reward=settings | {"label": "GOOD"})
    with pytest.raises(InputError, match=r"architectures|model_type"):
        run(tiny, prompt=("a",), model=str(folder))


@pytest.mark.slow
def test_a_prompt_from_a_pipe(tiny, monkeypatch, capsys):
    run(tiny, prompt=("two\nlines ",), temperature=0.0)
    expected = capsys.readouterr().out
    type_in(monkeypatch, b"two\nlines \n")
    run(tiny, temperature=0.0)
    assert capsys.readouterr().out == expected
    run(tiny, prompt=("",))  # from the beginning of a text
    assert capsys.readouterr().out


@pytest.mark.slow
def test_chat_renders_the_prompt_as_a_message(tiny, tmp_path, policy):
    folder = tmp_path / "chat"
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}\n"
        "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    checkpoint = policy[0]
    model_folder.save(folder, *checkpoint[:2], settings=checkpoint.settings, tokenizer=tokenizer)
    (row,) = rows(
        tiny, tmp_path, model=str(folder), prompt=("the plot",), chat=True, temperature=0.0
    )
    _, samples = draw(policy, "<|endoftext|>user: the plot\nassistant:", 0, 1, temperature=0.0)
    assert row["tokens"] == samples.token_ids()[0]
    assert row["prompt"] == "the plot"
    with pytest.raises(InputError, match=f"{tiny / 'policy'}: the tokenizer has no chat template"):
        run(tiny, prompt=("the plot",), chat=True)


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
    assert len(rows(tiny, tmp_path, prompt=prompts, batch=10, samples=2)) == 74
    assert len(shapes) == 8
    assert {height for height, _ in shapes} == {5}
    assert {width % 8 for _, width in shapes} == {0}


def test_what_was_finished_is_kept(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sampler, "generate", fake_generate([], interrupted_after=2))
    with pytest.raises(KeyboardInterrupt):
        rows(tiny, tmp_path, prompt=tuple("abcdefg"), batch=2)
    output = tmp_path / "out.jsonl"
    kept = output.read_text()
    assert [json.loads(line)["prompt"] for line in kept.splitlines()] == list("abcd")
    with pytest.raises(InputError, match="it exists; give another"):
        rows(tiny, tmp_path, prompt=("a",))
    assert output.read_text() == kept


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ("a", "the plot " * 30)}, "tokens, which with --max_new_tokens=10 is more"),
        ({"prompt": ("a",), "max_new_tokens": 48}, "48 positions of"),
        ({"prompt": ("a",), "input": "rows.txt"}, "--prompt and --input"),
        ({"prompt": ("a",), "reward": VOWELS | {"path": "x"}}, "keep one"),
        ({"prompt": ("a",), "reward": VOWELS | {"output": "odds"}}, "reward.output='odds': choose"),
        ({"prompt": ("a",), "best_of": 4}, "--best_of=4 needs a reward"),
        ({"prompt": ("a",), "top_p": 0.0}, "top_p=0.0: give a number above 0 to 1"),
        ({"prompt": ("a",), "temperature": -1.0}, "temperature=-1.0: give a number from 0"),
        ({"prompt": ("\udcff",)}, "not Unicode text"),
        ({"prompt": ("a",), "reward": {"function": "nowhere:f"}}, "cannot import nowhere"),
        (
            {"prompt": ("a",), "reward": {"function": "tests.reward_functions:not_a_number"}},
            "is not finite",
        ),
        ({"input": "nowhere.txt"}, "nowhere.txt: no such file"),
        ({"input": "bad.txt"}, "bad.txt is not UTF-8"),
        ({"input": "bad.jsonl"}, "bad.jsonl: line 2 has no field 'prompt'"),
        ({"prompt": ("a",), "output": "."}, "is a folder; give a file"),
        ({"prompt": ("a",), "model": "nowhere"}, "nowhere: no such folder"),
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


def test_an_empty_prompt_needs_a_beginning(tiny, tmp_path):
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    tokenizer.bos_token = None
    source = tmp_path / "prompts.txt"
    source.write_text("a\n\nb\n")
    table = generation.read_prompts(ConfigDict({"prompt": (), "input": str(source)}))
    message = r"prompts.txt: line 2 has an empty prompt .* no BOS token"
    with pytest.raises(InputError, match=message):
        generation.encode(table, tokenizer)


@pytest.mark.slow
def test_the_flags_are_the_keys_of_the_configuration(tiny):
    flags = ["--prompt=a", "--best_of=2", "--max_new_tokens=4"]
    model = f"--model={tiny / 'policy'}"
    done = program("generate", model, *flags, f"--reward.function={VOWELS['function']}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best of 2" in done.stdout
    for wrong, message in (
        ([], "error: --best_of=2 needs a reward"),
        (["--reward.label=GOOD", "--reward.nothing=1"], "nothing"),
    ):
        done = program("generate", model, *flags, *wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert len(done.stderr.strip().splitlines()) == 1
        assert message in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.json", '[{"prompt": "a"}, {"prompt": "b"}]'),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": "b"}\n'),
        ("p.csv", "prompt,id\na,1\nb,2\n"),
        ("p.txt", "a\nb\n"),
    ],
)
def test_a_file_of_rows_is_read_as_rows(tmp_path, name, content):
    """The lines of a JSON file, '[' and ' {', were the prompts."""
    (tmp_path / name).write_text(content)
    table = generation.read_prompts(ConfigDict({"prompt": (), "input": str(tmp_path / name)}))
    assert [row["prompt"] for row in table.rows] == ["a", "b"]
