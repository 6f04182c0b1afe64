"""The native CPU backend: C++ called through `jax.ffi`. The only module that loads the binary.

One batch dimension, float32; `gphm_kernels.backends` types the results inside `shard_map`. The ops use XLA's own
threads and give the same bits for any number of them. For tests and measurements, `num_threads` caps the threads
(0: all of XLA's) and `isa` picks the instruction set ("auto": the machine's best; or one of `instruction_sets()`).
"""

import ctypes
import functools
import threading
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gphm_kernels.backends import primitives

ISA = {"auto": 0, "base": 1, "v3": 2, "v4": 3}  # as cpu_handlers.cc numbers them
_lock = threading.Lock()


def available() -> bool:
    """Whether the library is loaded, or could be built and loaded now. The first call does that work."""
    return library() is not None


def reason() -> str:
    """Why the library is not available, in one line; empty if it is."""
    with _lock:
        return _load()[1]


def library() -> ctypes.CDLL | None:
    """The loaded library, its FFI handlers registered with JAX; None where there is none."""
    with _lock:
        return _load()[0]


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    from gphm_kernels.backends import build  # late: `python -m` runs that module as a program

    try:
        path = build.build()
    except build.BuildError as error:
        return None, str(error)
    targets = [f"gphm_{name}" for name in primitives.NAMES]
    try:
        loaded = ctypes.CDLL(str(path))
        handlers = {name: jax.ffi.pycapsule(getattr(loaded, name)) for name in targets}
    except (OSError, AttributeError) as error:
        return None, f"{path} does not load: {error}; delete it to have it built again"
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return loaded, ""


def require() -> ctypes.CDLL:
    """The loaded library; RuntimeError where there is none."""
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"the native CPU kernels cannot run: {reason()}; use backend='xla'")
    return loaded


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine runs, the plainest first."""
    loaded = require()
    return tuple(name for name, number in ISA.items() if 1 <= number <= loaded.gphm_best_isa())


def _through_ffi(describe: Callable[..., primitives.Primitive]) -> Callable[..., Any]:
    """The function of a primitive's arguments that computes it."""

    @functools.wraps(describe)
    def compute(*arrays: Any, num_threads: int = 0, isa: str = "auto", **options: Any) -> Any:
        require()
        primitive = describe(*arrays, **options)
        attributes = {**primitive.attributes, "num_threads": num_threads, "isa": ISA[isa]}
        call = jax.ffi.ffi_call(f"gphm_{primitive.name}", primitive.results, vmap_method="sequential")
        return call(*primitive.inputs, **{name: _attribute(value) for name, value in attributes.items()})

    return compute


def _attribute(value: primitives.Attribute) -> np.int32 | np.ndarray:
    return np.array(value, np.int64) if isinstance(value, tuple) else np.int32(value)


project_fwd = _through_ffi(primitives.project_fwd)
project_bwd = _through_ffi(primitives.project_bwd)
blend_fwd = _through_ffi(primitives.blend_fwd)
blend_bwd = _through_ffi(primitives.blend_bwd)
rasterize_fwd = _through_ffi(primitives.rasterize_fwd)
rasterize_bwd = _through_ffi(primitives.rasterize_bwd)
interpolate_fwd = _through_ffi(primitives.interpolate_fwd)
interpolate_bwd = _through_ffi(primitives.interpolate_bwd)
antialias_fwd = _through_ffi(primitives.antialias_fwd)
antialias_bwd = _through_ffi(primitives.antialias_bwd)
marching_tetrahedra = _through_ffi(primitives.marching_tetrahedra)
mlp_fwd = _through_ffi(primitives.mlp_fwd)
mlp_bwd = _through_ffi(primitives.mlp_bwd)
