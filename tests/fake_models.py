"""A working directory as the programs leave it, made from random numbers without training."""

import json
import pathlib
import re
import shutil
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax import files
from vbon_jax.config import defaults
from vbon_jax.evaluation import measures, stored_responses
from vbon_jax.evaluation.bootstrap import Bootstrap
from vbon_jax.evaluation.measures import MeasuredResponses
from vbon_jax.sampling import reference_cache
from vbon_jax.types import Responses
from vbon_jax.workdir import results, run

M, K, STEPS = 16, 4, 20
METHODS = ("vbon", "kl_rl", "bonbon", "dpo", "ipo")  # in the order of reports


def write_work(
    folder: pathlib.Path,
    cells: list[dict],
    *,
    prompts: int = 8,
    text: str = " a film that <b>works</b>",
    temperatures: tuple[float, ...] = (1.0,),
    steps: int = STEPS,
    resamples: int = 40,
) -> pathlib.Path:
    """A whole one: the cache, the reference's evaluation, and a finished run for each cell.

    `text` begins every response. A cell has a method, an n and a seed, and any key of a config.
    """
    config = defaults().to_dict()
    config["evaluation"] |= {"resamples": resamples, "temperatures": temperatures}
    config["evaluation"]["ruler_n"] = (1, 2, 4, 8)
    config["train"]["steps"] = steps
    for split in ("train", "eval"):
        write_cache(folder / "references" / split, prompts=prompts)
    cache = reference_cache.load(folder / "references" / "eval")
    write_json(
        folder / "compare.json", {"command": "python -m experiments.compare", "config": config}
    )
    write_evaluation(
        folder / "reference", cache, config, 0.0, {"method": "reference", "n": 1.0}, text
    )
    for index, cell in enumerate(cells):
        write_run(folder, cell, config, text=text, strength=0.3 + 0.02 * index)
    return folder


