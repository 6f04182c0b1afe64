"""Marching tetrahedra: topology, orientation, limits and gradients on surfaces that are known."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels import edge_interpolate, grid_vertices, marching_tetrahedra

RESOLUTION = (9, 8, 10)
LIMITS = (3000, 6000)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def extract(sdf, resolution=RESOLUTION, max_vertices=LIMITS[0], max_faces=LIMITS[1]):
    return marching_tetrahedra(sdf, resolution, max_vertices, max_faces)


def sphere(radius=0.63, center=(0.1, -0.05, 0.02), resolution=RESOLUTION):
    return radius - jnp.linalg.norm(grid_vertices(resolution) - jnp.array([center]), axis=-1)


def surface(sdf, resolution=RESOLUTION):
    """Vertices and faces without padding, NumPy."""
    edges, faces, counts, overflow = extract(sdf, resolution)
    assert not overflow and counts[0] > 0
    vertices = edge_interpolate(grid_vertices(resolution)[edges], sdf[edges])
    return np.asarray(vertices)[: counts[0]], np.asarray(faces)[: counts[1]]


def normals(vertices, faces):
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return np.cross(b - a, c - a)


def assert_closed(faces):
    """Each directed edge occurs once, and so does its reverse: watertight, manifold, consistently wound."""
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    unique, count = np.unique(directed, axis=0, return_counts=True)
    assert np.all(count == 1)
    assert {tuple(e) for e in unique} == {tuple(e[::-1]) for e in unique}
    return len(unique) // 2


def test_sphere_is_closed_with_outward_normals():
    vertices, faces = surface(sphere())
    edges = assert_closed(faces)
    assert len(np.unique(faces)) == len(vertices)  # every vertex is used
    assert len(vertices) - edges + len(faces) == 2
    center = np.array([0.1, -0.05, 0.02])
    assert np.all(np.sum(normals(vertices, faces) * (vertices[faces].mean(1) - center), -1) > 0)
    np.testing.assert_allclose(np.linalg.norm(vertices - center, axis=-1), 0.63, atol=0.03)
    volume = np.sum(vertices[faces[:, 0]] * normals(vertices, faces)) / 6
    np.testing.assert_allclose(volume, 4 / 3 * np.pi * 0.63**3, rtol=0.1)  # chords lie inside


def test_torus_has_one_handle():
    x, y, z = grid_vertices(20).T
    vertices, faces = surface(0.25 - jnp.hypot(jnp.hypot(x, y) - 0.55, z), 20)
    assert len(vertices) - assert_closed(faces) + len(faces) == 0


def test_random_signs_are_closed_inside_the_grid():
    """Every one of a cube's 256 sign patterns, next to every other: no table entry can be wrong unseen."""
    sdf = np.random.default_rng(0).normal(size=(14, 14, 14)).astype(np.float32)
    sdf[[0, -1]] = sdf[:, [0, -1]] = sdf[:, :, [0, -1]] = -1
    edges, faces, counts, overflow = extract(jnp.asarray(sdf), 13, 20_000, 40_000)
    assert not overflow
    faces = np.asarray(faces)[: counts[1]]
    assert_closed(faces)
    assert len(np.unique(faces)) == counts[0]
    first, second = sdf.reshape(-1)[np.asarray(edges)[: counts[0]]].T
    assert np.all((first > 0) != (second > 0))


def test_zero_counts_as_outside():
    sdf = jnp.where(sphere() > 0.2, 1.0, 0.0)
    vertices, faces = surface(sdf)
    inner = np.asarray(grid_vertices(RESOLUTION))[np.asarray(sdf) == 0]
    # With s0 = 1 and s1 = 0 the crossing is the outer end itself.
    assert np.all(np.min(np.linalg.norm(vertices[:, None] - inner[None], axis=-1), 1) < 1e-6)
    assert_closed(faces)
    assert extract(jnp.zeros(sdf.shape))[2].tolist() == [0, 0]


@pytest.mark.parametrize("value", [-1.0, 1.0, np.nan])
def test_no_crossing_gives_nothing(value):
    edges, faces, counts, overflow = extract(jnp.full(grid_vertices(RESOLUTION).shape[0], value))
    assert counts.tolist() == [0, 0] and not overflow
    assert not np.any(edges) and not np.any(faces)


@pytest.mark.parametrize(("max_vertices", "max_faces"), [(100, 6000), (3000, 100)])
def test_overflow_is_flagged(max_vertices, max_faces):
    _, _, needed, _ = extract(sphere())
    edges, faces, counts, overflow = extract(sphere(), RESOLUTION, max_vertices, max_faces)
    assert overflow
    assert counts.tolist() == needed.tolist()  # what the caller must make room for
    assert edges.shape == (max_vertices, 2) and faces.shape == (max_faces, 3)
    assert np.max(faces) < max_vertices


