"""The mesh, the one table from parameter names to mesh axes, and rows split over devices.

Parameters and optimiser state lie where `shardings` says. Rows go where the parameters lie: every
network splits those that it reads over all devices of its parameters (`split_rows`), whoever calls
it and however many there are, so no work is done on two devices. Under `pmap` every device has all
parameters.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from vbon_jax.types import Array, InputError

# Logical axes of each parameter of two axes or more, by the last two names on its path. Those of
# small ones are () and lie whole on every device, as do vectors: norms, biases, the value head.
LOGICAL_AXES = {
    ("tokens", "embedding"): ("vocab", "embed"),
    ("positions", "embedding"): (None, "embed"),
    ("types", "embedding"): (),
    ("query", "kernel"): ("embed", "heads"),
    ("key", "kernel"): ("embed", "heads"),
    ("value", "kernel"): ("embed", "heads"),
    ("output", "kernel"): ("heads", "embed"),
    ("gate", "kernel"): ("embed", "mlp"),
    ("up", "kernel"): ("embed", "mlp"),
    ("down", "kernel"): ("mlp", "embed"),
    ("lora", "lora_a"): (),
    ("lora", "lora_b"): (),
    ("head", "kernel"): ("embed", "vocab"),
    ("pre_classifier", "kernel"): ("embed", None),
    ("classifier", "kernel"): (),
    ("score", "kernel"): (),
}
# Mesh axis of each logical axis; the rows of a batch are split over data and fsdp together.
RULES = {"embed": "fsdp", "vocab": None, "heads": None, "mlp": None}


def config_mesh(config: ConfigDict) -> Mesh:
    """The mesh of `config.mesh`. Raises InputError for one that the devices do not fit."""
    settings = config.mesh
    if settings.pmap and (settings.fsdp != 1 or jax.process_count() > 1):
        raise InputError("mesh.pmap: is for mesh.fsdp=1 on the devices of one process")
    return make_mesh(data=settings.data, fsdp=settings.fsdp)


def make_mesh(*, data: int, fsdp: int, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices, the first of all (or of those given).

    -1 for `data` is what `fsdp` leaves. Raises InputError where there are not so many devices, or
    where some devices of another process would be left out.
    """
    devices = devices or jax.devices()
    count = len(devices)
    data = count // fsdp if data == -1 else data
    used = data * fsdp
    if not 0 < used <= count or (used < count and jax.process_count() > 1):
        raise InputError(
            f"mesh.data x mesh.fsdp is {data} x {fsdp} on {count} devices; give mesh.data=-1 and a "
            f"mesh.fsdp from 1 to {count}"
        )
    return jax.make_mesh(
        (data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices[:used]
    )


# ------------------------------------------------------------------------------------- parameters


def shardings(tree, mesh: Mesh):
    """Where each leaf lies: a tree like `tree` (parameters, or a whole state) of NamedShardings.

    Optimiser moments carry the names of the parameters that they belong to, so the same table
    serves them. A dimension that its mesh axis does not divide is not split. Raises KeyError for a
    parameter of two axes or more without a row in the table.
    """

    def split(name: str | None, size: int) -> str | None:
        axis = RULES.get(name)
        return axis if axis and size % mesh.shape[axis] == 0 else None

    def sharding(path: tuple, leaf) -> NamedSharding:
        shape = np.shape(leaf)
        if len(shape) < 2:
            return NamedSharding(mesh, PartitionSpec())
        names = tuple(entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey))
        if names[-2:] not in LOGICAL_AXES:
            raise KeyError(f"LOGICAL_AXES has no row for the parameter {'/'.join(names)}")
        axes = map(split, LOGICAL_AXES[names[-2:]], shape)
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def place(tree, mesh: Mesh):
    """Put parameters on the mesh as the table says."""
    return jax.device_put(tree, shardings(tree, mesh))


def on_all_devices(params):
    """Parameters on every device of this machine, for programs without a configured mesh."""
    return place(params, make_mesh(data=-1, fsdp=1))


def mesh_of(params) -> Mesh | None:
    """The mesh that parameters lie on; None for one device, numpy arrays and traced ones."""
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    return mesh if isinstance(mesh, Mesh) and mesh.size > 1 else None


# ------------------------------------------------------------------------------------------- rows


def shard_rows(batch, mesh: Mesh):
    """Put arrays on the mesh, their first axis split over all devices where those divide it.

    Other rows are on all devices, and a network splits them (`split_rows`).
    """

    def sharding(rows) -> NamedSharding:
        axes = (mesh.axis_names,) if len(rows) % mesh.size == 0 else ()
        return NamedSharding(mesh, PartitionSpec(*axes))

    return jax.device_put(batch, jax.tree.map(sharding, batch))


def rows_by_device(batch, mesh: Mesh):
    """[S, ...] -> [devices, S / devices, ...] for every array, for `pmap` over the devices."""
    return jax.tree.map(lambda rows: rows.reshape(mesh.size, -1, *rows.shape[1:]), batch)


def rounded_up(count: int, params) -> int:
    """`count` rows, or as many more as all devices of some parameters have equal parts of."""
    mesh = mesh_of(params)
    return count if mesh is None else -(-count // mesh.size) * mesh.size


def split_rows(rows: Array) -> Array:
    """The first axis of a traced array split over all devices of its program, in any number.

    What XLA partitions follows from it. It changes nothing on one device and under `pmap`.
    """
    mesh = _program_mesh(rows)
    if mesh is None:
        return rows
    spec = PartitionSpec(mesh.axis_names)
    return jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, spec))


def rows_a_device(rows: Array) -> int:
    """How many rows of an array each device has once they are split."""
    mesh = _program_mesh(rows)
    return len(rows) if mesh is None else -(-len(rows) // mesh.size)


def _program_mesh(rows: Array) -> Any:
    """The devices over which XLA partitions the program that an array is traced in, or None."""
    mesh = jax.typeof(rows).sharding.mesh
    automatic = all(kind == AxisType.Auto for kind in mesh.axis_types)
    traced = isinstance(rows, jax.core.Tracer)
    return mesh if traced and automatic and mesh.size > 1 else None
