"""Stage 1: the guiding geometry model, a mesh through deep marching tetrahedra (eqs. 1 to 4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from gphm_jax.geometry import to_world
from gphm_jax.nets import (
    MLP,
    HeadNetworks,
    NetworkConfig,
    bounded_code,
    expression_weight,
    positional_encoding,
)
from gphm_jax.types import Batch, Mesh, Pose, pytree
from gphm_kernels import edge_interpolate, grid_vertices, marching_tetrahedra


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuideConfig:
    """The canonical grid and the motion regions. Lengths in head lengths."""

    resolution: tuple[int, int, int] = (
        128,
        128,
        128,
    )  # cells a side; the paper's "256" grid counts half cells
    box_min: tuple[float, float, float] = (-1.3, -1.35, -1.1)
    box_max: tuple[float, float, float] = (1.3, 0.95, 1.1)
    max_vertices: int = 200_000
    max_faces: int = 400_000
    region_near: float = 0.15  # lambda_exp is 1 up to here from the nearest landmark (HHAvatar)
    region_far: float = 0.25  # and 0 from here on


@pytree
class GuideOutput:
    """What one pass of the guide yields for the losses and the run's log."""

    mesh: Mesh  # world space, [i f]
    canonical: Float[Array, "i f n 3"]  # V' before the head pose, for the Laplacian
    landmarks: Float[Array, "i f k 3"]  # deformed and posed like vertices
    displacement: Float[Array, "i f"]  # mean squared f_exp and f_nf displacement
    vertex_count: Int[Array, ""]
    overflow: Bool[Array, ""]


class Subjects(nnx.Module):
    """One row per identity (z_id) and one per frame (correction of the tracked head pose)."""

    def __init__(self, num_identities: int, num_frames: int, identity_dim: int, *, rngs: nnx.Rngs):
        scale = 0.1 / np.sqrt(identity_dim)  # NPHM's initial spread
        self.codes = nnx.Param(scale * jax.random.normal(rngs.params(), (num_identities, identity_dim)))
        self.pose_corrections = nnx.Param(jnp.zeros((num_frames, 6)))

    def identity_code(self, rows: Int[Array, "i"]) -> Float[Array, "i z"]:
        """z_id of the given identities, in the unit ball."""
        return bounded_code(self.codes[...][rows])

    def pose(self, tracked: Pose, rows: Int[Array, "i f"]) -> Pose:
        """The tracked poses with their learnt corrections (small: added to axis-angle and translation)."""
        delta = self.pose_corrections[...][rows]
        return Pose(
            rotation=tracked.rotation + delta[..., :3],
            translation=tracked.translation + delta[..., 3:],
            scale=tracked.scale,
        )


