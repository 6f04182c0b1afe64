"""What a face fit is given, and how it becomes a least-squares problem."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gphm_jax.data.synthetic.landmarks import view_terms
from gphm_jax.face_fit_problem import POSE, Frames, Problem, View
from gphm_jax.face_fit_start import Start, mean_rotation, rotation_vectors
from gphm_jax.morphable import LandmarkPart

_FRAME_BUCKETS = (2, 16)  # frames are padded to one of these or a multiple of 64: few compilations


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """2D landmarks of `f` frames in `v` views."""

    points: Float[
        np.ndarray, "f v k 2"
    ]  # pixels of the full picture, centres at +0.5; finite where weight is 0
    weights: Float[np.ndarray, "f v k"]  # at least 0; 0 = not seen
    sizes: Int[np.ndarray, "v 2"]  # height, width
    scheme: str  # "ibug68" or "mediapipe478"
    intrinsics: Float[np.ndarray, "v 3 3"] | None = (
        None  # None: one focal length, principal points in the middle
    )
    world_to_camera: Float[np.ndarray, "v 4 4"] | Float[np.ndarray, "f v 4 4"] | None = (
        None  # None: one, at 0
    )
    moving: bool = True  # neighbouring frames are neighbours in time
    interval: float = 1 / 30  # seconds between them

    def __post_init__(self) -> None:
        if self.world_to_camera is None and self.points.shape[1] != 1:
            raise ValueError(f"{self.points.shape[1]} views need world_to_camera")
        if not np.isfinite(self.points).all() or not np.isfinite(self.weights).all():
            raise ValueError("points and weights must be finite, also where nothing is seen")

    @property
    def cameras(self) -> Float[np.ndarray, "f v 4 4"]:
        """`world_to_camera` of every picture."""
        frames, views = self.weights.shape[:2]
        given = (
            np.eye(4)[None] if self.world_to_camera is None else np.asarray(self.world_to_camera, np.float64)
        )
        return np.broadcast_to(given, (frames, views, 4, 4))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fit weighs what it knows. Deviations are standard deviations."""

    mark_deviation: float = 0.01  # of a trusted mark from its place, head lengths
    independent_marks: int = 100  # a detector's marks err together: more of them count as so many
    independent_frames: int = (
        10  # and errors persist in time: a person is learnt from a clip as from so many frames
    )
    # Reach of the robust loss, head lengths; one solve each. Drifts of marks are those of the poses before.
    reaches: tuple[float, ...] = (0.15, 0.04)
    focal: float = 1.2  # over the larger side: the likeliest of unknown cameras (45 degrees)
    focal_deviation: float = 0.5  # of its logarithm
    # Of what moves, between frames 1/30 s apart:
    expression_change: float = 0.4  # deviation of a coefficient's change from frame to frame, in its spreads
    turn_change: float = 0.05  # of the change from frame to frame of a head's turn, radians,
    move_change: float = 0.02  # and of its move, head lengths
    steps: int = 30  # at most, of each solve
    tolerance: float = 1e-3


def focal_cost(seen: Observations, intrinsics: Float[np.ndarray, "v 3 3"], options: FitOptions) -> float:
    """Squared deviations of a focal length from what is likely."""
    return float((_log_focal(seen, intrinsics, options) / options.focal_deviation) ** 2)


def _log_focal(seen: Observations, intrinsics: np.ndarray, options: FitOptions) -> float:
    return float(np.log(options.focal * float(seen.sizes.max()) / intrinsics[0, 0, 0]))


def mark_weights(marks: LandmarkPart, seen: Observations, options: FitOptions) -> Float[np.ndarray, "f v k"]:
    """Weights of all marks: one over a standard deviation in head lengths."""
    trust = np.sqrt(np.asarray(marks.trust, np.float64))
    share = min(1.0, np.sqrt(options.independent_marks / len(trust)))
    return seen.weights * trust * share / options.mark_deviation


def drifts(
    marks: LandmarkPart,
    cameras: Float[np.ndarray, "f v 4 4"],
    rotation: Float[np.ndarray, "f 3 3"],
    translation: Float[np.ndarray, "f 3"],
) -> Float[np.ndarray, "f v k 3"]:
    """Where a detector marks the points, seen from each camera, beside the points themselves; canonical."""
    centres = -np.einsum("fvji,fvj->fvi", cameras[..., :3, :3], cameras[..., :3, 3])
    direction = np.einsum("fji,fvj->fvi", rotation, centres - translation[:, None])
    direction /= np.maximum(
        np.linalg.norm(direction, axis=-1, keepdims=True), 1e-9
    )  # a camera inside the head
    return np.einsum("kxj,fvj->fvkx", np.asarray(marks.drift, np.float64), view_terms(direction))


