"""Rows: the same content in every form gives the same rows, and what cannot be read is named."""

import csv
import json
import re
import subprocess
import sys

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cases import rows as cases
from tests.tiny_config import check_refusal
from vbon_jax.config import defaults
from vbon_jax.data import formats, sources
from vbon_jax.types import InputError

CONTENT = [
    {"text": 'ä\u2028b, "c"\nd', "label": 1, "subreddit": "relationships"},
    {"text": "007", "label": 0, "subreddit": "tifu"},
    {"text": "NA", "label": 1, "subreddit": "relationships"},
    {"text": "", "label": 0, "subreddit": "askreddit"},
    {"text": " e\r\n", "label": 2, "subreddit": "relationships"},
]


def write_csv(path, content=CONTENT):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(content[0]))
        writer.writeheader()
        writer.writerows(content)


def write_jsonl(path, content=CONTENT):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content))


def write_json(path, content=CONTENT):
    path.write_text(json.dumps(content, indent=1))


def write_parquet(path, content=CONTENT):
    pq.write_table(pa.Table.from_pylist(content), path)


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}


def typed(table: sources.Table) -> list[dict]:
    """A table's rows, with the labels of a CSV file as numbers."""
    return [row | {"label": int(row["label"])} for row in table.rows]


@pytest.fixture
def hub(monkeypatch):
    """The hub: one dataset of two splits in one configuration; a list of what is loaded from it."""
    loaded = []

    def load_dataset(name, config=None, *, split):
        loaded.append((name, config, split))
        if name != "owner/name" or config != "small":
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}'\n doesn't exist")
        whole = datasets.Dataset.from_list(CONTENT)
        if split not in ("train", "validation"):
            raise ValueError(f'Unknown split "{split}"')
        return whole

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(
        datasets, "get_dataset_split_names", lambda name, config: ["train", "validation"]
    )
    return loaded


# Every form ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", WRITERS)
def test_the_same_content_is_the_same_rows_in_every_form(tmp_path, ending):
    WRITERS[ending](tmp_path / f"train.{ending}")
    table = sources.read(tmp_path / f"train.{ending}")
    assert typed(table) == CONTENT
    assert table.numbers == [1, 2, 3, 4, 5]
    assert table.source == str(tmp_path / f"train.{ending}")
    assert table.unit == ("line" if ending == "jsonl" else "row")
    assert sources.read(tmp_path) == table  # the folder that holds it


def test_the_hub_gives_the_same_rows(hub):
    table = sources.read("owner/name:small", split="eval")
    assert table.rows == CONTENT
    assert table.where(1) == "owner/name:small (eval): row 2"
    assert hub == [("owner/name", "small", "validation")]


def test_a_folder_that_datasets_saved(tmp_path):
    whole = datasets.Dataset.from_list(CONTENT)
    whole.save_to_disk(tmp_path / "one")
    assert sources.read(tmp_path / "one").rows == CONTENT
    datasets.DatasetDict({"train": whole, "validation": whole.select([1])}).save_to_disk(
        tmp_path / "two"
    )
    assert sources.read(tmp_path / "two").rows == CONTENT
    assert sources.read(tmp_path / "two", split="eval").rows == CONTENT[1:2]
    with pytest.raises(InputError, match=r"two: no split other \(it has: train, validation\)"):
        sources.read(tmp_path / "two", split="other")
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot read the folder that it saved"):
        sources.read(tmp_path / "one")


def test_nested_rows_are_the_same_too(tmp_path):
    content = [{"messages": [{"role": "user", "content": "a"}], "rewards": [1.0, 2.5]}] * 2
    for ending in ("jsonl", "json", "parquet"):
        WRITERS[ending](tmp_path / f"nested.{ending}", content)
        assert sources.read(tmp_path / f"nested.{ending}").rows == content


