"""The GPU rasterizer in Triton's interpreter: against the portable reference, at edges and ties, for any crowding."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native_mesh import make_calls, make_mesh, make_surface
from triton_interpreter import Interpreter

from gphm_kernels import backends
from gphm_kernels.backends import triton
from gphm_kernels.reference import mesh as reference
from gphm_kernels.reference import tiles
from gphm_kernels.triton import mesh

pytest.importorskip("triton", reason="Triton has no packages for this platform")
WIDTH, HEIGHT = 40, 24  # tiles that the image cuts on both sides
SIDE = 32  # of the square images whose pixel centres are exact in normalised device coordinates
portable = jax.jit(reference.rasterize_fwd, static_argnames=("width", "height"))


@pytest.fixture(scope="module")
def interpreter():
    with Interpreter() as worker:
        yield worker


@pytest.fixture
def rasterize(interpreter):
    """The kernel; jitted anew for each test, since some change how tiles are grouped."""
    function = functools.partial(mesh.rasterize_fwd, launch=interpreter.launch)
    return jax.jit(function, static_argnames=("width", "height"))


def compare(rasterize, positions, faces, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """Asserts that the kernel draws the reference's faces; the face of each pixel, 0 where none."""
    actual = np.asarray(rasterize(positions, faces, width=width, height=height))
    expected = np.asarray(portable(positions, faces, width=width, height=height))
    np.testing.assert_array_equal(actual[..., 3], expected[..., 3])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    return actual[..., 3].astype(int)


def flat(corners: np.ndarray, depth: float = 0.25) -> jax.Array:
    """Clip positions [1, v, 4] of points in pixels of the square image, all of the same depth."""
    x, y = 2 * corners[..., 0] / SIDE - 1, 1 - 2 * corners[..., 1] / SIDE
    return jnp.asarray(np.stack([x, y, np.full_like(x, depth), np.ones_like(x)], -1)[None], jnp.float32)


@pytest.mark.parametrize(("make", "seed"), [(make_mesh, 14), (make_mesh, 15), (make_surface, 16)])
def test_rasterize_matches_reference(rasterize, make, seed):
    """Faces across the camera plane and the view volume's sides; degenerate ones, bad indices, NaN; a batch of two."""
    positions, faces = make(seed)
    seen = compare(rasterize, positions, faces)
    assert (seen > 0).mean() > 0.3 and len(np.unique(seen)) > 8 and np.any(seen[0] != seen[1])


def test_a_floor_ends_at_the_near_and_far_planes(rasterize):
    near, far = 1.5, 10.0
    x, y, z = np.array([[-500, -1, -300], [500, -1, -300], [0, -1, 900]], float).T
    clip = np.stack([x, y, ((far + near) * z - 2 * far * near) / (far - near), z], -1)
    clip = jnp.asarray(clip[None], jnp.float32)
    raster = np.asarray(rasterize(clip, jnp.array([[0, 1, 2]]), width=WIDTH, height=HEIGHT))[0]
    z = HEIGHT / (2 * np.arange(HEIGHT) + 1 - HEIGHT)  # of the floor at each row's centre
    covered = (z >= near) & (z <= far)
    assert 4 < covered.sum() < HEIGHT / 2
    np.testing.assert_array_equal(raster[..., 3], np.repeat(covered[:, None], WIDTH, 1))
    z = np.repeat(z[covered, None], WIDTH, 1)
    expected = ((far + near) * z - 2 * far * near) / (far - near) / z
    np.testing.assert_allclose(raster[covered, :, 2], expected, atol=1e-4)  # corners 500 away leave little


def lattice(columns: int, rows: int) -> np.ndarray:
    """Two triangles for each cell of a lattice of points, in any order and of either winding."""
    i, j = (x.ravel() for x in np.meshgrid(np.arange(rows - 1), np.arange(columns - 1), indexing="ij"))
    a = i * columns + j
    faces = np.concatenate([np.stack([a, a + 1, a + columns], -1), np.stack([a + 1, a + columns, a + columns + 1], -1)])
    faces = np.random.default_rng(0).permutation(faces).astype(np.int32)
    faces[::2] = faces[::2, ::-1]
    return faces


