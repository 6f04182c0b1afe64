"""A fit of the head alone: head model and pictures without the trunk.

What is cut is fixed in the head model, once for all people: splats that start further below the chin than
`BELOW_CHIN`. In pictures, a pixel belongs to the trunk as far as the mean head shows trunk there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt8

from gphm_jax.data.layout import Frame, view_intrinsics
from gphm_jax.data.pixels import PixelSource
from gphm_jax.fit_footage import FitFootage
from gphm_jax.fitting import FrameCodes
from gphm_jax.gaussians import GaussianModel, MotionRegions
from gphm_jax.nets import bounded_code
from gphm_jax.render import render_splats
from gphm_jax.types import Camera, Pose

BELOW_CHIN = 0.12  # head lengths: a short neck stays
_BLUR = 0.03  # of a picture's side: where the mean head shows nothing, the nearest it shows decides

# The head's share of each pixel of a frame's view.
HeadShare = Callable[[Frame, int], Float[np.ndarray, "h w"]]


def of_the_head(prior: GaussianModel) -> Bool[np.ndarray, "n"]:
    """Which splats of a head model belong to the head."""
    chin = jnp.min(prior.landmarks[..., 1])
    return np.asarray(prior.positions[..., 1] > chin - BELOW_CHIN)


def head_model(prior: GaussianModel) -> GaussianModel:
    """The head model without its trunk: fewer splats, the same for every avatar."""
    kept = of_the_head(prior)
    head = nnx.clone(prior)
    for name in ("positions", "features", "log_scales", "quats", "opacity_logits", "weight"):
        variable = getattr(prior, name)
        setattr(head, name, type(variable)(variable[...][kept]))
    regions = prior.regions
    head.regions = MotionRegions(
        expression_end=int(np.sum(kept[: regions.expression_end])),
        motion_start=int(np.sum(kept[: regions.motion_start])),
    )
    return head


def head_footage(
    footage: FitFootage, prior: GaussianModel, codes: FrameCodes, *, backend: str
) -> FitFootage:
    """The footage with white for the trunk, and masks without it."""
    share = _head_share(prior, codes, footage.pixels.image_size, backend)
    return dataclasses.replace(footage, pixels=_HeadPixels(footage.pixels, share))


class _HeadPixels(PixelSource):
    """Pixels of another source, of the head alone."""

    def __init__(self, source: PixelSource, share: HeadShare):
        super().__init__(
            source.dataset,
            image_size=source.image_size,
            face_size=source.face_size,
            nonface_size=source.nonface_size,
            cache_bytes=source.cache_bytes,
        )
        self._share = share

    def view(self, frame: Frame, view: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        def cut() -> tuple[np.ndarray, np.ndarray]:
            image, mask = super(_HeadPixels, self).view(frame, view)
            share = self._share(frame, view)
            white = 255.0 * (1.0 - share[..., None])
            return (
                np.rint(image * share[..., None] + white).astype(np.uint8),
                np.rint(mask * share).astype(np.uint8),
            )

        image, mask = self._get(("head", frame.row, view), cut)
        return image, mask


def _head_share(prior: GaussianModel, codes: FrameCodes, size: int, backend: str) -> HeadShare:
    mean = bounded_code(jnp.mean(bounded_code(prior.subjects.codes[...]), axis=0))
    neutral = nnx.jit(lambda model, z: model.neutral(z))(prior, mean[None])
    head = jnp.asarray(of_the_head(prior), jnp.float32)[None, None, :, None]

    @nnx.jit
    def weights(
        model: GaussianModel, expression: Array, motion: Array, pose: Pose, camera: Camera
    ) -> tuple[Array, Array]:
        """How much of each pixel the head's splats fill, and the trunk's."""
        splats = model.animate(neutral, expression, motion, pose).splats
        painted, alpha = render_splats(
            dataclasses.replace(splats, features=jnp.broadcast_to(head, (*splats.means.shape[:-1], 1))),
            camera,
            height=size,
            width=size,
            backend=backend,
        )
        filled = painted[0, 0, 0, ..., 0] - (1.0 - alpha[0, 0, 0])  # what is not filled is white
        return filled, alpha[0, 0, 0] - filled

    def share(frame: Frame, view: int) -> Float[np.ndarray, "h w"]:
        pose = Pose(
            rotation=jnp.asarray(frame.rotation),
            translation=jnp.asarray(frame.translation),
            scale=jnp.asarray(frame.scale, jnp.float32),
        )
        camera = Camera(
            world_to_camera=jnp.asarray(frame.world_to_camera[view]),
            intrinsics=jnp.asarray(view_intrinsics(frame, view, size)),
        )
        row = frame.row
        filled = weights(
            prior,
            codes.expression[row][None, None],
            codes.motion[row][None, None],
            jax.tree.map(lambda x: x[None, None], pose),
            jax.tree.map(lambda x: x[None, None, None], camera),
        )
        head_part, trunk = (
            cv2.GaussianBlur(np.maximum(np.asarray(part), 0.0), (0, 0), _BLUR * size) for part in filled
        )
        # 1e-6: far from everything both are nothing, and the pixel keeps what it shows.
        return (head_part + 1e-6) / (head_part + trunk + 1e-6)

    return share
