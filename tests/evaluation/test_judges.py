"""Judges beside the training reward and equal length, through whole programs and by part."""

import csv
import json
import pathlib
import types

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import fake_models
from tests.tiny_config import overrides, program
from vbon_jax.config import defaults
from vbon_jax.evaluation import judges, stored_responses
from vbon_jax.report import aggregates, judge_rows, outputs
from vbon_jax.sampling import reference_cache
from vbon_jax.study import evaluate, plan
from vbon_jax.types import InputError
from vbon_jax.workdir import layout, results

CONFIG = """
from vbon_jax.config import defaults
def get_config(arg=None):
    config = defaults()
    with config.unlocked():
        config.judges.same = {"function": "tests.reward_functions:vowels"}
        config.judges.contrary = {"function": "tests.reward_functions:no_vowels"}
        config.judges.short = {"function": "tests.reward_functions:vowels_of_response"}
    return config.lock()
"""


def judged(workdir):
    with (workdir / "judges.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(judge_rows.COLUMNS)
    return results.read_results(workdir / "judges.csv")


@pytest.fixture(scope="module")
def compared(tiny, tmp_path_factory):
    """A comparison over the temperatures of a sweep, with three judges."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "config.py").write_text(CONFIG)
    changes = {"evaluation__temperatures": "0.1,0.5,1.0", "methods": "vbon", "train__steps": 2}
    arguments = ["--config", folder / "config.py", "--workdir", folder / "work"]
    command = ["compare", *arguments, *overrides(tiny, **changes)]
    done = program(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "work", command


# ------------------------------------------------------------------------------- whole programs


def test_a_judge_that_is_the_reward_says_what_it_says(compared):
    workdir, _ = compared
    rows = results.read_results(workdir / "results.csv")
    policies = [row for row in rows if row["method"] in ("vbon", "reference")]
    assert [row["temperature"] for row in policies] == [0.1, 0.5, 1] * 2
    said = {
        (row["judge"], row["run"], row["n"], row["temperature"]): row for row in judged(workdir)
    }
    for row in policies:
        same, contrary, short = (
            said[name, row["run"], row["n"], row["temperature"]]
            for name in ("same", "contrary", "short")
        )
        for name in ("reward", "win_rate", "win_rate_lo", "win_rate_hi", "lc_win_rate"):
            assert same[name] == pytest.approx(row[name], abs=1e-6), name
        assert same["kl"] == row["kl"]
        assert same["training_win_rate"] == contrary["training_win_rate"] == row["win_rate"]
        assert (same["agreement"], contrary["agreement"]) == (1, 0)
        assert (same["tau_b"], contrary["tau_b"]) == (pytest.approx(1), pytest.approx(-1))
        assert contrary["win_rate"] == pytest.approx(1 - row["win_rate"], abs=1e-6)
        assert 0 <= short["agreement"] <= 1
        assert short["reward"] != same["reward"]
    best = {row["n"]: row for row in rows if row["method"] == "best_of_n"}
    for n, row in best.items():
        same = said["same", "best_of_n", n, 1]
        assert same["method"] == "best_of_n"
        for name in ("reward", "win_rate"):
            assert same[name] == pytest.approx(row[name], abs=1e-5)
        assert said["contrary", "best_of_n", n, 1]["win_rate"] <= 0.5 + 1e-6
    cache = said["same", "cache", 1, 1]
    assert (cache["agreement"], cache["samples_per_prompt"], cache["win_rate"]) == (1, 8, None)


def test_the_rewards_of_a_judge_are_those_of_the_same_bytes(compared):
    workdir, _ = compared
    for folder in (workdir / "reference", workdir / "runs" / "vbon-n2-s0" / "evaluation"):
        for temperature in ("0.1", "0.5", "1"):
            own = pq.read_table(folder / f"responses-t{temperature}.parquet")
            other = pq.read_table(folder / "judges" / "same" / f"rewards-t{temperature}.parquet")
            assert own["rewards"].to_pylist() == other["rewards"].to_pylist()


def test_every_policy_has_a_win_rate_at_equal_length(compared):
    workdir, _ = compared
    rows = results.read_results(workdir / "results.csv")
    for row in rows:
        if row["method"] not in ("vbon", "reference"):
            assert row["lc_win_rate"] is None
        elif row["lc_win_rate"] is not None:
            assert row["lc_win_rate_lo"] <= row["lc_win_rate"] <= row["lc_win_rate_hi"]


def test_the_page_shows_the_judges(compared):
    workdir, _ = compared
    text = (workdir / "report.html").read_text()
    for part in ("Other judges", "Win rate by contrary against KL", "tau-b"):
        assert part in text
    for name in ("same", "contrary", "short"):
        assert (workdir / "figures" / f"win-rate-by-{name}-against-kl.svg").is_file()


def test_what_stands_is_not_judged_again_and_another_judge_is_refused(compared, tmp_path):
    workdir, command = compared
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("judges/*/*")}
    assert len(before) == 3 * (2 + 2 * 5)
    table = (workdir / "judges.csv").read_text()
    again = program(*command)
    assert again.returncode == 0, again.stderr[-3000:]
    assert before == {path: path.stat().st_mtime_ns for path in workdir.rglob("judges/*/*")}
    assert (workdir / "judges.csv").read_text() == table
    changed = tmp_path / "config.py"
    changed.write_text(CONFIG.replace("vowels", "stretched_vowels", 1))
    done = program(*["compare", "--config", changed, *command[3:]])
    assert done.returncode == 2
    assert "made from other inputs: judge was" in done.stderr
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------------------- by part


def configuration(**own):
    config = defaults()
    with config.unlocked():
        config.judges = own
    return config


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"a/b": {"path": "x"}}, r"config\.judges\.a/b: a judge's name"),
        ({"gold": 3}, r"config\.judges\.gold is 3; give a dictionary"),
        ({"gold": {"pth": "x"}}, r"config\.judges\.gold: there is no key 'pth'"),
        ({"gold": {"path": "x", "batch_size": "y"}}, "batch_size='y' is str, not int"),
        ({"gold": {}}, r"give path \(a classifier's folder\) or function"),
        ({"gold": {"path": "x", "function": "a:b"}}, "one of them"),
        ({"gold": {"path": "x", "output": "odds"}}, r"gold\.output='odds': choose one of logit"),
    ],
)
def test_judges_without_a_meaning_are_refused(own, message):
    with pytest.raises(InputError, match=message):
        plan.plan(configuration(**own), pathlib.Path())


def test_a_judge_has_the_keys_of_a_reward_and_its_defaults():
    found = plan.judges(configuration(gold={"path": "folder", "label": "0"}))
    assert found["gold"].to_dict() == defaults().reward.to_dict() | {
        "path": "folder",
        "label": "0",
    }
    assert plan.judges(defaults()) == {}


def test_a_cache_without_responses_cannot_be_judged(tmp_path):
    work = fake_models.write_work(tmp_path, [], prompts=3)
    cache = reference_cache.load(work / "references" / "eval")
    without = cache.responses._replace(lengths_bn=0 * cache.lengths_pm)
    cache = cache._replace(responses=without)
    config = configuration(gold={"function": "tests.reward_functions:vowels"})
    with pytest.raises(
        InputError, match=r"imported without responses, which config\.judges \(gold"
    ):
        evaluate.panel(types.SimpleNamespace(config=config, workdir=work), cache)
    materials = types.SimpleNamespace(config=defaults(), workdir=work)
    assert evaluate.panel(materials, cache) == []


def token_sums(places, ids):
    """A judge's scores: larger for later prompts and larger tokens."""
    return np.float32([place + sum(one) for place, one in zip(places, ids, strict=True)])


def test_every_response_is_scored_in_its_place(tmp_path):
    work = fake_models.write_work(tmp_path, [], prompts=3)
    folder = work / "references" / "eval"
    cache = reference_cache.load(folder)
    judge = judges.make_judge("sums", "1", token_sums, cache, folder, batch_prompts=2)
    expected = np.arange(3)[:, None] + np.full((3, fake_models.M), 3 + 4)
    np.testing.assert_array_equal(judge.cached_pm, expected)
    reference = work / "reference"
    judges.judge_policy(judge, reference, cache, batch_prompts=2, seed=0, resamples=50)
    (path,) = stored_responses.paths(reference)
    stored = stored_responses.read(path)
    responses = stored.responses
    inside = np.arange(responses.tokens_bng.shape[2]) < responses.lengths_bn[..., None]
    sums_bk = (responses.tokens_bng * inside).sum(axis=2) + np.arange(3)[:, None]
    rewards = pq.read_table(reference / "judges" / "sums" / "rewards-t1.parquet")["rewards"]
    np.testing.assert_array_equal(rewards.to_pylist(), sums_bk)
    one = stored._replace(
        responses=responses._replace(
            rewards_bn=responses.rewards_bn[:, :1], lengths_bn=responses.lengths_bn[:, :1]
        )
    )
    row = judges.policy_row(judge, cache, one, sums_bk[:, :1], seed=0, resamples=50)
    assert "agreement" not in row  # there is no pair


def test_rewards_are_kept_and_those_of_another_judge_refused(tmp_path):
    work = fake_models.write_work(tmp_path, [], prompts=3)
    folder = work / "references" / "eval"
    cache = reference_cache.load(folder)
    options = {"batch_prompts": 2, "seed": 0, "resamples": 50}

    def never(places, ids):
        raise AssertionError("it is scored")

    for score in (token_sums, never):
        judge = judges.make_judge("sums", "1", score, cache, folder, batch_prompts=2)
        judges.judge_policy(judge, work / "reference", cache, **options)
    with pytest.raises(InputError, match="made from other inputs: judge was '1' and is '2'"):
        judges.make_judge("sums", "2", never, cache, folder, batch_prompts=2)
    with pytest.raises(InputError, match="made from other inputs: judge was '1' and is '2'"):
        judges.judge_policy(judge._replace(fingerprint="2"), work / "reference", cache, **options)


@pytest.fixture
def work(tmp_path):
    """A folder whose responses a judge has scored, made without a model."""
    cell = {"method": "vbon", "n": 2.0, "seed": 0}
    work = fake_models.write_work(tmp_path, [cell], prompts=4, temperatures=(0.5, 1.0))
    folder = work / "references" / "eval"
    cache = reference_cache.load(folder)

    def contrary(places, ids):
        return -cache.rewards_pm[np.unique(places)].reshape(-1)

    judge = judges.make_judge("gold", "1", contrary, cache, folder, batch_prompts=3)
    judge = judge._replace(score=token_sums)
    for folder in (work / "reference", work / "runs" / "vbon-n2-s0" / "evaluation"):
        judges.judge_policy(judge, folder, cache, batch_prompts=3, seed=0, resamples=40)
    return work


def test_a_judge_is_read_without_any_model(work):
    outputs.write(work)
    rows = judged(work)
    kinds = [(row["method"], row["n"], row["temperature"]) for row in rows]
    assert kinds == [
        ("cache", 1, 1), *(("best_of_n", n, 1) for n in (1, 2, 4, 8)),
        *(("reference", 1, t) for t in (0.5, 1)), *(("vbon", 2, t) for t in (0.5, 1)),
    ]  # fmt: skip
    assert rows[0]["agreement"] == 0
    assert rows[3]["win_rate"] == pytest.approx(1 / 5, abs=1e-6)
    assert (work / "figures" / "win-rate-by-gold-against-kl.pdf").is_file()


def test_what_is_damaged_or_of_other_responses_is_not_shown(work):
    def shown():
        read = layout.read(work)
        judged = judge_rows.read(read, aggregates.ruler_rows(read))
        return {row["method"] for row in judged.rows}, read.problems

    evaluation = work / "runs" / "vbon-n2-s0" / "evaluation"
    path = evaluation / "judges" / "gold" / "rows.json"
    text = path.read_text()
    path.write_text("{")
    methods, problems = shown()
    assert methods == {"cache", "best_of_n", "reference"}
    assert "The rows of gold about" in problems[-1]
    path.write_text(text)
    (work / "reference" / "responses-t1.parquet").write_bytes(
        (evaluation / "responses-t1.parquet").read_bytes()
    )
    assert shown()[0] == {"cache", "best_of_n", "vbon"}
    stage = work / "references" / "eval" / "judges" / "gold"
    (stage / "rewards.parquet").write_bytes(b"")
    methods, problems = shown()
    assert not methods
    assert "The judge gold is not shown" in problems[-1]
    record = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps(record | {"finished": False}))
    assert not shown()[0]
