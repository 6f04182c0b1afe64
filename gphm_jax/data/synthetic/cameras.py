"""Where the cameras stand: full circle, denser in front, and held-out ones well between them."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from gphm_jax.errors import InputError

DISTANCE = 7.0  # head lengths from the target
PICTURE_HEIGHT = 1.76  # head lengths: the head fills 57 % of it
TARGET = np.array([0.0, -0.13, 0.06])  # crown clear of the upper edge, shoulders above the lower one
HELD_OUT_ANGLE = 15.0  # degrees from every training camera, and from each other

_YAW_KNOTS = (0.0, 30.0, 60.0, 90.0, 130.0, 180.0)
_MOST_PER_RING = 24
_HELD_OUT_YAWS = (15.0, -15.0, 45.0, -45.0, 75.0, -75.0, 110.0, -110.0, 155.0, -155.0, 0.0, 30.0, -30.0)
_HELD_OUT_PITCHES = (-38.0, -30.0, -24.0, -18.0, -12.0, -8.0, 0.0, 8.0, 12.0, 18.0, 24.0, 30.0, 38.0)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One camera: OpenCV axes, intrinsics in pixels."""

    yaw: float  # degrees about the head, 0 in front, positive to the person's left
    pitch: float  # degrees above the horizon
    world_to_camera: Float[np.ndarray, "3 4"]
    intrinsics: Float[np.ndarray, "3 3"]

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """The camera's centre in the world."""
        return -self.world_to_camera[:, :3].T @ self.world_to_camera[:, 3]


def direction(yaw: float, pitch: float) -> Float[np.ndarray, "3"]:
    """Unit vector from the head to a camera at these angles (degrees)."""
    y, p = np.radians(yaw), np.radians(pitch)
    return np.array([np.sin(y) * np.cos(p), np.sin(p), np.cos(y) * np.cos(p)])


def look_at(eye: Float[np.ndarray, "3"], target: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 4"]:
    """World-to-camera 3x4 of a level camera at `eye` that looks at `target`."""
    forward = (target - eye) / np.linalg.norm(target - eye)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return np.concatenate([rotation, -rotation @ eye[:, None]], 1)


def intrinsics(size: int, focal: float) -> Float[np.ndarray, "3 3"]:
    """Square pinhole camera with the principal point in the middle."""
    return np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])


def place(yaw: float, pitch: float, size: int) -> View:
    """A camera on the sphere around the head, framing head and shoulders."""
    eye = TARGET + DISTANCE * direction(yaw, pitch)
    focal = size * DISTANCE / PICTURE_HEIGHT
    return View(
        yaw=yaw, pitch=pitch, world_to_camera=look_at(eye, TARGET), intrinsics=intrinsics(size, focal)
    )


def _ring(count: int) -> list[float]:
    """Yaws of one ring: 0, then pairs left and right, 180 last where the count is even."""
    yaws = [0.0]
    knots = np.linspace(0.0, 1.0, len(_YAW_KNOTS))
    for k in range(1, count):
        share = 2 * ((k + 1) // 2) / count
        yaw = float(np.interp(share, knots, _YAW_KNOTS))
        yaws.append(yaw if k % 2 else -yaw)
    return [180.0 if abs(yaw) > 180.0 - 1e-9 else round(yaw, 6) for yaw in yaws]


def training_angles(count: int) -> list[tuple[float, float]]:
    """(yaw, pitch) of the training cameras. Ten make 0, +-30, +-60, +-90, +-130, 180; pitch within 15."""
    if count < 1:
        raise InputError(f"--views={count}: at least one training view is needed")
    rings = -(-count // _MOST_PER_RING)
    angles = []
    for ring in range(rings):
        members = count // rings + (1 if ring < count % rings else 0)
        level = 0.0 if rings == 1 else np.interp(ring, [0, rings - 1], [-12.0, 12.0])
        for k, yaw in enumerate(_ring(members)):
            # One ring: an irregular but fixed up-and-down, so that neighbours differ in height.
            pitch = level if rings > 1 else 14.0 * np.sin(2.4 * k) * (k > 0)
            shift = 0.0 if ring == 0 else 360.0 / members * (ring / rings)
            angles.append((float((yaw + shift + 180.0) % 360.0 - 180.0) if shift else yaw, float(pitch)))
    return angles


def held_out_angles(training: list[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """(yaw, pitch) of cameras at `HELD_OUT_ANGLE` or more from all training cameras, front ones first.

    Raises `InputError` when the training cameras leave no room for so many.
    """
    candidates = np.array(
        [(yaw, pitch) for yaw in np.arange(-175.0, 180.1, 2.5) for pitch in _HELD_OUT_PITCHES]
    )
    towards = np.stack([direction(*angles) for angles in candidates])
    limit = np.cos(np.radians(HELD_OUT_ANGLE))
    free = (towards @ np.stack([direction(*angles) for angles in training]).T).max(1) <= limit
    chosen: list[tuple[float, float]] = []
    for k in range(count):
        if not free.any():
            raise InputError(
                f"--heldout_views={count}: only {k} cameras fit {HELD_OUT_ANGLE:g} degrees away from "
                f"{len(training)} training views: ask for fewer of either"
            )
        # Off the horizon where it costs nothing, never so high that the crown hides the face.
        yaw, pitch = candidates[:, 0], candidates[:, 1]
        cost = np.abs(yaw - _HELD_OUT_YAWS[k % len(_HELD_OUT_YAWS)]) + np.abs(np.abs(pitch) - 8.0)
        cost += np.where(np.abs(pitch) > 20.0, 8.0, 0.0) + np.where(
            np.sign(pitch) == (-1) ** (k // 2), 0.0, 1.0
        )
        best = int(np.argmin(np.where(free, cost, np.inf)))
        chosen.append((float(yaw[best]), float(pitch[best])))
        free &= towards @ towards[best] <= limit
    return chosen
