"""A tiny random policy and prompts as files, for tests that run whole programs on them."""

import contextlib
import io
import json
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable

import jax
import pytest
from absl import flags
from ml_collections import ConfigDict

from vbon_jax.config import TEXT, defaults, get, owner, set_key
from vbon_jax.data import tokenizers, toy_reviews
from vbon_jax.models import decoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.types import InputError

ROOT = pathlib.Path(__file__).parents[1]


def make_policy(folder: pathlib.Path) -> pathlib.Path:
    """A random GPT-2 of width 16 with a tokenizer of its own, as a Hugging Face folder."""
    texts = [review.text for review in toy_reviews.generate(300, seed=1)]
    tokenizer = tokenizers.train_tokenizer(texts, vocab_size=300)
    network = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32}
    network |= {"vocab_size": len(tokenizer), "n_positions": 48, "initializer_range": 0.5}
    config = model_folder.config_of(network, source="tests/tiny_config.py")
    params = decoder.init(config, jax.random.key(0))
    model_folder.save(folder, config, params, settings=network, tokenizer=tokenizer)
    return folder


def make_reviews(folder: pathlib.Path) -> pathlib.Path:
    """train.jsonl and test.jsonl of reviews."""
    folder.mkdir(parents=True, exist_ok=True)
    reviews = toy_reviews.generate(140, seed=2)
    for name, part in (("train", reviews[:100]), ("test", reviews[100:])):
        rows = [json.dumps({"text": review.text, "label": review.label}) for review in part]
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def overrides(folder: pathlib.Path, **changes) -> list[str]:
    """The command-line overrides of a run of seconds on the tiny policy under `folder`."""
    values = {
        "policy.path": folder / "policy",
        "data.train": folder / "reviews",
        "data.eval": folder / "reviews",
        "reward.function": "tests.reward_functions:vowels",
        "data.train_limit": 24,
        "data.eval_limit": 12,
        "sampling.max_new_tokens": 6,
        "references.samples_per_prompt": 8,
        "references.prompts_per_shard": 8,
        "train.steps": 6,
        "train.batch_size": 4,
        "train.samples_per_prompt": 4,
        "train.epochs": 2,
        "train.minibatches": 2,
        "train.checkpoint_every": 2,
        "train.learning_rate": 1e-3,
        "evaluation.samples_per_prompt": 4,
        "evaluation.batch_prompts": 6,
        "evaluation.resamples": 100,
        "evaluation.shown_prompts": 2,
        "evaluation.ruler_n": "1,2,4",
        "n_values": "2",
    }
    if (method := changes.get("method")) in TEXT:  # it reads but a part of them
        values = {key: value for key, value in values.items() if method in owner(key).methods}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    return [f"--config.{key}={value}" for key, value in values.items()]


def configuration(folder: pathlib.Path, **changes) -> ConfigDict:
    """The configuration that `overrides` of the defaults give; tuples keep their defaults."""
    config = defaults()
    for word in overrides(folder, **changes):
        name, _, value = word.removeprefix("--config.").partition("=")
        if not isinstance(old := get(config, name), tuple):
            set_key(config, name, type(old)(value), word)
    return config


def check_refusal(call: Callable[[], object], *words: str) -> None:
    """`call` raises an InputError of one line with these words."""
    with pytest.raises(InputError) as error:
        call()
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def program(
    name: str, *arguments, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run `python -m experiments.NAME` in the repository; output is captured as text.

    In this process, which has imported everything and keeps what it compiled; with an `environment`
    in one of its own, with these variables beside ours, as a user's is.
    """
    module, words = f"experiments.{name}", list(map(str, arguments))
    if environment is None:
        return _run_here(module, words)
    return subprocess.run(
        [sys.executable, "-m", module, *words],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(name: str, *arguments, **options) -> subprocess.CompletedProcess:
    """Run a program, as `program` does; it ends well."""
    done = program(name, *arguments, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def refuse(words: str, name: str, *arguments) -> None:
    """Run a program: it ends with status 2 and a last line that has these words."""
    done = program(name, *arguments)
    assert done.returncode == 2, done.stderr[-3000:]
    assert words in done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr


def write_times(folder: pathlib.Path, pattern: str) -> dict[pathlib.Path, int]:
    """When each file was last written: what is not made again keeps its time."""
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern)}


def _run_here(module: str, words: list[str]) -> subprocess.CompletedProcess:
    """A program's main in this process, with its flags forgotten and its streams captured."""
    stdout, stderr = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    status = 0
    before, argv, progress = set(flags.FLAGS), sys.argv, logging.getLogger("vbon_jax")
    sys.argv = [module, *words]
    with (
        contextlib.redirect_stdout(stdout),
        contextlib.redirect_stderr(stderr),
        contextlib.chdir(ROOT),
        warnings.catch_warnings(action="default"),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as left:
            status = left.code or 0
        except Exception:  # noqa: BLE001 (a user would see it, and so does the test)
            status = 1
            traceback.print_exc()
        finally:
            sys.argv, progress.handlers, progress.propagate = argv, [], True
            for flag in set(flags.FLAGS) - before:
                delattr(flags.FLAGS, flag)
    texts = []
    for stream in (stdout, stderr):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    return subprocess.CompletedProcess([module, *words], status, *texts)
