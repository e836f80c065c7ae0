"""Stages: how recipes train on text, and the three models of configs/tldr.py and hh.py:small."""

from typing import Any

from ml_collections import ConfigDict

PAIRS = {"on_tie": "error", "on_empty": "error"}  # "drop" leaves such rows out


def supervised(*, steps: int, learning_rate: float) -> dict[str, Any]:
    """The keys of `train` of a stage: one update a batch, a warm-up, a cosine, a little decay."""
    return {
        "steps": steps,
        "epochs": 1,
        "minibatches": 1,
        "learning_rate": learning_rate,
        "schedule": "cosine",
        "warmup_updates": max(1, steps // 20),
        "weight_decay": 0.01,
        "checkpoint_every": max(1, steps // 4),
    }


def from_nothing(
    config: ConfigDict,
    *,
    network: dict[str, Any],
    larger: dict[str, Any],
    text_tokens: int,
    sft: dict[str, Any],
    preferences: dict[str, Any],
) -> None:
    """A policy of two layers, its reward model and a larger judge.

    `network` is the policy's config.json, `larger` what the judge's has instead; `sft` and
    `preferences` are the `data` of the policy and of both rewards, `text_tokens` long at most.
    """
    config.data.train_limit, config.data.eval_limit = 256, 128
    config.sampling.max_new_tokens = 32
    config.references.samples_per_prompt = 24
    config.references.batch_prompts = 16
    config.budget.sampled_tokens = 120_000
    config.train.steps = 48
    config.train.batch_size = 32
    config.train.learning_rate = 3e-4  # of 1e-4 and 3e-4, on posts, at a seed of no table
    for name in ("bonbon", "dpo"):
        config.by_method[name] = {"train": {"learning_rate": 1e-4}}
    config.train.trainable = "decoder/(tokens|head)/.*|value/.*"
    config.policy.path, config.reward.path = "stage:sft", "stage:reward_model"
    config.judges.judge.path = "stage:judge"

    sizes = {"batch_size": 32, "text_tokens": text_tokens}
    fresh = {"network": network, "vocab_size": 1024}
    scored = {
        "method": "reward_model",
        "data": {"over_long": "drop", "label_field": ""} | preferences,
        "pairs": PAIRS,
        "reward_model": {"centring": 0.01},
    }
    config.stages.sft = fresh | {
        "method": "sft",
        "data": {"over_long": "drop"} | sft,
        "train": supervised(steps=400, learning_rate=3e-3) | sizes,
    }
    config.stages.reward_model = scored | {
        "base": "stage:sft",
        "train": supervised(steps=150, learning_rate=1e-3) | sizes,
    }
    config.stages.judge = (
        fresh
        | scored
        | {
            "network": network | larger,
            "seed": 1,
            "train": supervised(steps=200, learning_rate=2e-3) | sizes,
        }
    )
    for name in ("train", "eval"):  # the judge learns from what the reward model learns from
        same = config.stages.reward_model.data.get_oneway_ref(name)
        config.stages.judge.data[name] = same
