"""Measure policies on held-out prompts: the reference, and every trained run.

K samples a prompt: reward, win rate against all cached reference rewards, KL, length, EOS rate,
distinct-2, perplexity, and the deficit to Best-of-N at the policy's own KL, each with its interval
over prompts; then, from the stored responses, the win rate at equal length and the numbers of each
of `config.judges`. A finished evaluation is not repeated.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import identity, origins
from vbon_jax.data import prompt_sets
from vbon_jax.evaluation import judges, measures, sampled_policy, stored_responses
from vbon_jax.evaluation.bootstrap import Bootstrap
from vbon_jax.functional import streams
from vbon_jax.models import sharding
from vbon_jax.sampling import reference_cache, rewards
from vbon_jax.study import caches, plan
from vbon_jax.study.materials import Materials
from vbon_jax.study.plan import Run
from vbon_jax.training import loop, methods
from vbon_jax.types import Array, InputError, Params
from vbon_jax.workdir import layout, results


class Standards(NamedTuple):
    """The references that every policy of a study is compared with."""

    cache: reference_cache.References  # of held-out prompts
    judges: list[judges.Judge]


def load_standards(materials: Materials) -> Standards:
    """The held-out cache, and each judge with its scores of it; the missing ones are computed."""
    cache = caches.load(materials, "eval")
    return Standards(cache, load_judges(materials, cache))


def load_judges(materials: Materials, cache: reference_cache.References) -> list[judges.Judge]:
    """The judges of the configuration; cached responses that they have not scored are scored."""
    config, folder = materials.config, materials.workdir / "references" / "eval"
    named = plan.judges(config)
    if named and not cache.has_responses:
        raise InputError(
            f"{folder}: its rewards were imported without responses, which config.judges "
            f"({', '.join(named)}) would score; import responses, or take the judges out"
        )
    panel = []
    for name, options in named.items():
        conversations = bool(materials.eval_prompts.conversations)
        path = materials.models.judges[name]
        reward = rewards.load(options, path, conversations=conversations)
        scorer = functools.partial(materials.scorer, materials.eval_prompts, reward=reward)
        size = config.evaluation.batch_prompts
        judge = judges.make_judge(
            name, reward.fingerprint, scorer(), cache, folder, batch_prompts=size
        )
        judged = cache.responses._replace(rewards_bn=judge.cached_pm)
        panel.append(judge._replace(score=scorer(judged)))
    return panel


def reference(materials: Materials, standards: Standards) -> None:
    """Evaluate the reference policy, in `reference/`."""
    folder = materials.workdir / "reference"
    name = results.REFERENCE
    _measure(folder, materials, standards, lambda: materials.checkpoint.params, {},
             {"method": name, "n": 1.0, "run": name})  # fmt: skip
    _derive(folder, materials, standards)


def evaluate(run: Run, materials: Materials, standards: Standards) -> list[dict[str, Any]]:
    """Evaluate a trained run, in its folder; returns its rows of the results, with its cost."""

    def load_params() -> Params:
        return trained(run, materials.checkpoint.config, materials.checkpoint.params)

    inputs = (files.recorded(run.folder) or {"inputs": {}})["inputs"]
    made_from = {f"run {key}": value for key, value in inputs.items()}
    record, folder = plan.record(run), run.folder / "evaluation"
    _measure(folder, materials, standards, load_params, made_from, record.columns())
    _derive(folder, materials, standards)
    return layout.run_rows(run.folder, record, standards.cache)


def trained(run: Run, model, network: Params) -> Params:
    """The parameters of a run's `evaluation.checkpoint`; `network` is what it began with."""
    mesh = sharding.config_mesh(run.config)
    task = methods.Task(config=run.config, model=model, mesh=mesh)
    return loop.restore(
        run.folder, which=run.config.evaluation.checkpoint, task=task, network=network
    )


def _measure(
    folder: pathlib.Path,
    materials: Materials,
    standards: Standards,
    load_params: Callable[[], Params],
    made_from: dict[str, Any],
    names: dict[str, Any],
) -> None:
    """Sample a policy at each temperature and write its responses and rows, unless they exist."""
    config, cache = materials.config, standards.cache
    inputs = identity(config, "evaluation") | made_from | cache.provenance.inputs()
    artifact = files.Artifact(folder, inputs, origins(config))
    with artifact.work(waits=True) as left:
        if not left:
            return
        for old in stored_responses.paths(folder):  # of an evaluation that was not finished
            old.unlink()
        params, rows = load_params(), []
        score = materials.scorer(materials.eval_prompts, cache.responses)
        for temperature in config.evaluation.temperatures or (config.sampling.temperature,):
            measured = _sample(materials, params, score, float(temperature), names["run"])
            _store(folder, float(temperature), measured, materials)
            summary = measures.summarise(measured, cache.rewards_pm, _bootstrap(config))
            prompts, samples = measured.kl_bn.shape
            sizes = {"prompts": prompts, "samples_per_prompt": samples}
            sizes["reference_samples"] = cache.rewards_pm.shape[1]
            at = {"temperature": float(temperature)}
            rows.append(results.make_row(estimates=summary, **at, **sizes, **names))
        files.write_json(folder / "evaluation.json", rows)
        artifact.finish("evaluation.json", *(path.name for path in stored_responses.paths(folder)))


