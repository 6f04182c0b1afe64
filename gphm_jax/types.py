"""Shapes, axes and units of everything that passes between modules.

Canonical space: right-handed, +y up, +z out of the face, origin between the ears, head length (chin to
crown) = 1. World = canonical after head pose. Cameras: OpenCV (x right, y down, z forward), pixel
intrinsics, pixel centres at +0.5. Quaternions are wxyz. Images are float32 in [0, 1], channels last,
on a white background; masks and alpha in [0, 1].

A training batch is hierarchical: `i` identities x `f` frames (expressions) x `v` views. The identity
networks run once per identity, the expression networks once per frame, the renderer once per image.
Single images are i = B, f = v = 1; the guide's groups of four views are f = 1, v = 4.
Letters in shapes: i, f, v as above; n points; k landmarks; d feature width; c rendered channels.
"""

from __future__ import annotations

import dataclasses
from typing import TypeVar, dataclass_transform

import jax
from jaxtyping import Array, Float, Int

NUM_CHANNELS = 32  # rendered feature channels; 0..2 are RGB

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def pytree(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that JAX sees as a pytree of all its fields."""
    return jax.tree_util.register_dataclass(dataclasses.dataclass(frozen=True, kw_only=True)(cls))


@pytree
class Camera:
    """A pinhole camera."""

    world_to_camera: Float[Array, "*b 4 4"]
    intrinsics: Float[Array, "*b 3 3"]


@pytree
class Pose:
    """Canonical to world: x_world = scale * R x + t."""

    rotation: Float[Array, "*b 3"]  # axis-angle, radians
    translation: Float[Array, "*b 3"]  # head lengths
    scale: Float[Array, "*b"]


@pytree
class Batch:
    """What one training step sees. Index arrays address the code and pose tables of the state."""

    identity: Int[Array, "i"]  # row of z_id
    frame: Int[Array, "i f"]  # row of the head-pose table
    camera: Camera  # [i f v]
    image: Float[Array, "i f v h w 3"]
    mask: Float[Array, "i f v h w"]
    recorded: Float[Array, "i f v 4"]  # left, top, right, bottom in pixels: beyond, the pictures are padding
    pose: Pose  # [i f], as tracked
    landmarks: Float[Array, "i f k 3"]  # world space
    face_image: Float[Array, "i f s s 3"]  # input of E_exp: any face image with this frame's expression
    nonface_image: Float[Array, "i f t t 3"]  # input of E_nf: a view of the frame, face box blacked out


@pytree
class Splats:
    """Gaussians in world space, activated."""

    means: Float[Array, "*b n 3"]
    quats: Float[Array, "*b n 4"]
    scales: Float[Array, "*b n 3"]
    opacities: Float[Array, "*b n"]
    features: Float[Array, "*b n c"]


@pytree
class Mesh:
    """Triangles in world space; rows past the surface's own are degenerate and draw nothing."""

    vertices: Float[Array, "*b n 3"]
    features: Float[Array, "*b n c"]
    faces: Int[Array, "m 3"]


@pytree
class Render:
    """A picture before (`features`, `alpha`) and after (`fine`) the refine network."""

    features: Float[Array, "*b h w c"]  # over white: the background is 1 in every channel
    alpha: Float[Array, "*b h w"]
    fine: Float[Array, "*b h w 3"]

    @property
    def coarse(self) -> Float[Array, "*b h w 3"]:
        """The first three channels: RGB before refinement."""
        return self.features[..., :3]
