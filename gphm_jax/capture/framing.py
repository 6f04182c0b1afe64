"""Which square of a picture is kept: head and shoulders, as large as the synthetic heads show them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.capture.tracking import TrackedFrame, TrackedView
from gphm_jax.data import images
from gphm_jax.data.synthetic.cameras import PICTURE_HEIGHT, TARGET

_HEAD_RADIUS = 0.6  # head lengths around TARGET that stay in the picture wherever the head goes
_MOST_GROWTH = 1.6  # how far the square widens for that


@dataclasses.dataclass(frozen=True, kw_only=True)
class Square:
    """A square of a picture, in whole pixels; it may leave the picture."""

    left: int
    top: int
    side: int

    def crop(self, image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
        """The square resized to `size`, white where it leaves the picture."""
        return images.fit_square(images.crop_box(image, (self.left, self.top, self.side)), size, fill=255)

    def crop_mask(self, mask: UInt8[np.ndarray, "h w"], size: int) -> UInt8[np.ndarray, "size size"]:
        """The square of a mask, zero where it leaves the picture."""
        return images.fit_square(
            images.crop_box(mask, (self.left, self.top, self.side), fill=0), size, fill=0
        )

    def recorded(self, shape: tuple[int, int], size: int) -> Float[np.ndarray, "4"]:
        """Left, top, right, bottom of what the resized square shows of a picture of (height, width) = `shape`.

        Without what enlarging mixes with the padding: half a pixel of the picture.
        """
        mixed = 0.5 if size > self.side else 0.0
        corners = np.array([[mixed, mixed], [shape[1] - mixed, shape[0] - mixed]])
        inside = [self.left >= 0, self.top >= 0], [self.left + self.side <= shape[1], self.top + self.side <= shape[0]]
        edges = np.array([[0.0, 0.0], [size, size]])
        return np.where(inside, edges, self.points(corners, size)).ravel()

    def intrinsics(self, intrinsics: Float[np.ndarray, "3 3"], size: int) -> Float[np.ndarray, "3 3"]:
        """The camera of the resized square."""
        moved = intrinsics.astype(np.float64).copy()
        moved[:2, 2] -= self.left, self.top
        return np.diag([size / self.side, size / self.side, 1.0]) @ moved

    def points(self, points: Float[np.ndarray, "k 2"], size: int) -> Float[np.ndarray, "k 2"]:
        """Pixels of the picture in the resized square."""
        return (points - np.array([self.left, self.top])) * (size / self.side)


def frame_view(frames: Sequence[TrackedFrame], view: str) -> Square:
    """One square for a view through a whole recording, so that its camera stands still."""
    places = [_place(frame, frame.views[view]) for frame in frames if view in frame.views]
    centres, lengths = np.array([place[0] for place in places]), np.array([place[1] for place in places])
    centre, side = np.median(centres, axis=0), PICTURE_HEIGHT * float(np.median(lengths))
    reach = np.abs(centres - centre).max(1) + _HEAD_RADIUS * lengths
    side = min(max(side, 2 * float(reach.max())), _MOST_GROWTH * side)
    whole = max(2, round(side))
    left, top = np.rint(centre - whole / 2).astype(int)
    return Square(left=int(left), top=int(top), side=whole)


def _place(frame: TrackedFrame, view: TrackedView) -> tuple[Float[np.ndarray, "2"], float]:
    """(where the framing's target is drawn, pixels a head length)."""
    target = cv2.Rodrigues(frame.rotation.reshape(3, 1))[0] @ TARGET + frame.translation
    local = view.world_to_camera[:, :3] @ target + view.world_to_camera[:, 3]
    depth = max(float(local[2]), 1e-3)
    return view.intrinsics[:2, :2] @ local[:2] / depth + view.intrinsics[:2, 2], float(
        view.intrinsics[0, 0] / depth
    )
