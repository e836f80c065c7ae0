"""Stages: models that a configuration trains for itself, by the loop that trains everything else.

`config.stages` maps a stage's name to its keys. Where a configuration names a model's folder,
"stage:NAME" is the folder of the model that the stage trains:

    config.stages.sft = {"network": {"model_type": "gpt_neox", ...}, "vocab_size": 2048,
                         "method": "sft", "data": {"train": ...}, "train": {"steps": 300}}
    config.policy.path = "stage:sft"

A stage begins with the model in `base` (a folder, a hub name, another stage), or, where that is "",
with a fresh `network`, the fields of a config.json, whose parameters are drawn by `init_seed` (the
run's seed where it is left out), and a tokenizer of `vocab_size` entries that is trained on the
stage's own texts. Every other key is one of vbon_jax/config.py, with the default that it has there:
those of PPO, so that a stage should set train.epochs and train.minibatches to 1 (configs/small.py).
A finished stage is not trained again. configs/demo.py is an example of both kinds.
"""

import functools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import (
    SEED,
    Key,
    defaults,
    flat,
    get,
    identity,
    origins,
    owner,
    set_key,
)
from vbon_jax.config import check as check_keys
from vbon_jax.data import response_ids, reward_inputs, sft_rows, sources, tokenizers
from vbon_jax.functional import streams
from vbon_jax.models import classifier, decoder, lora, sharding
from vbon_jax.models.encoder import EncoderConfig
from vbon_jax.models.huggingface import model_folder
from vbon_jax.study import plan, supervision
from vbon_jax.training import checkpoints, loop, methods
from vbon_jax.types import InputError, Params, naming

logger = logging.getLogger(__name__)

PREFIX = plan.STAGE
OWN_KEYS = {"base": str, "network": dict, "vocab_size": int, "init_seed": int}
OWN_NUMBERS = (Key("vocab_size", 0, "", least=1), Key("init_seed", 0, "", **SEED))
NEEDED = {str: "a text", dict: "a dictionary", int: "a whole number"}
METHODS = ("sft", "reward_model")
EVALUATION_FILE = "evaluation.json"  # of a stage: its measures on held-out rows
WORD_PIECES = ("distilbert", "bert")  # families whose fresh tokenizer is WordPiece


class Start(NamedTuple):
    """The model that a stage trains, before training."""

    model: classifier.Config
    params: Params
    tokenizer: Any
    settings: dict[str, Any]  # of its config.json
    ends: response_ids.Ends  # of a text
    fresh: tuple[str, ...] = ()  # modules that its checkpoint did not bring


# --------------------------------------------------------------------------------- configuration


class Stage(NamedTuple):
    """The keys of a stage."""

    name: str
    run: ConfigDict  # the configuration of its training
    base: str = ""  # a model's folder, or "stage:NAME"; "" = a fresh network
    network: Mapping[str, Any] = {}  # of a fresh one: the fields of its config.json
    vocab_size: int = 4096  # of its tokenizer, at most
    init_seed: int | None = None  # of its parameters; None = the run's seed

    @property
    def where(self) -> str:
        """The place of its keys, for errors."""
        return f"config.stages.{self.name}"


def read(config: ConfigDict, name: str) -> Stage:
    """A stage of a configuration.

    Raises InputError for a key that does not exist, a value of another type or outside its bounds,
    and keys that contradict each other.
    """
    given, where = config.stages[name], f"config.stages.{name}"
    if not isinstance(given, ConfigDict):
        raise InputError(f"{where} is {given!r}; give a dictionary of keys")
    run = defaults()
    run.method = METHODS[0]
    run.mesh.update(config.mesh)
    keys = flat({key: value for key, value in given.items() if key not in OWN_KEYS})
    for key, value in keys.items():
        known = owner(key)
        if known and known.name != key:  # of a group whose keys a user chooses
            with run.unlocked():
                get(run, known.name)[key.removeprefix(f"{known.name}.")] = value
        else:
            set_key(run, key, value, where)
    stage = Stage(name, run, **_own_keys(given, where))
    _check(stage)
    plan.check_own(where, keys, run)
    return stage


