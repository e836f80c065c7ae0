"""The mesh, the one table from parameter names to mesh axes, and rows split over devices.

Under `jit` parameters and optimiser state lie where `shardings` says, the rows of a batch are split
over every device, and XLA puts the collectives in. Under `pmap` every device has all parameters.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vbon_jax.types import InputError

# Logical axes of each parameter, by the last two names on its path; what is not here is small
# (norms, biases, the value head) and lies whole on every device.
LOGICAL_AXES = {
    ("tokens", "embedding"): ("vocab", "embed"),
    ("positions", "embedding"): (None, "embed"),
    ("query", "kernel"): ("embed", "heads"),
    ("key", "kernel"): ("embed", "heads"),
    ("value", "kernel"): ("embed", "heads"),
    ("output", "kernel"): ("heads", "embed"),
    ("up", "kernel"): ("embed", "mlp"),
    ("down", "kernel"): ("mlp", "embed"),
    ("head", "kernel"): ("embed", "vocab"),
    ("pre_classifier", "kernel"): ("embed", None),
}
# Mesh axis of each logical axis; the rows of a batch are split over data and fsdp together.
RULES = {"embed": "fsdp", "vocab": None, "heads": None, "mlp": None}
BATCH = PartitionSpec(("data", "fsdp"))


def config_mesh(config: ConfigDict) -> Mesh:
    """The mesh of `config.mesh`. Raises InputError for one that the devices do not fit."""
    settings = config.mesh
    if settings.pmap and (settings.fsdp != 1 or jax.process_count() > 1):
        raise InputError("mesh.pmap: is for mesh.fsdp=1 on the devices of one process")
    return make_mesh(data=settings.data, fsdp=settings.fsdp)


def make_mesh(*, data: int, fsdp: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of all devices (or those given), `data` x `fsdp`; -1 for `data`: what `fsdp` leaves.

    Raises InputError where the two do not multiply to the number of devices.
    """
    devices = devices or jax.devices()
    count = len(devices)
    if data == -1:
        data = count // fsdp
    if data * fsdp != count:
        raise InputError(
            f"mesh.data x mesh.fsdp is {data} x {fsdp} on {count} devices; give mesh.data=-1"
        )
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices
    )


def shardings(tree, mesh: Mesh):
    """Where each leaf lies: a tree like `tree` (parameters, or a whole state) of NamedShardings.

    Optimiser moments carry the names of the parameters that they belong to, so the same table
    serves them. A dimension that its mesh axis does not divide is not split.
    """

    def split(name: str | None, size: int) -> str | None:
        axis = RULES.get(name)
        return axis if axis and size % mesh.shape[axis] == 0 else None

    def sharding(path: tuple, leaf) -> NamedSharding:
        names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        logical, shape = LOGICAL_AXES.get(names[-2:], ()), np.shape(leaf)
        axes = map(split, logical, shape) if len(logical) == len(shape) else ()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place(tree, mesh: Mesh):
    """Put parameters on the mesh as the table says."""
    return jax.device_put(tree, shardings(tree, mesh))


def shard_rows(batch, mesh: Mesh):
    """Split the first axis of every array over the mesh; it must be a multiple of the devices."""
    return jax.device_put(batch, NamedSharding(mesh, BATCH))


def split_rows(batch, mesh: Mesh):
    """[S, ...] -> [devices, S / devices, ...] for every array, for `pmap` over the devices."""
    return jax.tree.map(lambda rows: rows.reshape(mesh.size, -1, *rows.shape[1:]), batch)
