"""The embedded default: reviews from a grammar, a policy and a classifier trained on them.

They are made in the working directory by the same loop as everything else, saved as Hugging Face
folders, and then used through the same doors as anybody's checkpoint.
"""

import json
import pathlib
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vbon_jax import files as workspace
from vbon_jax.data import formats, sources, tokenizers, toy_reviews
from vbon_jax.models import decoder, encoder
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import stages, supervision
from vbon_jax.training import loop, methods, sharding
from vbon_jax.types import InputError


class Paths(NamedTuple):
    """Where a run finds its inputs: given, or made."""

    policy: str
    reward: str
    train_data: str
    eval_data: str


def resolve(config: ConfigDict, workdir: pathlib.Path) -> Paths:
    """The paths of the configuration; what has none is built in `workdir/embedded`."""
    given = Paths(config.policy.path, config.reward.path, config.data.train, config.data.eval)
    if config.reward.path and config.reward.function:
        raise InputError("reward.path and reward.function are both given; keep one of them")
    if given.train_data and not given.eval_data:
        raise InputError("data.train is given without data.eval; name held-out prompts as well")
    needed = {name for name, path in given._asdict().items() if not path}
    if config.reward.function:
        needed.discard("reward")
    if not needed:
        return given
    folder = workdir / "embedded"
    paths = _data(config, folder / "data")
    build_reward = not config.reward.path and not config.reward.function
    return Paths(
        policy=given.policy or _policy(config, folder / "policy", paths[0]),
        reward=_reward(config, folder / "reward", paths[2]) if build_reward else given.reward,
        train_data=given.train_data or paths[0],
        eval_data=given.eval_data or paths[1],
    )


def _data(config: ConfigDict, folder: pathlib.Path) -> tuple[str, str, str]:
    """Reviews as JSON lines: a training file, a held-out file, and beginnings of training reviews.

    The classifier learns from the beginnings, cut after any number of words: what it will score
    are responses that end anywhere.
    """
    settings = config.embedded
    files = folder / "train.jsonl", folder / "eval.jsonl", folder / "beginnings.jsonl"
    inputs = {key: settings[key] for key in ("reviews", "eval_reviews", "seed")}
    if workspace.begin(folder, inputs):
        made = toy_reviews.generate(settings.reviews + settings.eval_reviews, seed=settings.seed)
        rows = [{"text": review.text, "label": review.label} for review in made]
        generator = np.random.default_rng(settings.seed)
        beginnings = []
        for row in rows[: settings.reviews]:
            words = row["text"].split(" ")
            kept = generator.integers(min(4, len(words)), len(words) + 1)
            beginnings.append(row | {"text": " ".join(words[:kept])})
        parts = rows[: settings.reviews], rows[settings.reviews :], beginnings
        for path, part in zip(files, parts, strict=True):
            path.write_text("".join(json.dumps(row) + "\n" for row in part))
        workspace.finish(folder)
    return str(files[0]), str(files[1]), str(files[2])


def _supervised(config: ConfigDict, method: str, steps: int) -> ConfigDict:
    """The configuration of a supervised run on the embedded data."""
    settings = config.embedded
    changed = stages.supervised(config, method=method, steps=steps)
    changed.seed = settings.seed
    changed.data.update(
        field="text", completion_field="", label_field="label", over_long="truncate"
    )
    changed.train.update(
        text_tokens=settings.max_positions,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        packed=False,
    )
    return changed


def _trained(run_config: ConfigDict, folder: pathlib.Path, model, network, tokenizer, rows) -> None:
    """Train a network in `folder/run` and save it, with its tokenizer, in `folder/model`."""
    mesh = sharding.make_mesh(data=run_config.mesh.data, fsdp=run_config.mesh.fsdp)
    task = methods.Task(config=run_config, model=model, mesh=mesh, rows=rows)
    loop.run(run_config, folder / "run", task, network, inputs={})
    params = loop.restore(folder / "run", which="last", task=task, network=network)
    model_folder.save(folder / "model", model, params, tokenizer=tokenizer)
    workspace.finish(folder)


def _without(settings: ConfigDict, other: str) -> dict:
    """The settings that one of the two models depends on: not those named after the other."""
    return {key: value for key, value in settings.items() if not key.startswith(other)}


def _policy(config: ConfigDict, folder: pathlib.Path, file: str) -> str:
    """A small language model of GPT-2's shape, by supervised fine-tuning on the reviews."""
    settings = config.embedded
    if workspace.begin(folder, _without(settings, "reward_")):
        table = sources.read(file)
        texts = formats.texts(table)
        tokenizer = tokenizers.train_tokenizer(texts, vocab_size=settings.vocab_size)
        model = decoder.DecoderConfig(
            vocab_size=len(tokenizer),
            width=settings.width,
            num_layers=settings.num_layers,
            num_heads=settings.num_heads,
            mlp_width=4 * settings.width,
            max_positions=settings.max_positions,
        )
        run_config = _supervised(config, "sft", settings.policy_steps)
        rows = supervision.make_rows(run_config, table, tokenizer, tokenizer.eos_token_id)
        network = decoder.init(model, jax.random.key(settings.seed))
        _trained(run_config, folder, model, network, tokenizer, rows)
    return str(folder / "model")


def _reward(config: ConfigDict, folder: pathlib.Path, file: str) -> str:
    """A small text classifier of DistilBERT's shape, with a tokenizer of its own."""
    settings = config.embedded
    if workspace.begin(folder, _without(settings, "policy_")):
        table = sources.read(file)
        texts = formats.texts(table)
        tokenizer = tokenizers.train_wordpiece(texts, vocab_size=settings.vocab_size)
        model = encoder.EncoderConfig(
            vocab_size=len(tokenizer),
            width=settings.width,
            num_layers=settings.reward_layers,
            num_heads=settings.num_heads,
            mlp_width=4 * settings.width,
            max_positions=2 * settings.max_positions,
            labels=("NEGATIVE", "POSITIVE"),
        )
        run_config = _supervised(config, "reward_model", settings.reward_steps)
        rows = supervision.make_rows(run_config, table, tokenizer, None)
        network = encoder.init(model, jax.random.key(settings.seed + 1))
        _trained(run_config, folder, model, network, tokenizer, rows)
    return str(folder / "model")
