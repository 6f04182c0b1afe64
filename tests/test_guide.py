"""The guide: its surface, the gradient of the sparse second evaluation, and eq. 3."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import trimesh
from flax import nnx

from gphm_jax.geometry import to_world
from gphm_jax.guide import ellipsoid_mesh, ellipsoid_sdf, head_ellipsoid
from gphm_jax.guide_start import initialize_codes
from gphm_jax.losses import landmark_distance
from gphm_jax.types import Pose
from tests.tiny_models import CENTER, RADII, batch, guide_model


@pytest.fixture(scope="module")
def guide():
    return guide_model()


def test_ellipsoid_distance_is_signed_and_first_order():
    center, radii = jnp.zeros(3), jnp.array([0.5, 0.6, 0.4])
    points = jnp.array([[0.0, 0, 0.3], [0, 0, 0.5], [0.5, 0, 0], [0, 0.61, 0]])
    sdf = ellipsoid_sdf(points, center, radii)
    np.testing.assert_allclose(sdf, [0.1, -0.1, 0.0, -0.01], atol=3e-2)
    assert sdf[0] > 0 > sdf[1]


def test_first_surface_is_the_ellipsoid(guide):
    vertices, features, faces, counts, overflow = jax.device_get(nnx.jit(lambda m: m.mean_surface())(guide))
    assert not overflow and counts[0] > 100
    vertices, faces = vertices[: counts[0]], faces[: counts[1]]
    assert np.abs(np.linalg.norm((vertices - CENTER) / RADII, axis=1) - 1.0).max() < 0.1
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight and mesh.volume > 0  # faces wind outwards
    assert features.shape[0] == 1500


def test_vertex_gradient_equals_that_of_the_implicit_surface(guide):
    """At fixed topology dV0/ds follows from linear interpolation along the crossing edge, whatever the grid pass."""
    graphdef, params, rest = nnx.split(guide, nnx.PathContains("mean"), ...)

    def total(params):
        vertices, _, _, counts, _ = nnx.merge(graphdef, params, rest).mean_surface()
        used = jnp.arange(vertices.shape[0]) < counts[0]
        return jnp.sum(jnp.where(used[:, None], vertices**2, 0.0))

    gradient = jax.grad(total)(params)
    direction = jax.tree.map(lambda g: g / (1e-12 + jnp.linalg.norm(g)), gradient)
    slope = sum(
        jnp.sum(g * d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    step = 1e-4
    ahead, back = (total(optax.tree.add_scale(params, sign * step, direction)) for sign in (1, -1))
    numeric = float((ahead - back) / (2 * step))
    assert abs(float(slope)) > 1e-2
    # float32 sums of a thousand vertices, and now and then an edge that starts or stops crossing.
    assert abs(numeric - float(slope)) < 0.1 * abs(float(slope))


def test_guide_output_shapes_and_zero_displacement_at_start(guide):
    output = jax.jit(lambda b: guide(b))(batch())
    assert output.mesh.vertices.shape == (2, 2, 1500, 3)
    assert output.mesh.features.shape == (2, 1, 1500, 32)
    assert output.landmarks.shape == (2, 2, 5, 3)
    # f_exp and f_nf start with a zero last layer.
    np.testing.assert_array_equal(output.displacement, 0.0)
    assert int(output.vertex_count) > 100 and not bool(output.overflow)


def test_posed_landmarks_are_those_of_the_whole_guide():
    model = guide_model(sdf_steps=50)
    for seed, net in enumerate((model.networks.identity, model.networks.expression)):
        net.last.kernel[...] = 0.05 * jax.random.normal(jax.random.key(seed), net.last.kernel.shape)
    whole, alone = nnx.jit(lambda m, b: (m(b).landmarks, m.posed_landmarks(b)))(model, batch())
    np.testing.assert_allclose(alone, whole, atol=1e-6)


def test_codes_start_on_landmarks_and_poses_and_leave_the_surface():
    model = guide_model()
    sdf = ellipsoid_sdf(model.grid(), jnp.asarray(CENTER, jnp.float32), jnp.asarray(RADII, jnp.float32))
    data = batch()
    # Frames of one identity ask for different places, which only their face images can tell apart.
    goal = data.landmarks + 0.05 * jax.random.normal(jax.random.key(0), data.landmarks.shape)
    data = dataclasses.replace(data, landmarks=goal)
    rest = Pose(rotation=jnp.zeros((2, 3)), translation=0.1 * jnp.ones((2, 3)), scale=jnp.ones(2))
    points = jnp.array([[0.1, -0.58, 0.0], [0.0, -0.57, 0.15], [0.0, 0.6, 0.0], [0.0, 0.3, 0.43]])

    @nnx.jit
    def distances(model):
        """RMS from the landmarks; how far the lower points stray in the world, the upper ones in the head."""
        landmarks = jnp.sqrt(jnp.mean(landmark_distance(model.posed_landmarks(data), goal)))
        neutral, motion = model.moved(points, data)
        stray = to_world(neutral[:, None] + motion, data.pose) - to_world(neutral, rest)[:, None]
        return landmarks, jnp.sqrt(jnp.mean(stray[..., :2, :] ** 2)), jnp.sqrt(jnp.mean(motion[..., 2:, :] ** 2))

    before = [float(x) for x in distances(model)]
    errors = initialize_codes(model, sdf, rest, [data] * 300, optax.adam(4e-3), seed=0)
    landmarks, lower, upper = (float(x) for x in distances(model))
    assert landmarks < 0.3 * before[0] and lower < 0.3 * before[1] and upper < 0.3 * lower + 0.02
    assert float(errors.landmarks) < 0.3 * before[0]
    vertices, _, _, counts, _ = nnx.jit(lambda m: m.mean_surface())(model)
    used = np.asarray(vertices)[: int(counts[0])]
    assert np.abs(np.linalg.norm((used - CENTER) / RADII, axis=1) - 1.0).max() < 0.1


def test_the_head_ellipsoid_follows_the_landmarks():
    face = np.array([[-0.34, 0.1, 0.1], [0.34, 0.1, 0.1], [0.0, -0.41, 0.4], [0.0, 0.19, 0.42], [0.0, -0.1, 0.53]])
    center, radii = head_ellipsoid(face)
    inside = ellipsoid_sdf(jnp.asarray(face, jnp.float32), jnp.asarray(center), jnp.asarray(radii))
    assert np.abs(inside).max() < 0.15  # a face lies near its surface
    moved, larger = head_ellipsoid(2.0 * face + 3.0)
    np.testing.assert_allclose(moved, 2.0 * center + 3.0, atol=1e-5)
    np.testing.assert_allclose(larger, 2.0 * radii, atol=1e-6)


def test_ellipsoid_mesh_is_closed():
    vertices, faces = ellipsoid_mesh(np.array([0.1, 0.2, 0.3]), RADII, subdivisions=2)
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    assert mesh.is_watertight
    np.testing.assert_allclose(vertices.mean(axis=0), [0.1, 0.2, 0.3], atol=1e-6)