def test_a_json_file_may_be_one_object_or_lines(tmp_path):
    file = tmp_path / "rows.json"
    file.write_text('{"a": 1}')
    assert sources.read(file).rows == [{"a": 1}]
    write_jsonl(file)
    assert sources.read(file).rows == CONTENT
    file.write_text('{"a": 1}\n{"a": ')
    with pytest.raises(InputError, match=r"rows\.json: line 2 is not JSON"):
        sources.read(file)
    file.write_text("[1]")
    with pytest.raises(InputError, match=r"rows\.json: row 1 is a int, not an object"):
        sources.read(file)


def test_a_file_of_another_ending_holds_json_lines(tmp_path):
    write_jsonl(tmp_path / "rows.txt")
    assert sources.read(tmp_path / "rows.txt").rows == CONTENT


# Which rows ---------------------------------------------------------------------------------------


def test_a_path_is_a_file_or_a_folder_with_one(tmp_path):
    with pytest.raises(InputError, match=r"none: no such file or folder; give"):
        sources.read(tmp_path / "none")
    with pytest.raises(InputError, match=r"reviews/train\.jsonl: no such file or folder; give"):
        sources.read("reviews/train.jsonl")
    with pytest.raises(InputError, match=r"holds no train\.jsonl .*; add it"):
        sources.read(tmp_path)
    with pytest.raises(InputError, match=r"no test\.jsonl or eval\.jsonl or validation\.jsonl"):
        sources.read(tmp_path, split="eval")
    for name in ("train", "validation", "test", "other"):
        write_jsonl(tmp_path / f"{name}.jsonl", [{"name": name}])
    assert sources.read(tmp_path).rows == [{"name": "train"}]
    assert sources.read(tmp_path, split="eval").rows == [{"name": "test"}]
    assert sources.read(tmp_path, split="other").rows == [{"name": "other"}]
    file = tmp_path / "validation.jsonl"
    assert sources.read(file, split="eval").source == str(file)
    write_csv(tmp_path / "train.csv")
    words = (str(tmp_path), "train more than once", "train.jsonl, train.csv", "remove what is old")
    check_refusal(lambda: sources.read(tmp_path), *words)


