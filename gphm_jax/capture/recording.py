"""What every source of footage looks like to preprocessing: pictures of one person, by frame and view."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

from jaxtyping import Float, UInt8
from numpy import ndarray

INTERVAL = 1 / 30  # seconds between frames whose times are not known


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """A known camera of the picture as read: OpenCV axes, pixel centres at +0.5, any unit of length."""

    world_to_camera: Float[ndarray, "4 4"]
    intrinsics: Float[ndarray, "3 3"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """One view at one instant, upright."""

    frame: str
    view: str
    image: UInt8[ndarray, "h w 3"]  # RGB
    mask: UInt8[ndarray, "h w"] | None = None  # coverage, where the source has it: no matting then
    calibration: Calibration | None = None  # None: one camera that stands still and is to be found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A picture that is listed and cannot be read; preprocessing drops it and says so."""

    frame: str
    view: str
    reason: str  # one line that names the file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """Footage of one person. Names of frames and views become names of folders and files.

    `read()` starts anew with each call and gives every picture once, frame by frame: the views of a frame together, so
    that nothing has to wait in memory for its frame. Pictures with one frame's name were taken at the same instant.
    """

    name: str  # of the identity's folder
    source: pathlib.Path  # what the user named
    frames: tuple[str, ...]
    views: tuple[str, ...]
    read: Callable[[], Iterator[Picture | Unreadable]]
    moving: bool = True  # frames follow one another in time; False: photos
    interval: float = INTERVAL  # seconds between neighbouring frames of a moving recording
