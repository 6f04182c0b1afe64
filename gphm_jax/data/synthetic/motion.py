"""Head pose, and how neck and shoulders follow it: the skull moves rigidly, the trunk nearly stays."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Motion:
    """One frame's motion, in canonical lengths. A head point x goes to the world as R x + translation."""

    rotation: Float[np.ndarray, "3"]  # axis-angle
    translation: Float[np.ndarray, "3"]
    nod: Float[np.ndarray, "3"]  # the translation beyond rotating about the neck
    shrug: Float[np.ndarray, "2"]  # left, right shoulder, upwards
    sway: Float[np.ndarray, "3"]  # axis-angle of the trunk about the chest


def rotation_matrix(axis_angle: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rodrigues' formula."""
    return cv2.Rodrigues(np.asarray(axis_angle, np.float64))[0]


def still(pivot: Float[np.ndarray, "3"]) -> Motion:
    """No motion at all."""
    del pivot
    zero = np.zeros(3)
    return Motion(rotation=zero, translation=zero, nod=zero, shrug=np.zeros(2), sway=zero)


def compose(
    pivot: Float[np.ndarray, "3"],
    *,
    yaw: float,
    pitch: float,
    roll: float,
    nod: Float[np.ndarray, "3"],
    shrug: Float[np.ndarray, "2"],
    sway: Float[np.ndarray, "3"],
) -> Motion:
    """A head turned (radians; yaw to the person's left, pitch down, roll to the left) about the neck."""
    turned = rotation_matrix(np.array([0, yaw, 0])) @ rotation_matrix(np.array([pitch, 0, 0]))
    turned = turned @ rotation_matrix(np.array([0, 0, roll]))
    axis_angle = cv2.Rodrigues(turned)[0][:, 0]
    return Motion(
        rotation=axis_angle,
        translation=pivot - turned @ pivot + nod,
        nod=np.asarray(nod, np.float64),
        shrug=np.asarray(shrug, np.float64),
        sway=np.asarray(sway, np.float64),
    )


def sample(
    pivot: Float[np.ndarray, "3"], *, seed: int, identity: int, frame: int, amount: float = 1.0
) -> Motion:
    """A random pose of one frame; `amount` scales it. Frame 0 is still."""
    if frame == 0:
        return still(pivot)
    rng = np.random.default_rng([seed, 21, identity, frame])
    yaw, pitch, roll = amount * np.radians(rng.uniform(-1, 1, 3) * (20.0, 12.0, 8.0))
    shrug = rng.uniform(0.0, 0.06) * (rng.random() < 0.5) + rng.uniform(-0.012, 0.012, 2)
    return compose(
        pivot,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        nod=amount * rng.normal(0, 0.008, 3),
        shrug=amount * shrug,
        sway=amount * np.radians(rng.uniform(-1, 1, 3) * (1.5, 4.0, 2.0)),
    )


def _rotate(points: np.ndarray, axis_angles: np.ndarray) -> np.ndarray:
    """Rotates every point by its own axis-angle vector (Rodrigues, vectorised)."""
    angle = np.linalg.norm(axis_angles, axis=1, keepdims=True)
    axis = axis_angles / np.maximum(angle, 1e-12)  # the axis is free where the angle is zero
    cos, sin = np.cos(angle), np.sin(angle)
    along = (axis * points).sum(1, keepdims=True)
    return points * cos + np.cross(axis, points) * sin + axis * along * (1.0 - cos)


def pose_vertices(
    vertices: Float[np.ndarray, "n 3"],
    head_weight: Float[np.ndarray, "n"],
    motion: Motion,
    *,
    pivot: Float[np.ndarray, "3"],
    chest: Float[np.ndarray, "3"],
) -> Float[np.ndarray, "n 3"]:
    """Canonical to world: weight 1 gets exactly R x + T, weight 0 only the trunk's own small motion.

    In between, the rotation angle is scaled by the weight (not the matrices blended), so the neck twists
    like a column and keeps its girth.
    """
    points, weight = vertices.astype(np.float64), head_weight.astype(np.float64)[:, None]
    moved = _rotate(points - pivot, weight * motion.rotation) + pivot + weight * motion.nod
    trunk = (points - chest) @ rotation_matrix(motion.sway).T + chest - points
    width = np.clip((np.abs(points[:, 0]) - 0.12) / 0.5, 0.0, 1.0)
    lift = np.where(points[:, 0] > 0, motion.shrug[0], motion.shrug[1]) * width * width * (3 - 2 * width)
    trunk[:, 1] += lift
    return (moved + (1.0 - weight) * trunk).astype(np.float32)


def between(first: Motion, second: Motion, weight: float, pivot: Float[np.ndarray, "3"]) -> Motion:
    """A motion on the way from one to another (weight 0 to 1)."""

    def mix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (1.0 - weight) * a + weight * b

    rotation, nod = mix(first.rotation, second.rotation), mix(first.nod, second.nod)
    return Motion(
        rotation=rotation,
        translation=pivot - rotation_matrix(rotation) @ pivot + nod,
        nod=nod,
        shrug=mix(first.shrug, second.shrug),
        sway=mix(first.sway, second.sway),
    )
