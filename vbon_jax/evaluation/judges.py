"""Judges: other rewards that score the responses which evaluation has stored, without resampling.

What a judge makes of a policy stands in `evaluation/judges/NAME` of its run (`reference/judges` for
the reference's): its rewards and a row for each temperature. Its rewards of the cached reference
responses, which every policy is held against, stand in `references/eval/judges/NAME`.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.evaluation import agreement, measures, stored_responses
from vbon_jax.evaluation.bootstrap import estimate
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.evaluation.stored_responses import columns
from vbon_jax.sampling import reference_cache, rewards
from vbon_jax.study import pipeline, plan
from vbon_jax.types import InputError


class Judge(NamedTuple):
    """A reward that looks at responses, and what it says of the cached reference responses."""

    name: str
    reward: rewards.Reward
    cached_pm: np.ndarray  # [prompts, M] float32


# ------------------------------------------------------------------------------- scoring


def panel(
    config: ConfigDict,
    materials: pipeline.Materials,
    workdir: pathlib.Path,
    cache: reference_cache.References,
) -> list[Judge]:
    """The judges of the configuration; the cached responses are scored where they are not yet.

    Raises InputError where the cache has rewards and no responses: no other reward can score those.
    """
    asked, folder = plan.judges(config), workdir / "references" / "eval"
    if asked and not cache.has_responses:
        raise InputError(
            f"{folder}: its rewards were imported without responses, which config.judges "
            f"({', '.join(asked)}) would score; import responses, or take the judges out"
        )
    return [
        _judge(config, name, settings, materials, folder, cache) for name, settings in asked.items()
    ]


def _judge(config, name, settings, materials, folder: pathlib.Path, cache) -> Judge:
    """One judge, with its rewards of all cached responses in `folder/judges/NAME`."""
    reward = rewards.load(settings, materials.judge_paths[name])
    stage = folder / stored_responses.JUDGES / name
    inputs = {"judge": reward.fingerprint}
    held = {f"references {k}": v for k, v in cache.provenance._asdict().items()}
    if files.begin(stage, inputs | held):
        everyone = range(len(cache.rewards_pm))
        tokens = reference_cache.read(cache, everyone, column="response_tokens")
        cached_pm = _scored(config, f"{name} references", reward, materials, tokens)
        _write(stage / "rewards.parquet", cached_pm)
        files.finish(stage)
    return Judge(name, reward, _read(stage / "rewards.parquet"))


def _scored(config, title: str, reward: rewards.Reward, materials, responses: list) -> np.ndarray:
    """Rewards [B, K] float32 of K responses (token ids) to each held-out prompt, in portions."""
    parts = []
    size = config.evaluation.batch_prompts
    with tqdm.tqdm(total=len(responses), desc=f"judge {title}", unit="prompt") as bar:
        for first in range(0, len(responses), size):
            some = responses[first : first + size]
            scored_s = rewards.score_responses(
                reward,
                materials.tokenizer,
                materials.eval_prompts,
                [at for at, of in enumerate(some, first) for _ in of],
                [list(one) for of in some for one in of],
            )
            parts.append(scored_s.reshape(len(some), -1))
            bar.update(len(some))
    return np.concatenate(parts)


def judge_policy(
    config: ConfigDict,
    judges: list[Judge],
    materials: pipeline.Materials,
    cache: reference_cache.References,
    folder: pathlib.Path,
) -> None:
    """What each judge says of the policy whose evaluation stands in `folder`, where it is missing.

    Raises InputError where it stands and was made with another judge or from other responses.
    """
    options = {"seed": config.evaluation.seed, "resamples": config.evaluation.resamples}
    for judge in judges:

        def work_out(responses: stored_responses.Stored, stage, judge=judge) -> dict[str, Any]:
            of = folder.parent if folder.name == "evaluation" else folder
            title = f"{judge.name} {of.name}"
            rewards_bk = _judged(config, title, judge, materials, responses)
            _write(stage / f"rewards-t{responses.temperature:g}.parquet", rewards_bk)
            return measured(judge, cache, responses, rewards_bk, **options)

        inputs = {"judge": judge.reward.fingerprint} | options
        stored_responses.derive(
            folder, f"{stored_responses.JUDGES}/{judge.name}", cache, inputs, work_out
        )


def _judged(
    config, title: str, judge: Judge, materials, responses: stored_responses.Stored
) -> np.ndarray:
    """The judge's rewards [B, K] of stored responses, of the bytes that training's reward reads."""
    if responses.tokens is not None:
        return _scored(config, title, judge.reward, materials, responses.tokens)
    pairs = [(p, r) for p, of in zip(responses.prompts, responses.texts, strict=True) for r in of]
    scored_s = judge.reward.score(*zip(*pairs, strict=True))
    return scored_s.reshape(responses.rewards_bk.shape)


def measured(
    judge: Judge,
    cache: reference_cache.References,
    responses: stored_responses.Stored,
    rewards_bk: np.ndarray,
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """A judge's row about one policy: its numbers with their intervals, by column."""
    options = {"seed": seed, "resamples": resamples}
    win_bk = measures.win_rates(rewards_bk, judge.cached_pm)
    row = columns("reward", estimate(rewards_bk, **options))
    row |= columns("win_rate", estimate(win_bk, **options))
    if responses.lengths_bk is not None:
        row |= columns(
            "lc_win_rate",
            length_controlled_win_rate(
                rewards_bk, responses.lengths_bk, judge.cached_pm, cache.lengths_pm, **options
            ),
        )
    prompts, samples = rewards_bk.shape
    row |= _agreement(responses.rewards_bk, rewards_bk, **options)
    return row | {"prompts": prompts, "samples_per_prompt": samples}


def _agreement(rewards_bk: np.ndarray, judge_bk: np.ndarray, **options) -> dict[str, Any]:
    """The agreement of a judge with the training reward; nothing for one response a prompt."""
    if rewards_bk.shape[1] < 2:
        return {}
    found = agreement.agreement(rewards_bk, judge_bk, **options)._asdict()
    return {key: value for name in found for key, value in columns(name, found[name]).items()}


def _write(path: pathlib.Path, rewards_bk: np.ndarray) -> None:
    pq.write_table(pa.table({"rewards": list(rewards_bk)}), path)


def _read(path: pathlib.Path) -> np.ndarray:
    return np.asarray(pq.read_table(path)["rewards"].to_pylist(), np.float32)
