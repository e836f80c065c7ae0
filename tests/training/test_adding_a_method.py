"""docs/adding_a_method.md: its code is executed, and the method that it adds runs and learns."""

import pathlib
import re

import jax
import numpy as np
import pytest

from tests.training.test_distilled import MODEL, make_task, responses, start
from vbon_jax.models import decoder
from vbon_jax.training import loop, methods, rollouts, step

TEXT = (pathlib.Path(__file__).parents[2] / "docs" / "adding_a_method.md").read_text()


@pytest.fixture
def simpo(monkeypatch):
    """The documented blocks, executed; METHODS is put back afterwards."""
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    blocks = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    names: dict = {}
    exec(compile("\n".join(blocks), "docs/adding_a_method.md", "exec"), names)
    return names["simpo_objective"]


def test_the_documented_method_is_one_function_and_one_row(simpo):
    task = make_task("simpo", pairs__beta=2.0, train__learning_rate=1e-2)
    learner, state = start(task)
    assert learner.objective is simpo
    _, batch, _ = methods.method("simpo").make_batch(task, state, 0, None)
    means = [
        rollouts.log_probs(task, state.params["decoder"], side)
        / (side.lengths_s - side.prompt_lengths_s)
        for side in (batch.best, batch.worst)
    ]
    assert len(responses(batch.best)) == len(batch.weight_s)
    margin = 2.0 * (means[0] - means[1]) - 0.5
    expected = (np.log1p(np.exp(-margin)) * batch.weight_s).sum()
    terms, _ = simpo(MODEL, learner.settings, state.params, batch)
    assert terms["response"][1].total == pytest.approx(expected, rel=1e-4)
    losses = []
    for _ in range(20):
        state, row = step.update(state, batch, np.float32(1.0), learner=learner)
        losses.append(float(row["loss/total"]))
    assert losses[-1] < 0.8 * losses[0]


def test_it_trains_in_the_loop(simpo, tmp_path):
    task = make_task("simpo", pairs__beta=2.0, train__steps=3, train__checkpoint_every=3)
    network = decoder.init(MODEL, jax.random.key(0))
    loop.run(task.config, tmp_path / "simpo", task, network, {})
    assert (tmp_path / "simpo" / "ledger.json").exists()
