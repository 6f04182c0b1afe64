"""Losses against the textbook formula on small inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_jax import losses
from gphm_jax.errors import InputError
from gphm_jax.types import Camera, Pose


def test_photometric_is_a_weighted_mean():
    image = jnp.zeros((2, 2, 2, 3))
    truth = image.at[0, 0, 0].set(0.6)
    ones = jnp.ones((2, 2, 2))
    np.testing.assert_allclose(losses.photometric(image, truth, ones), [0.15, 0.0], atol=1e-6)
    np.testing.assert_allclose(
        losses.photometric(image, truth, ones.at[:, 0, 0].set(3.0)), [0.3, 0.0], atol=1e-6
    )


def test_silhouette_is_one_minus_iou():
    a = jnp.array([[[1.0, 1.0, 0.0, 0.0]]])
    b = jnp.array([[[0.0, 1.0, 1.0, 0.0]]])
    np.testing.assert_allclose(losses.silhouette(a, b), [2 / 3], rtol=1e-6)
    np.testing.assert_allclose(losses.silhouette(a, a), [0.0], atol=1e-6)
    empty = jnp.zeros((1, 2, 2))
    assert float(losses.silhouette(empty, empty)[0]) == 0.0
    assert bool(jnp.all(jnp.isfinite(jax.grad(lambda x: losses.silhouette(x, empty)[0])(empty))))


def test_laplacian_matches_a_neighbour_loop():
    rng = np.random.default_rng(0)
    vertices = rng.normal(size=(2, 7, 3)).astype(np.float32)
    # A closed octahedron on vertices 0..5; vertex 6 is unused and the last faces are padding.
    faces = np.array(
        [
            [0, 2, 4],
            [2, 1, 4],
            [1, 3, 4],
            [3, 0, 4],
            [2, 0, 5],
            [1, 2, 5],
            [3, 1, 5],
            [0, 3, 5],
            [0, 0, 0],
            [6, 6, 6],
        ],
        np.int32,
    )
    expected = []
    for v in vertices:
        values = []
        for n in range(6):
            neighbours = sorted({int(m) for face in faces[:8] if n in face for m in face} - {n})
            values.append(np.sum((v[neighbours].mean(axis=0) - v[n]) ** 2))
        expected.append(np.mean(values))
    np.testing.assert_allclose(
        losses.laplacian(jnp.asarray(vertices), jnp.asarray(faces)), expected, rtol=1e-5
    )


def test_landmark_distance():
    a = jnp.zeros((2, 3, 3))
    b = a.at[1, 0].set(jnp.array([3.0, 4.0, 0.0]))
    np.testing.assert_allclose(losses.landmark_distance(a, b), [0.0, 25 / 3], rtol=1e-6)


def test_landmarks_of_the_eyes_count_eye_gain_times():
    a = jnp.zeros((1, 68, 3))
    for point, expected in ((35, 1.0), (36, 4.0), (47, 4.0), (48, 1.0)):
        b = a.at[0, point, 1].set(1.0)
        np.testing.assert_allclose(losses.landmark_distance(a, b, eye_gain=4.0), [expected / 68], rtol=1e-6)
    fewer = losses.landmark_distance(a[:, :66], b[:, :66], eye_gain=4.0)  # mouth corners left out
    np.testing.assert_allclose(fewer, [1 / 66], rtol=1e-6)


def test_eyes_of_other_landmark_sets_are_an_error():
    a = jnp.zeros((1, 51, 3))
    with pytest.raises(InputError, match=r"eye_gain=4.0: .* are 51: set it to 1"):
        losses.landmark_distance(a, a, eye_gain=4.0)


def _camera(side: float) -> Camera:
    """Five units along +z (side = 1) or -z (side = -1), looking at the origin."""
    matrix = np.diag([side, -1.0, -side, 1.0])
    matrix[2, 3] = 5.0
    return Camera(
        world_to_camera=jnp.asarray(matrix, jnp.float32)[None],
        intrinsics=jnp.array([[[100.0, 0, 32], [0, 100.0, 32], [0, 0, 1]]]),
    )


def _at_rest() -> Pose:
    return Pose(rotation=jnp.zeros((1, 3)), translation=jnp.zeros((1, 3)), scale=jnp.ones(1))


def test_face_weight_marks_the_box_from_the_front_only():
    landmarks = jnp.array([[[-0.5, -0.5, 0.0], [0.5, 0.5, 0.0]]])
    pose = _at_rest()
    front = losses.face_weight(landmarks, _camera(1.0), pose, height=64, width=64, gain=5.0)[0]
    # Landmarks project to 22 and 42; a tenth of 20 pixels is added on each side.
    expected = np.ones((64, 64), np.float32)
    expected[20:44, 20:44] = 5.0
    np.testing.assert_array_equal(front, expected)
    behind = losses.face_weight(landmarks, _camera(-1.0), pose, height=64, width=64, gain=5.0)[0]
    np.testing.assert_array_equal(behind, 1.0)


def _face_with_closed_eyes() -> jnp.ndarray:
    landmarks = jnp.zeros((1, 68, 3)).at[0, :2, :2].set(jnp.array([[-0.5, -0.5], [0.5, 0.5]]))
    for eye, x in ((slice(36, 42), -0.25), (slice(42, 48), 0.25)):  # closed: a line of 4 pixels at row 27
        corners = jnp.stack([jnp.linspace(x - 0.1, x + 0.1, 6), jnp.full(6, 0.25), jnp.zeros(6)], axis=-1)
        landmarks = landmarks.at[0, eye].set(corners)
    return landmarks


def _weight(landmarks: jnp.ndarray, side: float = 1.0) -> jnp.ndarray:
    gains = {"gain": 5.0, "eye_gain": 3.0}
    return losses.face_weight(landmarks, _camera(side), _at_rest(), height=64, width=64, **gains)[0]


def test_face_weight_marks_the_eyes_by_their_width():
    landmarks = _face_with_closed_eyes()
    expected = np.ones((64, 64), np.float32)
    expected[20:44, 20:44] = 5.0
    # From 25 to 29 and 35 to 39 along x, grown by 0.3 of 4 pixels: pixels 24 to 29 and 34 to 39.
    expected[26:28, 24:30] = expected[26:28, 34:40] = 15.0
    np.testing.assert_array_equal(_weight(landmarks), expected)
    # A head that lies on its side: -y of the world is down the picture.
    rolled = jnp.stack([-landmarks[..., 1], -landmarks[..., 0], landmarks[..., 2]], axis=-1)
    np.testing.assert_array_equal(_weight(rolled), expected.T)
    np.testing.assert_array_equal(_weight(landmarks, side=-1.0), 1.0)


def test_crop_takes_each_corner():
    image = jnp.arange(2 * 5 * 6 * 1, dtype=jnp.float32).reshape(2, 5, 6, 1)
    out = losses.crop(image, jnp.array([[0, 1], [2, 3]]), 3)
    np.testing.assert_array_equal(out[0], image[0, 0:3, 1:4])
    np.testing.assert_array_equal(out[1], image[1, 2:5, 3:6])


def test_recorded_pixels_are_whole():
    boxes = np.float32([[[0, 0, 8, 6]], [[1.5, 0, 6, 4.9]]])
    seen = np.asarray(losses.recorded_pixels(boxes, height=6, width=8))
    assert seen.shape == (2, 1, 6, 8) and seen[0].all()
    wanted = np.zeros((6, 8))
    wanted[:4, 2:6] = 1
    np.testing.assert_array_equal(seen[1, 0], wanted)


def test_a_weighted_mean_of_no_pixels_is_nothing():
    values, weight = jnp.arange(8.0).reshape(2, 2, 2), jnp.zeros((2, 2, 2)).at[0, 1].set(3.0)
    np.testing.assert_array_equal(losses.weighted_mean(values, weight), [2.5, 0.0])
    assert np.isfinite(jax.grad(lambda x: losses.weighted_mean(x, weight).sum())(values)).all()
