"""Differentiable kernels for JAX: Gaussian splatting, mesh rasterization, marching tetrahedra, point MLPs."""

from gphm_kernels.dmtet import edge_interpolate, grid_vertices, marching_tetrahedra
from gphm_kernels.mesh import antialias, interpolate, rasterize_mesh
from gphm_kernels.mlp import point_mlp
from gphm_kernels.splat import splat

__all__ = [
    "antialias",
    "edge_interpolate",
    "grid_vertices",
    "interpolate",
    "marching_tetrahedra",
    "point_mlp",
    "rasterize_mesh",
    "splat",
]
