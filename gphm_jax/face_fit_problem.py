"""The least-squares problem of a face fit: residuals of all frames, and J^T J by blocks.

Unknowns of a frame: rotation (3), place (3), expression (ke). Rotation is a rotation vector w on top of a common
rotation F, R = F exp(w). Place is where the head lies in the picture of one reference view: with da, db, dq and the
start's a, b and picture size (pixels a head length) the head's origin in that camera is
scale exp(-dq) (a + da, b + db, focal / size): what a picture shows hardly changes with the focal length then, and the
valley between focal length and distance is straight. Shared unknowns: identity (ki), log scale, log focal factor.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gphm_jax.arrow import Arrow, Unknowns
from gphm_jax.geometry import axis_angle_to_matrix
from gphm_jax.types import pytree

POSE = 6
_NEAREST = 1e-2  # of a point's depth, head lengths: points behind a camera have no picture
# Expression coefficients this far out of their range cost as much as one standard deviation.
_BOX_SOFTNESS = 0.05
# Of a face's size, relative to the head: pictures cannot tell it from distance or scale, and left to itself it shrinks
# until the expressions that explain the pictures are small.
_SIZE_DEVIATION = 0.02
# Of poses to their start, in standard deviations a unit: frames without points must not be singular.
_TETHER = 1e-3
_PICTURES_AT_ONCE = 16  # whose Jacobians are in memory


@pytree
class View:
    """A camera of one frame."""

    rotation: Float[Array, "*b 3 3"]
    translation: Float[Array, "*b 3"]
    intrinsics: Float[Array, "*b 3 3"]


@pytree
class Frames:
    """What differs between frames; `f` leads every array."""

    points: Float[Array, "*f v k 2"]  # pixels
    weights: Float[Array, "*f v k"]  # one over a standard deviation, head lengths
    drift: Float[Array, "*f v k 3"]  # canonical: where a detector marks points seen from there
    pixels: Float[Array, "*f v"]  # that a head length takes in each picture, roughly
    view: View  # [f v]
    reference: View  # [f]
    place: Float[Array, "*f 3"]  # a, b and focal / size of the reference view at the start
    start: Float[Array, "*f p"]


@pytree
class Problem:
    """Everything that stays fixed during a solve."""

    mean: Float[Array, "k 3"]
    identity_basis: Float[Array, "k 3 ki"]
    expression_basis: Float[Array, "k 3 ke"]
    expression_spread: Float[Array, "ke"]
    expression_range: Float[Array, "ke 2"]
    frames: Frames
    common_rotation: Float[Array, "3 3"]
    log_scale: Float[Array, ""]  # at the start
    reach: Float[Array, ""]  # head lengths: marks much further away lose their pull (Geman-McClure)
    identity_weight: Float[Array, ""]  # of a coefficient's square
    growth: Float[Array, "ki"]  # relative growth of the landmarks with each identity coefficient
    frees: Float[Array, "2"]  # 1 where log scale and log focal factor are unknown, 0 where they are given
    focal_prior: Float[Array, "2"]  # mean and standard deviation of the log focal factor
    smoothness: Float[
        Array, "p"
    ]  # one over the standard deviation of a frame's change (expression) or of the
    # change's change (pose); 0 between photos


def pose(
    problem: Problem, shared: Float[Array, "s"], frame: Float[Array, "p"], at: Frames
) -> tuple[Float[Array, "3 3"], Float[Array, "3"], Float[Array, ""], Float[Array, ""]]:
    """Rotation, translation and scale of a frame's head in the world, and the focal factor."""
    log_scale, log_focal = shared[-2:] * problem.frees
    scale, focal = jnp.exp(problem.log_scale + log_scale), jnp.exp(log_focal)
    rotation = problem.common_rotation @ axis_angle_to_matrix(frame[:3])
    place = at.place * jnp.stack([jnp.ones_like(focal), jnp.ones_like(focal), focal])
    place = place + jnp.concatenate([frame[3:5], jnp.zeros_like(frame[:1])])
    local = scale * jnp.exp(-frame[5]) * place
    translation = at.reference.rotation.T @ (local - at.reference.translation)
    return rotation, translation, scale, focal


def project(world: Float[Array, "*b 3"], view: View, focal: Float[Array, ""]) -> Float[Array, "*b 2"]:
    """World points to the pixels of one view whose focal lengths are `focal` times the given ones."""
    local = world @ view.rotation.T + view.translation
    upright = local[..., :2] / jnp.maximum(local[..., 2:], _NEAREST)
    return focal * upright @ view.intrinsics[:2, :2].T + view.intrinsics[:2, 2]


def _shapes(problem: Problem, shared: Float[Array, "s"], frame: Float[Array, "p"]) -> Float[Array, "k 3"]:
    neutral = problem.mean + problem.identity_basis @ shared[:-2]
    return neutral + problem.expression_basis @ frame[POSE:]


def _mark_residuals(
    problem: Problem,
    shape: Float[Array, "k 3"],
    freedom: Float[Array, "2"],
    placed: Float[Array, "6"],
    at: Frames,
) -> Float[Array, "v k 2"]:
    """Weighted distances of all marks of a frame, robust; `freedom` and `placed` are shared[-2:], frame[:6]."""
    rotation, translation, scale, focal = pose(problem, freedom, placed, at)
    world = scale * (shape + at.drift) @ rotation.T + translation
    pixels = jax.vmap(project, (0, 0, None))(world, at.view, focal)
    distance = (pixels - at.points) / at.pixels[:, None, None]
    damped = distance * jax.lax.rsqrt(1.0 + (distance**2).sum(-1, keepdims=True) / problem.reach**2)
    return damped * at.weights[..., None]


