"""Rasterization, interpolation and antialiasing of meshes: against a loop, finite differences and known pictures."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gphm_kernels import antialias, interpolate, rasterize_mesh, rows
from gphm_kernels.backends import native
from gphm_kernels.reference.silhouettes import opposite_vertices

WIDTH, HEIGHT = 23, 19


@functools.partial(jax.jit, static_argnames=("width", "height"))
def rasterize(clip, faces, width=WIDTH, height=HEIGHT):
    return rasterize_mesh(clip, faces, width=width, height=height, backend="xla")


@jax.jit
def smoothed(image, raster, clip, faces):
    return antialias(image, raster, clip, faces, backend="xla")


def octahedra(dtype=np.float32):
    """Two octahedra, one partly before the other, of strong perspective: clip positions [12, 4], faces [17, 3].

    The last face is padding.
    """
    points = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    cell = np.array([[x, y, z] if (x + y + z) % 2 else [y, x, z] for x in (0, 1) for y in (2, 3) for z in (4, 5)])
    angle = 0.4
    turn = np.array([[np.cos(angle), 0.3, np.sin(angle)], [0, 1, 0.2], [-np.sin(angle), 0.1, np.cos(angle)]])
    vertices = np.concatenate([points @ turn * 0.8 + [-0.35, 0.1, 2.2], points @ turn.T * 0.7 + [0.5, -0.15, 1.5]])
    x, y, z = vertices.T
    clip = np.stack([1.31 * x, 1.57 * y, 1.1 * z - 0.3, z], -1)
    faces = np.concatenate([cell, cell + 6, [[0, 0, 0]]])
    return jnp.asarray(clip, dtype), jnp.asarray(faces, jnp.int32)


def rasterize_by_loop(clip, faces, width=WIDTH, height=HEIGHT):
    """Screen-space barycentrics, perspective-corrected; faces wholly before the camera only."""
    clip = np.asarray(clip, np.float64)
    raster = np.zeros((height, width, 4))
    nearest = np.full((height, width), np.inf)
    for index, face in enumerate(np.asarray(faces)):
        corners = clip[face]
        assert np.all(corners[:, 3] > 0)
        ndc = corners[:, :3] / corners[:, 3:]
        screen = np.stack([(ndc[:, 0] + 1) / 2 * width, (1 - ndc[:, 1]) / 2 * height], -1)
        system = np.concatenate([screen.T, np.ones((1, 3))])
        if abs(np.linalg.det(system)) < 1e-9:
            continue
        for row in range(height):
            for column in range(width):
                flat = np.linalg.solve(system, [column + 0.5, row + 0.5, 1])
                depth = flat @ ndc[:, 2]
                if np.all(flat > 0) and abs(depth) <= 1 and depth < nearest[row, column]:
                    correct = flat / corners[:, 3]
                    nearest[row, column] = depth
                    raster[row, column] = [*(correct / correct.sum())[:2], depth, index + 1]
    return raster


@pytest.mark.parametrize("backend", ["xla", "auto"])
def test_rasterizer_matches_loop(backend):
    assert native.available(), native.reason()  # "auto" is "xla" otherwise
    clip, faces = octahedra()
    expected = rasterize_by_loop(clip, faces)
    seen = np.unique(expected[..., 3])
    assert 0 in seen and seen.max() > 8 and 1 <= seen[1] <= 8 and (expected[..., 3] > 0).sum() > 100
    raster = rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend=backend)
    np.testing.assert_array_equal(raster[..., 3], expected[..., 3])
    np.testing.assert_allclose(raster, expected, atol=2e-5)


def test_faces_through_the_camera_plane_are_cut():
    """A floor from behind the camera to the horizon: every pixel below the horizon sees it at the right depth."""
    near, far = 0.5, 100.0
    x, y, z = np.array([[-500, -1, -300], [500, -1, -300], [0, -1, 900]], float).T
    clip = jnp.asarray(np.stack([x, y, ((far + near) * z - 2 * far * near) / (far - near), z], -1), jnp.float32)
    raster = np.asarray(rasterize(clip, jnp.array([[0, 1, 2]]), 16, 16))
    ndc_y = 1 - (2 * np.arange(16) + 1) / 16
    depth = np.where(ndc_y < 0, -1 / np.minimum(ndc_y, -1e-9), np.inf)
    covered = (depth >= near) & (depth <= far)
    assert 4 < covered.sum() < 9
    np.testing.assert_array_equal(raster[..., 3], np.repeat(covered[:, None], 16, 1))
    depth = depth[covered]
    expected = ((far + near) * depth - 2 * far * near) / (far - near) / depth
    np.testing.assert_allclose(raster[covered, :, 2], np.repeat(expected[:, None], 16, 1), atol=1e-4)


def test_shared_edges_are_drawn_once():
    """A fan whose edges run exactly through pixel centres: no cracks; with equal depth the first face wins nothing."""
    width = height = 16
    angles = np.arange(8) * np.pi / 4
    rim = 1.5 * np.stack([np.cos(angles), np.sin(angles)], -1)
    # The hub is the centre of pixel (8, 7); rays at multiples of 45 degrees pass through centres.
    hub = np.array([[1 / 16, 1 / 16]])
    points = np.concatenate([hub, rim + hub])
    clip = jnp.asarray(np.concatenate([points, np.zeros((9, 1)), np.ones((9, 1))], -1), jnp.float32)
    fan = np.array([[0, 1 + i, 1 + (i + 1) % 8] for i in range(8)])
    fan[::2] = fan[::2, ::-1]  # either winding
    alone = sum(rasterize(clip, jnp.asarray(fan[i : i + 1]), width, height)[..., 3] > 0 for i in range(8))
    np.testing.assert_array_equal(alone, np.ones((height, width)))


def test_left_and_top_edges_own_their_pixels():
    # A square from pixel centre to pixel centre: x and y from 2.5 to 6.5 of 8 pixels.
    low, high = 2.5 / 4 - 1, 6.5 / 4 - 1
    corners = [[low, -low], [high, -low], [high, -high], [low, -high]]  # y points up
    clip = jnp.asarray([[*c, 0, 1] for c in corners], jnp.float32)
    covered = rasterize(clip, jnp.array([[0, 1, 2], [0, 2, 3]]), 8, 8)[..., 3] > 0
    expected = np.zeros((8, 8), bool)
    expected[2:6, 2:6] = True
    np.testing.assert_array_equal(covered, expected)


def test_nearest_wins_then_the_lower_index():
    quad = np.array([[-1, -1, 0, 1], [3, -1, 0, 1], [-1, 3, 0, 1]], float)
    nearer = quad + [0, 0, -0.5, 0]
    clip = jnp.asarray(np.concatenate([quad, quad, nearer]), jnp.float32)
    faces = jnp.arange(9).reshape(3, 3)
    assert np.all(rasterize(clip, faces, 5, 5)[..., 3] == 3)
    assert np.all(rasterize(clip, faces[:2], 5, 5)[..., 3] == 1)
    assert np.all(rasterize(clip, faces[1::-1], 5, 5)[..., 3] == 1)


def test_faces_that_cannot_be_drawn_are_skipped():
    clip, faces = octahedra()
    expected = rasterize(clip, faces)
    clip = jnp.concatenate([clip, jnp.array([[jnp.nan] * 4, [jnp.inf, 0, 0, 1]])])
    bad = jnp.array([[0, 1, 12], [0, 1, 13], [0, 1, 99], [-1, 0, 1], [2, 2, 3]])
    np.testing.assert_array_equal(rasterize(clip, jnp.concatenate([faces, bad])), expected)
    assert not np.any(rasterize(clip, bad))
    assert not np.any(rasterize(clip, faces[:0]))


def test_batch_has_each_images_own_faces():
    clip, faces = octahedra()
    other = clip * jnp.array([[-1.0, 1.0, 1.0, 1.0]])
    raster = rasterize(jnp.stack([clip, other])[:, None], faces)
    assert raster.shape == (2, 1, HEIGHT, WIDTH, 4)
    np.testing.assert_allclose(raster[0, 0], rasterize(clip, faces), atol=1e-6)
    np.testing.assert_allclose(raster[1, 0], rasterize(other, faces), atol=1e-6)


def test_interpolation_is_perspective_correct():
    """Attributes that are positions come back as the point on the pixel's ray."""
    clip, faces = octahedra()
    raster = rasterize(clip, faces)
    image = np.asarray(interpolate(clip, raster, faces))
    seen = np.asarray(raster[..., 3]) > 0
    x = np.broadcast_to((2 * np.arange(WIDTH) + 1) / WIDTH - 1, (HEIGHT, WIDTH))
    y = np.broadcast_to(1 - (2 * np.arange(HEIGHT)[:, None] + 1) / HEIGHT, (HEIGHT, WIDTH))
    assert seen.sum() > 100 and not np.any(image[~seen])
    np.testing.assert_allclose((image[..., 0] / image[..., 3].clip(1e-3))[seen], x[seen], atol=1e-5)
    np.testing.assert_allclose((image[..., 1] / image[..., 3].clip(1e-3))[seen], y[seen], atol=1e-5)
    np.testing.assert_allclose((image[..., 2] / image[..., 3].clip(1e-3))[seen], raster[..., 2][seen], atol=1e-5)


