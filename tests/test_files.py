"""Files that are whole or not there, locks, and folders that are made from inputs."""

import errno
import json
import os
import pathlib
import socket
import threading

import jax
import pyarrow as pa
import pytest

from tests.other_process import keeping
from tests.tiny_config import check_refusal
from vbon_jax import files
from vbon_jax.types import InputError


def make(folder, inputs=None, **options) -> bool:
    """Make an artifact of two files unless that is done; returns whether it was made."""
    artifact = files.Artifact(folder, inputs or {"a": 1})
    with artifact.work(**options) as left:
        if left:
            files.write_json(folder / "row.json", {"x": 1.5})
            files.write_bytes(folder / "parts" / "0", b"part")
            artifact.finish("row.json", "parts")
    return left


# ------------------------------------------------------------------------------- artifacts


def test_an_artifact_is_made_resumed_or_refused(tmp_path):
    folder = tmp_path / "stage"
    with files.Artifact(folder, {"a": 1, "b": (1, 2)}).work() as left:
        assert left
    second = files.Artifact(folder, {"a": 2, "b": (1, 2)})
    with second.work() as left:
        assert left  # nothing was made yet
        third = files.Artifact(folder, {"a": 3, "b": (1, 2)})
        check_refusal(lambda: third.work(resumes=lambda: True).__enter__(), "a was 2 and is 3")
        second.finish()
    assert not second.is_left()
    fourth = files.Artifact(folder, {"a": 2})
    check_refusal(lambda: fourth.work().__enter__(), "b was [1, 2] and is None")


def test_listed_work_is_not_claimed_by_other_inputs(tmp_path):
    artifact = files.Artifact(tmp_path, {"a": 1})
    with artifact.work():
        files.write_bytes(tmp_path / "shard", b"1")
        artifact.add("shard")
    check_refusal(lambda: make(tmp_path, {"a": 2}), "a was 1 and is 2")
    again = files.Artifact(tmp_path, {"a": 1})
    with again.work() as left:
        assert left
        assert list(again.files) == ["shard"]


@pytest.mark.parametrize("name", ["row.json", "parts/0"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes().swapcase()),
    ],
    ids=["deleted", "truncated", "emptied", "changed"],
)
def test_a_damaged_file_of_a_finished_folder_is_named_and_made_again(
    tmp_path, caplog, name, damage
):
    assert make(tmp_path)
    assert not make(tmp_path)
    damage(tmp_path / name)
    check_refusal(lambda: make(tmp_path, {"a": 2}), "a was 1 and is 2")
    assert make(tmp_path)
    (line,) = [line for line in caplog.messages if str(tmp_path / name) in line]
    assert "made again" in line
    assert not make(tmp_path)


@pytest.mark.parametrize("name", ["0.json", "0.jsonl", "0.parquet"])
def test_a_file_that_its_record_lists_is_read_as_it_was_written_or_not(tmp_path, name):
    read = {"0.json": files.read_json, "0.jsonl": files.read_jsonl, "0.parquet": files.read_parquet}
    artifact = files.Artifact(tmp_path, {})
    with artifact.work():
        files.write_json(tmp_path / "0.json", [1.25])
        files.write_jsonl(tmp_path / "0.jsonl", [{"x": 1.25}])
        files.write_parquet(tmp_path / "0.parquet", pa.table({"x": [1.25] * 1000}))
        artifact.finish("0.json", "0.jsonl", "0.parquet")
    read[name](tmp_path / name)
    content = bytearray((tmp_path / name).read_bytes())
    place = content.index(b"1.25") if b"1.25" in content else 20  # in Parquet's data, not its end
    content[place] ^= 1  # still JSON, still Parquet: another number
    (tmp_path / name).write_bytes(content)
    check_refusal(lambda: read[name](tmp_path / name), str(tmp_path / name), "not as it was")


def test_files_that_were_copied_are_the_same(tmp_path):
    make(tmp_path)
    os.utime(tmp_path / "row.json", (1, 1))
    assert not make(tmp_path)
    assert files.read_json(tmp_path / "row.json") == {"x": 1.5}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"inputs": [], "finished": 1}'])
def test_a_damaged_record_is_read_from_its_copy(tmp_path, caplog, content):
    make(tmp_path)
    record, copy = tmp_path / files.RECORD_FILE, tmp_path / files.COPY_FILE
    record.unlink() if content is None else record.write_text(content)
    assert not make(tmp_path)
    assert not make(tmp_path)
    (line,) = caplog.messages
    assert str(record) in line
    assert copy.name in line
    copy.write_text("{")
    check_refusal(lambda: make(tmp_path), files.COPY_FILE, "cannot be read")


def test_work_without_a_record_is_refused(tmp_path):
    check_refusal(lambda: make(tmp_path, resumes=lambda: True), str(tmp_path), files.RECORD_FILE)


# ------------------------------------------------------------------------------- one writer


