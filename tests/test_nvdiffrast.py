"""The nvdiffrast backend, on a stand-in for that package: against the reference, and what it refuses.

The stand-in's pictures are upside down as nvdiffrast's are; `test_nvdiffrast_oracle.py` runs the real one.
"""

import functools
import sys
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import nvdiffrast_standin
import pytest
from jax.sharding import PartitionSpec
from test_mesh_kernels import octahedra

from gphm_kernels import antialias, backends, interpolate, rasterize_mesh
from gphm_kernels.backends import native, nvdiffrast

WIDTH, HEIGHT, CHANNELS = 23, 19, 5


@pytest.fixture
def forgotten(monkeypatch):
    """What earlier calls found out about the machine is left aside, and what the test's calls find out afterwards."""
    for module, name in ((nvdiffrast, "reason"), (backends, "_load")):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    nvdiffrast._gpu.cache_clear()
    yield
    nvdiffrast._gpu.cache_clear()


@pytest.fixture
def standin(forgotten, monkeypatch, tmp_path):
    assert native.available(), native.reason()  # the stand-in's numbers
    nvdiffrast_standin.install(monkeypatch, tmp_path)
    assert nvdiffrast.available(), nvdiffrast.reason()


def make_mesh(batch=2):
    """The octahedra, up and to the left, wider in each next image; with padding and indices out of range."""
    clip, faces = (np.asarray(x) for x in octahedra())
    wider = np.stack([np.linspace(1, 1.2, batch), np.ones(batch), np.ones(batch), np.ones(batch)], -1)
    clip = (clip + [-0.13, 0.29, 0, 0]) * wider[:, None]
    wrong = [[0, 1, 12], [-1, 0, 1], [2, 2, 3], [2, 3, 3]]
    return jnp.asarray(clip, jnp.float32), jnp.asarray(np.concatenate([wrong[:2], faces, wrong[2:]]), jnp.int32)


def make_weights(batch=2):
    random = np.random.default_rng(5)
    shapes = ((batch, 12, CHANNELS), (batch, HEIGHT, WIDTH, CHANNELS), (batch, HEIGHT, WIDTH, 3))
    return tuple(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)


def loss(attributes, clip, faces, weights, raster_weights, backend, smooth=True):
    raster = rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend=backend)
    image = interpolate(attributes, raster, faces, backend=backend)
    result = antialias(image, raster, clip, faces, backend=backend) if smooth else image
    return jnp.sum(result * weights) + jnp.sum(raster[..., :3] * raster_weights), (raster, image, result)


with_gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)
reference = jax.jit(functools.partial(with_gradients, backend="xla"), static_argnames="smooth")
candidate = functools.partial(with_gradients, backend="nvdiffrast")


def assert_same(actual, expected):
    """Pictures to 1e-5, and gradients to 1e-4 of the largest and in direction."""
    ((_, pictures), gradients), ((_, wanted), wanted_gradients) = actual, expected
    assert 0.2 < np.mean(wanted[0][..., 3] > 0) < 0.8
    np.testing.assert_array_equal(pictures[0][..., 3], wanted[0][..., 3])
    for values, other in zip(pictures, wanted, strict=True):
        np.testing.assert_allclose(values, other, rtol=1e-5, atol=2e-5)
    for values, other in zip(gradients, wanted_gradients, strict=True):
        values, other = np.asarray(values, np.float64), np.asarray(other, np.float64)
        np.testing.assert_allclose(values, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())
        assert np.sum(values * other) / np.sqrt(np.sum(values**2) * np.sum(other**2)) >= 0.9999


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_pictures_and_gradients_are_the_references(standin, transform):
    (attributes, *weights), (clip, faces) = make_weights(), make_mesh()
    expected = reference(attributes, clip, faces, *weights)
    raster, image, result = expected[0][1]
    assert np.mean(np.any(image != result, -1)) > 0.02
    assert np.mean((raster[..., 3] > 0) != (raster[:, ::-1, :, 3] > 0)) > 0.1  # another scene when turned over
    assert_same(transform(candidate)(attributes, clip, faces, *weights), expected)


def test_gradients_under_vmap(standin):
    (attributes, *weights), (clip, faces) = make_weights(), make_mesh()
    mapped = jax.jit(jax.vmap(candidate, (0, 0, None, 0, 0)))
    assert_same(mapped(attributes, clip, faces, *weights), reference(attributes, clip, faces, *weights))


def test_an_image_skips_the_faces_that_are_not_finite_there(standin):
    attributes, *weights = make_weights(4)
    clip, faces = make_mesh(4)
    broken = clip.at[1, 3, 0].set(jnp.nan).at[2, 8, 3].set(-jnp.inf).at[3, 3, 1].set(1e30)
    # Beside a face that is not finite nothing is said of silhouettes: without `antialias`, then.
    whole, expected = (reference(attributes, x, faces, *weights, smooth=False) for x in (clip, broken))
    for image, vertex in ((1, 3), (2, 8), (3, 3)):
        numbers = 1 + np.flatnonzero(np.any(np.asarray(faces) == vertex, -1))
        assert np.any(np.isin(whole[0][1][0][image, ..., 3], numbers))
        assert not np.any(np.isin(expected[0][1][0][image, ..., 3], numbers))
    assert_same(candidate(attributes, broken, faces, *weights, smooth=False), expected)
    (_, pictures), gradients = candidate(attributes, broken, faces, *weights)
    assert all(np.all(np.isfinite(x)) for x in (pictures[2], *gradients))


