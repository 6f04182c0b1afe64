"""Arguments that no op can make sense of are refused in one line, by the names of the op and of the argument."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_splat import make_scene

from gphm_kernels import (
    antialias,
    grid_vertices,
    interpolate,
    marching_tetrahedra,
    point_mlp,
    rasterize_mesh,
    splat,
)

SIZE = {"width": 8, "height": 6}
CLIP = np.array([[-0.5, -0.5, 0, 1], [0.5, -0.5, 0, 1], [0, 0.5, 0, 1]], np.float32)
FACES = np.array([[0, 1, 2]], np.int32)
SDF = np.ones((3, 3, 3), np.float32)


def draw(**changes):
    """One small splat in a small image; without the tests' own shape checks, which would come first."""
    arrays = {
        "means": np.array([[0, 0, 1]]),
        "quats": np.array([[1, 0, 0, 0]]),
        "scales": np.full((1, 3), 0.1),
        "opacities": np.array([0.5]),
        "features": np.ones((1, 3)),
        "world_to_camera": np.eye(4),
        "intrinsics": np.array([[9, 0, 4], [0, 9, 3], [0, 0, 1]]),
    }
    return inspect.unwrap(splat)(**{name: np.float32(x) for name, x in arrays.items()} | SIZE | changes)


def rasterize(clip=CLIP, faces=FACES, **options):
    return inspect.unwrap(rasterize_mesh)(clip, faces, **SIZE | options)


def extract(sdf=SDF, resolution=2, max_vertices=9, max_faces=9):
    return inspect.unwrap(marching_tetrahedra)(sdf, resolution, max_vertices, max_faces)


def evaluate(**changes):
    arguments = {
        "features": np.ones((4, 5), np.float32),
        "kernels": [np.ones((5, 6), np.float32), np.ones((6, 2), np.float32)],
        "biases": [np.ones(6, np.float32), np.ones(2, np.float32)],
        "first_bias": np.ones(6, np.float32),
    }
    return inspect.unwrap(point_mlp)(**arguments | changes)


def on(device: int, array: np.ndarray) -> jax.Array:
    return jax.device_put(array, jax.devices()[device])


REFUSED = {
    "splat: means is not an array": lambda: draw(means=None),
    "splat: quats is not an array": lambda: draw(quats="none"),
    "splat: scales is not an array": lambda: draw(scales=[[1, 2, 3], [1]]),
    "splat: features is complex64": lambda: draw(features=np.ones((1, 3), np.complex64)),
    "splat: opacities is bool": lambda: draw(opacities=np.ones(1, bool)),
    "splat: means is on cpu:1 and features on cpu:2": lambda: draw(
        means=on(1, np.ones((1, 3), np.float32)), features=on(2, np.ones((1, 3), np.float32))
    ),
    "splat: width=True": lambda: draw(width=True),
    "splat: height=6.0": lambda: draw(height=6.0),
    "splat: width=16385": lambda: draw(width=16385),
    "splat: width=.*Tracer": lambda: jax.jit(lambda width: draw(width=width))(8),
    "splat: near=.*Tracer": lambda: jax.jit(lambda near: draw(near=near))(0.1),
    "splat: near=nan": lambda: draw(near=np.nan),
    "splat: far='x'": lambda: draw(far="x"),
    "splat: eps2d=None": lambda: draw(eps2d=None),
    r"splat: means has shape \(3,\)": lambda: jax.jit(lambda means: draw(means=means))(np.ones(3, np.float32)),
    "rasterize_mesh: clip_positions is int": lambda: rasterize(CLIP.astype(int)),
    "rasterize_mesh: faces is bool": lambda: rasterize(faces=FACES > 0),
    "rasterize_mesh: faces is not an array": lambda: rasterize(faces=None),
    r"rasterize_mesh: faces has shape \(1, 1, 3\)": lambda: rasterize(faces=FACES[None]),
    "rasterize_mesh: clip_positions is on cpu:1 and faces on cpu:2": lambda: rasterize(on(1, CLIP), on(2, FACES)),
    "interpolate: attributes is int": lambda: inspect.unwrap(interpolate)(
        np.ones((3, 2), int), rasterize(), FACES
    ),
    "antialias: .* float16": lambda: inspect.unwrap(antialias)(
        *(np.ones(shape, np.float16) for shape in ((6, 8, 3), (6, 8, 4), (3, 4))), FACES
    ),
    "marching_tetrahedra: sdf is int": lambda: extract(SDF.astype(int)),
    "marching_tetrahedra: sdf is not an array": lambda: extract(None),
    "marching_tetrahedra: resolution=2.0": lambda: extract(resolution=2.0),
    "marching_tetrahedra: resolution=None": lambda: extract(resolution=None),
    r"marching_tetrahedra: resolution=\(2, 2\)": lambda: extract(resolution=(2, 2)),
    "marching_tetrahedra: max_vertices=9.0": lambda: extract(max_vertices=9.0),
    "marching_tetrahedra: max_vertices=.*Tracer": lambda: jax.jit(lambda most: extract(max_vertices=most))(9),
    "marching_tetrahedra: max_faces=2147483648": lambda: extract(max_faces=2**31),
    "grid_vertices: resolution=-1": lambda: inspect.unwrap(grid_vertices)(-1),
    "point_mlp: features is int": lambda: evaluate(features=np.ones((4, 5), int)),
    r"point_mlp: kernels\[1\] is bool": lambda: evaluate(kernels=[np.ones((5, 6)), np.ones((6, 2), bool)]),
    "point_mlp: first_bias is not an array": lambda: evaluate(first_bias=None),
    r"point_mlp: the widths are \[5, 70000\]": lambda: evaluate(
        kernels=[np.ones((5, 70000))], biases=[np.ones(70000)], first_bias=np.ones(70000)
    ),
    "point_mlp: 1025 layers": lambda: evaluate(kernels=[np.ones((5, 5))] * 1025, biases=[np.ones(5)] * 1025),
    r"point_mlp: features is on cpu:1 and biases\[0\] on cpu:2": lambda: evaluate(
        features=on(1, np.ones((4, 5), np.float32)), biases=[on(2, np.ones(6, np.float32)), np.ones(2, np.float32)]
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_is_refused_is_named(message):
    with pytest.raises((ValueError, TypeError), match=message) as error:
        REFUSED[message]()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_refused(dtype):
    half = {name: jnp.asarray(x, dtype) for name, x in make_scene().items()}
    with pytest.raises(ValueError, match=f"splat: .*{jnp.dtype(dtype).name}; cast them to float32"):
        draw(**half)
    with pytest.raises(ValueError, match=f"rasterize_mesh: .*{jnp.dtype(dtype).name}; cast them"):
        rasterize(jnp.asarray(CLIP, dtype))


@pytest.mark.parametrize("index", [np.int64(2**32 + 2), np.int64(-(2**32) + 2), np.uint64(2**63), np.uint32(2**32 - 1)])
def test_an_index_beyond_int32_names_no_vertex(index):
    faces = np.array([[0, 1, index]], index.dtype)
    assert np.any(rasterize()) and not np.any(rasterize(faces=faces))
