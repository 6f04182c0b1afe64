"""A driver's footage as a clip that the viewer plays: its head turns about the viewer's own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import shutil

import numpy as np
from scipy.spatial.transform import Rotation

from gphm_jax import paths
from gphm_jax.avatar import Avatar
from gphm_jax.capture.identity_folder import is_done
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.data.layout import host
from gphm_jax.driver import open_driver
from gphm_jax.reenactment import Direction, Performance, perform
from gphm_jax.types import Pose
from gphm_jax.viewer.playback import Clip

_KEPT = 8  # prepared clips: some 100 MB each


def read_clip(path: pathlib.Path, avatar: Avatar) -> Clip:
    """What an avatar plays of a video, or of a prepared identity folder; `InputError` where that shows no face.

    A video is prepared in the user's cache, once for each size of pictures: what was interrupted goes on. The cache
    keeps the few that were played last.
    """
    settings = CaptureSettings(size=avatar.spec.image_size, expression_images=0)
    prepared = _prepared(path, settings)
    driver = open_driver(prepared if is_done(prepared) else path, prepared, settings, 0.0)
    if prepared.exists():
        _forget_older_than(prepared)
    performance = perform(avatar, driver, Direction())
    return Clip(
        expression=performance.expression,
        motion=performance.motion,
        pose=about_their_mean(performance),
        fps=driver.fps,
    )


def _prepared(path: pathlib.Path, settings: CaptureSettings) -> pathlib.Path:
    """Where footage as it is now is prepared with these settings."""
    seen = path.stat() if path.exists() else None
    told = repr((path.resolve(), seen and (seen.st_size, seen.st_mtime_ns), settings))
    return paths.cache_folder() / "footage" / hashlib.sha256(told.encode()).hexdigest()[:16]


def _forget_older_than(used: pathlib.Path) -> None:
    """Makes `used` the latest of the finished footage kept beside it, of which `_KEPT` stay."""
    os.utime(used)
    by_age = []
    for folder in used.parent.iterdir():
        with contextlib.suppress(OSError):  # another viewer has removed it
            if is_done(folder):
                by_age.append((folder.stat().st_mtime, folder))
    for _, old in sorted(by_age)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def about_their_mean(performance: Performance) -> Pose:
    """Head poses relative to the mean one: a driver's world is its camera's, the viewer's is the head's."""
    turns = Rotation.from_rotvec(performance.rotation)
    mean = turns.mean()
    size = performance.scale.mean()
    moved = mean.inv().apply(performance.translation - performance.translation.mean(axis=0)) / size
    return Pose(
        rotation=(mean.inv() * turns).as_rotvec().astype(np.float32),
        translation=moved.astype(np.float32),
        scale=host((performance.scale / size).astype(np.float32)),
    )
