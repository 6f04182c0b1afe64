"""The native splatting: against the portable reference and NumPy, for any threads, instruction set and input."""

import pathlib
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels.backends import callback, native
from gphm_kernels.reference import splat as reference_splat

ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN = 1 / 255, 0.99, 1e-4
portable_fwd = jax.jit(reference_splat.blend_fwd, static_argnames=("width", "height"))
portable_bwd = jax.jit(reference_splat.blend_bwd, static_argnames=("width", "height"))
GRADIENTS = ("means2d", "conics", "opacities", "features", "background")


class Scene(NamedTuple):
    means2d: jax.Array
    conics: jax.Array
    opacities: jax.Array
    depths: jax.Array
    features: jax.Array
    background: jax.Array


def make_scene(seed: int, batch: int, number: int, width: int, height: int, channels: int) -> Scene:
    """Random ellipses, round to needle-like, some beyond the image; a tenth of them inert, a tenth opaque."""
    random = np.random.default_rng(seed)
    shape = (batch, number)
    means = random.uniform(-4, 4 + np.array([width, height]), (*shape, 2))
    angle, sizes = random.uniform(0, np.pi, shape), np.exp(random.uniform(-0.5, 2, (2, *shape)))
    cos, sin = np.cos(angle), np.sin(angle)
    xx, yy = (
        (cos * sizes[0]) ** 2 + (sin * sizes[1]) ** 2 + 0.3,
        (sin * sizes[0]) ** 2 + (cos * sizes[1]) ** 2 + 0.3,
    )
    xy = cos * sin * (sizes[0] ** 2 - sizes[1] ** 2)
    conics = np.stack([yy, -xy, xx], -1) / (xx * yy - xy**2)[..., None]
    opacities = random.uniform(0.02, 0.9, shape)
    opacities[:, ::10], opacities[:, 5::10] = 0, 1
    depths = random.uniform(1, 5, shape)
    features, background = random.standard_normal((*shape, channels)), random.random((batch, channels))
    return Scene(
        *(jnp.asarray(x, jnp.float32) for x in (means, conics, opacities, depths, features, background))
    )


def blend_slowly(scene: Scene, width: int, height: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image and alpha by a loop over splats in float64, and the pixels where a discrete choice is close."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    images, alphas, close = [], [], []
    for one in zip(*(np.asarray(a, np.float64) for a in scene), strict=True):
        means, conics, opacities, depths, features, background = one
        passed, open_, near = (
            np.ones((height, width)),
            np.ones((height, width), bool),
            np.zeros((height, width), bool),
        )
        image = np.zeros((height, width, features.shape[-1]))
        for i in np.argsort(depths, kind="stable"):
            dx, dy = x - means[i, 0], y - means[i, 1]
            a, b, c = conics[i]
            raw = opacities[i] * np.exp(-0.5 * (a * dx**2 + c * dy**2) - b * dx * dy)
            alpha = np.minimum(ALPHA_MAX, raw)
            seen = open_ & (alpha >= ALPHA_MIN)
            after = passed * (1 - alpha)
            ends = seen & (after <= TRANSMITTANCE_MIN)
            near |= open_ & (np.abs(raw / ALPHA_MIN - 1) < 1e-4) | seen & (
                np.abs(after / TRANSMITTANCE_MIN - 1) < 1e-3
            )
            near |= seen & (np.abs(raw / ALPHA_MAX - 1) < 1e-5)
            drawn = seen & ~ends
            image += np.where(drawn, alpha * passed, 0)[..., None] * features[i]
            passed, open_ = np.where(drawn, after, passed), open_ & ~ends
        images.append(image + passed[..., None] * background)
        alphas.append(1 - passed)
        close.append(near)
    return np.stack(images), np.stack(alphas), np.stack(close)


def cotangents(seed: int, close: np.ndarray, channels: int) -> tuple[jax.Array, jax.Array]:
    """Random d_image and d_alpha, zero where a discrete choice is too close to call in float32."""
    random = np.random.default_rng(seed)
    keep = ~close
    d_image = random.standard_normal((*close.shape, channels)) * keep[..., None]
    d_alpha = random.standard_normal(close.shape) * keep
    return jnp.asarray(d_image, jnp.float32), jnp.asarray(d_alpha, jnp.float32)


def assert_same_gradients(actual, expected):
    for name, a, e in zip(GRADIENTS, actual, expected, strict=True):
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        assert np.abs(e).max() > 0, name
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4 * np.abs(e).max(), err_msg=name)
        cosine = np.sum(a * e) / np.sqrt(np.sum(a * a) * np.sum(e * e))
        assert cosine >= 0.9999, name


