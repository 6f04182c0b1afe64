"""Degenerate, vanishing, infinite and crowded inputs: every CPU backend draws what is right, with finite gradients."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native_mesh import make_surface
from test_splat import ARRAYS, BAD_SPLATS, HEIGHT, NUMBER, WIDTH, cotangents, draw_by_loop, make_scene

from gphm_kernels import (
    antialias,
    edge_interpolate,
    interpolate,
    marching_tetrahedra,
    point_mlp,
    rasterize_mesh,
    splat,
)
from gphm_kernels.reference.mesh import MAX_POSITION

BACKENDS = ("xla", "native")
AND_CALLBACK = (*BACKENDS, "callback")  # where its programs, which no cache keeps, are small or used again


# --- splats ---


@functools.partial(jax.jit, static_argnames=("width", "height", "backend", "eps2d"))
def splat_with_gradient(scene, d_image, d_alpha, *, width=WIDTH, height=HEIGHT, **options):
    """Image, alpha and the gradients of the scene."""
    results, pullback = jax.vjp(lambda scene: splat(**scene, width=width, height=height, **options), scene)
    return results, pullback((d_image, d_alpha))[0]


def in_front(**changes):
    """The scene of tests/test_splat.py before an unturned camera, with other arrays."""
    scene = make_scene()
    scene |= {"world_to_camera": jnp.eye(4), "means": scene["means"] + jnp.array([[0.0, 0.0, 2.5]])}
    return scene | {name: jnp.asarray(x, jnp.float32) for name, x in changes.items()}


def assert_same(actual, expected, rtol):
    """Relative to the largest number of each array, which must not be zero."""
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        e = np.asarray(e)
        assert np.abs(e).max() > 0
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())


def assert_drawn_as_by_the_loop(scene, results, gradients, d_image, d_alpha):
    """The picture, the gradients of what it is linear in, and that the others are finite."""
    image, alpha = results
    expected = draw_by_loop(scene, *alpha.shape[::-1])
    assert_same(results, expected[:2], 1e-3)
    colours = "features", "background"
    total = sum(np.sum(np.float64(scene[name]) * np.float64(gradients[name])) for name in colours)
    np.testing.assert_allclose(total, np.sum(np.float64(d_image) * image), rtol=1e-4)
    assert all(np.all(np.isfinite(x)) for x in gradients.values())


WORSE_SPLATS = BAD_SPLATS | {
    "huge mean": ("means", 1e30),
    "on the far side of huge": ("means", -3e38),
    "huge scale": ("scales", 1e20),
    "denormal quaternion": ("quats", 1e-45),
    "infinite opacity": ("opacities", np.inf),
    "huge opacity": ("opacities", 3e38),
    "huge feature": ("features", 3e38),
}


@pytest.mark.parametrize("backend", AND_CALLBACK)
def test_splats_that_cannot_be_drawn_have_no_part_in_anything(backend):
    hidden, broken = in_front(), in_front()
    for index, (name, bad) in enumerate(WORSE_SPLATS.values()):
        hidden["opacities"] = hidden["opacities"].at[index].set(0.0)
        where = (index, 2) if name == "means" else (index,)
        broken[name] = broken[name].at[where].set(bad)
    results, gradients = splat_with_gradient(broken, *cotangents(), backend=backend)
    expected, expected_gradients = splat_with_gradient(hidden, *cotangents(), backend=backend)
    assert expected[1].max() > 0.3
    jax.tree.map(np.testing.assert_array_equal, results, expected)
    for name in ARRAYS:
        gradient = np.asarray(gradients[name])
        assert np.all(np.isfinite(gradient)), name
        if name in ARRAYS[:5]:
            assert not np.any(gradient[: len(WORSE_SPLATS)]), name
        np.testing.assert_allclose(gradient, expected_gradients[name], rtol=1e-4, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("backend", AND_CALLBACK)
def test_the_near_plane_is_drawn_and_what_lies_behind_it_is_not(backend):
    near = np.float32(0.01)
    depths = np.array([near, np.nextafter(near, np.float32(0)), 0, -1, -near], np.float32)
    scene = in_front(scales=np.full((NUMBER, 3), 1e-3))
    scene["opacities"] = jnp.zeros(NUMBER).at[:5].set(0.5)
    scene["means"] = jnp.zeros((NUMBER, 3)).at[:5, 2].set(depths)
    (_, alpha), gradients = splat_with_gradient(scene, *cotangents(), backend=backend)
    np.testing.assert_allclose(alpha.max(), 0.5, rtol=2e-2)
    for name in ARRAYS[:5]:
        gradient = np.asarray(gradients[name])
        assert np.all(np.isfinite(gradient)) and not np.any(gradient[1:]), name
    assert np.any(gradients["features"][0])


@pytest.mark.parametrize("backend", AND_CALLBACK)
@pytest.mark.parametrize(
    ("scale", "axis"), [(1e3, slice(None)), (1e-30, slice(None)), (1e5, 0)], ids=["wide", "dots", "needles"]
)
def test_splats_as_wide_as_the_screen_and_dots_and_needles(backend, scale, axis):
    """Needles of a million pixels are two wide: their conic, as float32 has it, has no determinant."""
    scene = in_front()
    scene["scales"] = scene["scales"].at[:, axis].set(scale)
    results, gradients = splat_with_gradient(scene, *cotangents(), backend=backend)
    assert_drawn_as_by_the_loop(scene, results, gradients, *cotangents())


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_eps2d_splats_that_vanish_have_no_gradient(backend):
    scales = 0.1 * 10.0 ** -np.arange(NUMBER)[:, None] * np.ones((1, 3))  # a pixel or two, and down from there
    (_, alpha), gradients = splat_with_gradient(in_front(scales=scales), *cotangents(), backend=backend, eps2d=0.0)
    assert alpha.max() > 0.1
    for name, gradient in gradients.items():
        assert np.all(np.isfinite(gradient)) and np.any(gradient), name
    assert not np.any(gradients["means"][8:])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_a_bad_camera_draws_the_background_and_has_no_gradient(backend, value):
    bad = ("world_to_camera", (0, 1)), ("world_to_camera", (2, 3)), ("intrinsics", (0, 0)), ("intrinsics", (1, 2))
    for name, where in bad:
        scene = in_front()
        scene[name] = scene[name].at[where].set(value)
        (image, alpha), gradients = splat_with_gradient(scene, *cotangents(), backend=backend)
        np.testing.assert_array_equal(image, np.broadcast_to(scene["background"], image.shape))
        assert not np.any(alpha)
        np.testing.assert_allclose(gradients.pop("background"), cotangents()[0].sum((0, 1)), rtol=1e-4)
        assert not any(np.any(x) for x in gradients.values()), name  # nor is any of them NaN


def test_a_bad_camera_leaves_the_others_of_its_batch_alone():
    scene = in_front()
    cameras = jnp.stack([scene["world_to_camera"]] * 2).at[0, 0, 0].set(jnp.nan)
    d = [jnp.stack([x, x]) for x in cotangents()]
    (image, _), gradients = splat_with_gradient(scene | {"world_to_camera": cameras}, *d, backend="native")
    (expected, _), expected_gradients = splat_with_gradient(scene, *cotangents(), backend="native")
    np.testing.assert_array_equal(image[1], expected)
    assert not np.any(gradients.pop("world_to_camera")[0])
    del gradients["background"]
    assert_same(gradients, {name: expected_gradients[name] for name in gradients}, 1e-5)


SIZES = [(1, 500, 130, 5), (33, 1, 1, 24), (17, 31, 33, 24), (1, 1, 3, 1)]  # width, height, channels, splats


@pytest.mark.parametrize("size", SIZES)
def test_odd_sizes(size):
    width, height, channels, number = size
    random = np.random.default_rng(2)
    scene = in_front(features=random.normal(size=(NUMBER, channels)), background=random.normal(size=channels))
    scene |= {name: scene[name][:number] for name in ARRAYS[:5]}
    scene["scales"] = scene["scales"] * 3
    scene["intrinsics"] = scene["intrinsics"].at[:2, 2].set(jnp.array([width / 2, height / 2]))
    d = [jnp.asarray(random.normal(size=s), jnp.float32) for s in ((height, width, channels), (height, width))]
    results, gradients = splat_with_gradient(scene, *d, width=width, height=height, backend="native")
    assert_drawn_as_by_the_loop(scene, results, gradients, *d)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_none(backend):
    scene = {name: jnp.zeros((0, *x.shape)) for name, x in in_front().items()}
    zeros = jnp.zeros((0, HEIGHT, WIDTH, 3)), jnp.zeros((0, HEIGHT, WIDTH))
    results, gradients = splat_with_gradient(scene, *zeros, backend=backend)
    assert [x.shape for x in results] == [x.shape for x in zeros]
    assert {name: x.shape for name, x in gradients.items()} == {name: x.shape for name, x in scene.items()}


def test_a_mapped_batch():
    scene = in_front()
    batch = {name: jnp.stack([x, x]) for name, x in scene.items()}
    batch["opacities"] = batch["opacities"].at[1].mul(0.5)
    whole = splat_with_gradient(batch, *(jnp.stack([x, x]) for x in cotangents()), backend="native")
    mapped = jax.vmap(functools.partial(splat_with_gradient, backend="native"), (0, None, None))
    assert_same(mapped(batch, *cotangents()), whole, 1e-5)


def test_a_million_splats_in_one_tile():
    """All as wide as the image: a pixel draws the nearest 916 and ends; the others have no gradient."""
    number = 1_000_000
    order = np.random.default_rng(3).permutation(number).astype(np.float32)
    means = np.zeros((number, 3), np.float32)
    means[:, 2] = 1 + order / number
    scene = {
        "means": means,
        "quats": np.tile(np.float32([1, 0, 0, 0]), (number, 1)),
        "scales": np.full((number, 3), 1e3, np.float32),
        "opacities": np.full(number, 0.01, np.float32),
        "features": np.ones((number, 1), np.float32),
        "world_to_camera": np.eye(4, dtype=np.float32),
        "intrinsics": np.float32([[16, 0, 8], [0, 16, 8], [0, 0, 1]]),
    }
    d = jnp.ones((16, 16, 1)), jnp.zeros((16, 16))
    (image, alpha), gradients = splat_with_gradient(scene, *d, width=16, height=16, backend="native")
    drawn = int(np.log(1e-4) / np.log(0.99))
    np.testing.assert_allclose(alpha, 1 - 0.99**drawn, rtol=1e-4)
    np.testing.assert_allclose(image[..., 0], alpha, rtol=1e-5)
    by_depth = np.asarray(gradients["features"])[np.argsort(means[:, 2], kind="stable"), 0]
    np.testing.assert_allclose(by_depth[:drawn], 256 * 0.01 * 0.99 ** np.arange(drawn), rtol=1e-3)
    assert not np.any(by_depth[drawn:]) and np.all(np.isfinite(gradients["means"]))


def test_portable_splats_fit_in_memory():
    """100,000 of 32 channels at 512x512, forward and backward: what the compiled program asks for."""
    count, channels, side = 100_000, 32, 512

    def floats(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    shapes = floats(count, 3), floats(count, 4), floats(count, 3), floats(count), floats(count, channels)
    scene = dict(zip(ARRAYS, (*shapes, floats(4, 4), floats(3, 3), floats(channels)), strict=True))
    cotangents = floats(side, side, channels), floats(side, side)
    compiled = splat_with_gradient.lower(scene, *cotangents, width=side, height=side, backend="xla").compile()
    memory = compiled.memory_analysis()
    asked = memory.temp_size_in_bytes + memory.output_size_in_bytes + memory.argument_size_in_bytes
    assert 2**26 < asked < 2**30  # it is 0.3 GB


# --- meshes ---


@functools.partial(jax.jit, static_argnames="backend")
def mesh_with_gradient(clip, faces, attributes, d_image, d_raster, *, backend):
    """Raster and antialiased image, and the gradients of clip positions and attributes."""

    def both(clip, attributes):
        raster = rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend=backend)
        image = interpolate(attributes, raster, faces, backend=backend)
        return raster, antialias(image, raster, clip, faces, backend=backend)

    results, pullback = jax.vjp(both, clip, attributes)
    return results, pullback((d_raster, d_image))


def surface():
    """A closed mesh with room for 60 vertices and 20 faces more, attributes, and cotangents of image and raster."""
    clip, faces = make_surface(3)
    clip = jnp.concatenate([clip[0], jnp.ones((60, 4))])
    faces = jnp.concatenate([faces, jnp.zeros((20, 3), jnp.int32)])
    random = np.random.default_rng(4)
    shapes = (len(clip), 3), (HEIGHT, WIDTH, 3), (HEIGHT, WIDTH, 4)
    return clip, faces, *(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("backend", AND_CALLBACK)
@pytest.mark.parametrize("power", [-66, -40, 40, 56])
def test_the_length_of_homogeneous_coordinates_has_no_effect(backend, power):
    clip, *rest = surface()
    scale = np.float32(2.0**power)
    assert float(jnp.abs(clip).max()) * scale < MAX_POSITION
    results, gradients = mesh_with_gradient(clip * scale, *rest, backend=backend)
    expected, expected_gradients = mesh_with_gradient(clip, *rest, backend=backend)
    assert_same(results, expected, 1e-6)
    assert_same((gradients[0] * scale, gradients[1]), expected_gradients, 1e-5)


@pytest.mark.parametrize("backend", AND_CALLBACK)
def test_collapsed_faces_draw_nothing(backend):
    """Vertices at one place, or so close that float32 cannot tell them apart about a tile's middle; and on a line."""
    clip, faces, *rest = surface()
    expected, expected_gradients = mesh_with_gradient(clip, faces, *rest, backend=backend)
    random = np.random.default_rng(5)
    spread = [0] * 15 + [1e-38, 1e-9, 1e-8, 1e-7]
    points = [random.uniform(-0.9, 0.9, (1, 2)) + size * random.normal(size=(3, 2)) for size in spread]
    points = np.concatenate([*points, [[0.1, 0.1], [0.35, 0.6], [0.6, 1.1]]])
    clip = clip.at[-60:].set(jnp.asarray(np.c_[points, np.full(60, -0.9), np.ones(60)]))  # nearer than the surface
    faces = faces.at[-20:].set(jnp.arange(len(clip) - 60, len(clip)).reshape(20, 3))
    results, gradients = mesh_with_gradient(clip, faces, *rest, backend=backend)
    assert_same(results, expected, 1e-6)
    assert_same(gradients, expected_gradients, 1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -3e38])
