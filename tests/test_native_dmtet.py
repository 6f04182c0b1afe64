"""The native marching tetrahedra: the reference's integers, for any grid, limits, threads and instruction set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_kernels.backends import callback, native
from gphm_kernels.reference import dmtet as reference

portable = jax.jit(reference.marching_tetrahedra, static_argnames=("max_vertices", "max_faces"))
ROOM = {"max_vertices": 4000, "max_faces": 9000}


@functools.cache
def make_grid(*shape: int) -> jax.Array:
    """Two grids of values: noise, so that every pattern of signs occurs; a ball with a few zeros and NaNs."""
    random = np.random.default_rng(0)
    noise = random.standard_normal(shape)
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    ball = 0.8 - np.sqrt(sum(x * x for x in axes))
    ball[random.random(shape) < 0.05] = 0
    ball[random.random(shape) < 0.05] = np.nan
    return jnp.asarray(np.stack([noise, ball]), jnp.float32)


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(5, 7, 6), (2, 2, 2), (3, 2, 64), (2, 3, 65), (2, 2, 130)])
def test_integers_are_the_references(shape):
    sdf = make_grid(*shape)
    expected = portable(sdf, **ROOM)
    counts = np.asarray(expected[2])
    assert np.all(counts[0] > 0) and counts[0, 0] < ROOM["max_vertices"] and counts[0, 1] < ROOM["max_faces"]
    for isa in native.instruction_sets():
        assert_equal(native.marching_tetrahedra(sdf, **ROOM, isa=isa), expected)


@pytest.mark.parametrize("limits", [(1, 1), (100, 9000), (4000, 100), (150, 150)])
def test_overflow_keeps_what_fits(limits):
    sdf, room = make_grid(5, 7, 6), dict(zip(ROOM, limits, strict=True))
    expected = portable(sdf, **room)
    assert np.any(np.asarray(expected[2]) > np.array([limits]))
    assert_equal(native.marching_tetrahedra(sdf, **room), expected)


def test_threads_and_batches_change_nothing():
    sdf = make_grid(20, 9, 70)
    room = {"max_vertices": 60_000, "max_faces": 120_000}
    whole = native.marching_tetrahedra(sdf, **room, num_threads=1)
    assert np.all(np.asarray(whole[2]) > 100) and int(whole[2].max()) < 120_000
    for threads in (2, 5, 0):
        assert_equal(native.marching_tetrahedra(sdf, **room, num_threads=threads), whole)
    for index in range(2):
        one = native.marching_tetrahedra(sdf[index : index + 1], **room)
        assert_equal(one, [x[index : index + 1] for x in whole])


def test_callback_equals_native():
    sdf = make_grid(5, 7, 6)
    expected = native.marching_tetrahedra(sdf, **ROOM)
    assert np.all(np.asarray(expected[2]) > 0)
    assert_equal(callback.marching_tetrahedra(sdf, **ROOM), expected)


def test_handler_refuses_bad_shapes_and_tables():
    sdf, (number, edges) = make_grid(5, 7, 6), reference.cube_table()
    results = jax.eval_shape(lambda: native.marching_tetrahedra(sdf, **ROOM))
    attributes = {name: np.int32(value) for name, value in {**ROOM, "num_threads": 0, "isa": 0}.items()}
    call = jax.ffi.ffi_call("gphm_marching_tetrahedra", results)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"sdf must be \[b, x, y, z\]"):
        call(sdf[0], number, edges, **attributes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="results"):
        call(sdf, number, edges, **attributes | {"max_faces": np.int32(8999)})
    with pytest.raises(jax.errors.JaxRuntimeError, match="at least 2|from 2"):
        call(sdf[:, :, :, :1], number, edges, **attributes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="leaves the cube"):
        call(sdf, number, np.where(edges == 3, 9, edges), **attributes)
