"""The native CPU backend: C++ called through `jax.ffi`. The only module that loads the binary.

One batch dimension, float32; `gphm_kernels.backends` types the results inside `shard_map`. The ops use XLA's own
threads and give the same bits for any number of them. For tests and measurements, `num_threads` caps the threads
(0: all of XLA's) and `isa` picks the instruction set ("auto": the machine's best; or one of `instruction_sets()`).
"""

import ctypes
import functools
import threading
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_TARGETS = (
    "gphm_blend_fwd",
    "gphm_blend_bwd",
    "gphm_rasterize_fwd",
    "gphm_mlp_fwd",
    "gphm_mlp_bwd",
)
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
    try:
        loaded = ctypes.CDLL(str(path))
        handlers = {name: jax.ffi.pycapsule(getattr(loaded, name)) for name in _TARGETS}
    except (OSError, AttributeError) as error:
        return None, f"{path} does not load: {error}; delete it to have it built again"
    for name, handler in handlers.items():
        jax.ffi.register_ffi_target(name, handler, platform="cpu")
    return loaded, ""


def instruction_sets() -> tuple[str, ...]:
    """The instruction sets that this machine runs, the plainest first."""
    loaded = _require()
    return tuple(name for name, number in ISA.items() if 1 <= number <= loaded.gphm_best_isa())


def blend_fwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    *,
    width: int,
    height: int,
    num_threads: int = 0,
    isa: str = "auto",
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """Blends projected splats front to back over the background; returns the image and its alpha.

    alpha_i = min(0.99, opacity exp(-sigma)); a splat below 1/255 is skipped, one that would bring the transmittance
    to 1e-4 or less ends the pixel and is not added. Splats whose geometry is not finite, or whose conic is not positive
    definite, are inert; features that are not finite reach the image, near the pixels that their splat covers.
    """
    batch, _, channels = features.shape
    results = ((batch, height, width, channels), (batch, height, width))
    inputs = (means2d, conics, opacities, depths, features, background)
    return _call("gphm_blend_fwd", results, inputs, num_threads, isa, width=width, height=height)


def blend_bwd(
    means2d: Float[Array, "b n 2"],
    conics: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    depths: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    background: Float[Array, "b c"],
    image: Float[Array, "b h w c"] | None,
    alpha: Float[Array, "b h w"] | None,
    d_image: Float[Array, "b h w c"],
    d_alpha: Float[Array, "b h w"],
    *,
    width: int,
    height: int,
    num_threads: int = 0,
    isa: str = "auto",
) -> tuple[Array, Array, Array, Array, Array]:
    """Cotangents of means2d, conics, opacities, features and background; the depths only sort and have none.

    The sweep is done again, so `image` and `alpha`, which other backends need, are not read and may be None.
    """
    del image, alpha
    results = tuple(x.shape for x in (means2d, conics, opacities, features, background))
    inputs = (means2d, conics, opacities, depths, features, background, d_image, d_alpha)
    return _call("gphm_blend_bwd", results, inputs, num_threads, isa, width=width, height=height)


def rasterize_fwd(
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    *,
    width: int,
    height: int,
    num_threads: int = 0,
    isa: str = "auto",
) -> Float[Array, "b h w 4"]:
    """Rasterizes triangles: (u, v, z/w, face index + 1) of the nearest face at each pixel centre; 0 where none.

    u, v and 1 - u - v are the perspective-correct weights of the face's vertices 0, 1 and 2. A face is seen where
    -w <= z <= w, from both sides; equal depths go to the lower index. A pixel centre exactly on an edge belongs to the
    face for which it is a left edge or a level top edge of the image. Degenerate faces, faces with an index out
    of range and faces with a position that is not finite are skipped.
    """
    shape = (clip_positions.shape[0], height, width, 4)
    inputs = (clip_positions, faces.astype(jnp.int32))
    return _call("gphm_rasterize_fwd", (shape,), inputs, num_threads, isa, width=width, height=height)[0]


def mlp_fwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    *,
    sizes: tuple[int, ...],
    num_threads: int = 0,
    isa: str = "auto",
) -> Float[Array, "i f n e"]:
    """A fully connected network at every row of the features, for each of the f frames' biases of its first layer.

    `sizes` is d and the width after each layer; `parameters` is, per layer, its row-major weights and its bias. Every
    layer but the last is followed by a ReLU.
    """
    shape = (*first_bias.shape[:2], features.shape[1], sizes[-1])
    return _call("gphm_mlp_fwd", (shape,), (features, parameters, first_bias), num_threads, isa, sizes=sizes)[0]


def mlp_bwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    d_result: Float[Array, "i f n e"],
    *,
    sizes: tuple[int, ...],
    num_threads: int = 0,
    isa: str = "auto",
) -> tuple[Array, Array, Array]:
    """Cotangents of features, parameters and first_bias; the activations are computed again."""
    inputs = (features, parameters, first_bias, d_result)
    results = tuple(x.shape for x in inputs[:3])
    return _call("gphm_mlp_bwd", results, inputs, num_threads, isa, sizes=sizes)


def _require() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError(f"the native CPU kernels cannot run: {reason()}; use backend='xla'")
    return loaded


def _call(
    target: str,
    results: tuple[tuple[int, ...], ...],
    inputs: tuple[Array, ...],
    num_threads: int,
    isa: str,
    **sizes: int | tuple[int, ...],
) -> Any:
    _require()
    for array in inputs:
        if array.dtype not in (jnp.float32, jnp.int32):
            raise TypeError(
                f"{target}: the native backend takes float32, not {array.dtype}; use backend='xla'"
            )
    shapes = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results)
    call = jax.ffi.ffi_call(target, shapes, vmap_method="sequential")
    attributes = {**sizes, "num_threads": num_threads, "isa": ISA[isa]}
    return call(*inputs, **{name: _attribute(value) for name, value in attributes.items()})


def _attribute(value: int | tuple[int, ...]) -> np.int32 | np.ndarray:
    return np.array(value, np.int64) if isinstance(value, tuple) else np.int32(value)
