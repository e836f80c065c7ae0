"""Every method of the package on the enumerable policy, sampled as it is everywhere else.

Only the task is made by hand: the prompts, a cache of M samples, and a reward that is looked up.
"""

from collections.abc import Iterator

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax.data import batching, prompt_sets
from vbon_jax.exact import enumeration
from vbon_jax.exact.enumeration import Law
from vbon_jax.exact.gradients import Setting
from vbon_jax.sampling import sampler
from vbon_jax.study import plan
from vbon_jax.training import loop, methods, optimizer, sharding, step
from vbon_jax.types import Params

# Names that are a method and something else; every other name is a row of METHODS.
NAMES = {"vbon_l1": {"method": "vbon", "bound": "l1"}}


def every() -> list[str]:
    """All that can be trained: every method but those of texts."""
    rows = [name for name, row in methods.METHODS.items() if not row.reads_text]
    return [*rows, *NAMES]


def names(config: ConfigDict) -> list[str]:
    """What is trained: `lab.sampled_methods`, or all."""
    return list(config.lab.sampled_methods) or every()


def check(config: ConfigDict, name: str, n: float) -> None:
    """InputError, naming the key, for a run that its method has no meaning for."""
    methods.check(cell_config(config, name, n))


def cell_config(config: ConfigDict, name: str, n: float) -> ConfigDict:
    """The configuration of one run."""
    return plan.config_of(config, {"n": float(n), "method": name} | NAMES.get(name, {}))


def make_task(config: ConfigDict, setting: Setting, law: Law) -> methods.Task:
    """What a run works on: the reference cache is drawn here, a function of its seed."""
    model = setting.model
    prompts = prompt_sets.PromptSet([tuple(row) for row in setting.prompts_pt.tolist()], [])
    width = setting.prompts_pt.shape[1]
    sampling = sampler.Sampling(
        max_new_tokens=config.lab.length,
        temperature=config.sampling.temperature,
        eos_token_ids=(enumeration.EOS,),
    )
    key = jax.random.key(config.references.seed)
    samples = sampler.generate(
        model,
        setting.params,
        batching.pad_prompts(prompts.token_ids, width=width),
        sampler.prompt_keys(key, np.arange(len(prompts.token_ids))),
        num_samples=config.references.samples_per_prompt,
        sampling=sampling,
    )
    samples = jax.device_get(samples)
    score = _look_up(setting, law)
    cache = samples._replace(
        rewards_bn=np.stack([
            score([place] * len(tokens), [row[:size].tolist() for row, size in
                                          zip(tokens, lengths, strict=True)])
            for place, (tokens, lengths) in enumerate(
                zip(samples.tokens_bng, samples.lengths_bn, strict=True)
            )
        ])
    )  # fmt: skip
    mesh = sharding.config_mesh(config)
    return methods.Task(
        config=config,
        model=model,
        mesh=mesh,
        prompts=prompts,
        prompt_width=width,
        reference_params=sharding.place(setting.params, mesh),
        cache=cache,
        score=score,
        sampling=sampling,
    )


def _look_up(setting: Setting, law: Law):
    """The reward of a task: (places of prompts, response ids) -> float32 rewards."""
    space, table = setting.space, {}
    responses = [
        tuple(row[:size].tolist())
        for row, size in zip(space.tokens_kl, space.lengths_k, strict=True)
    ]
    for place, rewards_k in enumerate(law.rewards_pk):
        for response, reward in zip(responses, rewards_k, strict=True):
            table[place, response] = reward

    def score(prompt_index_s, response_ids) -> np.ndarray:
        pairs = zip(prompt_index_s, response_ids, strict=True)
        return np.array([table[int(place), tuple(ids)] for place, ids in pairs], np.float32)

    return score


def run(task: methods.Task, network: Params) -> Iterator[Params]:
    """The network after each step of a run: batches, minibatches and updates as in `loop.run`."""
    config, settings = task.config, task.config.train
    method = methods.method(config.method)
    loop.check_rows(config, task.mesh)
    learner = loop.make_learner(config, task)
    params = loop.initial_params(config, task, network)
    state = step.init_state(learner, params, anchor=method.anchor)
    key = jax.random.key(config.seed)
    for at in range(settings.steps):
        state, batch, _ = method.batch(task, state, at, jax.random.fold_in(key, at))
        update = at * settings.epochs * settings.minibatches
        for number, part in enumerate(loop.minibatches(batch, config, at, task.mesh)):
            rates = optimizer.rates(config, at / settings.steps, update=update + number)
            state, _ = step.update(state, part, rates, learner=learner)
        yield state.params["decoder"]