SIZES = [  # batch, splats, width, height, channels
    (1, 60, 40, 35, 32),
    (3, 40, 33, 17, 3),
    (1, 300, 20, 50, 33),
    (2, 30, 1, 1, 1),
]


@pytest.mark.parametrize("size", SIZES)
def test_blend_matches_reference_and_numpy(size):
    batch, number, width, height, channels = size
    scene = make_scene(1, *size)
    image, alpha = native.blend_fwd(*scene, width=width, height=height)
    expected_image, expected_alpha, close = blend_slowly(scene, width, height)
    assert expected_alpha.max() > 0.5 and close.mean() < 0.05
    keep = ~close
    np.testing.assert_allclose(image[keep], expected_image[keep], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alpha[keep], expected_alpha[keep], rtol=1e-5, atol=1e-6)
    portable = portable_fwd(*scene, width=width, height=height)
    np.testing.assert_allclose(image[keep], portable[0][keep], rtol=1e-5, atol=1e-5)

    d = cotangents(2, close, channels)
    actual = native.blend_bwd(*scene, None, None, *d, width=width, height=height)
    expected = portable_bwd(*scene, *portable, *d, width=width, height=height)
    assert_same_gradients(actual, expected)


def test_gradients_have_the_same_bits_for_any_number_of_threads():
    scene = make_scene(3, 2, 400, 70, 50, 5)
    d = cotangents(4, np.zeros((2, 50, 70), bool), 5)
    runs = []
    for threads in (1, 2, 3, 7, 0):
        image, alpha = native.blend_fwd(*scene, width=70, height=50, num_threads=threads)
        gradients = native.blend_bwd(*scene, None, None, *d, width=70, height=50, num_threads=threads)
        runs.append([np.asarray(x) for x in (image, alpha, *gradients)])
    assert np.abs(runs[0][2]).max() > 0
    for run in runs[1:]:
        for first, other in zip(runs[0], run, strict=True):
            np.testing.assert_array_equal(first, other)