class GuideModel(nnx.Module):
    """f_mean over a canonical grid, the shared networks, and the tables of codes and poses."""

    def __init__(
        self,
        config: GuideConfig,
        networks: NetworkConfig,
        *,
        num_identities: int,
        num_frames: int,
        landmarks: Float[Array, "k 3"],
        face_size: int,
        nonface_size: int,
        rngs: nnx.Rngs,
    ):
        self.config = config
        self.octaves = networks.octaves
        self.mean = MLP(
            3 + 6 * networks.octaves,
            1 + networks.feature_dim,
            width=networks.width,
            depth=networks.depth,
            rngs=rngs,
        )
        self.networks = HeadNetworks(networks, face_size=face_size, nonface_size=nonface_size, rngs=rngs)
        self.subjects = Subjects(num_identities, num_frames, networks.identity_dim, rngs=rngs)
        self.landmarks = nnx.Param(jnp.asarray(landmarks))

    def field(self, points: Float[Array, "*b 3"]) -> tuple[Float[Array, "*b"], Float[Array, "*b d"]]:
        """(s, gamma) = f_mean(x): signed distance (positive inside) and point feature (eq. 1)."""
        center = (np.asarray(self.config.box_max) + np.asarray(self.config.box_min)) / 2
        half = np.max(np.asarray(self.config.box_max) - np.asarray(self.config.box_min)) / 2
        normalized = (points.reshape(-1, 3) - jnp.asarray(center, points.dtype)[None]) / half
        out = self.mean(positional_encoding(normalized, self.octaves)).reshape(*points.shape[:-1], -1)
        return out[..., 0], out[..., 1:]

    def grid(self) -> Float[Array, "g 3"]:
        """The grid's vertices in canonical space."""
        low, high = jnp.asarray(self.config.box_min), jnp.asarray(self.config.box_max)
        return low[None] + (high - low)[None] * (grid_vertices(self.config.resolution) + 1.0) / 2.0

    def cell(self) -> Float[np.ndarray, "3"]:
        """The grid's spacing."""
        return (np.asarray(self.config.box_max) - np.asarray(self.config.box_min)) / self.config.resolution

    def mean_surface(
        self,
    ) -> tuple[Float[Array, "n 3"], Float[Array, "n d"], Int[Array, "m 3"], Int[Array, "2"], Bool[Array, ""]]:
        """(V0, Gamma, F) = DMTet(s, gamma), with the counts of vertices and faces and the overflow flag.

        The SDF is evaluated without gradient over the grid, and again with gradient at the two ends of
        the crossing edges only: the same gradient, since nothing else depends on the SDF.
        """
        grid = self.grid()
        inside = jax.lax.stop_gradient(self.field(grid)[0])
        edges, faces, counts, overflow = marching_tetrahedra(
            inside, self.config.resolution, self.config.max_vertices, self.config.max_faces
        )
        ends = grid[edges]  # [n 2 3]
        sdf, feature = self.field(ends)
        # Rounding can undo a crossing between the two passes; such an edge gives its middle, like a padded lane.
        return edge_interpolate(ends, sdf), edge_interpolate(feature, sdf), faces, counts, overflow

    def posed_landmarks(self, batch: Batch) -> Float[Array, "i f k 3"]:
        """The landmarks alone of what `__call__` gives: in world space, with no surface drawn for them."""
        landmarks, nets = self.landmarks[...], self.networks
        h = nets.inject(self.field(landmarks)[1], self.subjects.identity_code(batch.identity))
        neutral = landmarks[None] + nets.identity(h)
        # lambda_exp is 1 at a landmark by definition.
        expression = nets.expression(h[:, None], nets.expression_encoder(batch.face_image))
        return to_world(neutral[:, None] + expression, self.subjects.pose(batch.pose, batch.frame))

    def moved(
        self, points: Float[Array, "n 3"], batch: Batch
    ) -> tuple[Float[Array, "i n 3"], Float[Array, "i f n 3"]]:
        """Canonical points of the mean head on each identity, and how f_nf moves them there (lambda_nf = 1)."""
        nets = self.networks
        h = nets.inject(self.field(points)[1], self.subjects.identity_code(batch.identity))
        motion = nets.motion(h[:, None], nets.motion_encoder(batch.nonface_image))
        return points[None] + nets.identity(h), motion

    def __call__(self, batch: Batch) -> GuideOutput:
        """Meshes of a batch in world space (eqs. 1 to 4)."""
        vertices, features, faces, counts, overflow = self.mean_surface()
        n = vertices.shape[0]
        landmarks = self.landmarks[...]
        points = jnp.concatenate([vertices, landmarks])
        features = jnp.concatenate([features, self.field(landmarks)[1]])
        nets = self.networks
        h = nets.inject(features, self.subjects.identity_code(batch.identity))
        neutral = points[None] + nets.identity(h)
        weight = expression_weight(points, landmarks, self.config.region_near, self.config.region_far)
        expression, motion = nets.displacement(
            h, nets.expression_encoder(batch.face_image), nets.motion_encoder(batch.nonface_image), weight
        )
        canonical = neutral[:, None] + expression + motion
        world = to_world(canonical, self.subjects.pose(batch.pose, batch.frame))
        used = (jnp.arange(n + landmarks.shape[0]) < counts[0]) | (jnp.arange(n + landmarks.shape[0]) >= n)
        squared = jnp.sum(expression**2 + motion**2, axis=-1)
        # A vertex past the surface's own is referenced by no face; it must not dilute the mean either.
        displacement = jnp.sum(squared * used[None, None], axis=-1) / jnp.sum(used)
        color = nets.color(h[:, :n])
        return GuideOutput(
            mesh=Mesh(vertices=world[..., :n, :], features=color[:, None], faces=faces),
            canonical=canonical[..., :n, :],
            landmarks=world[..., n:, :],
            displacement=displacement,
            vertex_count=counts[0],
            overflow=overflow,
        )


def ellipsoid_sdf(
    points: Float[Array, "*b 3"], center: Float[Array, "3"], radii: Float[Array, "3"]
) -> Float[Array, "*b"]:
    """An ellipsoid's first-order signed distance, positive inside: k0 (1 - k0) / k1 (Quilez)."""
    lead = (1,) * (points.ndim - 1)
    radii = radii.reshape(*lead, 3)
    scaled = (points - center.reshape(*lead, 3)) / radii
    k0 = jnp.linalg.norm(scaled, axis=-1)
    k1 = jnp.linalg.norm(scaled / radii, axis=-1)
    return k0 * (1.0 - k0) / jnp.maximum(k1, 1e-6)  # both vanish at the centre


def head_ellipsoid(
    landmarks: Float[np.ndarray, "k 3"],
) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
    """Centre and radii of an ellipsoid as large as a head, from its canonical landmarks.

    They lie on its front: it reaches up and back from them, by proportions of the face's width and height.
    """
    low, high = landmarks.min(axis=0), landmarks.max(axis=0)
    width, height, _ = high - low
    center = (low + high) / 2 + np.array([0.0, 0.26 * height, -0.5 * width])
    radii = np.array([0.56 * width, 0.87 * height, 0.71 * width])
    return center.astype(np.float32), radii.astype(np.float32)


def ellipsoid_mesh(
    center: Float[np.ndarray, "3"], radii: Float[np.ndarray, "3"], *, subdivisions: int = 5
) -> tuple[Float[np.ndarray, "v 3"], Int[np.ndarray, "m 3"]]:
    """A subdivided icosahedron stretched to an ellipsoid: (vertices, faces)."""
    import trimesh  # here: it takes a fifth of the time to import an avatar, which needs no mesh

    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    return np.asarray(sphere.vertices) * radii + center, np.asarray(sphere.faces)
