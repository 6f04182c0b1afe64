"""Marching tetrahedra in plain JAX: which edges of a Kuhn grid cross the surface, and the faces between them.

Crossing edges are counted at each vertex and faces at each cube; a lane of the result finds its vertex or cube by
bisection in the counts' sums, so that nothing depends on the data but values.
"""

import itertools
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

DIRECTIONS = 7  # edge offsets: the corners 1 to 7 of the unit cube, bit 0 for x, 1 for y, 2 for z
MAX_CUBE_FACES = 12  # six tetrahedra of at most two triangles


def marching_tetrahedra(
    sdf: Float[Array, "b x y z"], *, max_vertices: int, max_faces: int
) -> tuple[Int[Array, "b m 2"], Int[Array, "b k 3"], Int[Array, "b 2"]]:
    """Edges, faces and how many of both the surface needs."""
    return jax.vmap(partial(_extract, max_vertices=max_vertices, max_faces=max_faces))(sdf > 0)


def _extract(
    inside: Bool[Array, "x y z"], *, max_vertices: int, max_faces: int
) -> tuple[Int[Array, "m 2"], Int[Array, "k 3"], Int[Array, "2"]]:
    nx, ny, nz = inside.shape
    shape = (nx, ny, nz)
    offsets = _corner_offsets(shape)
    crossing = _crossing_bits(inside)
    code_faces, code_edges = cube_table()
    per_vertex = jnp.asarray(_BIT_COUNT)[crossing]
    vertices_to = jnp.cumsum(per_vertex)  # inclusive: surface vertices on edges based up to here

    wanted = jnp.arange(max_vertices, dtype=jnp.int32)
    base = jnp.searchsorted(vertices_to, wanted, side="right").astype(jnp.int32)
    base = jnp.minimum(base, crossing.size - 1)
    nth = jnp.clip(wanted - (vertices_to - per_vertex)[base], 0, DIRECTIONS - 1)
    direction = jnp.asarray(_NTH_BIT)[crossing[base], nth]
    edges = jnp.stack([base, base + jnp.asarray(offsets)[direction + 1]], -1)
    edges = jnp.where((wanted < vertices_to[-1])[:, None], edges, 0)

    code = _cube_codes(inside)
    per_cube = jnp.asarray(code_faces)[code]
    faces_to = jnp.cumsum(per_cube)
    wanted = jnp.arange(max_faces, dtype=jnp.int32)
    cube = jnp.minimum(jnp.searchsorted(faces_to, wanted, side="right"), code.size - 1).astype(jnp.int32)
    nth = jnp.clip(wanted - (faces_to - per_cube)[cube], 0, MAX_CUBE_FACES - 1)
    corner, direction = jnp.moveaxis(jnp.asarray(code_edges)[code[cube], nth], -1, 0)  # [k 3] each
    vertex = _cube_base(cube, shape)[:, None] + jnp.asarray(offsets)[corner]
    earlier = crossing[vertex] & ((1 << direction) - 1)
    faces = (vertices_to - per_vertex)[vertex] + jnp.asarray(_BIT_COUNT)[earlier]
    complete = (wanted < faces_to[-1]) & jnp.all(faces < max_vertices, -1)
    faces = jnp.where(complete[:, None], faces, 0)

    return edges, faces, jnp.stack([vertices_to[-1], faces_to[-1]])


def _crossing_bits(inside: Bool[Array, "x y z"]) -> Int[Array, "g"]:
    """For each vertex a bit per direction: does the sign change along that edge? Zero where it leaves the grid."""
    bits = jnp.zeros(inside.shape, jnp.int32)
    for direction in range(DIRECTIONS):
        step = [(direction + 1) >> axis & 1 for axis in range(3)]
        near = inside[tuple(slice(0, n - s) for n, s in zip(inside.shape, step, strict=True))]
        far = inside[tuple(slice(s, n) for n, s in zip(inside.shape, step, strict=True))]
        bits += jnp.pad((near != far).astype(jnp.int32) << direction, [(0, s) for s in step])
    return bits.reshape(-1)


def _cube_codes(inside: Bool[Array, "x y z"]) -> Int[Array, "cubes"]:
    """For each cube the eight signs of its corners as bits."""
    cells = [n - 1 for n in inside.shape]
    code = jnp.zeros(cells, jnp.int32)
    for corner in range(8):
        window = tuple(slice(corner >> axis & 1, (corner >> axis & 1) + n) for axis, n in enumerate(cells))
        code += inside[window].astype(jnp.int32) << corner
    return code.reshape(-1)


def _corner_offsets(shape: tuple[int, int, int]) -> np.ndarray:
    """Index steps from a vertex to the eight corners of the cube above it."""
    strides = (shape[1] * shape[2], shape[2], 1)
    return np.array([sum(strides[axis] * (corner >> axis & 1) for axis in range(3)) for corner in range(8)], np.int32)


def _cube_base(cube: Int[Array, "k"], shape: tuple[int, int, int]) -> Int[Array, "k"]:
    """A cube's lowest vertex."""
    x, rest = cube // ((shape[1] - 1) * (shape[2] - 1)), cube % ((shape[1] - 1) * (shape[2] - 1))
    return (x * shape[1] + rest // (shape[2] - 1)) * shape[2] + rest % (shape[2] - 1)


@lru_cache
def cube_table() -> tuple[np.ndarray, np.ndarray]:
    """For each of a cube's 256 sign patterns: the number of faces, and their edges as (corner, direction).

    [256] and [256, 12, 3, 2]. Each tetrahedron follows a path of axis steps from corner 0 to corner 7.
    """
    number = np.zeros(256, np.int32)
    edges = np.zeros((256, MAX_CUBE_FACES, 3, 2), np.int32)
    for code in range(256):
        for steps in itertools.permutations((1, 2, 4)):
            corners = [0, steps[0], steps[0] + steps[1], 7]
            for face in _tetrahedron_faces(corners, code):
                # The lower corner of an edge is its base: along a Kuhn path the bits only grow.
                edges[code, number[code]] = [(min(e), max(e) - min(e) - 1) for e in face]
                number[code] += 1
    return number, edges


def _tetrahedron_faces(corners: list[int], code: int) -> list[list[tuple[int, int]]]:
    """Triangles of a tetrahedron's crossing edges, wound so that the normal points from inside to outside."""
    inner = [c for c in corners if code >> c & 1]
    outer = [c for c in corners if not code >> c & 1]
    if not inner or not outer:
        return []
    cycle = [(i, o) for i in inner for o in outer]
    if len(cycle) == 4:  # two against two: go round the quadrilateral, not across it
        cycle = [cycle[0], cycle[1], cycle[3], cycle[2]]
    place = {c: np.array([c & 1, c >> 1 & 1, c >> 2 & 1], float) for c in corners}
    outward = np.mean([place[c] for c in outer], 0) - np.mean([place[c] for c in inner], 0)
    faces = []
    for third in range(2, len(cycle)):
        face = [cycle[0], cycle[third - 1], cycle[third]]
        a, b, c = ((place[i] + place[o]) / 2 for i, o in face)
        faces.append(face if np.cross(b - a, c - a) @ outward > 0 else face[::-1])
    return faces


_BIT_COUNT = np.array([bits.bit_count() for bits in range(2**DIRECTIONS)], np.int32)
_NTH_BIT = np.zeros((2**DIRECTIONS, DIRECTIONS), np.int32)  # [bits, n]: the position of the n-th set bit
for _bits in range(2**DIRECTIONS):
    _set = [d for d in range(DIRECTIONS) if _bits >> d & 1]
    _NTH_BIT[_bits, : len(_set)] = _set
