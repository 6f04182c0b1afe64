"""Losses as values per image or per frame; `step` alone weights, averages and names them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from gphm_jax.errors import InputError
from gphm_jax.geometry import axis_angle_to_matrix, to_pixels
from gphm_jax.types import Camera, Pose

# The person's right and left eye among the 68 landmarks of iBUG 300-W, and among the 66 of Multiview-3DMM-Fitting,
# which leaves out mouth corners alone (48 and 54).
_RIGHT_EYE, _LEFT_EYE, _EYES = slice(36, 42), slice(42, 48), slice(36, 48)
_WITH_EYES = (66, 68)


def photometric(
    image: Float[Array, "*b h w 3"], truth: Float[Array, "*b h w 3"], weight: Float[Array, "*b h w"]
) -> Float[Array, "*b"]:
    """Mean absolute difference (eqs. 12, 14), weighted by pixel; weight 1 everywhere is the paper's."""
    return weighted_mean(jnp.mean(jnp.abs(image - truth), axis=-1), weight)


def weighted_mean(values: Float[Array, "*b h w"], weight: Float[Array, "*b h w"]) -> Float[Array, "*b"]:
    """The mean over an image's pixels; 0 where no pixel has weight."""
    total = jnp.sum(weight, axis=(-2, -1))
    return jnp.sum(values * weight, axis=(-2, -1)) / jnp.where(total > 0, total, 1.0)


def silhouette(alpha: Float[Array, "*b h w"], mask: Float[Array, "*b h w"]) -> Float[Array, "*b"]:
    """One minus the soft intersection over union of two masks in [0, 1] (eq. 13).

    Differentiable in both. Two empty masks count as a perfect match.
    """
    intersection = jnp.sum(alpha * mask, axis=(-2, -1))
    union = jnp.sum(alpha + mask - alpha * mask, axis=(-2, -1))
    empty = union <= 0.0
    return jnp.where(empty, 0.0, 1.0 - intersection / jnp.where(empty, 1.0, union))


def check_eyes(eye_gain: float, count: int, *, name: str = "eye_gain") -> None:
    """Raises `InputError`, with the argument's name, where eyes are to be weighed in an unknown set of landmarks."""
    if eye_gain != 1.0 and count not in _WITH_EYES:
        raise InputError(f"{name}={eye_gain}: it weighs eyes among 66 or 68 landmarks, these are {count}: set it to 1")


def landmark_distance(
    predicted: Float[Array, "*b k 3"], fitted: Float[Array, "*b k 3"], *, eye_gain: float = 1.0
) -> Float[Array, "*b"]:
    """Mean squared distance of deformed, posed landmarks to the fitted ones, world space (eq. 15).

    The squares of the eyes' landmarks count `eye_gain` times, and the mean grows by it; 1 is the paper's.
    """
    check_eyes(eye_gain, predicted.shape[-2])
    squared = jnp.sum((predicted - fitted) ** 2, axis=-1)
    if eye_gain != 1.0:
        squared = squared.at[..., _EYES].multiply(eye_gain)
    return jnp.mean(squared, axis=-1)


def laplacian(vertices: Float[Array, "*b n 3"], faces: Int[Array, "m 3"]) -> Float[Array, "*b"]:
    """Mean squared uniform Laplacian |mean of the neighbours - v|^2 over a mesh's vertices.

    Each interior edge is counted from both of its faces, hence equally; degenerate faces add nothing, and
    vertices without a neighbour are left out of the mean.
    """
    n = vertices.shape[-2]
    real = ((faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 2] != faces[:, 0]))[
        :, None
    ]
    flat = vertices.reshape(-1, n, 3)
    rows = jnp.moveaxis(flat, 0, 1).reshape(n, -1)  # one scatter for the whole batch
    corners = rows[faces]  # [m 3 b*3]
    others = (jnp.sum(corners, axis=1, keepdims=True) - corners) * real[..., None]
    total = jnp.zeros_like(rows).at[faces.reshape(-1)].add(others.reshape(-1, rows.shape[1]))
    count = jnp.zeros(n, rows.dtype).at[faces.reshape(-1)].add(jnp.repeat(2.0 * real[:, 0], 3))
    used = count > 0
    mean = total / jnp.where(used, count, 1.0)[:, None]
    squared = jnp.sum(((mean - rows) ** 2 * used[:, None]).reshape(n, -1, 3), axis=(0, 2))
    return (squared / jnp.maximum(jnp.sum(used), 1)).reshape(vertices.shape[:-2])


