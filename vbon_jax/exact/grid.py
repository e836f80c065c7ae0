"""The cells of the exact lab: one method at one N, with or without ties, by either gradient.

A cell that stands is not trained again; what it measured lies in its folder.
"""

import concurrent.futures
import itertools
import json
import multiprocessing
import pathlib

import jax
import numpy as np
import tqdm
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.config import identity
from vbon_jax.exact import cdf_errors, enumeration, gradients, sampled_methods
from vbon_jax.exact.enumeration import Law
from vbon_jax.exact.gradients import Setting
from vbon_jax.types import InputError

EXACT, SAMPLED = "exact", "sampled"
POLICY = ("seed", "vocab_size", "length", "prompts", "width", "num_layers", "initializer_std",
          "reward_scale")  # fmt: skip
SCHEDULE = ("steps_per_doubling", "steps_at_n", "steps", "steps_per_n", "learning_rate", "beta2")


def check(config: ConfigDict) -> None:
    """Refuse what can be seen to be wrong before anything is trained."""
    for n in config.n_values:
        if n < 2 or n != int(n):
            raise InputError(f"n_values: {n} is no whole number from 2, which pairs are made of")
    for key, known in (
        ("methods", list(gradients.METHODS)),
        ("sampled_methods", sampled_methods.every()),
    ):
        for name in config.lab[key]:
            if name not in known:
                raise InputError(f"lab.{key}: {name!r} is not known; choose of {', '.join(known)}")
    if config.lab.length != config.sampling.max_new_tokens:
        raise InputError(
            f"lab.length={config.lab.length} and sampling.max_new_tokens="
            f"{config.sampling.max_new_tokens} are one thing; give both the same value"
        )
    for name in sampled_methods.names(config):
        for n in config.n_values:
            sampled_methods.check(config, name, n)


def cells(config: ConfigDict) -> list[dict]:
    """All cells, in the order of the results."""
    methods = [(EXACT, name) for name in config.lab.methods]
    methods += [(SAMPLED, name) for name in sampled_methods.names(config)]
    return [
        {"method": name, "n": int(n), "gradient": gradient, "ties": ties}
        for gradient, name in methods
        for ties in (False, True)
        for n in config.n_values
    ]


def folder(workdir: pathlib.Path, cell: dict) -> pathlib.Path:
    """Where a cell lies."""
    ties = "ties" if cell["ties"] else "distinct"
    return workdir / "cells" / f"{cell['gradient']}-{cell['method']}-n{cell['n']}-{ties}"


def make_laws(config: ConfigDict, setting: Setting) -> dict[bool, Law]:
    """The truth without ties and with them."""
    reference_pk = gradients.enumerate_policy(setting, setting.params)
    return {
        ties: enumeration.law(
            reference_pk,
            enumeration.draw_rewards(
                *reference_pk.shape, seed=config.lab.seed, scale=config.lab.reward_scale, ties=ties
            ),
        )
        for ties in (False, True)
    }


def inputs(config: ConfigDict, cell: dict) -> dict:
    """What a cell's numbers depend on."""
    keys = {f"lab.{key}": config.lab[key] for key in POLICY}
    if cell["gradient"] == EXACT:
        keys |= {f"lab.{key}": config.lab[key] for key in SCHEDULE}
        return cell | keys | {"pairs.alpha": config.pairs.alpha}
    own = identity(sampled_methods.cell_config(config, cell["method"], cell["n"]))
    cache = {key: config.references[key] for key in ("samples_per_prompt", "seed")}
    return (
        {key: value for key, value in own.items() if not key.startswith("lab.")}
        | keys
        | {f"references.{key}": value for key, value in cache.items()}
        | {"cell": f"{cell['method']} ties={cell['ties']}"}
    )


