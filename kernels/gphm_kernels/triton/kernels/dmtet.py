"""Marching tetrahedra for NVIDIA GPUs: counts for each block of grid vertices, then edges and faces at their ranks.

A program takes `BLOCK` neighbouring vertices of one grid, program (block, grid), with the cube above each. Counts are
summed over the blocks between the launches; a second look at the signs then ranks within a block. Signs and tables are
those of `gphm_kernels.reference.dmtet`: bit d of a vertex's crossings is its edge in direction d, to corner d + 1 of
the cube above it, and a cube's code has a bit for each corner inside. A grid of `size_x * size_y * size_z` vertices is
indexed with int32, a batch of them with int64.
"""

import triton
import triton.language as tl

DIRECTIONS = tl.constexpr(7)
MAX_CUBE_FACES = tl.constexpr(12)
# Bits of all directions, and of those with a step along an axis.
ALL, ALONG_X, ALONG_Y, ALONG_Z = tl.constexpr(0x7F), tl.constexpr(0x55), tl.constexpr(0x66), tl.constexpr(0x78)


@triton.jit
def tetrahedra_count(sdf, cube_faces, counts, size_x, size_y, size_z, BLOCK: tl.constexpr):
    """Surface vertices and faces of each block, counts [b, blocks, 2]; `cube_faces` [256] are the faces of a code."""
    block, grid = tl.program_id(0), tl.program_id(1).to(tl.int64)
    vertex = block * BLOCK + tl.arange(0, BLOCK)
    crossings, code = _classify(sdf + grid * (size_x * size_y * size_z), vertex, size_x, size_y, size_z)
    at = counts + 2 * (grid * tl.num_programs(0) + block)
    tl.store(at, tl.sum(_bit_count(crossings), 0))
    tl.store(at + 1, tl.sum(tl.load(cube_faces + code), 0))


@triton.jit
def tetrahedra_place(
    sdf,
    cube_faces,
    ends,
    edges,
    origins,
    ranks,
    directions,
    size_x,
    size_y,
    size_z,
    max_vertices,
    max_faces,
    BLOCK: tl.constexpr,
):
    """Edges [b, max_vertices, 2], and for each face of `origins` [b, max_faces, 2] its cube and its place in the table.

    `ends` [b, blocks, 2] are the counts' sums up to each block. `ranks` and `directions` [b, grid] are the rank of a
    vertex's first crossing edge and which edges cross; they are left as they are where none does.
    """
    block, grid = tl.program_id(0), tl.program_id(1).to(tl.int64)
    ends += 2 * (grid * tl.num_programs(0) + block)
    rank, face = tl.load(ends - 2, mask=block > 0, other=0), tl.load(ends - 1, mask=block > 0, other=0)
    if (rank == tl.load(ends)) & (face == tl.load(ends + 1)):
        return
    vertex = block * BLOCK + tl.arange(0, BLOCK)
    first_vertex = grid * (size_x * size_y * size_z)
    crossings, code = _classify(sdf + first_vertex, vertex, size_x, size_y, size_z)
    number = _bit_count(crossings)
    rank += tl.cumsum(number, 0) - number
    tl.store(ranks + first_vertex + vertex, rank, mask=crossings != 0)
    tl.store(directions + first_vertex + vertex, crossings.to(tl.int8), mask=crossings != 0)
    for direction in tl.static_range(DIRECTIONS):
        crosses = crossings >> direction & 1
        at = edges + 2 * (grid * max_vertices + rank)
        kept = (crosses != 0) & (rank < max_vertices)
        tl.store(at, vertex, mask=kept)
        tl.store(at + 1, vertex + _step(direction + 1, size_y, size_z), mask=kept)
        rank += crosses

    number = tl.load(cube_faces + code)
    face += tl.cumsum(number, 0) - number
    most, nth = tl.max(number, 0), 0
    while nth < most:
        at = origins + 2 * (grid * max_faces + face)
        kept = (nth < number) & (face < max_faces)
        tl.store(at, vertex, mask=kept)
        tl.store(at + 1, code * MAX_CUBE_FACES + nth, mask=kept)
        face += 1
        nth += 1


