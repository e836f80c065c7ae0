"""Samples made elsewhere: how they are read, what is refused, and the cache that they become."""

import io
import json
import re
import shlex
import sys
import urllib.request

import numpy as np
import pytest

from tests import reward_functions, tiny_config
from tests.data.test_prompt_sets import Words
from tests.tiny_config import ROOT, overrides, program
from vbon_jax.config import defaults, get
from vbon_jax.data import prompt_sets, sources
from vbon_jax.data.response_ids import Ends
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import external_samples, reference_cache
from vbon_jax.study import caches, check, import_samples, stages
from vbon_jax.study.materials import Materials, load
from vbon_jax.types import InputError
from vbon_jax.workdir import results

DOCUMENT = (ROOT / "docs" / "data.md").read_text()
PROMPTS = prompt_sets.PromptSet([(5, 6), (7,), (0,)], ["5 6", "7", "0"])
EOS = 9
ONE = prompt_sets.PromptSet([(7,)], ["7"])


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Digits(Words):
    """A tokenizer with ten tokens."""

    def __len__(self):
        return 10


@pytest.fixture
def read(tmp_path):
    """Reads rows, or a file, for some prompts."""

    def read(rows, prompts=PROMPTS, **changes) -> external_samples.Imported:
        source = write(tmp_path / "rows.jsonl", rows) if isinstance(rows, list) else rows
        options = {"samples_per_prompt": 2, "new_tokens": 3, "ends": Ends((EOS,), EOS)}
        return external_samples.read(str(source), prompts, Digits(), **{**options, **changes})

    return read


def samples() -> list[dict]:
    """Two samples for each prompt."""
    return [
        {"prompt": prompt, "responses": responses, "rewards": [place / 2, place / 2 + 0.25]}
        for place, (prompt, responses) in enumerate(
            (("5 6", [" 1 2", " 3"]), ("7", [" 1 2", " 3"]), ("0", ["1 2", "3"]))  # 0 is the BOS
        )
    ]


# Reading ------------------------------------------------------------------------------------------


def test_texts_become_responses_with_an_end(read):
    imported = read(samples())
    assert imported.responses.tokens_bng.tolist() == [[[1, 2, EOS], [3, EOS, 0]]] * 3
    assert imported.responses.lengths_bn.tolist() == [[3, 2]] * 3
    assert imported.responses.finished_bn.all()
    assert imported.responses.rewards_bn.tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]]
    assert [array.dtype for array in imported.responses[:5]] == [
        np.int32, np.int32, bool, np.float32, np.float32,
    ]  # fmt: skip
    assert [place[-6:] for place in imported.places] == ["line 1", "line 2", "line 3"]
    assert imported.truncated == 0
    other = samples()
    other[1]["rewards"][0] = 7
    assert read(other).fingerprint != imported.fingerprint


def test_any_source_and_any_order(read, tmp_path):
    expected = read(samples()).fingerprint
    (tmp_path / "a.json").write_text(json.dumps(samples()[::-1]))
    assert read(tmp_path / "a.json").fingerprint == expected


def test_rewards_without_responses_and_responses_without_rewards(read):
    rewards = [{"prompt": row["prompt"], "rewards": row["rewards"]} for row in samples()]
    responses = read(rewards).responses
    assert not responses.lengths_bn.any() and not responses.finished_bn.any()
    assert responses.rewards_bn.shape == (3, 2) and responses.tokens_bng.shape == (3, 2, 3)
    texts = [{"prompt": row["prompt"], "responses": row["responses"]} for row in samples()]
    assert read(texts).responses.rewards_bn is None


