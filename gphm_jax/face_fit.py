"""Fits a linear face model to 2D landmarks of one person, over all frames and views at once.

One identity, one focal length (where unknown) and one scale are shared; every frame has an expression and a pose.
Robust to wrong marks; neighbouring frames of a moving face hold each other. The solver is optimistix's
Levenberg-Marquardt in double precision, with linear systems solved by `gphm_jax.arrow`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from gphm_jax.arrow import Unknowns, levenberg_marquardt
from gphm_jax.capture.landmarks import imported
from gphm_jax.errors import InputError
from gphm_jax.face_fit_problem import POSE, Frames, Problem, View, assemble, pose, project, residuals
from gphm_jax.face_fit_start import (
    Start,
    focal_candidates,
    mean_rotation,
    rotation_vectors,
    start,
)
from gphm_jax.morphable import LandmarkPart, MorphableModel

_FRAME_BUCKETS = (2, 16, 64)  # frames are padded to one of these or a multiple of the last: few compilations
_REPORTED = "ibug68"


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a fit weighs what it knows. Deviations are standard deviations."""

    mark_deviation: float = 0.01  # of a trusted mark from its place, head lengths
    independent_marks: int = 100  # a detector's marks err together: more of them count as so many
    independent_frames: int = (
        10  # and errors persist in time: a person is learnt from a clip as from so many frames
    )
    # Reach of the robust loss, head lengths; one solve each, tighter and tighter.
    reaches: tuple[float, ...] = (0.15, 0.04)
    focal: float = 1.2  # over the larger side: the likeliest of unknown cameras (45 degrees)
    focal_deviation: float = 0.5  # of its logarithm
    # Of what moves, between frames 1/30 s apart:
    expression_change: float = 0.2  # deviation of a coefficient's change from frame to frame, in its spreads
    turn_change: float = 0.01  # of the change from frame to frame of a head's turn, radians,
    move_change: float = 0.004  # and of its move, head lengths
    steps: int = 30  # at most, of each solve
    tolerance: float = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FaceFit:
    """A fitted face; x_world = scale R x + t takes the canonical head to the world."""

    identity: Float[np.ndarray, "ki"]
    expression: Float[np.ndarray, "f ke"]
    rotation: Float[np.ndarray, "f 3"]  # axis-angle
    translation: Float[np.ndarray, "f 3"]
    scale: float  # world units a head length; 1 where nothing tells size from distance
    intrinsics: Float[np.ndarray, "v 3 3"]
    landmarks: Float[np.ndarray, "f 68 3"]  # the iBUG points in the world, whatever was observed
    reprojection: Float[np.ndarray, "f v k"]  # pixels from each observed point
    steps: int  # of the solver, in all


def fit_face(model: MorphableModel, seen: Observations, options: FitOptions | None = None) -> FaceFit:
    """The face that explains the observations best; raises `InputError` where no frame shows enough of one.

    A frame without points lies between its neighbours (`moving`), or is meaningless (photos). One camera alone
    cannot tell a head's size from its distance: scale is 1 then, and distances come in head lengths.
    """
    options = options or FitOptions()
    _check(seen)
    marks = model.landmark_part(seen.scheme)
    weights = seen.weights * _trust(marks, options)
    cameras = _cameras(seen)
    focals = [seen.intrinsics] if seen.intrinsics is not None else focal_candidates(seen.sizes)
    costs = [_focal_cost(seen, each, options) for each in focals]
    begin = start(np.asarray(marks.mean), seen.points, seen.weights, cameras, focals, costs)
    if begin is None:
        raise InputError(
            f"no frame shows enough landmarks of a face ({seen.weights.shape[0]} frames looked at): "
            "use footage where the face is larger or turned to the camera"
        )
    # The solver's own code relies on NumPy's broadcasting, whatever the caller allows.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        problem = _problem(marks, seen, options, begin, weights, cameras)
        unknowns = _first_unknowns(problem)
        steps = 0
        for reach in options.reaches:
            problem = dataclasses.replace(problem, reach=jnp.float64(reach))
            unknowns, taken = _solve(problem, unknowns, options.steps, options.tolerance)
            steps += int(taken)
        return _result(model, marks, seen, begin, problem, unknowns, steps)


