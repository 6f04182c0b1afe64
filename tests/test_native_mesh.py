"""The native mesh ops: against the portable reference and NumPy, at edges and ties, for any threads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels import backends
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


def make_surface(seed: int) -> tuple[jax.Array, jax.Array]:
    """A crumpled torus, whose edges all have two faces and many of them fold back; a third face on three edges."""
    random = np.random.default_rng(seed)
    rows, columns = 7, 9
    i, j = (x.ravel() for x in np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"))
    around, across = 2 * np.pi * j / columns, 2 * np.pi * i / rows
    radius = 1 + 0.45 * np.cos(across)
    points = np.stack([radius * np.cos(around), radius * np.sin(around), 0.45 * np.sin(across)], -1)
    points = points + random.normal(0, 0.08, (2, *points.shape))
    w = points[..., 2] + 2.5
    positions = np.stack([1.4 * points[..., 0], 1.4 * points[..., 1], 0.4 * points[..., 2] * w, w], -1)
    below, right = (i + 1) % rows, (j + 1) % columns
    a, b, c, d = i * columns + j, i * columns + right, below * columns + j, below * columns + right
    faces = np.concatenate([np.stack([a, b, c], -1), np.stack([b, d, c], -1)])
    faces[::3] = faces[::3, [0, 2, 1]]  # either winding
    return jnp.asarray(positions, jnp.float32), jnp.asarray(np.concatenate([faces, faces[:1]]), jnp.int32)


def make_calls(mesh, width: int, height: int, channels: int, seed: int = 0) -> dict[str, tuple[tuple, dict]]:
    """Arguments and options of every primitive but the rasterizer, on its raster of a mesh."""
    positions, faces = mesh
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape), jnp.float32)

    batch, vertices, _ = positions.shape
    size = {"width": width, "height": height}
    raster = native.rasterize_fwd(positions, faces, **size)
    image, attributes = normal(batch, height, width, channels), normal(batch, vertices, channels)
    d_image, d_raster = normal(batch, height, width, channels), normal(batch, height, width, 4)
    return {
        "rasterize_bwd": ((positions, faces, raster, d_raster), size),
        "interpolate_fwd": ((attributes, raster, faces), {}),
        "interpolate_bwd": ((attributes, raster, faces, d_image), {}),
        "antialias_fwd": ((image, raster, positions, faces), {}),
        "antialias_bwd": ((image, raster, positions, faces, d_image), {}),
    }


def results_of(name: str, arguments: tuple, options: dict) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(getattr(native, name)(*arguments, **options))]


def reference_of(name: str, arguments: tuple, options: dict) -> list[np.ndarray]:
    """The portable primitive in float64, whose rounding flips no discrete choice."""
    function = jax.jit(backends.dispatch(name, "xla", jnp.float64), static_argnames=tuple(options))
    with jax.enable_x64(True):
        exact = [np.asarray(x, np.float64 if x.dtype == jnp.float32 else x.dtype) for x in arguments]
        return [np.asarray(x) for x in jax.tree.leaves(function(*exact, **options))]


@pytest.mark.parametrize("make", [make_mesh, make_surface])
@pytest.mark.parametrize("size", [(45, 31, 33), (24, 17, 3), (16, 1, 1), (1, 1, 20)])
def test_mesh_primitives_match_reference(make, size):
    calls = make_calls(make(16), *size)
    (image, raster, *_), _ = calls["antialias_fwd"]
    if size[0] > 16:  # of the smallest images some are all background
        assert 0.2 < np.mean(np.asarray(raster)[..., 3] > 0) < 0.98
        assert np.mean(results_of("antialias_fwd", *calls["antialias_fwd"])[0] != image) > 0.02
    for name, call in calls.items():
        tolerance = 1e-5 if name.endswith("fwd") else 1e-4
        for expected, *actual in zip(
            reference_of(name, *call),
            *(results_of(name, call[0], call[1] | {"isa": isa}) for isa in native.instruction_sets()),
            strict=True,
        ):
            largest = np.abs(expected).max()
            for values in actual:
                np.testing.assert_allclose(values, expected, rtol=tolerance, atol=tolerance * largest, err_msg=name)
                if largest > 0:
                    norms = np.sqrt(np.sum(values**2.0) * np.sum(expected**2))
                    assert np.sum(values * expected) / norms >= 0.9999, name


def test_mesh_primitives_have_the_same_bits_for_any_threads_and_batches():
    for name, (arguments, options) in make_calls(make_surface(17), 200, 190, 5).items():
        whole = results_of(name, arguments, options | {"num_threads": 1})
        assert all(np.abs(x).max() > 0 for x in whole), name
        for threads in (2, 5, 0):
            for a, b in zip(whole, results_of(name, arguments, options | {"num_threads": threads}), strict=True):
                np.testing.assert_array_equal(a, b, err_msg=name)
        for index in range(2):
            one = tuple(x if x.dtype == jnp.int32 else x[index : index + 1] for x in arguments)
            for a, b in zip(whole, results_of(name, one, options), strict=True):
                np.testing.assert_array_equal(a[index : index + 1], b, err_msg=name)


@pytest.mark.parametrize("fan", [True, False])
def test_edges_of_many_faces_are_silhouettes_and_of_two_are_not(fan):
    """Around one vertex of 300 faces: lists too long for the sort of short ones."""
    number = 300
    angle = 2 * np.pi * np.arange(number) / number
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.concatenate([[[0, 0]], 0.9 * rim])
    clip = np.concatenate([points, np.zeros((number + 1, 1)), np.ones((number + 1, 1))], -1)[None]
    faces = np.array([[0, 1 + i, 1 + (i + 1) % number] for i in range(number)])
    if not fan:
        faces = np.concatenate([faces, faces[::2], faces[::2]])  # now no edge has two faces
    clip, faces = jnp.asarray(clip, jnp.float32), jnp.asarray(faces, jnp.int32)
    raster = native.rasterize_fwd(clip, faces, width=20, height=20)
    image = jnp.asarray(np.random.default_rng(3).standard_normal((1, 20, 20, 2)), jnp.float32)
    changed = np.any(np.asarray(native.antialias_fwd(image, raster, clip, faces) != image), -1)[0]
    inside = np.asarray(raster)[0, ..., 3] > 0
    inside[1:-1, 1:-1] &= inside[:-2, 1:-1] & inside[2:, 1:-1] & inside[1:-1, :-2] & inside[1:-1, 2:]
    assert np.any(changed & ~inside)  # the rim
    assert np.mean(changed & inside) > 0.3 if not fan else not np.any(changed & inside)


def test_bad_rasters_and_indices_lead_nowhere():
    positions, faces = make_mesh(18)
    calls = make_calls((positions, faces), 20, 10, 3)
    index = np.array([np.nan, np.inf, -np.inf, -3, 0.5, 31, 1e9, 7, 6, 4], np.float32)  # 4, 6 and 7 are bad faces
    raster = np.full((2, 10, 20, 4), 0.25, np.float32)
    raster[..., 3] = index[:, None]
    raster = jnp.asarray(raster)
    for name, (arguments, options) in calls.items():
        arguments = tuple(raster if x.shape == raster.shape and i in (1, 2) else x for i, x in enumerate(arguments))
        results = results_of(name, arguments, options)
        if name == "interpolate_fwd":
            table, last = np.asarray(arguments[0]), np.asarray(faces)[-1]
            expected = 0.25 * table[:, last[0]] + 0.25 * table[:, last[1]] + 0.5 * table[:, last[2]]
            assert not np.any(results[0][:, [0, 2, 3, 4]])
            for row in (1, 5, 6):  # beyond the last face
                np.testing.assert_allclose(results[0][:, row, 0], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("vertices", "number"), [(0, 0), (5, 0), (0, 3)])
def test_empty_meshes(vertices, number):
    mesh = jnp.ones((1, vertices, 4)), jnp.zeros((number, 3), jnp.int32)
    calls = make_calls(mesh, 6, 5, 2)
    for name, (arguments, options) in calls.items():
        results = results_of(name, arguments, options)
        if name.startswith("antialias"):
            np.testing.assert_array_equal(results[0], arguments[0 if name.endswith("fwd") else -1])
            results = results[1:]
        assert not any(np.any(x) for x in results), name


def test_mesh_handlers_refuse_bad_shapes():
    calls = make_calls(make_mesh(19), 8, 6, 3)
    common = {"num_threads": np.int32(0), "isa": np.int32(0)}
    result = jax.ShapeDtypeStruct((2, 6, 8, 3), jnp.float32)
    attributes, raster, faces = calls["interpolate_fwd"][0]
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"raster \[b, h, w, 4\]"):
        jax.ffi.ffi_call("gphm_interpolate_fwd", result)(attributes, raster[..., :3], faces, **common)
    image, _, positions, _ = calls["antialias_fwd"][0]
    with pytest.raises(jax.errors.JaxRuntimeError, match="shaped as the image"):
        narrow = jax.ShapeDtypeStruct((2, 6, 7, 3), jnp.float32)
        jax.ffi.ffi_call("gphm_antialias_fwd", narrow)(image, raster, positions, faces, **common)
    with pytest.raises(jax.errors.JaxRuntimeError, match="lacks the instruction set"):
        jax.ffi.ffi_call("gphm_antialias_fwd", result)(image, raster, positions, faces, **common | {"isa": np.int32(9)})


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
    size = {"width": 20, "height": 30}
    calls = make_calls((positions, faces), **size, channels=4)
    for name, (arguments, options) in {"rasterize_fwd": ((positions, faces), size), **calls}.items():
        expected = results_of(name, arguments, options)
        assert all(x.max() > 0 for x in expected)
        actual = jax.tree.leaves(getattr(callback, name)(*arguments, **options))
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
