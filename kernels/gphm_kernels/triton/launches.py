"""What a launch of a kernel is, and every variant of every kernel that is compiled ahead of time."""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

from gphm_kernels.varying import promote, varying_axes

# Channels of one product: 16 is the least that tensor cores take. The backward keeps more at once, and would need more
# registers and shared memory for 64 than the smaller architectures have; that for crowded tiles, for 32.
CHANNEL_BLOCKS = {
    "blend_fwd": (16, 32, 64),
    "crowded_fwd": (16, 32, 64),
    "blend_bwd": (16, 32),
    "crowded_bwd": (16,),
}
_IMAGE = ("width", "height", "columns", "rows")
_FLOATS, _INTS, _BYTES = "*fp32", "*i32", "*i8"
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


def _blend(
    name: str, function: str, pointers: tuple[str, ...], sizes: tuple[str, ...], block: int, **constants: Any
) -> dict[str, Kernel]:
    """A blend's variants, one for each number of channels of one product; they take blocks of `block` splats."""
    sizes = (*_IMAGE, "channels", *sizes)

    def variant(channels: int) -> Kernel:
        values = {"CHANNELS": channels, "BLOCK": block, "PRECISION": "tf32x3", **constants}
        return Kernel("splat", function, pointers, sizes, values, num_warps=8)

    return {f"{name}_{channels}": variant(channels) for channels in CHANNEL_BLOCKS[name]}


def _rasterize(name: str, *, crowded: bool) -> dict[str, Kernel]:
    # A face a thread in each warp; up to sm_90 the registers suffice for two programs a processor.
    constants = {"BLOCK": 32, "CROWDED": crowded}
    pointers = (_FLOATS, *(_INTS,) * 3, _FLOATS)
    return {name: Kernel("mesh", "rasterize_fwd", pointers, (*_IMAGE, "faces"), constants, num_warps=8)}


def _tetrahedra(function: str, block: int, sizes: tuple[str, ...], *pointers: str) -> dict[str, Kernel]:
    return {function: Kernel("dmtet", function, pointers, (*_GRID, *sizes), {"BLOCK": block}, num_warps=4)}


_BLEND_FWD = (*(_FLOATS,) * 5, *(_INTS,) * 3, *(_FLOATS,) * 2)
KERNELS: dict[str, Kernel] = {
    **_blend("blend_fwd", "blend_fwd", _BLEND_FWD, ("number",), block=32, CROWDED=False),
    **_blend("crowded_fwd", "blend_fwd", _BLEND_FWD, ("number",), block=32, CROWDED=True),
    **_blend("blend_bwd", "blend_bwd", (*(_FLOATS,) * 4, *(_INTS,) * 4, *(_FLOATS,) * 4), (), block=16),
    **_blend(
        "crowded_bwd",
        "crowded_bwd",
        (*(_FLOATS,) * 4, *(_INTS,) * 3, *(_FLOATS,) * 2, *(_INTS,) * 4),
        ("number", "room", "adding"),
        block=16,
    ),
    # Most splats touch a few tiles: one warp sums 8 rows at a time, and many programs share a processor.
    "sum_rows": Kernel(
        "rows",
        "sum_rows",
        (_FLOATS, *(_INTS,) * 5, _FLOATS),
        ("columns", "tiles", "room"),
        {"CHANNELS": 32, "BLOCK": 8},
        num_warps=1,
    ),
    **_rasterize("rasterize_fwd", crowded=False),
    **_rasterize("rasterize_crowded", crowded=True),
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
