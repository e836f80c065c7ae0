"""Two programs at once, and programs that are killed or told to end; benchmarks/ has the long form.

A study in small of two stages, both caches, a run and its evaluation: what it leaves is what an
undisturbed one leaves.
"""

import random
import signal

import pytest

from benchmarks import interruptions
from vbon_jax import interrupts

pytestmark = pytest.mark.slow
VBON = ("--config.method=vbon",)
OTHER_RATE = (*VBON, "--config.train.learning_rate=0.01")


@pytest.fixture(scope="module")
def place():
    with interruptions.place() as made:
        yield made


@pytest.fixture(scope="module")
def whole(place) -> interruptions.Whole:
    return interruptions.undisturbed(place, *VBON)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_study_that_was_interrupted_is_the_undisturbed_one(place, whole, number, seed):
    workdir = place.root / f"{number}-{seed}"
    rng = random.Random(seed)
    assert interruptions.interrupted(place, workdir, whole, list(VBON), number, rng) == []


@pytest.mark.parametrize("seed", [0, 1])
def test_two_at_once_leave_what_one_leaves(place, whole, seed):
    workdir = place.root / f"same-{seed}"
    commands = [list(VBON)] * 2
    assert interruptions.race(place, workdir, [whole] * 2, commands, random.Random(seed)) == []


def test_two_rates_in_one_folder_leave_one_of_them(place, whole):
    wholes = [whole, interruptions.undisturbed(place, *OTHER_RATE)]
    commands = [list(VBON), list(OTHER_RATE)]
    rng = random.Random(0)
    assert interruptions.race(place, place.root / "rates", wholes, commands, rng) == []


def test_a_job_array_shares_stages_and_caches(place):
    workdir = place.root / "array"
    seeds = [
        interruptions.start(place, workdir, *VBON, f"--config.seed={seed}") for seed in range(3)
    ]
    for process in seeds:
        process.join(120)
        assert process.exitcode == 0, interruptions.log_of(workdir, process)[-3000:]
    assert len(list(workdir.glob("runs/vbon-n2-s?/evaluation/evaluation.json"))) == 3
    waited = "".join(interruptions.log_of(workdir, process) for process in seeds)
    assert "waiting for its end" in waited


def test_a_signal_while_nothing_trains_ends_at_once_with_the_command(place, whole):
    process = interruptions.start(place, place.root / "sampling", *VBON)
    while "references/train" not in (log := interruptions.log_of(place.root / "sampling", process)):
        process.join(0.05)
        assert process.is_alive(), log
    process.terminate()
    process.join(10)
    assert process.exitcode == interrupts.STATUS
    last = interruptions.log_of(place.root / "sampling", process).strip().splitlines()[-1]
    assert last.startswith(
        "interrupted by SIGTERM; what is finished is kept; continue with: python"
    )
    assert last.endswith(f"--workdir={place.root / 'sampling'} {VBON[0]}")
