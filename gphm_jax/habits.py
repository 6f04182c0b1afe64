"""What a head does when it is not told, taken from the frames that its model learnt from."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_jax.avatar import Habits
from gphm_jax.data.layout import Frame, Selection, rotation_matrix, view_intrinsics
from gphm_jax.fitting import FrameCodes
from gphm_jax.types import Camera


def habits_of(codes: FrameCodes, items: Sequence[Selection], size: int) -> Habits:
    """The most usual codes of the selected frames, and the camera that a face looks into most directly.

    `size` is that of the pictures, in pixels a side.
    """
    rows = np.array([item.frame.row for item in items])
    pairs = [(item.frame, view) for item in items for view in item.views]
    frame, view = max(pairs, key=lambda pair: pair[0].facing[pair[1]])
    return Habits(
        expression=_most_central(codes.expression[rows]),
        motion=_most_central(codes.motion[rows]),
        camera=_canonical_camera(frame, view, size),
    )


def _most_central(codes: Float[Array, "n z"]) -> Float[Array, "z"]:
    return codes[jnp.argmin(jnp.sum((codes - jnp.mean(codes, axis=0, keepdims=True)) ** 2, axis=-1))]


def _canonical_camera(frame: Frame, view: int, size: int) -> Camera:
    """A frame's camera as the head sees it: the same picture when the head has no pose."""
    matrix = frame.world_to_camera[view].astype(np.float64)
    moved = np.eye(4)
    moved[:3, :3] = matrix[:3, :3] @ rotation_matrix(frame.rotation)
    # Camera coordinates over the pose's scale: the projection does not change.
    moved[:3, 3] = (matrix[:3, :3] @ frame.translation + matrix[:3, 3]) / frame.scale
    return Camera(
        world_to_camera=jnp.asarray(moved, jnp.float32),
        intrinsics=jnp.asarray(view_intrinsics(frame, view, size), jnp.float32),
    )
