"""Files and folders that are whole or not there: atomic writes, locks, digests, artifacts."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import logging
import math
import os
import pathlib
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import filelock
import jax
import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax.types import InputError

RECORD_FILE = "stage.json"  # of an artifact: its inputs, whether it is finished, and its files
COPY_FILE = f".{RECORD_FILE}"
PROBE_BYTES = 1 << 16  # that a place which is to be written must have room for
ENVIRONMENT = ("jax_enable_x64", "jax_default_prng_impl", "jax_threefry_partitionable")

logger = logging.getLogger(__name__)


class Damaged(InputError):
    """A file exists but does not hold what it should. `path` and `why` are its parts."""

    def __init__(self, path: str | pathlib.Path, why: object):
        self.path, self.why = pathlib.Path(path), " ".join(str(why).split())
        super().__init__(f"{path} cannot be read: {self.why}")


class Unwritable(InputError):
    """A file or folder that cannot be written: a full disk, missing rights, a file in its place."""

    def __init__(self, path: str | pathlib.Path, error: Exception):
        why = " ".join(str(getattr(error, "strerror", None) or error).split())
        super().__init__(
            f"{path} cannot be written: {why}; free the disk or give another place, and the same "
            "command continues"
        )


class SaveFailed(InputError):
    """A checkpoint cannot be written. Threads may go on trying, so the process should end."""


def local_path(text: str | os.PathLike) -> pathlib.Path:
    """A path of this machine, with `~` replaced. Raises InputError for `scheme://...`."""
    if re.match(r"[A-Za-z][\w+.-]*://", str(text)):
        raise InputError(f"{text}: only paths of this machine's file systems are supported")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"{text}: {error}; write the whole path") from error


# Writing ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def writing(path: str | pathlib.Path) -> Iterator[None]:
    """Raises Unwritable, which names `path`, for any OSError in the block."""
    try:
        yield
    except OSError as error:
        raise Unwritable(path, error) from error


def check_writable(path: str | pathlib.Path, *, what: str = "folder") -> None:
    """Raises Unwritable unless a folder (or file) can be written there; leaves nothing behind."""
    path = pathlib.Path(path).absolute()
    if what == "file" and path.is_dir():
        raise InputError(f"{path} is a folder; give a file")
    folder = path if what == "folder" else path.parent
    with writing(path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # raises for a name that no folder can have
        present = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        with tempfile.TemporaryFile(dir=present) as probe:
            probe.write(bytes(PROBE_BYTES))


def write_bytes(path: str | pathlib.Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old file or the new one, never half of one.

    Raises Unwritable.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def write_text(path: str | pathlib.Path, text: str) -> None:
    """`write_bytes` of UTF-8; what UTF-8 cannot express becomes a question mark."""
    write_bytes(path, text.encode("utf-8", "replace"))


def dumps(value: Any, **options: Any) -> str:
    """JSON of a value, as all that is written here: null where a number is not finite.

    NaN is no JSON, and half of what reads JSON lines refuses a file for it.
    """
    try:
        return json.dumps(value, allow_nan=False, default=list, **options)
    except ValueError:
        return json.dumps(_finite(value), default=list, **options)


def _finite(value: Any) -> Any:
    """A value without NaN and infinities, which become None."""
    if isinstance(value, Mapping):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return list(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: str | pathlib.Path, value: Any) -> None:
    """`write_bytes` of indented JSON; tuples become lists."""
    write_text(path, dumps(value, indent=2) + "\n")


def write_jsonl(path: str | pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """`write_bytes` of JSON lines, one a row."""
    write_text(path, "".join(dumps(row, ensure_ascii=False) + "\n" for row in rows))


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


def write_parquet(path: str | pathlib.Path, table: pa.Table) -> None:
    """`write_bytes` of a Parquet file."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content)
    write_bytes(path, content.getvalue())


# Reading ------------------------------------------------------------------------------------------


def read_json(path: str | pathlib.Path, *fields: str) -> Any:
    """The value of a JSON file; with `fields`, an object that has them.

    Raises Damaged where the file is missing, unreadable, not JSON, or lacks a field.
    """
    check_unchanged(path)
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
    check_unchanged(path)
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
    check_unchanged(path)
    try:
        with open(path, "rb") as file:  # its name may be none that Arrow can express
            return pq.read_table(file, columns=list(columns) or None)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(path, error) from error


