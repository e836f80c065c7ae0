"""Files of rows that cannot be read as they are, and folders that hold a split twice or in part.

Right: one line that names the file, the place, the field and the remedy. `read_well` are files that
look as bad and are in order.
"""

import datetime
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq

BOM = b"\xef\xbb\xbf"
DEEP = b"[" * 100_000 + b"]" * 100_000

# Name: content, and the words of its error behind the file's name.
FILES: dict[str, tuple[bytes, str]] = {
    "half_an_emoji.jsonl": (
        b'{"text": "a", "id": 1}\n{"text": "b \\ud83d", "id": 2}',
        ": line 2: field 'text' has half of a character | correct the row",
    ),
    "half_an_emoji_inside.json": (
        b'[{"text": "a", "messages": [{"role": "user", "content": "\\udc00"}]}]',
        ": row 1: field 'messages' has half of a character",
    ),
    "half_an_emoji_in_a_name.jsonl": (b'{"\\ud83d": 1}', "has half of a character"),
    "long_integer.jsonl": (
        b'{"text": "a", "answer": ' + b"7" * 5000 + b"}",
        ": line 1 cannot be read (Exceeds the limit | correct it, or take it out",
    ),
    "long_integer.json": (
        b'[\n {"text": "a",\n  "answer": ' + b"7" * 5000 + b"}\n]",
        "long_integer.json cannot be read (Exceeds the limit",
    ),
    "deep.jsonl": (b'{"text": "a"}\n{"text": "b", "x": ' + DEEP + b"}", ": line 2 cannot be read"),
    "deep.json": (b'[{"text": "b", "x": ' + DEEP + b"}]", "deep.json cannot be read"),
    "field_twice.jsonl": (
        b'{"text": "a", "label": 0, "label": 1}',
        ": line 1 has the field 'label' more than once; keep one",
    ),
    "index_of_pandas.csv": (
        b",text,label\n0,a,1\n",
        ": column 1 of the header ['', 'text', 'label'] has no name | index=False",
    ),
    "column_twice.csv": (b"text,label,text\na,1,b\n", "two columns | have one name; rename one"),
    "utf_16.csv": ("text\na\n".encode("utf-16"), "cannot be read | save the file as CSV in UTF-8"),
}

READ_WELL: dict[str, bytes] = {
    "quoted_behind_a_bom.csv": BOM + b'"text","label"\n"a","1"\n',
    "plain_behind_a_bom.csv": BOM + b"text,label\na,1\n",
    "windows.csv": BOM + b'"text","label"\r\n"a","1"\r\n',
    "whole_emoji.jsonl": b'{"text": "a", "label": "1"}',
}


def bad_columns() -> dict[str, tuple[pa.Table, str]]:
    """Parquet tables with a column that Python cannot hold, and the words of the error."""
    texts = pa.array(["a", "b", "c"])
    offsets = pa.py_buffer(b"".join(i.to_bytes(4, "little") for i in (0, 1, 2, 3)))
    invalid = pa.StringArray.from_buffers(3, offsets, pa.py_buffer(b"a\xffc"))
    years = pa.array([0, 2**60, 1], pa.timestamp("ms"))
    zone = pa.array([0, 1, 2], pa.timestamp("s", tz="Mars/Phobos"))
    nested = pa.array([[datetime.date(2024, 1, 1)], None, [None]])
    return {
        "invalid_text": (
            pa.table({"text": invalid}),
            "row 2: field 'text' cannot be read (UnicodeDecodeError",
        ),
        "invalid_elsewhere": (
            pa.table({"text": texts, "author": invalid}),
            "row 2: field 'author' cannot be read | leave the column out",
        ),
        "year_30000": (pa.table({"text": texts, "at": years}), "row 2: field 'at' cannot be read"),
        "time_zone": (pa.table({"text": texts, "at": zone}), "row 1: field 'at' cannot be read"),
        "column_twice": (
            pa.Table.from_arrays([texts, texts, nested], names=["text", "text", "on"]),
            "two columns | have one name; rename one",
        ),
    }  # fmt: skip


def write_parquet(path: pathlib.Path, text: str) -> None:
    """One row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": [text]}), path)


# The files of the split train in a folder, and the words of its error.
SPLITS: dict[str, tuple[tuple[str, ...], str]] = {
    "the first of two": (("train-00000-of-00002",), "of the 2 parts | 1 are missing | 00001"),
    "the last of three": (("train-00002-of-00003",), "of the 3 parts | 2 are missing | 00000"),
    "a hole": (("train-00000-of-00003", "train-00002-of-00003"), "1 are missing | 00001"),
    "an older size": (
        ("train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"),
        "holds the split train more than once | train-00000-of-00001.parquet",
    ),
    "a part of two versions": (
        ("train-00000-of-00001-0a1b", "train-00000-of-00001-2c3d"),
        "more than once",
    ),
    "merged, and its parts": (
        ("train", "train-00000-of-00002", "train-00001-of-00002"),
        "more than once | train.parquet",
    ),
    "here and in data": (("train-00000-of-00001", "data/train-00000-of-00001"), "more than once"),
    "more parts than there are": (("train-00002-of-00002", "train-00000-of-00002"), "are missing"),
}