def face_weight(
    landmarks: Float[Array, "*b k 3"],
    camera: Camera,
    pose: Pose,
    *,
    height: int,
    width: int,
    gain: float,
    eye_gain: float = 1.0,
) -> Float[Array, "*b h w"]:
    """1, and `gain` inside the box of the projected landmarks grown by a tenth; in the eyes' boxes `gain * eye_gain`.

    1 everywhere in a view from which the face looks away by more than 78 degrees. The face covers a few per cent of a
    picture of the whole head, and the eyes a few per cent of the face; without this the loss hardly sees a mouth,
    and a blink not at all. No gradient reaches the boxes.
    """
    landmarks, camera, pose = jax.lax.stop_gradient((landmarks, camera, pose))
    check_eyes(eye_gain, landmarks.shape[-2])
    pixels = to_pixels(landmarks, camera)
    extent = jnp.ptp(pixels, axis=-2)
    weight = jnp.where(_around(pixels, 0.1 * extent, height=height, width=width), gain, 1.0)
    if eye_gain != 1.0:
        for eye in (pixels[..., _RIGHT_EYE, :], pixels[..., _LEFT_EYE, :]):
            # By its longer side: a closed eye's box has hardly a height, and the lid that must change, with its
            # lashes, lies above and below.
            margin = 0.3 * jnp.max(jnp.ptp(eye, axis=-2), axis=-1, keepdims=True)
            weight = jnp.where(_around(eye, margin, height=height, width=width), gain * eye_gain, weight)
    forward = axis_angle_to_matrix(pose.rotation)[..., :, 2]  # the face's direction in the world
    center = -jnp.einsum(
        "...ji,...j->...i", camera.world_to_camera[..., :3, :3], camera.world_to_camera[..., :3, 3]
    )
    to_eye = center - jnp.mean(landmarks, axis=-2)
    facing = jnp.sum(forward * to_eye, axis=-1) > 0.2 * jnp.linalg.norm(to_eye, axis=-1)  # within 78 degrees
    return jnp.where(facing[..., None, None], weight, 1.0)


def recorded_pixels(
    recorded: Float[Array | np.ndarray, "*b 4"], *, height: int, width: int
) -> Float[Array, "*b h w"]:
    """1 for pixels that lie wholly in the box (left, top, right, bottom, in pixels) of what a camera saw, else 0."""
    box = jnp.asarray(recorded)
    inside = _between(box[..., :2] + 0.5, box[..., 2:] - 0.5, height=height, width=width)
    return inside.astype(jnp.float32)


def _around(
    pixels: Float[Array, "*b k 2"], margin: Float[Array, "*b #2"], *, height: int, width: int
) -> Bool[Array, "*b h w"]:
    """Pixels whose centres lie in the box of some points, grown by a margin on each side."""
    low, high = jnp.min(pixels, axis=-2) - margin, jnp.max(pixels, axis=-2) + margin
    return _between(low, high, height=height, width=width)


def _between(
    low: Float[Array, "*b 2"], high: Float[Array, "*b 2"], *, height: int, width: int
) -> Bool[Array, "*b h w"]:
    """Pixels whose centres lie between two corners."""
    lead = (1,) * (low.ndim - 1)
    x, y = (jnp.arange(width) + 0.5).reshape(*lead, width), (jnp.arange(height) + 0.5).reshape(*lead, height)
    columns = (x >= low[..., 0, None]) & (x <= high[..., 0, None])
    rows = (y >= low[..., 1, None]) & (y <= high[..., 1, None])
    return rows[..., :, None] & columns[..., None, :]


def crop(image: Float[Array, "*b h w c"], corner: Int[Array, "*b 2"], size: int) -> Float[Array, "*b s s c"]:
    """A square of `size` pixels from each image; `corner` is its (row, column), clamped into the image."""
    flat = image.reshape(-1, *image.shape[-3:])

    def one(picture: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(picture, (start[0], start[1], 0), (size, size, picture.shape[-1]))

    return jax.vmap(one)(flat, corner.reshape(-1, 2)).reshape(*image.shape[:-3], size, size, image.shape[-1])
