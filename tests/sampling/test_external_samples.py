"""Samples made elsewhere: their two forms, what is refused, and the cache that they become."""

import http.server
import json
import re
import shlex
import sys
import threading
import types

import numpy as np
import pytest

from tests import reward_functions
from tests.data.test_prompt_sets import Words
from tests.tiny_config import ROOT, overrides, program
from vbon_jax.data import prompt_sets, sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import external_samples, reference_cache
from vbon_jax.types import InputError
from vbon_jax.workdir import results

DOCUMENT = (ROOT / "docs" / "data.md").read_text()
PROMPTS = prompt_sets.PromptSet([(5, 6), (7,), (0,)], ["5 6", "7", "0"])
EOS = 9


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Digits(Words):
    """A tokenizer with ten tokens."""

    def __len__(self):
        return 10


def encode(source, prompts=PROMPTS, **changes) -> external_samples.Encoded:
    options = {"samples_per_prompt": 2, "new_tokens": 3, "eos_token_ids": (EOS,)}
    return external_samples.encode(
        external_samples.read(source), prompts, Digits(), **{**options, **changes}
    )


def by_response(**changes) -> list[dict]:
    """Two responses to each prompt, a row each, prompt and response in one text."""
    made = []
    for prompt in ("5 6", "7", "0"):
        for response in (" 1 2", " 3"):
            made.append({"prompt": prompt, "text": prompt + response, "reward": len(made) / 4})
    return [row | changes for row in made]


def by_prompt() -> list[dict]:
    """The same samples, a prompt a row."""
    return [
        {"prompt": prompt, "responses": [" 1 2", " 3"], "rewards": [place / 2, place / 2 + 0.25]}
        for place, prompt in enumerate(("5 6", "7", "0"))
    ]


# Reading ------------------------------------------------------------------------------------------


def test_both_forms_are_the_same_samples(tmp_path):
    first = encode(write(tmp_path / "a.jsonl", by_response()))
    second = encode(write(tmp_path / "b.jsonl", by_prompt()))
    assert first.tokens_pmg.tolist() == [[[1, 2, EOS], [3, EOS, 0]]] * 3
    assert first.lengths_pm.tolist() == [[3, 2]] * 3
    assert first.finished_pm.all()
    assert first.rewards_pm.tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]]
    for left, right in zip(first[:4], second[:4], strict=True):
        np.testing.assert_array_equal(left, right)
        assert left.dtype == right.dtype
    assert first.fingerprint == second.fingerprint
    assert (first.places[1], second.places[1]) == (["line 3", "line 4"], ["line 2", "line 2"])
    other = encode(write(tmp_path / "c.jsonl", [*by_response()[:-1], by_response(reward=7)[-1]]))
    assert other.fingerprint != first.fingerprint


def test_any_source_and_any_order(tmp_path):
    expected = encode(write(tmp_path / "a.jsonl", by_response()))
    lines = ["prompt,text,reward", *(f"{p},{t},{r}" for p, t, r in map(dict.values, by_response()))]
    (tmp_path / "a.csv").write_text("\n".join(lines))
    assert encode(tmp_path / "a.csv").fingerprint == expected.fingerprint
    (tmp_path / "a.json").write_text(json.dumps(by_prompt()[::-1] + by_prompt()[:1]))
    found = encode(tmp_path / "a.json", cut=True)  # the first prompt has four of them
    assert found.fingerprint == expected.fingerprint


def test_a_text_may_be_the_response_alone(tmp_path):
    expected = encode(write(tmp_path / "a.jsonl", by_response()))
    alone = [row | {"text": row["text"].removeprefix(row["prompt"])} for row in by_response()]
    assert encode(write(tmp_path / "b.jsonl", alone)).fingerprint == expected.fingerprint
    named = [{"prompt": r["prompt"], "response": r["text"], "reward": r["reward"]} for r in alone]
    assert encode(write(tmp_path / "c.jsonl", named)).fingerprint == expected.fingerprint
    with pytest.raises(
        InputError, match=r"d\.jsonl: line 2 has a text that does not begin with it"
    ):
        external_samples.read(write(tmp_path / "d.jsonl", [by_response()[0], *alone[1:]]))
    # a response that begins as its prompt does is told apart by its field's name
    same = [row | {"response": row["prompt"]} for row in named]
    assert encode(write(tmp_path / "e.jsonl", same)).lengths_pm.tolist() == [[3, 3], [2, 2], [2, 2]]