def _own_keys(given: ConfigDict, where: str) -> dict[str, Any]:
    """The keys of a stage that are given and not keys of its run."""
    values = {key: value for key, value in given.to_dict().items() if key in OWN_KEYS}
    for key, value in values.items():
        if not isinstance(value, OWN_KEYS[key]):
            raise InputError(f"{where}.{key}={value!r}: give {NEEDED[OWN_KEYS[key]]}")
    try:
        check_keys(values, [key for key in OWN_NUMBERS if key.name in values])
    except InputError as error:
        raise InputError(f"{where}.{error}") from error
    return values


def _check(stage: Stage) -> None:
    """Refuse a stage that cannot be trained, before anything is."""
    where, run = stage.where, stage.run
    if run.method not in METHODS:
        raise InputError(f"{where}.method={run.method!r}: a stage is one of {', '.join(METHODS)}")
    if bool(stage.base) == bool(stage.network):
        raise InputError(f"{where}: give base (a model's folder) or network, one of them")
    if stage.network and run.policy.lora.pattern:
        raise InputError(f"{where}: policy.lora adapts a trained model; give base, or no lora")
    if stage.network and run.train.trainable:
        raise InputError(f"{where}.train.trainable: a fresh network is trained whole; leave it out")
    if run.policy.path or run.reward.path:
        raise InputError(f"{where}: give base, and neither policy.path nor reward.path")
    if not run.data.train:
        raise InputError(f"{where}.data.train is empty; name the rows that the stage learns from")
    with naming(where):
        plan.check_run(run)


def require(config: ConfigDict, *keys: str) -> None:
    """Refuse a configuration that leaves some of these keys empty."""
    if missing := [key for key in keys if not get(config, key)]:
        raise InputError(
            f"config.{', config.'.join(missing)}: nothing is given; name data and models, or "
            "begin with --config configs/demo.py"
        )


def check(config: ConfigDict) -> None:
    """Refuse bad keys of a stage, a stage that begins with itself, and one of the wrong method."""
    for name in config.stages:
        seen, at = [name], name
        while (base := read(config, at).base).startswith(PREFIX):
            at = _name(config, base)
            if at in seen:
                raise InputError(f"config.stages.{name} begins with itself: {' -> '.join(seen)}")
            seen.append(at)
    for where, path, method in _references(config):
        trained_by = read(config, _name(config, path)).run.method
        if trained_by != method:
            raise InputError(
                f"{where}.path={path!r} is a stage of method {trained_by}; name one of {method}"
            )


def _references(config: ConfigDict) -> Iterator[tuple[str, str, str]]:
    """Where the configuration names a stage's model, its path and the method that must train it."""
    holders = {"policy": config.policy, "reward": config.reward}
    holders |= {f"judges.{name}": judge for name, judge in config.judges.items()}
    for name, holder in holders.items():
        if hasattr(holder, "get") and str(holder.get("path", "")).startswith(PREFIX):
            yield f"config.{name}", holder.path, "sft" if name == "policy" else "reward_model"


def _name(config: ConfigDict, path: str) -> str:
    """The name of the stage in "stage:NAME"; InputError where there is no such stage."""
    name = path.removeprefix(PREFIX)
    if name not in config.stages:
        known = ", ".join(config.stages) or "none"
        raise InputError(f"{path!r}: config.stages has no {name!r} (it has: {known})")
    return name


# ---------------------------------------------------------------------------------------- training


MODELS = ("policy", "reward", "judges")


class ModelPaths(NamedTuple):
    """The folders of the models that a program reads, and "" for one that it does not."""

    policy: str = ""
    reward: str = ""  # "" also where the reward is a function
    judges: Mapping[str, str] = {}  # by name; "" where a judge is a function


def make(
    config: ConfigDict,
    workdir: pathlib.Path,
    models: Sequence[str] = MODELS,
    *,
    trains: bool = True,
) -> ModelPaths:
    """The folders of some `models` of a configuration; stages that they lack are trained first.

    Unless `trains`: then a stage that is not finished is an InputError.
    """

    def folder(holder: ConfigDict) -> str:
        path = holder.get("path", "")
        if not path.startswith(PREFIX):
            return path
        return train(config, workdir, _name(config, path), trains=trains)

    paths = ModelPaths()
    for name in models:
        holder = config[name]
        path = {n: folder(j) for n, j in holder.items()} if name == "judges" else folder(holder)
        paths = paths._replace(**{name: path})
    return paths


