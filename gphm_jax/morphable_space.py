"""Brings a face model from elsewhere into canonical space, and gives it the landmarks that it lacks."""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.spatial
import trimesh
from jaxtyping import Float, Int

from gphm_jax.morphable import LandmarkPart, LandmarkSet, MorphableModel, embedded

FEWEST_ANCHORS = 8
_CARRIED_TRUST = 0.25  # of a landmark carried over: about twice as far off as a stated one
_NEAR_VERTICES = 8  # around a carried landmark, whose triangles are looked at
_BEND = 0.01  # head lengths of misfit at a landmark that cost as much as bending by one standard deviation

Anchor = tuple[Int[np.ndarray, "3"], Float[np.ndarray, "3"]]  # three vertices and their weights


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Foreign:
    """A model in its own space and unit, with the iBUG landmarks it states, by number from 0."""

    name: str
    mean: Float[np.ndarray, "v 3"]
    identity_basis: Float[np.ndarray, "v 3 ki"]
    expression_basis: Float[np.ndarray, "v 3 ke"]
    expression_spread: Float[np.ndarray, "ke"]
    expression_range: Float[np.ndarray, "ke 2"]
    faces: Int[np.ndarray, "m 3"]
    anchors: dict[int, Anchor]


def canonical(model: Foreign) -> MorphableModel:
    """The model in canonical space, with both sets of landmarks.

    The similarity takes its stated landmarks to the embedded model's. The others are the embedded model's own, after
    its identity has been bent to the stated ones, dropped onto the nearest point of the surface.
    """
    ours = embedded()
    numbers = np.array(sorted(model.anchors))
    stated = np.array(
        [weights @ model.mean[corners] for corners, weights in (model.anchors[n] for n in numbers.tolist())]
    )
    part = ours.landmark_part("ibug68")
    scale, rotation, move = similarity(stated, np.asarray(part.mean)[numbers])
    mean = scale * model.mean @ rotation.T + move
    faces = _outward(mean, model.faces)
    ask = scale * stated @ rotation.T + move - np.asarray(part.mean)[numbers]
    identity = _bend(np.asarray(part.identity_basis)[numbers], ask)
    sets = {}
    for scheme, own in (("ibug68", model.anchors), ("mediapipe478", {})):
        points = ours.landmark_part(scheme)
        sets[scheme] = _carried(
            np.asarray(points.mean + points.identity_basis @ identity),
            points,
            mean,
            faces,
            own,
        )

    def turned(basis: np.ndarray) -> np.ndarray:
        return np.einsum("xy,vyk->vxk", scale * rotation, basis).astype(np.float32)

    return MorphableModel(
        mean=mean.astype(np.float32),
        identity_basis=turned(model.identity_basis),
        expression_basis=turned(model.expression_basis),
        expression_spread=model.expression_spread.astype(np.float32),
        expression_range=model.expression_range.astype(np.float32),
        faces=faces.astype(np.int32),
        landmark_sets=sets,
        name=model.name,
    )


def similarity(
    source: Float[np.ndarray, "n 3"], target: Float[np.ndarray, "n 3"]
) -> tuple[float, Float[np.ndarray, "3 3"], Float[np.ndarray, "3"]]:
    """Scale, rotation and translation with the least squared distance from `source` to `target` (Umeyama, 1991)."""
    source_mean, target_mean = source.mean(0), target.mean(0)
    centred = source - source_mean
    left, values, right = np.linalg.svd((target - target_mean).T @ centred)
    signs = np.array([1.0, 1.0, np.linalg.det(left @ right)])  # no reflection
    rotation = left @ np.diag(signs) @ right
    scale = float((values * signs).sum() / (centred**2).sum())
    return scale, rotation, target_mean - scale * rotation @ source_mean


def _outward(mean: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Faces counter-clockwise seen from outside; some files have them the other way round."""
    triangles = mean[faces]
    normals = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    outside = (normals * (triangles.mean(1) - mean.mean(0))).sum() > 0
    return faces if outside else faces[:, ::-1]


def _bend(basis: Float[np.ndarray, "n 3 k"], offset: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "k"]:
    """Coefficients that explain an offset of landmarks, held to the mean (ridge regression)."""
    flat = basis.reshape(-1, basis.shape[-1]).astype(np.float64) / _BEND
    return np.linalg.solve(flat.T @ flat + np.eye(flat.shape[1]), flat.T @ (offset.ravel() / _BEND))


def _carried(
    points: Float[np.ndarray, "k 3"],
    part: LandmarkPart,
    mean: Float[np.ndarray, "v 3"],
    faces: Int[np.ndarray, "m 3"],
    own: dict[int, Anchor],
) -> LandmarkSet:
    """Nearest surface points of landmarks; `own` are known already and keep their trust."""
    near = scipy.spatial.cKDTree(mean).query(points, _NEAR_VERTICES)[1]
    corners, weights = np.empty((len(points), 3), np.int32), np.empty((len(points), 3), np.float32)
    trust = np.asarray(part.trust) * np.where(np.isin(np.arange(len(points)), list(own)), 1.0, _CARRIED_TRUST)
    for k, point in enumerate(points):
        if k in own:
            corners[k], weights[k] = own[k]
            continue
        around = faces[np.isin(faces, near[k]).any(1)]
        if not len(around):  # a vertex of no face
            corners[k], weights[k] = near[k, 0], (1.0, 0.0, 0.0)
            continue
        nearest = trimesh.triangles.closest_point(mean[around], np.broadcast_to(point, (len(around), 3)))
        best = int(np.linalg.norm(nearest - point, axis=-1).argmin())
        corners[k] = around[best]
        weights[k] = trimesh.triangles.points_to_barycentric(mean[around[best]][None], nearest[best][None])[0]
    return LandmarkSet(vertices=corners, weights=weights, trust=trust.astype(np.float32), drift=part.drift)