@pytest.mark.parametrize(("jitter", "shift", "spread"), [(0.0, 0.0, 1.0), (2.5, 0.0, 2.0), (0.0, 0.25, 2.0)])
def test_shared_edges_have_neither_cracks_nor_two_owners(rasterize, jitter, shift, spread):
    """All depths are equal, so that a pixel with two owners would change hands with the order of the faces.

    Without jitter edges run through pixel centres: all of them, exactly; or, shifted and with w spread, the diagonals
    within rounding.
    """
    side = 8
    i, j = (x.ravel() for x in np.meshgrid(np.arange(side), np.arange(side), indexing="ij"))
    random = np.random.default_rng(1)
    points = np.stack([6 * j - 3.5 + shift, 6 * i - 3.5 - shift], -1)
    points = points + jitter * random.uniform(-1, 1, points.shape)
    clip = flat(points) * jnp.asarray(random.uniform(1, spread, (1, side * side, 1)), jnp.float32)
    faces = lattice(side, side)

    def draw(faces: np.ndarray) -> np.ndarray:
        raster = rasterize(clip, jnp.asarray(faces), width=SIDE, height=SIDE)
        return np.asarray(raster)[..., 3].astype(int)

    seen = draw(faces)
    assert seen.min() > 0 and len(np.unique(seen)) > 60
    np.testing.assert_array_equal(len(faces) + 1 - draw(faces[::-1].copy()), seen)
    if not shift:  # else rounding decides, and other rounding in the reference
        np.testing.assert_array_equal(seen, portable(clip, jnp.asarray(faces), width=SIDE, height=SIDE)[..., 3])


def test_left_and_top_edges_own_their_pixels(rasterize):
    square = flat(np.array([[2.5, 3.5], [19.5, 3.5], [19.5, 20.5], [2.5, 20.5]]))
    seen = compare(rasterize, square, jnp.array([[0, 1, 2], [2, 0, 3]]), SIDE, SIDE)[0]
    expected = np.zeros((SIDE, SIDE), bool)
    expected[3:20, 2:19] = True
    np.testing.assert_array_equal(seen > 0, expected)


def test_collapsed_faces_draw_nothing(rasterize):
    """Corners in one place, or closer to each other than float32 can tell about a tile's middle."""
    random = np.random.default_rng(6)
    spread = np.array([0] * 12 + [1e-38, 1e-9, 1e-7])[:, None, None]
    corners = random.uniform(0, SIDE, (15, 1, 2)) + spread * random.normal(size=(15, 3, 2))
    faces = jnp.arange(45, dtype=jnp.int32).reshape(15, 3)
    raster = rasterize(flat(corners.reshape(-1, 2)), faces, width=SIDE, height=SIDE)
    np.testing.assert_array_equal(raster, np.zeros_like(raster))
    for power in (-60, 50):  # of two, by which clip space may be scaled
        compare(rasterize, make_surface(16)[0] * np.float32(2.0**power), make_surface(16)[1])


def test_nearest_wins_then_the_lower_index(rasterize):
    """Seventy faces on every tile: more than a thread's one, and equals both within a thread and between threads."""
    cover = np.array([[-100, -100], [200, -100], [-100, 200]])
    number = 70
    depths = np.full(number, 0.5)
    depths[[9, 41, 44]], depths[60:] = -0.25, 1.5  # 9 and 41 are one thread's; the last lie beyond the far plane
    depths[:2] = 0.75
    clip = jnp.concatenate([flat(cover, depth) for depth in depths], 1)
    faces = np.arange(3 * number).reshape(number, 3).astype(np.int32)

    def winner() -> int:
        (index,) = np.unique(compare(rasterize, clip, jnp.asarray(faces), SIDE, SIDE))
        return index - 1

    assert winner() == 9
    faces[9] = 0  # padding
    assert winner() == 41
    faces[41] = faces[59]
    assert winner() == 44
    faces[44] = faces[58, [2, 0, 1]]
    assert winner() == 2