@triton.jit
def tetrahedra_connect(
    cube_edges,
    totals,
    origins,
    ranks,
    directions,
    faces,
    size_x,
    size_y,
    size_z,
    max_vertices,
    max_faces,
    BLOCK: tl.constexpr,
):
    """Faces [b, max_faces, 3] from their origins; program (block of faces, grid). `cube_edges` [256, 12, 3, 2].

    Rows beyond the grid's total, and of faces that name a vertex beyond `max_vertices`, are left as they are.
    """
    grid = tl.program_id(1).to(tl.int64)
    face = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = (face < max_faces) & (face < tl.load(totals + 2 * grid + 1))
    if tl.max(used.to(tl.int32), 0) == 0:
        return
    row = grid * max_faces + face
    vertex = tl.load(origins + 2 * row, mask=used, other=0)
    entry = cube_edges + 6 * tl.load(origins + 2 * row + 1, mask=used, other=0)
    first_vertex = grid * (size_x * size_y * size_z)
    first = _rank(entry, vertex, used, ranks + first_vertex, directions + first_vertex, size_y, size_z)
    second = _rank(entry + 2, vertex, used, ranks + first_vertex, directions + first_vertex, size_y, size_z)
    third = _rank(entry + 4, vertex, used, ranks + first_vertex, directions + first_vertex, size_y, size_z)
    used &= (first < max_vertices) & (second < max_vertices) & (third < max_vertices)
    tl.store(faces + 3 * row, first, mask=used)
    tl.store(faces + 3 * row + 1, second, mask=used)
    tl.store(faces + 3 * row + 2, third, mask=used)


@triton.jit
def _classify(sdf, vertex, size_x, size_y, size_z):
    """The crossing edges of each vertex, and the code of the cube above it; zero where these leave the grid."""
    total = size_x * size_y * size_z
    code = (tl.load(sdf + vertex, mask=vertex < total, other=0.0) > 0).to(tl.int32)  # NaN is outside
    for corner in tl.static_range(1, DIRECTIONS + 1):
        there = vertex + _step(corner, size_y, size_z)  # beyond a side this is some other vertex, which `within` omits
        code |= (tl.load(sdf + there, mask=there < total, other=0.0) > 0).to(tl.int32) << corner
    x, y, z = vertex // (size_y * size_z), vertex // size_z % size_y, vertex % size_z
    # Bits of the directions that stay within the grid: not along x at the last x, and so on.
    within = tl.where(x + 1 < size_x, ALL, ALL & ~ALONG_X) & tl.where(y + 1 < size_y, ALL, ALL & ~ALONG_Y)
    within = tl.where(vertex < total, within & tl.where(z + 1 < size_z, ALL, ALL & ~ALONG_Z), 0)
    crossings = (code >> 1 ^ -(code & 1)) & within  # the other end's sign against the vertex's own
    return crossings, tl.where(within == ALL, code, 0)


@triton.jit
def _step(corner, size_y, size_z):
    """From a vertex to a corner of the cube above it."""
    return ((corner & 1) * size_y + (corner >> 1 & 1)) * size_z + (corner >> 2)


@triton.jit
def _rank(entry, vertex, used, ranks, directions, size_y, size_z):
    """The rank of the edge that a row of the table names, of the cube above a vertex."""
    base = vertex + _step(tl.load(entry), size_y, size_z)
    earlier = tl.load(directions + base, mask=used, other=0).to(tl.int32) & ((1 << tl.load(entry + 1)) - 1)
    return tl.load(ranks + base, mask=used, other=0) + _bit_count(earlier)


@triton.jit
def _bit_count(bits):
    """Of seven bits."""
    bits -= bits >> 1 & 0x55
    bits = (bits & 0x33) + (bits >> 2 & 0x33)
    return (bits + (bits >> 4)) & 0x0F
