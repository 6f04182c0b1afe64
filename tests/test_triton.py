"""The GPU kernels in Triton's interpreter: against the portable reference, for any channels, sizes and crowding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native import Scene, assert_same_gradients, blend_slowly, cotangents, make_scene, pile
from triton_interpreter import Interpreter

from gphm_kernels.backends import triton
from gphm_kernels.reference import splat as reference
from gphm_kernels.reference import tiles
from gphm_kernels.triton import splat

pytest.importorskip("triton", reason="Triton has no packages for this platform")
portable_fwd = jax.jit(reference.blend_fwd, static_argnames=("width", "height"))
portable_bwd = jax.jit(reference.blend_bwd, static_argnames=("width", "height"))


@pytest.fixture(scope="module")
def interpreter():
    with Interpreter() as worker:
        yield worker


@pytest.fixture
def blend(interpreter):
    """Forward and backward; jitted anew for each test, since some change how tiles are grouped."""
    names = ("width", "height")
    return tuple(
        jax.jit(functools.partial(function, launch=interpreter.launch), static_argnames=names)
        for function in (splat.blend_fwd, splat.blend_bwd)
    )


def compare(blend, scene: Scene, width: int, height: int) -> tuple[jax.Array, jax.Array]:
    """Asserts that both directions agree with the reference away from pixels too close to call; image and alpha."""
    forward, backward = blend
    _, _, close = blend_slowly(scene, width, height)
    assert close.mean() < 0.05
    keep = ~close
    image, alpha = forward(*scene, width=width, height=height)
    expected = portable_fwd(*scene, width=width, height=height)
    np.testing.assert_allclose(image[keep], expected[0][keep], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alpha[keep], expected[1][keep], rtol=1e-5, atol=1e-6)
    d = cotangents(2, close, scene.features.shape[-1])
    actual = backward(*scene, *expected, *d, width=width, height=height)
    assert_same_gradients(actual, portable_bwd(*scene, *expected, *d, width=width, height=height))
    return image, alpha


SIZES = [  # batch, splats, width, height, channels
    (1, 40, 32, 32, 32),
    (2, 30, 33, 17, 3),
    (1, 64, 20, 40, 33),
    (1, 20, 16, 16, 70),
    (2, 12, 1, 1, 1),
]


@pytest.mark.parametrize("size", SIZES)
def test_blend_matches_reference(blend, size):
    _, alpha = compare(blend, make_scene(1, *size), *size[2:4])
    assert alpha.max() > 0.5


def test_full_screen_splats_and_empty_tiles(blend):
    scene = make_scene(21, 1, 40, 48, 32, 4)
    means, conics, opacities = (np.array(x) for x in scene[:3])
    conics[0, 3::13] = [1e-6, 0, 1e-6]
    opacities[0, 3::13] = 0.3
    scene = scene._replace(conics=jnp.asarray(conics), opacities=jnp.asarray(opacities))
    _, alpha = compare(blend, scene, 48, 32)
    assert alpha.min() > 0.5
    means[0] = means[0] % 14 + 1  # all within the first tile, none wide
    conics[0] = [4, 0, 4]
    scene = scene._replace(means2d=jnp.asarray(means), conics=jnp.asarray(conics))
    _, alpha = compare(blend, scene, 48, 32)
    assert alpha[0, :16, :16].max() > 0.5 and not np.any(alpha[0, :, 20:])


def test_nothing_drawn_leaves_the_background(blend):
    scene = make_scene(5, 2, 8, 20, 18, 3)._replace(opacities=jnp.zeros((2, 8)))
    image, alpha = blend[0](*scene, width=20, height=18)
    np.testing.assert_array_equal(image, np.broadcast_to(scene.background[:, None, None], image.shape))
    assert not np.any(alpha)
    d = jnp.ones((2, 18, 20, 3)), jnp.ones((2, 18, 20))
    *gradients, d_background = blend[1](*scene, image, alpha, *d, width=20, height=18)
    assert not any(np.any(gradient) for gradient in gradients)
    np.testing.assert_array_equal(d_background, np.full((2, 3), 360))


def test_splat_that_would_end_the_pixel_is_not_added(blend):
    scene = pile([0.95, 0.95, 0.95, 0.95, 0.5])  # transmittance 0.05, 2.5e-3, 1.25e-4, then 6e-6: not added
    image, alpha = blend[0](*scene, width=20, height=3)
    np.testing.assert_allclose(alpha, 1 - 1.25e-4, rtol=1e-6)
    d = jnp.ones((1, 3, 20, 1)), jnp.zeros((1, 3, 20))
    d_features = blend[1](*scene, image, alpha, *d, width=20, height=3)[3]
    np.testing.assert_allclose(d_features[0, :, 0], 60 * np.array([0.95, 0.0475, 0.002375, 0, 0]), rtol=1e-5)


def test_opaque_stack_ends_in_a_later_block(blend):
    scene = pile([0.2] * 70)  # 41 splats bring the transmittance to 1.06e-4: the tile ends in its second or third block
    image, alpha = blend[0](*scene, width=16, height=16)
    np.testing.assert_allclose(alpha, 1 - 0.8**41, rtol=1e-5)
    d = jnp.ones((1, 16, 16, 1)), jnp.zeros((1, 16, 16))
    d_features = blend[1](*scene, image, alpha, *d, width=16, height=16)[3][0, :, 0]
    np.testing.assert_allclose(d_features[:41], 256 * 0.2 * 0.8 ** np.arange(41), rtol=1e-4)
    assert not np.any(d_features[41:])


def test_clamped_alpha_has_no_geometry_gradient(blend):
    scene = pile([1.0])
    image, alpha = blend[0](*scene, width=2, height=2)
    d = jnp.ones((1, 2, 2, 1)), jnp.ones((1, 2, 2))
    gradients = blend[1](*scene, image, alpha, *d, width=2, height=2)
    assert not any(np.any(gradient) for gradient in gradients[:3])
    np.testing.assert_allclose(gradients[3], 4 * 0.99, rtol=1e-6)


def listed_tiles(scene: Scene, width: int, height: int) -> int:
    """How many tiles have lists."""
    layout = tiles.make_layout(scene.background.shape[0], width, height)
    splats, _ = reference.arrange(layout, *scene[:5])
    return int(tiles.bin_first(layout, splats.rectangles, reference.touches(splats))[1][0])


def make_few_slots(monkeypatch, slots: int) -> None:
    """A buffer of as many slots, or of one image's splats if these are more."""
    monkeypatch.setattr(tiles, "SLOTS_PER_PRIMITIVE", 0)
    monkeypatch.setattr(tiles, "SPARE_SLOTS", slots)