def test_exact_capacity_is_no_overflow():
    _, _, counts, _ = extract(sphere())
    *_, overflow = extract(sphere(), RESOLUTION, int(counts[0]), int(counts[1]))
    assert not overflow


def test_padded_lanes_are_inert():
    sdf = sphere()
    edges, faces, counts, _ = extract(sdf)
    assert 0 < counts[0] < LIMITS[0] and 0 < counts[1] < LIMITS[1]
    assert not np.any(edges[counts[0] :]) and not np.any(faces[counts[1] :])
    grid = grid_vertices(RESOLUTION)

    def total(grid, sdf, used):
        return jnp.sum(jnp.where(used[:, None], edge_interpolate(grid[edges], sdf[edges]), 0) ** 2)

    padded = jnp.arange(LIMITS[0]) >= counts[0]
    d_grid, d_sdf = jax.grad(total, (0, 1))(grid, sdf, padded)
    assert not np.any(d_sdf) and np.all(np.isfinite(d_grid))
    d_grid, d_sdf = jax.grad(total, (0, 1))(grid, sdf, ~padded)
    assert np.all(np.isfinite(d_sdf)) and np.any(d_sdf) and np.all(np.isfinite(d_grid))


def test_edge_without_crossing_gives_its_middle():
    values, sdf = jnp.array([[[0.0], [2.0]]]), jnp.array([[0.3, 0.3]])  # equal: the formula would divide by zero
    np.testing.assert_array_equal(edge_interpolate(values, sdf), [[1.0]])
    d_values, d_sdf = jax.grad(lambda v, s: edge_interpolate(v, s).sum(), (0, 1))(values, sdf)
    np.testing.assert_array_equal(d_values, [[[0.5], [0.5]]])
    np.testing.assert_array_equal(d_sdf, [[0.0, 0.0]])


def test_gradient_to_sdf_and_values_matches_finite_differences(float64):
    grid = jnp.asarray(grid_vertices(RESOLUTION), jnp.float64)
    rng = np.random.default_rng(1)
    sdf = jnp.asarray(sphere(), jnp.float64)
    values = jnp.concatenate([grid, jnp.asarray(rng.normal(size=(grid.shape[0], 2)))], -1)
    weight = jnp.asarray(rng.normal(size=(LIMITS[0], 5)))

    @jax.jit
    def loss(values, sdf):
        edges, _, counts, _ = marching_tetrahedra(sdf, RESOLUTION, *LIMITS)
        used = (jnp.arange(LIMITS[0]) < counts[0])[:, None]
        return jnp.sum(jnp.where(used, edge_interpolate(values[edges], sdf[edges]) * weight, 0))

    d_values, d_sdf = jax.grad(loss, (0, 1))(values, sdf)
    assert float(jnp.min(jnp.abs(sdf))) > 1e-4  # no sign flips on the way
    step = 1e-7
    for _ in range(3):
        v, s = jnp.asarray(rng.normal(size=values.shape)), jnp.asarray(rng.normal(size=sdf.shape))
        expected = (loss(values + step * v, sdf) - loss(values - step * v, sdf)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(d_values * v), expected, rtol=1e-6)
        expected = (loss(values, sdf + step * s) - loss(values, sdf - step * s)) / (2 * step)
        np.testing.assert_allclose(jnp.sum(d_sdf * s), expected, rtol=1e-6)


def test_batch_and_grid_shape_agree_with_single():
    first, second = sphere(), sphere(0.4, (0.0, 0.2, 0.1))
    shape = tuple(n + 1 for n in RESOLUTION)
    batch = extract(jnp.stack([first, second]).reshape(2, 1, *shape))
    assert batch[0].shape == (2, 1, LIMITS[0], 2) and batch[3].shape == (2, 1)
    for index, sdf in enumerate((first, second)):
        for whole, single in zip(batch, extract(sdf), strict=True):
            np.testing.assert_array_equal(whole[index, 0], single)


def test_grid_vertices_span_the_cube():
    grid = np.asarray(grid_vertices((2, 1, 3)))
    assert grid.shape == (24, 3)
    np.testing.assert_allclose(grid[0], [-1, -1, -1])
    np.testing.assert_allclose(grid[(1 * 2 + 1) * 4 + 2], [0, 1, 1 / 3], atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "resolution", "limits", "message"),
    [
        ((100,), RESOLUTION, LIMITS, r"sdf has shape \(100,\)"),
        ((8,), 0, LIMITS, "resolution=0"),
        ((8,), 700, LIMITS, "fewer cells"),
        ((8,), 1, (0, 10), "max_vertices=0"),
        ((8,), 1, (10, 0), "max_faces=0"),
    ],
)
def test_wrong_arguments_are_named(shape, resolution, limits, message):
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(marching_tetrahedra)(jnp.zeros(shape), resolution, *limits)