def test_unseen_vertices_do_not_reach_the_image():
    clip, faces = octahedra()
    clip = jnp.concatenate([clip, jnp.ones((1, 4))])
    raster = rasterize(clip, faces)
    attributes = jnp.ones((13, 2)).at[12].set(jnp.nan)
    assert np.all(np.isfinite(interpolate(attributes, raster, faces)))


@functools.partial(jax.jit, static_argnames=("smooth", "backend"))
def loss(attributes, clip, weights, raster_weights, smooth, backend="xla"):
    _, faces = octahedra()
    raster = rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend=backend)
    image = interpolate(attributes, raster, faces, backend=backend)
    if smooth:
        image = antialias(image, raster, clip, faces, backend=backend)
    return jnp.sum(image * weights) + jnp.sum(raster[..., :3] * raster_weights)


loss_gradient = jax.jit(jax.grad(loss, (0, 1)), static_argnames=("smooth", "backend"))


def loss_inputs(dtype):
    clip, _ = octahedra(dtype)
    rng = np.random.default_rng(0)
    shapes = ((12, 4), (HEIGHT, WIDTH, 4), (HEIGHT, WIDTH, 3))
    attributes, weights, raster_weights = (jnp.asarray(rng.normal(size=s), dtype) for s in shapes)
    return attributes, clip, weights, raster_weights


