"""Kills, signals and races: `python -m benchmarks.interruptions --kills 60 --terms 30 --races 100`.

Every trial is a study in small: two stages, both reference caches, the run of one method and its
evaluation. It is killed, or told to end, at a random moment and continued by the same commands, or
two processes run it at once. What it leaves is compared with what an undisturbed one leaves: rows,
shards, responses and models byte for byte, parameters and moments bit for bit.

It prints a line for each kind of trial and leaves with status 1 where any of them is not as it
should be. One core takes about three seconds a process.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import pathlib
import random
import runpy
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
import pyarrow.parquet as pq
from absl import flags

from vbon_jax import files, interrupts
from vbon_jax.data import toy_reviews
from vbon_jax.training import checkpoints

KNOWN_FLAGS = set(flags.FLAGS)  # before those of a program

METHODS = (
    *("vbon", "kl_rl", "bonbon", "dpo", "raft", "j_bond", "bon_sft", "qrpo", "online_bonbon"),
    *("vbon_regression", "ipo"),
)
RECIPE = """
from vbon_jax.config import defaults


def get_config():
    config = defaults()
    with config.unlocked():
        config.data.train = config.data.eval = REVIEWS
        config.data.train_limit, config.data.eval_limit = 12, 6
        supervised = {"steps": 4, "batch_size": 4, "text_tokens": 24, "epochs": 1, "minibatches": 1}
        supervised |= {"checkpoint_every": 2, "learning_rate": 1e-3}
        config.stages.policy = {
            "network": {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2,
                        "n_positions": 48, "initializer_range": 0.5},
            "vocab_size": 300, "method": "sft", "train": supervised,
            "data": {"train": REVIEWS, "over_long": "truncate"},
        }
        config.stages.reward = {
            "network": {"model_type": "distilbert", "dim": 16, "n_layers": 1, "n_heads": 2,
                        "hidden_dim": 32, "max_position_embeddings": 64,
                        "id2label": {"0": "NEGATIVE", "1": "POSITIVE"}},
            "vocab_size": 300, "method": "reward_model", "train": supervised,
            "data": {"train": REVIEWS, "over_long": "truncate"},
        }
        config.policy.path, config.reward.path = "stage:policy", "stage:reward"
        config.sampling.max_new_tokens = 5
        config.references.samples_per_prompt, config.references.prompts_per_shard = 4, 4
        config.n = 2.0
        config.train.steps, config.train.checkpoint_every = 6, 2
        config.train.batch_size = 4
        config.train.epochs = config.train.minibatches = 1
        config.evaluation.samples_per_prompt, config.evaluation.resamples = 2, 100
    return config.lock()
