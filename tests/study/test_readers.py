"""Which keys the runs of each method read: seen by running them, and as the table of keys says."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest

from tests.training.tiny_task import MODEL, make_task
from vbon_jax.config import EVERY, GIVEN_PAIRS, KEYS, PROMPTED, TEXT, defaults, owner
from vbon_jax.data import prompt_sets, sft_rows, sources
from vbon_jax.models import decoder, lora, sharding
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import check, materials, stages
from vbon_jax.training import budget, loop, methods, step

# Every run has method, n and seed; the paths of models are read where their folders are made.
EXEMPT = {"method", "n", "seed", "policy.path", "reward.path"}


class Seen:
    """A configuration that notes the names of the keys that are read of it."""

    def __init__(self, config, names: set[str], prefix: str = ""):
        self._config, self._names, self._prefix = config, names, prefix

    def __getitem__(self, name: str):
        dotted = f"{self._prefix}{name}"
        if owner(dotted) is None:
            return Seen(self._config[name], self._names, f"{dotted}.")
        self._names.add(dotted)
        return self._config[name]

    def __getattr__(self, name: str):
        return self[name]

    def to_dict(self) -> dict:
        return {}


def seen(config) -> tuple[Seen, set[str]]:
    names: set[str] = set()
    return Seen(config, names), names


def of_text(method: str) -> methods.Task:
    """A task on made rows of text; nothing is computed on them here."""
    task = make_task(method, n=2.0, train__steps=1)
    tokens, lengths = np.ones((8, 6), np.int32), np.full(8, 6, np.int32)
    rows = sft_rows.LabelRows(tokens, lengths, np.zeros(8, np.int32))
    return task._replace(rows=rows, cache=None, reference_params=None)


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """The keys that the loop reads of a task's configuration, in one step that computes nothing."""
    monkeypatch.setattr(loop, "identity", lambda *_, **__: {})
    monkeypatch.setattr(loop, "origins", lambda _: {})
    monkeypatch.setattr(step, "update", lambda state, *_, **__: (state, {"loss/total": 1.0}))
    monkeypatch.setattr(step, "update_flops", lambda *_, **__: 1.0)

    def reads(task: methods.Task) -> set[str]:
        config, names = seen(task.config)
        method = methods.method(config.method)
        methods.check(config)
        sharding.config_mesh(config)
        if method.needs_cache(config):
            budget.samples_of_cache(config, method, task.cache)
        evaluate = None if method.reads_text else lambda _: {"eval/reward": 0.0}
        network = decoder.init(MODEL, jax.random.key(0))
        loop.run(config, tmp_path, task._replace(config=config), network, {}, evaluate=evaluate)
        return names

    return reads


@pytest.fixture(scope="module")
def loaded(tiny) -> dict[str, set[str]]:
    """The keys that are read where things are loaded: prompts, given pairs, rows of text."""
    config = defaults()
    config.data.train = config.data.eval = str(tiny / "reviews")
    config.data.train_limit, config.train.eval_every, config.train.eval_prompts = 24, 1, 4
    config.sampling.max_new_tokens = 6
    config.reward.function = "tests.reward_functions:vowels"
    config.policy.lora.pattern = ".*/query"
    models = stages.ModelPaths(str(tiny / "policy"), "", {})
    config_seen, prompts = seen(config)
    tables = check._tables(config_seen)
    rows = prompt_sets.Rows(tables["train"], tables["eval"])
    shared = materials.load(config_seen, pathlib.Path("work"), models, rows)
    (tiny / "given.jsonl").write_text(json.dumps({"prompt": "p", "chosen": "a", "rejected": "b"}))
    config.pairs.path = str(tiny / "given.jsonl")
    config_seen, pairs = seen(config)
    materials.given_pairs(config_seen, shared)
    tokenizer = model_folder.load_tokenizer(tiny / "policy")
    read = {"prompts": prompts, "pairs": pairs}
    for method, fields in (("sft", ("text", "chosen")), ("reward_model", ("label", ""))):
        read[method] = set()
        for field in fields:
            config.method = method
            config.data.completion_field = "chosen" if field == "chosen" else ""
            config.data.label_field = field if method == "reward_model" else "label"
            config_seen, names = seen(config)
            table = check._tables(config_seen)["train"]
            if field in ("chosen", ""):
                table = sources.read(config.pairs.path)
            sft_rows.build(config_seen, table, tokenizer, shared.ends)
            sft_rows.reading(config_seen, table, tokenizer, ("LABEL_0", "POSITIVE"))
            base = shared.checkpoint.config
            base = dataclasses.replace(base, lora=None), model_folder.load(tiny / "policy").params
            lora.with_adapters(config_seen, *base, "policy")
            read[method] |= names
    return read


@pytest.mark.slow
@pytest.mark.parametrize("method", EVERY)
def test_a_key_names_the_methods_that_read_it(method, trained, loaded):
    if method in TEXT:
        names = trained(of_text(method)) | loaded[method]
    else:
        names = trained(make_task(method, n=2.0, train__steps=1, train__eval_every=1))
        names |= loaded["prompts"] | (loaded["pairs"] if method in GIVEN_PAIRS else set())
    of_runs = {key.name for key in KEYS if key.methods} - EXEMPT
    table = {key.name for key in KEYS if method in key.methods} - EXEMPT
    assert names & of_runs == table


def test_the_table_knows_every_method():
    assert set(EVERY) == set(methods.METHODS)
    assert set(TEXT) == {name for name, row in methods.METHODS.items() if row.reads_text}
    assert set(PROMPTED) | set(TEXT) == set(EVERY)
    assert all(set(key.methods) <= set(EVERY) for key in KEYS)
    for name, row in methods.METHODS.items():
        unlisted = [key for key in row.constants if name not in owner(key).methods]
        assert unlisted == [], name
