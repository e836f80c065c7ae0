"""A run as a user sees it: killed and resumed, on a mapped reward, on a loss that overflows."""

import json
import os
import random
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.tiny_config import ROOT, overrides, program


def metrics(workdir, run) -> list[dict]:
    text = (workdir / "runs" / run / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# Runs that are compared bit for bit compile their programs: one that is read from the tests' cache
# can round otherwise.
COMPILED_HERE = {"JAX_ENABLE_COMPILATION_CACHE": "false"}


def train(workdir, overridden) -> subprocess.CompletedProcess:
    return program("train", "--workdir", workdir, *overridden, environment=COMPILED_HERE)


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """The workdir of an uninterrupted vBoN run."""
    workdir = tmp_path_factory.mktemp("whole")
    done = train(workdir, overrides(tiny))
    assert done.returncode == 0, done.stderr[-3000:]
    return workdir


RUN = "vbon-n4-s0"


def test_a_row_a_step_and_the_kl_starts_at_zero(whole):
    rows = metrics(whole, RUN)
    assert [row["step"] for row in rows] == list(range(6))
    assert abs(rows[0]["rollout/kl"]) <= 1e-6
    assert rows[-1]["rollout/kl"] != 0.0
    assert all(np.isfinite(value) for row in rows for value in row.values())
    # 4 prompts x 4 samples x at most 6 tokens
    assert all(row["budget/reward_calls"] == 16 for row in rows)
    assert all(16 <= row["budget/sampled_tokens"] <= 96 for row in rows)


def test_nothing_is_compiled_after_the_second_step(whole):
    text = (whole / "runs" / RUN / "timing.jsonl").read_text()
    counts = [json.loads(line)["time/compilations"] for line in text.splitlines()]
    assert counts[0] > 0
    assert counts[1:] == [counts[1]] * 5


def test_a_finished_run_is_not_run_again(whole, tiny):
    before = (whole / "runs" / RUN / "metrics.jsonl").stat().st_mtime_ns
    started = time.monotonic()
    done = train(whole, overrides(tiny))
    assert done.returncode == 0, done.stderr[-2000:]
    assert (whole / "runs" / RUN / "metrics.jsonl").stat().st_mtime_ns == before
    assert time.monotonic() - started < 120


def test_changed_inputs_are_refused_with_the_difference(whole, tiny):
    done = program("train", "--workdir", whole, *overrides(tiny, train__learning_rate=0.5))
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) >= 1
    last = done.stderr.strip().splitlines()[-1]
    assert "train.learning_rate was 0.001 and is 0.5" in last
    assert "Traceback" not in done.stderr


def test_killed_three_times_it_is_the_same_run(whole, tiny, tmp_path):
    """SIGKILL at three random moments of training; the same command gives the same metrics."""
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(tmp_path)]
    command += overrides(tiny)
    log = tmp_path / "runs" / RUN / "metrics.jsonl"
    seed = time.time_ns() % 2**32
    generator = random.Random(seed)
    for target in sorted(generator.sample(range(1, 6), 3)):
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | COMPILED_HERE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 240
        while process.poll() is None and time.monotonic() < deadline:
            if log.exists() and log.read_text().count("\n") >= target:
                break
            time.sleep(0.005)
        time.sleep(generator.random() * 0.2)
        process.kill()
        process.wait()
    done = train(tmp_path, overrides(tiny))
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-3000:]}"
    ours = log.read_bytes()
    assert ours == (whole / "runs" / RUN / "metrics.jsonl").read_bytes(), f"seed {seed}"


def test_an_increasing_map_of_the_reward_changes_nothing(whole, tiny, tmp_path):
    """vBoN reads ranks alone: bit for bit the same run, but for the raw reward in the log."""
    function = "tests.reward_functions:stretched_vowels"
    done = train(tmp_path, overrides(tiny, reward__function=function))
    assert done.returncode == 0, done.stderr[-3000:]
    plain, mapped = metrics(whole, RUN), metrics(tmp_path, RUN)
    assert plain[0]["rollout/reward"] != mapped[0]["rollout/reward"]
    for ours, theirs in zip(plain, mapped, strict=True):
        assert ours | {"rollout/reward": 0} == theirs | {"rollout/reward": 0}


def test_an_infinite_loss_stops_with_the_batch_on_disk(tiny, tmp_path):
    changes = {"reward__function": "tests.reward_functions:costly_a", "method": "kl_rl"}
    done = program("train", "--workdir", tmp_path, *overrides(tiny, **changes))
    assert done.returncode == 2, done.stderr[-2000:]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "learning_rate" in last
    batches = list((tmp_path / "runs" / "kl_rl-n4-s0").glob("bad_batch_*.npz"))
    assert len(batches) == 1
    with np.load(batches[0]) as arrays:
        assert any("returns" in name for name in arrays)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0.5}, "n=0.5"),
        ({"method": "ppo"}, "vbon, kl_rl, bond, j_bond"),
        ({"reward__function": "tests.reward_functions:not_a_number"}, "finite"),
        ({"reward__function": "tests.reward_functions:absent"}, "absent"),
        ({"train__minibatches": 3}, "train.minibatches"),
        ({"data__train": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"policy__path": "./nowhere"}, "nowhere"),
        ({"train__trainable": "nothing_like_this"}, "train.trainable"),
        ({"sampling__max_new_tokens": 60}, "max_new_tokens"),
        ({"bound": "l2"}, "bound"),
        ({"train__best_metric": "no/metric"}, "no/metric"),
    ],
)
def test_bad_input_is_one_line_and_status_two(tiny, tmp_path, changes, words):
    done = program("train", "--workdir", tmp_path, *overrides(tiny, **changes))
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert words in done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.tran.steps=3"], "train.steps"),
        (["--config.zzz=3"], "no key 'zzz'"),
        (["--config.train.steps=many"], "many"),
        (["--config=nowhere.py"], "nowhere.py"),
        (["--nonsense=1"], "nonsense"),
        (["stray"], "stray"),
    ],
)
def test_bad_flags_are_one_line_and_status_two(tmp_path, arguments, words):
    done = program("train", "--workdir", tmp_path, *arguments)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    assert words in done.stderr.strip().splitlines()[-1]


def test_the_workdir_must_be_given():
    done = program("train")
    assert done.returncode == 2
    assert "--workdir" in done.stderr
