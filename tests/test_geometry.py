"""Rotations, poses and projection against SciPy, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gphm_jax import geometry
from gphm_jax.types import Camera, Pose


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(size=(8, 3)), 1e-5 * rng.normal(size=(4, 3)), np.zeros((1, 3))])


def test_rotation_matrix_matches_scipy(vectors):
    with jax.enable_x64(True):
        ours = geometry.axis_angle_to_matrix(jnp.asarray(vectors))
    np.testing.assert_allclose(ours, Rotation.from_rotvec(vectors).as_matrix(), atol=1e-12)


def test_quaternion_matches_scipy(vectors):
    with jax.enable_x64(True):
        ours = np.asarray(geometry.axis_angle_to_quaternion(jnp.asarray(vectors)))
    theirs = Rotation.from_rotvec(vectors).as_quat()[:, [3, 0, 1, 2]]
    sign = np.sign(np.sum(ours * theirs, axis=-1, keepdims=True))
    np.testing.assert_allclose(ours, theirs * sign, atol=1e-12)


def test_quaternion_product_composes_rotations(vectors):
    a, b = vectors[:6], vectors[6:12]
    with jax.enable_x64(True):
        product = geometry.quaternion_multiply(
            *(geometry.axis_angle_to_quaternion(jnp.asarray(x)) for x in (a, b))
        )
    both = (Rotation.from_rotvec(a) * Rotation.from_rotvec(b)).as_matrix()
    np.testing.assert_allclose(
        Rotation.from_quat(np.asarray(product)[:, [1, 2, 3, 0]]).as_matrix(), both, atol=1e-12
    )


def test_rotation_gradient_is_finite_and_right_at_zero():
    with jax.enable_x64(True):
        jacobian = jax.jacobian(geometry.axis_angle_to_matrix)(jnp.zeros(3))
    # d R / d v at 0 are the generators of so(3).
    np.testing.assert_allclose(jacobian[:, :, 2], [[0, -1, 0], [1, 0, 0], [0, 0, 0]], atol=1e-12)


def test_to_world_scales_and_turns_before_it_moves():
    points = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
    turn, shift = np.array([0.3, -0.5, 0.2]), np.array([0.1, 2.0, -1.0])
    pose = Pose(rotation=jnp.asarray(turn), translation=jnp.asarray(shift), scale=jnp.array(1.7))
    expected = 1.7 * Rotation.from_rotvec(turn).apply(points) + shift
    np.testing.assert_allclose(geometry.to_world(jnp.asarray(points), pose), expected, atol=1e-5)


def test_pixels_and_clip_space_agree():
    camera = Camera(
        world_to_camera=jnp.array([[1.0, 0, 0, 0.1], [0, -1, 0, 0.2], [0, 0, -1, 5.0], [0, 0, 0, 1]]),
        intrinsics=jnp.array([[300.0, 0, 60], [0, 310, 50], [0, 0, 1]]),
    )
    points = jnp.asarray(np.random.default_rng(2).normal(size=(6, 3)) * 0.3, jnp.float32)
    pixels = geometry.to_pixels(points, camera)
    clip = geometry.to_clip(points, camera, width=128, height=96)
    x = (clip[:, 0] / clip[:, 3] + 1) / 2 * 128
    y = (1 - clip[:, 1] / clip[:, 3]) / 2 * 96
    np.testing.assert_allclose(np.stack([x, y], -1), pixels, rtol=1e-4)
    depth = geometry.to_camera(points, camera)[:, 2]
    np.testing.assert_allclose(clip[:, 3], depth, rtol=1e-6)
    assert bool(jnp.all(jnp.abs(clip[:, 2]) < clip[:, 3]))


def test_near_and_far_planes_map_to_the_cube():
    camera = Camera(world_to_camera=jnp.eye(4), intrinsics=jnp.eye(3))
    points = jnp.array([[0.0, 0, 0.1], [0, 0, 100.0]])
    clip = geometry.to_clip(points, camera, width=1, height=1, near=0.1, far=100.0)
    np.testing.assert_allclose(clip[:, 2] / clip[:, 3], [-1.0, 1.0], atol=1e-5)
