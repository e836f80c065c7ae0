"""The runs of a study, each made once: name, label, folder and frozen configuration.

Nothing is computed or read here; what can be seen to be wrong in a configuration alone is refused.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict, FrozenConfigDict

from vbon_jax import files
from vbon_jax.config import (
    KEYS,
    add,
    changed,
    check_needs,
    defaults,
    flat,
    get,
    owner,
    set_key,
    unread,
)
from vbon_jax.config import check as check_keys
from vbon_jax.models import sharding
from vbon_jax.training import loop, methods
from vbon_jax.types import InputError, naming
from vbon_jax.workdir.run import Record

UP = pathlib.Path("..", "..")  # from a run's folder to its working directory
NAME_LIMIT = 100  # characters of a run's name
REWARD_KEYS = [key for key in KEYS if key.name.startswith("reward.")]
COORDINATES = ("method", "n", "seed")  # of a run; all runs have them
STAGE = "stage:"  # before the name of a stage, wherever a model's folder is named
BOUNDED = next(key.methods for key in KEYS if key.name == "bound")


class Run(NamedTuple):
    """One run of a study."""

    name: str  # of its folder
    label: str  # in tables and figures
    folder: pathlib.Path
    config: FrozenConfigDict  # `by_method` and the cell's keys applied, stages replaced by folders
    method: methods.Method


def plan(config: ConfigDict, workdir: pathlib.Path) -> list[Run]:
    """All runs of a comparison: `config.cells`, or methods x n_values x seeds.

    Raises InputError for a key or value that cannot be used, in the configuration or in any run,
    and for two runs of one folder.
    """
    check(config, workdir)
    runs: dict[str, Run] = {}
    for cell in _cells(config):
        run = make_run(config, cell, workdir)
        if run.name in runs:
            raise InputError(f"config.cells: {run.name} is a duplicate; remove one of the two")
        runs[run.name] = run
    check_read(config, [run.config for run in runs.values()])
    return list(runs.values())


def single(config: ConfigDict, workdir: pathlib.Path) -> Run:
    """The one run that `method`, `n` and `seed` name."""
    check(config, workdir)
    run = make_run(config, {}, workdir)
    check_read(config, [run.config])
    return run


def _cells(config: ConfigDict) -> list[dict[str, Any]]:
    """The keys that each run of a comparison sets."""
    for cell in config.cells:
        if not hasattr(cell, "items"):
            raise InputError(f"config.cells: {cell!r} must be a dictionary of keys")
    if config.cells:
        return [dict(cell) for cell in config.cells]
    for name in ("methods", "n_values", "seeds"):
        if not config[name]:
            raise InputError(f"{name} is empty, so there is nothing to compare; give at least one")
    return [
        {"method": method, "n": n, "seed": seed}
        for method in config.methods
        for n in config.n_values
        for seed in config.seeds
    ]


def given_pairs(config: ConfigDict) -> list[ConfigDict]:
    """Each way in which runs of the configuration read given pairs: `config.pairs` with a path.

    Of all its runs, whichever a program trains: all have the same held-out prompts.
    """
    ways = {}
    for cell in config.cells or [{"method": name} for name in (*config.methods, config.method)]:
        run_config, cell = config.copy_and_resolve_references(), dict(cell)
        changes = _overrides(config, cell.get("method", config.method)) | cell
        for key, value in changes.items():
            if key.startswith("pairs."):
                set_key(run_config, key, value, "config")
        way = {k: v for k, v in flat(run_config.pairs).items() if k not in ("beta", "alpha")}
        if run_config.pairs.path:
            ways[repr(way)] = run_config.pairs
    return list(ways.values())


# ---------------------------------------------------------------------------------------- one run


def make_run(config: ConfigDict, cell: dict[str, Any], workdir: pathlib.Path) -> Run:
    """The run of one cell: what `by_method` sets for its method, then the cell's keys (dotted).

    Raises InputError for a key that does not exist or that all runs share, a value of another type
    than the key has, and whatever `check_run` refuses.
    """
    named = {key: cell.get(key, config[key]) for key in COORDINATES}
    if not isinstance(named["n"], int | float) or not isinstance(named["seed"], int):
        raise InputError(f"n={named['n']!r}, seed={named['seed']!r}: give a number, a whole number")
    named["n"] = float(named["n"])
    cell = named | {key: value for key, value in cell.items() if key not in named}
    method = methods.method(cell["method"])
    run_config = _own_copy(config, workdir)
    add(run_config, method.keys)
    overrides = _overrides(config, cell["method"])
    for key in overrides.keys() & named.keys():
        raise InputError(f"config.by_method.{cell['method']}: set {key} in config.cells")
    where = f"config.by_method.{cell['method']}"
    for source, values in ((where, overrides), ("config.cells", cell)):
        for key, value in values.items():
            if (known := owner(key)) and known.shared:
                raise InputError(f"{source}: {key} is the same for all runs; set --config.{key}")
            set_key(run_config, key, value, source)
    for source, values in ((where, overrides), ("config.cells", cell)):
        check_own(source, values, run_config)
    with naming(where if overrides else "config.cells" if cell.keys() - named else ""):
        check_run(run_config)
    name = run_name(cell)
    return Run(
        name=name,
        label=_label(cell, run_config, method),
        folder=workdir / "runs" / name,
        config=FrozenConfigDict(run_config),
        method=method,
    )


def _own_copy(config: ConfigDict, workdir: pathlib.Path) -> ConfigDict:
    """A run's copy of the study's configuration: no other run's keys, models by their folders."""
    copy = config.copy_and_resolve_references()
    with copy.unlocked():
        copy.by_method, copy.cells = ConfigDict(), ()
    copy.policy.path = model_folder(copy.policy.path, workdir)
    copy.reward.path = model_folder(copy.reward.path, workdir)
    return copy


