"""Checkpoints of a run, by Orbax: written in the background, the last and the best are kept."""

import math
import pathlib

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers


class Checkpoints:
    """The checkpoints of one run folder.

    `metric` names the training metric by which the best is kept (the higher the better). A metric
    that is not finite never counts as the best.
    """

    def __init__(self, folder: pathlib.Path, *, metric: str):
        self.metric = metric
        policies = [
            checkpoint_managers.LatestN(n=1),
            checkpoint_managers.BestN(get_metric_fn=self._score, n=1),
        ]
        self.manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
                best_fn=self._score,  # without it the metrics are not written with the checkpoint
                enable_async_checkpointing=True,
            ),
        )

    def _score(self, metrics: dict[str, float]) -> float:
        value = metrics[self.metric]
        return value if math.isfinite(value) else -math.inf

    def latest(self) -> int | None:
        """The last finished step that can be restored."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The kept step with the highest metric."""
        steps = self.manager.all_steps()
        return max(steps, key=lambda step: self._score(self.manager.metrics(step)), default=None)

    def save(self, step: int, state, extra: dict, metrics: dict[str, float]) -> None:
        """Start to write `state` and the JSON `extra` as step `step`."""
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
            ),
            metrics={self.metric: float(metrics[self.metric])},
        )

    def restore(self, like, step: int | None = None):
        """The state (shaped and placed as `like`) and the extra JSON of a step; None: the last."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        restored = self.manager.restore(
            self.latest() if step is None else step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(abstract), extra=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["extra"]

    def close(self) -> None:
        """Wait for what is being written."""
        self.manager.close()
