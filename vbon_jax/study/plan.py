"""The runs of a comparison, and what can be seen to be wrong in a configuration alone."""

import hashlib
import re

from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import KEYS, defaults, is_shared, set_key
from vbon_jax.config import check as check_keys
from vbon_jax.training import loop, methods, sharding
from vbon_jax.types import InputError
from vbon_jax.workdir import run

NAME_LIMIT = 100  # characters of a run's name
BOUNDED = next(key.methods for key in KEYS if key.name == "bound")


def every(config: ConfigDict) -> list[dict]:
    """The runs of a comparison: `config.cells`, or methods x n_values x seeds."""
    if not config.cells:
        derived = [
            {"method": method, "n": n, "seed": seed}
            for method in config.methods
            for n in config.n_values
            for seed in config.seeds
        ]
        return [_typed(cell) for cell in derived]
    for cell in config.cells:
        if not hasattr(cell, "items"):
            raise InputError(f"config.cells: {cell!r} is no dictionary of keys")
    named = {"method": config.method, "n": config.n, "seed": config.seed}
    return [_typed(named | dict(cell)) for cell in config.cells]


def single(config: ConfigDict) -> dict:
    """The one run that `method`, `n` and `seed` name."""
    return _typed({"method": config.method, "n": config.n, "seed": config.seed})


def _typed(cell: dict) -> dict:
    """N as a float, the seed as an int."""
    try:
        return cell | {"n": float(cell["n"]), "seed": int(cell["seed"])}
    except (TypeError, ValueError) as error:
        raise InputError(f"n={cell['n']!r}, seed={cell['seed']!r}: give numbers") from error


def config_of(config: ConfigDict, cell: dict) -> ConfigDict:
    """The configuration of one run: what `by_method` says of its method, then the cell's keys.

    Keys may be dotted. Raises InputError for a key that does not exist or that all runs share, and
    a value of another type than the key has.
    """
    changed = config.copy_and_resolve_references()
    method = cell.get("method", config.method)
    own = files.flat(config.by_method.get(method, ConfigDict()))
    with changed.unlocked():
        changed.by_method = ConfigDict()
    for key in own.keys() & {"method", "n", "seed"}:
        raise InputError(f"config.by_method.{method}: {key} is a cell's; set it in config.cells")
    for source, values in ((f"config.by_method.{method}", own), ("config.cells", cell)):
        for key, value in values.items():
            _set(changed, key, value, source)
    return changed


def _set(config: ConfigDict, key: str, value, source: str) -> None:
    """Change one key of a run's configuration; `source` is where the change stands."""
    if is_shared(key):
        raise InputError(f"{source}: {key} is the same for all runs; set --config.{key}")
    set_key(config, key, value, source)


def run_name(cell: dict) -> str:
    """The folder of a cell's run: its method, N and seed, and whatever else it sets.

    What no file name should hold becomes `_`; such a name, and a very long one, ends with a digest.
    """
    rest = {key: value for key, value in cell.items() if key not in ("method", "n", "seed")}
    words = [cell["method"], f"n{cell['n']:g}", f"s{cell['seed']}"]
    exact = "-".join(words + [f"{key}={value}" for key, value in sorted(rest.items())])
    name = re.sub(r"[^\w.=+-]+", "_", exact)
    if name != exact or len(name) > NAME_LIMIT:
        name = f"{name[:NAME_LIMIT]}_{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
    return name


def record(config: ConfigDict, cell: dict) -> run.Record:
    """What a cell's run is shown as; `config` is that run's own.

    Its label is the method with its bound, its gradient where that is not PPO, and the cell's keys
    besides N and the seed.
    """
    row, names = methods.method(config.method), list(methods.METHODS)
    bound = config.bound if config.method in BOUNDED else None
    gradient = config.gradient if row.by_gradient else None
    words = [bound, gradient if gradient != "ppo" else None]
    words += [
        f"{key.rpartition('.')[2]}={value}"
        for key, value in sorted(cell.items())
        if key not in ("method", "n", "seed", "bound", "gradient")
    ]
    details = ", ".join(word for word in words if word)
    return run.Record(
        name=run_name(cell),
        label=f"{config.method} ({details})" if details else config.method,
        method=config.method,
        n=config.n,
        bound=bound,
        seed=config.seed,
        gradient=gradient,
        order=names.index(config.method) if config.method in names else len(names),
        measured=not row.reads_text,
    )


def judges(config: ConfigDict) -> dict[str, ConfigDict]:
    """The settings of each of `config.judges`: `config.reward`'s defaults, and its own.

    Raises InputError for a name that no file should have, a key that a reward has not, and a judge
    that names no reward or two.
    """
    found = {}
    for name, own in config.judges.items():
        where = f"config.judges.{name}"
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise InputError(f"{where}: a judge's name is letters, digits, '_', '-' and '.'")
        if not hasattr(own, "items"):
            raise InputError(f"{where} is {own!r}; give a dictionary of keys as in config.reward")
        settings = defaults().reward
        unknown = sorted(set(own.keys()) - set(settings.keys()))
        if unknown:
            raise InputError(f"{where}: there is no key {unknown[0]!r} in config.reward")
        for key, value in own.items():
            set_key(settings, key, value, where)
        if bool(settings.path) == bool(settings.function):
            raise InputError(f"{where}: give path (a classifier's folder) or function, one of them")
        prefix = "reward."
        keys = [key for key in KEYS if key.name.startswith(prefix)]
        try:
            check_keys(settings, [key._replace(name=key.name.removeprefix(prefix)) for key in keys])
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        found[name] = settings
    return found


def check(config: ConfigDict) -> None:
    """Refuse, before anything is computed, what can be seen to be wrong in the config alone."""
    mesh = sharding.config_mesh(config)
    check_run(config)
    judges(config)
    for name in config.by_method:
        try:
            methods.method(name)
        except InputError as error:
            raise InputError(f"config.by_method: {error}") from error
        if not isinstance(config.by_method[name], ConfigDict):
            raise InputError(f"config.by_method.{name}: give a dictionary of keys")
        config_of(config, {"method": name})
    names: dict[str, dict] = {}
    for cell in every(config):
        changed = config_of(config, cell)
        check_run(changed)
        loop.check_rows(changed, mesh)
        if cell in names.values():
            raise InputError(f"config.cells: {run_name(cell)} stands there twice; take one out")
        names[run_name(cell)] = cell


def check_run(config: ConfigDict) -> None:
    """The part of `check` that looks at one run."""
    check_keys(config, (*KEYS, *methods.method(config.method).keys))
    methods.check(config)
    if config.policy.lora.pattern and config.train.trainable:
        raise InputError(
            "policy.lora.pattern and train.trainable are both set; with adapters they alone are "
            "trained, so leave train.trainable empty"
        )
    train_config = config.train
    if train_config.best_metric.startswith("eval/") and (
        not train_config.eval_every or train_config.checkpoint_every % train_config.eval_every
    ):
        raise InputError(
            f"train.best_metric={train_config.best_metric!r} needs an evaluation at every "
            f"checkpoint: train.checkpoint_every={train_config.checkpoint_every} must be a "
            f"multiple of train.eval_every={train_config.eval_every}"
        )
    if config.budget.sampled_tokens and config.budget.train_flops:
        raise InputError(
            "budget.sampled_tokens and budget.train_flops are both set; a comparison has one budget"
        )
    if not config.sampling.temperature > 0:
        raise InputError(
            f"sampling.temperature={config.sampling.temperature}: a policy to be trained and its "
            "references are sampled at a temperature above 0"
        )
