"""The native CPU code called through `jax.pure_callback`: a bridge for platforms that have no FFI handler.

Arguments travel to the host and results back; on CPU, `gphm_kernels.backends.native` is the fast path. The callbacks
take and return NumPy arrays and run no JAX inside, which could deadlock. The projection of splats is left to XLA: there
and back, its arrays would take longer than the work.
"""

import ctypes
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from gphm_kernels.backends import native, primitives

_MESSAGE_BYTES = 512


def available() -> bool:
    """Whether the native library, which the callbacks run, is there."""
    return native.available()


def reason() -> str:
    """Why the native library is not available, in one line; empty if it is."""
    return native.reason()


def _through_callback(describe: Callable[..., primitives.Primitive]) -> Callable[..., Any]:
    """The function of a primitive's arguments that computes it."""

    @functools.wraps(describe)
    def compute(*arrays: Any, **options: Any) -> Any:
        native.require()  # here rather than on the host: an exception in a callback reaches the user as a long trace
        primitive = describe(*arrays, **options)
        sizes = np.hstack([primitive.counts, *primitive.attributes.values()]).astype(np.int64)
        run = functools.partial(_run, primitive.name, sizes, primitive.results)
        return jax.pure_callback(run, primitive.results, *primitive.inputs, vmap_method="sequential")

    return compute


def _run(name: str, sizes: np.ndarray, results: primitives.Results, *inputs: Any) -> Any:
    arrays = [np.ascontiguousarray(x) for x in inputs]
    outputs = [_empty(x) for x in (results if isinstance(results, tuple) else (results,))]
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    failed = getattr(native.require(), f"gphm_c_{name}")(
        ctypes.c_void_p(sizes.ctypes.data),
        _addresses(arrays),
        _addresses(outputs),
        ctypes.c_int32(0),  # all threads
        ctypes.c_int32(native.ISA["auto"]),
        message,
        ctypes.c_int64(_MESSAGE_BYTES),
    )
    if failed:
        raise RuntimeError(message.value.decode())
    return tuple(outputs) if isinstance(results, tuple) else outputs[0]


def _empty(result: jax.ShapeDtypeStruct) -> np.ndarray:
    """An uninitialised array at a multiple of 64 bytes: JAX takes such a one as it is, and copies others first."""
    number = math.prod(result.shape) * result.dtype.itemsize
    room = np.empty(number + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + number].view(result.dtype).reshape(result.shape)


def _addresses(arrays: Sequence[np.ndarray]) -> ctypes.Array:
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


blend_fwd = _through_callback(primitives.blend_fwd)
blend_bwd = _through_callback(primitives.blend_bwd)
rasterize_fwd = _through_callback(primitives.rasterize_fwd)
rasterize_bwd = _through_callback(primitives.rasterize_bwd)
interpolate_fwd = _through_callback(primitives.interpolate_fwd)
interpolate_bwd = _through_callback(primitives.interpolate_bwd)
antialias_fwd = _through_callback(primitives.antialias_fwd)
antialias_bwd = _through_callback(primitives.antialias_bwd)
marching_tetrahedra = _through_callback(primitives.marching_tetrahedra)
mlp_fwd = _through_callback(primitives.mlp_fwd)
mlp_bwd = _through_callback(primitives.mlp_bwd)