@pytest.mark.parametrize("smooth", [False, True])
def test_gradients_match_finite_differences(smooth, float64):
    attributes, clip, *weights = loss_inputs(np.float64)
    gradients = loss_gradient(attributes, clip, *weights, smooth=smooth)
    rng, step = np.random.default_rng(1), 1e-8  # small, so that no pixel centre changes its face
    for _ in range(3):
        a, c = jnp.asarray(rng.normal(size=attributes.shape)), jnp.asarray(rng.normal(size=clip.shape))
        ends = [loss(attributes + s * a, clip, *weights, smooth=smooth) for s in (step, -step)]
        np.testing.assert_allclose(jnp.sum(gradients[0] * a), (ends[0] - ends[1]) / (2 * step), rtol=1e-5, atol=1e-5)
        ends = [loss(attributes, clip + s * c, *weights, smooth=smooth) for s in (step, -step)]
        expected = (ends[0] - ends[1]) / (2 * step)
        assert abs(expected) > 1e-2
        np.testing.assert_allclose(jnp.sum(gradients[1] * c), expected, rtol=1e-5, atol=1e-5)


def test_fastest_backend_has_the_same_gradients():
    assert native.available(), native.reason()
    inputs = loss_inputs(np.float32)
    expected = loss_gradient(*inputs, smooth=True)
    for a, b in zip(expected, loss_gradient(*inputs, smooth=True, backend="auto"), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4 * np.abs(a).max())
        assert np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)) >= 0.9999


def square(left):
    """An opaque square over all rows of an 8 x 4 image, from x = `left` px to beyond the right edge."""
    low = left / 4 - 1
    clip = jnp.asarray([[low, 3, 0, 1], [5, 3, 0, 1], [5, -3, 0, 1], [low, -3, 0, 1]])
    return clip, jnp.array([[0, 1, 2], [0, 2, 3]])


@jax.jit
def square_mask(left):
    clip, faces = square(left)
    raster = rasterize(clip, faces, 8, 4)
    return smoothed((raster[..., 3:] > 0).astype(jnp.float32), raster, clip, faces)[..., 0]


square_area_slope = jax.jit(jax.grad(lambda left: jnp.sum(square_mask(left))))