def test_instruction_sets_agree():
    sets = native.instruction_sets()
    assert sets[0] == "base"
    scene = make_scene(5, 1, 200, 37, 45, 7)
    _, _, close = blend_slowly(scene, 37, 45)
    d = cotangents(6, close, 7)
    runs = [
        (
            native.blend_fwd(*scene, width=37, height=45, isa=isa),
            native.blend_bwd(*scene, None, None, *d, width=37, height=45, isa=isa),
        )
        for isa in sets
    ]
    for (image, alpha), gradients in runs[1:]:
        np.testing.assert_allclose(image[~close], runs[0][0][0][~close], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(alpha[~close], runs[0][0][1][~close], rtol=1e-5, atol=1e-6)
        assert_same_gradients(gradients, runs[0][1])


def test_callback_equals_native():
    scene = make_scene(7, 2, 50, 20, 30, 4)
    d = cotangents(8, np.zeros((2, 30, 20), bool), 4)
    size = {"width": 20, "height": 30}
    for actual, expected in (
        (jax.jit(lambda *a: callback.blend_fwd(*a, **size))(*scene), native.blend_fwd(*scene, **size)),
        (
            jax.jit(lambda *a: callback.blend_bwd(*a[:6], None, None, *a[6:], **size))(*scene, *d),
            native.blend_bwd(*scene, None, None, *d, **size),
        ),
    ):
        assert np.abs(expected[0]).max() > 0
        jax.tree.map(np.testing.assert_array_equal, tuple(actual), tuple(expected))


def pile(alphas: list[float]) -> Scene:
    """Flat splats, one behind another, whose alpha over the whole image is as given; features 1."""
    number = len(alphas)
    return Scene(
        jnp.zeros((1, number, 2), jnp.float32),
        jnp.tile(jnp.array([1e-9, 0, 1e-9], jnp.float32), (1, number, 1)),
        jnp.array([alphas], jnp.float32),
        jnp.arange(number, dtype=jnp.float32)[None],
        jnp.ones((1, number, 1), jnp.float32),
        jnp.zeros((1, 1), jnp.float32),
    )


def test_splat_that_would_end_the_pixel_is_not_added():
    scene = pile([0.95, 0.95, 0.95, 0.95, 0.5])  # transmittance 0.05, 2.5e-3, 1.25e-4, then 6e-6: not added
    _, alpha = native.blend_fwd(*scene, width=20, height=3)
    np.testing.assert_allclose(alpha, 1 - 1.25e-4, rtol=1e-6)
    d = jnp.ones((1, 3, 20, 1)), jnp.zeros((1, 3, 20))
    d_features = native.blend_bwd(*scene, None, None, *d, width=20, height=3)[3]
    np.testing.assert_allclose(d_features[0, :, 0], 60 * np.array([0.95, 0.0475, 0.002375, 0, 0]), rtol=1e-5)


def test_clamped_alpha_has_no_geometry_gradient():
    scene = pile([1.0])
    d = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2))
    gradients = native.blend_bwd(*scene, None, None, *d, width=2, height=2)
    for gradient in gradients[:3]:
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))
    np.testing.assert_allclose(gradients[3], 4 * 0.99, rtol=1e-6)


def test_bad_geometry_is_inert():
    size = {"width": 30, "height": 20}
    good = make_scene(10, 1, 200, 30, 20, 3)
    bad = [np.array(x) for x in good]
    values = np.array([np.nan, np.inf, -np.inf, 3e38, -3e38], np.float32)
    for offset, field in enumerate(bad[:4], 1):  # every tenth splat, from 0 on, is inert anyway
        some = values if offset <= 2 else values[:3]  # an opacity of 3e38 is clamped, and any depth sorts
        field[0, offset::20] = np.resize(some, field[0, offset::20].shape)
    bad[1][0, 7::20] = [1, 2, 1]  # not positive definite
    hurt = np.isin(np.arange(200) % 20, [1, 2, 3, 4, 7])
    assert np.all(good.opacities[0, hurt] > 1 / 255)
    kept = Scene(*(x[:, ~hurt] for x in good[:5]), good.background)
    bad = [jnp.asarray(x) for x in bad]
    drawn, expected = (native.blend_fwd(*scene, **size) for scene in (bad, kept))
    assert np.abs(np.asarray(expected[0]) - native.blend_fwd(*good, **size)[0]).max() > 0.1  # the hurt ones were seen
    assert expected[1].max() > 0.5
    for a, b in zip(drawn, expected, strict=True):
        np.testing.assert_array_equal(a, b)
    d = cotangents(11, np.zeros((1, 20, 30), bool), 3)
    *gradients, background = (np.asarray(x) for x in native.blend_bwd(*bad, None, None, *d, **size))
    *expected, expected_background = native.blend_bwd(*kept, None, None, *d, **size)
    np.testing.assert_array_equal(background, expected_background)
    for name, gradient, wanted in zip(GRADIENTS, gradients, expected, strict=False):
        assert np.abs(wanted).max() > 0, name
        np.testing.assert_array_equal(gradient[:, hurt], 0, err_msg=name)
        np.testing.assert_array_equal(gradient[:, ~hurt], wanted, err_msg=name)


