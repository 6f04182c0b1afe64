"""Mesh refinement: one level of Phong tessellation of the skin, and drawing skin back under clothes."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from gphm_jax.data.synthetic import kernels


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Subdivision:
    """Every quad becomes four: its corners, edge midpoints and centre, which follow the old tangents.

    Each group has its own vertices, `used` of the refined ones; `faces`, and the unrefined triangles
    `coarse`, index into these, `uv_faces` into the refined texture coordinates.
    """

    edges: Int[np.ndarray, "e 2"]
    quads: Int[np.ndarray, "q 4"]
    uv_edges: Int[np.ndarray, "ue 2"]
    uv_quads: Int[np.ndarray, "q 4"]
    faces: tuple[Int[np.ndarray, "_ 3"], ...]
    uv_faces: tuple[Int[np.ndarray, "_ 3"], ...]
    coarse: tuple[Int[np.ndarray, "_ 3"], ...]
    used: tuple[Int[np.ndarray, "_"], ...]
    joint_faces: Int[np.ndarray, "f 3"]

    def uvs(self, uvs: Float[np.ndarray, "u 2"]) -> Float[np.ndarray, "w 2"]:
        """Texture coordinates of the refined mesh."""
        return np.concatenate([uvs, uvs[self.uv_edges].mean(1), uvs[self.uv_quads].mean(1)]).astype(
            np.float32
        )

    def refine(
        self, vertices: Float[np.ndarray, "v 3"]
    ) -> tuple[list[Float[np.ndarray, "_ 3"]], list[Float[np.ndarray, "_ 3"]]]:
        """Refined vertices and normals of each group: old vertices stay, new ones bulge.

        Phong tessellation (Boubekeur and Alexa 2008). Normals come from all groups, so no seam shows.
        """
        triangles = np.concatenate([self.quads[:, [0, 1, 2]], self.quads[:, [0, 2, 3]]])
        normals = np.empty_like(vertices)
        kernels.vertex_normals(vertices, np.ascontiguousarray(triangles), normals)

        def middle(corners: np.ndarray) -> np.ndarray:
            points, normal = vertices[corners], normals[corners]
            centre = points.mean(1)
            height = ((centre[:, None] - points) * normal).sum(-1, keepdims=True)
            return centre - 0.75 * (height * normal).mean(1)

        fine = np.concatenate([vertices, middle(self.edges), middle(self.quads)]).astype(np.float32)
        fine_normals = np.empty_like(fine)
        kernels.vertex_normals(fine, self.joint_faces, fine_normals)
        return [fine[used] for used in self.used], [fine_normals[used] for used in self.used]


def _split(quads: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Unique edges of all quads and, per quad, the refined indices of its four edge midpoints."""
    pairs = np.stack([quads, np.roll(quads, -1, 1)], -1).reshape(-1, 2)
    edges, inverse = np.unique(np.sort(pairs, 1), axis=0, return_inverse=True)
    return edges.astype(np.int32), (inverse.reshape(-1, 4) + count).astype(np.int32)


def _fine_triangles(quads: np.ndarray, middles: np.ndarray, centres: np.ndarray) -> np.ndarray:
    triangles = []
    for k in range(4):
        corner, after, before = quads[:, k], middles[:, k], middles[:, k - 1]
        triangles += [np.stack([corner, after, centres], 1), np.stack([corner, centres, before], 1)]
    return np.ascontiguousarray(np.stack(triangles, 1).reshape(-1, 3).astype(np.int32))


def _renumber(used: np.ndarray, count: int) -> np.ndarray:
    table = np.full(count, -1, np.int32)
    table[used] = np.arange(len(used), dtype=np.int32)
    return table


def subdivide(groups: list[Int[np.ndarray, "_ 4 2"]], *, vertex_count: int, uv_count: int) -> Subdivision:
    """Plans the refinement of groups of quads of (vertex, uv) indices that share vertices."""
    quads = np.concatenate(groups)
    edges, middles = _split(quads[:, :, 0], vertex_count)
    uv_edges, uv_middles = _split(quads[:, :, 1], uv_count)
    centres = np.arange(len(quads), dtype=np.int32)
    bounds = np.cumsum([0, *(len(group) for group in groups)])
    spans = [slice(a, b) for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    fine = [
        _fine_triangles(quads[s, :, 0], middles[s], centres[s] + vertex_count + len(edges)) for s in spans
    ]
    fine_uv = [
        _fine_triangles(quads[s, :, 1], uv_middles[s], centres[s] + uv_count + len(uv_edges)) for s in spans
    ]
    coarse = [np.concatenate([quads[s][:, [0, 1, 2], 0], quads[s][:, [0, 2, 3], 0]]) for s in spans]
    used = [np.unique(faces) for faces in fine]
    local = [_renumber(u, vertex_count + len(edges) + len(quads)) for u in used]
    return Subdivision(
        edges=edges,
        quads=np.ascontiguousarray(quads[:, :, 0]),
        uv_edges=uv_edges,
        uv_quads=np.ascontiguousarray(quads[:, :, 1]),
        faces=tuple(np.ascontiguousarray(table[f]) for table, f in zip(local, fine, strict=True)),
        uv_faces=tuple(fine_uv),
        coarse=tuple(np.ascontiguousarray(table[c]) for table, c in zip(local, coarse, strict=True)),
        used=tuple(used),
        joint_faces=np.concatenate(fine),
    )


def draw_back(
    vertices: Float[np.ndarray, "v 3"], quads: Int[np.ndarray, "q 4"], depth: Float[np.ndarray, "v"]
) -> Float[np.ndarray, "v 3"]:
    """Moves vertices inwards along their normals."""
    triangles = np.ascontiguousarray(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]))
    normals = np.empty_like(vertices)
    kernels.vertex_normals(vertices, triangles, normals)
    return vertices - (depth[:, None] * normals).astype(np.float32)
