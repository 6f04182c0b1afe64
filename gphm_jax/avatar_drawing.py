"""The compiled programs of an avatar: encode a picture, move the splats, draw them.

Static arguments say what is drawn and by which model; each combination, and each shape of leading axes, compiles once.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax.avatar_model import AvatarModel
from gphm_jax.types import Camera, Pose, Render, Splats, pytree


class Structure:
    """The static half of a model, as a key of compiled programs that is hashed once and not at every picture."""

    def __init__(self, graphdef: Any):
        self.graphdef = graphdef
        self._hash = hash(graphdef)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Structure) and self.graphdef == other.graphdef)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """What a compiled program draws."""

    height: int
    width: int
    refine: bool
    backend: str


@pytree
class Drive:
    """What moves an avatar; pose and motion have the leading axes of the expression, or none."""

    expression: Float[Array, "*b z"]
    motion: Float[Array, "*#b z"]
    pose: Pose

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        return self.expression.shape[:-1]

    def arguments(self) -> tuple[Array, Array, Pose]:
        """Expression, motion and pose as the model takes them, with the leading axes as one of frames [1 f]."""
        pose = Pose(
            rotation=_frames(self.pose.rotation, self.batch, 1),
            translation=_frames(self.pose.translation, self.batch, 1),
            scale=_frames(self.pose.scale, self.batch, 0),
        )
        return _frames(self.expression, self.batch, 1), _frames(self.motion, self.batch, 1), pose


_ZEROS: Any = np.zeros(3, np.float32)  # of NumPy: importing this module starts no backend
_ONE: Any = np.ones((), np.float32)
REST = Pose(rotation=_ZEROS, translation=_ZEROS, scale=_ONE)


@functools.partial(jax.jit, static_argnums=(0, 1))
def encode_images(structure: Structure, expression: bool, state: Any, images: Array) -> Array:
    networks = nnx.merge(structure.graphdef, state).networks
    return (networks.expression_encoder if expression else networks.motion_encoder)(images)


@functools.partial(jax.jit, static_argnums=(0, 1))
def draw_picture(structure: Structure, picture: Picture, state: Any, drive: Drive, camera: Camera) -> Render:
    model = nnx.merge(structure.graphdef, state)
    return _rendered(model, picture, model(*drive.arguments()), camera, drive.batch)


@functools.partial(jax.jit, static_argnums=(0, 1))
def look_at(structure: Structure, picture: Picture, state: Any, splats: Splats, camera: Camera) -> Render:
    batch = splats.opacities.shape[:-1]
    flat = jax.tree.map(lambda x: x.reshape(1, math.prod(batch), *x.shape[len(batch) :]), splats)
    return _rendered(nnx.merge(structure.graphdef, state), picture, flat, camera, batch)


def _rendered(
    model: AvatarModel, picture: Picture, splats: Splats, camera: Camera, batch: tuple[int, ...]
) -> Render:
    """The picture of splats [1 f], with the leading axes `batch`."""
    cameras = Camera(
        world_to_camera=_frames(camera.world_to_camera, batch, 2)[:, :, None],
        intrinsics=_frames(camera.intrinsics, batch, 2)[:, :, None],
    )
    drawn = model.render(
        splats,
        cameras,
        height=picture.height,
        width=picture.width,
        refine=picture.refine,
        backend=picture.backend,
    )
    shown = Render(features=drawn.coarse, alpha=drawn.alpha, fine=drawn.fine)
    return jax.tree.map(lambda x: x.reshape(*batch, *x.shape[3:]), shown)


@functools.partial(jax.jit, static_argnums=0)
def move_splats(structure: Structure, state: Any, drive: Drive) -> Splats:
    splats = nnx.merge(structure.graphdef, state)(*drive.arguments())
    return jax.tree.map(lambda x: x.reshape(*drive.batch, *x.shape[2:]), splats)


def _frames(x: Any, batch: tuple[int, ...], rank: int) -> Array:
    """An array whose last `rank` axes are its own, broadcast over the leading axes `batch`, as [1 f ...]."""
    x = jnp.asarray(x, jnp.float32)
    own = x.shape[x.ndim - rank :]
    return jnp.broadcast_to(x, (*batch, *own)).reshape(1, math.prod(batch), *own)