@pytest.mark.parametrize("left", [3.0, 3.2, 3.4, 3.5001, 3.9, 4.4])
def test_antialiased_silhouette_is_exact_coverage(left):
    """For a vertical edge the blend is the covered area of the pixel, and its derivative is minus one a row."""
    expected = np.clip(np.arange(8) + 1 - left, 0, 1)
    np.testing.assert_allclose(square_mask(left), np.tile(expected, (4, 1)), atol=1e-5)
    np.testing.assert_allclose(square_area_slope(left), -4.0, rtol=1e-4)


def test_edges_inside_a_surface_are_not_blended():
    clip, faces = square(-9.0)  # the diagonal between its two faces crosses the image
    raster = rasterize(clip, faces, 8, 8)
    assert set(np.unique(raster[..., 3])) == {1.0, 2.0}
    image = jnp.asarray(np.random.default_rng(2).normal(size=(8, 8, 3)), jnp.float32)
    np.testing.assert_array_equal(smoothed(image, raster, clip, faces), image)
    # The same picture of faces that share no vertices: now the diagonal is an end of both.
    clip, faces = clip[faces.reshape(-1)], jnp.arange(6).reshape(2, 3)
    raster = rasterize(clip, faces, 8, 8)
    assert np.any(smoothed(image, raster, clip, faces) != image)


def test_folded_edge_is_a_silhouette():
    """Two faces hinged on a vertical edge, both to the right of it, one behind the other."""
    clip = jnp.asarray([[-0.3, -9, 0, 1], [-0.3, 9, 0, 1], [9, 0, 0, 1], [9, 0.5, 0.4, 1]])
    faces = jnp.array([[0, 1, 2], [1, 0, 3]])
    raster = rasterize(clip, faces, 8, 8)
    covered = (raster[..., 3:] > 0).astype(jnp.float32)
    image = smoothed(covered, raster, clip, faces)
    np.testing.assert_allclose(image[..., 2, 0], np.full(8, 0.2), atol=1e-5)  # the edge is at 2.8 px


def test_opposite_vertices():
    faces = jnp.array([[0, 1, 2], [2, 1, 3], [4, 4, 5], [0, 0, 0], [3, 1, 6], [1, 3, 7]])
    expected = [[3, -1, -1], [-1, -1, 0], [-1, -1, -1], [-1, -1, -1], [-1, -1, -1], [-1, -1, -1]]
    # Edge 1-3 has three faces; face 1's edge 0 is that one.
    np.testing.assert_array_equal(opposite_vertices(faces, 8), expected)


def test_closed_surface_has_a_neighbour_at_every_edge():
    _, faces = octahedra()
    opposite = np.asarray(opposite_vertices(faces, 12))
    assert np.all(opposite[:16] >= 0) and np.all(opposite[16] == -1)
    for face, row in zip(np.asarray(faces)[:16], opposite[:16], strict=True):
        # Across an octahedron's edge lies the vertex opposite to the corner: its antipode.
        np.testing.assert_array_equal(row, face ^ 1)


