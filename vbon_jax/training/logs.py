"""The logs of a run: metrics.jsonl, timing.jsonl, TensorBoard and a progress bar.

`metrics.jsonl` holds one row a step, `step` and `area/name` keys, and nothing that depends on a
clock or on where a run was interrupted: it is the same file, bit for bit, however often the run
was killed. Seconds and compilation counts are in `timing.jsonl`.
"""

import os
import pathlib
import time

import jax
import tqdm

from vbon_jax import files


class Compilations:
    """Counts the programs that XLA compiles in this process from the moment it is made."""

    def __init__(self):
        self.count = 0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, name: str, seconds: float, **_) -> None:
        self.count += name == "/jax/core/compile/backend_compile_duration"

    def close(self) -> None:
        """Stop counting."""
        jax.monitoring.unregister_event_duration_listener(self._listen)


class RunLog:
    """The logs of one run, opened behind the rows that its checkpoint has.

    `rows` are those of each file, `{"metrics": [...], "timing": [...]}`: a checkpoint keeps them,
    so the files themselves are never read.
    """

    def __init__(self, folder: pathlib.Path, *, rows: dict[str, list[dict]], name: str):
        first_step = len(rows["metrics"])
        self.folder, self.rows, self.files = folder, rows, {}
        for stem, kept in rows.items():
            path = folder / f"{stem}.jsonl"
            files.write_jsonl(path, kept)
            self.files[stem] = path.open("a", buffering=1, encoding="utf-8")
        self.board = Board(folder / "tensorboard", first_step=first_step)
        self.bar = tqdm.tqdm(
            initial=first_step, desc=name, unit="step", mininterval=2.0, smoothing=0.1
        )

    def write(self, step: int, metrics: dict, timing: dict, *, progress: float) -> None:
        """One row in each file; `metrics` must not depend on a clock. Raises Unwritable.

        `progress` in [0, 1] is how much of the run is done; the bar's total follows from it.
        """
        with files.writing(self.folder):
            for stem, values in (("metrics", metrics), ("timing", timing)):
                row = {"step": step, **values}
                self.rows[stem].append(row)
                self.files[stem].write(files.dumps(row, ensure_ascii=False) + "\n")
                self.board.write(step, values)
        if progress > 0:
            self.bar.total = max(step + 1, round((step + 1) / progress))
        self.bar.update()

    def flushed(self) -> dict[str, list[dict]]:
        """All rows, for a checkpoint, when TensorBoard's file has them too."""
        with files.writing(self.folder):
            self.board.events.flush()
        return {stem: list(rows) for stem, rows in self.rows.items()}

    def close(self) -> None:
        """Flush and close everything."""
        with files.writing(self.folder):
            for file in self.files.values():
                file.close()
            self.board.events.close()
        self.bar.close()


class Board:
    """TensorBoard's file of a run, written by this thread, so that what goes wrong is seen here."""

    def __init__(self, folder: pathlib.Path, *, first_step: int):
        # Late: where torch is installed it takes seconds to import it along.
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        self._event, self._summary = event_pb2.Event, summary
        with files.writing(folder):
            folder.mkdir(exist_ok=True)
            writer = event_file_writer.EventsWriter
            self.events = writer(str(folder / "events"), f".{os.getpid()}")
        # TensorBoard leaves out what earlier files have from here on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(first_step, session_log=start)

    def write(self, step: int, values: dict[str, float]) -> None:
        """A point on the curve of each value."""
        for name, value in values.items():
            self._write(step, summary=self._summary.scalar(name, value))

    def _write(self, step: int, **content) -> None:
        self.events.write_event(self._event(step=step, wall_time=time.time(), **content))
