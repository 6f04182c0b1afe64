"""A face by itself: somebody's expression on somebody else, in a light, pose and camera of its own."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.data import frame_writer
from gphm_jax.data.synthetic import cameras, motion, person, renderer


def portrait(
    subject: person.Person, scores: Float[np.ndarray, "52"], rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """The face crop of a person with these 52 ARKit scores, turned and lit as `rng` draws."""
    yaw, pitch, roll = np.radians(rng.uniform(-1, 1, 3) * (12, 8, 6))
    moved = motion.compose(
        subject.pivot,
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        nod=np.zeros(3),
        shrug=np.zeros(2),
        sway=np.zeros(3),
    )
    picture = 2 * size
    view = cameras.place(float(rng.uniform(-20, 20)), float(rng.uniform(-8, 8)), picture)
    left, top, side = frame_writer.face_box(
        person.landmarks(subject, scores, moved), view.world_to_camera, view.intrinsics
    )
    zoom = size / side
    close = np.array([[zoom, 0, -zoom * left], [0, zoom, -zoom * top], [0, 0, 1]]) @ view.intrinsics
    parts = person.frame_parts(subject, scores, moved)
    lit = renderer.light(parts, renderer.thin(subject.lights), shadow_size=renderer.shadow_size(picture) // 2)
    image, _ = renderer.render(lit, view.world_to_camera, close, size)
    return image
