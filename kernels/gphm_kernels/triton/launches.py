"""What a launch of a kernel is, and every variant of every kernel that is compiled ahead of time."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from gphm_kernels.varying import promote, varying_axes

# Channels of one product: 16 is the least that tensor cores take. The backward keeps more at once, and would need more
# registers and shared memory for 64 than the smaller architectures have.
CHANNEL_BLOCKS = {"blend_fwd": (16, 32, 64), "blend_bwd": (16, 32)}
_SIZES = ("width", "height", "columns", "rows", "channels")
_GRID, _LIMITS = ("size_x", "size_y", "size_z"), ("max_vertices", "max_faces")


class Kernel(NamedTuple):
    """The parameters of a kernel as compiled: pointers, then int32 sizes; constants come last and are no parameters."""

    module: str  # of `kernels`
    function: str
    pointers: tuple[str, ...]  # Triton's types
    sizes: tuple[str, ...]
    constants: dict[str, Any]
    num_warps: int

    def load(self) -> Any:
        """The kernel in Triton's language; imports Triton."""
        return getattr(importlib.import_module(f"gphm_kernels.triton.kernels.{self.module}"), self.function)


def _blend(function: str, block: int, *pointers: str) -> dict[str, Kernel]:
    """A blend's variants, which take blocks of `block` splats."""
    constants = {"BLOCK": block, "PRECISION": "tf32x3"}
    return {
        f"{function}_{channels}": Kernel(
            "splat", function, pointers, _SIZES, {"CHANNELS": channels, **constants}, num_warps=8
        )
        for channels in CHANNEL_BLOCKS[function]
    }


def _tetrahedra(function: str, block: int, sizes: tuple[str, ...], *pointers: str) -> dict[str, Kernel]:
    return {function: Kernel("dmtet", function, pointers, (*_GRID, *sizes), {"BLOCK": block}, num_warps=4)}


_FLOATS, _INTS, _BYTES = "*fp32", "*i32", "*i8"
KERNELS: dict[str, Kernel] = {
    **_blend("blend_fwd", 32, *(_FLOATS,) * 5, *(_INTS,) * 3, *(_FLOATS,) * 2),
    **_blend("blend_bwd", 16, *(_FLOATS,) * 4, *(_INTS,) * 4, *(_FLOATS,) * 4),
    # Most splats touch a few tiles: one warp sums 8 rows at a time, and many programs share a processor.
    "sum_rows": Kernel(
        "splat",
        "sum_rows",
        (_FLOATS, _INTS, _INTS, _FLOATS),
        ("columns",),
        {"CHANNELS": 32, "BLOCK": 8},
        num_warps=1,
    ),
    # A face a thread in each warp; up to sm_90 the registers suffice for two programs a processor.
    "rasterize_fwd": Kernel(
        "mesh",
        "rasterize_fwd",
        (_FLOATS, _INTS, _INTS, _FLOATS),
        ("width", "height", "columns", "rows", "faces"),
        {"BLOCK": 32},
        num_warps=8,
    ),
    # The blocks of the first two are the same: one counts what the other ranks.
    **_tetrahedra("tetrahedra_count", 512, (), _FLOATS, _INTS, _INTS),
    **_tetrahedra("tetrahedra_place", 512, _LIMITS, _FLOATS, *(_INTS,) * 5, _BYTES),
    **_tetrahedra("tetrahedra_connect", 256, _LIMITS, *(_INTS,) * 4, _BYTES, _INTS),
}


class Launch(NamedTuple):
    """One launch: the kernel's pointers are the inputs, then the outputs, which are written in place."""

    kernel: str
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]  # as they are before; what the kernel does not store to keeps its value
    sizes: tuple[int, ...]
    grid: tuple[int, int]


# Runs a kernel; gives the outputs as they are afterwards.
Launcher = Callable[[Launch], tuple[Array, ...]]


def run(
    launch: Launcher,
    kernel: str,
    inputs: tuple[Array, ...],
    outputs: tuple[Array, ...],
    sizes: tuple[int, ...],
    grid: tuple[int, int],
) -> tuple[Array, ...]:
    """Runs a kernel; the outputs as they are afterwards, typed as varying over devices like what went in."""
    # The results of foreign code vary over the devices of a `shard_map` as its inputs do: a loop's carry must say so.
    return promote(launch(Launch(kernel, inputs, outputs, sizes, grid)), varying_axes(inputs, outputs))
