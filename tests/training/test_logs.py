"""The logs of a run that starts again."""

import json

from vbon_jax import files
from vbon_jax.training import logs


def test_the_log_keeps_whole_rows_before_the_step_of_the_restart(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = [{"step": 0, "a": 0.1}, {"step": 1, "a": 0.2}, {"step": 2, "a": 0.3}]
    path.write_text("".join(json.dumps(row) + "\n" for row in whole) + '{"step": 3, "a"')
    logs.keep_rows(path, 2)
    assert files.read_jsonl(path) == whole[:2]
    logs.keep_rows(tmp_path / "absent.jsonl", 0)
    assert files.read_jsonl(tmp_path / "absent.jsonl") == []
