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
import tqdm

from vbon_jax import files
from vbon_jax.evaluation import agreement, measures, stored_responses
from vbon_jax.evaluation.bootstrap import Bootstrap, columns
from vbon_jax.evaluation.length_control import length_controlled_win_rate
from vbon_jax.sampling import reference_cache
from vbon_jax.types import Responses

REWARDS_FILE = "rewards.parquet"  # of the cached reference responses


class Judge(NamedTuple):
    """A reward, by its scores of the held-out prompts' responses."""

    name: str
    fingerprint: str  # changes whenever the scores may
    score: Callable[[Sequence[int], list[list[int]]], np.ndarray]  # (prompts' places, ids) -> [S]
    cached_pm: np.ndarray  # [prompts, M] float32, of the cached reference responses


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
    with artifact.work(waits=True) as left:
        if left:
            rewards_pm = _score(score, cache.responses, f"judge {name} references", batch_prompts)
            _write_rewards(stage / REWARDS_FILE, rewards_pm)
            artifact.finish(REWARDS_FILE)
    return Judge(name, fingerprint, score, read_rewards(stage / REWARDS_FILE))


def judge_policy(
    judge: Judge, folder: pathlib.Path, cache: reference_cache.References, bootstrap: Bootstrap,
    *, batch_prompts: int,
) -> None:  # fmt: skip
    """A judge's rewards and rows of the policy that is evaluated in `folder`, unless it has them.

    Raises InputError where the folder has those of another judge or of other responses.
    """
    policy = folder.parent.name if folder.name == "evaluation" else folder.name
    name = f"{stored_responses.JUDGES}/{judge.name}"

    def compute(responses: Responses, temperature: float) -> dict[str, Any]:
        rewards_bk = _score(judge.score, responses, f"judge {judge.name} {policy}", batch_prompts)
        _write_rewards(folder / name / f"rewards-t{temperature:g}.parquet", rewards_bk)
        return policy_row(judge, cache, responses, rewards_bk, bootstrap)

    inputs = {"judge": judge.fingerprint} | bootstrap._asdict()
    stored_responses.derive(folder, name, cache, inputs, compute)


def _score(score: Callable, responses: Responses, title: str, batch_prompts: int) -> np.ndarray:
    """Rewards [B, K] float32 of K responses to each prompt, a few prompts at a time."""
    prompts, samples = responses.lengths_bn.shape
    place_s, ids_s = np.repeat(np.arange(prompts), samples), responses.token_ids()
    size, parts = batch_prompts * samples, []
    for first in tqdm.trange(0, len(ids_s), size, desc=title, unit="batch"):
        batch = slice(first, first + size)
        parts.append(score(place_s[batch], ids_s[batch]))
    return np.concatenate(parts, dtype=np.float32).reshape(prompts, samples)


def _write_rewards(path: pathlib.Path, rewards_bk: np.ndarray) -> None:
    files.write_parquet(path, pa.table({"rewards": list(rewards_bk)}))


def read_rewards(path: pathlib.Path) -> np.ndarray:
    """Rewards [B, K] float32 that a judge has stored. Raises Damaged."""
    return np.asarray(files.read_parquet(path, ["rewards"])["rewards"].to_pylist(), np.float32)


def policy_row(
    judge: Judge, cache: reference_cache.References, responses: Responses,
    rewards_bk: np.ndarray, bootstrap: Bootstrap,
) -> dict[str, Any]:  # fmt: skip
    """The numbers of a judge about one policy, by column; `rewards_bk` are the judge's."""
    prompts, samples = rewards_bk.shape
    return {"prompts": prompts, "samples_per_prompt": samples} | columns(
        reward=bootstrap.estimate(rewards_bk),
        win_rate=bootstrap.estimate(measures.win_rates(rewards_bk, judge.cached_pm)),
        lc_win_rate=length_controlled_win_rate(
            rewards_bk, responses.lengths_bn, judge.cached_pm, cache.lengths_pm, bootstrap
        ),
        **agreement.agreement(responses.rewards_bn, rewards_bk, bootstrap),
    )
