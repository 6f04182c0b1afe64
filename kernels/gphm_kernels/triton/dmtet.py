"""Marching tetrahedra on the GPU: three kernels that a launcher runs, and one short sum between them."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from gphm_kernels.reference.dmtet import cube_table
from gphm_kernels.triton.launches import KERNELS, Launcher, run


def marching_tetrahedra(
    sdf: Float[Array, "b x y z"], *, max_vertices: int, max_faces: int, launch: Launcher
) -> tuple[Int[Array, "b m 2"], Int[Array, "b k 3"], Int[Array, "b 2"]]:
    """`reference.dmtet.marching_tetrahedra` by the kernels that `launch` runs; float32."""
    batch, *shape = sdf.shape
    vertices = math.prod(shape)
    sizes = (*shape, max_vertices, max_faces)
    grid = _blocks("tetrahedra_count", vertices), batch
    cube_faces, cube_edges = (jnp.asarray(table) for table in cube_table())

    counts = _zeros(batch, grid[0], 2)
    (counts,) = run(launch, "tetrahedra_count", (sdf, cube_faces), (counts,), tuple(shape), grid)
    ends = jnp.cumsum(counts, 1)

    edges, origins, ranks = _zeros(batch, max_vertices, 2), _zeros(batch, max_faces, 2), _zeros(batch, vertices)
    placed = edges, origins, ranks, jnp.zeros((batch, vertices), jnp.int8)
    edges, *found = run(launch, "tetrahedra_place", (sdf, cube_faces, ends), placed, sizes, grid)

    inputs, faces = (cube_edges, ends[:, -1], *found), _zeros(batch, max_faces, 3)
    grid = _blocks("tetrahedra_connect", max_faces), batch
    (faces,) = run(launch, "tetrahedra_connect", inputs, (faces,), sizes, grid)
    return edges, faces, ends[:, -1]


def _zeros(*shape: int) -> Int[Array, "..."]:
    return jnp.zeros(shape, jnp.int32)


def _blocks(kernel: str, number: int) -> int:
    return -(-number // KERNELS[kernel].constants["BLOCK"])