def write_json(path: pathlib.Path, value) -> None:
    """JSON in a folder, created where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, value)


def write_cache(folder: pathlib.Path, *, prompts: int) -> None:
    """A reference cache of one shard."""
    random = np.random.default_rng(0)
    responses = [[f" reference {m} of {p}" for m in range(M)] for p in range(prompts)]
    table = {
        "prompt_id": np.arange(prompts, dtype=np.int32),
        "prompt": [f"prompt {p} & <i>more</i>" for p in range(prompts)],
        "prompt_tokens": [[1, 2]] * prompts,
        "responses": responses,
        "response_tokens": [[[3, 4]] * M] * prompts,
        "finished": [[True] * M] * prompts,
        "log_probs": [[[-1.5, -1.5]] * M] * prompts,
        "rewards": random.normal(size=(prompts, M)).astype(np.float32).tolist(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table(table, schema=reference_cache.SCHEMA),
        folder / f"shard-000000-{prompts:06d}.parquet",
    )
    provenance = reference_cache.Provenance(
        "policy", "reward", "prompts", prompts, M, 8, 1.0, 0, 1.0, 0
    )
    write_json(
        folder / "stage.json", {"inputs": provenance._asdict(), "finished": True, "files": {}}
    )


def make_record(cell: dict) -> run.Record:
    """The record of a cell's run; its label has vbon's bound and any key besides N and the seed."""
    method, n, seed = cell["method"], cell["n"], cell["seed"]
    words = [f"{key}={cell[key]}" for key in sorted(cell.keys() - {"method", "n", "seed"})]
    bound = "l1" if method == "vbon" else None
    details = ", ".join([bound, *words] if bound else words)
    return run.Record(
        name=re.sub(r"[^\w.=+-]+", "_", "-".join([method, f"n{n:g}", f"s{seed}", *words])),
        label=f"{method} ({details})" if details else method,
        method=method,
        n=n,
        bound=bound,
        seed=seed,
        gradient="ppo" if method in ("vbon", "kl_rl") else None,
        order=METHODS.index(method) if method in METHODS else len(METHODS),
        measured=method != "sft",
    )


def write_run(
    folder: pathlib.Path,
    cell: dict,
    config: dict,
    *,
    text: str = "",
    strength: float = 0.3,
    logged: int | None = None,
    evaluated: bool = True,
) -> pathlib.Path:
    """A run of a cell; `logged` steps of it, all unless given, evaluated if it is finished."""
    config = json.loads(json.dumps(config | {k: v for k, v in cell.items() if "." not in k}))
    record = make_record(cell)
    run_folder = folder / "runs" / record.name
    record.write(run_folder)
    steps = config["train"]["steps"]
    logged = steps if logged is None else logged
    write_json(run_folder / "config.json", config)
    write_json(run_folder / "stage.json", {"inputs": {}, "finished": logged == steps, "files": {}})
    random = np.random.default_rng(zlib.crc32(record.name.encode()))
    metrics = [
        {"step": step, "objective/mean": step + random.normal(), "loss/total": 1 / (step + 1)}
        | ({"eval/win_rate": 0.5 + strength * step / steps / 4} if step % 5 == 4 else {})
        for step in range(logged)
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if logged < steps:
        return run_folder
    budget = {
        "sampled_tokens": 1000 * steps,
        "reward_calls": 16 * steps,
        "train_flops": 3e9 * steps,
    }
    write_json(run_folder / "ledger.json", budget | {"seconds": 75.0})
    if evaluated:
        cache = reference_cache.load(folder / "references" / "eval")
        columns = record.columns()
        write_evaluation(run_folder / "evaluation", cache, config, strength, columns, text)
    return run_folder


def make_measured(rewards_bk: np.ndarray, kl_bk: np.ndarray, **changes) -> MeasuredResponses:
    """Finished responses of two tokens, 1 and 2, but for `changes`, of a log-probability of -4."""
    shape = rewards_bk.shape
    responses = Responses(
        tokens_bng=np.tile(np.int32([1, 2]), (*shape, 1)),
        lengths_bn=np.full(shape, 2, np.int32),
        finished_bn=np.ones(shape, bool),
        log_probs_bng=np.full((*shape, 2), -1.5, np.float32),
        rewards_bn=rewards_bk,
    )
    reference_bk = np.full(shape, -4.0, np.float32)
    return MeasuredResponses(responses._replace(**changes), kl_bk, reference_bk)


def write_evaluation(folder, cache, config: dict, strength: float, cells: dict, text: str) -> None:
    """`evaluation.json` and the responses behind it; a greater strength moves them further."""
    prompts = len(cache.rewards_pm)
    random = np.random.default_rng(round(1e6 * strength))
    rows, folder, kind = [], pathlib.Path(folder), cells["method"]
    folder.mkdir(parents=True, exist_ok=True)
    for temperature in config["evaluation"]["temperatures"] or (1.0,):
        pushed = strength / max(temperature, 0.5)
        rewards = random.normal(1.5 * pushed, 1.0, (prompts, K)).astype(np.float32)
        kl = (pushed**2 * random.uniform(0.8, 1.2, (prompts, K))).astype(np.float32)
        measured = make_measured(
            rewards,
            kl,
            tokens_bng=random.integers(5, size=(prompts, K, 8)).astype(np.int32),
            lengths_bn=random.integers(4, 9, (prompts, K)).astype(np.int32),
        )
        summary = measures.summarise(measured, cache.rewards_pm, Bootstrap(0, 40))
        rows.append(
            results.make_row(
                estimates=summary,
                temperature=temperature,
                prompts=prompts,
                samples_per_prompt=K,
                reference_samples=M,
                **{"run": cells["method"], **cells},
            )
        )
        stored_responses.write(
            stored_responses.path(folder, temperature),
            measured,
            prompts=[f"prompt {p} & <i>more</i>" for p in range(prompts)],
            texts=[[f"{text} {kind} {p} {k}" for k in range(K)] for p in range(prompts)],
        )
    write_json(folder / "evaluation.json", rows)
    inputs = cache.provenance.inputs()
    write_json(folder / "stage.json", {"inputs": inputs, "finished": True, "files": {}})


def copy_run(original: pathlib.Path, cell: dict) -> pathlib.Path:
    """The same run under another cell's name: many runs in no time."""
    config = json.loads((original / "config.json").read_text()) | cell
    record = make_record(cell)
    copy = original.parent / record.name
    shutil.copytree(original, copy)
    write_json(copy / "config.json", config)
    record.write(copy)
    rows = json.loads((original / "evaluation" / "evaluation.json").read_text())
    write_json(copy / "evaluation" / "evaluation.json", [row | {"run": copy.name} for row in rows])
    return copy