def _check(seen: Observations) -> None:
    if seen.world_to_camera is None and seen.points.shape[1] != 1:
        raise ValueError(f"{seen.points.shape[1]} views need world_to_camera")
    if not np.isfinite(seen.points).all() or not np.isfinite(seen.weights).all():
        raise ValueError("points and weights must be finite, also where nothing is seen")


def _trust(marks: LandmarkPart, options: FitOptions) -> Float[np.ndarray, "k"]:
    """Weights of marks: one over a standard deviation in head lengths."""
    trust = np.sqrt(np.asarray(marks.trust, np.float64))
    return trust * min(1.0, np.sqrt(options.independent_marks / len(trust))) / options.mark_deviation


def _growth(marks: LandmarkPart) -> Float[np.ndarray, "ki"]:
    """How much the landmarks spread out with each identity coefficient, relative to the mean's spread."""
    spread = np.asarray(marks.mean) - np.asarray(marks.mean).mean(0)
    return np.einsum("kx,kxi->i", spread, marks.identity_basis) / (spread**2).sum()


def _cameras(seen: Observations) -> Float[np.ndarray, "f v 4 4"]:
    frames, views = seen.weights.shape[:2]
    matrices = (
        np.eye(4)[None] if seen.world_to_camera is None else np.asarray(seen.world_to_camera, np.float64)
    )
    return np.broadcast_to(matrices, (frames, views, 4, 4))


def _focal_cost(seen: Observations, intrinsics: np.ndarray, options: FitOptions) -> float:
    away = np.log(intrinsics[0, 0, 0] / (options.focal * float(seen.sizes.max())))
    return float((away / options.focal_deviation) ** 2)


