"""Gaussian splatting in plain JAX: against a loop over pixels, finite differences, and its symmetries."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from gphm_kernels import rows, splat
from gphm_kernels.backends import native
from gphm_kernels.reference import tiles

WIDTH, HEIGHT, CHANNELS, NUMBER = 37, 21, 3, 24  # six tiles, the last ones cut by the image
ARRAYS = ("means", "quats", "scales", "opacities", "features", "world_to_camera", "intrinsics", "background")


def make_scene(dtype=np.float32, seed=0) -> dict[str, jax.Array]:
    """Overlapping splats in front of a camera that is neither centred nor axis-aligned."""
    rng = np.random.default_rng(seed)
    axis = np.array([0.2, -0.3, 0.1])
    camera = np.eye(4)
    camera[:3, :3], camera[:3, 3] = rotation(np.array([1.0, *axis])), [0.1, -0.05, 2.5]
    scene = {
        "means": rng.normal(size=(NUMBER, 3)) * [0.6, 0.3, 0.4],
        "quats": rng.normal(size=(NUMBER, 4)),
        "scales": np.exp(rng.normal(size=(NUMBER, 3)) * 0.4) * 0.12,
        "opacities": rng.uniform(0.05, 0.95, NUMBER),
        "features": rng.normal(size=(NUMBER, CHANNELS)),
        "world_to_camera": camera,
        "intrinsics": np.array([[40.0, 0.0, 19.3], [0.0, 43.0, 9.8], [0.0, 0.0, 1.0]]),
        "background": rng.normal(size=CHANNELS),
    }
    return {name: jnp.asarray(value, dtype) for name, value in scene.items()}


def rotation(quat: np.ndarray) -> np.ndarray:
    """R v = q v q*, column by column."""
    w, v = quat[0] / np.linalg.norm(quat), quat[1:] / np.linalg.norm(quat)
    turn = lambda p: p + 2 * np.cross(v, np.cross(v, p) + w * p)  # noqa: E731
    return np.stack([turn(e) for e in np.eye(3)], 1)


@functools.partial(jax.jit, static_argnames=("width", "height"))
def draw(scene, width=WIDTH, height=HEIGHT):
    return splat(**scene, width=width, height=height, backend="xla")


def weighted(scene, d_image, d_alpha):
    image, alpha = draw(scene)
    return jnp.sum(image * d_image) + jnp.sum(alpha * d_alpha)


gradient = jax.jit(jax.grad(weighted))
value = jax.jit(weighted)


def cotangents(dtype=np.float32):
    rng = np.random.default_rng(1)
    return tuple(jnp.asarray(rng.normal(size=s), dtype) for s in ((HEIGHT, WIDTH, CHANNELS), (HEIGHT, WIDTH)))


def draw_by_loop(scene, width=WIDTH, height=HEIGHT):
    """The definition: textbook projection, then one pixel and one splat at a time. Also counts stops and clamps."""
    s = {name: np.asarray(value, np.float64) for name, value in scene.items()}
    (fx, _, cx), (_, fy, cy), _ = s["intrinsics"]
    turn, shift = s["world_to_camera"][:3, :3], s["world_to_camera"][:3, 3]
    projected = []
    for mean, quat, scale, opacity, feature in zip(*(s[name] for name in ARRAYS[:5]), strict=True):
        x, y, z = turn @ mean + shift
        jacobian = np.array([[fx / z, 0, -fx * x / z**2], [0, fy / z, -fy * y / z**2]])
        covariance = rotation(quat) @ np.diag(scale**2) @ rotation(quat).T
        inverse = np.linalg.inv(jacobian @ turn @ covariance @ turn.T @ jacobian.T + 0.3 * np.eye(2))
        projected.append((z, np.array([fx * x / z + cx, fy * y / z + cy]), inverse, opacity, feature))
    projected.sort(key=lambda item: item[0])
    image, alphas = np.zeros((height, width, len(s["background"]))), np.zeros((height, width))
    stops = clamps = 0
    for row in range(height):
        for column in range(width):
            transmittance = 1.0
            for _, mean, inverse, opacity, feature in projected:
                d = np.array([column + 0.5, row + 0.5]) - mean
                raw = opacity * np.exp(-0.5 * d @ inverse @ d)
                clamps += raw > 0.99
                alpha = min(0.99, raw)
                if alpha < 1 / 255:
                    continue
                if transmittance * (1 - alpha) <= 1e-4:
                    stops += 1
                    break
                image[row, column] += transmittance * alpha * feature
                transmittance *= 1 - alpha
            image[row, column] += transmittance * s["background"]
            alphas[row, column] = 1 - transmittance
    return image, alphas, stops, clamps


def test_matches_loop_over_pixels(float64):
    scene = make_scene(np.float64)
    # Wide opaque splats in the middle, so that the stop and the clamp are seen too.
    scene["opacities"] = scene["opacities"].at[:8].set(1.0)
    scene["scales"] = scene["scales"].at[:8].mul(4.0)
    expected, expected_alpha, stops, clamps = draw_by_loop(scene)
    assert stops > 20 and clamps > 20 and 0.2 < expected_alpha.mean() < 0.99
    image, alpha = draw(scene)
    np.testing.assert_allclose(image, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(alpha, expected_alpha, rtol=1e-9, atol=1e-10)


def test_splat_that_ends_a_pixel_is_not_added():
    scene = make_scene()
    scene["opacities"] = jnp.zeros(NUMBER).at[:3].set(0.98)
    # Three wide splats, one behind the other on the optical axis: transmittance 0.02, 4e-4, then 8e-6 is refused.
    scene["means"] = scene["means"].at[:3].set(jnp.array([[0, 0, 1], [0, 0, 2], [0, 0, 3.0]]))
    scene["scales"] = scene["scales"].at[:3].set(50.0)
    scene["world_to_camera"] = jnp.eye(4)
    _, alpha = draw(scene)
    np.testing.assert_allclose(alpha[10, 19], 1 - 4e-4, atol=1e-5)


def test_float32_agrees_with_float64():
    single = draw(make_scene())
    with jax.enable_x64(True):
        double = draw(make_scene(np.float64))
    for a, b in zip(single, double, strict=True):
        assert a.dtype == jnp.float32 and b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ARRAYS)
def test_gradient_matches_finite_differences(name, float64):
    scene, weights = make_scene(np.float64), cotangents(np.float64)
    assert np.all(np.asarray(scene["opacities"]) < 0.99)  # the clamp's gradient is another test
    rng = np.random.default_rng(2)
    analytic = gradient(scene, *weights)[name]
    step = 1e-8  # small, so that no splat crosses alpha = 1/255 at some pixel on the way
    for _ in range(3):
        direction = rng.normal(size=analytic.shape)
        ahead, behind = (value({**scene, name: scene[name] + s * direction}, *weights) for s in (step, -step))
        expected = (ahead - behind) / (2 * step)
        assert abs(expected) > 1e-3
        np.testing.assert_allclose(np.sum(analytic * direction), expected, rtol=2e-5, atol=2e-5)


def test_no_gradient_where_opacity_is_clamped():
    scene = make_scene()
    scene["opacities"] = jnp.zeros(NUMBER).at[0].set(3.0)
    scene["scales"] = scene["scales"].at[0].set(50.0)  # above 0.99 all over the image
    assert float(jnp.min(draw(scene)[1])) > 0.9899
    d = gradient(scene, *cotangents())
    assert d["opacities"][0] == 0 and not np.any(d["means"][0]) and np.any(d["features"][0])


def test_order_of_splats_has_no_effect():
    scene, weights = make_scene(), cotangents()
    order = np.random.default_rng(3).permutation(NUMBER)
    shuffled = {name: x[order] if name in ARRAYS[:5] else x for name, x in scene.items()}
    for a, b in zip(draw(scene), draw(shuffled), strict=True):
        np.testing.assert_array_equal(a, b)
    d, d_shuffled = gradient(scene, *weights), gradient(shuffled, *weights)
    for name in ARRAYS[:5]:
        np.testing.assert_allclose(d[name][order], d_shuffled[name], rtol=1e-5, atol=1e-6)


def test_moving_scene_and_camera_together_changes_nothing(float64):
    scene = make_scene(np.float64)
    motion = np.eye(4)
    quat = np.array([0.3, -0.5, 0.7, 0.2]) / np.linalg.norm([0.3, -0.5, 0.7, 0.2])
    motion[:3, :3], motion[:3, 3] = rotation(quat), [3.0, -2.0, 1.0]
    w, v = quat[0], quat[1:]
    w2, v2 = np.asarray(scene["quats"])[:, :1], np.asarray(scene["quats"])[:, 1:]
    product = np.concatenate([w * w2 - (v2 @ v)[:, None], w * v2 + w2 * v + np.cross(v, v2)], 1)
    moved = {
        **scene,
        "means": scene["means"] @ motion[:3, :3].T + motion[:3, 3][None],
        "quats": jnp.asarray(product),
        "world_to_camera": scene["world_to_camera"] @ np.linalg.inv(motion),
    }
    assert float(draw(scene)[1].mean()) > 0.1
    for a, b in zip(draw(scene), draw(moved), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


BAD_SPLATS = {
    "zero opacity": ("opacities", 0.0),
    "negative opacity": ("opacities", -1.0),
    "behind the camera": ("means", -50.0),
    "beyond far": ("means", 200.0),
    "NaN mean": ("means", np.nan),
    "infinite mean": ("means", np.inf),
    "NaN quaternion": ("quats", np.nan),
    "zero quaternion": ("quats", 0.0),
    "infinite scale": ("scales", np.inf),
    "overflowing scale": ("scales", 1e30),
    "NaN opacity": ("opacities", np.nan),
    "infinite feature": ("features", np.inf),
}


def test_splats_that_cannot_be_drawn_are_inert():
    scene, weights = make_scene(), cotangents()
    scene["world_to_camera"] = jnp.eye(4)
    scene["means"] = scene["means"] + jnp.array([[0.0, 0.0, 2.5]])
    hidden, broken = dict(scene), dict(scene)
    for index, (name, bad) in enumerate(BAD_SPLATS.values()):
        hidden["opacities"] = hidden["opacities"].at[index].set(0.0)
        where = (index, 2) if name == "means" else (index,)
        broken[name] = broken[name].at[where].set(bad)
    for a, b in zip(draw(hidden), draw(broken), strict=True):
        np.testing.assert_array_equal(a, b)
    assert float(draw(hidden)[1].max()) > 0.3
    d, d_hidden = gradient(broken, *weights), gradient(hidden, *weights)
    for name, leaf in d.items():
        assert np.all(np.isfinite(leaf)), name
        if name in ARRAYS[:5]:
            assert not np.any(leaf[: len(BAD_SPLATS)]), name
            assert np.any(leaf[len(BAD_SPLATS) :]), name
        np.testing.assert_allclose(leaf, d_hidden[name], rtol=1e-5, atol=1e-5)


def test_sign_of_scale_and_length_of_quaternion_have_no_effect():
    scene = make_scene()
    other = {**scene, "scales": -scene["scales"], "quats": scene["quats"] * 1e-25}
    for a, b in zip(draw(scene), draw(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_needles_and_dots_stay_finite():
    scene, weights = make_scene(), cotangents()
    scene["scales"] = jnp.asarray(10.0 ** np.random.default_rng(4).uniform(-12, 5, (NUMBER, 3)), jnp.float32)
    image, alpha = draw(scene)
    assert np.all(np.isfinite(image)) and float(alpha.max()) > 0.5
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient(scene, *weights)))


def test_crowded_scene_takes_more_groups_and_loses_nothing(monkeypatch):
    scene, weights = make_scene(), cotangents()
    expected, expected_gradient = draw(scene), gradient(scene, *weights)
    monkeypatch.setattr(tiles, "SLOTS_PER_PRIMITIVE", 0)
    monkeypatch.setattr(tiles, "SPARE_SLOTS", 0)  # now the buffer holds one splat's worth of slots per splat
    layout = tiles.make_layout(1, WIDTH, HEIGHT)
    zeros = jnp.zeros(NUMBER, jnp.int32)
    assert tiles.capacity(layout, tiles.Rectangles(zeros, zeros, zeros, zeros)) == NUMBER

    def run(scene):
        return splat(**scene, width=WIDTH, height=HEIGHT, backend="xla")

    image, pullback = jax.vjp(jax.jit(run), scene)
    for a, b in zip(expected, image, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected_gradient, pullback(weights)[0]
    )


def test_unused_slots_are_no_run_of_the_last_primitive(monkeypatch):
    """They are most of the buffer: summed as such, they would cost as many passes as the longest run of all."""
    primitive = jnp.array([0, 0, 2, 3, 3, 3, 3, 3, 3], jnp.int32)
    bins = tiles.Bins(jnp.arange(9), primitive, slots=jnp.array([2, 0, 1, 1]), start=jnp.zeros(2, jnp.int32))
    buffer = jnp.where(jnp.arange(9) < 4, 2.0 ** jnp.arange(9), jnp.nan)[:, None]
    np.testing.assert_array_equal(tiles.sum_by_primitive(buffer, bins)[:, 0], [3, 0, 4, 8])
    monkeypatch.setattr(tiles, "sum_sorted_rows", rows._fold)  # what runs on GPUs
    np.testing.assert_array_equal(tiles.sum_by_primitive(buffer, bins)[:, 0], [3, 0, 4, 8])


@pytest.mark.parametrize(("number", "channels", "width", "height"), [(0, 3, 20, 9), (2, 33, 1, 1), (40, 1, 17, 33)])
def test_odd_sizes(number, channels, width, height):
    scene = make_scene()
    take = np.arange(number) % NUMBER
    scene = {name: x[take] if name in ARRAYS[:5] else x for name, x in scene.items()}
    scene["features"] = jnp.asarray(np.random.default_rng(5).normal(size=(number, channels)), jnp.float32)
    scene["background"] = jnp.full(channels, 0.25)
    scene["intrinsics"] = scene["intrinsics"].at[0, 2].set(width / 2).at[1, 2].set(height / 2)
    image, alpha = draw(scene, width, height)
    expected, expected_alpha, _, _ = draw_by_loop(scene, width, height)
    assert image.shape == (height, width, channels) and (number == 0) == (expected_alpha.max() == 0)
    np.testing.assert_allclose(image, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(alpha, expected_alpha, rtol=1e-4, atol=1e-4)


def test_leading_dimensions_broadcast():
    scenes = [make_scene(seed=seed) for seed in (0, 1)]
    cameras = jnp.stack([scenes[0]["world_to_camera"], jnp.eye(4).at[2, 3].set(3.0), jnp.eye(4).at[2, 3].set(2.0)])
    batch = {name: jnp.stack([s[name] for s in scenes])[:, None] for name in ARRAYS[:5]}
    shared = {"world_to_camera": cameras, "intrinsics": scenes[0]["intrinsics"]}
    image, alpha = draw({**batch, **shared})
    assert image.shape == (2, 3, HEIGHT, WIDTH, CHANNELS) and alpha.shape == (2, 3, HEIGHT, WIDTH)
    for i, scene in enumerate(scenes):
        for j in range(3):
            one = {**scene, "world_to_camera": cameras[j], "background": jnp.zeros(CHANNELS)}
            np.testing.assert_allclose(image[i, j], draw(one)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["xla", "auto"])
def test_gradient_of_replicated_inputs_under_shard_map(backend):
    assert native.available(), native.reason()  # "auto" is "xla" otherwise
    scene = make_scene()
    camera = scene.pop("world_to_camera")
    cameras = jnp.stack([camera, camera.at[0, 3].add(0.1)])
    weights = jnp.stack([cotangents()[0], 0.5 * cotangents()[0]])
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    divided, whole = PartitionSpec("data"), PartitionSpec()

    def local(scene, cameras, weights):
        image, _ = splat(**scene, world_to_camera=cameras, width=WIDTH, height=HEIGHT, backend=backend)
        return jnp.sum(image * weights, (1, 2, 3))

    sharded = jax.shard_map(local, mesh=mesh, in_specs=(whole, divided, divided), out_specs=divided)
    d_sharded = jax.jit(jax.grad(lambda *x: sharded(*x).sum(), (0, 1)))(scene, cameras, weights)
    d_single = jax.jit(jax.grad(lambda *x: local(*x).sum(), (0, 1)))(scene, cameras, weights)
    assert float(jnp.abs(d_single[0]["means"]).max()) > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), d_sharded, d_single)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": np.zeros((NUMBER, 2), np.float32)}, r"means has shape \(24, 2\)"),
        ({"quats": np.zeros((7, 4), np.float32)}, r"quats has shape \(7, 4\).*n=24"),
        ({"background": np.zeros(5, np.float32)}, r"background has shape \(5,\).*c=3"),
        ({"opacities": np.zeros((3, NUMBER), np.float32), "scales": np.zeros((2, NUMBER, 3), np.float32)}, "broadcast"),
        ({"features": np.zeros((NUMBER, 3), np.int32)}, "features is int32"),
        ({"features": np.zeros((NUMBER, 0), np.float32), "background": None}, "no channels"),
        ({"width": 0}, "width=0"),
        ({"near": 2.0, "far": 1.0}, "near=2.0, far=1.0"),
        ({"eps2d": -0.1}, "eps2d=-0.1"),
        ({"backend": "cuda"}, "backend='cuda'.*'xla'"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    unchecked = inspect.unwrap(splat)  # without the tests' own shape checks, which would come first
    with pytest.raises(ValueError, match=message):
        unchecked(**{**make_scene(), "width": WIDTH, "height": HEIGHT, **change})


def test_native_backends_refuse_float64(float64):
    with pytest.raises(ValueError, match="float64"):
        splat(**make_scene(np.float64), width=WIDTH, height=HEIGHT, backend="native")