def test_a_face_with_an_infinite_corner_leaves_a_silhouette(value):
    """As if the faces at that vertex were not there, for every backend."""
    clip, faces, *rest = surface()
    seen = np.asarray(mesh_with_gradient(clip, faces, *rest, backend="xla")[0][0][..., 3], int)
    vertex = int(faces[np.bincount(seen[seen > 0]).argmax() - 1, 0])
    without = jnp.where(jnp.any(faces == vertex, 1, keepdims=True), 0, faces)
    expected = mesh_with_gradient(clip, without, *rest, backend="xla")
    for axis in range(4):
        broken = clip.at[vertex, axis].set(value)
        for backend in AND_CALLBACK:
            assert_same(mesh_with_gradient(broken, faces, *rest, backend=backend), expected, 1e-4)


# --- tetrahedra and networks ---


def test_edges_of_no_finite_crossing_have_no_gradient():
    ends = [[np.inf, -np.inf], [np.nan, -1], [3e38, -3e38], [1e-20, -1e-20], [np.inf, -1], [3, -1]]
    sdf = jnp.array(ends, jnp.float32)
    values = jnp.asarray(np.random.default_rng(6).normal(size=(6, 2, 3)), jnp.float32)
    result, pullback = jax.vjp(edge_interpolate, values, sdf)
    np.testing.assert_allclose(result[:5], values[:5].mean(1), rtol=1e-6)
    np.testing.assert_allclose(result[5], 0.25 * values[5, 0] + 0.75 * values[5, 1], rtol=1e-6)
    d_values, d_sdf = pullback(jnp.ones_like(result))
    assert np.all(np.isfinite(d_values)) and not np.any(d_sdf[:5]) and np.all(d_sdf[5])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_grids(backend):
    resolution = np.int64(1)
    none = jax.jit(lambda sdf: inspect.unwrap(marching_tetrahedra)(sdf, resolution, 20, 12, backend=backend))(
        jnp.zeros((0, 8))
    )
    assert [x.shape for x in none] == [(0, 20, 2), (0, 12, 3), (0, 2), (0,)]


@pytest.mark.parametrize("backend", AND_CALLBACK)
def test_networks_of_no_codes(backend):
    random = np.random.default_rng(7)
    features, kernel, bias = (jnp.asarray(random.normal(size=s), jnp.float32) for s in ((9, 5), (5, 3), (3,)))
    network = functools.partial(point_mlp, kernels=[kernel], biases=[bias], backend=backend)
    result, pullback = jax.vjp(
        lambda features, codes: network(features, first_bias=codes), features, jnp.zeros((2, 0, 3))
    )
    assert result.shape == (2, 0, 9, 3)
    d_features, _ = pullback(result)
    np.testing.assert_array_equal(d_features, np.zeros((9, 5)))
