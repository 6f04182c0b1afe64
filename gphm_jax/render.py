"""Splats or Mesh + Camera -> feature image and alpha; the one place where kernels meet sharding."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from gphm_jax.geometry import to_clip
from gphm_jax.sharding import BATCH_AXES
from gphm_jax.types import Camera, Mesh, Splats
from gphm_kernels import antialias, interpolate, rasterize_mesh, splat

WHITE = 1.0  # the background, in every feature channel

Image = tuple[Float[Array, "*b h w c"], Float[Array, "*b h w"]]


def render_splats(
    splats: Splats,
    camera: Camera,
    *,
    height: int,
    width: int,
    backend: str = "auto",
    devices: jax.sharding.Mesh | None = None,
) -> Image:
    """Splats [i f] seen by cameras [i f v] -> features over white [i f v h w c] and alpha [i f v h w].

    Differentiable in all arrays. With `devices` the leading axis is divided over the mesh's batch axes and
    every device renders its own images; nothing is gathered.
    """

    def local(splats: Splats, camera: Camera) -> Image:
        each_view = jax.tree.map(lambda x: jnp.expand_dims(x, 2), splats)
        return splat(
            each_view.means,
            each_view.quats,
            each_view.scales,
            each_view.opacities,
            each_view.features,
            camera.world_to_camera,
            camera.intrinsics,
            width=width,
            height=height,
            background=jnp.full(splats.features.shape[-1:], WHITE, splats.features.dtype),
            backend=backend,
        )

    return _per_device(local, devices, replicated=())(splats, camera)


def render_mesh(
    mesh: Mesh,
    camera: Camera,
    *,
    height: int,
    width: int,
    backend: str = "auto",
    devices: jax.sharding.Mesh | None = None,
) -> Image:
    """A mesh [i f] seen by cameras [i f v] -> features over white [i f v h w c] and mask [i f v h w].

    Rasterized, interpolated and antialiased, so that the silhouette carries a gradient to the vertices.
    """

    def local(faces: jax.Array, mesh: tuple[jax.Array, jax.Array], camera: Camera) -> Image:
        vertices, features = mesh
        clip = to_clip(vertices[:, :, None], camera, width=width, height=height)
        raster = rasterize_mesh(clip, faces, width=width, height=height, backend=backend)
        covered = (raster[..., 3:] > 0).astype(features.dtype)
        features = jnp.broadcast_to(features[:, :, None], (*clip.shape[:-1], features.shape[-1]))
        image = interpolate(features, raster, faces, backend=backend)
        # The background enters before antialiasing: a silhouette blends the surface with what lies behind it.
        image = jnp.concatenate([image * covered + WHITE * (1.0 - covered), covered], axis=-1)
        image = antialias(image, raster, clip, faces, backend=backend)
        return image[..., :-1], image[..., -1]

    run = _per_device(local, devices, replicated=(0,))
    return run(mesh.faces, (mesh.vertices, mesh.features), camera)


def _per_device(
    function: Callable[..., Image], devices: jax.sharding.Mesh | None, *, replicated: tuple[int, ...]
) -> Callable[..., Image]:
    """`function` with its arguments' leading axis divided over the devices, but for the `replicated` ones."""
    if devices is None:
        return function

    @functools.wraps(function)
    def divided(*arguments: object) -> Image:
        specs = tuple(
            PartitionSpec() if index in replicated else PartitionSpec(BATCH_AXES)
            for index in range(len(arguments))
        )
        run = jax.shard_map(function, mesh=devices, in_specs=specs, out_specs=PartitionSpec(BATCH_AXES))
        return run(*arguments)

    return divided