@pytest.mark.parametrize("axis", [0, 2])
def test_splats_wider_than_any_image_are_drawn(axis):
    scene = Scene(*(jnp.asarray(x, jnp.float32)[None] for x in ([[9.0, 5.0]], [[1, 0, 1]], [0.5], [1], [[1]], [0])))
    for wide in (1e-8, 1e-12, 1e-20, 1e-30):
        conics = scene.conics.at[..., axis].set(wide)
        for isa in native.instruction_sets():
            _, alpha = native.blend_fwd(*scene._replace(conics=conics), width=40, height=30, isa=isa)
            along = np.asarray(alpha)[0, 4] if axis == 0 else np.asarray(alpha)[0, :, 8]
            np.testing.assert_allclose(along, 0.5 * np.exp(-0.125), rtol=1e-5, err_msg=f"{isa}, {wide}")


def test_scratch_kept_between_calls_is_bounded():
    # In a process of its own: kept memory is the library's, and its allocator's history counts.
    code = """
import numpy as np
from gphm_kernels.backends import callback, primitives
import jax
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096
def draw(number):
    shapes = (1, number, 2), (1, number, 3), (1, number), (1, number), (1, number, 1), (1, 1)
    arrays = [np.ones(shape, np.float32) for shape in shapes]
    result = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ((1, 8, 8, 1), (1, 8, 8))]
    sizes = np.array([1, number, 1, 8, 8], np.int64)
    callback._run("blend_fwd", sizes, tuple(result), *arrays)
draw(10)
before = resident()
for number in range(100_000, 2_000_000, 47_111):
    draw(number)
print((resident() - before) >> 20)
"""
    if not pathlib.Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell a process's memory")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # 256 MB of scratch, and what the allocator holds of NumPy's arrays; kept without bound, it would be gigabytes.
    assert int(done.stdout) < 512, "MB are kept"


def test_many_splats_in_one_tile():
    number = 20000
    scene = pile([0.5 / 255] * number + [0.01] * 3000)
    _, alpha = native.blend_fwd(*scene, width=16, height=16)
    drawn = int(np.floor(np.log(TRANSMITTANCE_MIN) / np.log1p(-0.01)))  # the faint ones are skipped
    np.testing.assert_allclose(alpha, 1 - 0.99**drawn, rtol=1e-5)
    d = jnp.ones((1, 16, 16, 1)), jnp.zeros((1, 16, 16))
    d_features = native.blend_bwd(*scene, None, None, *d, width=16, height=16)[3][0, :, 0]
    np.testing.assert_array_equal(d_features[:number], 0)
    assert np.count_nonzero(d_features) == drawn


def test_no_splats_leave_the_background():
    scene = Scene(*(x[:, :0] for x in make_scene(12, 2, 1, 9, 5, 3)[:5]), jnp.array([[1.0, 2, 3], [4, 5, 6]]))
    image, alpha = native.blend_fwd(*scene, width=9, height=5)
    np.testing.assert_array_equal(image, np.broadcast_to(scene.background[:, None, None], image.shape))
    np.testing.assert_array_equal(alpha, np.zeros((2, 5, 9)))
    d = jnp.ones((2, 5, 9, 3)), jnp.ones((2, 5, 9))
    d_background = native.blend_bwd(*scene, None, None, *d, width=9, height=5)[4]
    np.testing.assert_array_equal(d_background, np.full((2, 3), 45))


def test_handler_refuses_bad_shapes():
    scene = make_scene(13, 1, 4, 8, 8, 3)
    attributes = {"width": np.int32(8), "height": np.int32(8), "num_threads": np.int32(0), "isa": np.int32(0)}
    results = jax.ShapeDtypeStruct((1, 8, 7, 3), jnp.float32), jax.ShapeDtypeStruct((1, 8, 8), jnp.float32)
    assert native.available()
    with pytest.raises(jax.errors.JaxRuntimeError, match="results must be"):
        jax.ffi.ffi_call("gphm_blend_fwd", results)(*scene, **attributes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="for features"):
        jax.ffi.ffi_call("gphm_blend_fwd", results)(scene[0], scene[0], *scene[2:], **attributes)
    results = native.blend_fwd(*scene, width=8, height=8)
    with pytest.raises(jax.errors.JaxRuntimeError, match="lacks the instruction set"):
        jax.ffi.ffi_call("gphm_blend_fwd", jax.eval_shape(lambda: results))(
            *scene, **attributes | {"isa": np.int32(9)}
        )