def lengthened(values: np.ndarray) -> jax.Array:
    """Frames up to one of few numbers: those past the last repeat it."""
    frames = len(values)
    target = next((size for size in _FRAME_BUCKETS if frames <= size), -(-frames // 64) * 64)
    return jnp.asarray(np.concatenate([values, np.repeat(values[-1:], target - frames, 0)]), jnp.float64)


def problem(marks: LandmarkPart, seen: Observations, options: FitOptions, begin: Start) -> Problem:
    """The least-squares problem around a start; runs in double precision."""
    frames, views = seen.weights.shape[:2]
    weights, cameras = mark_weights(marks, seen, options), seen.cameras
    local = np.einsum("fvij,fj->fvi", cameras[..., :3, :3], begin.translation) + cameras[..., :3, 3]
    reference = int(weights.sum((0, 2)).argmax())
    place = local[:, reference] / begin.scale
    common = mean_rotation(begin.rotation[begin.found])
    turn = rotation_vectors(common.T @ begin.rotation)
    rest = np.zeros((frames, POSE - 3 + marks.expression_basis.shape[-1]))
    every_weight = lengthened(weights)
    unknown_focal = seen.intrinsics is None
    log_focal = _log_focal(seen, begin.intrinsics, options) if unknown_focal else 0.0
    smoothness = _smoothness(marks, options, interval=seen.interval, depth=float(np.median(place[:, 2])))

    def view(picked: slice | int) -> View:
        intrinsics = np.broadcast_to(begin.intrinsics, (frames, views, 3, 3))
        return View(
            rotation=lengthened(cameras[:, picked, :3, :3]),
            translation=lengthened(cameras[:, picked, :3, 3]),
            intrinsics=lengthened(intrinsics[:, picked]),
        )

    return Problem(
        mean=jnp.asarray(marks.mean, jnp.float64),
        identity_basis=jnp.asarray(marks.identity_basis, jnp.float64),
        expression_basis=jnp.asarray(marks.expression_basis, jnp.float64),
        expression_spread=jnp.asarray(marks.expression_spread, jnp.float64),
        expression_range=jnp.asarray(marks.expression_range, jnp.float64),
        frames=Frames(
            points=lengthened(seen.points),
            weights=jnp.where(jnp.arange(len(every_weight))[:, None, None] < frames, every_weight, 0.0),
            drift=lengthened(drifts(marks, cameras, begin.rotation, begin.translation)),
            # A head at or behind a camera shows nothing there: any size will do.
            pixels=lengthened(begin.intrinsics[:, 0, 0] / np.maximum(local[..., 2] / begin.scale, 1e-3)),
            view=view(slice(None)),
            reference=view(reference),
            place=lengthened(place),
            start=lengthened(np.concatenate([turn, rest], -1)),
        ),
        common_rotation=jnp.asarray(common, jnp.float64),
        log_scale=jnp.float64(np.log(begin.scale)),
        reach=jnp.float64(options.reaches[0]),
        identity_weight=jnp.float64(max(1.0, (weights > 0).any((1, 2)).sum() / options.independent_frames)),
        growth=jnp.asarray(_growth(marks), jnp.float64),
        # One camera alone cannot tell a head's size from its distance.
        frees=jnp.array([0.0 if views == 1 else 1.0, 1.0 if unknown_focal else 0.0], jnp.float64),
        focal_prior=jnp.array([log_focal, options.focal_deviation], jnp.float64),
        smoothness=jnp.asarray(smoothness if seen.moving else np.zeros_like(smoothness), jnp.float64),
    )


def _smoothness(
    marks: LandmarkPart, options: FitOptions, *, interval: float, depth: float
) -> Float[np.ndarray, "p"]:
    """One over the deviations of changes; a place's third part is a logarithm of size, so of distance.

    A change grows with the time between frames, a change's change with its square.
    """
    pace = max(30 * interval, 1e-3)
    return np.concatenate(
        [
            np.full(3, 1.0 / (options.turn_change * pace**2)),
            np.array([1.0, 1.0, depth]) / (options.move_change * pace**2),
            1.0 / (options.expression_change * pace * np.asarray(marks.expression_spread, np.float64)),
        ]
    )


def _growth(marks: LandmarkPart) -> Float[np.ndarray, "ki"]:
    """How much the landmarks spread out with each identity coefficient, relative to the mean's spread."""
    spread = np.asarray(marks.mean) - np.asarray(marks.mean).mean(0)
    return np.einsum("kx,kxi->i", spread, marks.identity_basis) / (spread**2).sum()
