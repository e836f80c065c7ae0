"""Rows from JSON lines, JSON, CSV and Parquet files, folders of them, and the Hugging Face hub.

The same content gives the same rows in every form, and every row knows its place, which errors
name. Text stays text: the cells of a CSV file are not guessed to be numbers. Hub names and folders
that `datasets` saved are read by `datasets`. `formats` says what rows mean.
"""

import codecs
import csv
import functools
import itertools
import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from ml_collections import ConfigDict

from vbon_jax import files
from vbon_jax.data import toy_reviews
from vbon_jax.types import InputError

# The names that a split goes by; the first that exists is read.
SPLITS = {"train": ("train",), "eval": ("test", "eval", "validation")}
FORMATS = (".jsonl", ".json", ".csv", ".parquet")
PART = re.compile(r"-(\d+)-of-(\d+)(?:-[\w.]+)?\.(?:jsonl?|csv|parquet)")  # behind a split's name
HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::([\w.-]+))?")
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which JSON can write
SAVED = ("dataset_dict.json", "state.json")  # what `datasets` leaves in a folder that it saved

Row = dict[str, Any]


class Table(NamedTuple):
    """Rows in the order of their source, and the place of each in it."""

    rows: list[Row]
    source: str
    numbers: list[int]  # from 1, in the whole source
    unit: str = "row"  # of the numbers: line | row
    textual: bool = False  # every value is text, numbers too, as in a CSV file

    @property
    def places(self) -> list[str]:
        """The place of each row, for errors: "rows.jsonl: line 3"."""
        return [self.where(row) for row in range(len(self.rows))]

    def where(self, row: int) -> str:
        """The place of one row."""
        return f"{self.source}: {self.unit} {self.numbers[row]}"

    def field(
        self, row: int, name: str, *, remedy: str = "add the field, or name its column"
    ) -> Any:
        """A field of a row; InputError, with the remedy, where the row has none of that name."""
        values = self.rows[row]
        if name not in values:
            has = ", ".join(sorted(map(str, values))) or "none"
            raise InputError(f"{self.where(row)} has no field {name!r} (it has: {has}); {remedy}")
        return values[name]

    def text(self, row: int, name: str) -> str:
        """A field that is a string; InputError for another."""
        value = self.field(row, name)
        if not isinstance(value, str):
            raise InputError(self.wrong_type(row, name, "str"))
        return value

    def number(self, row: int, name: str) -> float:
        """A field that is a finite number, in a textual source the text of one; or InputError."""
        return finite(self.field(row, name), f"{self.where(row)}: field {name!r}", self.textual)

    def wrong_type(self, row: int, name: str, wanted: str) -> str:
        """The message for a field of another type than the wanted one."""
        kind = type(self.rows[row][name]).__name__
        return f"{self.where(row)}: field {name!r} is {kind}, not {wanted}; correct the row"


def finite(value: Any, where: str, textual: bool = False) -> float:
    """A finite number, where `textual` also the text of one; or InputError, at `where`."""
    if textual and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise InputError(f"{where} is {value[:40]!r}, not a number; correct it") from None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InputError(f"{where} is {type(value).__name__}, not a number; correct it")
    if not math.isfinite(value):
        raise InputError(f"{where} is {value}; give a finite number")
    return float(value)


def fingerprint(table: Table) -> str:
    """The sha256 (hex) of the rows, in order; their places do not enter."""
    return files.digest(*(json.dumps(row, sort_keys=True, default=str) for row in table.rows))


# Reading ------------------------------------------------------------------------------------------


def read_split(settings: ConfigDict, split: str) -> Table:
    """The training ("train") or the held-out ("eval") rows that `config.data` names."""
    keep, name = settings.filter, settings.split_train
    if split == "eval":
        keep, name = settings.filter_eval or settings.filter, settings.split_eval
    return read(settings[split], split=name, columns=settings.columns, keep=keep)


