"""The splats of one moment, as every format takes them; and an avatar's, for codes of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Array, Float

from gphm_jax.avatar import Avatar
from gphm_jax.types import Splats

SH_DEGREE_0 = 0.28209479177387814  # 1 / (2 sqrt(pi)): a constant colour c is stored as (c - 0.5) / this
_OPACITY_MARGIN = 1e-6  # a logit of 0 or 1 is infinite, and no viewer shows the difference


@dataclasses.dataclass(frozen=True, kw_only=True)
class SplatCloud:
    """Activated Gaussians of a head: +y up, +z out of the face, head lengths; sRGB that may leave [0, 1]."""

    means: Float[np.ndarray, "n 3"]
    quats: Float[np.ndarray, "n 4"]  # wxyz, unit length, w >= 0
    scales: Float[np.ndarray, "n 3"]
    opacities: Float[np.ndarray, "n"]
    colors: Float[np.ndarray, "n 3"]

    def __len__(self) -> int:
        return len(self.means)

    @property
    def coefficients(self) -> Float[np.ndarray, "n 3"]:
        """The colours as coefficients of the constant spherical harmonic."""
        return ((self.colors - 0.5) / SH_DEGREE_0).astype(np.float32)

    @property
    def log_scales(self) -> Float[np.ndarray, "n 3"]:
        """Natural logarithms of the scales."""
        return np.log(self.scales)

    @property
    def opacity_logits(self) -> Float[np.ndarray, "n"]:
        """The opacities before the sigmoid."""
        p = np.clip(self.opacities.astype(np.float64), _OPACITY_MARGIN, 1.0 - _OPACITY_MARGIN)
        return np.log(p / (1.0 - p)).astype(np.float32)

    def y_down(self) -> SplatCloud:
        """The same head turned half a turn about x: +y down, the face looking along -z."""
        w, x, y, z = np.moveaxis(self.quats, -1, 0)
        return dataclasses.replace(
            self,
            means=self.means * np.array([1.0, -1.0, -1.0], np.float32),
            quats=_upper(np.stack([-x, w, -z, y], axis=-1)),  # (0, 1, 0, 0) times the quaternion
        )


def cloud(splats: Splats) -> SplatCloud:
    """The Gaussians [n] as NumPy arrays, their first three channels as colours."""
    quats = np.asarray(splats.quats, np.float32)
    return SplatCloud(
        means=np.asarray(splats.means, np.float32),
        quats=_upper(quats / np.linalg.norm(quats, axis=-1, keepdims=True)),
        scales=np.asarray(splats.scales, np.float32),
        opacities=np.asarray(splats.opacities, np.float32),
        colors=np.asarray(splats.features[..., :3], np.float32),
    )


def clouds(avatar: Avatar, expressions: Float[Array | np.ndarray, "t z"]) -> Iterator[SplatCloud]:
    """An avatar's splats for each expression code, without head pose, neck and shoulders as in its habits."""
    for expression in expressions:
        yield cloud(avatar.splats(expression))


def _upper(quats: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    return np.where(quats[:, :1] < 0.0, -quats, quats)
