"""Validate what a study reads, before any compute: rows, networks, heads, given pairs.

A bad row or the wrong folder costs seconds, then. Rows are checked for what each of them is;
whether a prompt fits the policy is known once it is tokenized.
"""

from typing import Any

from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.data import formats, prompt_sets, reward_inputs, sft_rows, sources
from vbon_jax.models.huggingface import model_folder
from vbon_jax.sampling import rewards
from vbon_jax.study import plan, stages
from vbon_jax.study.plan import Run
from vbon_jax.types import InputError

Tables = dict[str, sources.Table]  # the rows of `config.data`, by split


def check(config: ConfigDict, runs: list[Run]) -> prompt_sets.Rows:
    """Check everything that runs read; returns what prompts are made of, so it is read once.

    Raises InputError, in one line, for what cannot be used.
    """
    if config.reward.path and config.reward.function:
        raise InputError("reward.path and reward.function are both given; keep one of them")
    for run in runs:
        files.check_writable(run.folder)
    reward = [] if config.reward.function else ["reward.path"]
    stages.require(config, "data.train", "data.eval", "policy.path", *reward)
    stage_prompts, stage_texts = check_stages(config)
    if not config.policy.path.startswith(plan.STAGE):
        model_folder.read_config(config.policy.path, kind="decoder")
    _check_reward("reward", config.reward, config)
    for name, settings in plan.judges(config).items():
        _check_reward(f"judges.{name}", settings, config)
    tokenizer = _tokenizer(config, config.policy.path)
    tables = _tables(config)
    for table in tables.values():
        formats.prompts(
            table,
            name=config.data.field,
            tokenizer=tokenizer,
            max_tokens=config.data.max_tokens,
        )
    pairs = [formats.read_pairs(ways, tokenizer).prompts for ways in plan.given_pairs(config)]
    return prompt_sets.Rows(
        tables["train"],
        tables["eval"],
        frozenset(text.strip() for prompts in pairs for text in prompts),
        stage_prompts,
        stage_texts,
    )


def check_text(config: ConfigDict, run: Run) -> Tables:
    """`check` for a run of a method that learns from text alone."""
    files.check_writable(run.folder)
    model = run.method.model
    stages.require(config, "data.train", f"{model}.path")
    check_stages(config)
    tables = _tables(config)
    path = config[model].path
    labels = _labels(config, path) if model == "reward" else ()
    sft_rows.texts(run.config, tables["train"], _tokenizer(config, path), labels)
    return tables


def check_stages(config: ConfigDict) -> tuple[frozenset[str], frozenset[str]]:
    """Check the keys and the rows of every stage; returns the prompts and texts it learns from."""
    prompts, whole = set(), set()
    stages.check(config)
    for name in config.stages:
        stage = stages.read(config, name)
        tokenizer, labels = _tokenizer(config, stage.base), stages.labels(config, name)
        for split, table in _tables(stage.run).items():
            texts = map(str.strip, sft_rows.texts(stage.run, table, tokenizer, labels))
            if split == "train":
                (prompts if sft_rows.has_prompts(stage.run) else whole).update(texts)
    return frozenset(prompts), frozenset(whole)


def _tables(config: ConfigDict) -> Tables:
    """The rows of each split that the configuration names."""
    splits = [split for split in ("train", "eval") if config.data[split]]
    return {split: sources.read_split(config.data, split) for split in splits}


def _tokenizer(config: ConfigDict, path: str) -> Any:
    """The tokenizer of the folder that a model begins with; None where a stage trains it."""
    folder = stages.base_folder(config, path)
    return model_folder.load_tokenizer(folder) if folder else None


def _check_reward(where: str, reward: ConfigDict, config: ConfigDict) -> None:
    """A reward or judge: a function that can be imported, or a classifier that has the label."""
    if reward.function:
        rewards.load(reward)
    elif reward.path:
        labels, where = _labels(config, reward.path), f"{where} ({reward.path})"
        label = labels[reward_inputs.label_index(where, reward.label, labels)]
        if reward.path.startswith(plan.STAGE):
            _check_reading(where, reward, label, config)


def _check_reading(where: str, reward: ConfigDict, label: str, config: ConfigDict) -> None:
    """Refuse to ask a stage's reward model in another way than it is going to be taught."""
    stage = stages.read(config, reward.path.removeprefix(plan.STAGE))
    tokenizer, table = _tokenizer(config, stage.base), sources.read_split(stage.run.data, "train")
    taught = sft_rows.reading(stage.run, table, tokenizer, _labels(config, reward.path))
    if taught is not None:
        reward_inputs.choose(
            reward, tokenizer, label, conversations=True, where=where, taught=taught._asdict()
        )


def _labels(config: ConfigDict, path: str) -> tuple[str, ...]:
    """The labels of a classifier's folder, or of the one that a stage makes."""
    if path.startswith(plan.STAGE):
        return stages.labels(config, path.removeprefix(plan.STAGE))
    return model_folder.read_config(path, kind="classifier").labels