def _sample(
    materials: Materials, params: Params, score: Callable, temperature: float, name: str
) -> measures.MeasuredResponses:
    """`sample_policy` on all held-out prompts, with a progress bar."""
    prompts, seed = materials.eval_prompts, materials.config.evaluation.seed
    with tqdm.tqdm(total=len(prompts.token_ids), desc=f"evaluate {name}", unit="prompt") as bar:
        return sample_policy(
            materials,
            params,
            score,
            prompts,
            key=streams.key("evaluation", seed),
            temperature=temperature,
            progress=lambda done, total: bar.update(done - bar.n),
        )


def _store(
    folder: pathlib.Path,
    temperature: float,
    measured: measures.MeasuredResponses,
    materials: Materials,
) -> None:
    """Write every sampled response with its reward, KL and length: the evidence behind a row."""
    decode = functools.partial(materials.tokenizer.batch_decode, skip_special_tokens=True)
    stored_responses.write(
        stored_responses.path(folder, temperature),
        measured,
        prompts=materials.eval_prompts.texts,
        texts=list(map(decode, measures.token_lists(measured.responses))),
    )


def _derive(folder: pathlib.Path, materials: Materials, standards: Standards) -> None:
    """Compute the missing derived numbers (length control, judges) of an evaluation folder."""
    cache, bootstrap = standards.cache, _bootstrap(materials.config)
    stored_responses.length_control(folder, cache, bootstrap)
    size = materials.config.evaluation.batch_prompts
    for judge in standards.judges:
        judges.judge_policy(judge, folder, cache, bootstrap, batch_prompts=size)


def _bootstrap(config: ConfigDict) -> Bootstrap:
    return Bootstrap(config.evaluation.seed, config.evaluation.resamples)


# --------------------------------------------------------------------------------------- sampling


class Selection(NamedTuple):
    """How a run is evaluated while it trains, for its curves and for choosing a checkpoint.

    Neither the prompts nor the draws are those of the results.
    """

    measure: Callable[[Params], dict[str, float]]  # params -> metrics
    inputs: dict[str, Any]  # what the metrics depend on, besides the run itself


def selection(materials: Materials) -> Selection:
    """The evaluation of a run while it trains, on prompts that no run trains on."""
    config, cache = materials.config.evaluation, caches.load(materials, "selection")
    key, bootstrap = streams.key("selection", config.seed), Bootstrap(config.seed, 100)
    prompts = materials.selection_prompts
    score = materials.scorer(prompts, cache.responses)

    def measure(params: Params) -> dict[str, float]:
        measured = sample_policy(materials, params["decoder"], score, prompts, key=key)
        summary = measures.summarise(measured, cache.rewards_pm, bootstrap)
        return {
            f"eval/{name}{end}": getattr(summary[name], field)
            for name in ("reward", "win_rate", "kl", "deficit")
            for end, field in (("", "value"), ("_se", "se"))
        }

    inputs = {f"selection {name}": value for name, value in cache.provenance.inputs().items()}
    for name in ("seed", "samples_per_prompt"):
        inputs[f"evaluation.{name}"] = config[name]
    return Selection(measure, inputs)


def sample_policy(
    materials: Materials,
    params: Params,
    score: Callable,
    prompts: prompt_sets.PromptSet,
    *,
    key: Array,
    temperature: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> measures.MeasuredResponses:
    """K responses of a policy to each of some prompts, with rewards and KL.

    `score` is a scorer of these prompts.
    """
    config, sampling = materials.config, materials.sampling
    if temperature is not None:
        sampling = dataclasses.replace(sampling, temperature=temperature)
    options = sampled_policy.Options(
        num_samples=config.evaluation.samples_per_prompt,
        sampling=sampling,
        reference_temperature=materials.sampling.temperature,
        batch_prompts=config.evaluation.batch_prompts,
    )
    return sampled_policy.collect(
        materials.checkpoint.config,
        params,
        materials.checkpoint.params,
        prompts.token_ids,
        score,
        options,
        key=key,
        progress=progress,
    )


def sentence(row: dict[str, Any]) -> str:
    """A row of the results in one line for a terminal."""
    name = results.RULERS.get(row["method"], "").format(row["n"]) or row["run"]
    text = (
        f"{name:28s} KL {row['kl']:.3f}  win rate {row['win_rate']:.3f} "
        f"[{row['win_rate_lo']:.3f}, {row['win_rate_hi']:.3f}]  reward {row['reward']:.3f}"
    )
    if row["deficit"] is None:
        return text
    return text + (
        f"  deficit to Best-of-N {row['deficit']:+.3f} "
        f"[{row['deficit_lo']:+.3f}, {row['deficit_hi']:+.3f}]"
    )
