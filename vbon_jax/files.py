"""Stages of a working directory: what stands is not made again, and not passed off for another."""

import json
import os
import pathlib

from vbon_jax.types import InputError

STAGE_FILE = "stage.json"


def write_json(path: pathlib.Path, value) -> None:
    """Write JSON so that a kill leaves the old file or the new one, never half of one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=2, default=list) + "\n")
    os.replace(temporary, path)


def flat(config) -> dict:
    """A nested configuration as `{"a.b": value}`; tuples as lists, as JSON reads them back."""
    leaves = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            leaves |= {f"{key}.{name}": leaf for name, leaf in flat(value).items()}
        else:
            leaves[key] = list(value) if isinstance(value, tuple) else value
    return leaves


def begin(folder: pathlib.Path, inputs: dict, *, resumes: bool = False) -> bool:
    """True where the stage in `folder` has work left; False where it is finished.

    Its inputs (a flat dictionary) are written on first sight. Raises InputError naming each
    input that differs from what the folder was made from, if it is finished or `resumes` says
    that it holds work to go on with; otherwise the new inputs take the place of the old.
    """
    path = folder / STAGE_FILE
    inputs = json.loads(json.dumps(inputs, default=list))
    if not path.exists() or not (resumes or json.loads(path.read_text())["finished"]):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"inputs": inputs, "finished": False})
        return True
    made = json.loads(path.read_text())
    differ = [
        f"{key} was {made['inputs'].get(key)!r} and is {inputs.get(key)!r}"
        for key in sorted(made["inputs"].keys() | inputs.keys())
        if made["inputs"].get(key) != inputs.get(key)
    ]
    if differ:
        raise InputError(
            f"{folder} was made from other inputs: {'; '.join(differ)}; "
            "give the old value, another --workdir, or delete that folder"
        )
    return not made["finished"]


def finish(folder: pathlib.Path) -> None:
    """Mark the stage in `folder` as finished."""
    path = folder / STAGE_FILE
    write_json(path, json.loads(path.read_text()) | {"finished": True})
