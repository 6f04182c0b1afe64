"""What the guide learns before stage 1: its first surface, and to read expressions off landmarks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax.guide import GuideModel
from gphm_jax.losses import landmark_distance
from gphm_jax.types import Batch


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


def initialize_expression(
    guide: GuideModel, sdf: Float[Array, "g"], batches: Iterable[Batch], optimizer: Any, *, seed: int
) -> float:
    """Trains on landmarks (eq. 15), a step a batch, while f_mean keeps its surface; returns their last RMS distance.

    Landmarks need no picture, so that batches can be large: with the few pictures that a step of stage 1 can pay
    for on a CPU, noise drowns the expression code before it is of any use.
    """
    error = _sdf_error(guide, sdf)
    graphdef, params, rest = nnx.split(guide, nnx.Param, ...)  # type: ignore[misc]  # stubs lose the count

    @jax.jit
    def step(params: Any, state: Any, batch: Batch, index: jax.Array) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> tuple[jax.Array, jax.Array]:
            model = nnx.merge(graphdef, params, rest)
            squared = jnp.mean(landmark_distance(model.posed_landmarks(batch), batch.landmarks))
            # 100: a distance of 0.01 counts like an SDF that is off by as much.
            return 100.0 * squared + error(model, jax.random.fold_in(jax.random.key(seed), index)), squared

        (_, squared), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, squared

    state, squared = optimizer.init(params), jnp.asarray(jnp.nan)
    for index, batch in enumerate(batches):
        params, state, squared = step(params, state, batch, jnp.asarray(index))
    nnx.update(guide, params)
    return float(jnp.sqrt(squared))


def _sdf_error(guide: GuideModel, sdf: Float[Array, "g"]) -> Callable[[GuideModel, jax.Array], jax.Array]:
    """Mean absolute SDF error on random grid vertices, half of them near the surface, where the sign matters."""
    grid = guide.grid()
    close_rows = np.flatnonzero(np.abs(np.asarray(sdf)) < 0.1)
    near = jnp.asarray(close_rows if close_rows.size else np.arange(sdf.size))

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
