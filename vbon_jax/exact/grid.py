"""The cells of the exact lab: one method at one N, with or without ties, by either gradient.

A cell that is finished is not trained again; its measures are in its folder.
"""

import concurrent.futures
import functools
import itertools
import multiprocessing
import pathlib

import jax
import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import KEYS, check, get, identity
from vbon_jax.exact import cdf_study, enumeration, gradients, sampled_methods
from vbon_jax.exact.enumeration import Law
from vbon_jax.exact.gradients import Setting
from vbon_jax.exact.keys import LAB_KEYS
from vbon_jax.study import plan
from vbon_jax.types import InputError

EXACT, SAMPLED = "exact", "sampled"
CACHE_KEYS = ("references.samples_per_prompt", "references.seed")


def check_lab(config: ConfigDict) -> None:
    """Refuse a configuration that cannot be used before anything is trained."""
    check(config, (*KEYS, *LAB_KEYS))
    for n in config.n_values:
        if n < 2 or n != int(n):
            raise InputError(f"n_values: {n} must be a whole number from 2, for pairs of draws")
    known = {"methods": list(gradients.METHODS), "sampled_methods": sampled_methods.every()}
    for key, names in known.items():
        for name in config.lab[key]:
            if name not in names:
                raise InputError(f"lab.{key}: {name!r} is unknown; choose of {', '.join(names)}")
    if config.lab.length != config.sampling.max_new_tokens:
        raise InputError(
            f"lab.length={config.lab.length} and sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens} must be equal; give both the same value"
        )
    sampled = [cell for cell in cells(config) if cell["gradient"] == SAMPLED]
    runs = [sampled_methods.run_config(config, cell["method"], cell["n"]) for cell in sampled]
    plan.check_read(config, runs, besides=("pairs.alpha", "sampling.max_new_tokens"))


def cells(config: ConfigDict) -> list[dict]:
    """All cells, in the order of the results."""
    methods = [(EXACT, name) for name in config.lab.methods]
    methods += [(SAMPLED, name) for name in config.lab.sampled_methods or sampled_methods.every()]
    return [
        {"method": name, "n": int(n), "gradient": gradient, "ties": ties}
        for gradient, name in methods
        for ties in (False, True)
        for n in config.n_values
    ]


def artifact(config: ConfigDict, workdir: pathlib.Path, cell: dict) -> files.Artifact:
    """The folder of a cell, and what its numbers depend on."""
    ties = "ties" if cell["ties"] else "distinct"
    name = f"{cell['gradient']}-{cell['method']}-n{cell['n']}-{ties}"
    if cell["gradient"] == EXACT:
        inputs = _lab_inputs(config, "run", EXACT) | {"pairs.alpha": config.pairs.alpha}
    else:
        run = sampled_methods.run_config(config, cell["method"], cell["n"])
        inputs = identity(run) | _lab_inputs(config, "run")
        inputs |= {key: get(config, key) for key in CACHE_KEYS}
    return files.Artifact(workdir / "cells" / name, inputs | {"cell": name})


def _lab_inputs(config: ConfigDict, *kinds: str) -> dict:
    return {key.name: get(config, key.name) for key in LAB_KEYS if key.identifies in kinds}


def make_laws(config: ConfigDict, setting: Setting) -> dict[bool, Law]:
    """The truth without ties and with them."""
    reference_pk = gradients.enumerate_policy(setting, setting.params)
    draw = functools.partial(enumeration.draw_rewards, *reference_pk.shape,
                             seed=config.lab.seed, scale=config.lab.reward_scale)  # fmt: skip
    return {ties: enumeration.law(reference_pk, draw(ties=ties)) for ties in (False, True)}


# ------------------------------------------------------------------ rows


def train_all(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """The rows of all cells; those that are missing are trained, by `lab.workers` processes."""
    rows = cells(config)
    missing = [cell for cell in rows if artifact(config, workdir, cell).is_left()]
    groups = [
        list(group)
        for _, group in itertools.groupby(missing, lambda cell: (cell["gradient"], cell["method"]))
    ]
    bar = tqdm.tqdm(
        total=len(rows), initial=len(rows) - len(missing), desc="exact lab", unit="cell"
    )
    context = multiprocessing.get_context("spawn")  # jax has threads, which no fork keeps
    with bar, concurrent.futures.ProcessPoolExecutor(config.lab.workers, context) as pool:
        each = map if config.lab.workers == 1 else pool.map
        done = each(functools.partial(run_group, config, workdir), groups)
        for group, _ in zip(groups, done, strict=True):
            bar.update(len(group))
    return [files.read_json(artifact(config, workdir, cell).folder / "row.json") for cell in rows]


def run_group(config: ConfigDict, workdir: pathlib.Path, group: list[dict]) -> None:
    """Train the cells of one method, which share their programs."""
    setting = gradients.make_setting(config)
    laws = make_laws(config, setting)
    for cell in group:
        place = artifact(config, workdir, cell)
        with place.work(waits=True) as left:
            if left:
                row = run_cell(config, setting, laws[cell["ties"]], cell, place)
                files.write_json(place.folder / "row.json", row)
                place.finish("row.json")


def run_cell(
    config: ConfigDict, setting: Setting, law: Law, cell: dict, place: files.Artifact
) -> dict:
    """The row of a cell; with exact gradients, `theory` says how far it is from its minimum."""
    method, n, exact = cell["method"], cell["n"], cell["gradient"] == EXACT
    if exact:
        params = gradients.train(config, setting, law, method, n)
    else:
        run = sampled_methods.run_config(config, method, n)
        task = sampled_methods.make_task(run, setting, law)
        params = sampled_methods.train(task, setting, place.folder / "run", place.inputs)
    log_policy_pk = gradients.enumerate_policy(setting, jax.device_get(params))
    row = cell | enumeration.measures(log_policy_pk, law, n)
    if exact:
        alpha = config.pairs.alpha
        row["theory"] = gradients.against_theory(log_policy_pk, law, method, n, alpha)
    return row


def cdf_rows(config: ConfigDict, workdir: pathlib.Path, laws: dict[bool, Law]) -> list[dict]:
    """The cost of estimates of log F, without ties and with them; kept as the cells are."""
    inputs = _lab_inputs(config, "run", "cdf") | {"n_values": config.n_values}
    place = files.Artifact(workdir / "cells" / "cdf", inputs)
    with place.work(waits=True) as left:
        if left:
            rows, lab = [], config.lab
            options = {"sizes": lab.cache_sizes, "seed": lab.seed, "draws": lab.caches}
            for ties, law in laws.items():
                rows += cdf_study.errors(law, config.n_values, ties=ties, **options)
            files.write_json(place.folder / "rows.json", rows)
            place.finish("rows.json")
    return files.read_json(place.folder / "rows.json")


def ruler_rows(config: ConfigDict, laws: dict[bool, Law]) -> list[dict]:
    """Best-of-N's own rows, and the reference's, which is Best-of-1."""
    laws_of = {"reference": lambda law, n: law.log_reference_pk, "best_of_n": enumeration.best_of_n}
    return [
        {"method": name, "n": int(n), "gradient": EXACT, "ties": ties}
        | enumeration.measures(policy(law, n), law, n)
        for ties, law in laws.items()
        for n in config.n_values
        for name, policy in laws_of.items()
    ]
