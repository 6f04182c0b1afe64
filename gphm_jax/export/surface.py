"""A person's mesh: the head model's mean surface, moved and coloured by the avatar's splats.

An avatar holds splats alone. Each of them began as a sample X0 of the prior's mean surface (stage 1), in the same
order, so the prior's surface and points say where the avatar took every place of it.
"""

from __future__ import annotations

import dataclasses
import pathlib

import jax
import numpy as np
import trimesh
from flax import nnx
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix, diags_array, identity
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from gphm_jax.avatar import Avatar
from gphm_jax.errors import InputError
from gphm_jax.export.cloud import SplatCloud
from gphm_jax.stages import load_guide, load_prior

_NEIGHBOURS = 32  # samples that say where a vertex went
_SMOOTHINGS = (
    20  # averages of that over a vertex and those it shares an edge with: splats scatter about their surface
)
_COVERING = 64  # splats near a vertex of which those on the line of sight colour it


@dataclasses.dataclass(frozen=True, kw_only=True)
class Surface:
    """A coloured triangle mesh in canonical space."""

    vertices: Float[np.ndarray, "v 3"]
    normals: Float[np.ndarray, "v 3"]
    colors: Float[np.ndarray, "v 3"]
    faces: Int[np.ndarray, "m 3"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanHead:
    """What an avatar's prior knows of its points: where they began, and on which surface."""

    points: Float[np.ndarray, "n 3"]  # X0
    vertices: Float[np.ndarray, "v 3"]  # V0
    faces: Int[np.ndarray, "m 3"]


def mean_head(workdir: pathlib.Path, avatar: Avatar) -> MeanHead:
    """Reads both stages of a training run; `InputError` when the avatar does not come from it."""
    gaussians, settings, _ = load_prior(workdir)
    if settings.start.gaussians != "guide":
        raise InputError(
            f"the splats of the prior in {workdir} did not begin on its mean surface: it gives no mesh"
        )
    begun, own = np.asarray(gaussians.weight[...]), np.asarray(avatar.model.weight[...])
    if begun.shape != own.shape or not np.array_equal(begun, own):
        raise InputError(
            f"the avatar was not fitted with the prior in {workdir}: name the one that fit.py was given"
        )
    vertices, _, faces, counts, _ = jax.device_get(
        nnx.jit(lambda guide: guide.mean_surface())(load_guide(workdir))
    )
    return MeanHead(
        points=np.asarray(gaussians.positions[...]), vertices=vertices[: counts[0]], faces=faces[: counts[1]]
    )


def surface(head: MeanHead, cloud: SplatCloud) -> Surface:
    """The mean surface taken where the nearest points went, in the colours seen from straight above each vertex."""
    distance, nearest = cKDTree(head.points).query(head.vertices, k=_NEIGHBOURS)
    # 1e-6: no division by zero where the nearest quarter of the samples coincide with the vertex.
    width = np.maximum(distance[:, _NEIGHBOURS // 4 : _NEIGHBOURS // 4 + 1], 1e-6)
    weight = np.exp(-0.5 * (distance / width) ** 2)
    shift = np.einsum(
        "vkc,vk->vc", (cloud.means - head.points)[nearest], weight / weight.sum(axis=1, keepdims=True)
    )
    vertices = head.vertices + _smoothed(shift, head.faces)
    normals = np.asarray(trimesh.Trimesh(vertices, head.faces, process=False).vertex_normals)
    return Surface(
        vertices=vertices.astype(np.float32),
        normals=normals.astype(np.float32),
        colors=_seen(vertices, normals, cloud).astype(np.float32),
        faces=np.asarray(head.faces),
    )


def _smoothed(field: Float[np.ndarray, "v 3"], faces: Int[np.ndarray, "m 3"]) -> Float[np.ndarray, "v 3"]:
    """A field on the vertices, averaged over their neighbours again and again."""
    count = len(field)
    edges = np.concatenate([faces, faces[:, [1, 2, 0]]]).reshape(-1)
    others = np.concatenate([faces[:, [1, 2, 0]], faces]).reshape(-1)
    once = coo_matrix((np.ones(len(edges)), (edges, others)), (count, count)).tocsr()
    once = (once > 0).astype(np.float64) + identity(count)
    mean = diags_array(1.0 / np.asarray(once.sum(axis=1)).reshape(-1)) @ once
    for _ in range(_SMOOTHINGS):
        field = mean @ field
    return field


def _seen(
    vertices: Float[np.ndarray, "v 3"], normals: Float[np.ndarray, "v 3"], cloud: SplatCloud
) -> Float[np.ndarray, "v 3"]:
    """The splats near each vertex composited along its normal, from outside: what is beneath does not show."""
    _, near = cKDTree(cloud.means).query(vertices, k=min(_COVERING, len(cloud)))
    to_local = Rotation.from_quat(cloud.quats, scalar_first=True).inv().as_matrix() / cloud.scales[:, :, None]
    origin = np.einsum("vkij,vkj->vki", to_local[near], vertices[:, None] - cloud.means[near])
    ray = np.einsum("vkij,vj->vki", to_local[near], normals)
    along, length = np.sum(origin * ray, axis=-1), np.sum(ray**2, axis=-1)
    # The largest value of each Gaussian on the line through the vertex along its normal.
    alpha = cloud.opacities[near] * np.exp(
        -0.5 * np.maximum(np.sum(origin**2, axis=-1) - along**2 / length, 0.0)
    )
    order = np.argsort(np.sum((cloud.means[near] - vertices[:, None]) * normals[:, None], axis=-1))[:, ::-1]
    alpha, near = np.take_along_axis(alpha, order, axis=1), np.take_along_axis(near, order, axis=1)
    left = np.cumprod(np.concatenate([np.ones((len(alpha), 1)), 1.0 - alpha], axis=1), axis=1)[:, :-1]
    weight = (
        alpha * left + 1e-6 / alpha.shape[1]
    )  # a vertex that nothing covers takes the mean of its neighbours
    return np.einsum("vkc,vk->vc", cloud.colors[near], weight / weight.sum(axis=1, keepdims=True))
