"""The scenes that `bench.py` draws: a head of splats, a head of triangles, a signed distance field."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import trimesh
from jaxtyping import Float

from gphm_kernels.dmtet import grid_vertices

_DISTANCE = 5.0  # of the camera, head lengths
_RADII = np.array([0.75, 1.0, 0.85])


@dataclasses.dataclass(frozen=True)
class SplatScene:
    """A shell of thin discs before a camera; `arrays` as `splat` takes them, by name."""

    arrays: dict[str, jax.Array]
    size: int  # pixels a side

    @property
    def shape(self) -> str:
        """In words."""
        splats, channels = self.arrays["features"].shape
        return f"{splats:,} splats, {self.size}x{self.size}, {channels} channels"


def head(splats: int = 100_000, *, size: int = 512, channels: int = 32, seed: int = 0) -> SplatScene:
    """An ellipsoid with the look of a head: two fifths of the picture wide, covered alike at any number and size."""
    rng = np.random.default_rng(seed)
    sphere = _fibonacci_sphere(splats)
    # 1.3 pixels of 512 for 100,000 splats; fewer are larger, and cover as much.
    spread = 1.3 * _DISTANCE / 1024.0 * (100_000 / splats) ** 0.5
    camera = np.eye(4)
    camera[2, 3] = _DISTANCE
    arrays = {
        "means": sphere * _RADII + 0.01 * rng.standard_normal((splats, 3)),
        "quats": _turns_of_z(sphere / _RADII),
        "scales": spread * np.exp(0.4 * rng.standard_normal((splats, 3))) * [1.0, 1.0, 0.3],
        "opacities": 1.0 / (1.0 + np.exp(-1.5 * rng.standard_normal(splats))),
        "features": rng.random((splats, channels)),
        "world_to_camera": camera,
        "intrinsics": [[2.0 * size, 0.0, size / 2], [0.0, 2.0 * size, size / 2], [0.0, 0.0, 1.0]],
    }
    return SplatScene({name: jnp.asarray(x, jnp.float32) for name, x in arrays.items()}, size)


@dataclasses.dataclass(frozen=True)
class MeshScene:
    """A closed mesh in clip space with attributes."""

    clip_positions: Float[jax.Array, "v 4"]
    faces: jax.Array
    attributes: Float[jax.Array, "v c"]
    size: int

    @property
    def shape(self) -> str:
        """In words."""
        return f"{len(self.faces):,} faces, {self.size}x{self.size}, {self.attributes.shape[1]} channels"


def mesh(resolution: int = 158, *, size: int = 512, channels: int = 32, seed: int = 0) -> MeshScene:
    """An ellipsoid of about 4 `resolution`^2 triangles (the default: 100,000) that fills most of the picture."""
    ball = trimesh.creation.uv_sphere(count=[resolution, resolution])
    positions = np.concatenate([ball.vertices * [0.65, 0.9, 0.5], np.ones((len(ball.vertices), 1))], axis=1)
    attributes = np.random.default_rng(seed).random((len(positions), channels))
    return MeshScene(
        clip_positions=jnp.asarray(positions, jnp.float32),
        faces=jnp.asarray(ball.faces, jnp.int32),
        attributes=jnp.asarray(attributes, jnp.float32),
        size=size,
    )


def ellipsoid_field(resolution: int) -> Float[jax.Array, "g"]:
    """An ellipsoid's implicit function on the grid of `marching_tetrahedra`, positive inside."""
    scaled = np.asarray(grid_vertices(resolution)) / (0.7 * _RADII)
    return jnp.asarray(1.0 - np.linalg.norm(scaled, axis=1), jnp.float32)


def _fibonacci_sphere(count: int) -> Float[np.ndarray, "n 3"]:
    index = np.arange(count) + 0.5
    polar, azimuth = np.arccos(1.0 - 2.0 * index / count), np.pi * (1.0 + 5.0**0.5) * index
    return np.stack([np.cos(azimuth) * np.sin(polar), np.cos(polar), np.sin(azimuth) * np.sin(polar)], axis=1)


def _turns_of_z(normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 4"]:
    """Quaternions (wxyz) that turn +z to each normal by the shortest way."""
    x, y, z = (normals / np.linalg.norm(normals, axis=1, keepdims=True)).T
    quats = np.stack([1.0 + z, -y, x, np.zeros_like(x)], axis=1)
    quats[z < -1.0 + 1e-9] = [0.0, 1.0, 0.0, 0.0]  # straight back: any half turn
    return quats / np.linalg.norm(quats, axis=1, keepdims=True)
