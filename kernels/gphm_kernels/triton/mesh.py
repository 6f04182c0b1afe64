"""Triangle rasterization on the GPU: each tile's list of faces by plain JAX, then a kernel that a launcher runs.

Lists are made as for splats (see `gphm_kernels.triton.splat`). Only the forward pass is a kernel: the backward passes,
interpolation and antialiasing are gathers, and sums that `gphm_kernels.rows` orders.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gphm_kernels.reference.mesh import balanced, bounds, gather_corners
from gphm_kernels.reference.tiles import Bins, make_layout, sweep_groups
from gphm_kernels.triton.launches import Launcher, run
from gphm_kernels.varying import promote, varying_axes


def rasterize_fwd(
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    *,
    width: int,
    height: int,
    launch: Launcher,
) -> Float[Array, "b h w 4"]:
    """`reference.mesh.rasterize_fwd` by the kernel that `launch` runs; float32."""
    batch, number = clip_positions.shape[0], faces.shape[0]
    empty = jnp.zeros((batch, height, width, 4), jnp.float32)
    if not (batch and number and clip_positions.shape[1]):
        return empty
    layout = make_layout(batch, width, height)
    corners = gather_corners(clip_positions, faces)
    rectangles = bounds(layout, corners, faces, clip_positions.shape[1])
    corners = balanced(corners, (-2, -1))
    sizes = (width, height, layout.columns, layout.rows, number)

    def visit(raster: Array, bins: Bins, first: Array, last: Array) -> Array:
        del first, last  # lists are empty beyond them
        inputs = corners, bins.primitive[bins.slot], bins.start
        return run(launch, "rasterize_fwd", inputs, (raster,), sizes, (layout.tiles, 1))[0]

    carry = promote(empty, varying_axes(corners, rectangles))
    return sweep_groups(layout, rectangles, lambda face, column, row: jnp.ones_like(face, bool), carry, visit)
