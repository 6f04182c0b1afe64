"""The Gaussian model: its point set, its motion regions, and how head pose moves it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from gphm_jax.gaussians import GaussianConfig, points_from_surface, regional_displacement, sample_surface
from gphm_jax.guide import ellipsoid_mesh
from tests.tiny_models import CENTER, RADII, batch, gaussian_model, landmarks


@pytest.fixture(scope="module")
def model():
    return gaussian_model()


def test_surface_samples_lie_on_it_evenly_and_carry_features():
    vertices, faces = ellipsoid_mesh(np.zeros(3), np.ones(3), subdivisions=4)
    points, features = sample_surface(
        vertices, faces, 2.0 * vertices, density=np.ones(len(vertices)), count=500, seed=0
    )
    assert points.shape == (500, 3)
    np.testing.assert_allclose(features, 2.0 * points, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(points, axis=1), 1.0, atol=0.01)
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    # Random samples of a sphere have a coefficient of variation near 0.52; blue noise stays far below.
    assert nearest.std() / nearest.mean() < 0.2


def test_surface_samples_follow_the_density():
    vertices, faces = ellipsoid_mesh(np.zeros(3), np.ones(3), subdivisions=4)
    density = np.where(vertices[:, 2] > 0, 4.0, 1.0)
    points, _ = sample_surface(vertices, faces, vertices, density=density, count=1000, seed=0)
    front = points[:, 2] > 0
    assert 3.5 < front.sum() / (~front).sum() < 4.5
    nearest = cKDTree(points).query(points, k=2)[0][:, 1]
    for half in (front, ~front):
        assert nearest[half].std() / nearest[half].mean() < 0.25
    np.testing.assert_allclose(nearest[~front].mean() / nearest[front].mean(), 2.0, rtol=0.1)


def test_points_start_as_the_transfer_asks():
    vertices, faces = ellipsoid_mesh(CENTER, RADII, subdivisions=2)
    points, regions = points_from_surface(
        vertices, faces, vertices, landmarks=landmarks(), landmark_features=landmarks(),
        config=GaussianConfig(), region=(0.15, 0.25), seed=0,
    )  # fmt: skip
    assert points.positions.shape == vertices.shape
    np.testing.assert_allclose(points.features, points.positions, atol=1e-6)
    np.testing.assert_allclose(1 / (1 + np.exp(-np.asarray(points.opacity_logits))), 0.1, rtol=1e-5)
    distance = cKDTree(points.positions).query(points.positions, k=4)[0][:, 1:].mean(axis=1)
    np.testing.assert_allclose(np.exp(points.log_scales), np.repeat(distance[:, None], 3, 1), rtol=1e-4)
    weight = np.asarray(points.weight)
    assert np.all(np.diff(weight) <= 0)
    assert np.all(weight[: regions.expression_end] > 0) and np.all(weight[regions.expression_end :] == 0)
    assert np.all(weight[: regions.motion_start] == 1) and np.all(weight[regions.motion_start :] < 1)
    assert 0 < regions.motion_start < regions.expression_end < len(weight)


def test_regions_leave_out_only_zeros(model):
    codes = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 4)), jnp.float32)
    h = model.neutral(model.subjects.identity_code(jnp.arange(2))).features
    shift, squared = regional_displacement(
        model.networks, model.regions, h, model.weight[...], codes[0], codes[1]
    )
    weight = jnp.concatenate([model.weight[...], jnp.ones(5)])
    expression, motion = model.networks.displacement(h, codes[0], codes[1], weight)
    assert float(jnp.abs(expression).max()) > 1e-3 and float(jnp.abs(motion).max()) > 1e-3
    np.testing.assert_allclose(shift, expression + motion, atol=1e-6)
    np.testing.assert_allclose(
        squared, jnp.mean(jnp.sum(expression**2, -1), -1) + jnp.mean(jnp.sum(motion**2, -1), -1), rtol=1e-5
    )


def test_head_pose_moves_splats_rigidly(model):
    still = batch()
    zero = dataclasses.replace(
        still,
        pose=dataclasses.replace(still.pose, rotation=jnp.zeros((2, 2, 3)), translation=jnp.zeros((2, 2, 3))),
    )
    scaled = dataclasses.replace(still, pose=dataclasses.replace(still.pose, scale=jnp.full((2, 2), 2.0)))
    base, moved = model(zero), model(scaled)
    rotation = Rotation.from_rotvec(still.pose.rotation[1, 0]).as_matrix()
    expected = 2.0 * np.asarray(base.splats.means[1, 0]) @ rotation.T + np.asarray(
        still.pose.translation[1, 0]
    )
    np.testing.assert_allclose(moved.splats.means[1, 0], expected, atol=1e-5)
    np.testing.assert_allclose(moved.splats.scales, 2.0 * base.splats.scales, rtol=1e-5)
    lone = Rotation.from_quat(np.asarray(base.splats.quats[1, 0])[:, [1, 2, 3, 0]]).as_matrix()
    turned = Rotation.from_quat(np.asarray(moved.splats.quats[1, 0])[:, [1, 2, 3, 0]]).as_matrix()
    np.testing.assert_allclose(turned, rotation @ lone, atol=1e-5)
    # Landmarks are deformed and posed exactly like points.
    world = 2.0 * np.asarray(base.landmarks[1, 0]) @ rotation.T + np.asarray(still.pose.translation[1, 0])
    np.testing.assert_allclose(moved.landmarks[1, 0], world, atol=1e-5)
