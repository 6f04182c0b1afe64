"""The visual hull of masks, against bodies whose shape is known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from tiny_models import batch

from gphm_jax.hull import visual_hull
from gphm_jax.types import Camera, Pose

SIZE = 64
AXIS = np.linspace(-0.9, 0.9, 25)
GRID = np.stack(np.meshgrid(AXIS, AXIS, AXIS, indexing="ij"), axis=-1).astype(np.float32)


def seen_from(angles, masks, recorded=(0, 0, SIZE, SIZE)):
    """One frame of a body at rest, by cameras 4 away on the equator whose pictures show what `masks` say."""
    matrices = []
    for angle in angles:
        back = np.array([np.sin(angle), 0, np.cos(angle)])
        turn = np.stack([np.cross([0, -1, 0], -back), [0, -1, 0], -back])
        matrix = np.eye(4)
        matrix[:3, :3], matrix[:3, 3] = turn, -turn @ (4 * back)
        matrices.append(matrix)
    views = len(angles)
    still = Pose(rotation=jnp.zeros((1, 1, 3)), translation=jnp.zeros((1, 1, 3)), scale=jnp.ones((1, 1)))
    made = batch(identities=1, frames=1, views=views, size=SIZE)
    return dataclasses.replace(
        made,
        camera=Camera(
            world_to_camera=jnp.asarray(np.stack(matrices)[None, None], jnp.float32),
            intrinsics=made.camera.intrinsics,
        ),
        mask=jnp.asarray(np.stack(masks)[None, None], jnp.float32),
        recorded=jnp.broadcast_to(jnp.asarray(recorded, jnp.float32), (1, 1, views, 4)),
        pose=still,
    )


def disc(radius):
    x = np.arange(SIZE) + 0.5 - SIZE / 2
    return np.hypot(*np.meshgrid(x, x)) < radius


def test_a_ball_stands_where_its_silhouettes_say():
    ball = 0.6 * 2 * SIZE / np.sqrt(4**2 - 0.6**2)  # pixels: the focal length is 2 SIZE
    hull = visual_hull([seen_from(np.linspace(0, np.pi, 8, endpoint=False), [disc(ball)] * 8)], GRID)
    distance = 0.6 - np.linalg.norm(GRID, axis=-1)
    middle = np.abs(GRID[..., 1]) < 0.1  # cameras on the equator see no poles
    assert np.abs(hull - distance)[middle & (distance > -0.2)].max() < 0.12  # cells are 0.075 wide


def test_a_camera_carves_nothing_where_it_recorded_nothing():
    whole = np.ones((SIZE, SIZE))
    cut = whole * (np.arange(SIZE) < 40)[:, None]  # black below row 40, as padding is
    blind = (0, 0, SIZE, 40)
    everything = visual_hull([seen_from([0.0, 1.5], [whole] * 2)], GRID) > 0
    padded = seen_from([0.0, 1.5, 0.7], [whole, whole, cut], blind)
    padded = dataclasses.replace(padded, recorded=padded.recorded.at[0, 0, :2, 3].set(SIZE))
    assert everything.mean() > 0.8
    assert not (everything & ~(visual_hull([padded], GRID) > 0)).any()
    all_seen = dataclasses.replace(padded, recorded=jnp.broadcast_to(jnp.float32([0, 0, SIZE, SIZE]), (1, 1, 3, 4)))
    assert (everything & ~(visual_hull([all_seen], GRID) > 0)).mean() > 0.1
