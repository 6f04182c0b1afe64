"""The native projection: against the portable reference, for any threads, instruction set and input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels.backends import native
from gphm_kernels.reference import projection as reference

LIMITS = {"near": 0.5, "far": 20.0, "eps2d": 0.3}
GRADIENTS = ("means", "quats", "scales", "opacities", "world_to_camera", "intrinsics")
portable_fwd = jax.jit(reference.project_fwd, static_argnames=tuple(LIMITS))
portable_bwd = jax.jit(reference.project_bwd, static_argnames=tuple(LIMITS))


def make_splats(number: int = 4133, batch: int = 2, channels: int = 5) -> list[np.ndarray]:
    """Splats before, around and behind two turned cameras; a number that no vector and no chunk divides."""
    random = np.random.default_rng(0)
    means = random.uniform(-3, 3, (batch, number, 3))
    quats = random.standard_normal((batch, number, 4)) * random.uniform(0.1, 9, (batch, number, 1))
    scales = np.exp(random.uniform(-4, -1, (batch, number, 3))) * random.choice([-1, 1], (batch, number, 3))
    opacities, features = random.random((batch, number)), random.standard_normal((batch, number, channels))
    pose = np.tile(np.eye(4), (batch, 1, 1))
    pose[:, :3, :3] = [np.linalg.qr(random.standard_normal((3, 3)))[0] for _ in range(batch)]
    pose[:, :3, 3] = random.uniform(-0.3, 0.3, (batch, 3)) + [0, 0, 2]
    intrinsics = np.tile(np.array([[300.0, 0, 128], [0, 280, 120], [0, 0, 1]]), (batch, 1, 1))
    return [np.float32(x) for x in (means, quats, scales, opacities, features, pose, intrinsics)]


def arrays(numpy: list[np.ndarray]) -> list[jax.Array]:
    return [jnp.asarray(x) for x in numpy]


def spoil(splats: list[np.ndarray]) -> np.ndarray:
    """Makes some splats undrawable in every way there is; which ones, [n], in both images."""
    means, quats, scales, opacities, features, *_ = splats
    means[:, 1, 0], means[:, 3, 2], means[:, 5] = np.nan, np.inf, 1e38
    quats[:, 7], quats[:, 9, 3] = 0, np.nan
    scales[:, 11, 1], scales[:, 13] = np.inf, 1e30
    opacities[:, 15], opacities[:, 17] = np.nan, -np.inf
    features[:, 19, 4], features[:, 21, 0] = np.nan, np.inf
    spoilt = np.zeros(means.shape[1], bool)
    spoilt[1:22:2] = True
    return spoilt


def cotangents(splats: list[np.ndarray]) -> list[np.ndarray]:
    random = np.random.default_rng(1)
    shape = splats[3].shape
    return [np.float32(random.standard_normal((*shape, *width))) for width in ((2,), (3,), ())]


def assert_close(actual: jax.Array, desired: jax.Array, rtol: float, name: str) -> None:
    """Relative to the greatest component of each splat's vector, or of the camera's matrix."""
    width = actual.shape[-1] if np.ndim(actual) > 2 else 1
    actual, desired = (np.asarray(x, np.float64).reshape(-1, width) for x in (actual, desired))
    error = np.abs(actual - desired).max(-1) / np.maximum(np.abs(desired).max(-1), 1e-30)
    assert error.max() <= rtol, f"{name}: row {error.argmax()} is {error.max()} off"


def test_forward_matches_reference():
    splats = make_splats()
    splats[1][:, 30] *= 1e-30  # a quaternion's length does not matter, nor do needles
    splats[2][:, 32] = [1e-6, 1e-6, 2.0]
    spoilt = spoil(splats)
    actual, desired = (project(*arrays(splats), **LIMITS) for project in (native.project_fwd, portable_fwd))
    drawn = np.asarray(desired[2]) > 0
    assert 0.3 < drawn.mean() < 0.9 and not drawn[:, spoilt].any() and drawn[:, 30].any()
    for name, a, d in zip(("means2d", "conics"), actual, desired, strict=False):
        assert_close(a, d, 1e-5, name)
    np.testing.assert_array_equal(actual[2], desired[2])
    np.testing.assert_allclose(np.asarray(actual[3])[drawn], np.asarray(desired[3])[drawn], rtol=1e-5)


def test_gradients_match_reference_and_undrawn_splats_have_none():
    splats = make_splats()
    spoilt = spoil(splats)
    inputs = arrays(splats) + arrays(cotangents(splats))
    drawn = np.asarray(portable_fwd(*inputs[:7], **LIMITS)[2]) > 0
    actual, desired = (differentiate(*inputs, **LIMITS) for differentiate in (native.project_bwd, portable_bwd))
    for name, a, d in zip(GRADIENTS, actual, desired, strict=True):
        assert np.isfinite(a).all() and np.abs(a).max() > 0, name
        assert_close(a, d, 1e-4, name)
    for name, a in zip(GRADIENTS[:4], actual, strict=False):
        assert not np.asarray(a)[:, spoilt].any() and not np.asarray(a)[~drawn].any(), name


@pytest.mark.parametrize("isa", native.instruction_sets())
def test_instruction_sets_agree_and_threads_change_no_bit(isa):
    splats = make_splats()
    inputs = arrays(splats) + arrays(cotangents(splats))
    for project, arguments in ((native.project_fwd, inputs[:7]), (native.project_bwd, inputs)):
        one, best = (project(*arguments, isa=i, num_threads=1, **LIMITS) for i in (isa, "auto"))
        many = project(*arguments, isa=isa, num_threads=3, **LIMITS)
        for i, (a, b, c) in enumerate(zip(one, many, best, strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=f"{project.__name__} {i}")
            if i < 2 or project is native.project_bwd:  # the depth of what is not drawn may be next to nothing
                assert_close(a, c, 1e-4, f"{project.__name__} {i}")


def test_splats_on_the_planes_are_drawn_and_none_is_fine():
    splats = make_splats(6, batch=1)
    splats[5][:] = np.eye(4)
    splats[0][0] = [[0, 0, z] for z in (0.5, 20.0, np.nextafter(np.float32(0.5), 0), 20.0001, -1.0, 0.0)]
    opacities = np.asarray(native.project_fwd(*arrays(splats), **LIMITS)[2])[0]
    np.testing.assert_array_equal(opacities > 0, [True, True, False, False, False, False])
    nothing = arrays([x[:, :0] if i < 5 else x for i, x in enumerate(splats)])
    assert native.project_fwd(*nothing, **LIMITS)[0].shape == (1, 0, 2)
    empty = arrays([x[:, :0] for x in cotangents(splats)])
    assert not any(jnp.any(x) for x in native.project_bwd(*nothing, *empty, **LIMITS))
