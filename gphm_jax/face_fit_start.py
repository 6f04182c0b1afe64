"""Where a face fit starts: the pose of the mean head in every frame, and the focal length that suits most frames."""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float

_FEWEST_POINTS = 8
_TRIED_FRAMES = 12  # of a clip, for the focal length
_FOCALS = (0.7, 1.0, 1.4, 2.0, 3.0, 4.5)  # over the larger side: fields of view from 71 to 13 degrees
_INLIER = 0.06  # of the face's extent in the picture: marks further from the mean head's are left out
_RANSAC_ROUNDS = 60


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Poses in the world; `found` tells which frames have a pose of their own, the others lie between neighbours."""

    rotation: Float[np.ndarray, "f 3 3"]
    translation: Float[np.ndarray, "f 3"]
    scale: float
    intrinsics: Float[np.ndarray, "v 3 3"]
    found: Bool[np.ndarray, "f"]


def start(
    mean: Float[np.ndarray, "k 3"],
    points: Float[np.ndarray, "f v k 2"],
    weights: Float[np.ndarray, "f v k"],
    world_to_camera: Float[np.ndarray, "f v 4 4"],
    candidates: list[Float[np.ndarray, "v 3 3"]],
    costs: list[float],
) -> Start | None:
    """Poses with the best of some intrinsics; None when no frame shows a face. `costs` counts against each of them."""
    usable = (weights > 0).sum(-1) >= _FEWEST_POINTS
    frames = np.flatnonzero(usable.any(1))
    if not len(frames):
        return None
    tried = frames[np.unique(np.linspace(0, len(frames) - 1, _TRIED_FRAMES).astype(int))]
    intrinsics = candidates[0]
    if len(candidates) > 1:
        misfit = [_misfit(mean, points[tried], weights[tried], usable[tried], each) for each in candidates]
        intrinsics = candidates[int(np.argmin(np.array(misfit) + np.array(costs)))]
    return _poses(mean, points, weights, usable, world_to_camera, intrinsics)


def focal_candidates(sizes: np.ndarray) -> list[Float[np.ndarray, "v 3 3"]]:
    """Intrinsics of all views for several fields of view, principal points in the middle."""
    return [default_intrinsics(sizes, share * float(sizes.max())) for share in _FOCALS]


def default_intrinsics(sizes: np.ndarray, focal: float) -> Float[np.ndarray, "v 3 3"]:
    """One focal length for all views, principal points in the middle; `sizes` holds (height, width)."""
    matrices = np.tile(np.diag([focal, focal, 1.0]), (len(sizes), 1, 1))
    matrices[:, :2, 2] = 0.5 * sizes[:, ::-1]
    return matrices


def _solve(
    mean: np.ndarray, points: np.ndarray, weights: np.ndarray, intrinsics: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Rotation, translation (head lengths) and median misfit over the face's extent, of one picture."""
    seen = weights > 0
    model, marks = mean[seen].astype(np.float64), points[seen].astype(np.float64)
    # Between the outer twentieths: a few wild points must not stretch the measure.
    extent = float(np.ptp(np.percentile(marks, [5, 95], axis=0), axis=0).max())
    if extent < 1e-6:
        return None
    good, turn, place, inliers = cv2.solvePnPRansac(
        model, marks, intrinsics, None, iterationsCount=_RANSAC_ROUNDS, reprojectionError=_INLIER * extent,
        flags=cv2.SOLVEPNP_EPNP,
    )  # fmt: skip
    if not good or inliers is None or len(inliers) < _FEWEST_POINTS:
        return None
    turn, place = cv2.solvePnPRefineLM(
        model[inliers[:, 0]], marks[inliers[:, 0]], intrinsics, None, turn, place
    )
    rotation, place = cv2.Rodrigues(turn)[0], place[:, 0]
    local = model @ rotation.T + place
    if not np.isfinite(local).all() or local[:, 2].min() <= 0:
        return None  # a mirrored solution behind the camera
    pixels = local[:, :2] / local[:, 2:] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
    return rotation, place, float(np.median(np.linalg.norm(pixels - marks, axis=-1))) / extent


