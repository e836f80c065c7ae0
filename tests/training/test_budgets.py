"""Equal budgets: what a run spends, its share of the cache, and when it ends."""

import jax
import numpy as np
import pytest

from tests.tiny_config import overrides, program
from tests.training.one_run import small_task
from tests.training.tiny_task import MODEL
from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.data import batching
from vbon_jax.models import decoder
from vbon_jax.training import budget, loop, methods
from vbon_jax.types import InputError, Responses


def configuration(method: str, **changes):
    config = defaults()
    config.update(method=method, n=2.0)
    config.train.steps, config.train.batch_size = 10, 2
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return config


@pytest.fixture
def cache() -> Responses:
    """4 prompts of 5 responses: the first of a prompt has 1 token, the fifth 5."""
    lengths = np.tile(np.arange(1, 6, dtype=np.int32), (4, 1))
    blank = np.zeros((4, 5), np.float32)
    return Responses(None, lengths, blank > 1, None, blank)


def done(config, steps: int, *, cached: int = 0, **spent) -> float:
    share = budget.CacheShare(1, cached, 0, 0.0) if cached else None
    ledger = budget.Ledger(config, methods.method(config.method), share)
    ledger.spent |= spent
    return ledger.progress(steps)


def test_how_much_of_a_run_is_done():
    steps = configuration("vbon")
    assert done(steps, 5, sampled_tokens=99) == 0.5
    tokens = configuration("vbon", budget__sampled_tokens=200)
    assert done(tokens, 5, sampled_tokens=50) == 0.25
    assert done(tokens, 5, sampled_tokens=50, cached=100) == 0.5
    # what samples nothing has spent its tokens before it begins: its steps count
    offline = configuration("dpo", budget__sampled_tokens=200)
    assert done(offline, 5, cached=200) == 0.5
    given = configuration("dpo", budget__sampled_tokens=200, pairs__path="x")
    assert done(given, 5) == 0.5
    for method in ("sft", "reward_model"):
        assert done(configuration(method, budget__sampled_tokens=200), 5) == 0.5
    for method in ("vbon", "dpo"):
        flops = configuration(method, budget__train_flops=1e6)
        assert done(flops, 5, train_flops=1e5, sampled_tokens=9) == 0.1


def used(cache, method: str, **changes) -> int:
    config = configuration(method, **changes)
    return budget.samples_of_cache(config, methods.method(method), cache)


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
    share = budget.cache_share(cache, 3, seconds=100.0)
    assert share == (4, 24, 12, 60.0)

    def owed(steps: int, **changes) -> dict:
        config = configuration("dpo", **changes)
        return budget.Ledger(config, methods.method("dpo"), share).of_cache(steps)

    # one step draws 2 of 4 prompts, at 6 tokens a prompt; 3 of 5 responses of 100 seconds
    assert owed(1) == {"sampled_tokens": 12, "reward_calls": 6, "seconds": 30.0}
    whole = {"sampled_tokens": 24, "reward_calls": 12, "seconds": 60.0}
    assert owed(99) == whole
    for key in ("budget__sampled_tokens", "budget__train_flops"):  # then all of it is charged
        assert owed(0, **{key: 9}) == whole


def spent_by(folder, method: str, tokens: int = 0, **changes) -> tuple[dict, list[dict]]:
    """The ledger and the metrics of a run on the tiny task, with a budget of sampled tokens."""
    task = small_task(method, n=2.0, budget__sampled_tokens=tokens, **changes)
    row, share = methods.method(method), None
    if row.cache:
        count = budget.samples_of_cache(task.config, row, task.cache)
        share = budget.cache_share(task.cache, count, seconds=1.0)
        task = task._replace(cache=batching.first(task.cache, count))
    network = decoder.init(MODEL, jax.random.key(0))
    loop.run(task.config, folder, task, network, {}, share=share)
    rows = files.read_jsonl(folder / "metrics.jsonl")
    return files.read_json(folder / "ledger.json"), rows


@pytest.mark.slow
@pytest.mark.parametrize("method", ["vbon", "kl_rl", "raft", "bon_sft", "dpo"])
def test_every_method_spends_the_same(tmp_path, method):
    ledger, rows = spent_by(tmp_path, method, tokens=160)
    sampled = [row.get("budget/sampled_tokens", 0) for row in rows]
    if method in ("bon_sft", "dpo"):  # as much of the cache as the budget pays for
        assert sum(sampled) == 0
        assert 110 < ledger["sampled_tokens"] <= 160
        assert len(rows) == 6
    else:
        assert ledger["sampled_tokens"] >= 160 > ledger["sampled_tokens"] - sampled[-1]
    assert ledger["train_flops"] > 0
    assert ledger["seconds"] > 0


@pytest.mark.slow
def test_cells_of_a_study_spend_the_same(tiny, tmp_path):
    changes = {"methods": "vbon,dpo", "budget__sampled_tokens": 1500, "train__batch_size": 24}
    finished = program("compare", "--workdir", tmp_path, *overrides(tiny, **changes))
    assert finished.returncode == 0, finished.stderr[-3000:]
    folders = [tmp_path / "runs" / f"{name}-n2-s0" for name in ("vbon", "dpo")]
    ours, theirs = (files.read_json(folder / "ledger.json") for folder in folders)
    last = files.read_jsonl(folders[0] / "metrics.jsonl")[-1]
    assert ours["sampled_tokens"] >= 1500
    assert ours["sampled_tokens"] - last["budget/sampled_tokens"] < 1500
    assert 1000 < theirs["sampled_tokens"] <= 1500


@pytest.mark.slow
def test_a_budget_of_flops_ends_a_run(tiny, tmp_path):
    ledger, rows = spent_by(tmp_path / "a", "dpo", train__checkpoint_every=100)
    assert len(rows) == 6
    flops = ledger["train_flops"] * 2.25 / 6  # two steps are too few, three are enough
    rows = spent_by(tmp_path / "b", "dpo", budget__train_flops=flops)[1]
    assert len(rows) == 3
    both = {"budget__train_flops": 1.0, "budget__sampled_tokens": 5}
    finished = program("train", "--workdir", tmp_path / "c", *overrides(tiny, **both))
    assert finished.returncode == 2
    assert "one budget" in finished.stderr
