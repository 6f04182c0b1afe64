"""Triangle rasterization on the GPU: each tile's list of faces by plain JAX, then kernels that a launcher runs.

Lists are made as for splats, and tiles whose lists do not fit are drawn without (see `gphm_kernels.triton.splat`).
Only the forward pass is a kernel: the backward passes, interpolation and antialiasing are gathers, and sums that
`gphm_kernels.rows` orders.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gphm_kernels.reference.mesh import balanced, bounds, gather_corners
from gphm_kernels.reference.tiles import bin_first, make_layout
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

    bins, last = bin_first(layout, rectangles, lambda face, column, row: jnp.ones_like(face, bool))
    listed = bins.primitive[bins.slot]
    raster = promote(empty, varying_axes(corners, rectangles))
    for name, places in (("rasterize_fwd", bins.start), ("rasterize_crowded", jnp.stack(rectangles, -1))):
        inputs = corners, listed, places, last
        (raster,) = run(launch, name, inputs, (raster,), sizes, (layout.tiles, 1))
    return raster
