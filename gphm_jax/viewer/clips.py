"""A driver's footage as a clip that the viewer plays: its head turns about the viewer's own."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from scipy.spatial.transform import Rotation

from gphm_jax.avatar import Avatar
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.driver import open_driver
from gphm_jax.reenactment import Direction, Performance, perform
from gphm_jax.types import Pose
from gphm_jax.viewer.playback import Clip


def read_clip(path: pathlib.Path, avatar: Avatar) -> Clip:
    """What an avatar plays of a video, or of a prepared identity folder; `InputError` where that shows no face."""
    with tempfile.TemporaryDirectory() as work:
        settings = CaptureSettings(size=avatar.spec.image_size, expression_images=0)
        driver = open_driver(path, pathlib.Path(work) / "footage", settings, 0.0)
        performance = perform(avatar, driver, Direction())
    return Clip(
        expression=performance.expression,
        motion=performance.motion,
        pose=about_their_mean(performance),
        fps=driver.fps,
    )


def about_their_mean(performance: Performance) -> Pose:
    """Head poses relative to the mean one: a driver's world is its camera's, the viewer's is the head's."""
    turns = Rotation.from_rotvec(performance.rotation)
    mean = turns.mean()
    size = performance.scale.mean()
    moved = mean.inv().apply(performance.translation - performance.translation.mean(axis=0)) / size
    return Pose(
        rotation=(mean.inv() * turns).as_rotvec().astype(np.float32),
        translation=moved.astype(np.float32),
        scale=(performance.scale / size).astype(np.float32),
    )