def model_folder(path: str, workdir: pathlib.Path) -> str:
    """A model's folder as a run records it: absolute, that of a stage too; a hub name as it is.

    Inside the working directory it is the way from the run's folder, so that all can be moved.
    """
    place = pathlib.Path(path).expanduser()
    if path.startswith(STAGE):
        place = workdir / "stages" / path.removeprefix(STAGE) / "model"
    elif not path or not place.exists():
        return path
    place, root = place.resolve(), workdir.resolve()
    return str(UP / place.relative_to(root) if place.is_relative_to(root) else place)


def recorded_folder(path: str, run: pathlib.Path) -> str:
    """The model's folder that `model_folder` recorded for the run in the folder `run`."""
    return str((run.resolve() / path).resolve()) if path.startswith(f"{UP}/") else path


def _overrides(config: ConfigDict, method: str) -> dict[str, Any]:
    """The keys that `by_method` sets for a method, which it may name without its module."""
    for name in (method, short(method)):
        if name in config.by_method:
            return flat(config.by_method[name])
    return {}


def short(method: str) -> str:
    """A method's name, without the module of a method outside of the package."""
    return method.rpartition(":")[2]


def run_name(cell: dict[str, Any]) -> str:
    """The folder of a cell's run: its method, N and seed, and whatever else it sets.

    What no file name should hold becomes `_`; such a name, and a very long one, ends with a digest.
    """
    rest = {key: value for key, value in cell.items() if key not in ("method", "n", "seed")}
    words = [short(cell["method"]), f"n{cell['n']:g}", f"s{cell['seed']}"]
    exact = "-".join(words + [f"{key}={value}" for key, value in sorted(rest.items())])
    name = re.sub(r"[^\w.=+-]+", "_", exact)
    if name != exact or len(name) > NAME_LIMIT:
        name = f"{name[:NAME_LIMIT]}_{files.digest(exact)[:8]}"
    return name


def record(run: Run) -> Record:
    """The record by which a report shows a run."""
    config, names = run.config, list(methods.METHODS)
    return Record(
        name=run.name,
        label=run.label,
        method=config.method,
        n=config.n,
        bound=config.bound if config.method in BOUNDED else None,
        seed=config.seed,
        gradient=config.gradient if run.method.by_gradient else None,
        order=names.index(config.method) if config.method in names else len(names),
        measured=not run.method.reads_text,
    )


def _label(cell: dict[str, Any], config: ConfigDict, method: methods.Method) -> str:
    """The method, its bound, its gradient where that is not PPO, and what else the cell sets."""
    words = [config.bound] if config.method in BOUNDED else []
    if method.by_gradient and config.gradient != "ppo":
        words.append(config.gradient)
    words += [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in sorted(cell.items())
        if key not in ("method", "n", "seed", "bound", "gradient")
    ]
    name = short(config.method)
    return f"{name} ({', '.join(words)})" if words else name


