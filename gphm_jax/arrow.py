"""Least squares over many frames that share some unknowns: the linear algebra, as an optimistix descent.

Unknowns are `(shared [s], frames [f p])`. A residual sees the shared unknowns and one frame's, or differences of
neighbouring and next-but-one frames that leave each unknown to itself. Ordered by frame, J^T J is then
block pentadiagonal with a border: an arrow. Two frames to a block make it block tridiagonal, and its Cholesky
factors cost time linear in the frames; a dense Jacobian of 300 frames would have 5e9 entries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from gphm_jax.capture.landmarks import imported
from gphm_jax.types import pytree

Unknowns = tuple[Float[Array, "s"], Float[Array, "f p"]]


@pytree
class Arrow:
    """J^T J by blocks. `next` and `second` are diagonal: each unknown with itself one and two frames on."""

    frame: Float[Array, "f p p"]
    next: Float[Array, "f p"]  # of frames f and f + 1; the last row is unused
    second: Float[Array, "f p"]  # of frames f and f + 2; the last two rows are unused
    border: Float[Array, "f p s"]
    shared: Float[Array, "s s"]


@pytree
class _Factors:
    """Rows of the block Cholesky factor L^T: diagonal, the block to its right, border with right-hand side."""

    diagonal: Float[Array, "t b b"]
    right: Float[Array, "t b b"]
    border: Float[Array, "t b r"]


def solve(arrow: Arrow, gradient: Unknowns, damping: Float[Array, ""]) -> Unknowns:
    """(J^T J + damping)^-1 gradient; the number of frames is even. NaN where the matrix is not positive definite."""
    on_shared, on_frames = gradient
    frames, size, num_shared = arrow.border.shape
    identity = jnp.eye(2 * size)
    right_hand = jnp.concatenate([arrow.border, on_frames[..., None]], -1)
    blocks = (
        _pairs(arrow) + damping * identity,
        _couplings(arrow),
        right_hand.reshape(frames // 2, 2 * size, -1),
    )

    def eliminate(
        carried: tuple[Array, Array, Array], block: tuple[Array, Array, Array]
    ) -> tuple[Any, _Factors]:
        on_diagonal, on_border, corner = carried
        diagonal, right, border = block
        lower = jnp.linalg.cholesky(diagonal - on_diagonal)
        both = jnp.concatenate([right, border - on_border], -1)
        both = jax.scipy.linalg.solve_triangular(lower, both, lower=True)
        right, border = both[:, : 2 * size], both[:, 2 * size :]
        carried = (right.T @ right, right.T @ border, corner + border.T @ border)
        return carried, _Factors(diagonal=lower, right=right, border=border)

    nothing = (
        jnp.zeros((2 * size, 2 * size)),
        jnp.zeros((2 * size, num_shared + 1)),
        jnp.zeros((num_shared + 1, num_shared + 1)),
    )
    (_, _, corner), factors = jax.lax.scan(eliminate, nothing, blocks)
    schur = arrow.shared + damping * jnp.eye(num_shared) - corner[:-1, :-1]
    shared = jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(schur), True), on_shared - corner[:-1, -1])

    def substitute(later: Float[Array, "b"], row: _Factors) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
        known = row.border[:, -1] - row.border[:, :-1] @ shared - row.right @ later
        now = jax.scipy.linalg.solve_triangular(row.diagonal, known, lower=True, trans=1)
        return now, now

    _, pairs = jax.lax.scan(substitute, jnp.zeros(2 * size), factors, reverse=True)
    return shared, pairs.reshape(frames, size)


def _pairs(arrow: Arrow) -> Float[Array, "t b b"]:
    """Diagonal blocks of two frames each."""
    first, last = arrow.frame[0::2], arrow.frame[1::2]
    between = jax.vmap(jnp.diag)(arrow.next[0::2])
    return _two_by_two(first, between, between, last)


def _couplings(arrow: Arrow) -> Float[Array, "t b b"]:
    """Blocks between a pair of frames and the next; the last is zero."""
    zero = jnp.zeros_like(arrow.frame[0::2])
    blocks = _two_by_two(
        jax.vmap(jnp.diag)(arrow.second[0::2]),
        zero,
        jax.vmap(jnp.diag)(arrow.next[1::2]),
        jax.vmap(jnp.diag)(arrow.second[1::2]),
    )
    return blocks.at[-1].set(0.0)


def _two_by_two(a: Array, b: Array, c: Array, d: Array) -> Float[Array, "t b b"]:
    return jnp.concatenate([jnp.concatenate([a, b], -1), jnp.concatenate([c, d], -1)], -2)


@functools.cache
def levenberg_marquardt(assemble: Callable[[Any, Unknowns], Arrow]) -> Callable[..., Any]:
    """A Levenberg-Marquardt solver of optimistix whose linear systems are solved as arrows.

    The result makes a solver from a problem and tolerances. `assemble(problem, unknowns)` is J^T J at the unknowns;
    residuals, gradients, trust region and termination are optimistix's own.
    """
    optx = imported("optimistix", "footage")

    class ArrowDescent(optx.AbstractDescent):  # type: ignore[name-defined]
        problem: Any

        def init(self, y: Unknowns, f_info_struct: Any) -> tuple[Arrow, Unknowns]:
            del f_info_struct
            empty = jax.eval_shape(lambda: assemble(self.problem, y))
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), empty), y

        def query(self, y: Unknowns, f_info: Any, state: Any) -> tuple[Arrow, Unknowns]:
            del state
            return assemble(self.problem, y), f_info.compute_grad()

        def step(self, step_size: Float[Array, ""], state: tuple[Arrow, Unknowns]) -> tuple[Unknowns, Any]:
            arrow, gradient = state
            step = solve(arrow, gradient, 1.0 / step_size)
            return jax.tree.map(jnp.negative, step), optx.RESULTS.successful

    class ArrowLevenbergMarquardt(optx.AbstractGaussNewton):  # type: ignore[name-defined]
        rtol: float
        atol: float
        norm: Callable[[Any], Any]
        descent: Any
        search: Any
        verbose: Callable[..., None]

        def __init__(self, problem: Any, *, rtol: float, atol: float) -> None:
            self.rtol, self.atol, self.norm = rtol, atol, optx.max_norm
            self.descent = ArrowDescent(problem)
            # Robust losses are never as quadratic as the default 0.99 asks for: damping would only ever grow.
            self.search = optx.ClassicalTrustRegion(high_cutoff=0.75)
            self.verbose = lambda **kwargs: None

    return ArrowLevenbergMarquardt