def test_rasters_that_name_no_face_lead_nowhere(standin):
    (attributes, weights, _), (clip, faces) = make_weights(), make_mesh()
    index = np.array([np.nan, np.inf, -np.inf, -3, 0.5, 1.5, 2.0, 23.0, 1e9, 4.0], np.float32)  # 1 and 2: out of range
    raster = np.full((2, HEIGHT, WIDTH, 4), 0.25, np.float32)
    raster[..., 3] = np.resize(index, HEIGHT)[:, None]
    raster = jnp.asarray(raster)

    def image_and_gradients(backend):
        image, pullback = jax.vjp(lambda *x: interpolate(*x, faces, backend=backend), attributes, raster)
        return image, *pullback(weights)

    for actual, expected in zip(image_and_gradients("nvdiffrast"), image_and_gradients("native"), strict=True):
        assert np.any(expected != 0)
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)
    image, pullback = jax.vjp(lambda *x: antialias(weights, raster, *x, faces, backend="nvdiffrast"), clip)
    assert np.all(np.isfinite(image)) and np.all(np.isfinite(pullback(weights)[0]))


def test_no_images_and_no_faces(standin):
    clip, faces = make_mesh(0)
    assert rasterize_mesh(clip, faces, width=4, height=3, backend="nvdiffrast").shape == (0, 3, 4, 4)
    clip, _ = make_mesh(1)
    padding = jnp.zeros((3, 3), jnp.int32)
    assert not np.any(rasterize_mesh(clip, padding, width=4, height=3, backend="nvdiffrast"))


def test_gradients_under_shard_map(standin):
    (attributes, *weights), (clip, faces) = make_weights(), make_mesh()
    devices = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = PartitionSpec("data"), PartitionSpec()

    def local(attributes, clip, faces, *weights):
        value, _ = loss(attributes, clip, faces, *weights, backend="nvdiffrast")
        return value[None]

    specs = (whole, divided, whole, divided, divided)
    sharded = jax.shard_map(local, mesh=devices, in_specs=specs, out_specs=divided)
    table = attributes[0]  # the same for both images
    actual = jax.jit(jax.grad(lambda *x: sharded(*x, faces, *weights).sum(), (0, 1)))(table, clip)
    both = jnp.broadcast_to(table, attributes.shape)
    _, (d_both, d_clip) = reference(both, clip, faces, *weights)
    for values, other in zip(actual, (d_both.sum(0), d_clip), strict=True):
        assert float(jnp.abs(other).max()) > 0.1
        np.testing.assert_allclose(values, other, rtol=1e-4, atol=1e-4 * float(jnp.abs(other).max()))


def test_one_context_in_one_thread_serves_all(standin):
    """The stand-in refuses a context of another thread."""
    clip, faces = make_mesh()
    run = jax.jit(lambda clip: rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend="nvdiffrast"))
    expected = run(clip)
    assert np.any(expected)
    with ThreadPoolExecutor(4) as threads:
        for raster in threads.map(run, [clip] * 8):
            np.testing.assert_array_equal(raster, expected)
    assert nvdiffrast_standin.RasterizeCudaContext.devices == ["cuda:1"]  # PyTorch's current one


def test_auto_never_picks_it_and_other_ops_are_the_references(standin, monkeypatch):
    def refuse(*_):
        raise AssertionError("called")

    monkeypatch.setattr(nvdiffrast, "_call", refuse)
    clip, faces = make_mesh()
    assert np.any(rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT))
    for primitive in ("blend_fwd", "marching_tetrahedra", "mlp_bwd"):
        assert backends.dispatch(primitive, "nvdiffrast", jnp.float32) is backends._reference(primitive)


def test_float64_is_refused(standin, float64):
    clip, faces = octahedra(np.float64)
    with pytest.raises(ValueError, match="backend='nvdiffrast' computes in float32, not float64") as error:
        rasterize_mesh(clip, faces, width=4, height=4, backend="nvdiffrast")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("missing", "options", "message"),
    [
        ("torch", {}, "torch.*: install nvdiffrast.*from its repository.*PyTorch for CUDA"),
        ("nvdiffrast.torch", {}, "nvdiffrast.torch.*: install nvdiffrast.*from its repository.*PyTorch for CUDA"),
        (None, {"version": "0.3.1"}, "nvdiffrast is 0.3.1: install nvdiffrast 0.3.3 or newer"),
        (None, {"cuda": False}, "PyTorch 2.9.1 finds no CUDA device"),
    ],
)
def test_where_it_cannot_run_it_says_why_in_one_line(forgotten, monkeypatch, tmp_path, missing, options, message):
    nvdiffrast_standin.install(monkeypatch, tmp_path, **options)
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    clip, faces = make_mesh()
    with pytest.raises(ValueError, match=f"^backend='nvdiffrast' cannot run here: .*{message}.*or choose") as error:
        rasterize_mesh(clip, faces, width=4, height=4, backend="nvdiffrast")
    assert "\n" not in str(error.value)
    assert not backends.available("nvdiffrast")
    with pytest.raises(RuntimeError, match="use backend='xla'"):
        nvdiffrast.rasterize_fwd(clip, faces, width=4, height=4)


def test_a_context_that_cannot_be_made_is_the_reason(forgotten, monkeypatch, tmp_path):
    nvdiffrast_standin.install(monkeypatch, tmp_path)

    def fail(device):
        raise RuntimeError("Cuda error:\n  no kernel image")

    monkeypatch.setattr(sys.modules["nvdiffrast.torch"], "RasterizeCudaContext", fail)
    assert nvdiffrast.reason() == "nvdiffrast does not start: Cuda error: no kernel image"