def test_corners_at_the_camera_keep_depths_apart(rasterize):
    """A corner whose z/w is huge or infinite: the nearer of two such faces is seen, wherever both reach."""
    clip = np.array([[0, 0.5, 0.5, 1e-6], [-9, -3, 1.5, 3], [9, -3, 1.5, 3]], np.float32)
    behind = clip + np.array([0, 0, 0.01, 0], np.float32) * clip[:, 3:]
    clip[0, 3], behind[0, 3] = 0, 1e-7
    faces = jnp.array([[0, 1, 2], [3, 4, 5]])
    for first, second, nearer in ((clip, behind, 1), (behind, clip, 2)):
        positions = jnp.asarray(np.concatenate([first, second])[None])
        assert set(np.unique(compare(rasterize, positions, faces))) == {0, nearer}


@pytest.mark.parametrize(("slots", "listed"), [(40, {2, 3}), (120, {7, 8})])
def test_crowded_tiles_lose_nothing(rasterize, monkeypatch, slots, listed):
    """Lists for a part of the first image alone, or of the second one, too."""
    positions, faces = make_mesh(17)
    monkeypatch.setattr(tiles, "SLOTS_PER_PRIMITIVE", 0)
    monkeypatch.setattr(tiles, "SPARE_SLOTS", slots)
    layout = tiles.make_layout(2, WIDTH, HEIGHT)
    corners = reference.gather_corners(positions, faces)
    rectangles = reference.bounds(layout, corners, faces, positions.shape[1])
    _, last = tiles.bin_first(layout, rectangles, lambda face, column, row: jnp.ones_like(face, bool))
    assert int(last[0]) in listed and layout.tiles == 12
    seen = compare(rasterize, positions, faces)
    assert (seen > 0).mean() > 0.3


@pytest.mark.parametrize(("vertices", "number"), [(40, 0), (0, 30)])
def test_empty_meshes(rasterize, vertices, number):
    positions, faces = make_mesh(14)
    raster = rasterize(positions[:, :vertices], faces[:number], width=5, height=4)
    np.testing.assert_array_equal(raster, np.zeros((2, 4, 5, 4)))


def test_nothing_to_draw_leaves_the_image_empty(rasterize):
    positions, faces = make_mesh(14)
    assert not np.any(compare(rasterize, positions, 0 * faces))


def test_cuda_programs_launch_the_kernel_in_place():
    """What JAX makes for a GPU, without one: calls of the launcher that write to their last operand."""
    traced = jax.jit(functools.partial(triton.rasterize_fwd, width=WIDTH, height=HEIGHT)).trace(*make_mesh(14))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@gphm_cuda_launch" in line]
    assert len(calls) == 2 and all("output_operand_alias" in line for line in calls)
    for kernel, line in zip(("rasterize_fwd", "rasterize_crowded"), calls, strict=True):
        assert f'kernel = "{kernel}"' in line
    assert "stablehlo.sort" in text and "stablehlo.while" not in text


def test_what_the_gpu_leaves_to_xla_adds_no_floats_in_any_order_and_has_no_loop():
    """A scatter of floats on a GPU has other bits on every run; sums of rows are sorted instead.

    A loop's condition would be read by the host.
    """
    sorts = 0
    for name, (arrays, options) in make_calls(make_mesh(14), WIDTH, HEIGHT, 3).items():
        function = functools.partial(backends.dispatch(name, "xla", jnp.float32), **options)
        text = jax.jit(function).trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        scatters = re.findall(r'"stablehlo.scatter".*?-> ([^\n]*)', text, re.DOTALL)
        assert all("f32" not in result for result in scatters), name
        assert "stablehlo.while" not in text, name
        sorts += text.count('"stablehlo.sort"')
    assert sorts >= 3
