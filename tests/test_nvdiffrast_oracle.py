"""The reference mesh ops against nvdiffrast itself, where a user has installed it.

The two are bound to agree inside faces, and on the coverage of upright edges. They may differ where a pixel centre is
on an edge to within nvdiffrast's fixed-point positions (1 of 100 pixels is allowed), and at slanted silhouettes, where
each has its own choice of edges to blend at. Tolerances are for positions rounded to fixed point, and for atomic sums.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_mesh_kernels import octahedra, square

from gphm_kernels import antialias, interpolate, rasterize_mesh
from gphm_kernels.backends import nvdiffrast

pytestmark = pytest.mark.gpu
WIDTH, HEIGHT = 96, 72


@pytest.fixture(autouse=True)
def installed():
    if not nvdiffrast.available():
        pytest.skip(nvdiffrast.reason())


def make_scene():
    clip, faces = octahedra()
    clip = clip + jnp.array([[-0.13, 0.29, 0.0, 0.0]])
    return jnp.stack([clip, clip * jnp.array([[1.2, 1.0, 1.0, 1.0]])]), faces


def draw(attributes, clip, faces, backend):
    raster = rasterize_mesh(clip, faces, width=WIDTH, height=HEIGHT, backend=backend)
    return raster, interpolate(attributes, raster, faces, backend=backend)


def inside(raster, other):
    """Pixels that show one face together with their neighbours, the same in both rasters."""
    face = np.asarray(raster[..., 3])
    same = (face > 0) & (face == np.asarray(other[..., 3]))
    for axis in (1, 2):
        for step in (1, -1):
            same &= face == np.roll(face, step, axis)
    return same


def test_faces_weights_and_depths():
    clip, faces = make_scene()
    attributes = jnp.asarray(np.random.default_rng(0).normal(size=(2, 12, 3)), jnp.float32)
    raster, image = draw(attributes, clip, faces, "xla")
    other_raster, other_image = draw(attributes, clip, faces, "nvdiffrast")
    assert 0.2 < np.mean(raster[..., 3] > 0) < 0.8
    assert np.mean(raster[..., 3] != other_raster[..., 3]) < 0.01
    where = inside(raster, other_raster)
    assert np.mean(where) > 0.1
    np.testing.assert_allclose(other_raster[where], raster[where], atol=1e-3)
    np.testing.assert_allclose(other_image[where], image[where], atol=5e-3)


def test_gradients_inside_faces():
    clip, faces = make_scene()
    random = np.random.default_rng(1)
    attributes = jnp.asarray(random.normal(size=(2, 12, 3)), jnp.float32)
    rasters = [draw(attributes, clip, faces, backend)[0] for backend in ("xla", "nvdiffrast")]
    where = jnp.asarray(inside(*rasters)[..., None], jnp.float32)
    weights, raster_weights = (where * jnp.asarray(random.normal(size=(2, HEIGHT, WIDTH, 3))) for _ in range(2))

    def loss(attributes, clip, backend):
        raster, image = draw(attributes, clip, faces, backend)
        return jnp.sum(image * weights) + jnp.sum(raster[..., :3] * raster_weights)

    gradients = [jax.grad(loss, (0, 1))(attributes, clip, backend) for backend in ("xla", "nvdiffrast")]
    for expected, actual in zip(*gradients, strict=True):
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(actual, expected, atol=1e-2 * np.abs(expected).max())


@pytest.mark.parametrize("left", [3.2, 3.4, 3.9])
def test_upright_silhouettes_are_exact_coverage(left):
    def mask(left, backend):
        clip, faces = square(left)
        raster = rasterize_mesh(clip, faces, width=8, height=4, backend=backend)
        return antialias((raster[..., 3:] > 0).astype(jnp.float32), raster, clip, faces, backend=backend)[..., 0]

    expected = np.tile(np.clip(np.arange(8) + 1 - left, 0, 1), (4, 1))
    for backend in ("xla", "nvdiffrast"):
        covered = functools.partial(mask, backend=backend)
        np.testing.assert_allclose(covered(left), expected, atol=1e-3)
        slope = jax.grad(lambda x, covered=covered: jnp.sum(covered(x)))(left)
        np.testing.assert_allclose(slope, -4, rtol=1e-2)
