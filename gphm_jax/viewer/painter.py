"""Draws one head: its splats are moved when the expression changes, and splatted for each view of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from gphm_jax.avatar import Avatar
from gphm_jax.files import to_bytes
from gphm_jax.types import Camera, Pose, Splats

Mode = Literal["fine", "coarse", "points", "alpha"]
MODES: tuple[Mode, ...] = ("fine", "coarse", "points", "alpha")

_POINT_RADIUS = 0.003  # head lengths: dots that stay apart in a picture's pixels
_VISIBLE = 0.05  # opacity of a splat that is worth a dot


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Moment:
    """What the head does at one moment. None: the avatar's habit, or no head pose."""

    expression: Float[Array | np.ndarray, "z"]
    motion: Float[Array | np.ndarray, "z"] | None = None
    pose: Pose | None = None


class Painter:
    """Draws an avatar at any moment, by any camera, in any mode. One thread calls it."""

    def __init__(self, avatar: Avatar) -> None:
        self.avatar = avatar
        self._last: tuple[Moment, Splats] | None = None

    def paint(
        self, moment: Moment, camera: Camera, *, size: tuple[int, int], mode: Mode
    ) -> UInt8[np.ndarray, "h w 3"]:
        """The picture (height, width) over white; alpha is white on black."""
        splats = self._moved(moment)
        if mode == "points":
            splats = _dots(splats)
        seen = self.avatar.look(splats, camera=camera, size=size, refine=mode == "fine")
        if mode == "alpha":
            return np.repeat(to_bytes(seen.alpha)[..., None], 3, axis=-1)
        return to_bytes(seen.fine)

    def _moved(self, moment: Moment) -> Splats:
        if self._last is None or self._last[0] is not moment:
            splats = self.avatar.splats(moment.expression, pose=moment.pose, motion=moment.motion)
            self._last = moment, splats
        return self._last[1]


def _dots(splats: Splats) -> Splats:
    """A small round dot in the place of each splat that can be seen."""
    return dataclasses.replace(
        splats,
        scales=jnp.full_like(splats.scales, _POINT_RADIUS),
        opacities=jnp.where(splats.opacities > _VISIBLE, 1.0, 0.0),
    )
