"""Every method of the package on the enumerable policy, sampled and trained as everywhere else.

Only the task is made by hand: the prompts, a cache of M samples, and a reward that is looked up.
"""

import pathlib
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict, FrozenConfigDict

from vbon_jax.data import batching, prompt_sets
from vbon_jax.exact import enumeration
from vbon_jax.exact.enumeration import Law, Space
from vbon_jax.exact.gradients import Setting
from vbon_jax.functional import streams
from vbon_jax.models import log_probs, sharding
from vbon_jax.sampling import sampler, scoring
from vbon_jax.study import plan
from vbon_jax.training import loop, methods
from vbon_jax.types import Params

# Names that are a method and one of its options; every other name is a row of METHODS.
VARIANTS = {"vbon_l1": {"method": "vbon", "bound": "l1"}}


def every() -> list[str]:
    """All that can be trained here: every method but those of texts."""
    return [*(name for name, row in methods.METHODS.items() if not row.reads_text), *VARIANTS]


def run_config(config: ConfigDict, name: str, n: float) -> FrozenConfigDict:
    """The configuration of one run. Raises InputError where its method has no meaning for it."""
    cell = {"method": name, "n": float(n)} | VARIANTS.get(name, {})
    return plan.make_run(config, cell, pathlib.Path()).config


def make_task(config: FrozenConfigDict, setting: Setting, law: Law) -> methods.Task:
    """The task of a run. Its reference cache is a function of `references.seed`."""
    prompts = prompt_sets.PromptSet([tuple(row) for row in setting.prompts_pt.tolist()], [])
    width = setting.prompts_pt.shape[1]
    sampling = sampler.Sampling(
        max_new_tokens=config.lab.length,
        temperature=config.sampling.temperature,
        eos_token_ids=(enumeration.EOS,),
    )
    key = streams.key("reference cache of the lab", config.references.seed)
    padded = batching.pad_prompts(prompts.token_ids, width=width)
    sampled = sampler.generate(
        setting.model,
        setting.params,
        padded,
        sampler.prompt_keys(key, np.arange(len(prompts.token_ids))),
        num_samples=config.references.samples_per_prompt,
        sampling=sampling,
    )
    cache = scoring.with_log_probs(
        setting.model,
        setting.params,
        padded,
        log_probs.on_host(sampled, "the reference policy"),
        temperature=sampling.temperature,
    )
    score = _look_up(setting.space, law)
    index_s = np.repeat(np.arange(len(prompts.token_ids)), cache.lengths_bn.shape[1])
    rewards_s = score(index_s, cache.token_ids())
    mesh = sharding.config_mesh(config)
    return methods.Task(
        config=config,
        model=setting.model,
        mesh=mesh,
        prompts=prompts,
        prompt_width=width,
        reference_params=sharding.place(setting.params, mesh),
        cache=cache._replace(rewards_bn=rewards_s.reshape(cache.lengths_bn.shape)),
        score=score,
        sampling=sampling,
    )


def _look_up(space: Space, law: Law) -> Callable:
    """The reward of a task: (places of prompts, response ids) -> float32 rewards."""
    pairs = zip(space.tokens_kl.tolist(), space.lengths_k, strict=True)
    place = {tuple(tokens[:size]): k for k, (tokens, size) in enumerate(pairs)}

    def score(prompt_index_s, response_ids) -> np.ndarray:
        response_index = [place[tuple(ids)] for ids in response_ids]
        return law.rewards_pk[np.asarray(prompt_index_s), response_index].astype(np.float32)

    return score


def train(task: methods.Task, setting: Setting, folder: pathlib.Path, inputs: dict) -> Params:
    """The network at the end of a run in `folder`, which is continued, or read where it is done."""
    state = loop.run(task.config, folder, task, setting.params, inputs)
    if state is None:
        return loop.restore(folder, which="last", task=task, network=setting.params)
    return state.params["decoder"]