@pytest.mark.parametrize(("slots", "listed"), [(0, {1, 2}), (36, {4, 5})])
def test_crowded_tiles_lose_nothing(blend, monkeypatch, slots, listed):
    """Lists for a part of the first image alone, or of the second one, too."""
    scene = make_scene(7, 2, 16, 33, 16, 17)
    make_few_slots(monkeypatch, slots)
    assert listed_tiles(scene, 33, 16) in listed
    _, alpha = compare(blend, scene, 33, 16)
    assert alpha[:, :, :16].max() > 0.5 and alpha[:, :, 16:].max() > 0.5


def test_tiles_may_all_be_crowded(blend, monkeypatch):
    def bin_none(*arguments):
        bins, last = tiles.bin_first(*arguments)
        return bins._replace(start=0 * bins.start, slots=0 * bins.slots), 0 * last

    monkeypatch.setattr(splat, "bin_first", bin_none)
    _, alpha = compare(blend, make_scene(10, 2, 20, 20, 16, 3), 20, 16)
    assert alpha.max() > 0.5


def test_many_splats_over_the_whole_image_crowd_it(blend):
    random = np.random.default_rng(8)
    scene = make_scene(8, 1, 350, 64, 64, 3)
    conics = np.zeros((1, 350, 3)) + [2e-4, 1e-4, 2e-4]
    scene = scene._replace(
        conics=jnp.asarray(conics, jnp.float32),
        opacities=jnp.asarray(random.uniform(0.2, 0.9, (1, 350)), jnp.float32),
    )
    assert 0 < listed_tiles(scene, 64, 64) < 16
    _, alpha = compare(blend, scene, 64, 64)
    assert alpha.min() > 0.99


@pytest.fixture
def crowded(monkeypatch):
    """A scene with lists for the first tiles of six alone, with its image and alpha; cotangents; and the size."""
    scene, size = make_scene(11, 1, 20, 40, 20, 3), {"width": 40, "height": 20}
    make_few_slots(monkeypatch, 24)
    assert listed_tiles(scene, 40, 20) == 2
    image, alpha = portable_fwd(*scene, **size)
    return (*scene, image, alpha), cotangents(12, np.zeros((1, 20, 40), bool), 3), size


def test_crowded_sums_have_the_same_bits_in_any_order(blend, crowded, interpreter, monkeypatch):
    arrays, d, size = crowded
    runs = [blend[1](*arrays, *d, **size)]
    monkeypatch.setattr(interpreter, "backwards", True)
    runs.append(blend[1](*arrays, *d, **size))
    for first, second in zip(*runs, strict=True):
        assert np.abs(first).max() > 0
        np.testing.assert_array_equal(first, second)


def test_crowded_sums_scale_with_the_cotangent(blend, crowded):
    """Through float32's range, where sums have units of their own; to zero, and down to numbers that lose bits."""
    arrays, d, size = crowded
    expected = blend[1](*arrays, *d, **size)[3]
    for power in (-100, 110):
        d_features = blend[1](*arrays, *(x * 2.0**power for x in d), **size)[3]
        np.testing.assert_array_equal(d_features, expected * 2.0**power)
    tiny = [jnp.asarray(np.asarray(x) * np.float32(2.0**-140)) for x in d]
    d_features = np.asarray(blend[1](*arrays, *tiny, **size)[3], np.float64)
    assert np.abs(d_features).max() > 0
    np.testing.assert_allclose(d_features, np.asarray(expected, np.float64) * 2.0**-140, rtol=0, atol=2.0**-140)
    assert not any(np.any(gradient) for gradient in blend[1](*arrays, *(0 * x for x in d), **size))


