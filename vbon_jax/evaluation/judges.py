"""Judges: other rewards that score stored responses, without sampling again.

A judge's numbers about a policy are in `judges/NAME` of the policy's evaluation: its rewards and a
row for each temperature. Its rewards of the cached reference responses, which every policy is
compared with, are in `references/eval/judges/NAME`.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tqdm

from vbon_jax import files
from vbon_jax.evaluation import agreement, measures, stored_responses
from vbon_jax.evaluation.bootstrap import estimate
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.evaluation.measured_responses import token_lists
from vbon_jax.evaluation.stored_responses import columns
from vbon_jax.sampling import reference_cache

REWARDS_FILE = "rewards.parquet"  # of the cached reference responses


class Judge(NamedTuple):
    """A reward, by its scores of the held-out prompts' responses."""

    name: str
    fingerprint: str  # changes whenever the scores may
    score: Callable[[Sequence[int], list[list[int]]], np.ndarray]  # (prompts' places, ids) -> [S]
    cached_pm: np.ndarray  # [prompts, M] float32, of the cached reference responses


# ------------------------------------------------------------------------------- scoring


def make_judge(
    name: str, fingerprint: str, score: Callable, cache: reference_cache.References,
    folder: pathlib.Path, *, batch_prompts: int,
) -> Judge:  # fmt: skip
    """A judge with its rewards of all cached responses, scored unless `folder` has them.

    `folder` is the cache's. Raises InputError where it has those of another judge or cache.
    """
    stage = folder / stored_responses.JUDGES / name
    inputs = {"judge": fingerprint} | cache.provenance.inputs()
    artifact = files.Artifact(stage, inputs)
    if artifact.begin():
        prompts = range(len(cache.rewards_pm))
        ids = reference_cache.read(cache, prompts, column="response_tokens")
        rewards_pm = _score(score, ids, f"judge {name} references", batch_prompts)
        _write_rewards(stage / REWARDS_FILE, rewards_pm)
        artifact.finish()
    return Judge(name, fingerprint, score, _read_rewards(stage / REWARDS_FILE))


def judge_policy(
    judge: Judge, folder: pathlib.Path, cache: reference_cache.References,
    *, batch_prompts: int, seed: int, resamples: int,
) -> None:  # fmt: skip
    """A judge's rewards and rows of the policy that is evaluated in `folder`, unless it has them.

    Raises InputError where it has those of another judge or of other responses.
    """
    options = {"seed": seed, "resamples": resamples}
    policy = folder.parent.name if folder.name == "evaluation" else folder.name

    def compute(stored: stored_responses.Stored, stage: pathlib.Path) -> dict[str, Any]:
        ids = token_lists(stored.responses)
        rewards_bk = _score(judge.score, ids, f"judge {judge.name} {policy}", batch_prompts)
        _write_rewards(stage / f"rewards-t{stored.temperature:g}.parquet", rewards_bk)
        return policy_row(judge, cache, stored, rewards_bk, **options)

    inputs = {"judge": judge.fingerprint} | options
    stored_responses.derive(
        folder, f"{stored_responses.JUDGES}/{judge.name}", cache, inputs, compute
    )


def _score(score: Callable, responses: list, title: str, batch_prompts: int) -> np.ndarray:
    """Rewards [B, K] float32 of K responses (token ids) to each prompt, a few prompts at a time."""
    parts = []
    with tqdm.tqdm(total=len(responses), desc=title, unit="prompt") as bar:
        for first in range(0, len(responses), batch_prompts):
            batch = responses[first : first + batch_prompts]
            places = [first + b for b, of_prompt in enumerate(batch) for _ in of_prompt]
            rewards_s = score(places, [list(ids) for of_prompt in batch for ids in of_prompt])
            parts.append(np.asarray(rewards_s, np.float32).reshape(len(batch), -1))
            bar.update(len(batch))
    return np.concatenate(parts)


def _write_rewards(path: pathlib.Path, rewards_bk: np.ndarray) -> None:
    pq.write_table(pa.table({"rewards": list(rewards_bk)}), path)


def _read_rewards(path: pathlib.Path) -> np.ndarray:
    """Rewards [B, K] float32 that a judge has stored. Raises Damaged."""
    return np.asarray(files.read_parquet(path, ["rewards"])["rewards"].to_pylist(), np.float32)


# ------------------------------------------------------------------------------- rows


def policy_row(
    judge: Judge, cache: reference_cache.References, stored: stored_responses.Stored,
    rewards_bk: np.ndarray, *, seed: int, resamples: int,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of a judge about one policy, by column; `rewards_bk` are the judge's."""
    options = {"seed": seed, "resamples": resamples}
    controlled = length_controlled_win_rate(
        rewards_bk, stored.responses.lengths_bn, judge.cached_pm, cache.lengths_pm, **options
    )
    prompts, samples = rewards_bk.shape
    return (
        {"prompts": prompts, "samples_per_prompt": samples}
        | columns("reward", estimate(rewards_bk, **options))
        | columns("win_rate", estimate(measures.win_rates(rewards_bk, judge.cached_pm), **options))
        | columns("lc_win_rate", controlled)
        | agreement_columns(stored.responses.rewards_bn, rewards_bk, **options)
    )


def agreement_columns(
    rewards_bk: np.ndarray, judge_bk: np.ndarray, *, seed: int, resamples: int
) -> dict[str, Any]:
    """A judge's agreement with the training reward; nothing for one response to each prompt."""
    if rewards_bk.shape[1] < 2:
        return {}
    row: dict[str, Any] = {}
    estimates = agreement.agreement(rewards_bk, judge_bk, seed=seed, resamples=resamples)
    for name, value in estimates._asdict().items():
        row |= columns(name, value)
    return row