def test_how_a_response_ended(read):
    texts = [" 1", " 1", " 1 2 3", " 1 2 9", ""]
    row = {"prompt": "7", "responses": texts, "finished": [True, False, True, True, True]}
    responses = read([row], ONE, samples_per_prompt=5).responses
    assert responses.tokens_bng[0].tolist() == [
        [1, 9, 0],
        [1, 0, 0],
        [1, 2, 3],
        [1, 2, 9],
        [9, 0, 0],
    ]
    assert responses.finished_bn.tolist() == [[True, False, False, True, True]]
    del row["finished"]
    responses = read([row], ONE, samples_per_prompt=5).responses
    assert responses.finished_bn.tolist() == [[True, True, False, True, True]]
    reasons = {"finish_reason": ["stop", "length", "stop", "stop", "stop"]}
    responses = read([row | reasons], ONE, samples_per_prompt=5).responses
    assert responses.finished_bn.tolist() == [[True, False, False, True, True]]
    with pytest.raises(InputError, match=r"'finish_reason', place 1 is 'abort', not stop or len"):
        read([row | {"finish_reason": ["abort"] * 5}], ONE, samples_per_prompt=5)
    row = {"prompt": "7", "responses": [" 1"]}
    responses = read([row], ONE, samples_per_prompt=1, ends=Ends(())).responses
    assert not responses.finished_bn.any() and responses.lengths_bn.tolist() == [[1]]


def test_tokens_are_taken_as_they_were_sampled(read):
    expected = read(samples()).fingerprint
    rows = [
        row | {"response_tokens": [[1, 2, EOS], [3, EOS]], "responses": ["?", ""]}
        for row in samples()
    ]
    assert read(rows).fingerprint == expected
    for row in rows:
        del row["responses"]
    assert read(rows).fingerprint == expected
    # any of the model's ends is an end, and stays the one it is
    rows[0]["response_tokens"] = [[1, 8], [3, EOS]]
    responses = read(rows, ends=Ends((8, EOS), 8)).responses
    assert responses.tokens_bng[0].tolist() == [[1, 8, 0], [3, EOS, 0]]
    assert responses.finished_bn.all()


def test_a_prompt_is_found_by_its_text_or_its_tokens(read):
    prompts = PROMPTS._replace(texts=["5  6", "7", "<begin>"])
    rows = [*samples(), {"prompt": "8 8", "responses": [" 1"], "rewards": [0.0]}]
    rows[1] |= {"prompt_tokens": [7], "prompt": "as it was shown"}
    rows[2]["prompt"] = ""  # becomes the BOS
    responses = read(rows, prompts).responses
    assert responses.rewards_bn.tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]]
    with pytest.raises(
        InputError, match=r"2 of 3 prompts have no samples in it \(the first: '5 6', "
    ):
        read(samples()[1:2])
    with pytest.raises(InputError, match=r"line 4 has the prompt of line 1; give each once"):
        read([*samples(), samples()[0]])


def test_a_response_that_is_too_long_is_refused_or_cut(read):
    rows = samples()
    rows[1]["responses"] = [" 1", " 1 2 3 4"]
    with pytest.raises(
        InputError, match=r"line 2: a response of 4 tokens \(room for 3\); change sam"
    ):
        read(rows)
    cut = read(rows, truncate=True)
    assert cut.truncated == 1
    assert cut.responses.tokens_bng[1].tolist() == [[1, 9, 0], [1, 2, 3]]
    assert cut.responses.finished_bn[1].tolist() == [True, False]
    with pytest.raises(
        InputError, match=r"1 responses were cut after they were scored; score them"
    ):
        external_samples.check_rewards(cut, lambda *_: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": None}, r"line 2: field 'prompt' is NoneType, not str"),
        ({"prompt": 3}, r"line 2: field 'prompt' is int, not str"),
        ({"prompt_tokens": ["7"]}, r"'prompt_tokens' is not a list of whole numbers"),
        ({"rewards": [0.5]}, r"line 2: field 'rewards' has 1 values and .* is 2; set that to 1"),
        ({"responses": "12"}, r"line 2: field 'responses' is str, not a list; give a value"),
        ({"responses": []}, r"line 2: field 'responses' has 0 values"),
        ({"responses": ["1", 2]}, r"line 2: field 'responses', place 2 is int, not str"),
        ({"rewards": [0.5, None]}, r"'rewards', place 2 is NoneType, not a number"),
        ({"rewards": ["1", 1]}, r"'rewards', place 1 is str, not a number"),
        ({"rewards": [True, 1]}, r"'rewards', place 1 is bool, not a number"),
        ({"rewards": [1, float("inf")]}, r"'rewards', place 2 is inf; give a finite"),
        ({"rewards": [1, float("nan")]}, r"'rewards', place 2 is nan; give a finite"),
        ({"responses": None}, r"line 2: field 'responses' is missing; give .* in every row"),
        ({"rewards": None}, r"line 2: field 'rewards' is missing; give .* in every row"),
        (
            {"responses": [" 1 9 2", " 1"]},
            r"line 2: response 1 has an end-of-text token before its end",
        ),
        ({"responses": ["", " 1"]}, r"line 2: a response without an end is empty; take it out"),
        ({"responses": [" 1 9", " 1"]}, r"line 2: a response has an EOS and is not finished"),
        ({"finished": [True]}, r"line 2: field 'finished' has 1 values"),
        ({"finished": ["stop", True]}, r"'finished', place 1 is str, not bool"),
    ],
)
def test_rows_that_cannot_be_used(read, change, message):
    rows = [row | {"finished": [False, False]} for row in samples()]
    rows[1] |= change
    with pytest.raises(InputError, match=message) as error:
        read(rows)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1, "2"], r"place 1 is not a list of whole numbers"),
        ([1, True], r"place 1 is not a list of whole numbers"),
        ([1, 10], r"has the token 10, and the policy's tokenizer 10 of them; sample with"),
        ([-1], r"has the token -1, and"),
        ([1, EOS, 2], r"line 1 has an end-of-text token before its end"),
    ],
)
def test_tokens_that_cannot_be_used(read, ids, message):
    with pytest.raises(InputError, match=message):
        read([{"prompt": "7", "response_tokens": [ids]}], ONE, samples_per_prompt=1)


