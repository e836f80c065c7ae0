"""The logs of a run, and of one that starts again."""

import pathlib
import struct

from tensorboardX.proto import event_pb2

from vbon_jax import files
from vbon_jax.training import logs


def events(folder: pathlib.Path) -> list[tuple[int, str, float]]:
    """(step, name, value) of every point on disk, in order; a restart is (step, "start", 0)."""
    found = []
    for path in sorted(folder.glob("events*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (size,) = struct.unpack_from("<Q", content, place)
            event = event_pb2.Event.FromString(content[place + 12 : place + 12 + size])
            place += size + 16
            found += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
            if event.HasField("session_log"):
                found.append((event.step, "start", 0.0))
    return found


def test_a_restart_begins_behind_the_rows_of_its_checkpoint(tmp_path):
    first = logs.RunLog(tmp_path, rows={"metrics": [], "timing": []}, name="run")
    for step in range(3):
        first.write(step, {"a": 0.1 * step}, {"b": 1.0}, progress=0.5)
        if step == 1:
            kept = first.flushed()
            # A kill now: TensorBoard's file has what the checkpoint has.
            points = [(0, "start", 0.0)] + [(at, n, 1.0) for at in (0, 1) for n in "ab"]
            assert [(at, name) for at, name, _ in events(tmp_path / "tensorboard")] == [
                (at, name) for at, name, _ in points
            ]
    first.close()
    (tmp_path / "metrics.jsonl").write_bytes(b"damaged")  # it is never read
    again = logs.RunLog(tmp_path, rows=kept, name="run")
    assert files.read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 0, "a": 0.0},
        {"step": 1, "a": 0.1},
    ]
    again.write(2, {"a": 0.2}, {"b": 1.0}, progress=1.0)
    again.close()
    assert [row["step"] for row in files.read_jsonl(tmp_path / "timing.jsonl")] == [0, 1, 2]
    assert (2, "start", 0.0) in events(tmp_path / "tensorboard")  # TensorBoard forgets from there
