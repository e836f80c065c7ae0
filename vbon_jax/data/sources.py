"""Rows from JSON lines, JSON, CSV and Parquet files, folders of them, and the Hugging Face hub.

What is on disk is read as what it is, row by row and without type guessing: JSON lines with the
line in every error, CSV with every cell as text. (pandas, which `datasets` reads CSV with, takes
the first cell of a row that is too long for an index and shifts the rest.) Hub names and folders
that `datasets` saved go through `datasets`. The same content gives the same rows in every form;
`shapes.py` says what they mean.
"""

import csv
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from vbon_jax.data import prompt_sets, toy_reviews
from vbon_jax.types import InputError

# The names that a split goes by, the first that is there.
SPLITS = {"train": ("train",), "eval": ("test", "eval", "validation")}
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?")
SPLIT = re.compile(r"(?P<name>\w+)(?P<slice>\[(?P<first>-?\d+%?)?:(?P<last>-?\d+%?)?\])?")
SAVED = ("dataset_dict.json", "state.json")  # what `datasets` leaves in a folder that it saved


class Rows(NamedTuple):
    """Rows in the order of their source, and where each of them stands in it."""

    rows: list[dict[str, Any]]
    source: str
    numbers: list[int]  # from 1, in the whole source
    unit: str = "row"  # of the numbers: line | row
    textual: bool = False  # every value is text, numbers too, as in a CSV file

    @property
    def places(self) -> list[str]:
        """Where each row stands, without the source: "line 3"."""
        return [f"{self.unit} {number}" for number in self.numbers]

    def where(self, row: int) -> str:
        """Where a row stands, for an error."""
        return f"{self.source}: {self.unit} {self.numbers[row]}"


def fingerprint(table: Rows) -> str:
    """The sha256 (hex) of the rows, in order; where they stand does not enter."""
    digest = hashlib.sha256()
    for row in table.rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


class _Opened(NamedTuple):
    """A source whose rows were not read yet."""

    rows: Iterator[dict[str, Any]]
    name: str
    unit: str = "row"
    textual: bool = False
    cut: bool = False  # to the part of the split that was asked for


def read(
    source: str | pathlib.Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    keep: Mapping[str, Any] | None = None,
    limit: int = 0,
    streaming: bool = False,
) -> Rows:
    """The rows of a file, a folder or a dataset of the Hugging Face hub.

    `source` is a file (.jsonl, .json, .csv, .parquet; with any other ending JSON lines), a folder
    that holds one for the split (`train.csv`, or parts: `train-00000-of-00002.parquet`, there or in
    `data/`), a folder that `datasets` saved, a hub name "owner/name" or "owner/name:config", or
    "toy_reviews:PART" (`toy_reviews.rows`).

    `split` is "train", "eval" (the first of test, eval and validation that there is), another
    split's name, or a part of one: "train[:1000]", "train[90%:]". A file is its own split, whatever
    the name. `columns` maps our names to the source's where they differ: {"prompt": "query"}.
    `keep` maps the source's columns to the value, or tuple of values, of the rows to keep, or with
    "not " before the column of those to leave out; values are compared as text, so that a CSV's 1
    is a number 1 too. `limit > 0` reads no further than that many rows that are kept; of the hub,
    `streaming` downloads no more than that.

    Raises InputError, in one line, for a source, a split or a column that is not there, a row that
    cannot be read (with its place), and where no row is left.
    """
    if limit < 0:
        raise InputError(f"{source}: the limit of rows is {limit}; give 0 for all, or a number")
    opened = _open(str(source), split, streaming)
    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    number = 0
    for number, row in _numbered(opened, split):
        if _kept(row, keep or {}, f"{opened.name}: {opened.unit} {number}"):
            rows.append(_renamed(row, columns or {}, f"{opened.name}: {opened.unit} {number}"))
            numbers.append(number)
        if limit and len(rows) == limit:
            break
    if not number:
        raise InputError(f"{opened.name}: there is no row in it; give at least one")
    if not rows:
        wanted = ", ".join(f"{column} = {_values(value)}" for column, value in keep.items())
        raise InputError(f"{opened.name}: no row up to {number} has {wanted}; correct the filter")
    return Rows(rows, opened.name, numbers, opened.unit, opened.textual)


