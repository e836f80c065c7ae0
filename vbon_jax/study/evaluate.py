"""Measure a run on held-out prompts: `python -m experiments.evaluate --run DIR --workdir DIR ...`.

K samples a prompt: reward, win rate against all cached reference rewards, KL, length, EOS rate,
distinct-2, perplexity, and the deficit to Best-of-N at the policy's own KL, each with its interval
over prompts; then, from the stored responses, the win rate at equal length and the numbers of each
of `config.judges`. A finished evaluation is not repeated.
"""

import functools
import json
import pathlib

import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import identity
from vbon_jax.evaluation import judges, measures, sampled_policy, stored_responses
from vbon_jax.sampling import reference_cache, rewards
from vbon_jax.study import pipeline
from vbon_jax.study import plan as cells
from vbon_jax.training import loop
from vbon_jax.types import InputError, Params
from vbon_jax.workdir import layout, results, run


def temperatures(config: ConfigDict) -> tuple[float, ...]:
    """Those to evaluate at; the one that was sampled with unless others are given."""
    return tuple(map(float, config.evaluation.temperatures)) or (config.sampling.temperature,)


def policy_rows(
    config: ConfigDict,
    folder: pathlib.Path,
    materials: pipeline.Materials,
    cache: reference_cache.References,
    load_params,
    inputs: dict,
    **cells,
) -> list[dict]:
    """The rows of the results of one policy, a temperature each; in `folder/evaluation.json`.

    `load_params()` gives its parameters and is called only where something is left to do;
    `cells` are the columns that name the policy.
    """
    settings = identity(config, "evaluation")
    inputs = (
        settings | inputs | {f"references {k}": v for k, v in cache.provenance._asdict().items()}
    )
    if not files.begin(folder, inputs):
        return json.loads((folder / "evaluation.json").read_text())
    params, rows = load_params(), []
    for temperature in temperatures(config):
        with tqdm.tqdm(
            total=len(cache.rewards_pm), desc=f"evaluate {cells['run']}", unit="prompt"
        ) as bar:
            measured = pipeline.sample_policy(
                config,
                materials,
                params,
                temperature=temperature,
                progress=lambda done, total, bar=bar: bar.update(done - bar.n),
            )
        ids = sampled_policy.token_lists(measured.responses)
        decode = functools.partial(materials.tokenizer.batch_decode, skip_special_tokens=True)
        stored_responses.write(
            stored_responses.path(folder, temperature),
            measured,
            prompts=materials.eval_prompts.texts,
            texts=list(map(decode, ids)),
        )
        summary = measures.summarise(
            measured,
            cache.rewards_pm,
            seed=config.evaluation.seed,
            resamples=config.evaluation.resamples,
        )
        prompts, samples = measured.kl_bn.shape
        rows.append(
            results.make_row(
                estimates=summary,
                temperature=temperature,
                prompts=prompts,
                samples_per_prompt=samples,
                reference_samples=cache.rewards_pm.shape[1],
                **cells,
            )
        )
    files.write_json(folder / "evaluation.json", rows)
    files.finish(folder)
    return rows


def panel(
    config: ConfigDict,
    materials: pipeline.Materials,
    workdir: pathlib.Path,
    cache: reference_cache.References,
) -> list[judges.Judge]:
    """The judges of the configuration; cached responses that they have not scored are scored.

    Raises InputError where the cache has rewards and no responses: no other reward can score those.
    """
    folder, named = workdir / "references" / "eval", cells.judges(config)
    if named and not cache.has_responses:
        raise InputError(
            f"{folder}: its rewards were imported without responses, which config.judges "
            f"({', '.join(named)}) would score; import responses, or take the judges out"
        )
    panel = []
    for name, options in named.items():
        reward = rewards.load(options, materials.judge_paths[name])
        score = functools.partial(
            rewards.score_responses, reward, materials.tokenizer, materials.eval_prompts
        )
        size = config.evaluation.batch_prompts
        panel.append(
            judges.make_judge(name, reward.fingerprint, score, cache, folder, batch_prompts=size)
        )
    return panel


def derive(
    config: ConfigDict,
    folder: pathlib.Path,
    cache: reference_cache.References,
    panel: list[judges.Judge],
) -> None:
    """Compute the missing derived numbers (length control, judges) of an evaluation folder."""
    options = {"seed": config.evaluation.seed, "resamples": config.evaluation.resamples}
    stored_responses.length_control(folder, cache, **options)
    size = config.evaluation.batch_prompts
    for judge in panel:
        judges.judge_policy(judge, folder, cache, batch_prompts=size, **options)


def run_rows(
    config: ConfigDict,
    workdir: pathlib.Path,
    cell: dict,
    materials: pipeline.Materials,
    cache: reference_cache.References,
    panel: list[judges.Judge],
) -> list[dict]:
    """The rows of a trained cell, with what it cost; its share of the cache is counted in."""
    config = cells.config_of(config, cell)
    folder = workdir / "runs" / cells.run_name(cell)

    def load_params() -> Params:
        task = pipeline.make_task(config, materials, None)
        return loop.restore(
            folder,
            which=config.evaluation.checkpoint,
            task=task,
            network=materials.checkpoint.params,
        )

    made = json.loads((folder / files.RECORD_FILE).read_text())["inputs"]
    policy_rows(
        config,
        folder / "evaluation",
        materials,
        cache,
        load_params,
        {f"run {key}": value for key, value in made.items()},
        **run.columns(run.read(folder)),
    )
    derive(config, folder / "evaluation", cache, panel)
    return layout.run_rows(folder, run.read(folder), cache)