def base_folder(config: ConfigDict, path: str) -> str:
    """The folder that a path's model begins with by way of stages; "" for a fresh network."""
    while path.startswith(PREFIX):
        path = read(config, _name(config, path)).base
    return path


def train(config: ConfigDict, workdir: pathlib.Path, name: str, *, trains: bool = True) -> str:
    """The folder of a stage's model, trained now unless that is done; see `make`."""
    stage = read(config, name)
    run, folder = stage.run, workdir / "stages" / name
    if stage.base.startswith(PREFIX):
        stage = stage._replace(
            base=train(config, workdir, _name(config, stage.base), trains=trains)
        )
    table = sources.read_split(run.data, "train")
    inputs = identity(run) | {key: getattr(stage, key) for key in OWN_KEYS}
    inputs["base"] = model_folder.fingerprint(stage.base) if stage.base else ""
    inputs["rows"] = sources.fingerprint(table)
    artifact = files.Artifact(folder, inputs, origins(run))
    if not trains and artifact.is_left():
        raise InputError(f"{folder} is not trained to its end; run compare or train first")
    resumes = functools.partial(checkpoints.exist, folder / "run")
    with artifact.work(resumes=resumes, waits=True) as left:
        if left:
            artifact.finish(*_make(folder, stage, table))
    return str(folder / "model")


def _make(folder: pathlib.Path, stage: Stage, table: sources.Table) -> list[str]:
    """Train a stage in `folder/run`, save its model and measure it; returns what that wrote."""
    run = stage.run
    start = _from_base(stage, table) if stage.base else _fresh(stage, table)
    mesh = sharding.config_mesh(run)
    batch = _rows(run, table, start)
    held_out = _held_out(run, start, batch)
    task = methods.Task(config=run, model=start.model, mesh=mesh, rows=batch, fresh=start.fresh)
    loop.run(run, folder / "run", task, start.params, inputs={})
    params = loop.restore(folder / "run", which="last", task=task, network=start.params)
    model, params = lora.merge(start.model, params)
    reading = sft_rows.reading(run, table, start.tokenizer, model.labels)
    model_folder.save(
        folder / "model", model, params, settings=reward_inputs.recorded(start.settings, reading),
        tokenizer=start.tokenizer, eos_token_ids=start.ends.ids,
    )  # fmt: skip
    if held_out is None:
        return ["model"]
    saved = model_folder.load(folder / "model")  # as whatever reads it later does
    _report(folder, run, saved.config, saved.params, held_out, stage.name)
    return ["model", EVALUATION_FILE]


def _rows(run: ConfigDict, table: sources.Table, start: Start, *, room: int = 0) -> sft_rows.Rows:
    """Rows of a table as the model reads them."""
    labels = start.model.labels
    return sft_rows.build(run, table, start.tokenizer, start.ends, labels, room=room)


def _held_out(run: ConfigDict, start: Start, learned: sft_rows.Rows) -> sft_rows.Rows | None:
    """The rows of `data.eval` that are none of `learned`; None where no such data are named."""
    if not run.data.eval:
        return None
    table = sources.read_split(run.data, "eval")
    whole = start.model.max_positions if run.method == "reward_model" else 0  # as a reward reads
    held_out, most = _rows(run, table, start, room=whole), run.train.text_tokens
    known = set(sft_rows.texts_of(learned, most))
    new = [row for row, text in enumerate(sft_rows.texts_of(held_out, most)) if text not in known]
    logger.info(f"{len(held_out[0]) - len(new)} held-out rows are left out that are learned from")
    if len(new) < 2:
        raise InputError(
            f"{table.source}: {len(new)} held-out rows are left, which gives no interval; give "
            "rows that the stage does not learn from"
        )
    return type(held_out)(*(array[new] for array in held_out))


