"""Where the head of a scan is: a scan has any unit and any axes, and no landmarks.

The face is found by looking from all sides. Looks from several places around it are intersected: every landmark lies
where its rays come nearest to each other, and the similarity that takes these points to the mean head takes the scan
to canonical space. Looks from there are what the face model is fitted to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from gphm_jax.capture.landmarks import Landmarker
from gphm_jax.capture.scans import Similarity
from gphm_jax.data.synthetic import cameras, renderer
from gphm_jax.data.synthetic.renderer import Lit
from gphm_jax.errors import InputError
from gphm_jax.morphable import LandmarkPart

LOOK_SIZE = 512  # pixels of the pictures in which landmarks are found
LOOKS = ((0.0, 0.0), (-25.0, 0.0), (25.0, 0.0), (-50.0, 0.0), (50.0, 0.0), (-15.0, 16.0), (15.0, -16.0))
FRONTAL = 3  # so many of them, the first, show both halves of the face well
_FAN = (
    (0.0, 0.0),
    (-20.0, 0.0),
    (20.0, 0.0),
    (0.0, 14.0),
    (0.0, -14.0),
)  # degrees around a first sight of the face
_FEWEST = 3  # looks that must show the face
_LEAST_SCORE = 0.2  # of a detection
_MOST_MISFIT = 0.08  # head lengths, root mean square: intersected landmarks beside the mean head's
_GUESSED_RADIUS = 0.78  # head lengths: the whole scan lies in the first pictures
_SEARCH = (
    (320, False),
    (1024, True),
)  # picture size and thoroughness of each search: a bust, then a whole body


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Marks:
    """Landmarks in the pictures of some looks at a scan; weight 0 where a look shows no face."""

    points: Float[np.ndarray, "v k 2"]
    weights: Float[np.ndarray, "v"]
    expressions: tuple[Float[np.ndarray, "52"] | None, ...]

    @property
    def expression(self) -> Float[np.ndarray, "52"] | None:
        """ARKit scores, the mean of the looks from the front, where the landmarker gives them."""
        found = [scores for scores in self.expressions[:FRONTAL] if scores is not None]
        return np.mean(found, axis=0) if found else None


def find_head(lit: Lit, landmarker: Landmarker, part: LandmarkPart) -> Similarity:
    """The similarity that takes a scan in the unit ball to the mean head; `InputError` where no face is found.

    `part` holds the face model's points in the landmarker's scheme.
    """
    for size, thorough in _SEARCH:
        for guess in _guesses():
            if look(lit, landmarker, guess, ((0.0, 0.0),), size=size, thorough=thorough).weights[0] > 0:
                placed = _settled(lit, landmarker, part, guess, size)
                if placed is not None:
                    return placed
    raise InputError(
        "no face found from any side: is it a head with its texture? Turn it upright, or try other --landmarks"
    )


def look(
    lit: Lit,
    landmarker: Landmarker,
    place: Similarity,
    angles: Sequence[tuple[float, float]],
    *,
    size: int = LOOK_SIZE,
    thorough: bool = False,
) -> Marks:
    """What the landmarker sees from cameras at these angles (yaw, pitch) around the head as `place` has it."""
    found = []
    for yaw, pitch in angles:
        view = cameras.place(yaw, pitch, size)
        image, _ = renderer.render(lit, _through(view.world_to_camera, place), view.intrinsics, size)
        faces = [face for face in landmarker.detect(image, thorough=thorough) if face.score >= _LEAST_SCORE]
        found.append(faces[0] if faces else None)
    count = next((len(face.points) for face in found if face), 0)
    nothing = np.zeros((count, 2), np.float32)
    return Marks(
        points=np.stack([face.points if face else nothing for face in found]),
        weights=np.array([face.score if face else 0.0 for face in found], np.float32),
        expressions=tuple(face.expression if face else None for face in found),
    )


def intersect(
    points: Float[np.ndarray, "v k 2"],
    weights: Float[np.ndarray, "v"],
    world_to_camera: Float[np.ndarray, "v 3 4"],
    intrinsics: Float[np.ndarray, "v 3 3"],
) -> Float[np.ndarray, "k 3"]:
    """The points nearest to their rays in the weighted least-squares sense: sum_v w (I - d d^T) (x - c) = 0."""
    rotation = world_to_camera[:, :, :3]
    centres = -np.einsum("vji,vj->vi", rotation, world_to_camera[:, :, 3])
    local = np.concatenate([points, np.ones((*points.shape[:2], 1))], -1) @ np.linalg.inv(
        intrinsics
    ).transpose(0, 2, 1)
    rays = local @ rotation
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    across = (np.eye(3) - rays[..., :, None] * rays[..., None, :]) * weights[:, None, None, None]
    right = np.einsum("vkij,vj->ki", across, centres)
    return np.linalg.solve(across.sum(0), right[..., None])[..., 0]


def align(
    points: Float[np.ndarray, "k 3"], target: Float[np.ndarray, "k 3"], weights: Float[np.ndarray, "k"]
) -> tuple[Similarity, float]:
    """The similarity from points to target (Umeyama, 1991), and the root mean square of what is left."""
    share = (weights / weights.sum())[:, None]
    here, there = (share * points).sum(0), (share * target).sum(0)
    left, right = points - here, target - there
    u, singular, vt = np.linalg.svd((share * right).T @ left)
    mirror = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * mirror) @ vt
    scale = float((singular * mirror).sum() / (share * left**2).sum())
    found = Similarity(scale=scale, rotation=rotation, shift=there - scale * rotation @ here)
    return found, float(np.sqrt((share * (found(points) - target) ** 2).sum()))


def _settled(
    lit: Lit, landmarker: Landmarker, part: LandmarkPart, guess: Similarity, size: int
) -> Similarity | None:
    """The head's place from a first sight of the face; None where looks from its sides do not agree on one."""
    place = guess
    # The second round starts with the face in the middle, upright and large.
    for pixels, thorough in ((size, size > LOOK_SIZE), (LOOK_SIZE, False)):
        marks = look(lit, landmarker, place, _FAN, size=pixels, thorough=thorough)
        if (marks.weights > 0).sum() < _FEWEST:
            return None
        views = [cameras.place(yaw, pitch, pixels) for yaw, pitch in _FAN]
        seen = intersect(
            marks.points.astype(np.float64),
            marks.weights.astype(np.float64),
            np.stack([view.world_to_camera for view in views]),
            np.stack([view.intrinsics for view in views]),
        )
        step, misfit = align(seen, np.asarray(part.mean, np.float64), np.asarray(part.trust, np.float64))
        if misfit > _MOST_MISFIT:
            return None
        place = step.after(place)
    return place


def _guesses() -> Iterator[Similarity]:
    """Every way in which a scan's axes may lie, the usual ones first, then those turned by half a right angle."""
    upright = Rotation.create_group("O")
    usual = np.argsort(upright.magnitude(), kind="stable")
    for turn in ((0.0, 0.0), (45.0, 0.0), (0.0, 45.0)):
        for rotation in Rotation.from_euler("YX", turn, degrees=True) * upright[usual]:
            yield Similarity(scale=_GUESSED_RADIUS, rotation=rotation.as_matrix(), shift=cameras.TARGET)


def _through(world_to_camera: Float[np.ndarray, "3 4"], place: Similarity) -> Float[np.ndarray, "3 4"]:
    """The camera that sees the scan where it lies as `world_to_camera` would see it after `place`."""
    rotation, shift = world_to_camera[:, :3], world_to_camera[:, 3]
    moved = (rotation @ place.shift + shift) / place.scale
    return np.concatenate([rotation @ place.rotation, moved[:, None]], 1)
