"""Equal budgets: what a run spends, its share of the cache, and when it ends."""

import json

import numpy as np
import pytest

from tests.tiny_config import overrides, program
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.sampling import reference_cache
from vbon_jax.study import caches
from vbon_jax.training import loop, methods
from vbon_jax.types import InputError


def configuration(method: str, **changes):
    config = defaults()
    config.update(method=method, n=2.0)
    config.train.steps, config.train.batch_size = 10, 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture
def cache() -> reference_cache.References:
    """4 prompts of 5 responses: the first of a prompt has 1 token, the fifth 5."""
    lengths = np.tile(np.arange(1, 6, dtype=np.int32), (4, 1))
    blank = np.zeros((4, 5), np.float32)
    return reference_cache.References(blank, lengths, blank > 1, blank, None, (), 1)


def behind(config, steps: int, *, cached: int = 0, **ledger) -> float:
    spent = {"sampled_tokens": 0, "train_flops": 0.0} | ledger
    return loop.progress(config, steps, spent, cached)


def test_how_much_of_a_run_is_behind():
    steps = configuration("vbon")
    assert behind(steps, 5, sampled_tokens=99) == 0.5
    tokens = configuration("vbon", budget__sampled_tokens=200)
    assert behind(tokens, 5, sampled_tokens=50) == 0.25
    assert behind(tokens, 5, sampled_tokens=50, cached=100) == 0.5
    # what samples nothing has spent its tokens before it begins: its steps count
    offline = configuration("dpo", budget__sampled_tokens=200)
    assert behind(offline, 5, cached=200) == 0.5
    fresh = configuration("bon_sft", budget__sampled_tokens=200, references__refresh_every=2)
    assert behind(fresh, 5, sampled_tokens=150) == 0.75
    given = configuration(
        "dpo", budget__sampled_tokens=200, references__refresh_every=2, pairs__path="x"
    )
    assert behind(given, 5) == 0.5
    for method in ("sft", "reward_model"):
        text = configuration(method, budget__sampled_tokens=200, references__refresh_every=2)
        assert behind(text, 5) == 0.5
    for method in ("vbon", "dpo"):
        flops = configuration(method, budget__train_flops=1e6)
        assert behind(flops, 5, train_flops=1e5, sampled_tokens=9) == 0.1


def used(cache, method: str, **changes) -> int:
    return caches.used(configuration(method, **changes), methods.method(method), cache)


def test_how_many_references_a_budget_pays_for(cache):
    assert used(cache, "vbon") == used(cache, "dpo") == 5
    assert used(cache, "vbon", references__used=3) == 3
    # 4 prompts: 4 tokens for one response each, 12 for two, 24, 40, 60
    assert used(cache, "dpo", budget__sampled_tokens=39) == 3
    assert used(cache, "dpo", budget__sampled_tokens=40) == 4
    assert used(cache, "dpo", budget__sampled_tokens=1000) == 5
    # a method that samples too reads what half of it pays for where it draws from the cache, and
    # an eighth where it ranks by it alone; never fewer than it needs
    assert used(cache, "bond", budget__sampled_tokens=80) == 4
    assert used(cache, "bond", budget__sampled_tokens=79) == 3
    assert used(cache, "vbon", budget__sampled_tokens=320) == 4
    assert used(cache, "vbon", budget__sampled_tokens=319) == 3
    assert used(cache, "vbon", budget__sampled_tokens=20) == 2
    assert used(cache, "vbon", budget__sampled_tokens=61, references__used=5) == 5
    assert used(cache, "vbon", budget__sampled_tokens=39, references__used=2) == 2
    # any response will do for a regression, whatever N is
    assert used(cache, "vbon_regression", budget__sampled_tokens=12, n=16.0) == 2


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("vbon", {"references__used": 6}, r"references\.used=6.*samples_per_prompt=5"),
        ("vbon", {"references__used": 1}, r"references\.used=1: vbon at n=2 needs 2 cached"),
        ("dpo", {"budget__sampled_tokens": 11}, r"sampled_tokens=11: dpo at n=2 needs 2"),
        ("dpo", {"budget__sampled_tokens": 30, "n": 4.0}, r"dpo at n=4 needs 4"),
        ("dpo", {"budget__sampled_tokens": 30, "references__used": 5}, r"sampled_tokens=30"),
        (
            "vbon",
            {"budget__sampled_tokens": 60, "references__used": 5},
            r"leave nothing for vbon to sample",
        ),
    ],
)
def test_a_budget_that_is_too_small_is_refused(cache, method, changes, message):
    with pytest.raises(InputError, match=message):
        used(cache, method, **changes)


def test_the_share_of_a_cache_by_hand(cache):
    config = configuration("dpo")
    read = caches.first(cache, 3)
    assert read.rewards_pm.shape == (4, 3)
    # one step draws 2 of 4 prompts, at 6 tokens a prompt; 3 of 5 responses of 100 seconds
    half = caches.share(config, read, 1, of_samples=5, seconds=100.0)
    assert half == {"sampled_tokens": 12, "reward_calls": 6, "seconds": 30.0}
    whole = caches.share(config, read, 99, of_samples=5, seconds=100.0)
    for key in ("budget__sampled_tokens", "budget__train_flops"):  # then all of it is charged
        assert (
            caches.share(configuration("dpo", **{key: 9}), read, 0, of_samples=5, seconds=100.0)
            == whole
        )
    assert whole == {"sampled_tokens": 24, "reward_calls": 12, "seconds": 60.0}


def test_every_cell_spends_the_same(tiny, tmp_path):
    names = "vbon,kl_rl,raft,bon_sft,dpo"
    changes = {"methods": names, "budget__sampled_tokens": 1500, "train__batch_size": 24}
    done = program("compare", "--workdir", tmp_path, *overrides(tiny, **changes))
    assert done.returncode == 0, done.stderr[-3000:]
    for name in names.split(","):
        folder = tmp_path / "runs" / f"{name}-n2-s0"
        ledger = json.loads((folder / "ledger.json").read_text())
        rows = files.read_jsonl(folder / "metrics.jsonl")
        sampled = [row.get("budget/sampled_tokens", 0) for row in rows]
        if name in ("bon_sft", "dpo"):  # all of the cache: it is worth less than the budget
            assert sum(sampled) == 0
            assert 1000 < ledger["sampled_tokens"] <= 1500
            assert len(rows) == 6
        else:
            assert ledger["sampled_tokens"] >= 1500 > ledger["sampled_tokens"] - sampled[-1]
        assert ledger["train_flops"] > 0
        assert ledger["seconds"] > 0


def test_a_budget_of_flops_ends_a_run(tiny, tmp_path):
    changes = {"method": "dpo", "train__checkpoint_every": 100}
    assert (
        program("train", "--workdir", tmp_path / "a", *overrides(tiny, **changes)).returncode == 0
    )
    ledger = json.loads((tmp_path / "a/runs/dpo-n4-s0/ledger.json").read_text())
    budget = ledger["train_flops"] * 2.25 / 6  # of 6 steps: two are too few, three are enough
    changes |= {"budget__train_flops": budget}
    assert (
        program("train", "--workdir", tmp_path / "b", *overrides(tiny, **changes)).returncode == 0
    )
    rows = files.read_jsonl(tmp_path / "b/runs/dpo-n4-s0/metrics.jsonl")
    assert len(rows) == 3
    both = {"budget__train_flops": 1.0, "budget__sampled_tokens": 5}
    done = program("train", "--workdir", tmp_path / "c", *overrides(tiny, **both))
    assert done.returncode == 2
    assert "one budget" in done.stderr
