"""Marching tetrahedra on an implicit Kuhn grid (Shen et al. 2021, Deep Marching Tetrahedra).

Each cube of the grid is cut into the six tetrahedra around its main diagonal (Kuhn 1960). Every edge of the
grid is then a base vertex plus one of seven directions, the nonzero corners of the unit cube: nothing is
stored, sorted or made unique. A surface vertex is named by its edge, 7 v + direction, and numbered by the
count of crossing edges before it; faces come from one table over a cube's eight signs.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels import backends
from gphm_kernels.arguments import MAX_INT32, as_floating, check_integer
from gphm_kernels.reference.dmtet import DIRECTIONS

Resolution = int | tuple[int, int, int]


def marching_tetrahedra(
    sdf: Float[Array, "*shape"],
    resolution: Resolution,
    max_vertices: int,
    max_faces: int,
    *,
    backend: str = "auto",
) -> tuple[Int[Array, "*b m 2"], Int[Array, "*b k 3"], Int[Array, "*b 2"], Bool[Array, "*b"]]:
    """Extracts the zero surface of values on a grid: edges, faces, counts, overflow; integers, no gradient.

    `resolution` is cells a side, one integer or (x, y, z); `sdf` is [*b, g] in the order of `grid_vertices`, or
    [*b, x+1, y+1, z+1]. Inside is sdf > 0; zero (and NaN) counts as outside.

    edges: the two grid vertices whose signs differ, in ascending order of edge id; surface vertex r lies on
    edges[r] (`edge_interpolate` puts it there, with gradient). faces: triangles of such r, anticlockwise seen from
    outside. Lanes past the counts hold edge (0, 0) and face (0, 0, 0). counts: vertices and faces that the surface
    needs. overflow: these exceed max_vertices or max_faces and the surface has holes; the caller must look.
    The surface is closed unless it crosses the grid's boundary. Raises ValueError on shapes that do not fit.
    """
    shape = _grid_shape("marching_tetrahedra", resolution)
    for name, value in (("max_vertices", max_vertices), ("max_faces", max_faces)):
        check_integer("marching_tetrahedra", name, value, 1, MAX_INT32)
    sdf = lax.stop_gradient(as_floating("marching_tetrahedra", "sdf", sdf))
    batch = _leading(sdf.shape, shape)
    sdf = sdf.reshape(math.prod(batch), *shape)
    backends.check(backend, sdf.dtype)
    extract = backends.dispatch("marching_tetrahedra", backend, sdf.dtype)
    edges, faces, counts = extract(sdf, max_vertices=max_vertices, max_faces=max_faces)
    overflow = (counts[:, 0] > max_vertices) | (counts[:, 1] > max_faces)
    edges, faces, counts = (x.reshape(*batch, *x.shape[1:]) for x in (edges, faces, counts))
    return edges, faces, counts, overflow.reshape(batch)


def grid_vertices(resolution: Resolution) -> Float[Array, "g 3"]:
    """Grid vertices in [-1, 1]^3, x slowest: vertex (i, j, k) has index (i (ny + 1) + j) (nz + 1) + k."""
    axes = [np.linspace(-1.0, 1.0, size, dtype=np.float32) for size in _grid_shape("grid_vertices", resolution)]
    return jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3))


def edge_interpolate(values: Float[Array, "*b m 2 c"], sdf: Float[Array, "*b m 2"]) -> Float[Array, "*b m c"]:
    """Values at the zero crossing of each edge, from those at its two ends: v0 + (v1 - v0) s0 / (s0 - s1).

    Differentiable in values and sdf. An edge whose ends have the same sign, such as a padded lane, or differ by less
    than 1e-18 or by 1e30 and more, gives the values' mean and no gradient to the SDF.
    """
    s0, s1 = sdf[..., 0], sdf[..., 1]
    difference = jnp.abs(s0 - s1)  # its square must be a number of float32 too
    crossing = ((s0 > 0) != (s1 > 0)) & (difference >= 1e-18) & (difference < 1e30)
    # Replaced before the division: a NaN would pass through a `where` after it into the gradient.
    s0, s1 = jnp.where(crossing, s0, 1), jnp.where(crossing, s1, -1)
    first, second = values[..., 0, :], values[..., 1, :]
    return first + (s0 / (s0 - s1))[..., None] * (second - first)


def _grid_shape(operation: str, resolution: Any) -> tuple[int, int, int]:
    """Vertices a side."""
    cells = tuple(resolution) if isinstance(resolution, Sequence | np.ndarray) else (resolution,) * 3
    if len(cells) != 3:
        raise ValueError(f"{operation}: resolution={resolution}: need cells a side, one integer or three")
    for n in cells:
        check_integer(operation, "resolution", n, 1, MAX_INT32)
    nx, ny, nz = (int(n) + 1 for n in cells)
    if DIRECTIONS * nx * ny * nz > MAX_INT32:
        raise ValueError(f"{operation}: resolution={resolution}: more edges than int32 can number; use fewer cells")
    return nx, ny, nz


def _leading(shape: tuple[int, ...], grid: tuple[int, int, int]) -> tuple[int, ...]:
    if shape[-1:] == (math.prod(grid),):
        return shape[:-1]
    if shape[-3:] == grid:
        return shape[:-3]
    raise ValueError(
        f"marching_tetrahedra: sdf has shape {shape}; it must end in [{math.prod(grid)}] or {list(grid)}, "
        "one value for each grid vertex (cells + 1 a side)"
    )
