"""Points of the base mesh that stand for the 68 iBUG landmarks, and for the 478 that MediaPipe marks."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Float, Int

# Placed on a frontal render of the neutral mean head, snapped to vertices, mirrored to the left side.
# Order: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67, each from
# the picture's left, which is the person's right.
LANDMARKS = np.array(
    [
        5738, 5715, 5204, 910, 5240, 915, 891, 921, 747, 7623, 7593, 7617, 11849, 7612, 11815,
        12312, 12335, 261, 225, 204, 180, 209, 6984, 6956, 6979, 6999, 7030, 133, 131, 201, 294,
        344, 313, 317, 7076, 7105, 21, 4849, 54, 6765, 4862, 1067, 13361, 6838, 11467, 6805, 7759,
        11480, 500, 5351, 450, 466, 7210, 11953, 7249, 7235, 7241, 492, 486, 480, 437, 472, 474,
        7228, 7197, 7264, 493, 517,
    ],
    np.int32,
)  # fmt: skip

# Rows of three vertices, three weights, the median distance in head lengths between a mark of MediaPipe's detector and
# this point, and the point's drift: written by `gphm_jax.tools.calibrate_landmarks`.
MEDIAPIPE_TABLE = pathlib.Path(__file__).with_name("mediapipe478.txt")
DRIFT_UNIT = 1e-4  # head lengths
DRIFT_TERMS = 6
_STEADY = 0.006  # head lengths: a median distance that loses no trust
# Sine of the angle, to the side and up, that drifts were measured to: beyond, they stay.
_MEASURED = (0.75, 0.45)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SurfacePoints:
    """Weighted means of three base vertices each; `trust` is 1 for points that a detector marks steadily.

    Seen from a direction, a detector marks the point moved by `drift @ view_terms(direction)`.
    """

    vertices: Int[np.ndarray, "k 3"]
    weights: Float[np.ndarray, "k 3"]
    trust: Float[np.ndarray, "k"]
    drift: Float[np.ndarray, "k 3 6"]


def view_terms(direction: Float[np.ndarray, "*b 3"]) -> Float[np.ndarray, "*b 6"]:
    """1, x, y, x^2, xy, y^2 of unit vectors from the head to the camera, in canonical space."""
    x, y = (np.clip(direction[..., k], -most, most) for k, most in enumerate(_MEASURED))
    return np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], -1)


def ibug68() -> SurfacePoints:
    """The 68 landmarks, each at a vertex."""
    return SurfacePoints(
        vertices=np.repeat(LANDMARKS[:, None], 3, 1),
        weights=np.tile(np.array([1.0, 0.0, 0.0], np.float32), (len(LANDMARKS), 1)),
        trust=np.ones(len(LANDMARKS), np.float32),
        drift=np.zeros((len(LANDMARKS), 3, DRIFT_TERMS), np.float32),
    )


def mediapipe478() -> SurfacePoints:
    """The 478 landmarks where the detector marks them, not where their names say; the last ten are the irises."""
    table = np.loadtxt(MEDIAPIPE_TABLE, dtype=np.float64)
    return SurfacePoints(
        vertices=table[:, :3].astype(np.int32),
        weights=table[:, 3:6].astype(np.float32),
        trust=np.minimum(1.0, (_STEADY / table[:, 6]) ** 2).astype(np.float32),
        drift=(DRIFT_UNIT * table[:, 7:]).reshape(-1, 3, DRIFT_TERMS).astype(np.float32),
    )
