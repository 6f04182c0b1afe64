"""Rotations, rigid transforms and projection."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from gphm_jax.types import Camera, Pose


def axis_angle_to_matrix(axis_angle: Float[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """Rotation matrix of an axis-angle vector in radians (Rodrigues' formula).

    R = I + sin(t)/t K + (1 - cos(t))/t^2 K^2, with the series of both factors below t^2 = 1e-6, so that
    value and gradient are finite at zero.
    """
    squared = jnp.sum(axis_angle**2, axis=-1)
    small = squared < 1e-6
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))  # the unused branch must not divide by zero
    first = jnp.where(small, 1.0 - squared / 6.0, jnp.sin(angle) / angle)
    second = jnp.where(small, 0.5 - squared / 24.0, (1.0 - jnp.cos(angle)) / angle**2)
    x, y, z = axis_angle[..., 0], axis_angle[..., 1], axis_angle[..., 2]
    zero = jnp.zeros_like(x)
    skew = jnp.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*axis_angle.shape[:-1], 3, 3)
    identity = jnp.broadcast_to(jnp.eye(3, dtype=axis_angle.dtype), skew.shape)
    return identity + first[..., None, None] * skew + second[..., None, None] * (skew @ skew)


def axis_angle_to_quaternion(axis_angle: Float[Array, "*b 3"]) -> Float[Array, "*b 4"]:
    """Unit quaternion (wxyz) of an axis-angle vector: (cos(t/2), sin(t/2)/t * v); finite at zero."""
    squared = jnp.sum(axis_angle**2, axis=-1)
    small = squared < 1e-6
    angle = jnp.sqrt(jnp.where(small, 1.0, squared))
    real = jnp.where(small, 1.0 - squared / 8.0, jnp.cos(0.5 * angle))
    factor = jnp.where(small, 0.5 - squared / 48.0, jnp.sin(0.5 * angle) / angle)
    return jnp.concatenate([real[..., None], factor[..., None] * axis_angle], axis=-1)


def quaternion_multiply(first: Float[Array, "*#b 4"], second: Float[Array, "*#b 4"]) -> Float[Array, "*b 4"]:
    """Hamilton product (wxyz): the rotation `second` followed by `first`."""
    w1, x1, y1, z1 = (first[..., i] for i in range(4))
    w2, x2, y2, z2 = (second[..., i] for i in range(4))
    return jnp.stack(
        [
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
        ],
        axis=-1,
    )


def to_world(points: Float[Array, "*#b n 3"], pose: Pose) -> Float[Array, "*b n 3"]:
    """Applies a head pose: x_world = S R x + T. The pose's batch axes match the points' leading ones."""
    rotation = axis_angle_to_matrix(pose.rotation) * pose.scale[..., None, None]
    return points @ jnp.swapaxes(rotation, -1, -2) + pose.translation[..., None, :]


def to_canonical(points: Float[Array, "*#b n 3"], pose: Pose) -> Float[Array, "*b n 3"]:
    """Takes a head pose off again: x = R^T (x_world - T) / S, the inverse of `to_world`."""
    rotation = axis_angle_to_matrix(pose.rotation) / pose.scale[..., None, None]
    return (points - pose.translation[..., None, :]) @ rotation


def refocused(camera: Camera, center: Float[Array, "*b 3"], log_factor: Float[Array, ""]) -> Camera:
    """A camera whose focal length is exp(`log_factor`) times as long, moved back so that `center` looks as large."""
    factor = jnp.exp(log_factor)
    matrix = camera.world_to_camera
    depth = jnp.sum(matrix[..., 2, :3] * center, axis=-1) + matrix[..., 2, 3]
    return Camera(
        world_to_camera=matrix.at[..., 2, 3].add((factor - 1.0) * depth),
        intrinsics=camera.intrinsics.at[..., :2, :2].multiply(factor),
    )


def to_camera(points: Float[Array, "*#b n 3"], camera: Camera) -> Float[Array, "*b n 3"]:
    """World to camera coordinates (OpenCV)."""
    matrix = camera.world_to_camera
    return points @ jnp.swapaxes(matrix[..., :3, :3], -1, -2) + matrix[..., None, :3, 3]


def to_pixels(points: Float[Array, "*#b n 3"], camera: Camera) -> Float[Array, "*b n 2"]:
    """World points to pixels; points at or behind the camera are clamped to depth 1e-3 and are meaningless."""
    local = to_camera(points, camera)
    homogeneous = local @ jnp.swapaxes(camera.intrinsics, -1, -2)
    return homogeneous[..., :2] / jnp.maximum(homogeneous[..., 2:], 1e-3)


def to_clip(
    points: Float[Array, "*#b n 3"],
    camera: Camera,
    *,
    width: int,
    height: int,
    near: float = 0.1,
    far: float = 100.0,
) -> Float[Array, "*b n 4"]:
    """World points to clip space for `rasterize_mesh`: visible where -w <= x, y, z <= w, +y at the top row.

    w is the camera depth, x = w (2 px / width - 1), y = w (1 - 2 py / height), z as in the usual
    perspective matrix with `near` and `far` in head lengths.
    """
    local = to_camera(points, camera)
    homogeneous = local @ jnp.swapaxes(camera.intrinsics, -1, -2)
    depth = local[..., 2]
    return jnp.stack(
        [
            2.0 * homogeneous[..., 0] / width - depth,
            depth - 2.0 * homogeneous[..., 1] / height,
            ((far + near) * depth - 2.0 * far * near) / (far - near),
            depth,
        ],
        axis=-1,
    )