def read(
    source: str | pathlib.Path,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    keep: Mapping[str, Any] | None = None,
) -> Table:
    """The rows of a file, a folder or a dataset of the Hugging Face hub.

    `source` is a file (.jsonl, .json, .csv, .parquet; with any other ending JSON lines), a folder
    that holds one for the split (`train.csv`, or parts: `train-00000-of-00002.parquet`, there or in
    `data/`), a folder that `datasets` saved, a hub name "owner/name" or "owner/name:config", or
    "toy_reviews:PART" (`toy_reviews.rows`).

    `split` is "train", "eval" (the first of test, eval and validation that exists) or another
    split's name, of the hub also a part of one ("train[:1000]"). A file is its own split, whatever
    the name. `columns` maps our names to the source's where they differ: {"prompt": "query"}.
    `keep` maps the source's columns to the value, or tuple of values, of the rows to keep, or with
    "not " before the column of those to leave out; values are compared as text, so that a CSV's 1
    is a number 1 too.

    Raises InputError, in one line, for a source, a split or a column that does not exist, a row
    that cannot be read (with its place), and where no row is left.
    """
    table = _whole(str(source), split)
    if not table.rows:
        raise InputError(f"{table.source}: it has no rows; give at least one")
    kept = [row for row in range(len(table.rows)) if _passes(table, row, keep or {})]
    if not kept:
        wanted = ", ".join(f"{column} = {_values(value)}" for column, value in keep.items())
        raise InputError(
            f"{table.source}: no row of {len(table.rows)} has {wanted}; correct the filter"
        )
    rows = [_renamed(table, row, columns or {}) for row in kept]
    return table._replace(rows=rows, numbers=[table.numbers[row] for row in kept])


def _values(value: Any) -> list[str]:
    """The values of a filter, as text."""
    return [str(one) for one in (value if isinstance(value, tuple | list) else (value,))]


def _passes(table: Table, row: int, keep: Mapping[str, Any]) -> bool:
    """Whether a row passes every column's filter."""
    for column, value in keep.items():
        given = table.field(row, column.removeprefix("not "), remedy="correct the filter")
        if (str(given) in _values(value)) == column.startswith("not "):
            return False
    return True


def _renamed(table: Table, row: int, columns: Mapping[str, str]) -> Row:
    """A row with our names beside its own."""
    return table.rows[row] | {
        ours: table.field(row, theirs, remedy=f"correct the columns ({ours})")
        for ours, theirs in columns.items()
    }


# Places -------------------------------------------------------------------------------------------


def _whole(source: str, split: str) -> Table:
    """All rows of a source's split."""
    if source.startswith("toy_reviews:"):
        return _table(toy_reviews.rows(source), source)
    path = pathlib.Path(source).expanduser()
    if path.exists():
        if "[" in split:
            raise InputError(
                f"{source}: the split {split!r}: only the hub gives parts of a split; name a split"
            )
        if path.is_dir() and any((path / name).exists() for name in SAVED):
            return _table(_saved(path, split), str(path))
        return _read_parts(path, _parts(path, split))
    hub = HUB_NAME.fullmatch(source)
    if hub is None or source.endswith(FORMATS):
        raise InputError(
            f"{source}: no such file or folder; give a file ({', '.join(FORMATS)}), a folder with "
            "one, or owner/name of the Hugging Face hub"
        )
    return _table(_hub(source, hub[1], hub[2], split), f"{source} ({split})")


def _table(rows: list[Row], source: str, **options: Any) -> Table:
    return Table(rows, source, list(range(1, len(rows) + 1)), **options)


def _parts(path: pathlib.Path, split: str) -> list[pathlib.Path]:
    """The files of a split: a file is itself, a folder holds one or its numbered parts."""
    if path.is_file():
        return [path]
    names = SPLITS.get(split, (split,))
    for name in names:
        if found := _files_of(path, name):
            return found
    wanted = " or ".join(f"{name}.jsonl" for name in names)
    raise InputError(
        f"{path}: the folder holds no {wanted} (or {', '.join(FORMATS[1:])}); add it, or give the "
        "file itself"
    )


