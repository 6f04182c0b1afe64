"""Sums of rows by index in plain JAX, in a fixed order: the transpose of a gather."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


def segment_sum_rows(
    values: Float[Array, "b m c"], ids: Int[Array, "b m"], *, num_segments: int
) -> Float[Array, "b s c"]:
    """sums[b, s] = the sum of values[b, r] over rows r with ids[b, r] = s; rows with other ids are left out.

    The same bits on every run: XLA's scatter is serial on CPU; elsewhere it adds in any order, so rows are sorted.
    """
    batch, rows, columns = values.shape
    if not (batch and rows and num_segments):
        return jnp.zeros((batch, num_segments, columns), values.dtype)
    used = (ids >= 0) & (ids < num_segments)
    flat = jnp.where(used, ids + num_segments * jnp.arange(batch, dtype=ids.dtype)[:, None], batch * num_segments)
    sums = lax.platform_dependent(
        values.reshape(-1, columns),
        flat.reshape(-1),
        cpu=lambda rows, index: _scatter(rows, index, batch * num_segments),
        default=lambda rows, index: _sort_and_fold(rows, index, batch * num_segments),
    )
    return sums.reshape(batch, num_segments, columns)


def _scatter(rows: Array, index: Array, number: int) -> Array:
    return jnp.zeros((number, rows.shape[1]), rows.dtype).at[index].add(rows, mode="drop")


def _sort_and_fold(rows: Array, index: Array, number: int) -> Array:
    """Brings equal indices together, then sums neighbours by doubling strides."""
    order = jnp.argsort(index, stable=True)
    ends = jnp.searchsorted(index[order], jnp.arange(number, dtype=index.dtype), side="right").astype(jnp.int32)
    starts = jnp.concatenate([jnp.zeros((1,), jnp.int32), ends[:-1]])
    sums = fold_neighbours(rows[order], jnp.append(ends, ends[-1])[jnp.minimum(index[order], number)], ends - starts)
    return jnp.where((ends > starts)[:, None], sums[jnp.minimum(starts, rows.shape[0] - 1)], 0)


def fold_neighbours(rows: Float[Array, "m c"], stops: Int[Array, "m"], lengths: Int[Array, "s"]) -> Float[Array, "m c"]:
    """Sums of each row with the rows after it, up to its run's end (exclusive) in `stops`; a run's sum is at its start.

    `lengths` are those of the runs; log2 of the longest is the number of passes.
    """
    following = stops - jnp.arange(rows.shape[0], dtype=jnp.int32)
    longest = jnp.max(lengths, initial=0)

    def fold(state: tuple[Array, Array]) -> tuple[Array, Array]:
        stride, sums = state
        partner = jnp.roll(sums, -stride, 0)
        return 2 * stride, sums + jnp.where((following > stride)[:, None], partner, 0)

    # The stride starts from the longest run's length, so that it varies over devices as the loop's result does.
    return lax.while_loop(lambda state: state[0] < longest, fold, (longest * 0 + 1, rows))[1]
