"""The GPU backend: kernels that Triton compiled ahead of time, launched through the CUDA driver by `jax.ffi`.

Running needs neither Triton nor a CUDA toolkit: the native library holds the launcher, and the compiled kernels
come with the package (`gphm_kernels.triton.compile` makes them in a checkout). float32; one batch dimension.
"""

import ctypes
import functools
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array

from gphm_kernels.backends import native
from gphm_kernels.triton import binaries, dmtet, mesh, splat
from gphm_kernels.triton.launches import Launch

_DRIVER = "libcuda.so.1"
_TARGET = "gphm_cuda_launch"
_MAX_DEVICES = 64
_MESSAGE_BYTES = 512


def available() -> bool:
    """Whether there is an NVIDIA GPU that the compiled kernels fit, and a launcher for them."""
    return not reason()


@functools.cache
def reason() -> str:
    """Why the kernels cannot run here, in one line; empty if they can. The first call loads them."""
    try:
        compiled = binaries.read(binaries.folder())
        library = native.library()
        if library is None:
            return native.reason()
        load(library, _DRIVER)
        found = capabilities(library)
    except (binaries.ManifestError, OSError, RuntimeError) as error:
        return str(error)
    if not found:
        return "the NVIDIA driver finds no GPU"
    for capability in found:
        if not any(binaries.runs_on(binary.target, capability, ptx=binary.ptx) for binary in compiled):
            return f"no GPU kernels are compiled for compute capability {capability // 10}.{capability % 10}"
    try:
        add(library, compiled)
        handler = jax.ffi.pycapsule(getattr(library, _TARGET))
    except (OSError, AttributeError, RuntimeError) as error:
        return f"the compiled GPU kernels do not load: {error}"
    jax.ffi.register_ffi_target(_TARGET, handler, platform="CUDA")
    return ""


def load(library: ctypes.CDLL, driver: str) -> None:
    """Opens the CUDA driver; RuntimeError where there is none."""
    _call(library.gphm_c_cuda_open, driver.encode())


def capabilities(library: ctypes.CDLL) -> list[int]:
    """The compute capabilities of the machine's GPUs, 10 major + minor."""
    values, count = (ctypes.c_int32 * _MAX_DEVICES)(), ctypes.c_int32()
    _call(library.gphm_c_cuda_devices, values, ctypes.c_int32(_MAX_DEVICES), ctypes.byref(count))
    return list(values[: count.value])


def add(library: ctypes.CDLL, compiled: list[binaries.Binary]) -> None:
    """Hands the compiled kernels to the launcher."""
    for binary in compiled:
        image = (binaries.folder() / binary.file).read_bytes()
        _call(
            library.gphm_c_cuda_add,
            binary.kernel.encode(),
            binary.function.encode(),
            ctypes.c_int32(binary.target),
            ctypes.c_int32(binary.ptx),
            image,
            ctypes.c_int64(len(image)),
            ctypes.c_int32(binary.threads),
            ctypes.c_int32(binary.shared),
        )


def launch(launch: Launch) -> tuple[Array, ...]:
    """Queues a kernel on XLA's stream; the outputs are written in place."""
    results = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in launch.outputs)
    aliases = {len(launch.inputs) + i: i for i in range(len(results))}
    call = jax.ffi.ffi_call(_TARGET, results, vmap_method="sequential", input_output_aliases=aliases)
    sizes, grid = (np.array(x, np.int64) for x in (launch.sizes, launch.grid))
    return tuple(call(*launch.inputs, *launch.outputs, kernel=launch.kernel, sizes=sizes, grid=grid))


def _call(function: Callable[..., int], *arguments: object) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_BYTES)
    if function(*arguments, message, ctypes.c_int64(_MESSAGE_BYTES)):
        raise RuntimeError(message.value.decode())


blend_fwd = functools.partial(splat.blend_fwd, launch=launch)
blend_bwd = functools.partial(splat.blend_bwd, launch=launch)
rasterize_fwd = functools.partial(mesh.rasterize_fwd, launch=launch)
marching_tetrahedra = functools.partial(dmtet.marching_tetrahedra, launch=launch)
