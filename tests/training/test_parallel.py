"""One body on one device, as data, as fsdp, mixed and under pmap: the same numbers."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.eight_devices import METHODS
from tests.tiny_config import ROOT
from vbon_jax.config import check, defaults
from vbon_jax.models import sharding
from vbon_jax.types import InputError, Mean


@pytest.fixture(scope="module")
def steps() -> dict:
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.eight_devices"],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "layout"),
    [
        (method, layout)
        for method, layouts in METHODS.items()
        for layout in layouts
        if layout != "one"
    ],
)
def test_layouts_agree_with_one_device(steps, method, layout):
    one, other = steps[method]["one"], steps[method][layout]
    assert one["lengths"] == other["lengths"]
    assert len(set(one["lengths"])) > 2, "the masks must be ragged for this to prove anything"
    assert one["row"].get("rollout/kl_sampled", 1.0) > 0.01
    for name, value in one["row"].items():
        assert other["row"][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for mine, theirs in zip(one["updates"], other["updates"], strict=True):
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert theirs[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for name, values in one["params"].items():
        np.testing.assert_allclose(other["params"][name], values, rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_budget_of_flops_is_the_same_on_every_layout(steps):
    counts = {steps[method][layout]["flops"] for method in ("vbon", "kl_rl")
              for layout in METHODS[method]}  # fmt: skip
    assert len(counts) == 1
    spent = {row["train_flops"] for run in steps["runs"].values() for row in run}
    assert spent == {2 * 2 * counts.pop()}  # steps, minibatches


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "devices"), [("data", 8), ("fsdp", 8), ("three", 3)])
def test_evaluation_is_split_over_the_devices_with_the_same_numbers(steps, layout, devices):
    one, other = steps["evaluation"]["one"], steps["evaluation"][layout]
    assert one["tokens"] == other["tokens"]
    assert one["rewards"] == other["rewards"]
    np.testing.assert_allclose(other["kl"], one["kl"], atol=1e-5)
    assert other["flops"] < 1.3 / devices * one["flops"]


@pytest.mark.slow
def test_a_run_under_pmap_is_the_run_under_jit(steps):
    jit, pmap = steps["runs"]["jit"], steps["runs"]["pmap"]
    assert len(jit) == len(pmap) == 2
    for ours, theirs in zip(jit, pmap, strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert theirs[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_methods_differ_in_their_numbers(steps):
    vbon, kl_rl = (steps[method]["one"]["updates"][0] for method in ("vbon", "kl_rl"))
    assert abs(vbon["loss/value"] - kl_rl["loss/value"]) > 1e-3


def test_fsdp_splits_parameters_and_moments(steps):
    for layout, split in (("fsdp", True), ("mixed", True), ("data", False)):
        result = steps["vbon"][layout]
        assert any("fsdp" in spec for spec in result["split"]) is split
        assert any("fsdp" in spec for spec in result["moments_split"]) is split


def test_a_mean_of_ragged_parts_is_the_global_mean():
    # Two devices: tokens (10, 20) and (21): the mean is 17, the mean of means would be 18.
    parts = [Mean(np.float32(30.0), np.float32(2.0)), Mean(np.float32(21.0), np.float32(1.0))]
    whole = Mean(*(sum(column) for column in zip(*parts, strict=True)))
    assert float(whole.value()) == 17.0
    assert float(Mean(np.float32(0.0), np.float32(0.0)).value()) == 0.0


def test_a_mesh_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"mesh\.data x mesh\.fsdp"):
        sharding.make_mesh(data=3, fsdp=5)
    assert sharding.make_mesh(data=-1, fsdp=1).size == len(jax.devices())
    config = defaults()
    config.mesh.fsdp = 0
    with pytest.raises(InputError, match=r"mesh\.fsdp=0: give a whole number from 1"):
        check(config)
    config.mesh.pmap, config.mesh.fsdp = True, 2
    with pytest.raises(InputError, match=r"mesh\.pmap: .*mesh\.fsdp=1"):
        sharding.config_mesh(config)
