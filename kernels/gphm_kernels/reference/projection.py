"""Projects 3D Gaussians into the image: means, inverse covariances, and which of them can be drawn at all.

Everything is computed a component at a time, on arrays of one number for each splat. Arrays whose last axis is 2, 3
or 4 long leave vector units empty: 100,000 splats took 28 ms on two cores and 98 with the gradient, not 4 and 20.
"""

import operator
from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

INFINITE = 1e30  # values of this size and more count as infinite
MAX_CONIC = 1e9  # px^-2; a splat narrower than 3e-5 px, which only eps2d = 0 lets be, has no gradient in float32

Vector = list[Array]  # its components, each [b n]
Matrix = list[list[Array]]  # its entries, each [b 1]


class _Gaussians(NamedTuple):
    """What the projection reads, in camera space."""

    point: Vector
    quat: Vector
    scale: Vector


class _Camera(NamedTuple):
    rotation: Matrix
    translation: Vector  # each [b 1]
    focal: Vector
    centre: Vector


def project_fwd(
    means: Float[Array, "b n 3"],
    quats: Float[Array, "b n 4"],
    scales: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    world_to_camera: Float[Array, "b 4 4"],
    intrinsics: Float[Array, "b 3 3"],
    *,
    near: float,
    far: float,
    eps2d: float,
) -> tuple[Float[Array, "b n 2"], Float[Array, "b n 3"], Float[Array, "b n"], Float[Array, "b n"]]:
    """Means (px), conics (px^-2), opacities and depths in the image; see `splat` for the contract.

    A splat that cannot be drawn, such as one with a value in any array, `features` included, that is not finite, gets
    opacity zero and harmless geometry.
    """
    camera = _camera(world_to_camera, intrinsics)
    finite = _finite([*_components(means), opacities]) & jnp.all(_is_finite(features), -1)
    mean = [jnp.where(finite, x, 0) for x in _components(means)]
    point = [x + t for x, t in zip(_rotate(camera.rotation, mean), camera.translation, strict=True)]
    raw = _Gaussians(point, _components(quats), _components(scales))
    # Found without gradient, then replaced before the differentiated pass: a NaN leaks through a `where` around it.
    fixed, fixed_camera = lax.stop_gradient((raw, camera))
    drawn = finite & _drawable(fixed, near, far)
    mean2d, conic = _project(_replace(drawn, fixed), fixed_camera, eps2d)
    drawn &= _finite([*mean2d, *conic])
    for diagonal in (conic[0], conic[2]):
        drawn &= (diagonal > 0) & (diagonal < MAX_CONIC)

    mean2d, conic = _project(_replace(drawn, raw), camera, eps2d)
    # An undrawn splat sits at the image's corner as a small round dot of opacity zero.
    mean2d = [jnp.where(drawn, x, 0) for x in mean2d]
    conic = [jnp.where(drawn, x, other) for x, other in zip(conic, (1, 0, 1), strict=True)]
    return _stack(mean2d), _stack(conic), jnp.where(drawn, opacities, 0), point[2]


def project_bwd(
    means: Float[Array, "b n 3"],
    quats: Float[Array, "b n 4"],
    scales: Float[Array, "b n 3"],
    opacities: Float[Array, "b n"],
    features: Float[Array, "b n c"],
    world_to_camera: Float[Array, "b 4 4"],
    intrinsics: Float[Array, "b 3 3"],
    d_means2d: Float[Array, "b n 2"],
    d_conics: Float[Array, "b n 3"],
    d_opacities: Float[Array, "b n"],
    *,
    near: float,
    far: float,
    eps2d: float,
) -> tuple[Array, ...]:
    """Cotangents of means, quats, scales, opacities, world_to_camera and intrinsics.

    The features are only looked at and the depths only sort: the first get no gradient, the second give none.
    """

    def differentiable(
        means: Array, quats: Array, scales: Array, opacities: Array, world_to_camera: Array, intrinsics: Array
    ) -> tuple[Array, Array, Array]:
        projection = project_fwd(
            means, quats, scales, opacities, features, world_to_camera, intrinsics, near=near, far=far, eps2d=eps2d
        )
        return projection[:3]

    _, pullback = jax.vjp(differentiable, means, quats, scales, opacities, world_to_camera, intrinsics)
    return pullback((d_means2d, d_conics, d_opacities))


