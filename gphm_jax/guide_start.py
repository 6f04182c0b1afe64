"""What the guide learns before stage 1: its first surface, and to read expression and motion off images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float

from gphm_jax.geometry import to_canonical, to_world
from gphm_jax.guide import GuideModel
from gphm_jax.losses import landmark_distance
from gphm_jax.types import Batch, Pose, pytree

_NECK = 0.3  # head lengths below the chin from which on all is trunk


def initialize_sdf(guide: GuideModel, sdf: Float[Array, "g"], *, steps: int, seed: int) -> float:
    """Fits f_mean to SDF values given on the guide's grid; returns the final mean absolute error."""
    error = _sdf_error(guide, sdf)
    graphdef, params, rest = nnx.split(guide, nnx.PathContains("mean"), ...)  # type: ignore[misc]  # stubs lose the count
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps, 0.02))

    @jax.jit
    def step(params: Any, state: Any, key: jax.Array) -> tuple[Any, Any, jax.Array]:
        value, gradient = jax.value_and_grad(lambda p: error(nnx.merge(graphdef, p, rest), key))(params)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(params, updates), state, value

    state, value = optimizer.init(params), jnp.asarray(jnp.inf)
    for key in jax.random.split(jax.random.key(seed), steps):
        params, state, value = step(params, state, key)
    nnx.update(guide, params)
    return float(value)


@pytree
class StartErrors:
    """How far a started guide is off, in head lengths (root mean square)."""

    landmarks: Float[Array, ""]  # from the fitted landmarks
    motion: Float[Array, ""]  # from a trunk that stays in the world under a rigid head


def initialize_codes(
    guide: GuideModel,
    sdf: Float[Array, "g"],
    rest: Pose,
    batches: Iterable[Batch],
    optimizer: Any,
    *,
    seed: int,
    eye_gain: float = 1.0,
) -> StartErrors:
    """Has the encoders read expression and motion before any picture is drawn, a step a batch.

    Landmarks (eq. 15, those of the eyes `eye_gain` times) teach the expression. The motion code learns that a trunk
    stays in the world when the head turns: f_nf takes what is below the neck back to where it is under the identity's
    pose `rest` [identities], and leaves the head alone. f_mean keeps its surface meanwhile. Neither needs a picture,
    so that batches can be large: with the few that a step of stage 1 can pay for on a CPU, noise drowns both codes,
    and the shoulders of a turned head are drawn a tenth of the picture away from where they are.
    """
    sdf_error = _sdf_error(guide, sdf)
    cell = jnp.asarray(guide.cell(), jnp.float32)[None]
    points, below = _outside_the_neck(guide, sdf)
    rest = jax.tree.map(jnp.asarray, rest)
    graphdef, params, others = nnx.split(guide, nnx.Param, ...)  # type: ignore[misc]  # stubs lose the count

    @jax.jit
    def step(params: Any, state: Any, batch: Batch, index: jax.Array) -> tuple[Any, Any, StartErrors]:
        surface_key, row_key, jitter_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index), 3)
        rows = jax.random.randint(row_key, (1024,), 0, points.shape[0])
        # Anywhere in the cells around: between grid vertices alone, the encoding's high octaves would be free.
        spots = points[rows] + cell * jax.random.uniform(jitter_key, (1024, 3), minval=-0.5, maxval=0.5)

        def loss(params: Any) -> tuple[jax.Array, StartErrors]:
            model = nnx.merge(graphdef, params, others)
            predicted = model.posed_landmarks(batch)
            weighted = jnp.mean(landmark_distance(predicted, batch.landmarks, eye_gain=eye_gain))
            motion = _motion_error(model, batch, rest, spots, below[rows])
            landmarks = jnp.mean(landmark_distance(predicted, batch.landmarks))
            errors = StartErrors(landmarks=jnp.sqrt(landmarks), motion=jnp.sqrt(motion))
            # 100: a distance of 0.01 counts like an SDF that is off by as much. The trunk moves some ten times
            # as far as a mouth, and would be all that is learnt.
            return 100.0 * weighted + 10.0 * motion + sdf_error(model, surface_key), errors

        (_, errors), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, errors

    state = optimizer.init(params)
    errors = StartErrors(landmarks=jnp.asarray(jnp.nan), motion=jnp.asarray(jnp.nan))
    for index, batch in enumerate(batches):
        params, state, errors = step(params, state, batch, jnp.asarray(index))
    nnx.update(guide, params)
    return errors


def _outside_the_neck(
    guide: GuideModel, sdf: Float[Array, "g"]
) -> tuple[Float[Array, "n 3"], Float[Array, "n"]]:
    """Grid vertices near the surface, above the chin (0) and well below it (1)."""
    points = np.asarray(guide.grid())[_near_surface(guide, sdf)]
    chin = np.asarray(guide.landmarks[...])[:, 1].min()
    below = points[:, 1] < chin - _NECK
    kept = below | (points[:, 1] > chin)
    return jnp.asarray(points[kept]), jnp.asarray(below[kept], jnp.float32)


def _motion_error(
    model: GuideModel, batch: Batch, rest: Pose, points: Float[Array, "n 3"], below: Float[Array, "n"]
) -> Float[Array, ""]:
    """Mean squared distance of f_nf's displacement from one that keeps the trunk in the world, the head rigid."""
    neutral, motion = model.moved(points, batch)
    neutral = jax.lax.stop_gradient(neutral)
    at_rest = to_world(neutral, jax.tree.map(lambda x: x[batch.identity], rest))
    stays = to_canonical(at_rest[:, None], batch.pose) - neutral[:, None]
    return jnp.mean(jnp.sum((motion - below[None, None, :, None] * stays) ** 2, axis=-1))


def _sdf_error(guide: GuideModel, sdf: Float[Array, "g"]) -> Callable[[GuideModel, jax.Array], jax.Array]:
    """Mean absolute SDF error on random grid vertices, half of them near the surface, where the sign matters."""
    grid = guide.grid()
    near = jnp.asarray(np.flatnonzero(_near_surface(guide, sdf)))

    def error(model: GuideModel, key: jax.Array) -> jax.Array:
        uniform, close = jax.random.split(key)
        rows = jnp.concatenate(
            [
                jax.random.randint(uniform, (2048,), 0, grid.shape[0]),
                near[jax.random.randint(close, (2048,), 0, near.size)],
            ]
        )
        return jnp.mean(jnp.abs(model.field(grid[rows])[0] - sdf[rows]))

    return error


def _near_surface(guide: GuideModel, sdf: Float[Array, "g"]) -> Bool[np.ndarray, "g"]:
    """Grid vertices within a tenth of a head length of the surface, or within its own cells where these are coarse."""
    return np.abs(np.asarray(sdf)) < max(0.1, 1.5 * float(guide.cell().max()))