def test_rewards_without_responses_and_responses_without_rewards(tmp_path):
    rewards = [{"prompt": row["prompt"], "rewards": row["rewards"]} for row in by_prompt()]
    found = encode(write(tmp_path / "a.jsonl", rewards))
    assert not found.lengths_pm.any() and not found.finished_pm.any()
    assert found.rewards_pm.shape == (3, 2)
    texts = [{"prompt": row["prompt"], "responses": row["responses"]} for row in by_prompt()]
    assert encode(write(tmp_path / "b.jsonl", texts)).rewards_pm is None


def test_how_a_response_ended(tmp_path):
    rows = [
        {"prompt": "7", "text": "7 1", "reward": 0, "finish_reason": reason}
        for reason in ("stop", "length", None)
    ]
    rows += [{"prompt": "7", "text": text, "reward": 0} for text in ("7 1 2 3", "7 1 2 9", "7")]
    found = encode(
        write(tmp_path / "a.jsonl", rows),
        prompt_sets.PromptSet([(7,)], ["7"]),
        samples_per_prompt=6,
    )
    assert found.tokens_pmg[0].tolist() == [
        [1, 9, 0],
        [1, 0, 0],
        [1, 9, 0],
        [1, 2, 3],
        [1, 2, 9],
        [9, 0, 0],
    ]
    assert found.finished_pm.tolist() == [[True, False, True, False, True, True]]
    without = encode(
        write(tmp_path / "b.jsonl", rows[:1]),
        prompt_sets.PromptSet([(7,)], ["7"]),
        samples_per_prompt=1,
        eos_token_ids=(),
    )
    assert not without.finished_pm.any() and without.lengths_pm.tolist() == [[1]]


def test_tokens_are_taken_as_they_were_sampled(tmp_path):
    expected = encode(write(tmp_path / "a.jsonl", by_prompt()))
    rows = [
        row | {"token_ids": [[1, 2, EOS], [3, EOS]], "responses": ["?", ""]} for row in by_prompt()
    ]
    assert encode(write(tmp_path / "b.jsonl", rows)).fingerprint == expected.fingerprint
    for row in rows:
        del row["responses"]
    assert encode(write(tmp_path / "c.jsonl", rows)).fingerprint == expected.fingerprint
    rows[0] |= {"token_ids": [None, None], "responses": ["1 2", "3"]}  # a server without them
    assert encode(write(tmp_path / "d.jsonl", rows)).fingerprint == expected.fingerprint
    single = [
        {"prompt": row["prompt"], "token_ids": ids, "reward": reward}
        for row in by_prompt()
        for ids, reward in zip([[1, 2, EOS], [3, EOS]], row["rewards"], strict=True)
    ]
    assert encode(write(tmp_path / "e.jsonl", single)).fingerprint == expected.fingerprint
    # any of the model's ends is an end, and stays the one it is
    single[0]["token_ids"] = [1, 8]
    found = encode(write(tmp_path / "f.jsonl", single), eos_token_ids=(EOS, 8))
    assert found.tokens_pmg[0].tolist() == [[1, 8, 0], [3, EOS, 0]]
    assert found.finished_pm.all()
    for bad, message in (
        ([1, "2"], r"line 1 'token_ids' is no list of whole numbers"),
        ([1, True], r"line 1 'token_ids' is no list of whole numbers"),
        ([1, 10], r"line 1 has the token 10, and the policy's tokenizer 10 of them; sample with"),
        ([-1], r"line 1 has the token -1, and"),
        ([1, EOS, 2], r"line 1 has an end-of-text token before its end"),
    ):
        with pytest.raises(InputError, match=message):
            encode(write(tmp_path / "g.jsonl", [single[0] | {"token_ids": bad}, *single[1:]]))