def test_a_file_needs_responses_or_rewards(read):
    with pytest.raises(InputError, match=r"no responses, response_tokens or rewards; add one"):
        read([{"prompt": row["prompt"]} for row in samples()])
    with pytest.raises(InputError, match=r"line 1 has no field 'prompt' \(it has: responses\)"):
        read([{"responses": ["a"]}])


def test_rewards_are_compared_with_our_own(read):
    imported = read(samples())
    scored_pairs = []

    def score(prompts, responses):
        scored_pairs.extend(zip(prompts, responses, strict=True))
        places = [int(len(response) == 2) for response in responses]
        return imported.responses.rewards_bn[prompts, places]

    def with_rewards(rewards_bn):
        return imported._replace(responses=imported.responses._replace(rewards_bn=rewards_bn))

    external_samples.check_rewards(imported, score)
    assert scored_pairs[:2] == [(0, [1, 2, 9]), (0, [3, 9])]
    assert len(scored_pairs) == 6
    scored_pairs.clear()
    external_samples.check_rewards(imported, score, count=2)
    assert [prompt for prompt, _ in scored_pairs] == [0, 2]  # spread over the file
    external_samples.check_rewards(with_rewards(imported.responses.rewards_bn + 0.01), score)
    message = r"line 2 has the reward 2\.2500 where the configured reward gives 0\.7500"
    with pytest.raises(InputError, match=message):
        scaled = imported.responses.rewards_bn * [[1, 1], [1, 3], [1, 1]]
        external_samples.check_rewards(with_rewards(scaled), score)


# Importing ----------------------------------------------------------------------------------------


def load_materials(config, workdir) -> Materials:
    tables = check.check(config, [])
    return load(config, workdir, stages.make(config, workdir), tables)


@pytest.fixture(scope="module")
def materials(tiny, tmp_path_factory):
    return load_materials(tiny_config.configuration(tiny), tmp_path_factory.mktemp("materials"))


@pytest.fixture(scope="module")
def sampled(materials) -> reference_cache.References:
    """The reference cache of the tiny configuration, sampled here."""
    caches.build(materials, "train")
    return caches.load(materials, "train")