def _files_of(path: pathlib.Path, name: str) -> list[pathlib.Path]:
    """All that a folder holds of one split: a file, or parts 0 to n - 1 of one n; or nothing.

    Raises InputError where there is more, or a part is missing.
    """
    wholes = [
        path / f"{name}{ending}" for ending in FORMATS if (path / f"{name}{ending}").is_file()
    ]
    numbered = {}
    for file in itertools.chain(path.glob(f"{name}-*"), path.glob(f"data/{name}-*")):
        match = PART.fullmatch(file.name.removeprefix(name))
        if match and file.is_file():
            numbered[file] = int(match[1]), int(match[2])
    parts = sorted(numbered, key=lambda file: (numbered[file], file))
    if not parts and len(wholes) < 2:
        return wholes
    found = ", ".join(str(file.relative_to(path)) for file in [*wholes, *parts][:4])
    places, counts = zip(*numbered.values(), strict=True) if numbered else ((), (0,))
    kinds = {(file.parent, file.suffix) for file in parts}
    if wholes or len(set(counts)) > 1 or len(kinds) > 1 or len(set(places)) < len(places):
        raise InputError(
            f"{path}: it holds the split {name} more than once ({found}, ...); remove what is old, "
            "or give the file itself"
        )
    if missing := sorted(set(range(counts[0])) - set(places)):
        raise InputError(
            f"{path}: of the {counts[0]} parts of the split {name} {len(missing)} are missing (the "
            f"first: {missing[0]:05d}, and there is {found}); fetch them"
        )
    return parts


def _read_parts(path: pathlib.Path, parts: list[pathlib.Path]) -> Table:
    """The rows of one file, or of the parts of a split in their order."""
    readers = {".json": _json, ".csv": _csv, ".parquet": _parquet}
    ending = parts[0].suffix
    try:
        rows = [row for part in parts for row in readers.get(ending, _json_lines)(part)]
    except OSError as error:
        raise InputError(f"{path}: it cannot be read ({error}); give another file") from error
    if len(parts) > 1:  # numbers run on over the parts
        name, unit = f"{path} ({len(parts)} parts from {parts[0].name})", "row"
    else:
        name, unit = str(parts[0]), "row" if ending in readers else "line"
    return _table(rows, name, unit=unit, textual=ending == ".csv")


# Files --------------------------------------------------------------------------------------------


def _json_lines(path: pathlib.Path) -> list[Row]:
    """One object a line; blank lines are passed over at the end of the file only."""
    content = path.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip()
    if not content:
        raise InputError(f"{path}: the file is empty; give at least one JSON object, one a line")
    rows = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        where = f"{path}: line {number}"
        if not line.strip():
            raise InputError(f"{where} is blank; write one JSON object a line")
        try:
            rows.append(_object(_parsed(line.decode(), where), where))
        except UnicodeDecodeError as error:
            raise InputError(f"{where} is not UTF-8 ({error.reason}); save it as UTF-8") from None
        except json.JSONDecodeError as error:
            raise InputError(
                f"{where} is not JSON ({error.msg}); write one JSON object a line"
            ) from None
    return rows


def _parsed(text: str, where: str) -> Any:
    """A JSON value. Raises JSONDecodeError, and InputError for JSON that Python cannot hold."""
    try:
        return json.loads(text, object_pairs_hook=functools.partial(_distinct, where))
    except (json.JSONDecodeError, InputError):
        raise
    except (ValueError, RecursionError) as error:  # thousands of digits, or of nested lists
        reason = str(error).partition(";")[0]
        raise InputError(f"{where} cannot be read ({reason}); correct it, or take it out") from None


def _distinct(where: str, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The fields of an object; InputError where two have one name."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where} has the field {twice!r} more than once; keep one of them")
    return fields


