"""The native mesh rasterizer: against the portable reference and NumPy, at edges and ties, for any threads."""

import jax
import jax.numpy as jnp
import numpy as np

from gphm_kernels.backends import callback, native
from gphm_kernels.reference import mesh as reference_mesh

portable_rasterize = jax.jit(reference_mesh.rasterize_fwd, static_argnames=("width", "height"))


def make_mesh(seed: int) -> tuple[jax.Array, jax.Array]:
    """Random triangles, some crossing the camera plane or the view volume; degenerate ones and bad indices."""
    random = np.random.default_rng(seed)
    positions = random.uniform(-1.5, 1.5, (2, 40, 4)).astype(np.float32)
    positions[..., 2] *= 0.7
    positions[..., 3] = random.uniform(-0.3, 2, (2, 40))
    faces = random.integers(0, 40, (30, 3)).astype(np.int32)
    faces[3] = faces[3, 0]
    faces[5, 1], faces[6, 2] = 40, -1
    positions[:, 39] = np.nan
    return jnp.asarray(positions), jnp.asarray(faces)


def rasterize_slowly(positions: np.ndarray, faces: np.ndarray, width: int, height: int) -> np.ndarray:
    """Every face at every pixel, by its inverse matrix in float64; edges belong to nobody."""
    x, y = np.meshgrid((2 * np.arange(width) + 1) / width - 1, 1 - (2 * np.arange(height) + 1) / height)
    result, nearest = np.zeros((height, width, 4)), np.full((height, width), np.inf)
    for index, face in enumerate(faces):
        if face.min() < 0 or face.max() >= len(positions) or not np.isfinite(positions[face]).all():
            continue
        corners = positions[face].astype(np.float64)
        matrix = corners[:, [0, 1, 3]].T
        if abs(np.linalg.det(matrix)) < 1e-12:
            continue
        weights = np.einsum("ij,jhw->ihw", np.linalg.inv(matrix), np.stack([x, y, np.ones_like(x)]))
        depth = np.einsum("ihw,i->hw", weights, corners[:, 2])
        seen = (weights > 0).all(0) & (np.abs(depth) <= 1) & (depth < nearest)
        share = weights / np.where(seen, weights.sum(0), 1)
        nearest = np.where(seen, depth, nearest)
        values = np.stack([share[0], share[1], depth, np.full_like(depth, index + 1)], -1)
        result = np.where(seen[..., None], values, result)
    return result


def test_rasterize_matches_reference_and_numpy():
    positions, faces = make_mesh(14)
    actual = np.asarray(native.rasterize_fwd(positions, faces, width=45, height=31))
    expected = np.stack([rasterize_slowly(np.asarray(one), np.asarray(faces), 45, 31) for one in positions])
    assert (expected[..., 3] > 0).mean() > 0.3 and len(np.unique(expected[..., 3])) > 5
    np.testing.assert_array_equal(actual[..., 3], expected[..., 3])
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    portable = np.asarray(portable_rasterize(positions, faces, width=45, height=31))
    same = portable[..., 3] == actual[..., 3]
    assert same.mean() > 0.995  # the reference computes in float32: a centre very near an edge may differ
    np.testing.assert_allclose(actual[same], portable[same], rtol=1e-5, atol=1e-5)


def test_shared_edges_are_drawn_once():
    # A fan around a pixel centre, its spokes through other centres, and a square with its sides on centres.
    corners = np.array([[0, 0], [8, 0], [8, 8], [0, 8], [4, 4]]) + 0.5
    clip = np.stack([corners[:, 0] / 6 - 1, 1 - corners[:, 1] / 6, np.zeros(5), np.ones(5)], -1).astype(
        np.float32
    )
    faces = np.array([[0, 1, 4], [2, 1, 4], [2, 3, 4], [0, 3, 4]], np.int32)  # both orientations
    counts = sum(
        np.asarray(
            native.rasterize_fwd(jnp.asarray(clip[None]), jnp.asarray(face[None]), width=12, height=12)
        )[0, ..., 3]
        for face in faces
    )
    expected = np.zeros((12, 12))
    expected[:8, :8] = 1  # the top and left sides belong to the square, the bottom and right ones do not
    np.testing.assert_array_equal(counts, expected)


def test_nearest_face_wins_and_ties_go_to_the_lower_index():
    corners = np.array([[-1, -1], [3, -1], [-1, 3]], np.float32)
    clip = np.concatenate([np.c_[corners, np.full(3, z), np.ones(3)] for z in (0.5, 0.25)]).astype(np.float32)
    faces = np.array([[0, 1, 2], [4, 5, 3], [3, 4, 5]], np.int32)
    raster = np.asarray(native.rasterize_fwd(jnp.asarray(clip[None]), jnp.asarray(faces), width=5, height=6))
    np.testing.assert_array_equal(raster[..., 3], np.full((1, 6, 5), 2))
    np.testing.assert_allclose(raster[..., 2], 0.25, rtol=1e-6)


def test_raster_has_the_same_bits_for_any_number_of_threads():
    positions, faces = make_mesh(15)
    runs = [
        np.asarray(native.rasterize_fwd(positions, faces, width=64, height=50, num_threads=n, isa=isa))
        for n, isa in ((1, "auto"), (3, "auto"), (0, "auto"), (0, "base"))
    ]
    assert runs[0][..., 3].max() > 0
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])
    np.testing.assert_allclose(runs[0], runs[3], atol=1e-6)


def test_callback_equals_native():
    positions, faces = make_mesh(9)
    expected = native.rasterize_fwd(positions, faces, width=20, height=30)
    assert expected[..., 3].max() > 0
    np.testing.assert_array_equal(callback.rasterize_fwd(positions, faces, width=20, height=30), expected)