@pytest.fixture(scope="module")
def rows(sampled) -> list[dict]:
    """Our own samples, as if somebody else had made them."""
    ids = range(len(sampled.rewards_pm))
    names = ("prompt", "responses", "response_tokens", "rewards")
    columns = [reference_cache.read(sampled, ids, column=name) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def import_file(tiny, workdir, *arguments, **changes):
    return program("import_samples", "--workdir", workdir, *arguments, *overrides(tiny, **changes))


@pytest.mark.slow
def test_an_import_is_what_was_sampled(tiny, sampled, rows, tmp_path):
    """And a comparison continues from it."""
    samples = f"--samples={write(tmp_path / 'rows.jsonl', rows)}"
    done = import_file(tiny, tmp_path, samples)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "references/train: 24 prompts x 8 rewards" in done.stderr
    assert "nats a token under" in done.stderr
    folder = tmp_path / "references" / "train"
    cache = reference_cache.load(folder)
    provenance = cache.provenance._asdict()
    assert len(provenance.pop("imported")) == 64
    assert provenance == {k: v for k, v in sampled.provenance._asdict().items() if k != "imported"}
    for name in ("rewards_bn", "tokens_bng", "finished_bn"):
        np.testing.assert_array_equal(
            getattr(cache.responses, name), getattr(sampled.responses, name)
        )
    log_probs = cache.responses.log_probs_bng, sampled.responses.log_probs_bng
    np.testing.assert_allclose(*log_probs, atol=1e-3)
    before = {path: path.read_bytes() for path in folder.glob("shard-*")}

    # once more is nothing new; other samples, or our own, are refused
    assert import_file(tiny, tmp_path, samples).returncode == 0
    done = import_file(tiny, tmp_path, samples, "--rescore")
    assert done.returncode == 2
    assert "imported has another content" in done.stderr.strip().splitlines()[-1]
    assert before == {path: path.read_bytes() for path in folder.glob("shard-*")}

    # a whole comparison continues from it: the held-out cache is sampled, this one is not
    done = program("compare", "--workdir", tmp_path, *overrides(tiny, methods="vbon,dpo"))
    assert done.returncode == 0, done.stderr[-3000:]
    assert before == {path: path.read_bytes() for path in folder.glob("shard-*")}
    names = [row["method"] for row in results.read_results(tmp_path / "results.csv")]
    assert {"vbon", "dpo"} <= set(names)
    inputs = json.loads((tmp_path / "runs/vbon-n2-s0/stage.json").read_text())["inputs"]
    assert inputs["references imported"] == cache.provenance.imported
    assert "cache imported" not in (tmp_path / "report.html").read_text()  # held out: sampled

    # half of an import is never filled up with samples of our own
    next(iter(folder.glob("shard-*"))).unlink()
    done = program("train", "--workdir", tmp_path, *overrides(tiny, n=3))
    assert done.returncode == 2
    assert "an import did not finish; run import_samples again" in done.stderr
    assert import_file(tiny, tmp_path, samples).returncode == 0
    assert before == {path: path.read_bytes() for path in folder.glob("shard-*")}


@pytest.mark.slow
def test_the_shards_of_a_cache_can_be_imported(materials, sampled, tmp_path):
    (tmp_path / "parts").mkdir()
    for number, shard in enumerate(sampled.shards):
        part = tmp_path / "parts" / f"train-{number:05d}-of-{len(sampled.shards):05d}.parquet"
        part.write_bytes(shard.read_bytes())
    materials, parts = materials._replace(workdir=tmp_path), str(tmp_path / "parts")
    cache = import_samples.import_cache(materials, "train", parts, rescore=False)
    np.testing.assert_array_equal(cache.responses.tokens_bng, sampled.responses.tokens_bng)
    np.testing.assert_array_equal(cache.rewards_pm, sampled.rewards_pm)


@pytest.mark.slow
def test_text_alone_is_tokenised_and_scored_by_us(tiny, rows, tmp_path, caplog):
    """The tiny policy babbles: its tokens are not those that the tokenizer writes its text with."""
    texts = [{"prompt": row["prompt"], "responses": row["responses"]} for row in rows]
    file = str(write(tmp_path / "rows.jsonl", texts))
    changes = {"data__over_long": "truncate", "sampling__max_new_tokens": 8}
    materials = load_materials(tiny_config.configuration(tiny, **changes), tmp_path)
    with caplog.at_level("INFO", logger="vbon_jax"):
        cache = import_samples.import_cache(materials, "train", file, rescore=True)
    assert re.search(r"24 prompts from .*\(\d+ responses truncated\)", caplog.text)
    texts = reference_cache.read(cache, range(24))
    pairs = [(row["prompt"], t) for row, of in zip(rows, texts, strict=True) for t in of]
    expected = reward_functions.vowels(*zip(*pairs, strict=True))
    np.testing.assert_allclose(cache.rewards_pm.reshape(-1), expected, atol=1e-6)


@pytest.mark.slow
def test_rounded_rewards_of_equal_texts_are_equal_and_pay_for_a_missing_end(tiny, rows, tmp_path):
    """A file's rewards are without the penalty, and of three digits; the scorer returns them."""
    cut = [row | {"rewards": np.round(row["rewards"], 3).tolist()} for row in rows]
    twins = [row | {"responses": [row["responses"][0]] * 8} for row in cut]
    for row in twins:
        row["response_tokens"] = [row["response_tokens"][0]] * 8
        row["rewards"] = [row["rewards"][0] + 1e-4 * place for place in range(8)]
    materials = load_materials(
        tiny_config.configuration(tiny, reward__missing_eos_penalty=10.0), tmp_path
    )
    for name, given in (("cut", cut), ("twins", twins)):
        file = str(write(tmp_path / f"{name}.jsonl", given))
        work = materials._replace(workdir=tmp_path / name)
        cache = import_samples.import_cache(work, "train", file, rescore=False).responses
        np.testing.assert_array_equal(cache.rewards_bn > -5, cache.finished_bn)
        score = materials.scorer(materials.train_prompts, cache)
        scored = score(np.repeat(np.arange(24), 8), cache.token_ids())
        np.testing.assert_array_equal(scored, cache.rewards_bn.reshape(-1))
    assert (cache.rewards_bn == cache.rewards_bn[:, :1]).all()
    file = str(write(tmp_path / "alone.jsonl", [
        {"prompt": row["prompt"], "rewards": row["rewards"]} for row in rows
    ]))  # fmt: skip
    with pytest.raises(InputError, match=r"which have an end; .* reward\.missing_eos_penalty to 0"):
        import_samples.import_cache(materials, "train", file, rescore=False)


@pytest.mark.slow
def test_rewards_alone_serve_the_methods_that_rank(tiny, sampled, rows, tmp_path):
    rewards = [{"prompt": row["prompt"], "rewards": row["rewards"]} for row in rows]
    samples = f"--samples={write(tmp_path / 'rewards.jsonl', rewards)}"
    done = import_file(tiny, tmp_path, samples, "--rescore")
    assert done.returncode == 2
    assert "there are no responses to score" in done.stderr
    assert import_file(tiny, tmp_path, samples).returncode == 0
    cache = reference_cache.load(tmp_path / "references" / "train")
    np.testing.assert_array_equal(cache.rewards_pm, sampled.rewards_pm)
    assert not cache.has_responses
    done = program("train", "--workdir", tmp_path, *overrides(tiny, train__steps=2))
    assert done.returncode == 0, done.stderr[-3000:]
    for changes in ({"method": "dpo"}, {"budget__sampled_tokens": 900}):
        done = program("train", "--workdir", tmp_path, *overrides(tiny, n=3, **changes))
        assert done.returncode == 2
        assert "has rewards without responses, which" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [[], ["--samples=ROWS", "--prompts=X"]])
