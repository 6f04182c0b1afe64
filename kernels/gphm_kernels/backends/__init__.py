"""Which implementation of a primitive runs: by name, or the fastest that the platform has.

Primitives: those that `primitives` describes. Backends: "xla" (plain JAX: CPU, GPU, TPU, float32 and float64; the
reference), "native" (C++ on CPU through `jax.ffi`), "callback" (the same C++ through `jax.pure_callback`, on any
platform), "triton" (NVIDIA GPUs; blending, rasterizing and marching tetrahedra, and xla for the rest), "nvdiffrast"
(the mesh ops by that package, where a user has installed it, and xla for the rest), "auto" (native on CPU and triton on
GPU where they can run, else xla).
A native backend is a module here with these functions, `available() -> bool` and, where it is not, `reason() -> str`.
What the C++ takes and gives is in `primitives`.
"""

import importlib
from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import jax.numpy as jnp
from jax import lax

from gphm_kernels.backends.notices import on_cuda, warn_once
from gphm_kernels.varying import promote, varying_axes

NAMES = ("auto", "xla", "native", "callback", "triton", "nvdiffrast")
_INSTEAD = "the portable XLA kernels run instead"
_REFERENCES = {
    "project_fwd": "projection",
    "project_bwd": "projection",
    "blend_fwd": "splat",
    "blend_bwd": "splat",
    "rasterize_fwd": "mesh",
    "rasterize_bwd": "mesh",
    "interpolate_fwd": "mesh",
    "interpolate_bwd": "mesh",
    "antialias_fwd": "silhouettes",
    "antialias_bwd": "silhouettes",
    "marching_tetrahedra": "dmtet",
    "mlp_fwd": "mlp",
    "mlp_bwd": "mlp",
}


def available(name: str) -> bool:
    """Whether a backend can run here."""
    return name in ("auto", "xla") or _load(name) is not None


def check(backend: str, dtype: Any) -> None:
    """Raises ValueError if the backend is unknown, cannot run here, or does not take the dtype."""
    if backend not in NAMES:
        raise ValueError(f"backend={backend!r}: choose one of {', '.join(map(repr, NAMES))}")
    if backend in ("auto", "xla"):
        return
    if not available(backend):
        raise ValueError(f"backend={backend!r} cannot run here: {_why(backend)}; or choose backend='xla'")
    if dtype != jnp.float32:
        raise ValueError(f"backend={backend!r} computes in float32, not {jnp.dtype(dtype).name}: choose backend='xla'")


def dispatch(primitive: str, backend: str, dtype: Any) -> Callable[..., Any]:
    """The function that computes a primitive; "auto" decides when the program is lowered for a platform.

    Where "auto" misses kernels that this platform could have, it warns once.
    """
    reference = _reference(primitive)
    if backend == "xla":
        return reference
    if backend != "auto":
        return _implementation(backend, primitive) or reference
    if dtype != jnp.float32:
        return reference
    if _load("native") is None:
        warn_once(f"native kernels not used ({_why('native')}): {_INSTEAD}, about ten times slower")
    implementations = {"cpu": _implementation("native", primitive), "cuda": _implementation("triton", primitive)}
    if implementations["cuda"] is None and hasattr(_module("triton"), primitive):
        reference = on_cuda(reference, f"compiled GPU kernels not used ({_why('triton')}): {_INSTEAD}")
    branches = {platform: function for platform, function in implementations.items() if function is not None}
    if not branches:
        return reference

    def by_platform(*arrays: Any, **options: Any) -> Any:
        return lax.platform_dependent(
            *arrays,
            default=lambda *arguments: reference(*arguments, **options),
            **{platform: partial(function, **options) for platform, function in branches.items()},
        )

    return by_platform


def _reference(primitive: str) -> Callable[..., Any]:
    return getattr(importlib.import_module(f"gphm_kernels.reference.{_REFERENCES[primitive]}"), primitive)


def _implementation(backend: str, primitive: str) -> Callable[..., Any] | None:
    """A backend's function; None if the backend cannot run here or leaves the primitive to the reference."""
    function = getattr(_load(backend), primitive, None)
    return function and _varying(function)


def _varying(function: Callable[..., Any]) -> Callable[..., Any]:
    """Types the results of foreign code: inside `shard_map` JAX takes them to be equal on all devices.

    Left so, the gradient of a replicated input comes out too large by the number of devices, in silence.
    """

    def typed(*arrays: Any, **options: Any) -> Any:
        return promote(function(*arrays, **options), varying_axes(arrays))

    return typed


@lru_cache
def _load(name: str) -> ModuleType | None:
    """The backend's module if it can run; loading a library takes time and may fail."""
    module = _module(name)
    return module if module.available() else None


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"gphm_kernels.backends.{name}")


def _why(name: str) -> str:
    return _module(name).reason()