"""

# A process that has imported everything but the programs, from which the others are forked.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["benchmarks.interruptions", "vbon_jax.cli", "vbon_jax.study.train"])


# ------------------------------------------------------------------------------- one study


class Place(NamedTuple):
    """Where the trials are, with what they share."""

    root: pathlib.Path

    @property
    def recipe(self) -> pathlib.Path:
        return self.root / "recipe.py"


def _study(root: pathlib.Path, workdir: pathlib.Path, changes: list[str]) -> None:
    """Train and evaluate, as two commands would; what they print goes to `WORKDIR.PID.log`."""
    log = os.open(f"{workdir}.{os.getpid()}.log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    for name in ("train", "evaluate"):
        sys.argv = [name, f"--config={root / 'recipe.py'}", f"--workdir={workdir}", *changes]
        for flag in set(flags.FLAGS) - KNOWN_FLAGS:
            delattr(flags.FLAGS, flag)
        logging.getLogger("vbon_jax").handlers = []
        runpy.run_module(f"experiments.{name}", run_name="__main__", alter_sys=True)


def start(place: Place, workdir: pathlib.Path, *changes: str):
    """A process that makes the study of a working directory."""
    process = CONTEXT.Process(target=_study, args=(place.root, workdir, list(changes)))
    process.start()
    return process


def log_of(workdir: pathlib.Path, process) -> str:
    """What a process has printed."""
    path = pathlib.Path(f"{workdir}.{process.pid}.log")
    return path.read_text("utf-8") if path.exists() else ""


def outcome(workdir: pathlib.Path) -> dict[str, str]:
    """The digest of everything that a study is to leave, by file; seconds are left out."""
    found = {}
    patterns = ("*/*/metrics.jsonl", "*/*/run/metrics.jsonl", "*/*/model/*", "**/evaluation.json",
                "**/rows.json")  # fmt: skip
    for path in (path for pattern in patterns for path in workdir.glob(pattern)):
        found[str(path.relative_to(workdir))] = files.digest_of_file(path)
    for path in workdir.glob("**/*.parquet"):
        columns = repr(pq.read_table(path).to_pydict())
        found[str(path.relative_to(workdir))] = files.digest(columns)
    for run in (path.parent for path in workdir.glob(f"**/{checkpoints.FOLDER}")):
        step = checkpoints.steps(run)[-1]
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
            state = reader.restore((run / checkpoints.FOLDER / str(step) / "state").absolute())
        whole = hashlib.sha256()
        for key, leaf in jax.tree_util.tree_leaves_with_path(state):
            whole.update(jax.tree_util.keystr(key).encode() + np.asarray(leaf).tobytes())
        found[f"{run.relative_to(workdir)}, step {step}"] = whole.hexdigest()
    for path in workdir.glob("runs/*/ledger.json"):
        spent = files.read_json(path)
        found[str(path.relative_to(workdir))] = repr({k: spent[k] for k in spent if k != "seconds"})
    return found


def difference(first: dict[str, str], second: dict[str, str]) -> list[str]:
    """The names under which two outcomes differ."""
    return sorted(name for name in first | second if first.get(name) != second.get(name))


class Whole(NamedTuple):
    """An undisturbed study: what it left, and how long it took."""

    outcome: dict[str, str]
    seconds: float


def undisturbed(place: Place, *changes: str) -> Whole:
    """The study with these changes, made by nobody else, after one that compiled its programs."""
    for attempt in ("compiling", "whole"):
        workdir = place.root / attempt / files.digest(*changes)[:12]
        workdir.parent.mkdir(exist_ok=True)
        started = time.perf_counter()
        process = start(place, workdir, *changes)
        process.join()
        seconds = time.perf_counter() - started
        if process.exitcode:
            raise RuntimeError(log_of(workdir, process)[-3000:])
    return Whole(outcome(workdir), seconds)


# ------------------------------------------------------------------------------- trials


def lost_steps(workdir: pathlib.Path) -> list[str]:
    """The runs and stages whose last checkpoint is not of their last logged step."""
    lost = []
    for path in workdir.glob("**/metrics.jsonl"):
        rows, steps = len(files.read_jsonl(path)), checkpoints.steps(path.parent)
        if rows != (steps[-1] if steps else 0):
            lost.append(f"{path.parent.name}: {rows} rows, checkpoints {steps}")
    return lost


def interrupted(place: Place, workdir: pathlib.Path, whole: Whole, changes: list[str],
                number: int, rng: random.Random) -> list[str]:  # fmt: skip
    """Send a signal at a random moment, continue, compare; returns what is wrong."""
    problems = []
    process = start(place, workdir, *changes)
    process.join(rng.uniform(0.3, 1.0) * whole.seconds)
    alive = process.is_alive()
    if alive:
        os.kill(process.pid, number)
    process.join()
    log = log_of(workdir, process)
    if "Traceback" in log:
        problems.append(log[-2000:])
    if alive and number == signal.SIGTERM and process.exitcode:
        if process.exitcode not in (interrupts.STATUS, -signal.SIGTERM):
            problems.append(f"status {process.exitcode}: {log[-500:]}")
        problems += lost_steps(workdir)
    again = start(place, workdir, *changes)
    again.join()
    if again.exitcode:
        return [*problems, f"it does not continue: {log_of(workdir, again)[-2000:]}"]
    return problems + difference(whole.outcome, outcome(workdir))


def race(place: Place, workdir: pathlib.Path, wholes: list[Whole], changes: list[list[str]],
         rng: random.Random) -> list[str]:  # fmt: skip
    """Two processes in one working directory; returns what is wrong.

    One of them ends well; the other one too, or it is refused in one line. What they leave is what
    one of them leaves alone.
    """
    first = start(place, workdir, *changes[0])
    time.sleep(rng.uniform(0, 1.1) * wholes[0].seconds)
    second = start(place, workdir, *changes[1])
    problems, good = [], []
    for process in (first, second):
        process.join(300)
        log = log_of(workdir, process)
        last = log.strip().splitlines()[-1] if log.strip() else ""
        good.append(process.exitcode == 0)
        refused = process.exitcode == 2 and (
            "is being written by process" in last or "was made from other inputs" in last
            or "is not trained to its end" in last
        )  # fmt: skip
        if "Traceback" in log or not (good[-1] or refused):
            problems.append(f"status {process.exitcode}: {log[-2000:]}")
    if not any(good):
        problems.append("neither ended well")
    left = outcome(workdir)
    if all(difference(whole.outcome, left) for whole in wholes):
        problems.append(f"neither's result: {difference(wholes[0].outcome, left)[:5]}")
    return problems


def repeat(name: str, count: int, trial: Callable[[int], list[str]]) -> int:
    """Run a trial `count` times and print how it went; returns how many went wrong."""
    wrong = 0
    for index in range(count):
        if problems := trial(index):
            wrong += 1
            print(f"{name} {index}: {json.dumps(problems, indent=1)}", flush=True)
    print(f"{name}: {count - wrong} of {count} as they should be", flush=True)
    return wrong


@contextlib.contextmanager
def place() -> Iterator[Place]:
    """A folder for trials, with their recipe."""
    with tempfile.TemporaryDirectory() as folder:
        made = Place(pathlib.Path(folder))
        reviews = toy_reviews.generate(80, seed=0)
        for name, part in (("train", reviews[:60]), ("test", reviews[60:])):
            files.write_jsonl(
                made.root / "reviews" / f"{name}.jsonl", [review._asdict() for review in part]
            )
        made.recipe.write_text(f"REVIEWS = {str(made.root / 'reviews')!r}\n{RECIPE}", "utf-8")
        yield made


def trials(at: Place, *, kills: int, terms: int, races: int, seed: int,
           methods: tuple[str, ...] = METHODS) -> int:  # fmt: skip
    """All trials; returns how many went wrong."""
    rng, known = random.Random(seed), {}

    def whole(*changes: str) -> Whole:
        if changes not in known:
            known[changes] = undisturbed(at, *changes)
        return known[changes]

    def signalled(number: int) -> Callable[[int], list[str]]:
        def trial(index: int) -> list[str]:
            changes = [f"--config.method={methods[index % len(methods)]}"]
            workdir = at.root / f"{signal.Signals(number).name}{index}"
            return interrupted(at, workdir, whole(*changes), changes, number, rng)

        return trial

    def raced(index: int) -> list[str]:
        changes = [[f"--config.method={methods[index % 2]}"] for _ in range(2)]
        if index % 2:
            changes[1].append("--config.train.learning_rate=0.01")
        wholes = [whole(*each) for each in changes]
        return race(at, at.root / f"race{index}", wholes, changes, rng)

    wrong = repeat("SIGKILL", kills, signalled(signal.SIGKILL))
    wrong += repeat("SIGTERM", terms, signalled(signal.SIGTERM))
    return wrong + repeat("two at once", races, raced)


def main() -> None:
    """Run the trials that the flags ask for."""
    parser = argparse.ArgumentParser()
    for name, count, text in (
        ("kills", 60, "trials with SIGKILL"),
        ("terms", 30, "trials with SIGTERM"),
        ("races", 100, "trials with two processes at once"),
        ("seed", 0, "of the moments"),
    ):
        parser.add_argument(f"--{name}", type=int, default=count, help=text)
    with place() as at:
        wrong = trials(at, **vars(parser.parse_args()))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