def test_the_program_writes_prompts_or_reads_samples(tiny, tmp_path, arguments):
    done = import_file(tiny, tmp_path / "work", *arguments)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    message = "give either --samples, a file to import, or --prompts, a file to write"
    assert message in done.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "work" / "references").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "split", "message"),
    [
        ("nowhere", "train", "nowhere.jsonl: no such file or folder"),
        ("missing", "train", "2 of 24 prompts have no samples in it"),
        ("scaled", "train", "where the configured reward gives"),
        ("unscored", "train", "there are no rewards; score them with --rescore"),
        ("rows", "eval", "of 12 prompts have no samples in it"),
        ("held_out", "eval", "no responses, which an evaluation shows and measures"),
        ("half", "train", "set that to 4"),
    ],
)
def test_imports_that_are_refused_leave_nothing(materials, rows, tmp_path, file, split, message):
    kinds = {
        "rows": rows,
        "missing": rows[2:],
        "scaled": [row | {"rewards": [3 * reward for reward in row["rewards"]]} for row in rows],
        "unscored": [{k: v for k, v in row.items() if k != "rewards"} for row in rows],
        "held_out": [
            {"prompt": prompt, "rewards": [0.0] * 8} for prompt in materials.eval_prompts.texts
        ],
        "half": [{k: v if isinstance(v, str) else v[:4] for k, v in row.items()} for row in rows],
    }
    for name, content in kinds.items():
        write(tmp_path / f"{name}.jsonl", content)
    samples, workdir = str(tmp_path / f"{file}.jsonl"), tmp_path / "work"
    with pytest.raises(InputError, match=re.escape(message)):
        import_samples.import_cache(
            materials._replace(workdir=workdir), split, samples, rescore=False
        )
    assert not workdir.exists()


