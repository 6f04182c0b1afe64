"""The GPU's marching tetrahedra in Triton's interpreter: the reference's integers, for any grid and limits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_native_dmtet import assert_equal, make_grid, portable
from triton_interpreter import Interpreter

from gphm_kernels.backends import triton
from gphm_kernels.triton import dmtet, launches

pytest.importorskip("triton", reason="Triton has no packages for this platform")
ROOM = {"max_vertices": 3000, "max_faces": 6000}
BLOCK = launches.KERNELS["tetrahedra_count"].constants["BLOCK"]


@pytest.fixture(scope="module")
def extract():
    with Interpreter() as worker:
        function = functools.partial(dmtet.marching_tetrahedra, launch=worker.launch)
        yield jax.jit(function, static_argnames=("max_vertices", "max_faces"))


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 2, 2), (9, 8, 9), (2, 3, 130)])
def test_integers_are_the_references(extract, shape):
    """Noise, and a ball with zeros and NaNs; grids within one block, and across the border of two."""
    sdf = make_grid(*shape)
    expected = portable(sdf, **ROOM)
    counts = np.asarray(expected[2])
    assert np.all(counts[0] > 0) and counts[0, 0] < ROOM["max_vertices"] and counts[0, 1] < ROOM["max_faces"]
    assert_equal(extract(sdf, **ROOM), expected)


@pytest.mark.parametrize("limits", [(1, 1), (60, 6000), (3000, 50), (100, 100)])
def test_overflow_keeps_what_fits(extract, limits):
    sdf, room = make_grid(5, 4, 3), dict(zip(ROOM, limits, strict=True))
    expected = portable(sdf, **room)
    assert np.all(np.any(np.asarray(expected[2]) > np.array([limits]), 1))
    assert_equal(extract(sdf, **room), expected)


def test_blocks_without_crossings_are_passed_over(extract):
    """A surface in the middle block of five alone, in the batch's second grid alone."""
    shape = 5, 8, 64
    assert shape[1] * shape[2] == BLOCK
    x, y, z = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    ball = np.where((x == 2) & (y == 4) & (z == 7), 1.0, -1.0)
    sdf = jnp.asarray(np.stack([np.full(shape, np.nan), ball]), jnp.float32)
    edges, faces, counts = extract(sdf, **ROOM)
    assert counts[0].tolist() == [0, 0] and counts[1, 0] == 14  # seven edges to either side
    assert_equal((edges, faces, counts), portable(sdf, **ROOM))


def test_cuda_programs_launch_the_kernels_in_place():
    """What JAX makes for a GPU, without one: calls of the launcher that write to their last operands."""
    traced = jax.jit(functools.partial(triton.marching_tetrahedra, **ROOM)).trace(make_grid(5, 4, 3))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "@gphm_cuda_launch" in line]
    assert all("output_operand_alias" in line for line in calls)
    for name, call in zip(("count", "place", "connect"), calls, strict=True):
        assert f'kernel = "tetrahedra_{name}"' in call
