"""The native CPU kernels: against the portable reference and NumPy, for any threads, instruction set and input."""

import concurrent.futures
import ctypes
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels.backends import build, callback, native
from gphm_kernels.reference import mesh as reference_mesh
from gphm_kernels.reference import splat as reference_splat

ALPHA_MIN, ALPHA_MAX, TRANSMITTANCE_MIN = 1 / 255, 0.99, 1e-4
portable_fwd = jax.jit(reference_splat.blend_fwd, static_argnames=("width", "height"))
portable_bwd = jax.jit(reference_splat.blend_bwd, static_argnames=("width", "height"))
portable_rasterize = jax.jit(reference_mesh.rasterize_fwd, static_argnames=("width", "height"))
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
    positions, faces = make_mesh(9)
    expected = native.rasterize_fwd(positions, faces, **size)
    assert expected[..., 3].max() > 0
    np.testing.assert_array_equal(callback.rasterize_fwd(positions, faces, **size), expected)


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
        field[0, offset::20] = np.resize(values, field[0, offset::20].shape)
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


@pytest.fixture
def tiny_sources(tmp_path, monkeypatch):
    """A folder of sources as small as can be, which the builder takes for the kernels'."""
    folder = tmp_path / "csrc"
    folder.mkdir()
    for op in build._OPS:
        (folder / f"{op}.cc").write_text(f"namespace GPHM_ISA {{ int {op}() {{ return 0; }} }}\n")
    write_answer(folder, 1)
    monkeypatch.setattr(build, "_source_folder", lambda: folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return folder


def write_answer(folder: pathlib.Path, answer: int) -> None:
    declaration = 'extern "C" __attribute__((visibility("default")))'
    (folder / f"{build._HANDLERS}.cc").write_text(f"{declaration} int answer() {{ return {answer}; }}\n")


def test_changed_source_is_built_again(tiny_sources):
    first = build.build()
    assert ctypes.CDLL(str(first)).answer() == 1
    written = first.stat().st_mtime_ns
    assert build.build() == first and first.stat().st_mtime_ns == written
    write_answer(tiny_sources, 2)
    second = build.build()
    assert second != first and ctypes.CDLL(str(second)).answer() == 2


def test_another_compiler_makes_another_library(tiny_sources, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    first = build.build()
    assert first.name == build.packed_name()
    monkeypatch.setenv("CXX", " ".join((*build._find_compiler(), "-g0")))
    second = build.build()
    assert second != first and ctypes.CDLL(str(second)).answer() == 1
    assert first.name == build.packed_name()


def test_builds_at_once_leave_one_library(tiny_sources):
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        paths = set(pool.map(lambda _: build.build(), range(3)))
    assert len(paths) == 1 and ctypes.CDLL(str(paths.pop())).answer() == 1
    left = sorted(p.name for p in (tiny_sources.parent / "build").iterdir())
    assert [pathlib.Path(name).suffix for name in left] == ["", ".log", ".so"]


def test_failed_build_names_its_log_and_is_not_repeated(tiny_sources):
    (tiny_sources / "rasterize.cc").write_text("this is not C++\n")
    with pytest.raises(build.BuildError, match=r"log: .*\.log") as error:
        build.build()
    log = pathlib.Path(str(error.value).split("log: ")[1].rstrip(")"))
    assert "this is not C++" in log.read_text()
    with pytest.raises(build.BuildError, match="before"):
        build.build()
    write_answer(tiny_sources, 3)
    (tiny_sources / "rasterize.cc").write_text("\n")
    assert ctypes.CDLL(str(build.build())).answer() == 3


def test_without_a_compiler_one_warning_and_the_portable_backend(tmp_path):
    kernels = pathlib.Path(build.__file__).parents[2]
    ignore = shutil.ignore_patterns("__pycache__", "build")
    shutil.copytree(kernels, tmp_path / "kernels", ignore=ignore)
    program = """
import jax.numpy as jnp
from gphm_kernels import backends
from gphm_kernels.backends import native
from gphm_kernels.reference import splat
for _ in range(2):
    assert backends.dispatch("blend_fwd", "auto", jnp.float32) is splat.blend_fwd
assert not native.available()
"""
    environment = {
        "PYTHONPATH": str(tmp_path / "kernels"),
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "JAX_PLATFORMS": "cpu",
    }
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    warnings = [line for line in result.stderr.splitlines() if "compiler" in line]
    assert len(warnings) == 1 and "apt-get install g++" in warnings[0], result.stderr