def _padded(frames: int) -> int:
    return next((size for size in _FRAME_BUCKETS if frames <= size), -(-frames // 64) * 64)


def _problem(
    marks: LandmarkPart,
    seen: Observations,
    options: FitOptions,
    begin: Start,
    weights: Float[np.ndarray, "f v k"],
    cameras: Float[np.ndarray, "f v 4 4"],
) -> Problem:
    frames, views = weights.shape[:2]
    more = _padded(frames) - frames

    def extended(values: np.ndarray) -> jax.Array:
        """Frames past the last repeat it; their points weigh nothing."""
        return jnp.asarray(np.concatenate([values, np.repeat(values[-1:], more, 0)]), jnp.float64)

    local = np.einsum("fvij,fj->fvi", cameras[..., :3, :3], begin.translation) + cameras[..., :3, 3]
    pixels = begin.intrinsics[:, 0, 0] * begin.scale / np.maximum(local[..., 2], 1e-3 * begin.scale)
    reference = int(weights.sum((0, 2)).argmax())
    place = local[:, reference] / begin.scale
    common = mean_rotation(begin.rotation[begin.found])
    turn = rotation_vectors(common.T @ begin.rotation)
    rest = np.zeros((frames, POSE - 3 + marks.expression_basis.shape[-1]))
    lost = np.arange(frames + more) >= frames
    single = views == 1
    unknown_focal = seen.intrinsics is None
    prior = (
        np.log(options.focal * float(seen.sizes.max()) / begin.intrinsics[0, 0, 0]) if unknown_focal else 0.0
    )
    # A change grows with the time between frames, a change's change with its square.
    pace = max(seen.interval * 30, 1e-3)
    smoothness = np.concatenate(
        [
            np.full(3, 1.0 / (options.turn_change * pace**2)),
            # Places in the picture, in head lengths; size in the picture, by its logarithm.
            np.array([1.0, 1.0, np.median(place[:, 2])]) / (options.move_change * pace**2),
            1.0 / (options.expression_change * pace * np.asarray(marks.expression_spread)),
        ]
    )
    return Problem(
        mean=jnp.asarray(marks.mean, jnp.float64),
        identity_basis=jnp.asarray(marks.identity_basis, jnp.float64),
        expression_basis=jnp.asarray(marks.expression_basis, jnp.float64),
        expression_spread=jnp.asarray(marks.expression_spread, jnp.float64),
        expression_range=jnp.asarray(marks.expression_range, jnp.float64),
        frames=Frames(
            points=extended(seen.points),
            weights=jnp.where(lost[:, None, None], 0.0, extended(weights)),
            pixels=extended(pixels),
            view=View(
                rotation=extended(cameras[..., :3, :3]),
                translation=extended(cameras[..., :3, 3]),
                intrinsics=extended(np.broadcast_to(begin.intrinsics, (frames, views, 3, 3))),
            ),
            reference=View(
                rotation=extended(cameras[:, reference, :3, :3]),
                translation=extended(cameras[:, reference, :3, 3]),
                intrinsics=extended(np.broadcast_to(begin.intrinsics[reference], (frames, 3, 3))),
            ),
            place=extended(place),
            start=extended(np.concatenate([turn, rest], -1)),
        ),
        common_rotation=jnp.asarray(common, jnp.float64),
        reach=jnp.float64(options.reaches[0]),
        log_scale=jnp.float64(np.log(begin.scale)),
        identity_weight=jnp.float64(max(1.0, (weights > 0).any((1, 2)).sum() / options.independent_frames)),
        growth=jnp.asarray(_growth(marks), jnp.float64),
        frees=jnp.array([0.0 if single else 1.0, 1.0 if unknown_focal else 0.0], jnp.float64),
        focal_prior=jnp.array([prior, options.focal_deviation], jnp.float64),
        smoothness=jnp.asarray(smoothness if seen.moving else np.zeros_like(smoothness), jnp.float64),
    )


def _first_unknowns(problem: Problem) -> Unknowns:
    return jnp.zeros(problem.identity_basis.shape[-1] + 2), problem.frames.start


@functools.partial(jax.jit, static_argnames=("steps", "tolerance"))
def _solve(problem: Problem, unknowns: Unknowns, steps: int, tolerance: float) -> tuple[Unknowns, Any]:
    optx = imported("optimistix", "footage")
    solver = levenberg_marquardt(assemble)(problem, rtol=tolerance, atol=tolerance)
    solution = optx.least_squares(
        residuals,
        solver,
        unknowns,
        args=problem,
        max_steps=steps,
        throw=False,
        adjoint=optx.ImplicitAdjoint(),
    )
    return solution.value, solution.stats["num_steps"]


@jax.jit
def _poses(problem: Problem, unknowns: Unknowns) -> tuple[jax.Array, ...]:
    shared, frames = unknowns
    return jax.vmap(lambda frame, at: pose(problem, shared, frame, at))(frames, problem.frames)


def _result(
    model: MorphableModel,
    marks: LandmarkPart,
    seen: Observations,
    begin: Start,
    problem: Problem,
    unknowns: Unknowns,
    steps: int,
) -> FaceFit:
    frames = seen.weights.shape[0]
    shared, each = (np.asarray(part) for part in unknowns)
    rotation, translation, scale, focal = (np.asarray(part)[:frames] for part in _poses(problem, unknowns))
    identity, expression = shared[:-2], each[:frames, POSE:]

    def in_world(part: LandmarkPart) -> np.ndarray:
        shape = (
            part.mean
            + part.identity_basis @ identity
            + np.einsum("kxe,fe->fkx", part.expression_basis, expression)
        )
        return scale[:, None, None] * shape @ np.swapaxes(rotation, 1, 2) + translation[:, None]

    onto = jax.vmap(jax.vmap(project, (None, 0, None)))
    view = jax.tree.map(lambda leaf: leaf[:frames], problem.frames.view)
    pixels = np.asarray(onto(jnp.asarray(in_world(marks)), view, jnp.asarray(focal)))
    intrinsics = np.array(begin.intrinsics)
    intrinsics[:, :2, :2] *= focal[0]
    return FaceFit(
        identity=identity.astype(np.float32),
        expression=expression.astype(np.float32),
        rotation=rotation_vectors(rotation).astype(np.float32),
        translation=translation.astype(np.float32),
        scale=float(scale[0]),
        intrinsics=intrinsics,
        landmarks=in_world(model.landmark_part(_REPORTED)).astype(np.float32),
        reprojection=np.linalg.norm(pixels - seen.points, axis=-1).astype(np.float32),
        steps=steps,
    )
