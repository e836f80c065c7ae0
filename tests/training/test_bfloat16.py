"""In bfloat16 one forward pass says what log pi_ref is: of a cache, and of a step that reads it."""

import pathlib
import types

import jax
import numpy as np
import pytest

from tests.training.tiny_task import make_task
from vbon_jax.config import defaults
from vbon_jax.data import prompt_sets
from vbon_jax.models import decoder
from vbon_jax.sampling import reference_cache, sampler
from vbon_jax.study import caches
from vbon_jax.training import loop, methods, optimizer, rollouts, step

MODEL = decoder.DecoderConfig(
    vocab_size=97, width=32, num_layers=3, num_heads=2, mlp_width=96, max_positions=48,
    initializer_std=0.2, dtype="bfloat16",
)  # fmt: skip
PROMPTS, M, NEW = 6, 16, 40
IDS = [tuple(range(3 + place, 5 + 2 * place)) for place in range(PROMPTS)]
SAMPLING = sampler.Sampling(max_new_tokens=NEW, eos_token_ids=(0,))


@pytest.fixture(scope="module")
def params():
    return decoder.init(MODEL, jax.random.key(0))


@pytest.fixture(scope="module")
def materials(params):
    config = defaults()
    config.sampling.max_new_tokens, config.references.samples_per_prompt = NEW, M
    config.references.batch_prompts = 4
    return types.SimpleNamespace(
        config=config,
        workdir=None,
        models=types.SimpleNamespace(policy="tiny"),
        checkpoint=types.SimpleNamespace(config=MODEL, params=params),
        sampling=SAMPLING,
        train_prompts=prompt_sets.PromptSet(IDS, [""] * PROMPTS),
    )


@pytest.fixture(scope="module")
def caches_of(materials):
    """A cache that is built, one whose samples are imported, and what the sampler said of them."""
    prompts, built = materials.train_prompts, []
    names = {"policy": "", "reward": "", "prompts": "", "num_prompts": PROMPTS, "seed": 0}
    sampling = {"max_new_tokens": NEW, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    provenance = reference_cache.Provenance(samples_per_prompt=M, **names, **sampling)

    def build(artifact, prompts, *, sample, **rest):
        built.append(sample(np.arange(PROMPTS)))

    sample = caches._prompt_sampler(materials, prompts, jax.random.key(1))
    sampled = sample(np.arange(PROMPTS))
    blank = sampled._replace(log_probs_bng=np.zeros_like(sampled.log_probs_bng))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_cache, "build", build)
        patch.setattr(caches, "folder_of", lambda materials, split: pathlib.Path(split))
        for source in (sample, lambda ids: jax.tree.map(lambda array: array[ids], blank)):
            caches.write(materials, "train", provenance, source, None)
    return *built, sampled


@pytest.mark.slow
def test_built_and_imported_caches_have_one_log_pi_ref_and_not_the_samplers(caches_of):
    built, imported, sampled = caches_of
    np.testing.assert_array_equal(built.tokens_bng, sampled.tokens_bng)
    np.testing.assert_array_equal(built.log_probs_bng, imported.log_probs_bng)
    off = (built.log_probs_bng - sampled.log_probs_bng).sum(axis=-1)
    assert 1e-2 < np.abs(off).max() < 2.0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [6, 24])
def test_the_first_step_finds_the_policy_at_the_reference(materials, caches_of, params, rows):
    rewards = np.random.default_rng(0).random((PROMPTS, M), np.float32)
    built = caches_of[0]._replace(rewards_bn=rewards)
    task = make_task("dpo", sampling__max_new_tokens=NEW, train__batch_size=rows)._replace(
        model=MODEL,
        prompts=materials.train_prompts,
        prompt_width=8,
        reference_params=params,
        sampling=SAMPLING,
        cache=built,
    )
    learner = loop.make_learner(task.config, task)
    state = step.init_state(learner, {"decoder": params})
    _, batch, _ = methods.method("dpo").batch(task, state, 0, None)
    again = rollouts.sequence_log_probs(task, params, batch.best)
    np.testing.assert_allclose(again, batch.reference_best_s, atol=1e-4)
    (part,) = loop.minibatches(batch, task.config, 0, task.mesh)
    rates = optimizer.rates(task.config, 0.0, update=0, value_head=True)
    _, row = step.update(state, part, rates, learner=learner)
    assert float(row["loss/response"]) == pytest.approx(np.log(2), abs=1e-6)  # h is 0
    margins = {name: float(value) for name, value in row.items() if "margin" in name}
    assert margins and max(map(abs, margins.values())) < 1e-4
