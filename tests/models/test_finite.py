"""What a network computes comes to the host by one function, which refuses what is no number."""

import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_config import check_refusal, make_policy, overrides, refuse
from vbon_jax import files
from vbon_jax.models import log_probs
from vbon_jax.models.huggingface import model_folder, safe_files
from vbon_jax.types import Responses

ROOT = pathlib.Path(__file__).parents[2]
# Where arrays of other kinds come to the host: metrics and batches of a step, parameters, and
# whether those are finite.
OTHERS = {
    "training/loop.py",
    "training/methods/vbon.py",
    "training/checkpoints.py",
    "exact/grid.py",
}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_results_that_are_not_finite(value):
    values = jnp.zeros((4, 3)).at[2, 1].set(value)
    words = ("some/folder: 1 of 12 numbers", "in row 2", "not finite")
    check_refusal(lambda: log_probs.on_host(values, "some/folder"), *words)
    responses = Responses(jnp.zeros((4, 1, 3), int), jnp.ones((4, 1), int), jnp.ones((4, 1), bool),
                          values[:, None])  # fmt: skip
    check_refusal(lambda: log_probs.on_host(responses, "some/folder"), "in row 2")
    fine = log_probs.on_host(responses._replace(log_probs_bng=jnp.zeros((4, 1, 3))), "x")
    assert all(isinstance(part, np.ndarray) for part in fine if part is not None)


def test_there_is_no_other_way_to_the_host():
    package = ROOT / "vbon_jax"
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if re.search(r"device_get|np\.asarray\(\w*log_probs", path.read_text())
    }
    assert found == OTHERS | {"models/log_probs.py"}


def test_a_tensor_that_is_not_finite_is_not_written(tmp_path):
    tensors = {"good": np.ones(2, np.float32), "bad": np.float32([1.0, np.nan])}
    file = tmp_path / "model.safetensors"
    check_refusal(lambda: safe_files.write_file(file, tensors), str(tmp_path), "bad is not finite")
    assert not file.exists()


def test_json_has_no_nan(tmp_path):
    rows = [{"a": float("nan"), "b": [1.5, float("-inf")], "c": {"d": (float("inf"), "NaN")}}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    files.write_json(tmp_path / "rows.json", rows)
    expected = [{"a": None, "b": [1.5, None], "c": {"d": [None, "NaN"]}}]
    assert files.read_jsonl(tmp_path / "rows.jsonl") == expected
    assert json.loads((tmp_path / "rows.json").read_text(), parse_constant=pytest.fail) == expected


@pytest.mark.slow
def test_programs_stop_where_a_network_overflows(tiny, tmp_path):
    """Its weights are finite, and its logits are not."""
    folder = make_policy(tmp_path / "policy")
    checkpoint, tokenizer = model_folder.load(folder), model_folder.load_tokenizer(folder)
    checkpoint.params["norm_f"]["scale"] = jnp.full(16, 3e38)
    model_folder.save(folder, checkpoint.config, checkpoint.params, settings=checkpoint.settings,
                      tokenizer=tokenizer)  # fmt: skip
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    files.write_jsonl(rows, [{"prompt": "the film", "response": " is"}])
    words = "numbers that it gives are not finite"
    refuse(words, "score", "--model", folder, "--input", rows, "--output", out)
    assert not out.exists()
    refuse(words, "generate", f"--model={folder}", "--prompt=the", "--max_new_tokens=4")
    work, changes = tmp_path / "work", {"policy__path": folder}
    refuse(words, "collect", "--workdir", work, *overrides(tiny, **changes))
    assert not list(work.glob("references/*/*.parquet"))