# docs/data.md -------------------------------------------------------------------------------------


TEXTS = (" of the film", " a plot.", "", " works", " and", " is")


@pytest.fixture
def bodies(monkeypatch) -> list[dict]:
    """The requests to a completions endpoint that gives the same few texts for every prompt."""
    bodies: list[dict] = []

    def urlopen(request: urllib.request.Request) -> io.BytesIO:
        assert request.full_url == "http://localhost:8000/v1/completions"
        bodies.append(json.loads(request.data))
        choices = [
            {"text": TEXTS[index % 6], "finish_reason": "length" if index % 6 > 3 else "stop"}
            for index in range(bodies[-1]["n"])
        ]
        return io.BytesIO(json.dumps({"choices": choices}).encode())

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return bodies


def block(kind: str, word: str) -> str:
    """The one code block of the document with a word in it."""
    blocks = re.findall(rf"```{kind}\n(.*?)```", DOCUMENT, re.DOTALL)
    (matching,) = [text for text in blocks if word in text]
    return matching


@pytest.mark.slow
def test_the_recipe_for_a_server(tiny, bodies, tmp_path, monkeypatch):
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
    prompts = [json.loads(line) for line in (tmp_path / "PROMPTS.jsonl").read_text().splitlines()]
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    assert len(prompts) == 24
    assert tokenizer.decode(prompts[3]["prompt_tokens"]) == prompts[3]["prompt"]

    code = block("python", "urllib.request")
    assert code.count("128, 40") == 1  # as configs/imdb.py has them
    exec(compile(code.replace("128, 40", "8, 6"), "docs/data.md", "exec"), {})
    assert [body["prompt"] for body in bodies] == [row["prompt_tokens"] for row in prompts]
    assert {(body["n"], body["max_tokens"]) for body in bodies} == {(8, 6)}

    run("--samples=")
    cache = reference_cache.load(tmp_path / "work" / "references" / "train")
    assert cache.rewards_pm.shape == (24, 8)
    assert reference_cache.read(cache, [3]) == [[*TEXTS, *TEXTS[:2]]]
    ids = tokenizer(list(TEXTS), add_special_tokens=False)["input_ids"]
    ends = [len(i) < 6 and place < 4 for place, i in enumerate(ids)]
    assert any(ends) and not all(ends[:4])  # one has no room for its EOS
    assert cache.responses.finished_bn[3].tolist() == [*ends, *ends[:2]]
    expected = reward_functions.vowels([prompts[3]["prompt"]] * 6, list(TEXTS))
    np.testing.assert_allclose(cache.rewards_pm[3, :6], expected, rtol=1e-6)


def test_the_recipe_for_the_released_files(read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = block("python", "RELEASED.jsonl")
    sentiment = [
        {"prompt": row["prompt"], "text": row["prompt"] + response, "reward": reward}
        for row in samples()
        for response, reward in zip(row["responses"], row["rewards"], strict=True)
    ]
    summaries = [row | {"policy": "sft"} for row in samples()]
    summaries += [row | {"policy": "other", "rewards": [5.0, 5.0]} for row in samples()]
    rewards = [{"prompt": row["prompt"], "rewards": row["rewards"]} for row in samples()]
    for released, options, expected in (
        (sentiment, "128, None", samples()),
        (sentiment + sentiment, "2, None", samples()),
        (summaries, '128, "sft"', samples()),
        (rewards, "128, None", rewards),
    ):
        write(tmp_path / "RELEASED.jsonl", released)
        assert code.count("128, None") == 1
        exec(compile(code.replace("128, None", options), "docs/data.md", "exec"), {})
        assert read(tmp_path / "SAMPLES.jsonl").fingerprint == read(expected).fingerprint


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
    named = set(
        re.findall(r"`(?:config\.)?((?:data|pairs|sampling|references)\.[a-z_]+)", DOCUMENT)
    )
    assert len(named) > 10
    for key in named:
        get(defaults(), key)