def _camera(world_to_camera: Array, intrinsics: Array) -> _Camera:
    return _Camera(
        rotation=[[world_to_camera[:, None, i, j] for j in range(3)] for i in range(3)],
        translation=[world_to_camera[:, None, i, 3] for i in range(3)],
        focal=[intrinsics[:, None, i, i] for i in range(2)],
        centre=[intrinsics[:, None, i, 2] for i in range(2)],
    )


def _components(x: Float[Array, "b n k"]) -> Vector:
    return [x[..., i] for i in range(x.shape[-1])]


def _stack(components: Vector) -> Float[Array, "b n k"]:
    """The inverse of `_components`. Written row by row: fused into a concatenation, on a CPU, all of the projection
    would be computed again for each number, outside of vectors."""
    rows = jnp.zeros((len(components), *components[0].shape), components[0].dtype)
    for i, component in enumerate(components):
        rows = lax.dynamic_update_index_in_dim(rows, component, i, 0)
    return jnp.moveaxis(rows, 0, -1)


def _finite(components: Sequence[Array]) -> Bool[Array, "b n"]:
    return reduce(operator.and_, (_is_finite(x) for x in components))


def _is_finite(x: Array) -> Array:
    return jnp.abs(lax.stop_gradient(x)) < INFINITE  # a NaN is not


def _drawable(raw: _Gaussians, near: float, far: float) -> Bool[Array, "b n"]:
    depth = raw.point[2]
    turned = reduce(operator.or_, (x != 0 for x in raw.quat))
    return _finite([*raw.point, *raw.quat, *raw.scale]) & (depth >= near) & (depth <= far) & turned


def _replace(drawn: Array, raw: _Gaussians) -> _Gaussians:
    """Harmless values where a splat is not drawn: a unit sphere, unrotated, one unit before the camera."""
    harmless = (0, 0, 1), (1, 0, 0, 0), (1, 1, 1)
    replaced = (
        [jnp.where(drawn, x, other) for x, other in zip(vector, others, strict=True)]
        for vector, others in zip(raw, harmless, strict=True)
    )
    return _Gaussians(*replaced)


def _project(gaussians: _Gaussians, camera: _Camera, eps2d: float) -> tuple[Vector, Vector]:
    """Camera-space Gaussians -> pixel means and conics (a, b, c), the inverses of J W Sigma W^T J^T + eps2d I.

    With M = J W R(quat) diag(scale) of rows m1, m2 the determinant is |m1 x m2|^2 + eps2d (|m1|^2 + |m2|^2)
    + eps2d^2 (Lagrange's identity): a sum of positive terms, where the usual difference cancels for needles.
    """
    x, y, z = gaussians.point
    tangent = [x / z, y / z]
    columns = zip(*_rotation(gaussians.quat), strict=True)  # of R: the Gaussian's axes
    axes = [
        [scale * x for x in _rotate(camera.rotation, list(column))]
        for column, scale in zip(columns, gaussians.scale, strict=True)
    ]
    first, second = (
        [focal / z * (axis[i] - slope * axis[2]) for axis in axes]
        for i, (focal, slope) in enumerate(zip(camera.focal, tangent, strict=True))
    )
    xx, yy, xy = _dot(first, first), _dot(second, second), _dot(first, second)
    cross = _cross(first, second)
    determinant = _dot(cross, cross) + eps2d * (xx + yy) + eps2d * eps2d
    mean = [focal * slope + centre for focal, slope, centre in zip(camera.focal, tangent, camera.centre, strict=True)]
    return mean, [(yy + eps2d) / determinant, -xy / determinant, (xx + eps2d) / determinant]


def _rotation(quat: Vector) -> list[Vector]:
    """Rows of the rotation matrices of wxyz quaternions of any length but zero."""
    # The largest component becomes one first, so that squares neither overflow nor vanish.
    w, x, y, z = (jnp.abs(lax.stop_gradient(component)) for component in quat)
    largest = jnp.maximum(jnp.maximum(w, x), jnp.maximum(y, z))
    quat = [component / largest for component in quat]
    length = jnp.sqrt(_dot(quat, quat))
    w, x, y, z = (component / length for component in quat)
    return [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]


def _rotate(matrix: Sequence[Vector], vector: Vector) -> Vector:
    return [_dot(row, vector) for row in matrix]


def _dot(a: Vector, b: Vector) -> Array:
    return reduce(operator.add, (x * y for x, y in zip(a, b, strict=True)))


def _cross(a: Vector, b: Vector) -> Vector:
    return [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]]