def digest(*parts: bytes | str) -> str:
    """SHA-256 (hex) of the parts in order, each kept apart from its neighbours."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        whole.update(len(content).to_bytes(8, "little") + content)
    return whole.hexdigest()


def digest_of_file(path: str | pathlib.Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digests(folder: pathlib.Path, *names: str) -> dict[str, list]:
    """`[bytes, time of change, SHA-256]` of files of a folder, and of all below named folders."""
    paths = []
    for path in (folder / name for name in names):
        paths += sorted(below for below in path.rglob("*") if below.is_file()) or [path]
    states = ((path, path.stat()) for path in paths)
    return {
        str(path.relative_to(folder)): [state.st_size, state.st_mtime_ns, digest_of_file(path)]
        for path, state in states
    }


def unchanged(path: pathlib.Path, listed: Sequence) -> bool:
    """Whether a file is as `digests` listed it; one that has its size and time is not read."""
    try:
        state = path.stat()
        size, changed, content = listed
        if state.st_size != size:
            return False
        return state.st_mtime_ns == changed or digest_of_file(path) == content
    except (OSError, TypeError, ValueError):
        return False


def check_unchanged(path: str | pathlib.Path) -> None:
    """Raises Damaged for a file that is not as the record of its folder lists it."""
    path = pathlib.Path(path)
    record = recorded(path.parent) if path.name not in (RECORD_FILE, COPY_FILE) else None
    listed = (record or {"files": {}})["files"].get(path.name)
    if listed and path.exists() and not unchanged(path, listed):
        raise Damaged(path, "it is not as it was written; the command that made it makes it again")


# One writer ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(folder: str | pathlib.Path, name: str = "", *, waits: bool = False) -> Iterator[None]:
    """Keep a folder, or one name in it, to this process until the block ends or the process does.

    The process that has it may enter again. For another one this raises InputError, which names the
    writer, or with `waits` says so in one line and waits.
    """
    folder, stem = pathlib.Path(folder).resolve(), f".{name}." if name else "."
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    mine = filelock.FileLock(folder / f"{stem}lock", is_singleton=True)
    first, writer = not mine.is_locked, folder / f"{stem}writer.json"
    with writing(folder):
        _acquire(mine, folder / name, writer, waits=waits)
    try:
        if first:
            for temporary in folder.glob(f".{name}*.tmp"):  # of a process that was killed
                temporary.unlink()
            started = time.strftime("%Y-%m-%d %H:%M:%S")
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started}
            write_json(writer, owner)
        yield
    finally:
        if first:
            writer.unlink(missing_ok=True)
        if first and name:  # leave nothing in a folder that is not ours; who waits makes a new file
            pathlib.Path(mine.lock_file).unlink(missing_ok=True)
        mine.release()


def _acquire(mine: filelock.FileLock, path: pathlib.Path, writer: pathlib.Path, *, waits: bool):
    try:
        mine.acquire(timeout=0)
        return
    except filelock.Timeout:
        owner = f"{path} is being written by {_owner(writer)}"
    if not waits:
        raise InputError(f"{owner}; wait for its end, or give another place")
    logger.info(f"{owner}: waiting for its end")
    mine.acquire(poll_interval=0.5)


def _owner(writer: pathlib.Path) -> str:
    """The process that has a lock. It writes its name just after it has it."""
    for _ in range(20):
        with contextlib.suppress(Damaged):
            owner = read_json(writer, "host", "pid", "started")
            if owner["host"] != socket.gethostname() or _is_alive(owner["pid"]):
                return f"process {owner['pid']} on {owner['host']} since {owner['started']}"
        time.sleep(0.05)
    return "another process"


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


# Artifacts ----------------------------------------------------------------------------------------


class Artifact:
    """A folder that is made from inputs: unfinished and resumed, finished and reused, or refused.

    `inputs` is a flat dictionary of what the content depends on. The folder's record has them, and
    the digests of its files, so that a file that is gone or changed is made again. It has the
    options of JAX that numbers depend on, too. An input may be a fingerprint; `origins` are then
    the keys of the configuration that it follows from, by which a difference is reported.
    """

    def __init__(
        self,
        folder: str | pathlib.Path,
        inputs: Mapping[str, Any],
        origins: Mapping[str, Any] | None = None,
    ):
        self.folder = pathlib.Path(folder)
        self.made_from = {
            name: json.loads(json.dumps(dict(values), default=list))
            for name, values in (
                ("inputs", inputs),
                ("environment", {name: getattr(jax.config, name) for name in ENVIRONMENT}),
                ("origins", origins or {}),
            )
        }
        self.files: dict[str, list] = {}  # that are whole, by name, as `digests` lists them

    @property
    def inputs(self) -> dict[str, Any]:
        """What the content depends on, as it is recorded."""
        return self.made_from["inputs"]

    @contextlib.contextmanager
    def work(
        self, *, resumes: Callable[[], bool] = lambda: False, waits: bool = False
    ) -> Iterator[bool]:
        """True where work is left, False where the folder is finished and whole.

        In the block the folder is this process's alone; another process that works in it is waited
        for, or without `waits` refused. A folder that is not finished, lists no files and by
        `resumes` holds no other work is claimed by these inputs. Raises InputError, naming each
        input that differs, for any other folder that was made from others.
        """
        if not self.is_left():
            yield False
            return
        with lock(self.folder, waits=waits):
            yield self._claim(resumes)

    def is_left(self) -> bool:
        """False where the folder is finished and whole. Raises InputError for other inputs then."""
        record = recorded(self.folder)
        if not record or not record["finished"]:
            return True
        self.check()
        listed = record["files"].items()
        return not all(unchanged(self.folder / name, was) for name, was in listed)

    def _claim(self, resumes: Callable[[], bool]) -> bool:
        """Whether work is left; the record is then that of these inputs, unfinished."""
        record = recorded(self.folder)
        if record is None and resumes():
            raise InputError(
                f"{self.folder} holds work, but no {RECORD_FILE} says from which inputs; delete "
                "that folder or give another --workdir"
            )
        if record and (record["finished"] or record["files"] or resumes()):
            self.check()
            self.files = {
                name: was
                for name, was in record["files"].items()
                if unchanged(self.folder / name, was)
            }
            again = [name for name in record["files"] if name not in self.files]
            if again:
                more = f" and {len(again) - 1} more" * (len(again) > 1)
                logger.warning(
                    f"{self.folder / again[0]}{more}: missing, or not as written; made again"
                )
            elif record["finished"]:
                return False
        self._write(finished=False)
        return True

    def _write(self, *, finished: bool) -> None:
        record = self.made_from | {"finished": finished, "files": self.files}
        for name in (RECORD_FILE, COPY_FILE):
            write_json(self.folder / name, record)

    def add(self, *names: str) -> None:
        """List files, and all files below folders, as whole: they are not made again."""
        self.files |= digests(self.folder, *names)
        self._write(finished=False)

    def finish(self, *names: str) -> None:
        """Mark the folder as finished, with these files and all files below these folders."""
        self.files = digests(self.folder, *names)
        self._write(finished=True)

    def check(self) -> None:
        """Raises InputError, naming each input that differs from what the folder was made from."""
        if differ := self._differences(recorded(self.folder) or {"inputs": {}}):
            raise InputError(
                f"{self.folder} was made from other inputs: {'; '.join(differ)}; "
                "give the old value, another --workdir, or delete that folder"
            )

    def _differences(self, record: dict[str, Any]) -> list[str]:
        """A sentence for each input that differs from what the folder was made from."""
        changed = {
            name: _changed(record.get(name, new), new) for name, new in self.made_from.items()
        }
        contents = {key for key, row in changed["inputs"].items() if all(map(_is_digest, row))}
        told = changed["inputs"] | changed["environment"] | (changed["origins"] if contents else {})
        sentences = [
            f"{key} was {old!r} and is {new!r}"
            for key, (old, new) in sorted(told.items())
            if key not in contents
        ]
        return sentences + [f"{key} has another content" for key in sorted(contents)]


def is_made_from(folder: str | pathlib.Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the folder is a finished artifact, these among its inputs. Raises Damaged."""
    record = recorded(folder) or {"inputs": {}, "finished": False}
    return record["finished"] and inputs.items() <= record["inputs"].items()


