"""Calibrated picture files -> a recording: each read, checked against its intrinsics, undistorted and scaled."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.capture.options import ReadOptions, chosen, spread, thinned
from gphm_jax.capture.pictures import read_mask, read_picture, resized, resized_intrinsics, scaled_size
from gphm_jax.capture.recording import INTERVAL, Calibration, Picture, Recording, Unreadable
from gphm_jax.data.files import natural_key, size_text
from gphm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shot:
    """One calibrated picture file, not yet read."""

    frame: str
    view: str
    image: pathlib.Path
    mask: pathlib.Path | None  # None: the picture's own alpha channel, if it has one
    world_to_camera: Float[np.ndarray, "4 4"]  # OpenCV axes
    intrinsics: Float[np.ndarray, "3 3"]
    size: tuple[int, int]  # height and width that the intrinsics are for
    distortion: tuple[float, ...] = ()  # OpenCV's coefficients


def shots_recording(
    name: str, folder: pathlib.Path, shots: Sequence[Shot], options: ReadOptions, *, moving: bool
) -> Recording:
    """A recording of such pictures; `InputError` when two are the same frame and view."""
    seen: dict[tuple[str, str], pathlib.Path] = {}
    for shot in shots:
        other = seen.setdefault((shot.frame, shot.view), shot.image)
        if other != shot.image:
            raise InputError(
                f"{other} and {shot.image} are both frame {shot.frame} of view {shot.view}: "
                "correct the camera file"
            )
    instants = sorted({shot.frame for shot in shots}, key=natural_key)
    frames = tuple(instants[index] for index in spread(len(instants), options.max_frames))
    cameras = sorted({shot.view for shot in shots}, key=natural_key)
    views = tuple(chosen(cameras, options.views, "view", folder))
    kept = [shot for shot in shots if shot.frame in set(frames) and shot.view in views]
    kept.sort(key=lambda shot: (natural_key(shot.frame), natural_key(shot.view)))
    return Recording(
        name=name,
        source=folder,
        frames=frames,
        views=views,
        read=functools.partial(_read, kept, options.max_side),
        moving=moving,
        interval=thinned(INTERVAL, len(instants), len(frames)),
    )


def calibrated(
    source: pathlib.Path,
    size: tuple[int, int],
    *,
    world_to_camera: Float[np.ndarray, "4 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    calibrated_size: tuple[int, int],
) -> Calibration:
    """The calibration of a picture of (height, width) = `size`; `InputError` when that is another shape."""
    # Sizes round to whole pixels: the shape is the same when one pixel makes up for the difference.
    if abs(calibrated_size[0] * size[1] - calibrated_size[1] * size[0]) > max(*calibrated_size, *size):
        raise InputError(
            f"{source} is {size_text(size)} but its intrinsics are for {size_text(calibrated_size)}: "
            "give pictures of that shape"
        )
    return Calibration(
        world_to_camera=world_to_camera, intrinsics=resized_intrinsics(intrinsics, calibrated_size, size)
    )


def _read(shots: Sequence[Shot], max_side: int) -> Iterator[Picture | Unreadable]:
    for shot in shots:
        try:
            yield _picture(shot, max_side)
        except InputError as error:
            yield Unreadable(frame=shot.frame, view=shot.view, reason=str(error))


def _picture(shot: Shot, max_side: int) -> Picture:
    image, mask = read_picture(shot.image)
    if shot.mask is not None:
        mask = read_mask(shot.mask)
        if mask.shape != image.shape[:2]:
            raise InputError(f"{shot.mask} differs from {shot.image.name} in size: export it again")
    calibration = calibrated(
        shot.image,
        (image.shape[0], image.shape[1]),
        world_to_camera=shot.world_to_camera,
        intrinsics=shot.intrinsics,
        calibrated_size=shot.size,
    )
    planes = [plane for plane in (image, mask) if plane is not None]
    if shot.distortion:
        planes = [_undistorted(plane, calibration.intrinsics, shot.distortion) for plane in planes]
    size = scaled_size((image.shape[0], image.shape[1]), max_side)
    intrinsics = resized_intrinsics(calibration.intrinsics, (image.shape[0], image.shape[1]), size)
    planes = [resized(plane, size) for plane in planes]
    return Picture(
        frame=shot.frame,
        view=shot.view,
        image=planes[0],
        mask=planes[1] if len(planes) == 2 else None,
        calibration=dataclasses.replace(calibration, intrinsics=intrinsics),
    )


def _undistorted(
    image: UInt8[np.ndarray, "h w *c"], intrinsics: Float[np.ndarray, "3 3"], coefficients: tuple[float, ...]
) -> UInt8[np.ndarray, "h w *c"]:
    half = np.array(
        [[0.0, 0.0, 0.5], [0.0, 0.0, 0.5], [0.0, 0.0, 0.0]]
    )  # OpenCV's pixel centres are whole numbers
    return cv2.undistort(image, intrinsics - half, np.array(coefficients))
