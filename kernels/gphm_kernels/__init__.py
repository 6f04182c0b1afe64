"""Differentiable kernels for JAX: Gaussian splatting, mesh rasterization, deep marching tetrahedra."""

from gphm_kernels.dmtet import edge_interpolate, grid_vertices, marching_tetrahedra
from gphm_kernels.mesh import antialias, interpolate, rasterize_mesh
from gphm_kernels.splat import splat

__all__ = [
    "antialias",
    "edge_interpolate",
    "grid_vertices",
    "interpolate",
    "marching_tetrahedra",
    "rasterize_mesh",
    "splat",
]