def _changed(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys with two values, and both."""
    pairs = {key: (old.get(key), new.get(key)) for key in old.keys() | new.keys()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and len(value) == 64


def recorded(folder: str | pathlib.Path) -> dict[str, Any] | None:
    """The record of an artifact: `inputs`, `finished` and `files`; None where the folder has none.

    A record that is gone or damaged is read from its copy, with a line that says so. Raises Damaged
    where the copy cannot be read either.
    """
    path, copy = (pathlib.Path(folder) / name for name in (RECORD_FILE, COPY_FILE))
    try:
        if path.exists():
            return _read_record(path)
        problem = f"{path} is missing"
    except Damaged as error:
        if not copy.exists():
            raise
        problem = str(error).partition("; delete")[0]
    if not copy.exists():
        return None
    _warn_once(f"{problem}: its copy {copy.name} is used")
    return _read_record(copy)


def _read_record(path: pathlib.Path) -> dict[str, Any]:
    try:
        record = read_json(path, "inputs", "finished", "files")
        if not all(isinstance(record[field], dict) for field in ("inputs", "files")):
            raise Damaged(path, "inputs and files should be objects")
    except Damaged as error:
        why = f"{error.why}; delete {path.parent}, and the command that made it makes it again"
        raise Damaged(path, why) from error
    return record


@functools.cache
def _warn_once(message: str) -> None:
    logger.warning(message)
