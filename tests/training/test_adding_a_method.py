"""docs/adding_a_method.md: its file is executed, and its method runs, learns and is reported."""

import importlib
import pathlib
import re
import sys

import numpy as np
import pytest

from tests.tiny_config import ROOT, overrides, program
from tests.training.tiny_task import MODEL, make_task, responses, start
from vbon_jax import cli
from vbon_jax import config as table
from vbon_jax.training import methods, optimizer, rollouts, step
from vbon_jax.types import InputError
from vbon_jax.workdir import results

TEXT = (ROOT / "docs" / "adding_a_method.md").read_text()
NAME = "simpo:simpo"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A folder with the documented file, from which modules are imported."""
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 1
    folder = tmp_path_factory.mktemp("own")
    (folder / "simpo.py").write_text(blocks[0])
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    del sys.modules["simpo"]


@pytest.mark.slow
def test_the_documented_method_by_hand(folder):
    simpo = importlib.import_module("simpo")
    task = make_task(NAME, simpo.KEYS, simpo__beta=2.0, train__learning_rate=1e-2)
    learner, state = start(task)
    assert learner.objective is simpo.objective
    _, batch, _ = methods.method(NAME).batch(task, state, 0, None)
    means = [
        rollouts.sequence_log_probs(task, state.params["decoder"], side)
        / (side.lengths_s - side.prompt_lengths_s)
        for side in (batch.best, batch.worst)
    ]
    assert len(responses(batch.best)) == len(batch.weight_s)
    margin = 2.0 * (means[0] - means[1]) - 0.5
    expected = (np.log1p(np.exp(-margin)) * batch.weight_s).sum()
    terms, _ = simpo.objective(MODEL, learner.constants, state.params, batch)
    assert terms["response"][1].total == pytest.approx(expected, rel=1e-4)
    losses, rates = [], optimizer.rates(task.config, 0.0, update=0, value_head=False)
    for _ in range(20):
        state, row = step.update(state, batch, rates, learner=learner)
        losses.append(float(row["loss/total"]))
    assert losses[-1] < 0.8 * losses[0]


def test_its_keys_have_defaults_and_bounds(folder):
    simpo = importlib.import_module("simpo")
    config = simpo.get_config()
    assert config.simpo.gamma == 0.5
    cli.change(config, "methods", f"{NAME},dpo")  # as --config.methods=simpo:simpo,dpo does
    assert config.methods == (NAME, "dpo")
    config.simpo.gamma = -1.0
    with pytest.raises(InputError, match=r"simpo\.gamma=-1\.0: give a number from 0"):
        table.check(config, simpo.KEYS)


def test_what_cannot_be_imported_is_refused_in_a_line(folder):
    for name, message in (
        ("nowhere:simpo", "No module named 'nowhere'"),
        ("json:simpo", "'json' has no attribute 'METHODS'"),
        ("simpo:dpo", "METHODS of simpo has simpo"),
    ):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            methods.method(name)
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_it_goes_through_training_evaluation_and_the_report(folder, tiny, tmp_path):
    changes = {"train__steps": 3, "train__checkpoint_every": 3, "methods": f"{NAME},dpo"}
    command = overrides(tiny, **changes, simpo__gamma=1.0)
    done = program("compare", f"--config={folder / 'simpo.py'}", "--workdir", tmp_path, *command)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = results.read_results(tmp_path / "results.csv")
    assert [row["method"] for row in rows if row["seed"] is not None] == ["dpo", NAME]
    assert [row["label"] for row in rows if row["seed"] is not None] == ["dpo", "simpo"]
    assert '"simpo">simpo</th>' in (tmp_path / "report.html").read_text()
