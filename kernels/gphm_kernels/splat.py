"""Differentiable splatting of anisotropic 3D Gaussians (Kerbl et al. 2023; Zwicker et al. 2001)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from gphm_kernels import backends
from gphm_kernels.arguments import check_arrays, check_image_size, flatten_batch
from gphm_kernels.varying import promote, varying_axes


def splat(
    means: Float[Array, "*#b n 3"],
    quats: Float[Array, "*#b n 4"],
    scales: Float[Array, "*#b n 3"],
    opacities: Float[Array, "*#b n"],
    features: Float[Array, "*#b n c"],
    world_to_camera: Float[Array, "*#b 4 4"],
    intrinsics: Float[Array, "*#b 3 3"],
    *,
    width: int,
    height: int,
    background: Float[Array, "*#b c"] | None = None,
    near: float = 0.01,
    far: float = 100.0,
    eps2d: float = 0.3,
    backend: str = "auto",
) -> tuple[Float[Array, "*b h w c"], Float[Array, "*b h w"]]:
    """Splats Gaussians into an image of any number of channels and its alpha, composited over `background`.

    Each Gaussian N(mean, R(quat) diag(scale)^2 R(quat)^T) is projected by the perspective Jacobian at its mean;
    sorted by camera depth, image = sum_i w_i c_i + T_end background and alpha = 1 - T_end with
    w_i = alpha_i T_i, T_i = prod_{j<i} (1 - alpha_j), alpha_i = min(0.99, o_i exp(-0.5 d^T cov2d^-1 d)).
    alpha_i below 1/255 is skipped; the splat that would bring T to 1e-4 or less ends the pixel and is not added.

    Leading dimensions broadcast. Differentiable in every array, `world_to_camera` (OpenCV: x right, y down,
    z forward) and `intrinsics` (pixels, centres at +0.5; skew is ignored) included; the gradient is zero where
    0.99 clamps. `quats` are wxyz and normalised here; the sign of a scale has no effect; `background` is black by
    default; `eps2d` (px^2) is added to the 2D variances.

    A splat outside [near, far], with a non-finite value in any array, or with a zero quaternion is not drawn and
    gets zero gradient. Raises ValueError on wrong shapes, dtypes or options. The camera is trusted: a rigid
    world_to_camera gives Gaussians their size.
    """
    arrays, batch = _check(means, quats, scales, opacities, features, world_to_camera, intrinsics, background)
    _check_options(width, height, near, far, eps2d)
    backends.check(backend, arrays[0].dtype)
    arrays = _flatten(arrays, batch)
    # Outside the custom_vjp, so that inside `shard_map` the gradient of a replicated input is summed over devices.
    arrays = promote(arrays, varying_axes(arrays))
    means, quats, scales, opacities, features, world_to_camera, intrinsics, background = arrays
    projection = _project(
        means, quats, scales, opacities, features, world_to_camera, intrinsics, near=near, far=far, eps2d=eps2d
    )
    image, alpha = _blend(width, height, backend, *projection, background)
    return image.reshape(*batch, *image.shape[1:]), alpha.reshape(*batch, *alpha.shape[1:])


class _Projection(NamedTuple):
    """Splats in the image, as the blend takes them; undrawn ones have opacity zero and harmless values."""

    means2d: Float[Array, "b n 2"]
    conics: Float[Array, "b n 3"]
    opacities: Float[Array, "b n"]
    depths: Float[Array, "b n"]
    features: Float[Array, "b n c"]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _blend(
    width: int,
    height: int,
    backend: str,
    means2d: Array,
    conics: Array,
    opacities: Array,
    depths: Array,
    features: Array,
    background: Array,
) -> tuple[Array, Array]:
    forward = backends.dispatch("blend_fwd", backend, means2d.dtype)
    return forward(means2d, conics, opacities, depths, features, background, width=width, height=height)


def _blend_fwd(width: int, height: int, backend: str, *inputs: Array) -> tuple[Any, Any]:
    image, alpha = _blend(width, height, backend, *inputs)
    return (image, alpha), (inputs, image, alpha)


def _blend_bwd(width: int, height: int, backend: str, residuals: Any, cotangents: Any) -> tuple[Array, ...]:
    inputs, image, alpha = residuals
    backward = backends.dispatch("blend_bwd", backend, image.dtype)
    d_means2d, d_conics, d_opacities, d_features, d_background = backward(
        *inputs, image, alpha, *cotangents, width=width, height=height
    )
    return d_means2d, d_conics, d_opacities, jnp.zeros_like(inputs[3]), d_features, d_background


_blend.defvjp(_blend_fwd, _blend_bwd)


def _project(
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
) -> _Projection:
    """Means, inverse covariances and depths in the image, after replacing what cannot be drawn."""
    camera = world_to_camera[:, :3, :3], world_to_camera[:, :3, 3], intrinsics
    finite = jnp.all(_finite(means), -1) & jnp.all(_finite(features), -1) & _finite(opacities)
    means = jnp.where(finite[..., None], means, 0)
    points = jnp.einsum("bij,bnj->bni", camera[0], means, precision=lax.Precision.HIGHEST) + camera[1][:, None]
    raw = (points, quats, scales)
    # Found without gradient, then replaced before the differentiated pass: a NaN leaks through a `where` around it.
    fixed = jax.tree.map(lax.stop_gradient, (raw, camera))
    drawn = finite & _drawable(fixed[0], near, far)
    fixed_points, fixed_quats, fixed_scales = _replace(drawn, fixed[0])
    means2d, conics = _project_points(
        fixed_points, fixed_quats, fixed_scales, fixed[1][0], fixed[1][2], eps2d
    )
    drawn &= jnp.all(_finite(means2d), -1) & jnp.all(_finite(conics), -1)
    drawn &= (conics[..., 0] > 0) & (conics[..., 2] > 0)

    points, quats, scales = _replace(drawn, raw)
    means2d, conics = _project_points(points, quats, scales, camera[0], intrinsics, eps2d)
    # An undrawn splat sits at the image's corner as a small round dot of opacity zero.
    means2d = jnp.where(drawn[..., None], means2d, 0)
    conics = jnp.where(drawn[..., None], conics, jnp.array([1, 0, 1], conics.dtype)[None, None])
    opacities = jnp.where(drawn, opacities, 0)
    features = jnp.where(drawn[..., None], features, 0)
    return _Projection(means2d, conics, opacities, points[..., 2], features)


def _drawable(raw: tuple[Array, Array, Array], near: float, far: float) -> Bool[Array, "b n"]:
    points, quats, scales = raw
    finite = [jnp.all(_finite(x), -1) for x in raw]
    depth = points[..., 2]
    return finite[0] & finite[1] & finite[2] & (depth >= near) & (depth <= far) & jnp.any(quats != 0, -1)


def _replace(drawn: Array, raw: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    """Harmless values where a splat is not drawn: a unit sphere, unrotated, one unit before the camera."""
    points, quats, scales = raw
    dtype, keep = points.dtype, drawn[..., None]
    points = jnp.where(keep, points, jnp.array([0, 0, 1], dtype)[None, None])
    quats = jnp.where(keep, quats, jnp.array([1, 0, 0, 0], dtype)[None, None])
    return points, quats, jnp.where(keep, scales, 1)


def _project_points(
    points: Array, quats: Array, scales: Array, rotation: Array, intrinsics: Array, eps2d: float
) -> tuple[Array, Array]:
    """Camera-space points -> pixel means and conics (a, b, c), the inverses of J W Sigma W^T J^T + eps2d I.

    With M = J W R(quat) diag(scale) of rows m1, m2 the determinant is |m1 x m2|^2 + eps2d (|m1|^2 + |m2|^2)
    + eps2d^2 (Lagrange's identity): a sum of positive terms, where the usual difference cancels for needles.
    """
    x, y, z = points[..., 0], points[..., 1], points[..., 2]
    fx, fy = intrinsics[:, None, 0, 0], intrinsics[:, None, 1, 1]
    u, v = x / z, y / z
    means2d = jnp.stack([fx * u + intrinsics[:, None, 0, 2], fy * v + intrinsics[:, None, 1, 2]], -1)
    axes = jnp.einsum("bij,bnjk->bnik", rotation, _rotation(quats), precision=lax.Precision.HIGHEST)
    axes = axes * scales[..., None, :]
    first = (fx / z)[..., None] * (axes[..., 0, :] - u[..., None] * axes[..., 2, :])
    second = (fy / z)[..., None] * (axes[..., 1, :] - v[..., None] * axes[..., 2, :])
    xx, yy, xy = (jnp.sum(p * q, -1) for p, q in ((first, first), (second, second), (first, second)))
    cross = jnp.cross(first, second)
    determinant = jnp.sum(cross * cross, -1) + eps2d * (xx + yy) + eps2d * eps2d
    return means2d, jnp.stack([yy + eps2d, -xy, xx + eps2d], -1) / determinant[..., None]


def _rotation(quats: Array) -> Float[Array, "b n 3 3"]:
    """Rotation matrices of wxyz quaternions of any length but zero."""
    # The largest component becomes one first, so that squares neither overflow nor vanish.
    quats = quats / lax.stop_gradient(jnp.max(jnp.abs(quats), -1, keepdims=True))
    w, x, y, z = jnp.moveaxis(quats / jnp.linalg.norm(quats, axis=-1, keepdims=True), -1, 0)
    entries = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return jnp.stack(entries, -1).reshape(*w.shape, 3, 3)


def _finite(x: Array) -> Array:
    return jnp.isfinite(lax.stop_gradient(x))


def _check(
    means: Any,
    quats: Any,
    scales: Any,
    opacities: Any,
    features: Any,
    world_to_camera: Any,
    intrinsics: Any,
    background: Any,
) -> tuple[tuple[Array, ...], tuple[int, ...]]:
    """The inputs as arrays of one floating dtype, and their broadcast leading shape; ValueError if they do not fit."""
    named = {
        "means": (means, "n 3"),
        "quats": (quats, "n 4"),
        "scales": (scales, "n 3"),
        "opacities": (opacities, "n"),
        "features": (features, "n c"),
        "world_to_camera": (world_to_camera, "4 4"),
        "intrinsics": (intrinsics, "3 3"),
        "background": (background, "c"),
    }
    if background is None:
        named.pop("background")
    arrays, batch, sizes = check_arrays("splat", named)
    if sizes["c"] == 0:
        raise ValueError("splat: features has no channels; give at least one")
    if background is None:
        arrays["background"] = jnp.zeros((sizes["c"],), arrays["means"].dtype)
    return tuple(arrays.values()), batch


def _check_options(width: int, height: int, near: float, far: float, eps2d: float) -> None:
    check_image_size("splat", width, height)
    if not 0 < near < far:
        raise ValueError(f"splat: near={near}, far={far}: need 0 < near < far")
    if not 0 <= eps2d < float("inf"):
        raise ValueError(f"splat: eps2d={eps2d}: need a finite variance of at least 0 (px^2)")


def _flatten(arrays: tuple[Array, ...], batch: tuple[int, ...]) -> tuple[Array, ...]:
    """One leading dimension for each array, of the product of the batch's; the trailing ranks are the contract's."""
    trailing = (2, 2, 2, 1, 2, 2, 2, 1)
    return tuple(flatten_batch(x, batch, rank) for x, rank in zip(arrays, trailing, strict=True))
