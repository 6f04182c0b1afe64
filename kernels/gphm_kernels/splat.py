"""Differentiable splatting of anisotropic 3D Gaussians (Kerbl et al. 2023; Zwicker et al. 2001)."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gphm_kernels import backends
from gphm_kernels.arguments import as_number, check_arrays, check_image_size, flatten_batch
from gphm_kernels.varying import promote, varying_axes

MAX_FLOAT = float(np.finfo(np.float32).max)
MAX_CAMERA = 1e9  # greater values of a camera would leave the range of float32 in any splat's projection


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

    A splat outside [near, far], with a value in any array that is not finite (below 1e30), with a zero quaternion, or
    whose projection leaves the range of float32 (as 1e9 pixels across do) is not drawn and gets zero gradient; so are
    all splats before a camera with a value that is not finite or above 1e9. Raises ValueError or TypeError on wrong
    arrays, shapes, dtypes or options. Trusted: the background, and the camera; a rigid world_to_camera gives Gaussians
    their size.
    """
    arrays, batch = _check(means, quats, scales, opacities, features, world_to_camera, intrinsics, background)
    near, far, eps2d = _check_options(width, height, near, far, eps2d)
    backends.check(backend, arrays[0].dtype)
    arrays = _flatten(arrays, batch)
    # Outside the custom_vjp, so that inside `shard_map` the gradient of a replicated input is summed over devices.
    arrays = promote(arrays, varying_axes(arrays))
    means, quats, scales, opacities, features, world_to_camera, intrinsics, background = arrays
    opacities, world_to_camera, intrinsics = _replace_bad_cameras(opacities, world_to_camera, intrinsics)
    limits = _Limits(near, far, eps2d)
    projection = _project(limits, backend, means, quats, scales, opacities, features, world_to_camera, intrinsics)
    image, alpha = _blend(width, height, backend, *projection, features, background)
    return image.reshape(*batch, *image.shape[1:]), alpha.reshape(*batch, *alpha.shape[1:])


class _Limits(NamedTuple):
    """Which splats are drawn, by depth, and how much is added to their variances in the image."""

    near: float
    far: float
    eps2d: float  # px^2


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _project(limits: _Limits, backend: str, *inputs: Array) -> tuple[Array, Array, Array, Array]:
    """Means (px), conics (px^-2), opacities and depths in the image; opacity zero where a splat cannot be drawn."""
    return backends.dispatch("project_fwd", backend, inputs[0].dtype)(*inputs, **limits._asdict())


def _project_fwd(limits: _Limits, backend: str, *inputs: Array) -> tuple[Any, Any]:
    return _project(limits, backend, *inputs), inputs


def _project_bwd(limits: _Limits, backend: str, inputs: Any, cotangents: Any) -> tuple[Array | None, ...]:
    *cotangents, _ = cotangents  # depths only sort
    backward = backends.dispatch("project_bwd", backend, inputs[0].dtype)
    *gaussians, d_pose, d_intrinsics = backward(*inputs, *cotangents, **limits._asdict())
    return *gaussians, None, d_pose, d_intrinsics  # features are only looked at


_project.defvjp(_project_fwd, _project_bwd)


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


def _replace_bad_cameras(
    opacities: Float[Array, "b n"], world_to_camera: Float[Array, "b 4 4"], intrinsics: Float[Array, "b 3 3"]
) -> tuple[Array, Array, Array]:
    """Where a camera has a value that is not finite or too large: another one, and no splats for it to draw."""
    read = world_to_camera[:, :3], intrinsics[:, :2]
    largest = jnp.maximum(*(jnp.max(jnp.abs(lax.stop_gradient(x)), (1, 2)) for x in read))
    good = largest <= MAX_CAMERA  # a NaN is not
    opacities = jnp.where(good[:, None], opacities, 0)
    world_to_camera, intrinsics = (
        jnp.where(good[:, None, None], x, jnp.eye(x.shape[1], dtype=x.dtype)[None])
        for x in (world_to_camera, intrinsics)
    )
    return opacities, world_to_camera, intrinsics


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


def _check_options(width: Any, height: Any, near: Any, far: Any, eps2d: Any) -> tuple[float, float, float]:
    """near, far and eps2d as Python numbers, which are different numbers in float32 as well."""
    check_image_size("splat", width, height)
    near, far, eps2d = (
        as_number("splat", name, value) for name, value in (("near", near), ("far", far), ("eps2d", eps2d))
    )
    if not (near < far <= MAX_FLOAT and 0 < np.float32(near) < np.float32(far)):
        raise ValueError(f"splat: near={near}, far={far}: need 0 < near < far, in float32")
    if not 0 <= eps2d <= MAX_FLOAT:
        raise ValueError(f"splat: eps2d={eps2d}: need a finite variance of at least 0 (px^2)")
    return near, far, eps2d


def _flatten(arrays: tuple[Array, ...], batch: tuple[int, ...]) -> tuple[Array, ...]:
    """One leading dimension for each array, of the product of the batch's; the trailing ranks are the contract's."""
    trailing = (2, 2, 2, 1, 2, 2, 2, 1)
    return tuple(flatten_batch(x, batch, rank) for x, rank in zip(arrays, trailing, strict=True))
