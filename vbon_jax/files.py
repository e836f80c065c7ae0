"""Files and folders that are whole or not there: atomic writes, digests, resumable artifacts."""

import csv
import hashlib
import io
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax.types import InputError

RECORD_FILE = "stage.json"  # of an artifact: its inputs, and whether it is finished


class Damaged(InputError):
    """A file exists but does not hold what it should. `path` and `why` are its parts."""

    def __init__(self, path: str | pathlib.Path, why: object):
        self.path, self.why = pathlib.Path(path), " ".join(str(why).split())
        super().__init__(f"{path} cannot be read: {self.why}")


# Writing ------------------------------------------------------------------------------------------


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old file or the new one, never half of one."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_text(path: str | pathlib.Path, text: str) -> None:
    """`write_bytes` of UTF-8; what UTF-8 cannot express becomes a question mark."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """`write_bytes` of indented JSON; tuples become lists."""
    write_text(path, json.dumps(value, indent=2, default=list) + "\n")


def write_jsonl(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_bytes` of JSON lines, one a row."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_csv(
    path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]
) -> None:
    """`write_bytes` of a header and a line a row; None is an empty cell, numbers keep all digits.

    Raises ValueError for a row with a key that is not among `columns`.
    """
    lines = io.StringIO()
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, lines.getvalue())


# Reading ------------------------------------------------------------------------------------------


def read_json(path: str | pathlib.Path, *fields: str) -> Any:
    """The value of a JSON file; with `fields`, an object that has them.

    Raises Damaged where the file is missing, unreadable, not JSON, or lacks a field.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise Damaged(path, error) from error
    if fields and not (isinstance(value, dict) and value.keys() >= set(fields)):
        raise Damaged(path, f"it should be an object with the fields {', '.join(fields)}")
    return value


def read_jsonl(path: str | pathlib.Path, *fields: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; none where it is missing.

    A last line that a kill cut off is left out. Raises Damaged for a line that is not an object, or
    lacks one of `fields`.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
        rows = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise Damaged(path, error) from error
    if not all(isinstance(row, dict) and row.keys() >= set(fields) for row in rows):
        raise Damaged(path, " ".join(["each line should be an object with", *fields]))
    return rows


def read_parquet(path: str | pathlib.Path, columns: Sequence[str] = ()) -> pa.Table:
    """Some columns of a Parquet file, or all. Raises Damaged, for a missing column too."""
    try:
        return pq.read_table(path, columns=list(columns) or None)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(path, error) from error


def digest(*parts: bytes | str) -> str:
    """SHA-256 (hex) of the parts in order, each kept apart from its neighbours."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


# Artifacts ----------------------------------------------------------------------------------------


class Artifact:
    """A folder that is made from inputs: unfinished and resumed, finished and reused, or refused.

    `inputs` is a flat dictionary of what the content depends on; it is recorded in the folder.
    """

    def __init__(self, folder: str | pathlib.Path, inputs: Mapping[str, Any]):
        self.folder = pathlib.Path(folder)
        self.inputs = json.loads(json.dumps(dict(inputs), default=list))

    def begin(self, *, resumes: bool = False) -> bool:
        """True where work is left, False where the folder is finished.

        An unfinished folder is claimed by these inputs, unless `resumes` says that it holds work to
        go on with. Raises InputError, naming each input that differs, for a folder that is finished
        (or to be resumed) and was made from others.
        """
        made = recorded(self.folder)
        if made is None or not (resumes or made["finished"]):
            write_json(self.folder / RECORD_FILE, {"inputs": self.inputs, "finished": False})
            return True
        old, new = made["inputs"], self.inputs
        differ = [
            f"{key} was {old.get(key)!r} and is {new.get(key)!r}"
            for key in sorted(old.keys() | new.keys())
            if old.get(key) != new.get(key)
        ]
        if differ:
            raise InputError(
                f"{self.folder} was made from other inputs: {'; '.join(differ)}; "
                "give the old value, another --workdir, or delete that folder"
            )
        return not made["finished"]

    def finish(self) -> None:
        """Mark the folder as finished."""
        write_json(self.folder / RECORD_FILE, {"inputs": self.inputs, "finished": True})


def is_made_from(folder: str | pathlib.Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the folder is a finished artifact, these among its inputs. Raises Damaged."""
    record = recorded(folder) or {"inputs": {}, "finished": False}
    return record["finished"] and inputs.items() <= record["inputs"].items()


def recorded(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """The record of an artifact, `inputs` and `finished`; None where the folder has none.

    Raises Damaged for a record that cannot be read.
    """
    path = pathlib.Path(folder) / RECORD_FILE
    if not path.exists():
        return None
    return read_json(path, "inputs", "finished")