def test_crowded_sums_of_what_is_not_finite_are_not(blend, crowded):
    arrays, d, size = crowded
    expected = blend[1](*arrays, *d, **size)
    hurt = np.asarray(arrays[4]).copy()
    splat = int(np.argmax(np.abs(expected[2][0]) * (np.asarray(arrays[0])[0, :, 0] > 30)))  # in crowded tiles
    hurt[0, splat, 1] = np.nan
    actual = blend[1](*arrays[:4], jnp.asarray(hurt), *arrays[5:], *d, **size)
    for gradient in actual[:3]:
        assert np.all(np.isnan(gradient[0, splat]))
        assert np.any(np.isfinite(gradient))
    np.testing.assert_array_equal(actual[3], expected[3])  # they depend on no feature
    for value in (np.inf, -np.inf):
        d_image = d[0].at[0, 10, 36].set(value)
        d_features = blend[1](*arrays, d_image, d[1], **size)[3][0]
        changed = np.any(d_features != expected[3][0], -1)
        assert 0 < changed.sum() < 20 and not np.any(np.isfinite(d_features[changed]))


def test_crowded_tiles_leave_out_what_does_not_touch_them(blend, crowded):
    """The tile at the lower right alone reads a feature that is not a number."""
    (means, conics, opacities, depths, features, background, *_), _, size = crowded
    scene = Scene(
        means.at[0, 0].set(jnp.array([37.0, 18.5])),
        conics.at[0, 0].set(jnp.array([2.0, 0.0, 2.0])),
        opacities.at[0, 0].set(0.9),
        depths.at[0, 0].set(0.5),
        features.at[0, 0].set(jnp.nan),
        background,
    )
    assert listed_tiles(scene, 40, 20) < 3
    hurt = np.isnan(blend[0](*scene, **size)[0][0])
    assert np.any(hurt[16:, 32:]) and not np.any(hurt[:16]) and not np.any(hurt[:, :32])


def test_rows_beyond_int32_are_refused(blend):
    shapes = jax.eval_shape(lambda: make_scene(1, 1, 4, 16, 16, 9000))
    with pytest.raises(ValueError, match="9024 channels in an image 16000 wide"):
        jax.eval_shape(functools.partial(blend[0], width=16000, height=16), *shapes)


def test_cuda_programs_launch_the_kernels_in_place():
    """What JAX makes for a GPU, without one: calls of the launcher that write to their last operands."""
    scene = make_scene(1, 1, 40, 32, 32, 32)
    image, alpha = jnp.zeros((1, 32, 32, 32)), jnp.zeros((1, 32, 32))
    backward = {"blend_bwd_32": 1, "crowded_bwd_16": 2, "sum_rows": 2}
    for function, arrays, kernels in (
        (triton.blend_fwd, scene, {"blend_fwd_32": 1, "crowded_fwd_32": 1}),
        (triton.blend_bwd, (*scene, image, alpha, image, alpha), backward),
    ):
        traced = jax.jit(functools.partial(function, width=32, height=32)).trace(*arrays)
        text = traced.lower(lowering_platforms=("cuda",)).as_text()
        calls = [line for line in text.splitlines() if "@gphm_cuda_launch" in line]
        for kernel, number in kernels.items():
            found = [line for line in calls if f'kernel = "{kernel}"' in line]
            assert len(found) == number and all("output_operand_alias" in line for line in found), kernel
        assert len(calls) == sum(kernels.values())
        assert "stablehlo.sort" in text and "stablehlo.while" not in text


def test_same_bits_on_every_run(blend):
    scene = make_scene(3, 2, 50, 30, 20, 5)
    d = cotangents(4, np.zeros((2, 20, 30), bool), 5)
    size = {"width": 30, "height": 20}
    runs = []
    for _ in range(2):
        image, alpha = blend[0](*scene, **size)
        runs.append((image, alpha, *blend[1](*scene, image, alpha, *d, **size)))
    assert np.abs(runs[0][2]).max() > 0
    for first, second in zip(*runs, strict=True):
        np.testing.assert_array_equal(first, second)


def test_features_that_no_list_names_are_not_blended(blend):
    """Lanes beyond a list's end read splat 0, whose feature may be anything."""
    scene = make_scene(9, 1, 21, 32, 16, 3)
    scene = scene._replace(means2d=scene.means2d.at[0, 0].set(1e3), opacities=scene.opacities.at[0, 0].set(0.5))
    hurt = scene._replace(features=scene.features.at[0, 0].set(jnp.nan))
    expected, alpha = blend[0](*scene, width=32, height=16)
    assert alpha.max() > 0.3
    np.testing.assert_array_equal(blend[0](*hurt, width=32, height=16)[0], expected)