def test_a_prompt_is_found_by_its_text_or_its_tokens(tmp_path):
    prompts = PROMPTS._replace(texts=["5  6", "7", "<begin>"])
    rows = [*by_prompt(), {"prompt": "8 8", "responses": [" 1"], "rewards": [0.0]}]
    rows[2]["prompt"] = ""  # becomes the BOS
    found = encode(write(tmp_path / "a.jsonl", rows), prompts)
    assert found.rewards_pm.tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]]
    with pytest.raises(
        InputError, match=r"2 of 3 prompts have no samples in it \(the first: '5 6', "
    ):
        encode(write(tmp_path / "b.jsonl", by_prompt()[1:2]))


def test_what_is_over_long_is_a_choice(tmp_path):
    rows = by_prompt()
    rows[1] |= {"responses": [" 1", " 1 2 3 4", " 2"], "rewards": [0, 1, 2]}
    file = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(
        InputError, match=r"line 2: a response of 4 tokens \(room for 3\); change sam"
    ):
        encode(file)
    left = encode(file, over_long="drop")
    assert (left.dropped, left.truncated) == (1, 0)
    assert left.rewards_pm[1].tolist() == [0, 2]
    shortened = encode(file, over_long="truncate", cut=True)
    assert (shortened.dropped, shortened.truncated) == (0, 1)
    assert shortened.tokens_pmg[1].tolist() == [[1, 9, 0], [1, 2, 3]]
    assert shortened.finished_pm[1].tolist() == [True, False]
    with pytest.raises(
        InputError, match=r"1 responses were cut after they were scored; score them"
    ):
        external_samples.check_rewards(shortened, PROMPTS, lambda *_: None, source="a.jsonl")
    with pytest.raises(InputError, match="over_long is 'keep'"):
        encode(file, over_long="keep")


def test_every_prompt_has_as_many(tmp_path):
    rows = by_response()
    file = write(tmp_path / "a.jsonl", rows[:-1])
    with pytest.raises(InputError, match=r"'0' has 1 samples and '5 6' 2; give .* \(--cut\)"):
        encode(file)
    with pytest.raises(InputError, match=r"1 samples to each prompt and .* = 2; set it to 1"):
        encode(file, cut=True)
    cut = encode(file, cut=True, samples_per_prompt=1)
    assert cut.rewards_pm.tolist() == [[0], [0.5], [1]]
    whole = write(tmp_path / "b.jsonl", rows)
    with pytest.raises(InputError, match=r"2 samples to each prompt and .* = 1; set it to 2"):
        encode(whole, samples_per_prompt=1)
    assert encode(whole, samples_per_prompt=1, cut=True).fingerprint == cut.fingerprint


def test_two_policies_do_not_share_a_cache(tmp_path):
    for key in ("policy", "model"):
        rows = by_response(**{key: "one"})
        assert encode(write(tmp_path / "a.jsonl", rows)).rewards_pm.shape == (3, 2)
        rows[4] |= {key: "two"}
        with pytest.raises(
            InputError, match=rf"line 5 has the {key} 'two' and line 1 'one': a cache"
        ):
            external_samples.read(write(tmp_path / "a.jsonl", rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"line 2 has no field 'prompt' \(it has: text\)"),
        ({"prompt": 3, "text": "a"}, r"line 2: field 'prompt' is int, not str"),
        ({"prompt": "5", "text": None}, r"line 2: field 'text' is NoneType, not str"),
        ({"prompt": "5", "text": "5", "reward": "1"}, r"field 'reward' is str, not a number"),
        ({"prompt": "5", "text": "5", "reward": float("nan")}, r"'reward' is nan; give a finite"),
        ({"prompt": "5", "text": "5", "reward": -float("inf")}, r"'reward' is -inf; give"),
        ({"prompt": "5", "text": "5"}, r"line 2 has no reward and other rows have one; give all"),
        (
            {"prompt": "5", "text": "5", "reward": 0, "finish_reason": "eos"},
            r"line 2: finish_reason 'eos' is not known; give stop or length",
        ),
    ],
)
def test_bad_rows_of_responses(tmp_path, row, message):
    with pytest.raises(InputError, match=message) as error:
        external_samples.read(write(tmp_path / "a.jsonl", [by_response()[0], row]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [0.5]}, r"line 2: .* as many, and it has 2 responses, 1 rewards; correct"),
        ({"responses": "12"}, r"line 2: field 'responses' is no list; give at least one"),
        ({"responses": [], "rewards": []}, r"line 2: field 'responses' is no list; give"),
        ({"responses": ["1", 2]}, r"line 2: place 2 of 'responses' is int, not str"),
        ({"rewards": [0.5, None]}, r"line 2: place 2 of 'rewards' is NoneType, not a number"),
        ({"rewards": [True, 1]}, r"line 2: place 1 of 'rewards' is bool, not a number"),
        ({"rewards": [1, float("inf")]}, r"line 2: place 2 of 'rewards' is inf; give a finite"),
        ({"responses": None}, r"line 2 has no response and other rows have one; give all or none"),
        ({"responses": None, "rewards": None}, r"line 2: .* as many, and it has none; correct"),
        ({"finish_reasons": ["stop"]}, r"2 responses, 2 rewards, 1 finish_reasons"),
        ({"finish_reasons": ["stop", "abort"]}, r"finish_reason 'abort' is not known"),
    ],
)
def test_bad_rows_of_prompts(tmp_path, change, message):
    rows = by_prompt()
    rows[1] |= change
    with pytest.raises(InputError, match=message):
        external_samples.read(write(tmp_path / "a.jsonl", rows))