# What is asked of a row ---------------------------------------------------------------------------


def _values(value: Any) -> list[str]:
    """The values of a filter, as text."""
    return [str(one) for one in (value if isinstance(value, tuple | list) else (value,))]


def _kept(row: dict[str, Any], keep: Mapping[str, Any], where: str) -> bool:
    """Whether a row passes every column's filter."""
    for column, value in keep.items():
        name = column.removeprefix("not ")
        if name not in row:
            raise InputError(_no_column(row, name, where, "correct the filter"))
        if (str(row[name]) in _values(value)) == column.startswith("not "):
            return False
    return True


def _renamed(row: dict[str, Any], columns: Mapping[str, str], where: str) -> dict[str, Any]:
    """A row with our names beside its own."""
    for ours, theirs in columns.items():
        if theirs not in row:
            raise InputError(_no_column(row, theirs, where, f"correct the columns ({ours})"))
    return row | {ours: row[theirs] for ours, theirs in columns.items()}


def _no_column(row: dict[str, Any], column: str, where: str, remedy: str) -> str:
    has = ", ".join(sorted(map(str, row))) or "none"
    return f"{where} has no column {column!r} (it has: {has}); {remedy}"


def _numbered(opened: _Opened, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The rows with their numbers from 1; of a part of a split, those of the part.

    The hub makes its parts itself: their rows count from the part's first.
    """
    numbered = enumerate(opened.rows, start=1)
    asked = SPLIT.fullmatch(split)
    if opened.cut or asked is None or not asked["slice"]:
        yield from numbered
        return
    whole = list(numbered)
    yield from whole[_bound(asked["first"], len(whole)) : _bound(asked["last"], len(whole))]


def _bound(text: str | None, size: int) -> int | None:
    """One end of a slice; a percentage becomes the nearest row, as `datasets` rounds it."""
    if text is None:
        return None
    return round(size * int(text[:-1]) / 100) if text.endswith("%") else int(text)


# Where rows are -----------------------------------------------------------------------------------


def _open(source: str, split: str, streaming: bool) -> _Opened:
    """Finds a source; nothing of it is read before its rows are asked for."""
    if source.startswith("toy_reviews:"):
        return _Opened(iter(toy_reviews.rows(source)), source)
    path = pathlib.Path(source).expanduser()
    if path.exists():
        asked = SPLIT.fullmatch(split)
        if asked is None:
            raise InputError(f"{source}: no split {split!r}; give NAME, or a part: NAME[FROM:TO]")
        if path.is_dir() and any((path / name).exists() for name in SAVED):
            return _Opened(_saved(path, asked["name"]), str(path))
        return _opened_files(path, _files(path, asked["name"]))
    hub = HUB_NAME.fullmatch(source)
    if hub is None or source.endswith(FORMATS):
        raise InputError(
            f"{source}: no such file or folder; give a file ({', '.join(FORMATS)}), a folder with "
            "one, or owner/name of the Hugging Face hub"
        )
    rows = _hub(source, hub[1], hub[2], split, streaming)
    return _Opened(rows, f"{source} ({split})", cut=True)


def _files(path: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The files of a split: a file is itself, a folder holds one or its numbered parts."""
    if path.is_file():
        return [path]
    names = SPLITS.get(split, (split,))
    for name in names:
        for ending in FORMATS:
            if (path / f"{name}{ending}").is_file():
                return [path / f"{name}{ending}"]
            for folder in (path, path / "data"):
                if parts := sorted(folder.glob(f"{name}-[0-9]*-of-[0-9]*{ending}")):
                    return parts
    wanted = " or ".join(f"{name}.jsonl" for name in names)
    raise InputError(
        f"{path}: the folder holds no {wanted} (or {', '.join(FORMATS[1:])}); add it, or give the "
        "file itself"
    )


def _opened_files(path: pathlib.Path, files: list[pathlib.Path]) -> _Opened:
    """The rows of one file, or of the parts of a split in their order."""
    read_file: Callable[[pathlib.Path], Iterable[dict[str, Any]]]
    read_file, unit = {
        ".json": (_json, "row"),
        ".csv": (_csv, "row"),
        ".parquet": (_parquet, "row"),
    }.get(files[0].suffix, (prompt_sets.iterate_jsonl, "line"))
    name = str(files[0])
    if len(files) > 1:  # numbers run on over the parts
        name, unit = f"{path} ({len(files)} parts from {files[0].name})", "row"
    rows = itertools.chain.from_iterable(map(read_file, files))
    return _Opened(rows, name, unit, textual=files[0].suffix == ".csv")


# Files --------------------------------------------------------------------------------------------


def _json(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """A list of objects, one object (a row), or JSON lines under that ending."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError:  # not one JSON value, or no UTF-8: JSON lines say where
        yield from prompt_sets.iterate_jsonl(path)
        return
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        if not isinstance(row, dict):
            what = type(row).__name__
            raise InputError(f"{path}: row {number} is a {what}, not an object; write {{...}} rows")
        yield row


def _csv(path: pathlib.Path) -> Iterator[dict[str, str]]:
    """The rows of a CSV file under its header, every cell as the text that it is."""
    number = 0
    try:
        with path.open("rb") as file:
            lines = (line.decode("utf-8") for line in file)  # so that an error is at its row
            csv.field_size_limit(2**31 - 1)  # its default is 128 KiB a cell
            reader = csv.reader(lines, strict=True)
            header = [name.removeprefix("\ufeff") for name in next(reader, [])]
            if len(set(header)) < len(header) or "" in header:
                raise InputError(f"{path}: the header {header} does not name each column once")
            cells: list[str]
            for number, cells in enumerate((row for row in reader if row), start=1):
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}: row {number} has {len(cells)} cells under a header of "
                        f"{len(header)} ({', '.join(header)}); quote the cells, or correct the row"
                    )
                yield dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: row {number + 1} cannot be read ({error}); save the file as CSV in UTF-8"
        ) from None


def _parquet(path: pathlib.Path) -> Iterator[dict[str, Any]]:
    """The rows of a Parquet file, some at a time."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: no Parquet file ({reason}); write it again") from None


# The datasets package -----------------------------------------------------------------------------


def _saved(path: pathlib.Path, split: str) -> Iterator[dict[str, Any]]:
    """The rows of a folder that `datasets` saved: one split, or a dictionary of them."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of whatever reads what the folder holds
        raise InputError(
            f"{path}: `datasets` cannot read the folder that it saved ({_reason(error)}); save it "
            "again"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = loaded[_split_name(split, list(loaded), str(path))]
    yield from loaded


def _hub(
    source: str, name: str, config: str | None, split: str, streaming: bool
) -> Iterator[dict[str, Any]]:
    """The rows of a split of a dataset of the hub; code that comes with one is never run."""
    import datasets

    if streaming and "[" in split:
        raise InputError(f"{source}: a stream has no part {split!r}; give a split and a limit")
    try:
        asked = SPLIT.fullmatch(split)
        if asked and len(SPLITS.get(asked["name"], ())) > 1:
            names = datasets.get_dataset_split_names(name, config)
            split = _split_name(asked["name"], names, source) + (asked["slice"] or "")
        yield from datasets.load_dataset(name, config, split=split, streaming=streaming)
    except InputError:
        raise
    except Exception as error:  # of the hub's client, its HTTP library, or what reads the files
        raise InputError(
            f"{source}: no such file or folder, and the Hugging Face hub did not give its split "
            f"{split!r} ({_reason(error)}); correct the name (owner/name or owner/name:config) or "
            "the split, or download it and give the folder"
        ) from error


def _split_name(split: str, names: list[str], source: str) -> str:
    """The name that a split goes by here."""
    for name in SPLITS.get(split, (split,)):
        if name in names:
            return name
    raise InputError(
        f"{source}: no split {' or '.join(SPLITS.get(split, (split,)))} (it has: "
        f"{', '.join(names)}); name one of them"
    )


def _reason(error: Exception) -> str:
    """An error in one line of moderate length."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}{'...' if len(words) > 300 else ''}"
