"""From a browser's canvas to the picture that is drawn for it, and back."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.types import Camera

_WIDTHS = (1.0, 1.5, 2.0)  # long side over short: few shapes, as each is a program to compile
_MULTIPLE = 16  # pixels: the longer side's, so that near canvases have one shape
_LONGEST = 8  # long side over short of what is shown: the browser presses it into a canvas that is longer


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """Where a visitor looks from. Axes are OpenCV's, lengths head lengths."""

    position: Float[np.ndarray, "3"]
    camera_to_world: Float[np.ndarray, "3 3"]
    fov: float  # radians, of the canvas's shorter side
    canvas: tuple[int, int]  # height, width in pixels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """The first view."""

    position: Float[np.ndarray, "3"]
    target: Float[np.ndarray, "3"]  # what it turns about
    fov: float


def start(camera: Camera, size: int) -> Start:
    """An orbit that begins where a camera of square pictures stands, and has the middle of its picture in the middle.

    It turns about the point behind that middle which is nearest to the head's.
    """
    matrix, intrinsics = np.asarray(camera.world_to_camera), np.asarray(camera.intrinsics)
    middle = np.array([size / 2, size / 2, 1.0])
    ray = matrix[:3, :3].T @ np.linalg.solve(intrinsics, middle)
    ray /= np.linalg.norm(ray)
    position = -matrix[:3, :3].T @ matrix[:3, 3]
    target = position - (position @ ray) * ray
    return Start(
        position=position,
        target=target,
        fov=2 * math.atan(size / (2 * float(intrinsics[1, 1]))),
    )


def picture_size(canvas: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """(height, width) of the picture to draw for a canvas: its shorter side is `side`, the longer reaches as far as
    the canvas's or to the widest picture that is drawn. It is a `multiple`, as `side` must be.
    """
    height, width = canvas
    ratio = max(canvas) / max(1, min(canvas))
    widest = next((known for known in _WIDTHS if known >= ratio), _WIDTHS[-1])
    unit = math.lcm(_MULTIPLE, multiple)
    long = math.ceil(side * widest / unit) * unit
    return (side, long) if width >= height else (long, side)


def camera(view: View, size: tuple[int, int]) -> Camera:
    """The view's pinhole camera for a picture of `size` (height, width)."""
    matrix = np.eye(4)
    matrix[:3, :3] = view.camera_to_world.T
    matrix[:3, 3] = -view.camera_to_world.T @ view.position
    height, width = size
    focal = min(size) / (2 * math.tan(view.fov / 2))
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    moved, lens = jax.device_put((matrix.astype(np.float32), intrinsics.astype(np.float32)))
    return Camera(world_to_camera=moved, intrinsics=lens)


def fitted(
    picture: UInt8[np.ndarray, "h w 3"], canvas: tuple[int, int], fill: int
) -> UInt8[np.ndarray, "i j 3"]:
    """The picture cut, or continued with `fill`, to the canvas's shape, at the picture's own scale."""
    side, short = min(picture.shape[:2]), max(1, min(canvas), max(canvas) // _LONGEST)
    size = np.array([round(side * max(length, short) / short) for length in canvas])
    margin = np.maximum(0, np.ceil((size - picture.shape[:2]) / 2)).astype(int)
    whole = np.pad(picture, [(margin[0],) * 2, (margin[1],) * 2, (0, 0)], constant_values=fill)
    top, left = (whole.shape[:2] - size) // 2
    return whole[top : top + size[0], left : left + size[1]]
