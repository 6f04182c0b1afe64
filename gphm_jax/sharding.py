"""The device mesh, and which array lies where on it.

Two axes: `data` and `fsdp`. A batch's identities are divided over both. Weights and code tables, with their
optimizer moments, are divided over `fsdp` along their largest divisible axis and gathered once a step;
point arrays are replicated, since every image needs all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from gphm_jax.errors import InputError

BATCH_AXES = ("data", "fsdp")
POINT_ARRAYS = frozenset(
    [
        "positions",
        "features",
        "log_scales",
        "quats",
        "opacity_logits",
        "landmarks",
        "landmark_features",
        "weight",
    ]
)
MIN_SHARDED_SIZE = 2**12  # smaller arrays cost more to gather than to keep


def device_mesh(fsdp: int) -> Mesh:
    """All devices of all processes as a (data, fsdp) mesh."""
    count = jax.device_count()
    if fsdp < 1 or count % fsdp:
        raise InputError(f"config.fsdp={fsdp} does not divide the {count} devices: choose a divisor")
    devices = np.asarray(jax.devices()).reshape(count // fsdp, fsdp)
    return Mesh(devices, BATCH_AXES, axis_types=(jax.sharding.AxisType.Auto,) * 2)


def check_batch(mesh: Mesh, identities: int, *, key: str) -> None:
    """Raises `InputError` for a batch whose identities do not divide over all devices; `key` names the setting."""
    if identities % mesh.size:
        raise InputError(f"{key}={identities} does not divide over {mesh.size} devices: make it a multiple of that")


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Leading axis (identities) divided over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh | AbstractMesh, state: Any) -> Any:
    """One NamedSharding per leaf of a train state (parameters and optimizer moments alike, by name and shape).

    A plan needs no devices: for it the mesh, and the state's leaves, may be abstract.
    """

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = {str(getattr(key, "key", getattr(key, "name", ""))) for key in path}
        if names & POINT_ARRAYS and "networks" not in names and "mean" not in names:
            return replicated(mesh)
        return NamedSharding(mesh, _fsdp_spec(leaf.shape, mesh.shape["fsdp"]))

    return jax.tree_util.tree_map_with_path(place, state)


def _fsdp_spec(shape: tuple[int, ...], size: int) -> PartitionSpec:
    """Divides the largest axis that `size` divides; arrays that are small or indivisible stay whole."""
    if size == 1 or math.prod(shape) < MIN_SHARDED_SIZE:
        return PartitionSpec()
    divisible = [axis for axis, length in enumerate(shape) if length % size == 0]
    if not divisible:
        return PartitionSpec()
    axis = max(divisible, key=lambda a: shape[a])
    return PartitionSpec(*[None] * axis, "fsdp")


def global_batch(mesh: Mesh) -> Callable[[Any], Any]:
    """Makes a global array of each process's own rows of a batch."""
    sharding = batch_sharding(mesh)
    return lambda batch: jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )
