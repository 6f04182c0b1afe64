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
from jaxtyping import Float

from gphm_jax.arrow import Unknowns, levenberg_marquardt
from gphm_jax.capture.landmarks import imported
from gphm_jax.errors import InputError
from gphm_jax.face_fit_problem import POSE, Problem, assemble, pose, project, residuals
from gphm_jax.face_fit_setup import FitOptions as FitOptions
from gphm_jax.face_fit_setup import Observations as Observations
from gphm_jax.face_fit_setup import drifts, focal_cost, lengthened, problem
from gphm_jax.face_fit_start import Start, focal_candidates, rotation_vectors, start
from gphm_jax.morphable import LandmarkPart, MorphableModel

_REPORTED = "ibug68"


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
    marks = model.landmark_part(seen.scheme)
    focals = (
        focal_candidates(seen.sizes) if seen.intrinsics is None else [np.asarray(seen.intrinsics, np.float64)]
    )
    begin = start(
        np.asarray(marks.mean),
        seen.points,
        seen.weights * np.asarray(marks.trust),
        seen.cameras,
        focals,
        [focal_cost(seen, each, options) for each in focals],
    )
    if begin is None:
        raise InputError(
            f"no frame shows enough landmarks of a face ({seen.weights.shape[0]} frames looked at): "
            "use footage where the face is larger or turned to the camera"
        )
    # The solver's own code relies on NumPy's broadcasting, whatever the caller allows.
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        return _fit(model, marks, seen, options, begin)


def _fit(
    model: MorphableModel, marks: LandmarkPart, seen: Observations, options: FitOptions, begin: Start
) -> FaceFit:
    current = problem(marks, seen, options, begin)
    unknowns = (jnp.zeros(marks.identity_basis.shape[-1] + 2), current.frames.start)
    steps = 0
    for reach in options.reaches:
        current = dataclasses.replace(current, reach=jnp.float64(reach))
        unknowns, taken = _solve(current, unknowns, options.steps, options.tolerance)
        steps += int(taken)
        rotation, translation, *_ = _poses(current, unknowns, len(seen.weights))
        drift = lengthened(drifts(marks, seen.cameras, rotation, translation))
        current = dataclasses.replace(current, frames=dataclasses.replace(current.frames, drift=drift))
    return _result(model, marks, seen, begin, current, unknowns, steps)


@functools.partial(jax.jit, static_argnames=("steps", "tolerance"))
def _solve(problem: Problem, unknowns: Unknowns, steps: int, tolerance: float) -> tuple[Unknowns, Any]:
    optx = imported("optimistix", "footage")
    solver = levenberg_marquardt(assemble)(problem, rtol=tolerance, atol=tolerance)
    solution = optx.least_squares(residuals, solver, unknowns, args=problem, max_steps=steps, throw=False)
    return solution.value, solution.stats["num_steps"]


def _poses(problem: Problem, unknowns: Unknowns, frames: int) -> tuple[np.ndarray, ...]:
    """Rotations, translations, scale and focal factor of the frames that are not padding."""
    shared, each = unknowns
    found = jax.jit(jax.vmap(pose, (None, None, 0, 0)))(problem, shared, each, problem.frames)
    return tuple(np.asarray(part)[:frames] for part in found)


@jax.jit
def _pixels(problem: Problem, world: jax.Array, focal: jax.Array) -> jax.Array:
    return jax.vmap(jax.vmap(project, (0, 0, None)))(world, problem.frames.view, focal)


def _result(
    model: MorphableModel,
    marks: LandmarkPart,
    seen: Observations,
    begin: Start,
    problem: Problem,
    unknowns: Unknowns,
    steps: int,
) -> FaceFit:
    frames = len(seen.weights)
    rotation, translation, scale, focal = _poses(problem, unknowns, frames)
    identity, expression = np.asarray(unknowns[0])[:-2], np.asarray(unknowns[1])[:frames, POSE:]

    def in_world(part: LandmarkPart, drift: np.ndarray) -> np.ndarray:
        """[f v k 3]"""
        neutral = part.mean + part.identity_basis @ identity
        shape = neutral + np.einsum("kxe,fe->fkx", part.expression_basis, expression)
        turned = np.einsum("fxy,fvky->fvkx", rotation, shape[:, None] + drift)
        return scale[0] * turned + translation[:, None, None]

    drift = np.asarray(problem.frames.drift)[:frames]
    pixels = _pixels(problem, lengthened(in_world(marks, drift)), lengthened(focal))
    intrinsics = np.array(begin.intrinsics)
    intrinsics[:, :2, :2] *= focal[0]
    return FaceFit(
        identity=identity.astype(np.float32),
        expression=expression.astype(np.float32),
        rotation=rotation_vectors(rotation).astype(np.float32),
        translation=translation.astype(np.float32),
        scale=float(scale[0]),
        intrinsics=intrinsics,
        landmarks=in_world(model.landmark_part(_REPORTED), np.zeros((1, 1, 1, 3)))[:, 0].astype(np.float32),
        reprojection=np.linalg.norm(np.asarray(pixels)[:frames] - seen.points, axis=-1).astype(np.float32),
        steps=steps,
    )