def _object(row: Any, where: str) -> Row:
    """A row, if it is an object all of whose texts are Unicode; or InputError."""
    if not isinstance(row, dict):
        raise InputError(f"{where} is a {type(row).__name__}, not an object; write {{...}} rows")
    for name, value in row.items():
        if not is_unicode(name) or not is_unicode(value):
            raise InputError(
                f"{where}: field {name!a} has half of a character (such as \\ud83d), which is not "
                "Unicode text; correct the row"
            )
    return row


def is_unicode(value: Any) -> bool:
    """Whether all texts in a JSON value can be written as UTF-8: none has a lone surrogate."""
    if isinstance(value, str):
        return value.isascii() or SURROGATE.search(value) is None
    if isinstance(value, dict):
        return all(is_unicode(name) and is_unicode(inner) for name, inner in value.items())
    return all(map(is_unicode, value)) if isinstance(value, list) else True


def _json(path: pathlib.Path) -> list[Row]:
    """A list of objects, one object (a row), or JSON lines under that ending."""
    try:
        value = _parsed(path.read_text(encoding="utf-8-sig"), str(path))
    except (json.JSONDecodeError, UnicodeDecodeError):  # JSON lines say where
        return _json_lines(path)
    rows = value if isinstance(value, list) else [value]
    return [_object(row, f"{path}: row {number}") for number, row in enumerate(rows, start=1)]


def _csv(path: pathlib.Path) -> list[Row]:
    """The rows of a CSV file under its header, every cell as the text that it is."""
    rows: list[Row] = []
    csv.field_size_limit(2**31 - 1)  # its default is 128 KiB a cell
    try:
        with path.open("rb") as file:
            if file.read(len(codecs.BOM_UTF8)) != codecs.BOM_UTF8:
                file.seek(0)
            lines = (line.decode("utf-8") for line in file)  # so that an error is at its row
            reader = csv.reader(lines, strict=True)
            header = next(reader, [])
            _check_names(path, header)
            for cells in filter(None, reader):
                if len(cells) != len(header):
                    raise InputError(
                        f"{path}: row {len(rows) + 1} has {len(cells)} cells under a header of "
                        f"{len(header)} ({', '.join(header)}); quote the cells, or correct the row"
                    )
                rows.append(dict(zip(header, cells, strict=True)))
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: row {len(rows) + 1} cannot be read ({error}); save the file as CSV in UTF-8"
        ) from None
    return rows


def _check_names(path: pathlib.Path, names: list[str]) -> None:
    """InputError unless every column has a name of its own."""
    if "" in names:
        raise InputError(
            f"{path}: column {names.index('') + 1} of the header {names} has no name; name it, or "
            "leave it out (an index that pandas wrote: to_csv(..., index=False))"
        )
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns of the header {names} have one name; rename one")


def _parquet(path: pathlib.Path) -> list[Row]:
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a Parquet file ({reason}); write it again") from None
    names = table.column_names
    _check_names(path, names)
    columns = [_values_of(path, name, table[name]) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _values_of(path: pathlib.Path, name: str, column: pa.ChunkedArray) -> list:
    """The values of a column as Python has them; InputError at the first that it cannot have."""
    try:
        return column.to_pylist()
    except Exception:  # of Unicode, dates and time zones, by whichever library converts them
        for number, value in enumerate(column, start=1):
            try:
                value.as_py()
            except Exception as error:
                raise InputError(
                    f"{path}: row {number}: field {name!r} cannot be read ({_reason(error)}); "
                    "correct the row, or leave the column out"
                ) from error
        raise


# The datasets package -----------------------------------------------------------------------------


def _saved(path: pathlib.Path, split: str) -> list[Row]:
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
    return list(loaded)


def _hub(source: str, name: str, config: str | None, split: str) -> list[Row]:
    """The rows of a split of a dataset of the hub; code that comes with one is never run."""
    import datasets

    try:
        base, bracket, part = split.partition("[")
        if len(SPLITS.get(base, ())) > 1:
            names = datasets.get_dataset_split_names(name, config)
            split = _split_name(base, names, source) + bracket + part
        return list(datasets.load_dataset(name, config, split=split))
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