def test_what_cannot_be_tokenised_as_a_response(tmp_path):
    rows = [{"prompt": "7", "text": "7 1 9 2", "reward": 0}]
    prompts = prompt_sets.PromptSet([(7,)], ["7"])
    with pytest.raises(InputError, match=r"line 1 has an end-of-text token before its end"):
        encode(write(tmp_path / "a.jsonl", rows), prompts, samples_per_prompt=1)
    rows = [{"prompt": "7", "response": "", "reward": 0, "finish_reason": "length"}]
    with pytest.raises(
        InputError, match=r"line 1: a response without an end is empty; take it out"
    ):
        encode(write(tmp_path / "b.jsonl", rows), prompts, samples_per_prompt=1)


def test_rewards_are_held_against_our_own(tmp_path):
    found = encode(write(tmp_path / "a.jsonl", by_prompt()))
    asked = []

    def score(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return found.rewards_pm[prompts, [int(len(response) == 2) for response in responses]]

    external_samples.check_rewards(found, score, source="a.jsonl")
    assert asked[:2] == [(0, [1, 2, 9]), (0, [3, 9])]
    assert len(asked) == 6
    asked.clear()
    external_samples.check_rewards(found, score, source="a.jsonl", count=2)
    assert [prompt for prompt, _ in asked] == [0, 2]  # spread over the file
    close = found._replace(rewards_pm=found.rewards_pm + 0.01)
    external_samples.check_rewards(close, score, source="a.jsonl")
    other = found._replace(rewards_pm=found.rewards_pm * [[1, 1], [1, 3], [1, 1]])
    message = r"a\.jsonl: line 2 has the reward 2\.2500 where the configured reward gives 0\.7500"
    with pytest.raises(InputError, match=message):
        external_samples.check_rewards(other, score, source="a.jsonl")


# The program --------------------------------------------------------------------------------------


def sampled(tiny, workdir) -> reference_cache.References:
    """The reference cache of the tiny configuration, sampled here."""
    folder = workdir / "references" / "train"
    if not folder.exists():
        done = program("collect", "--workdir", workdir, *overrides(tiny))
        assert done.returncode == 0, done.stderr[-3000:]
    return reference_cache.load(folder)


@pytest.fixture(scope="module")
def released(tiny, tmp_path_factory) -> types.SimpleNamespace:
    """Our own samples in the release's two forms, as if somebody else had made them."""
    folder = tmp_path_factory.mktemp("released")
    cache = sampled(tiny, folder / "sampled")
    ids = range(len(cache.rewards_pm))
    prompts = reference_cache.read(cache, ids, column="prompt")
    texts = reference_cache.read(cache, ids)
    tokens = reference_cache.read(cache, ids, column="response_tokens")
    rows = [
        {"prompt": prompt, "text": prompt + text, "token_ids": token_ids, "reward": float(reward)}
        for prompt, *columns in zip(prompts, texts, tokens, cache.rewards_pm, strict=True)
        for text, token_ids, reward in zip(*columns, strict=True)
    ]
    lists = [
        {"prompt": prompt, "rewards": rewards.tolist()}
        for prompt, rewards in zip(prompts, cache.rewards_pm, strict=True)
    ]
    return types.SimpleNamespace(
        cache=cache,
        rows=rows,
        by_response=write(folder / "by_response.jsonl", rows),
        rewards_alone=write(folder / "rewards.jsonl", lists),
    )


def import_samples(tiny, workdir, *arguments, **changes):
    return program("import_samples", "--workdir", workdir, *arguments, *overrides(tiny, **changes))


def test_an_import_is_what_was_sampled(tiny, released, tmp_path):
    """And a comparison goes on from it."""
    samples = f"--samples={released.by_response}"
    done = import_samples(tiny, tmp_path, samples)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "references/train: 24 prompts x 8 rewards" in done.stderr
    assert "nats a token under" in done.stderr
    mine, theirs = reference_cache.load(tmp_path / "references" / "train"), released.cache
    np.testing.assert_array_equal(mine.rewards_pm, theirs.rewards_pm)
    made = mine.provenance._asdict()
    assert len(made.pop("imported")) == 64
    assert made == {k: v for k, v in theirs.provenance._asdict().items() if k != "imported"}
    np.testing.assert_array_equal(reference_cache.tokens(mine), reference_cache.tokens(theirs))
    np.testing.assert_array_equal(mine.finished_pm, theirs.finished_pm)
    np.testing.assert_allclose(mine.log_probs_pm, theirs.log_probs_pm, atol=1e-3)
    before = {path: path.read_bytes() for path in (tmp_path / "references").rglob("*")
              if path.is_file()}  # fmt: skip

    # once more is nothing new; other samples, or our own, are refused
    assert import_samples(tiny, tmp_path, samples).returncode == 0
    done = import_samples(tiny, tmp_path, samples, "--rescore")
    assert done.returncode == 2
    assert "imported = " in done.stderr.strip().splitlines()[-1]
    assert before == {path: path.read_bytes() for path in before}

    # a whole comparison goes on from it: the held-out cache is sampled, this one is not
    done = program("compare", "--workdir", tmp_path, *overrides(tiny, methods="vbon,dpo"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {path: path.read_bytes() for path in before}
    names = [row["method"] for row in results.read_results(tmp_path / "results.csv")]
    assert {"vbon", "dpo"} <= set(names)
    inputs = json.loads((tmp_path / "runs/vbon-n2-s0/stage.json").read_text())["inputs"]
    assert inputs["references imported"] == mine.provenance.imported
    assert "cache imported" not in (tmp_path / "report.html").read_text()  # held out: sampled

    # half of an import is never filled up with samples of our own
    next(iter((tmp_path / "references/train").glob("shard-*"))).unlink()
    done = program("train", "--workdir", tmp_path, *overrides(tiny, n=3))
    assert done.returncode == 2
    assert "an import did not finish; run import_samples again" in done.stderr
    assert import_samples(tiny, tmp_path, samples).returncode == 0
    assert before == {path: path.read_bytes() for path in before}


def test_text_alone_is_tokenised_and_scored_by_us(tiny, released, tmp_path):
    """The tiny policy babbles: its tokens are not those that the tokenizer writes its text with."""
    rows = [{"prompt": row["prompt"], "text": row["text"]} for row in released.rows]
    file = write(tmp_path / "rows.jsonl", rows)
    arguments = [f"--samples={file}", "--rescore"]
    done = import_samples(tiny, tmp_path, *arguments)
    assert done.returncode == 2
    assert "(room for 6); change sampling.max_new_tokens" in done.stderr
    changes = {"data__over_long": "truncate", "sampling__max_new_tokens": 8}
    done = import_samples(tiny, tmp_path, *arguments, **changes)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\(\d+ responses truncated, 0 dropped\)", done.stderr)
    cache = reference_cache.load(tmp_path / "references" / "train")
    texts = reference_cache.read(cache, range(24))
    prompts = reference_cache.read(cache, range(24), column="prompt")
    pairs = [(p, t) for p, of_prompt in zip(prompts, texts, strict=True) for t in of_prompt]
    expected = reward_functions.vowels(*zip(*pairs, strict=True))
    np.testing.assert_allclose(cache.rewards_pm.reshape(-1), expected, atol=1e-6)


def test_rewards_alone_serve_the_methods_that_rank(tiny, released, tmp_path):
    samples = f"--samples={released.rewards_alone}"
    done = import_samples(tiny, tmp_path, samples, "--rescore")
    assert done.returncode == 2
    assert "there are no responses to score" in done.stderr
    assert import_samples(tiny, tmp_path, samples).returncode == 0
    cache = reference_cache.load(tmp_path / "references" / "train")
    np.testing.assert_array_equal(cache.rewards_pm, released.cache.rewards_pm)
    assert not cache.has_responses
    done = program("train", "--workdir", tmp_path, *overrides(tiny, train__steps=2))
    assert done.returncode == 0, done.stderr[-3000:]
    for changes in ({"method": "dpo"}, {"budget__sampled_tokens": 900}):
        done = program("train", "--workdir", tmp_path, *overrides(tiny, n=3, **changes))
        assert done.returncode == 2
        assert "has rewards without responses, which" in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --samples, a file to import, or --prompts, a file to write"),
        (["--samples=ROWS", "--prompts=X"], "give either --samples"),
        (["--samples=nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["--samples=MISSING"], "2 of 24 prompts have no samples in it"),
        (["--samples=SCALED"], "where the configured reward gives"),
        (["--samples=UNSCORED"], "there are no rewards; score them with --rescore"),
        (["--samples=ROWS", "--split=eval"], "of 12 prompts have no samples in it"),
        (
            ["--samples=HELD", "--split=eval"],
            "no responses, which an evaluation shows and measures",
        ),
        (["--samples=ROWS", "--config.references.samples_per_prompt=4"], "set it to 8"),
    ],
)
def test_imports_that_are_refused_leave_nothing(tiny, released, tmp_path, arguments, message):
    first, second, *_ = dict.fromkeys(row["prompt"] for row in released.rows)
    files = {
        "ROWS": released.rows,
        "MISSING": [row for row in released.rows if row["prompt"] not in (first, second)],
        "SCALED": [row | {"reward": 3 * row["reward"]} for row in released.rows],
        "UNSCORED": [{k: v for k, v in row.items() if k != "reward"} for row in released.rows],
    }
    if "--samples=HELD" in arguments:
        asked = tmp_path / "prompts.jsonl"
        done = import_samples(tiny, tmp_path / "work", f"--prompts={asked}", "--split=eval")
        assert done.returncode == 0, done.stderr[-3000:]
        prompts = [json.loads(line)["prompt"] for line in asked.read_text().splitlines()]
        files["HELD"] = [{"prompt": prompt, "rewards": [0.0] * 8} for prompt in prompts]
    for name, rows in files.items():
        write(tmp_path / f"{name}.jsonl", rows)
        arguments = [word.replace(f"={name}", f"={tmp_path / name}.jsonl") for word in arguments]
    overridden = [word for word in arguments if word.startswith("--config")]
    rest = [word for word in arguments if word not in overridden]
    workdir = tmp_path / "work"
    done = program("import_samples", "--workdir", workdir, *rest, *overrides(tiny), *overridden)
    assert done.returncode == 2, done.stderr[-3000:]
    assert message in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not (workdir / "references").exists()


# docs/data.md -------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """A completions endpoint that says the same few things of every prompt."""

    asked: list[dict]
    texts = (" of the film", " a plot.", "", " works", " and", " is")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        choices = [
            {
                "index": index,
                "text": self.texts[index % len(self.texts)],
                "finish_reason": "length" if index % len(self.texts) > 3 else "stop",
            }
            for index in range(body["n"])
        ]
        answer = json.dumps({"object": "text_completion", "choices": choices}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Nothing on the test's terminal."""


@pytest.fixture
def server():
    Server.asked = []
    with http.server.ThreadingHTTPServer(("localhost", 0), Server) as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield f"http://localhost:{made.server_port}/v1/completions"
        made.shutdown()
        thread.join()


def block(kind: str, word: str) -> str:
    """The one code block of the document with a word in it."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", DOCUMENT, re.DOTALL)
    (found,) = [text for text in blocks if word in text]
    return found


def test_the_recipe_of_the_document(tiny, server, tmp_path, monkeypatch):
    """Its commands and its code in order, but for folders in capitals, sizes and the server."""
    monkeypatch.chdir(tmp_path)
    places = {
        "POLICY": str(tiny / "policy"),
        "CLASSIFIER": "",
        "REVIEWS": str(tiny / "reviews"),
        "PROMPTS.jsonl": str(tmp_path / "PROMPTS.jsonl"),
        "SAMPLES.jsonl": str(tmp_path / "SAMPLES.jsonl"),
        "runs/imdb": str(tmp_path / "work"),
    }

    def run(word: str) -> None:
        name, *arguments = shlex.split(block("sh", word))[2:]
        assert name == "experiments.import_samples"
        words = []
        for argument in arguments:
            key, equals, value = argument.rpartition("=")
            words.append(f"{key}{equals}{places.get(value, value)}")
        done = program("import_samples", *words, *overrides(tiny))
        assert done.returncode == 0, done.stderr[-3000:]

    run("--prompts=")
    asked = [json.loads(line) for line in (tmp_path / "PROMPTS.jsonl").read_text().splitlines()]
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    assert len(asked) == 24
    assert tokenizer.decode(asked[3]["token_ids"]) == asked[3]["prompt"]

    code = block("python", "urllib.request")
    url, samples, new_tokens = re.search(r'URL, .* = "(.*)", (\d+), (\d+)', code).groups()
    assert (samples, new_tokens) == ("128", "40")  # as configs/imdb.py has them
    code = code.replace(url, server).replace("128, 40", "8, 6")
    exec(compile(code, "docs/data.md", "exec"), {})
    assert [body["prompt"] for body in Server.asked] == [row["token_ids"] for row in asked]
    assert {(body["n"], body["max_tokens"]) for body in Server.asked} == {(8, 6)}

    run("--samples=")
    cache = reference_cache.load(tmp_path / "work" / "references" / "train")
    assert cache.rewards_pm.shape == (24, 8)
    assert reference_cache.read(cache, [3]) == [[*Server.texts, *Server.texts[:2]]]
    ids = tokenizer(list(Server.texts), add_special_tokens=False)["input_ids"]
    ends = [len(i) < 6 and place < 4 for place, i in enumerate(ids)]
    assert any(ends) and not all(ends[:4])  # one has no room for its EOS
    assert cache.finished_pm[3].tolist() == [*ends, *ends[:2]]
    expected = reward_functions.vowels([asked[3]["prompt"] + text for text in Server.texts])
    np.testing.assert_allclose(cache.rewards_pm[3, :6], expected, rtol=1e-6)


def test_the_configuration_of_the_document_reads_its_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "REDDIT").mkdir()
    rows = [{"query": f"post {name}", "subreddit": name} for name in ("relationships", "tifu")]
    for split in ("train", "validation"):
        write(tmp_path / "REDDIT" / f"{split}.jsonl", rows)
    module: dict = {}
    exec(compile(block("python", "get_config"), "docs/data.md", "exec"), module)
    config = module["get_config"]()
    for split, expected in (("train", "post relationships"), ("eval", "post tifu")):
        table = sources.read_split(config.data, split)
        assert [row["prompt"] for row in table.rows] == [expected]
    assert "configs" in sys.modules


def test_every_key_that_the_document_names_exists():
    from vbon_jax.config import defaults, get

    named = set(
        re.findall(r"`(?:config\.)?((?:data|pairs|sampling|references)\.[a-z_]+)", DOCUMENT)
    )
    assert len(named) > 10
    for key in named:
        get(defaults(), key)
