"""Argument checks that the public operations share: shapes, dtypes, image sizes, leading dimensions."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

# One image axis of a rasterizer; beyond it pixel and tile indices would need more than int32.
MAX_SIDE = 16384


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
        array = arrays[name] = jnp.asarray(value)
        wanted = trailing.split()
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{operation}: {name} is {array.dtype}; it must be floating-point")
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
    dtype = jnp.result_type(*arrays.values())
    if dtype not in (jnp.float32, jnp.float64):
        raise ValueError(f"{operation}: the arguments' common dtype is {dtype}; cast them to float32 (or float64)")
    return {name: array.astype(dtype) for name, array in arrays.items()}, batch, sizes


def check_image_size(operation: str, width: int, height: int) -> None:
    """Raises ValueError unless both are Python integers in [1, 16384]."""
    for name, size in (("width", width), ("height", height)):
        if not isinstance(size, int | np.integer) or not 1 <= size <= MAX_SIDE:
            raise ValueError(f"{operation}: {name}={size!r}: need a Python integer in [1, {MAX_SIDE}]")


def flatten_batch(array: Array, batch: tuple[int, ...], rank: int) -> Array:
    """Broadcasts the dimensions before the last `rank` to `batch` and flattens them to one."""
    trailing = array.shape[array.ndim - rank :]
    return jnp.broadcast_to(array, (*batch, *trailing)).reshape(math.prod(batch), *trailing)
