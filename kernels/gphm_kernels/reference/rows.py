"""Sums of rows by index in plain JAX, in a fixed order: the transpose of a gather."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def segment_sum_rows(
    values: Float[Array, "b m c"], ids: Int[Array, "b m"], *, num_segments: int
) -> Float[Array, "b s c"]:
    """sums[b, s] = the sum of values[b, r] over rows r with ids[b, r] = s; rows with other ids are left out.

    The same bits on every run: XLA's scatter adds in row order on CPU; elsewhere it adds in any order, so rows are
    sorted and summed pairwise.
    """
    batch, rows, columns = values.shape
    if not (batch and rows and num_segments):
        return jnp.zeros((batch, num_segments, columns), values.dtype)
    number = batch * num_segments
    used = (ids >= 0) & (ids < num_segments)
    flat = jnp.where(used, ids + num_segments * jnp.arange(batch, dtype=ids.dtype)[:, None], number).reshape(-1)

    def sort_and_fold(rows: Array, index: Array) -> Array:
        order = jnp.argsort(index, stable=True)
        return _fold(rows[order], index[order], number)

    sums = lax.platform_dependent(
        values.reshape(-1, columns),
        flat,
        cpu=lambda rows, index: _scatter(rows, index, number),
        default=sort_and_fold,
    )
    return sums.reshape(batch, num_segments, columns)


def sum_sorted_rows(rows: Float[Array, "m c"], index: Int[Array, "m"], number: int) -> Float[Array, "s c"]:
    """`segment_sum_rows` for one table whose indices ascend."""
    return lax.platform_dependent(
        rows,
        index,
        cpu=lambda rows, index: _scatter(rows, index, number),
        default=lambda rows, index: _fold(rows, index, number),
    )


def _scatter(rows: Array, index: Array, number: int) -> Array:
    return jnp.zeros((number, rows.shape[1]), rows.dtype).at[index].add(rows, mode="drop")


def _fold(rows: Float[Array, "m c"], index: Int[Array, "m"], number: int) -> Float[Array, "s c"]:
    """Sums each row with those after it in its run, by doubling strides, so that a run's sum is at its start."""
    wanted = jnp.arange(number + 1, dtype=index.dtype)
    edges = jnp.searchsorted(index, wanted).astype(jnp.int32)
    starts, stops = edges[:-1], edges[1:]
    following = jnp.append(stops, 0)[jnp.minimum(index, number)] - jnp.arange(rows.shape[0], dtype=jnp.int32)
    longest = jnp.max(stops - starts)

    def fold(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stride, sums = state
        partner = jnp.roll(sums, -stride, 0)
        return 2 * stride, sums + jnp.where((following > stride)[:, None], partner, 0)

    # The stride is made of the lengths, so that it varies over devices as the loop's result does.
    _, sums = lax.while_loop(lambda state: state[0] < longest, fold, (longest * 0 + 1, rows))
    return jnp.where((stops > starts)[:, None], sums[jnp.minimum(starts, rows.shape[0] - 1)], 0)
