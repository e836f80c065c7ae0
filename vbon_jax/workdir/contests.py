"""The pairs of stored responses that a language model judges, from a working directory."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from vbon_jax.evaluation.llm_judge import RUN_COLUMNS, Contest
from vbon_jax.sampling import reference_cache
from vbon_jax.types import InputError
from vbon_jax.workdir import layout, results


def read(work: layout.Work, options: ConfigDict) -> list[Contest]:
    """Each run of `config.llm_judge` against the baseline, on the first held-out prompts.

    Raises InputError for runs that are not there or cannot be read, and fewer than two prompts.
    """
    if work.cache is None:
        raise InputError(f"{work.path}: it has no reference cache; run compare or evaluate first")
    count = min(options.prompts, len(work.cache.rewards_pm))
    if count < 2:
        raise InputError(f"{work.path}: an interval over prompts needs at least 2, it has {count}")
    evaluated = {run.name: (run, row) for run, row in work.evaluated}
    names = _chosen(work, list(evaluated), options)
    prompts = reference_cache.read(work.cache, range(count), column="prompt")
    if options.baseline == results.REFERENCE:
        others, rewards_b = _cached(work, count)
    else:
        others, rewards_b = _stored(*evaluated[options.baseline], count)
    contests = []
    for name in names:
        run, row = evaluated[name]
        texts, run_b = _stored(run, row, count)
        cells = {column: row[column] for column in RUN_COLUMNS}
        contests.append(Contest(cells, prompts, texts, others, run_b - rewards_b))
    return contests


def _chosen(work: layout.Work, evaluated: list[str], options: ConfigDict) -> list[str]:
    """The runs that are judged; InputError for a name that is not an evaluated run."""
    names = tuple(options.runs) or evaluated
    for name in (*names, options.baseline):
        if name not in (*evaluated, results.REFERENCE):
            raise InputError(
                f"llm_judge: {name!r} is not an evaluated run of {work.path} (it has "
                f"{', '.join(evaluated) or 'none'})"
            )
    names = [name for name in names if name not in (options.baseline, results.REFERENCE)]
    if not names:
        raise InputError(f"{work.path}: it has no evaluated run to judge; run compare first")
    return names


def _cached(work: layout.Work, count: int) -> tuple[list[str], np.ndarray]:
    """The first cached response to each prompt, and its reward."""
    if not work.cache.has_responses:
        raise InputError(f"{work.path}: its cache has no responses; give llm_judge.baseline a run")
    texts = [responses[0] for responses in reference_cache.read(work.cache, range(count))]
    return texts, work.cache.rewards_pm[:count, 0].astype(np.float64)


def _stored(run: layout.Run, row: dict[str, Any], count: int) -> tuple[list[str], np.ndarray]:
    """The first stored response of a run to each prompt, and its reward."""
    lines = layout.responses(run.folder / "evaluation", row, ("responses", "rewards"))[:count]
    if len(lines) < count:
        raise InputError(f"{run.folder}: responses to {len(lines)} prompts, not {count}")
    rewards_b = np.asarray([line["rewards"][0] for line in lines], np.float64)
    return [line["responses"][0] for line in lines], rewards_b