@pytest.mark.slow
def test_another_process_is_refused_by_name_or_waits(tmp_path, caplog):
    caplog.set_level("INFO", logger="vbon_jax")
    with keeping(tmp_path) as (process, leave):
        words = (f"process {process.pid} on {socket.gethostname()} since 20", str(tmp_path))
        check_refusal(lambda: make(tmp_path), *words)
        assert files.recorded(tmp_path) is None  # nothing of it was written
        threading.Timer(0.5, leave.set).start()
        assert make(tmp_path, waits=True)
        (line,) = caplog.messages
        assert all(word in line for word in (*words, "waiting"))
    with keeping(tmp_path):  # what is finished needs no lock
        assert not make(tmp_path)
        check_refusal(lambda: make(tmp_path, {"a": 2}), "a was 1 and is 2")


@pytest.mark.slow
def test_a_killed_process_gives_its_folder_back(tmp_path):
    with keeping(tmp_path) as (process, _):
        (tmp_path / ".row.json.1-2.tmp").write_text("half")  # that it was writing
        process.kill()
        process.join()
        assert make(tmp_path)
    assert not list(tmp_path.glob("*.tmp"))
    assert not (tmp_path / ".writer.json").exists()


def test_a_process_may_enter_its_folder_again(tmp_path):
    with files.lock(tmp_path):
        assert make(tmp_path)
        with files.lock(tmp_path):
            pass
        assert (tmp_path / ".writer.json").exists()
    assert not (tmp_path / ".writer.json").exists()


def test_a_lock_of_a_name_is_not_one_of_the_folder(tmp_path):
    with files.lock(tmp_path, "verdicts.jsonl"):
        done = threading.Thread(target=make, args=(tmp_path,))
        done.start()
        done.join()
    assert not make(tmp_path)


# ------------------------------------------------------------------------------- writing


def test_each_writer_has_a_temporary_name_of_its_own(tmp_path, monkeypatch):
    seen, replace = set(), os.replace
    monkeypatch.setattr(os, "replace", lambda old, new: (seen.add(old), replace(old, new)))
    for _ in range(3):
        files.write_text(tmp_path / "file", "x")
    assert len(seen) == 3
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EDQUOT])
def test_what_cannot_be_written_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch, number):
    files.write_text(tmp_path / "file", "old")

    def fail(old, new):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    words = (str(tmp_path / "file"), os.strerror(number), "same command continues")
    check_refusal(lambda: files.write_text(tmp_path / "file", "new"), *words)
    assert os.listdir(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_place_that_cannot_be_written_is_seen_before(tmp_path):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "x", "/dev/null/x", "/proc/x/y"):
        check_refusal(lambda place=place: files.check_writable(place), str(place), "be written")
    check_refusal(lambda: files.check_writable(tmp_path, what="file"), "is a folder")
    files.check_writable(tmp_path / "a" / "b")
    files.check_writable(tmp_path / "file", what="file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_path_is_of_this_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/x") == tmp_path / "x"
    assert files.local_path("a:b//c") == pathlib.Path("a:b//c")
    for text in ("gs://bucket/x", "s3://b", "hdfs://h/x", "file:///tmp/x", "~no such user/x"):
        check_refusal(lambda text=text: files.local_path(text), text)


@pytest.mark.parametrize("value", [{"x": "ü"}, [1.5, None]])
def test_json_is_read_as_it_was_written(tmp_path, value):
    files.write_json(tmp_path / "x.json", value)
    assert json.dumps(files.read_json(tmp_path / "x.json")) == json.dumps(value)
    with pytest.raises(InputError, match="cannot be read"):
        files.read_json(tmp_path / "absent.json")


def test_another_content_is_reported_by_the_keys_that_it_follows_from(tmp_path):
    """And never by two fingerprints, which tell nobody what to change."""
    made, other = ({"prompts": files.digest(text), "seed": 0} for text in ("a", "b"))
    known = {"data.eval_limit": 12, "data.field": "text"}
    with files.Artifact(tmp_path, made, known).work():
        pass

    def again(inputs, **origins):
        files.Artifact(tmp_path, inputs, known | origins).check()

    again(made, **{"data.eval_limit": 8})  # the content is the same
    words = "data.eval_limit was 12 and is 8; prompts has another content"
    check_refusal(lambda: again(other, **{"data.eval_limit": 8}), words)
    check_refusal(lambda: again(other), "inputs: prompts has another content")
    check_refusal(lambda: again(made | {"seed": 1}), "inputs: seed was 0 and is 1; give")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("jax_enable_x64", True),
        ("jax_default_prng_impl", "rbg"),
        ("jax_threefry_partitionable", False),
    ],
)
def test_the_options_that_numbers_depend_on_are_inputs(tmp_path, option, value):
    with files.Artifact(tmp_path, {}).work():
        pass
    before = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        words = f"{option} was {before!r} and is {value!r}"
        check_refusal(lambda: files.Artifact(tmp_path, {}).check(), words)
    finally:
        jax.config.update(option, before)
    files.Artifact(tmp_path, {}).check()