def _report(folder, run: ConfigDict, model, params: Params, held_out, name: str) -> None:
    """How well the stage does on held-out rows, in `evaluation.json` and on the terminal."""
    measures = supervision.measure(
        model, params, held_out, batch_size=run.train.batch_size, seed=run.seed
    )
    files.write_json(
        folder / EVALUATION_FILE,
        {"stage": name, "method": run.method, "rows": len(held_out[0])}
        | {key: value._asdict() for key, value in measures.items()},
    )
    numbers = ", ".join(
        f"{key} {value.value:.3f} [{value.lo:.3f}, {value.hi:.3f}]"
        for key, value in measures.items()
    )
    logger.info(f"stage {name} on {len(held_out[0])} held-out rows: {numbers}")


# ---------------------------------------------------------------------------------- initialisation


def labels(config: ConfigDict, name: str) -> tuple[str, ...]:
    """The labels of the classifier that a stage makes; () where it makes a language model."""
    stage = read(config, name)
    if stage.run.method != "reward_model":
        return ()
    if stage.base.startswith(PREFIX):
        inherited = labels(config, _name(config, stage.base))
    else:
        inherited = model_folder.read_config(stage.base).labels if stage.base else ()
    return inherited or _labels(stage, sources.read_split(stage.run.data, "train"))


def _labels(stage: Stage, table: sources.Table) -> tuple[str, ...]:
    """Of a new head: one score for preferences, a logit for each class that the rows have.

    The network's `id2label` names them.
    """
    run, names = stage.run, stage.network.get("id2label", {})
    count = 1 + max(sft_rows.labelled(run, table)[1]) if run.data.label_field else 1
    if names and len(names) < count:
        raise InputError(
            f"{table.source} has {count} classes and {stage.where}.network.id2label {len(names)}; "
            "name them all"
        )
    return tuple(names.get(str(index), f"LABEL_{index}") for index in range(count))


def _from_base(stage: Stage, table: sources.Table) -> Start:
    """A trained model; a language model that is to become a classifier gets a new head."""
    checkpoint, tokenizer = model_folder.load(stage.base), model_folder.load_tokenizer(stage.base)
    run, model, params = stage.run, checkpoint.config, checkpoint.params
    if run.method == "sft" and (isinstance(model, EncoderConfig) or model.labels):
        raise InputError(f"{stage.base}: a classifier, where sft takes a language model")
    fresh = ("classifier/score",) if run.method == "reward_model" and not model.labels else ()
    if fresh:
        key = streams.key("new head", run.seed)
        model, params = decoder.with_score(model, params, _labels(stage, table), key)
    _check_positions(run, model, stage.base)
    model, params = lora.with_adapters(run, model, params, stage.base)
    ends = response_ids.response_ends(checkpoint, tokenizer, stage.base)
    return Start(model, params, tokenizer, checkpoint.settings, ends, fresh)


def _fresh(stage: Stage, table: sources.Table) -> Start:
    """A network of random parameters, and a tokenizer trained on the rows."""
    run, texts = stage.run, sft_rows.texts(stage.run, table, None)
    family = stage.network.get("model_type", "")
    if family in WORD_PIECES:
        tokenizer, eos = tokenizers.train_wordpiece(texts, vocab_size=stage.vocab_size), None
    else:
        tokenizer = tokenizers.train_tokenizer(texts, vocab_size=stage.vocab_size, family=family)
        eos = tokenizer.eos_token_id
    ids = {"pad_token_id": 0, "bos_token_id": eos, "eos_token_id": eos}
    settings = {**stage.network, "vocab_size": len(tokenizer), **ids}
    names = _labels(stage, table) if run.method == "reward_model" else ()
    model = model_folder.config_of(settings, labels=names, source=f"{stage.where}.network")
    _check_positions(run, model, stage.where)
    seed = run.seed if stage.init_seed is None else stage.init_seed
    params = classifier.init(model, streams.key("fresh network", seed))
    ends = response_ids.Ends(() if eos is None else (eos,), eos)
    return Start(model, params, tokenizer, settings, ends)


def _check_positions(run: ConfigDict, model: classifier.Config, where: str) -> None:
    if run.train.text_tokens > model.max_positions:
        raise InputError(
            f"train.text_tokens={run.train.text_tokens}, but {where} takes "
            f"{model.max_positions} positions; give at most that"
        )
