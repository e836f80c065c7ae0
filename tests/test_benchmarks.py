"""The benchmarks run and report what their names say; how fast is for a quiet machine to tell."""

import json
import pathlib
import subprocess
import sys

import jax
import pytest

from vbon_jax.models import decoder
from vbon_jax.models.huggingface import model_folder


def test_sampling_reports_both_sides(tmp_path):
    network = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 8, "n_layer": 1, "n_head": 2}
    network |= {"n_inner": 16, "n_positions": 16}
    config = model_folder.config_of(network, source="tests/test_benchmarks.py")
    params = decoder.init(config, jax.random.key(0))
    model_folder.save(tmp_path, config, params, settings=network)
    flags = [f"--model={tmp_path}", "--batch=3", "--new_tokens=4", "--prompt_tokens=5"]
    finished = subprocess.run(
        [sys.executable, "benchmarks/sampling.py", *flags, "--rounds=1"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    *text, last = finished.stdout.strip().splitlines()
    numbers = json.loads(last)
    assert numbers.keys() >= {"ratio", "device", "threads"}
    assert (numbers["batch"], numbers["new_tokens"], numbers["rounds"]) == (3, 4, 1)
    rates = numbers["tokens_per_second"], numbers["peer_tokens_per_second"]
    assert min(rates) > 0
    assert numbers["ratio"] == pytest.approx(rates[0] / rates[1], rel=2e-3)
    assert "3 distinct prompts of 5 tokens, one sample each, 4 new tokens" in text[0]
    assert [line.split()[0] for line in text[-3:]] == ["vbon_jax", "transformers", "ratio"]


def test_memory_of_a_large_vocabulary(tmp_path):
    """The head's share of a small network's peak is at most a fifth, as the file says of GPT-2."""
    root = pathlib.Path(__file__).parents[1]
    flags = ["--width=128", "--layers=4", "--heads=8", f"--output={tmp_path / 'memory.json'}"]
    finished = subprocess.run(
        [sys.executable, "benchmarks/memory.py", *flags],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    measured = json.loads((tmp_path / "memory.json").read_text())
    assert json.loads(finished.stdout.strip().splitlines()[-1]) == measured
    written = json.loads((root / "benchmarks" / "memory.json").read_text())
    assert (written["batch"], written["tokens"], written["vocabulary"]) == (64, 512, 50257)
    for found in (measured, written):
        assert found["logits"] == 4 * 64 * 512 * 50257
        for name in ("scoring", "training"):
            row = found[name]
            assert row["ratio"] == pytest.approx(row["peak"] / row["without_head"], abs=1e-3)
            assert 1.0 <= row["ratio"] <= 1.2