def test_row_sums_agree_on_every_platform():
    """The sums by sorting, which GPUs use, and those by scattering, which CPUs use."""
    rng = np.random.default_rng(3)
    values = jnp.asarray(rng.normal(size=(2, 50, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(-1, 9, size=(2, 50)), jnp.int32)
    sums = rows.segment_sum_rows(values, ids, num_segments=8)
    expected = np.zeros((2, 8, 3))
    for b, r in np.ndindex(2, 50):
        if 0 <= ids[b, r] < 8:
            expected[b, ids[b, r]] += values[b, r]
    np.testing.assert_allclose(sums, expected, atol=1e-5)
    order = np.argsort(ids[0], kind="stable")[np.sort(ids[0]) >= 0]
    sorted_ids, sorted_values = ids[0][order], values[0][order]
    fold = jax.jit(rows._fold, static_argnums=2)
    np.testing.assert_allclose(fold(sorted_values, sorted_ids, 8), expected[0], atol=1e-5)
    np.testing.assert_allclose(rows.sum_sorted_rows(sorted_values, sorted_ids, 8), expected[0], atol=1e-5)


def test_row_sums_on_a_cpu_are_in_row_order():
    """Many rows, whose float32 sums have other bits in any other order: sums by several threads would show."""
    rng = np.random.default_rng(4)
    values = rng.normal(size=(2, 200_000, 5)).astype(np.float32)
    ids = rng.integers(-5, 705, size=(2, 200_000)).astype(np.int32)
    expected = np.zeros((2, 700, 5), np.float32)
    for sums, index, added in zip(expected, ids, values, strict=True):
        used = (index >= 0) & (index < 700)
        np.add.at(sums, index[used], added[used])
    sums = jax.jit(functools.partial(rows.segment_sum_rows, num_segments=700))(values, ids)
    np.testing.assert_array_equal(sums, expected)


@pytest.mark.parametrize("backend", ["xla", "auto"])
@pytest.mark.parametrize(("vertices", "number"), [(12, 0), (0, 17), (0, 0)])
def test_empty_mesh_has_an_empty_picture_and_no_gradient(vertices, number, backend):
    clip, faces = octahedra()
    clip, faces = clip[:vertices], faces[:number]

    def total(clip):
        raster = rasterize_mesh(clip, faces, width=5, height=4, backend=backend)
        image = interpolate(clip, raster, faces, backend=backend)
        image = antialias(image, raster, clip, faces, backend=backend)
        return jnp.sum(raster) + jnp.sum(image), raster

    d_clip, raster = jax.grad(total, has_aux=True)(clip)
    np.testing.assert_array_equal(raster, np.zeros((4, 5, 4)))
    np.testing.assert_array_equal(d_clip, np.zeros((vertices, 4)))


@pytest.mark.parametrize("backend", ["xla", "native", "callback", "auto"])
def test_faces_that_a_raster_cannot_number_are_refused(backend):
    def draw(faces):
        return unwrapped(rasterize_mesh)(CLIP, faces, width=6, height=5, backend=backend)

    raster = jax.eval_shape(draw, jax.ShapeDtypeStruct((2**24 - 1, 3), jnp.int32))
    assert raster.shape == (5, 6, 4)
    with pytest.raises(ValueError, match="faces has 16777216 rows"):
        jax.eval_shape(draw, jax.ShapeDtypeStruct((2**24, 3), jnp.int32))


def test_gradients_under_shard_map():
    assert native.available(), native.reason()
    clip, faces = octahedra()
    batch = jnp.stack([clip, clip * jnp.array([[0.9, 1.1, 1.0, 1.0]])])
    attributes, _, weights, _ = loss_inputs(np.float32)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = PartitionSpec("data"), PartitionSpec()

    def local(attributes, batch, faces):
        raster = rasterize_mesh(batch, faces, width=WIDTH, height=HEIGHT)
        image = interpolate(attributes, raster, faces)
        return jnp.sum(antialias(image, raster, batch, faces) * weights[None], (1, 2, 3))

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(whole, divided, whole), out_specs=divided)
    expected = jax.jit(jax.grad(lambda *x: local(*x, faces).sum(), (0, 1)))(attributes, batch)
    actual = jax.jit(jax.grad(lambda *x: sharded(*x, faces).sum(), (0, 1)))(attributes, batch)
    for a, b in zip(actual, expected, strict=True):
        assert float(jnp.abs(b).max()) > 0.1
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * float(jnp.abs(b).max()))


CLIP = np.zeros((4, 4), np.float32)
FACES = np.zeros((2, 3), np.int32)
RASTER = np.zeros((5, 6, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: unwrapped(rasterize_mesh)(CLIP[1:, :3], FACES, width=4, height=4), r"positions has shape \(3, 3\)"),
        (lambda: unwrapped(rasterize_mesh)(CLIP, FACES[:, :2], width=4, height=4), r"faces has shape \(2, 2\)"),
        (lambda: unwrapped(rasterize_mesh)(CLIP, FACES * 1.0, width=4, height=4), "faces is float"),
        (lambda: unwrapped(rasterize_mesh)(CLIP, FACES, width=4, height=0), "height=0"),
        (lambda: unwrapped(interpolate)(CLIP, RASTER[..., :3], FACES), r"raster has shape \(5, 6, 3\)"),
        (lambda: unwrapped(antialias)(RASTER[1:], RASTER, CLIP, FACES), r"raster has shape \(5, 6, 4\).*h=4"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def unwrapped(function):
    """A function without the tests' own shape checks, which would come first."""
    return inspect.unwrap(function)