# ----------------------------------------------------------------------------------------- checks


def check(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Refuse what is wrong for all runs: keys, judges, and what `by_method` sets."""
    check_keys(config)
    judges(config)
    in_use = {short(cell.get("method", config.method)): cell for cell in _cells(config)}
    for name, overrides in config.by_method.items():
        method = in_use.get(name, {}).get("method", name)
        try:
            methods.method(method)
        except InputError as error:
            raise InputError(f"config.by_method: {error}") from error
        if not isinstance(overrides, ConfigDict):
            raise InputError(f"config.by_method.{name}: give a dictionary of keys")
        make_run(config, {"method": method}, workdir)


def check_own(source: str, values: Mapping[str, Any], config: ConfigDict) -> None:
    """Refuse a key that is set for one run alone, of this configuration, and that it does not read.

    Also where the value is the default: the run would be another in name, and not in numbers.
    """
    for key, value in values.items():
        known = owner(key)
        if known is None or key in COORDINATES:
            continue
        if reason := unread(config, known) if known.methods else "no run reads it":
            raise InputError(f"{source}: {key}={value!r}: {reason}; leave it out")


def check_read(config: ConfigDict, runs: list[FrozenConfigDict], besides: tuple = ()) -> None:
    """Refuse a key that a configuration sets and none of its runs reads, nor anything `besides`."""
    for key in changed(config):
        reasons = {unread(run, key) for run in runs}
        if key.methods and key.name not in (*COORDINATES, *besides) and all(reasons):
            raise InputError(
                f"{key.name}={get(config, key.name)!r}: {', '.join(sorted(reasons))}; leave it at "
                f"{key.default!r}, or set it for the runs that read it (config.by_method)"
            )


def check_run(config: ConfigDict) -> None:
    """Refuse a run's configuration whose keys, alone or together, cannot be used."""
    method = methods.method(config.method)
    check_keys(config, (*KEYS, *method.keys))
    methods.check(config)
    train = config.train
    if config.policy.lora.pattern and train.trainable:
        raise InputError(
            "policy.lora.pattern and train.trainable are both set; with adapters they alone are "
            "trained, so leave train.trainable empty"
        )
    if train.best_metric and (not train.eval_every or train.checkpoint_every % train.eval_every):
        raise InputError(
            f"train.best_metric={train.best_metric!r} needs an evaluation at every checkpoint: "
            f"train.checkpoint_every={train.checkpoint_every} must be a multiple of "
            f"train.eval_every={train.eval_every}"
        )
    if config.evaluation.checkpoint == "best" and not (train.best_metric or method.reads_text):
        raise InputError(
            "evaluation.checkpoint='best': no run keeps its best checkpoint; give "
            "train.best_metric, and train.eval_every"
        )
    if config.budget.sampled_tokens and config.budget.train_flops:
        raise InputError(
            "budget.sampled_tokens and budget.train_flops are both set; a comparison has one budget"
        )
    loop.check_rows(config, sharding.config_mesh(config))


def judges(config: ConfigDict) -> dict[str, ConfigDict]:
    """Each of `config.judges`, with the defaults of `config.reward` where it sets nothing.

    Raises InputError for a name that no file should have, a key that a reward does not have, and a
    judge that names no reward or two.
    """
    judges = {}
    for name, given in config.judges.items():
        where = f"config.judges.{name}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{where}: a judge's name is letters, digits, '_', '-' and '.'")
        if not hasattr(given, "items"):
            raise InputError(f"{where} is {given!r}; give a dictionary of keys as in config.reward")
        judge = defaults().reward
        unknown = sorted(set(given.keys()) - set(judge.keys()))
        if unknown:
            raise InputError(f"{where}: there is no key {unknown[0]!r} in config.reward")
        for key, value in given.items():
            set_key(judge, key, value, where)
        if bool(judge.path) == bool(judge.function):
            raise InputError(f"{where}: give path (a classifier's folder) or function, one of them")
        try:
            check_keys({"reward": judge}, REWARD_KEYS)
            check_needs({"reward": judge}, REWARD_KEYS)
        except InputError as error:
            raise InputError(f"{where}.{str(error).removeprefix('reward.')}") from error
        judges[name] = judge
    return judges