@pytest.mark.parametrize("folder", [".", "data"])
def test_the_parts_of_a_split_are_read_in_their_order(tmp_path, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for part in (1, 0):
        content = CONTENT[:2] if part == 0 else CONTENT[2:]
        write_parquet(tmp_path / folder / f"train-0000{part}-of-00002.parquet", content)
    table = sources.read(tmp_path)
    assert table.rows == CONTENT
    assert table.where(4).endswith("(2 parts from train-00000-of-00002.parquet): row 5")


@pytest.mark.parametrize("name", cases.SPLITS)
def test_a_split_is_whole_and_there_once(tmp_path, name):
    parts, words = cases.SPLITS[name]
    for part in parts:
        cases.write_parquet(tmp_path / f"{part}.parquet", part)
    check_refusal(lambda: sources.read(tmp_path), str(tmp_path), *words.split(" | "))
    file = tmp_path / f"{parts[0]}.parquet"
    assert sources.read(file).rows == [{"text": parts[0]}]  # that part and no other was asked for


def test_parts_of_the_hub_are_made_by_the_hub(hub):
    with pytest.raises(InputError, match=r"gave|give its split .train\[:2\].*Unknown split"):
        sources.read("owner/name:small", split="train[:2]")
    with pytest.raises(InputError, match="Unknown split"):
        sources.read("owner/name:small", split="eval[:2]")
    assert [split for _, _, split in hub] == ["train[:2]", "validation[:2]"]


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        ({"subreddit": "relationships"}, [1, 3, 5]),
        ({"subreddit": ("tifu", "askreddit")}, [2, 4]),
        ({"not subreddit": "relationships"}, [2, 4]),
        ({"not subreddit": ["relationships", "tifu"]}, [4]),
        ({"subreddit": "relationships", "label": 1}, [1, 3]),
        ({"subreddit": "relationships", "not label": (1, 7)}, [5]),
        ({}, [1, 2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("ending", WRITERS)
def test_filters(tmp_path, ending, keep, expected):
    WRITERS[ending](tmp_path / f"rows.{ending}")
    table = sources.read(tmp_path / f"rows.{ending}", keep=keep)
    assert table.numbers == expected
    assert typed(table) == [CONTENT[number - 1] for number in expected]


def test_columns_get_our_names(tmp_path):
    write_csv(tmp_path / "rows.csv")
    table = sources.read(tmp_path / "rows.csv", columns={"prompt": "text", "text": "subreddit"})
    assert table.rows[1]["prompt"] == "007"
    assert table.rows[1]["text"] == "tifu"
    assert table.textual


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": {"sub": 1}}, r"row 1 has no field 'sub' .it has: label, subreddit, text.; corr"),
        ({"keep": {"not sub": 1}}, r"row 1 has no field 'sub'"),
        (
            {"columns": {"prompt": "query"}},
            r"row 1 has no field 'query' .*correct the columns .pr",
        ),
        ({"keep": {"label": (7, 8)}}, r"no row of 5 has label = \['7', '8'\]; correct the filt"),
        ({"split": "train+test"}, r"the folder holds no train\+test\.jsonl"),
        ({"split": "train[5:]"}, r"the split 'train\[5:\]': only the hub gives parts of a split"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, options, message):
    write_parquet(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=message) as error:
        sources.read(tmp_path, **options)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_nothing_is_imported_for_a_file(tmp_path):
    write_jsonl(tmp_path / "train.jsonl")
    code = (
        "import sys; from vbon_jax.data import formats, sources; "
        f"sources.read({str(tmp_path)!r}); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What cannot be read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"", "it has no rows"),
        ("a.csv", b"text,label\n", "it has no rows"),
        (
            "a.csv",
            b"text,label\na,1\nb\n",
            r"row 2 has 1 cells under a header of 2 \(text, label\)",
        ),
        ("a.csv", b"text,label\na,1\nb,2,3\n", r"row 2 has 3 cells under a header of 2"),
        ("a.csv", b'text\na\n"b\n', r"row 2 cannot be read \(.*\); save the file as CSV in UTF-8"),
        (
            "a.csv",
            b"text\na\n\xff\n",
            r"row 2 cannot be read \(.*\); save the file as CSV in UTF-8",
        ),
        ("a.parquet", b"PAR1", r"not a Parquet file \(.*\); write it again"),
        ("a.jsonl", b'{"a": 1}\n\n{"a": 2}', r"line 2 is blank; write"),
        ("a.jsonl", b"\n \n", r"the file is empty; give"),
        ("a.jsonl", b'{"a": 1}\n[2]', r"line 2 is a list, not an object"),
        ("a.json", b"[]", "it has no rows"),
        ("a.json", b"\xff", r"line 1 is not UTF-8"),
    ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        sources.read(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", cases.FILES)
def test_rows_that_cannot_be_read_are_named(tmp_path, name):
    content, words = cases.FILES[name]
    (tmp_path / name).write_bytes(content)
    check_refusal(lambda: sources.read(tmp_path / name), str(tmp_path / name), *words.split(" | "))


@pytest.mark.parametrize("name", cases.bad_columns())
def test_columns_that_cannot_be_read_are_named(tmp_path, name):
    content, words = cases.bad_columns()[name]
    file = tmp_path / f"{name}.parquet"
    pq.write_table(content, file)
    check_refusal(lambda: sources.read(file), str(file), *words.split(" | "))


@pytest.mark.parametrize("name", cases.READ_WELL)
def test_rows_that_look_as_bad_and_are_not(tmp_path, name):
    (tmp_path / name).write_bytes(cases.READ_WELL[name])
    assert sources.read(tmp_path / name).rows == [{"text": "a", "label": "1"}]


def test_a_byte_order_mark_is_no_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "b"}', encoding="utf-8-sig")
    assert sources.read(tmp_path / "a.jsonl").rows == [{"text": "b"}]


def test_a_cell_may_be_long(tmp_path):
    write_csv(tmp_path / "long.csv", [{"text": "word " * 100_000}])
    assert len(sources.read(tmp_path / "long.csv").rows[0]["text"]) == 500_000


def test_the_hub_fails_in_one_line_that_names_what_was_asked_for(hub):
    with pytest.raises(InputError) as error:
        sources.read("owner/none")
    message = str(error.value)
    assert "\n" not in message
    assert re.match(
        r"owner/none: no such file or folder, and the Hugging Face hub did not", message
    )
    assert "DatasetNotFoundError: Dataset 'owner/none' doesn't exist" in message
    assert "correct the name" in message
    with pytest.raises(InputError, match=r"'other' \(ValueError: Unknown split"):
        sources.read("owner/name:small", split="other")


def test_lines_may_end_as_on_windows_and_with_blank_ones(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        '{"text": "ä\\u2028b", "label": 1}\r\n{"text": "", "label": 0}\n\n \n'.encode()
    )
    rows = [{"text": "ä\u2028b", "label": 1}, {"text": "", "label": 0}]
    assert sources.read(file).rows == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a", "label": 1}\n{"text": ', "line 2 is not JSON .*; write"),
        (b'{"text": "a", "label": 1}\n{"label": 1}', "line 2 has no field 'text' .it has: label.*"),
        (b'{"text": null, "label": 1}', "line 1: field 'text' is NoneType, not str; correct"),
        (b'{"text": "a", "label": "1"}', "line 1: field 'label' is str, not int; correct"),
        (b'{"text": "a", "label": true}', "line 1: field 'label' is bool, not int; correct"),
        (b'{"text": "a", "label": 1}\n{"text": "\xff"}', "line 2 is not UTF-8 .*; save"),
    ],
)
def test_bad_rows_are_named(tmp_path, content, message):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        formats.labelled(sources.read(file))
    assert str(file) in str(error.value) and "\n" not in str(error.value)


# The splits of a configuration --------------------------------------------------------------------


SUBREDDITS = ("relationships", "tifu", "relationships", "askreddit")
POSTS = {
    split: [
        {"query": f"{split} {name} {number}", "subreddit": name}
        for number, name in enumerate(SUBREDDITS)
    ]
    for split in ("train", "test")
}
QUERIES = {split: [row["query"] for row in rows] for split, rows in POSTS.items()}


@pytest.fixture
def config(tmp_path):
    """Two files of posts in a folder, and a configuration that reads them."""
    for split, rows in POSTS.items():
        write_csv(tmp_path / f"{split}.csv", rows)
    config = defaults()
    with config.unlocked():
        config.data.train = config.data.eval = str(tmp_path)
        config.data.columns.prompt = "query"
    return config


def read_prompts(config, split: str) -> list[str]:
    return [row["prompt"] for row in sources.read_split(config.data, split).rows]


def test_each_split_is_read_from_its_own_file(config):
    assert read_prompts(config, "train") == QUERIES["train"]
    assert read_prompts(config, "eval") == QUERIES["test"]
    config.data.split_train, config.data.split_eval = "test", "train"
    assert read_prompts(config, "train") == QUERIES["test"]
    assert read_prompts(config, "eval") == QUERIES["train"]
    config.data.split_eval = "other"
    with pytest.raises(InputError, match=r"the folder holds no other\.jsonl"):
        read_prompts(config, "eval")


def test_held_out_rows_have_the_filter_or_one_of_their_own(config):
    with config.unlocked():
        config.data.filter.subreddit = "relationships"
    assert read_prompts(config, "train") == QUERIES["train"][::2]
    assert read_prompts(config, "eval") == QUERIES["test"][::2]
    with config.unlocked():
        config.data.filter_eval["not subreddit"] = ("relationships", "tifu")
    assert read_prompts(config, "train") == QUERIES["train"][::2]
    assert read_prompts(config, "eval") == ["test askreddit 3"]
