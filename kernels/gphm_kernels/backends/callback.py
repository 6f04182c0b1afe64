"""The native CPU code called through `jax.pure_callback`: a bridge for platforms that have no FFI handler.

Arguments travel to the host and results back; on CPU, `gphm_kernels.backends.native` is the fast path. The callbacks
take and return NumPy arrays and run no JAX inside, which could deadlock.
"""

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gphm_kernels.backends import native

_MESSAGE_BYTES = 512
Shape = tuple[int, ...]


def available() -> bool:
    """Whether the native library, which the callbacks run, is there."""
    return native.available()


def reason() -> str:
    """Why the native library is not available, in one line; empty if it is."""
    return native.reason()


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
) -> tuple[Float[Array, "b h w c"], Float[Array, "b h w"]]:
    """As `gphm_kernels.backends.native.blend_fwd`."""
    batch, number, channels = features.shape
    sizes = (batch, number, channels, width, height)
    results = ((batch, height, width, channels), (batch, height, width))
    inputs = (means2d, conics, opacities, depths, features, background)
    return _callback(lambda *arrays: _run_table("gphm_c_blend_fwd", sizes, arrays, results), results, inputs)


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
) -> tuple[Array, Array, Array, Array, Array]:
    """As `gphm_kernels.backends.native.blend_bwd`."""
    del image, alpha
    batch, number, channels = features.shape
    sizes = (batch, number, channels, width, height)
    results = tuple(x.shape for x in (means2d, conics, opacities, features, background))
    inputs = (means2d, conics, opacities, depths, features, background, d_image, d_alpha)
    return _callback(lambda *arrays: _run_table("gphm_c_blend_bwd", sizes, arrays, results), results, inputs)


def rasterize_fwd(
    clip_positions: Float[Array, "b v 4"], faces: Int[Array, "f 3"], *, width: int, height: int
) -> Float[Array, "b h w 4"]:
    """As `gphm_kernels.backends.native.rasterize_fwd`."""
    batch, vertices, _ = clip_positions.shape
    sizes = (batch, vertices, faces.shape[0], width, height)
    shape = (batch, height, width, 4)

    def run(positions: Any, indices: Any) -> tuple[np.ndarray, ...]:
        return _run("gphm_c_rasterize_fwd", sizes, (_floats(positions), _ints(indices)), shape)

    return _callback(run, (shape,), (clip_positions, faces))[0]


def mlp_fwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    *,
    sizes: tuple[int, ...],
) -> Float[Array, "i f n e"]:
    """As `gphm_kernels.backends.native.mlp_fwd`."""
    results = ((*first_bias.shape[:2], features.shape[1], sizes[-1]),)
    numbers = (*first_bias.shape[:2], features.shape[1], len(sizes) - 1, *sizes)
    inputs = (features, parameters, first_bias)
    return _callback(lambda *arrays: _run_table("gphm_c_mlp_fwd", numbers, arrays, results), results, inputs)[0]


def mlp_bwd(
    features: Float[Array, "i n d"],
    parameters: Float[Array, "p"],
    first_bias: Float[Array, "i f w"],
    d_result: Float[Array, "i f n e"],
    *,
    sizes: tuple[int, ...],
) -> tuple[Array, Array, Array]:
    """As `gphm_kernels.backends.native.mlp_bwd`."""
    results = tuple(x.shape for x in (features, parameters, first_bias))
    numbers = (*first_bias.shape[:2], features.shape[1], len(sizes) - 1, *sizes)
    inputs = (features, parameters, first_bias, d_result)
    return _callback(lambda *arrays: _run_table("gphm_c_mlp_bwd", numbers, arrays, results), results, inputs)


def _callback(
    run: Callable[..., tuple[np.ndarray, ...]], results: Sequence[Shape], inputs: tuple[Array, ...]
) -> Any:
    if (
        not available()
    ):  # here rather than inside: an exception in a callback reaches the user as a long trace
        raise RuntimeError(f"the native CPU kernels cannot run: {reason()}; use backend='xla'")
    shapes = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in results)
    return jax.pure_callback(run, shapes, *inputs, vmap_method="sequential")


def _floats(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def _ints(array: Any) -> np.ndarray:
    return np.ascontiguousarray(array, np.int32)


def _run_table(
    name: str, sizes: Shape, arrays: Sequence[Any], results: Sequence[Shape]
) -> tuple[np.ndarray, ...]:
    inputs = [_floats(array) for array in arrays]
    outputs = tuple(np.empty(shape, np.float32) for shape in results)
    _invoke(name, _numbers(sizes), _table(inputs), _table(outputs))
    return outputs


def _run(name: str, sizes: Shape, inputs: Sequence[np.ndarray], shape: Shape) -> tuple[np.ndarray, ...]:
    output = np.empty(shape, np.float32)
    _invoke(
        name,
        _numbers(sizes),
        *(ctypes.c_void_p(x.ctypes.data) for x in inputs),
        ctypes.c_void_p(output.ctypes.data),
    )
    return (output,)


def _numbers(sizes: Shape) -> Any:
    return (ctypes.c_int64 * len(sizes))(*sizes)


def _table(arrays: Sequence[np.ndarray]) -> Any:
    """A C array of the arrays' addresses."""
    return (ctypes.c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))


def _invoke(name: str, *arguments: Any) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    function = getattr(native.library(), name)
    zero = ctypes.c_int32(0)  # all threads, the best instruction set
    if function(*arguments, zero, zero, message, ctypes.c_int64(_MESSAGE_BYTES)):
        raise RuntimeError(message.value.decode())
