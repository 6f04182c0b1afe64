"""Gathering rows of a table and summing them back by index, with the same bits on every run. Plain JAX."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


@jax.custom_vjp
def take_rows(table: Float[Array, "b v c"], index: Int[Array, "b m"]) -> Float[Array, "b m c"]:
    """table[b, index[b, m]]; a negative index gives a row of zeros, without gradient. Differentiable in table."""
    # A negative index would count from the end.
    index = jnp.where(index < 0, table.shape[1], index)
    return jax.vmap(lambda rows, i: rows.at[i].get(mode="fill", fill_value=0))(table, index)


def _take_rows_fwd(table: Array, index: Array) -> tuple[Array, Any]:
    return take_rows(table, index), (index, table.shape[1])


def _take_rows_bwd(residuals: Any, d_rows: Array) -> tuple[Array, None]:
    index, number = residuals
    return segment_sum_rows(d_rows, index, num_segments=number), None


take_rows.defvjp(_take_rows_fwd, _take_rows_bwd)


def segment_sum_rows(
    values: Float[Array, "b m c"], ids: Int[Array, "b m"], *, num_segments: int
) -> Float[Array, "b s c"]:
    """sums[b, s] = the sum of values[b, r] over rows r with ids[b, r] = s; rows with other ids are left out.

    The same bits on every run. On CPU the rows are added in their order; elsewhere, where XLA's scatter adds in any
    order, they are sorted and summed pairwise.
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
    # For CPUs only: there XLA's scatter is one loop over the rows on one thread, so that the order of the sums, and
    # with it their bits, is always the same (tests/test_mesh_kernels.py would notice a parallel one).
    return jnp.zeros((number, rows.shape[1]), rows.dtype).at[index].add(rows, mode="drop")


def _fold(rows: Float[Array, "m c"], index: Int[Array, "m"], number: int) -> Float[Array, "s c"]:
    """Sums runs of equal indices by a segmented scan (Blelloch 1990): pairwise, and without a loop that asks the host.

    A run's sum is at its end.
    """
    wanted = jnp.arange(number + 1, dtype=index.dtype)
    edges = jnp.searchsorted(index, wanted, method="scan_unrolled").astype(jnp.int32)
    starts, stops = edges[:-1], edges[1:]
    begins = index != jnp.roll(index, 1)

    def combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        return left[0] | right[0], jnp.where(right[0], right[1], left[1] + right[1])

    _, sums = lax.associative_scan(combine, (begins[:, None], rows))
    return jnp.where((stops > starts)[:, None], sums[jnp.maximum(stops - 1, 0)], 0)
