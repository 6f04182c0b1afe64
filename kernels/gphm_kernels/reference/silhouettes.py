"""Antialiasing in plain JAX: where neighbouring pixels straddle a silhouette, and how they blend there.

The first part is discrete and has no gradient; the second is differentiable in the image and in the positions.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from gphm_kernels.reference.mesh import MAX_POSITION, balanced, centres, drawable, edge_functions
from gphm_kernels.rows import take_rows


def antialias_fwd(
    image: Float[Array, "b h w c"],
    raster: Float[Array, "b h w 4"],
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
) -> Float[Array, "b h w c"]:
    """The image with neighbouring pixels blended across silhouettes."""
    height, width = image.shape[1:3]
    result = image
    for axis, pairs in crossing_pairs(lax.stop_gradient(raster), lax.stop_gradient(clip_positions), faces):
        t = _crossing_fraction(balanced(clip_positions, -1), faces, pairs, axis, (height, width))
        result = result + _blend_pairs(image, t, pairs.active, pairs.first_nearer, axis)
    return result


def antialias_bwd(
    image: Float[Array, "b h w c"],
    raster: Float[Array, "b h w 4"],
    clip_positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    d_result: Float[Array, "b h w c"],
) -> tuple[Float[Array, "b h w c"], Float[Array, "b v 4"]]:
    """Cotangents of image and clip_positions."""
    _, pullback = jax.vjp(lambda image, clip: antialias_fwd(image, raster, clip, faces), image, clip_positions)
    return pullback(d_result)


class Pairs(NamedTuple):
    """Each pixel and the next along one image axis; one shorter than the image there."""

    active: Bool[Array, "b y x"]  # the pair straddles a silhouette
    first_nearer: Bool[Array, "b y x"]  # the nearer face is the first pixel's
    face: Int[Array, "b y x"]  # the nearer face
    edge: Int[Array, "b y x"]  # its edge on the way from one centre to the other; edge i is opposite corner i


def crossing_pairs(
    raster: Float[Array, "b h w 4"], positions: Float[Array, "b v 4"], faces: Int[Array, "f 3"]
) -> list[tuple[int, Pairs]]:
    """The horizontal (axis 2) and vertical (axis 1) pairs of an image; an axis of one pixel has none."""
    # The length of homogeneous coordinates moves no point; those of an infinite one are left to be recognised.
    infinite = ~jnp.all(jnp.abs(positions) < MAX_POSITION, -1, keepdims=True)
    positions = jnp.where(infinite, jnp.inf, balanced(positions, -1))
    table = positions[:, jnp.clip(faces, 0, positions.shape[1] - 1)]  # [b f 3 4]
    silhouette = _silhouette_edges(table, positions, opposite_vertices(faces, positions.shape[1]))
    return [(axis, _pairs(raster, table, silhouette, axis)) for axis in (2, 1) if raster.shape[axis] > 1]


def opposite_vertices(faces: Int[Array, "f 3"], vertices: int) -> Int[Array, "f 3"]:
    """For edge i of each face (opposite corner i), the corner beyond it of the face on the other side.

    -1 where the edge has one face or more than two. Faces that are not `drawable` have no neighbours and are nobody's.
    """
    number = faces.shape[0]
    j, k = jnp.roll(faces, -1, 1).reshape(-1), jnp.roll(faces, -2, 1).reshape(-1)
    slot = jnp.arange(3 * number, dtype=jnp.int32)
    padding = jnp.repeat(~drawable(faces, vertices), 3, total_repeat_length=3 * number)
    # Padding gets keys of its own, which pair with nothing.
    low = jnp.where(padding, -1, jnp.minimum(j, k))
    high = jnp.where(padding, slot, jnp.maximum(j, k))
    low, high, slot = lax.sort((low, high, slot), num_keys=2, is_stable=True)

    same = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    same_next = jnp.append(same, False)
    same_before = jnp.append(False, same)
    # A run of three or more goes on beyond the neighbour.
    longer = (same_next & jnp.append(same_next[1:], False)) | (same_before & jnp.append(False, same_before[:-1]))
    paired = (same_next ^ same_before) & ~longer
    partner = jnp.where(same_next, jnp.roll(slot, -1), jnp.roll(slot, 1))
    corner = jnp.where(paired, faces.reshape(-1)[partner], -1)
    return jnp.zeros_like(corner).at[slot].set(corner, unique_indices=True).reshape(number, 3)


def _silhouette_edges(
    table: Float[Array, "b f 3 4"], positions: Float[Array, "b v 4"], opposite: Int[Array, "f 3"]
) -> Bool[Array, "b f 3"]:
    """Whether the surface ends at an edge, as seen: no drawn neighbour, or one on the same side of it in the image."""
    beyond = positions[:, jnp.maximum(opposite, 0)]  # [b f 3 4]
    flags = []
    for i in range(3):
        j, k = table[:, :, (i + 1) % 3], table[:, :, (i + 2) % 3]
        own, other = _side(j, k, table[:, :, i]), _side(j, k, beyond[:, :, i])
        undrawn = (opposite[None, :, i] < 0) | jnp.isinf(beyond[:, :, i, 3])
        flags.append(undrawn | (own * other >= 0))
    return jnp.stack(flags, -1)


def _side(j: Array, k: Array, point: Array) -> Array:
    """On which side of the image line through j and k a point lies, -1, 0 or 1."""
    # About the point itself, like the edge functions.
    x, y, w = (point[..., i] for i in (0, 1, 3))
    jx, jy = j[..., 0] * w - x * j[..., 3], j[..., 1] * w - y * j[..., 3]
    kx, ky = k[..., 0] * w - x * k[..., 3], k[..., 1] * w - y * k[..., 3]
    # The product holds w twice; the side, as the determinant of j, k and the point, once for each corner.
    return jnp.sign(jx * ky - jy * kx) * jnp.sign(j[..., 3] * k[..., 3])


def _pairs(
    raster: Float[Array, "b h w 4"], table: Float[Array, "b f 3 4"], silhouette: Bool[Array, "b f 3"], axis: int
) -> Pairs:
    height, width = raster.shape[1:3]
    index = raster[..., 3].astype(jnp.int32)
    depth = jnp.where(index > 0, raster[..., 2], jnp.inf)
    first, second = first_of(index, axis), second_of(index, axis)
    first_depth, second_depth = first_of(depth, axis), second_of(depth, axis)
    # Among equals the lower index, as in the rasterizer.
    tie = (first_depth == second_depth) & (first < second)
    first_nearer = (first_depth < second_depth) | tie
    face = jnp.where(first_nearer, first, second) - 1
    known = jnp.clip(face, 0, table.shape[1] - 1)
    batch = jnp.arange(raster.shape[0])[:, None, None]

    corners = table[batch, known]
    (near_x, near_y), (far_x, far_y) = pair_centres(width, height, first_nearer, axis, raster.dtype)
    near = jnp.stack(edge_functions(corners, near_x, near_y), -1)
    far = jnp.stack(edge_functions(corners, far_x, far_y), -1)
    # The near centre is inside, so the signs there are the face's orientation; the first edge crossed is the exit.
    sign = jnp.sign(jnp.sum(near, -1, keepdims=True))
    near, far = near * sign, far * sign
    leaves = (near >= 0) & (far < 0)
    fraction = jnp.where(leaves, near / jnp.where(leaves, near - far, 1), jnp.inf)
    edge = jnp.argmin(fraction, -1).astype(jnp.int32)
    leaves_here = jnp.any(leaves, -1)
    is_silhouette = jnp.take_along_axis(silhouette[batch, known], edge[..., None], -1)[..., 0]
    active = (first != second) & (face >= 0) & leaves_here & is_silhouette
    return Pairs(active, first_nearer, known, edge)


def first_of(image: Array, axis: int) -> Array:
    """All pixels but the last along the axis."""
    return lax.slice_in_dim(image, 0, image.shape[axis] - 1, axis=axis)


def second_of(image: Array, axis: int) -> Array:
    """All pixels but the first along the axis."""
    return lax.slice_in_dim(image, 1, image.shape[axis], axis=axis)


def pair_centres(
    width: int, height: int, first_nearer: Bool[Array, "b y x"], axis: int, dtype: jnp.dtype
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Centres (x, y) of the near and the far pixel of each pair, in normalised device coordinates."""
    x, y = centres(width, height, dtype)
    grid = [jnp.broadcast_to(c, (1, height, width)) for c in (x[None, None], y[None, :, None])]
    one, other = [first_of(c, axis) for c in grid], [second_of(c, axis) for c in grid]
    near = [jnp.where(first_nearer, a, b) for a, b in zip(one, other, strict=True)]
    far = [jnp.where(first_nearer, b, a) for a, b in zip(one, other, strict=True)]
    return (near[0], near[1]), (far[0], far[1])