def train_all(config: ConfigDict, workdir: pathlib.Path) -> list[dict]:
    """The rows of all cells; those that are missing are trained, by `lab.workers` processes."""
    wanted = cells(config)
    missing = [cell for cell in wanted if files.begin(folder(workdir, cell), inputs(config, cell))]
    groups = [
        list(group)
        for _, group in itertools.groupby(missing, lambda cell: (cell["gradient"], cell["method"]))
    ]
    with tqdm.tqdm(
        total=len(wanted), initial=len(wanted) - len(missing), desc="exact lab", unit="cell"
    ) as bar:
        if config.lab.workers == 1 or len(groups) < 2:
            for group in groups:
                run_group(config, workdir, group)
                bar.update(len(group))
        else:
            _share_out(config, workdir, groups, bar)
    return [json.loads((folder(workdir, cell) / "row.json").read_text()) for cell in wanted]


def _share_out(config, workdir: pathlib.Path, groups: list[list[dict]], bar) -> None:
    """Groups of cells to as many processes as are asked for."""
    rows = [folder(workdir, cell) / "row.json" for group in groups for cell in group]
    before = bar.n
    context = multiprocessing.get_context("spawn")  # jax has threads, which no fork keeps
    with concurrent.futures.ProcessPoolExecutor(config.lab.workers, context) as pool:
        waiting = {pool.submit(run_group, config, workdir, group) for group in groups}
        while waiting:
            done, waiting = concurrent.futures.wait(waiting, timeout=0.5)
            for group in done:
                group.result()
            if fresh := before + sum(row.exists() for row in rows) - bar.n:
                bar.update(fresh)


def run_group(config: ConfigDict, workdir: pathlib.Path, group: list[dict]) -> None:
    """Train the cells of one method, which share their programs."""
    setting = gradients.make_setting(config)
    laws = make_laws(config, setting)
    for cell in group:
        place = folder(workdir, cell)
        run = run_exact if cell["gradient"] == EXACT else run_sampled
        files.write_json(place / "row.json", run(config, setting, laws[cell["ties"]], cell))
        files.finish(place)


def run_exact(config: ConfigDict, setting: Setting, law: Law, cell: dict) -> dict:
    """The row of a cell with exact gradients, and how far it is from where it should end."""
    method, n = cell["method"], cell["n"]
    *_, params = gradients.train(config, setting, law, method, n)
    log_policy_pk = gradients.enumerate_policy(setting, params)
    theory = gradients.against_theory(log_policy_pk, law, method, n, config.pairs.alpha)
    return cell | enumeration.measures(log_policy_pk, law, n) | {"theory": theory}


def run_sampled(config: ConfigDict, setting: Setting, law: Law, cell: dict) -> dict:
    """The row of a cell that is sampled."""
    own = sampled_methods.cell_config(config, cell["method"], cell["n"])
    *_, params = sampled_methods.run(sampled_methods.make_task(own, setting, law), setting.params)
    log_policy_pk = gradients.enumerate_policy(setting, jax.device_get(params))
    return cell | enumeration.measures(log_policy_pk, law, cell["n"])


def cdf_rows(config: ConfigDict, workdir: pathlib.Path, laws: dict[bool, Law]) -> list[dict]:
    """What estimates of log F cost, without ties and with them; kept as the cells are."""
    place = workdir / "cells" / "cdf"
    made_of = {f"lab.{key}": config.lab[key] for key in (*POLICY, "caches", "cache_sizes")}
    if files.begin(place, made_of | {"n_values": config.n_values}):
        options = {"seed": config.lab.seed, "draws": config.lab.caches}
        rows = [
            row
            for ties, law in laws.items()
            for row in cdf_errors.errors(
                law, config.n_values, config.lab.cache_sizes, ties=ties, **options
            )
        ]
        files.write_json(place / "rows.json", rows)
        files.finish(place)
    return json.loads((place / "rows.json").read_text())


def ruler_rows(config: ConfigDict, laws: dict[bool, Law]) -> list[dict]:
    """Best-of-N's own rows, and the reference's, which is Best-of-1."""
    rows = []
    for ties, law in laws.items():
        for n in config.n_values:
            for name, log_policy_pk in (
                ("reference", law.log_reference_pk),
                ("best_of_n", enumeration.best_of_n(law, n)),
            ):
                cell = {"method": name, "n": int(n), "gradient": EXACT, "ties": ties}
                rows.append(cell | enumeration.measures(np.asarray(log_policy_pk), law, n))
    return rows