def residuals(unknowns: Unknowns, problem: Problem) -> tuple[Array, ...]:
    """All residuals, each in standard deviations."""
    shared, frames = unknowns
    marks = jax.vmap(
        lambda frame, at: _mark_residuals(
            problem, _shapes(problem, shared, frame), shared[-2:], frame[:POSE], at
        )
    )(frames, problem.frames)
    shared_priors = (shared - _shared_means(problem)) * _shared_weights(problem)
    size = problem.growth @ shared[:-2] / _SIZE_DEVIATION
    centred = (frames - _frame_means(problem)) * _frame_weights(problem)
    change = jnp.diff(frames[:, POSE:], axis=0) * problem.smoothness[POSE:]
    turn = jnp.diff(frames[:, :POSE], n=2, axis=0) * problem.smoothness[:POSE]
    return marks, shared_priors, size, centred, _excess(problem, frames[:, POSE:]), change, turn


def _shared_means(problem: Problem) -> Float[Array, "s"]:
    identities = problem.identity_basis.shape[-1]
    return jnp.concatenate([jnp.zeros(identities + 1), problem.focal_prior[:1]])


def _shared_weights(problem: Problem) -> Float[Array, "s"]:
    identities = problem.identity_basis.shape[-1]
    return jnp.concatenate(
        [
            jnp.full(identities, jnp.sqrt(problem.identity_weight)),
            jnp.full(1, _TETHER),
            1.0 / problem.focal_prior[1:],
        ]
    )


def _frame_means(problem: Problem) -> Float[Array, "f p"]:
    start = problem.frames.start
    return start.at[:, POSE:].set(0.0)


def _frame_weights(problem: Problem) -> Float[Array, "p"]:
    return jnp.concatenate([jnp.full(POSE, _TETHER), 1.0 / problem.expression_spread])


def _excess(problem: Problem, expression: Float[Array, "f ke"]) -> Float[Array, "f ke"]:
    low, high = problem.expression_range.T
    return (expression - jnp.clip(expression, low, high)) / _BOX_SOFTNESS


def _frame_jacobian(
    problem: Problem, shared: Float[Array, "s"], frame: Float[Array, "p"], at: Frames
) -> Float[Array, "m ps"]:
    """Of a frame's marks in (frame, shared). The bases enter linearly, so only points and pose are differentiated."""
    shape = _shapes(problem, shared, frame)
    marks, num_views = shape.shape[0], at.weights.shape[0]
    # A mark depends on its own point alone: three tangents move all points at once.
    along = jnp.broadcast_to(jnp.eye(3, dtype=shape.dtype)[:, None, :], (3, marks, 3))
    at_points = functools.partial(_mark_residuals, problem, freedom=shared[-2:], placed=frame[:POSE], at=at)
    by_point = jax.vmap(lambda tangent: jax.jvp(lambda x: at_points(shape=x), (shape,), (tangent,))[1])(along)
    by_freedom, by_pose = jax.jacfwd(
        lambda freedom, placed: _mark_residuals(problem, shape, freedom, placed, at), argnums=(0, 1)
    )(shared[-2:], frame[:POSE])

    def by_basis(basis: Float[Array, "k 3 n"]) -> Float[Array, "v k 2 n"]:
        return jnp.einsum("xvkc,kxn->vkcn", by_point, basis)

    columns = [by_pose, by_basis(problem.expression_basis), by_basis(problem.identity_basis), by_freedom]
    return jnp.concatenate(columns, -1).reshape(num_views * marks * 2, -1)


def assemble(problem: Problem, unknowns: Unknowns) -> Arrow:
    """J^T J of `residuals`."""
    shared, frames = unknowns
    size = frames.shape[1]

    # In single precision, at half the cost: steps need not be exact, gradients are.
    single = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (problem, shared, frames))

    def squares(row: tuple[Float[Array, "p"], Frames]) -> Float[Array, "ps ps"]:
        jacobian = _frame_jacobian(single[0], single[1], *row)
        return jacobian.T @ jacobian

    # Some frames' Jacobians at a time: all at once take gigabytes with many views.
    at_once = max(1, _PICTURES_AT_ONCE // problem.frames.weights.shape[1])
    products = jax.lax.map(squares, (single[2], single[0].frames), batch_size=at_once).astype(frames.dtype)
    outside = _excess(problem, frames[:, POSE:]) != 0.0
    on_diagonal = jnp.broadcast_to(_frame_weights(problem) ** 2, frames.shape)
    on_diagonal = on_diagonal.at[:, POSE:].add(outside / _BOX_SOFTNESS**2)
    band = _smoothness_band(problem, len(frames))
    diagonal = jax.vmap(jnp.diag)(on_diagonal + band[0])
    growth = jnp.pad(problem.growth / _SIZE_DEVIATION, (0, 2))
    return Arrow(
        frame=products[:, :size, :size] + diagonal,
        next=band[1],
        second=band[2],
        border=products[:, :size, size:],
        shared=products[:, size:, size:].sum(0)
        + jnp.diag(_shared_weights(problem) ** 2)
        + jnp.outer(growth, growth),
    )


def _smoothness_band(problem: Problem, frames: int) -> Float[Array, "3 f p"]:
    """Diagonals 0, 1 and 2 of D^T D for every unknown: first differences of expressions, second ones of poses."""
    ones = jnp.eye(frames)
    band = []
    for order in (1, 2):
        difference = jnp.diff(ones, n=order, axis=0)
        square = difference.T @ difference
        band.append(jnp.stack([jnp.pad(jnp.diagonal(square, k), (0, k)) for k in range(3)]))
    of_pose = jnp.arange(len(problem.smoothness)) < POSE
    return jnp.where(of_pose, band[1][..., None], band[0][..., None]) * problem.smoothness**2