def _crossing_fraction(
    positions: Float[Array, "b v 4"],
    faces: Int[Array, "f 3"],
    pairs: Pairs,
    axis: int,
    size: tuple[int, int],
) -> Float[Array, "b y x"]:
    """How far along the segment from the near centre to the far one the crossed edge lies, in [0, 1]; else 1/2.

    An edge function is affine along the segment: t = a(near) / (a(near) - a(far)).
    """
    ends = [jnp.where(pairs.active, faces[pairs.face, (pairs.edge + i) % 3], -1) for i in (1, 2)]
    batch = positions.shape[0]
    rows = take_rows(positions, jnp.stack(ends, -1).reshape(batch, -1))
    rows = rows.reshape(*pairs.active.shape, 2, 4)
    near, far = pair_centres(size[1], size[0], pairs.first_nearer, axis, positions.dtype)
    a_near, a_far = _edge_function(rows, *near), _edge_function(rows, *far)
    active = pairs.active & (a_near != a_far)
    return jnp.where(active, a_near / jnp.where(active, a_near - a_far, 1), 0.5)


def _edge_function(ends: Float[Array, "b y x 2 4"], x: Float[Array, "b y x"], y: Float[Array, "b y x"]) -> Array:
    p, q = (ends[..., 0] - x[..., None] * ends[..., 3], ends[..., 1] - y[..., None] * ends[..., 3])
    return p[..., 0] * q[..., 1] - q[..., 0] * p[..., 1]


def _blend_pairs(
    image: Float[Array, "b h w c"],
    t: Float[Array, "b y x"],
    active: Bool[Array, "b y x"],
    first_nearer: Bool[Array, "b y x"],
    axis: int,
) -> Float[Array, "b h w c"]:
    """What the pairs along one axis add to the image."""
    toward_far = t > 0.5
    amount = jnp.where(active, jnp.where(first_nearer, t - 0.5, 0.5 - t), 0)[..., None]
    change = amount * (first_of(image, axis) - second_of(image, axis))
    to_second = (toward_far == first_nearer)[..., None]
    before, after = [(0, 0)] * 4, [(0, 0)] * 4
    before[axis], after[axis] = (1, 0), (0, 1)
    return jnp.pad(jnp.where(to_second, change, 0), before) + jnp.pad(jnp.where(to_second, 0, change), after)