def _misfit(
    mean: np.ndarray, points: np.ndarray, weights: np.ndarray, usable: np.ndarray, intrinsics: np.ndarray
) -> float:
    """Sum over frames of the squared misfit in hundredths of the face; a picture without a pose counts as 10."""
    total = 0.0
    for f, v in np.argwhere(usable):
        solved = _solve(mean, points[f, v], weights[f, v], intrinsics[v])
        total += min(100.0 * solved[2], 10.0) ** 2 if solved else 100.0
    return total


def _poses(
    mean: np.ndarray,
    points: np.ndarray,
    weights: np.ndarray,
    usable: np.ndarray,
    world_to_camera: np.ndarray,
    intrinsics: np.ndarray,
) -> Start | None:
    frames, views = usable.shape
    turns = np.tile(np.eye(3), (frames, views, 1, 1))
    centres, offsets = np.zeros((frames, views, 3)), np.zeros((frames, views, 3))
    quality = np.zeros((frames, views))
    for f, v in np.argwhere(usable):
        solved = _solve(mean, points[f, v], weights[f, v], intrinsics[v])
        if solved:
            camera = world_to_camera[f, v]
            turns[f, v] = camera[:3, :3].T @ solved[0]
            centres[f, v] = -camera[:3, :3].T @ camera[:3, 3]
            offsets[f, v] = camera[:3, :3].T @ solved[1]
            quality[f, v] = np.sqrt(weights[f, v].sum()) / (solved[2] + 0.01)
    found = quality.max(1) > 0
    if not found.any():
        return None
    scale = _scale(centres, offsets, quality)
    best = quality.argmax(1)
    share = quality / np.maximum(
        quality.sum(1, keepdims=True), 1e-12
    )  # frames without a pose are filled below
    translation = np.einsum("fv,fvx->fx", share, centres + scale * offsets)
    rotation = turns[np.arange(frames), best]
    if not found.all():
        rotation, translation = _fill(rotation, translation, found)
    return Start(rotation=rotation, translation=translation, scale=scale, intrinsics=intrinsics, found=found)


def _scale(centres: np.ndarray, offsets: np.ndarray, quality: np.ndarray) -> float:
    """World units a head length, by which cameras agree where the head is; 1 where a single one sees it."""
    several = (quality > 0).sum(1) >= 2
    if not several.any():
        return 1.0
    share = quality[several] / quality[several].sum(1, keepdims=True)
    spread_centres = centres[several] - np.einsum("fv,fvx->fx", share, centres[several])[:, None]
    spread_offsets = offsets[several] - np.einsum("fv,fvx->fx", share, offsets[several])[:, None]
    # Least squares of spread_centres + scale * spread_offsets = 0.
    weight = share[..., None]
    scale = -(weight * spread_centres * spread_offsets).sum() / (weight * spread_offsets**2).sum()
    return float(scale) if np.isfinite(scale) and scale > 0 else 1.0


def _fill(
    rotation: np.ndarray, translation: np.ndarray, found: np.ndarray
) -> tuple[Float[np.ndarray, "f 3 3"], Float[np.ndarray, "f 3"]]:
    """Poses of missing frames between their neighbours', by frame number."""
    known, everywhere = np.flatnonzero(found), np.arange(len(found))
    common = mean_rotation(rotation[found])
    vectors = rotation_vectors(common.T @ rotation[found])

    def between(values: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(everywhere, known, column) for column in values.T], -1)

    return common @ rotation_matrices(between(vectors)), between(translation[found])


def mean_rotation(rotation: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "3 3"]:
    """The rotation nearest to all (chordal mean)."""
    left, _, right = np.linalg.svd(rotation.mean(0))
    return left @ np.diag([1.0, 1.0, np.linalg.det(left @ right)]) @ right


def rotation_vectors(rotation: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Axis-angle vectors, at most half a turn."""
    return np.stack([cv2.Rodrigues(each)[0][:, 0] for each in rotation])


def rotation_matrices(vectors: Float[np.ndarray, "f 3"]) -> Float[np.ndarray, "f 3 3"]:
    """Rodrigues' formula."""
    return np.stack([cv2.Rodrigues(np.asarray(each, np.float64))[0] for each in vectors])
