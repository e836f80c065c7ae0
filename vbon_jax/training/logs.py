"""The logs of a run: metrics.jsonl, timing.jsonl, TensorBoard and a progress bar.

`metrics.jsonl` holds one row a step, `step` and `area/name` keys, and nothing that depends on a
clock or on where a run was interrupted: it is the same file, bit for bit, however often the run
was killed. Seconds and compilation counts are in `timing.jsonl`.
"""

import json
import pathlib

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


def keep_rows(path: pathlib.Path, before_step: int) -> None:
    """Cut a JSON-lines file back to the rows of steps below `before_step`."""
    kept = [row for row in files.read_jsonl(path) if row["step"] < before_step]
    files.write_text(path, "".join(json.dumps(row) + "\n" for row in kept))


class RunLog:
    """The logs of one run, opened at the step that it (re)starts from."""

    def __init__(self, folder: pathlib.Path, *, first_step: int, name: str):
        import tensorboardX  # late: where torch is installed it takes seconds to import it along

        self.files = {}
        for stem in ("metrics", "timing"):
            path = folder / f"{stem}.jsonl"
            keep_rows(path, first_step)
            self.files[stem] = path.open("a", buffering=1)
        self.board = tensorboardX.SummaryWriter(
            str(folder / "tensorboard"), purge_step=first_step, flush_secs=30
        )
        self.bar = tqdm.tqdm(
            initial=first_step, desc=name, unit="step", mininterval=2.0, smoothing=0.1
        )

    def write(self, step: int, metrics: dict, timing: dict, *, progress: float) -> None:
        """One row in each file; `metrics` must not depend on a clock.

        `progress` in [0, 1] is how much of the run is done; the bar's total follows from it.
        """
        for stem, values in (("metrics", metrics), ("timing", timing)):
            self.files[stem].write(json.dumps({"step": step, **values}) + "\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        if progress > 0:
            self.bar.total = max(step + 1, round((step + 1) / progress))
        self.bar.update()

    def close(self) -> None:
        """Flush and close everything."""
        for file in self.files.values():
            file.close()
        self.board.close()
        self.bar.close()
