"""The mean visual hull of a dataset's masks: a first surface that already has hair and shoulders."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float
from scipy.ndimage import distance_transform_edt

from gphm_jax.data.layout import rotation_matrix
from gphm_jax.types import Batch


def visual_hull(batches: Iterable[Batch], grid: Float[np.ndarray, "x y z 3"]) -> Float[np.ndarray, "x y z"]:
    """Signed distance (positive inside) of the hull that half of the frames agree on; canonical space.

    A grid vertex is inside a frame's hull when every camera that sees it sees the mask there, and at least
    two see it (Laurentini 1994). `batches` are [i f v] and give masks, cameras and poses.
    """
    points = grid.reshape(-1, 3).astype(np.float64)
    votes, frames = np.zeros(len(points)), 0
    for batch in batches:
        for i, f in np.ndindex(*batch.image.shape[:2]):
            rotation = rotation_matrix(np.asarray(batch.pose.rotation[i, f])) * float(batch.pose.scale[i, f])
            world = points @ rotation.T + np.asarray(batch.pose.translation[i, f])
            seen, carved = np.zeros(len(points), int), np.zeros(len(points), bool)
            for v in range(batch.image.shape[2]):
                visible, covered = _look(world, batch, (i, f, v))
                seen += visible
                carved |= visible & ~covered
            votes += (seen >= 2) & ~carved
            frames += 1
    inside = (votes > 0.5 * frames).reshape(grid.shape[:3])
    spacing = [
        float(np.linalg.norm(np.diff(np.take(grid, [0, 1], axis=a), axis=a).reshape(-1, 3)[0]))
        for a in range(3)
    ]
    outer = distance_transform_edt(~inside, spacing)
    inner = distance_transform_edt(inside, spacing)
    return (inner - outer).astype(np.float32)


def _look(world: np.ndarray, batch: Batch, index: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Which points a camera sees within what it recorded, and which of them fall on the mask."""
    matrix = np.asarray(batch.camera.world_to_camera[index], np.float64)
    local = world @ matrix[:3, :3].T + matrix[:3, 3]
    pixels = local @ np.asarray(batch.camera.intrinsics[index], np.float64).T
    depth = np.maximum(pixels[:, 2], 1e-6)
    mask = np.asarray(batch.mask[index])
    x, y = (pixels[:, :2] / depth[:, None]).T
    left, top, right, bottom = np.asarray(batch.recorded[index])
    visible = (pixels[:, 2] > 1e-3) & (x >= left) & (x < right) & (y >= top) & (y < bottom)
    column, row = (np.clip(c, 0, n - 1).astype(int) for c, n in ((x, mask.shape[1]), (y, mask.shape[0])))
    return visible, mask[row, column] > 0.5
