"""Device-varying types inside `shard_map`: promotion of arrays to a common set of mesh axes."""

from typing import TypeVar

import jax
from jax import lax

Tree = TypeVar("Tree")


def varying_axes(*trees: object) -> frozenset[str]:
    """The mesh axes over which any array of the trees varies; empty outside `shard_map`."""
    axes: frozenset[str] = frozenset()
    for leaf in jax.tree.leaves(trees):
        axes |= _varying(leaf)
    return axes


def promote(tree: Tree, axes: frozenset[str]) -> Tree:
    """Casts every array of the tree to vary over `axes` as well; the values stay as they are.

    Applied outside a `custom_vjp`, the cast's transpose is the sum over devices that the gradient of a
    replicated input needs. Applied to the first carry of a loop, it gives the carry the type of the body's result.
    """

    def cast(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - _varying(leaf)))
        return lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(cast, tree) if axes else tree


def _varying(leaf: jax.Array) -> frozenset[str]:
    aval = jax.typeof(leaf)
    # JAX 0.10 renamed the attribute `vma` to `manual_axis_type.varying`.
    return aval.manual_axis_type.varying if hasattr(aval, "manual_axis_type") else aval.vma
