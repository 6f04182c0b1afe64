"""Argument checks that the public operations share: arrays, dtypes, devices, numbers, sizes, leading dimensions."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

# One image axis of a rasterizer; beyond it pixel and tile indices would need more than int32.
MAX_SIDE = 16384
MAX_INT32 = 2**31 - 1


def check_arrays(
    operation: str, named: Mapping[str, tuple[Any, str]]
) -> tuple[dict[str, Array], tuple[int, ...], dict[str, int]]:
    """Arrays of one floating dtype, the broadcast shape of their leading dimensions, and the named sizes.

    `named` maps an argument's name to its value and its trailing shape, such as "n 3": numbers are required, names
    must agree between arguments. Raises ValueError with the argument's name and shape.
    """
    arrays: dict[str, Array] = {}
    sizes: dict[str, int] = {}
    leading: dict[str, tuple[int, ...]] = {}
    for name, (value, trailing) in named.items():
        array = arrays[name] = as_floating(operation, name, value)
        wanted = trailing.split()
        shape = array.shape[array.ndim - len(wanted) :] if array.ndim >= len(wanted) else None
        if shape is None or any(size.isdigit() and int(size) != n for size, n in zip(wanted, shape, strict=True)):
            raise ValueError(f"{operation}: {name} has shape {array.shape}; it must end in [{trailing}]")
        for size, n in zip(wanted, shape, strict=True):
            if not size.isdigit() and sizes.setdefault(size, n) != n:
                raise ValueError(
                    f"{operation}: {name} has shape {array.shape}, ending in [{trailing}], but {size}={sizes[size]} "
                    "in the arguments before it"
                )
        leading[name] = array.shape[: array.ndim - len(wanted)]
    try:
        batch = np.broadcast_shapes(*leading.values())
    except ValueError:
        raise ValueError(f"{operation}: leading dimensions do not broadcast: {leading}") from None
    dtype = common_dtype(operation, arrays)
    check_devices(operation, arrays)
    return {name: array.astype(dtype) for name, array in arrays.items()}, batch, sizes


def as_floating(operation: str, name: str, value: Any) -> Array:
    """The value as an array; raises TypeError if it is none, ValueError if it is not floating-point."""
    array = _as_array(operation, name, value)
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{operation}: {name} is {array.dtype}; it must be floating-point")
    return array


def as_faces(operation: str, value: Any) -> Int[Array, "f 3"]:
    """Vertex indices as int32; an index too large for that stays out of range. Raises as `as_floating` does."""
    faces = value if isinstance(value, np.ndarray) else _as_array(operation, "faces", value)
    if faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(
            f"{operation}: faces has shape {faces.shape}; it must be [f 3], shared by the whole batch"
        )
    if not jnp.issubdtype(faces.dtype, jnp.integer):
        raise ValueError(f"{operation}: faces is {faces.dtype}; it must be integer vertex indices")
    if faces.dtype.itemsize > 4:  # cut to 32 bits, such an index could name another vertex
        faces = faces.clip(max(-1, int(jnp.iinfo(faces.dtype).min)), MAX_INT32)
    return jnp.asarray(faces, jnp.int32)


def common_dtype(operation: str, arrays: Mapping[str, Array]) -> np.dtype:
    """The dtype that the arrays promote to; ValueError unless it is float32 or float64."""
    dtype = jnp.result_type(*arrays.values())
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(
            f"{operation}: the arguments' common dtype is {dtype}; cast them to float32 (or float64)"
        )
    return dtype


def check_devices(operation: str, arrays: Mapping[str, Array]) -> None:
    """Raises ValueError if arrays that were put on devices lie on different ones; of traced arrays, JAX says so."""
    first = None
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer) or not array.committed:
            continue
        if first is None:
            first = name
        elif array.devices() != arrays[first].devices():
            raise ValueError(
                f"{operation}: {first} is on {_places(arrays[first])} and {name} on {_places(array)}; "
                "put them on one with jax.device_put"
            )


def check_integer(operation: str, name: str, value: Any, least: int, most: int) -> None:
    """Raises ValueError unless the value is an integer of Python or NumPy in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise ValueError(f"{operation}: {name}={value!r}: need a Python integer in [{least}, {most}]")


def check_image_size(operation: str, width: Any, height: Any) -> None:
    """Raises ValueError unless both are integers of Python or NumPy in [1, 16384]."""
    check_integer(operation, "width", width, 1, MAX_SIDE)
    check_integer(operation, "height", height, 1, MAX_SIDE)


def as_number(operation: str, name: str, value: Any) -> float:
    """The value as a Python number; ValueError if it is none, such as an array that is being traced."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{operation}: {name}={value!r}: need a Python number") from None


def flatten_batch(array: Array, batch: tuple[int, ...], rank: int) -> Array:
    """Broadcasts the dimensions before the last `rank` to `batch` and flattens them to one."""
    trailing = array.shape[array.ndim - rank :]
    return jnp.broadcast_to(array, (*batch, *trailing)).reshape(math.prod(batch), *trailing)


def _as_array(operation: str, name: str, value: Any) -> Array:
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{operation}: {name} is not an array: {error}") from None


def _places(array: Array) -> str:
    return ", ".join(sorted(f"{device.platform}:{device.id}" for device in array.devices()))
