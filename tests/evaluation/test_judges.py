"""Judges beside the training reward: on the responses of a model, and by part."""

import csv
import json
import pathlib
import types

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests import fake_models
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.evaluation import judges, stored_responses
from vbon_jax.evaluation.bootstrap import Bootstrap
from vbon_jax.report import aggregates, judge_rows, outputs
from vbon_jax.sampling import reference_cache
from vbon_jax.study import caches, check, evaluate, materials, plan, stages
from vbon_jax.types import InputError
from vbon_jax.workdir import layout, results

JUDGES = {
    "same": {"function": "tests.reward_functions:vowels"},
    "contrary": {"function": "tests.reward_functions:no_vowels"},
    "short": {"function": "tests.reward_functions:vowels_of_response"},
}
BOOTSTRAP = Bootstrap(0, 50)


def configuration(**named):
    config = defaults()
    with config.unlocked():
        config.judges = named
    return config


def evaluate_reference(tiny, workdir, **named):
    """The tiny reference policy, evaluated at three temperatures with these judges."""
    config = configuration(**named)
    config.update_from_flattened_dict({
        "policy.path": str(tiny / "policy"),
        "data.train": str(tiny / "reviews"), "data.eval": str(tiny / "reviews"),
        "data.train_limit": 4, "data.eval_limit": 12,
        "reward.function": "tests.reward_functions:vowels",
        "sampling.max_new_tokens": 6, "references.samples_per_prompt": 8,
        "evaluation.samples_per_prompt": 4, "evaluation.batch_prompts": 6,
        "evaluation.resamples": 100, "evaluation.ruler_n": (1, 2, 4),
        "evaluation.temperatures": (0.1, 0.5, 1.0),
    })  # fmt: skip
    tables = check.check(config, [])
    shared = materials.load(config, workdir, stages.make(config, workdir), tables)
    caches.build(shared, "eval")
    files.write_json(workdir / layout.COMPARE_FILE, {"command": "", "config": config.to_dict()})
    evaluate.reference(shared, evaluate.load_standards(shared))


@pytest.fixture(scope="module")
def evaluated(tiny, tmp_path_factory):
    """A folder of the reference policy alone, with its report."""
    workdir = tmp_path_factory.mktemp("judges")
    evaluate_reference(tiny, workdir, **JUDGES)
    outputs.write(workdir)
    return workdir


def judge_table(workdir):
    with (workdir / "judges.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(judge_rows.COLUMNS)
    return results.read_results(workdir / "judges.csv")


# ------------------------------------------------------------------------------- with a model


@pytest.mark.slow
def test_a_judge_that_is_the_reward_has_its_numbers(evaluated):
    rows = results.read_results(evaluated / "results.csv")
    policies = [row for row in rows if row["method"] == "reference"]
    assert [row["temperature"] for row in policies] == [0.1, 0.5, 1]
    table = {
        (row["judge"], row["run"], row["n"], row["temperature"]): row
        for row in judge_table(evaluated)
    }
    for row in policies:
        same, contrary, short = (
            table[name, row["run"], row["n"], row["temperature"]] for name in JUDGES
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
        if row["lc_win_rate"] is not None:
            assert row["lc_win_rate_lo"] <= row["lc_win_rate"] <= row["lc_win_rate_hi"]
    best = {row["n"]: row for row in rows if row["method"] == "best_of_n"}
    assert set(best) == {1, 2, 4}
    for n, row in best.items():
        same = table["same", "best_of_n", n, 1]
        assert same["method"] == "best_of_n"
        assert row["lc_win_rate"] is None
        for name in ("reward", "win_rate"):
            assert same[name] == pytest.approx(row[name], abs=1e-12)
        assert table["contrary", "best_of_n", n, 1]["win_rate"] <= 0.5 + 1e-6
    cache = table["same", "cache", 1, 1]
    assert (cache["agreement"], cache["samples_per_prompt"], cache["win_rate"]) == (1, 8, None)


@pytest.mark.slow
def test_the_rewards_of_a_judge_are_those_of_the_same_bytes(evaluated):
    folder = evaluated / "reference"
    for temperature in ("0.1", "0.5", "1"):
        stored = pq.read_table(folder / f"responses-t{temperature}.parquet")
        judge = pq.read_table(folder / "judges" / "same" / f"rewards-t{temperature}.parquet")
        assert stored["rewards"].to_pylist() == judge["rewards"].to_pylist()


@pytest.mark.slow
def test_the_page_shows_the_judges(evaluated):
    text = (evaluated / "report.html").read_text()
    for part in ("Other judges", "Win rate by contrary against KL", "tau-b"):
        assert part in text
    for name in JUDGES:
        assert (evaluated / "figures" / f"win-rate-by-{name}-against-kl.svg").is_file()


@pytest.mark.slow
def test_finished_judges_are_not_repeated_and_another_one_is_refused(evaluated, tiny):
    def stamps():
        return {path: path.stat().st_mtime_ns for path in evaluated.rglob("judges/*/[!.]*")}

    before = stamps()
    assert len(before) == 3 * (2 + 5)
    evaluate_reference(tiny, evaluated, **JUDGES)
    assert before == stamps()
    other = JUDGES | {"same": {"function": "tests.reward_functions:stretched_vowels"}}
    with pytest.raises(InputError, match="made from other inputs: judge has another content"):
        evaluate_reference(tiny, evaluated, **other)


# ------------------------------------------------------------------------------- by part


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"a/b": {"path": "x"}}, r"config\.judges\.a/b: a judge's name"),
        ({"gold": 3}, r"config\.judges\.gold is 3; give a dictionary"),
        ({"gold": {"pth": "x"}}, r"config\.judges\.gold: there is no key 'pth'"),
        ({"gold": {"path": 3}}, "path=3 is int, not str"),
        ({"gold": {}}, r"give path \(a classifier's folder\) or function"),
        ({"gold": {"path": "x", "function": "a:b"}}, "one of them"),
        ({"gold": {"path": "x", "output": "odds"}}, r"gold\.output='odds': choose one of logit"),
    ],
)
def test_judges_without_a_meaning_are_refused(own, message):
    with pytest.raises(InputError, match=message):
        plan.plan(configuration(**own), pathlib.Path())


def test_a_judge_has_the_keys_of_a_reward_and_its_defaults():
    given = {"path": "folder", "label": "0"}
    gold = plan.judges(configuration(gold=given))["gold"].to_dict()
    assert gold == defaults().reward.to_dict() | given
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
        evaluate.load_judges(types.SimpleNamespace(config=config, workdir=work), cache)
    materials = types.SimpleNamespace(config=defaults(), workdir=work)
    assert evaluate.load_judges(materials, cache) == []


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
    judges.judge_policy(judge, reference, cache, BOOTSTRAP, batch_prompts=2)
    (path,) = stored_responses.paths(reference)
    responses = stored_responses.read(path)
    inside = np.arange(responses.tokens_bng.shape[2]) < responses.lengths_bn[..., None]
    sums_bk = (responses.tokens_bng * inside).sum(axis=2) + np.arange(3)[:, None]
    rewards = pq.read_table(reference / "judges" / "sums" / "rewards-t1.parquet")["rewards"]
    np.testing.assert_array_equal(rewards.to_pylist(), sums_bk)
    one = responses._replace(
        rewards_bn=responses.rewards_bn[:, :1], lengths_bn=responses.lengths_bn[:, :1]
    )
    row = judges.policy_row(judge, cache, one, sums_bk[:, :1], BOOTSTRAP)
    assert "agreement" not in row  # there is no pair


def test_rewards_are_kept_and_those_of_another_judge_refused(tmp_path):
    work = fake_models.write_work(tmp_path, [], prompts=3)
    folder = work / "references" / "eval"
    cache = reference_cache.load(folder)

    def never(places, ids):
        raise AssertionError("it is scored")

    for score in (token_sums, never):
        judge = judges.make_judge("sums", "1", score, cache, folder, batch_prompts=2)
        judges.judge_policy(judge, work / "reference", cache, BOOTSTRAP, batch_prompts=2)
    with pytest.raises(InputError, match="made from other inputs: judge was '1' and is '2'"):
        judges.make_judge("sums", "2", never, cache, folder, batch_prompts=2)
    with pytest.raises(InputError, match="made from other inputs: judge was '1' and is '2'"):
        judges.judge_policy(
            judge._replace(fingerprint="2"), work / "reference", cache, BOOTSTRAP, batch_prompts=2
        )


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
        judges.judge_policy(judge, folder, cache, BOOTSTRAP, batch_prompts=3)
    return work


@pytest.mark.slow
def test_a_judge_is_read_without_any_model(work):
    outputs.write(work)
    rows = judge_table(work)
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
