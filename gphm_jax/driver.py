"""Who drives an avatar: a recording of a face, frame by frame, with its head poses and cameras."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.capture.identity_folder import DONE
from gphm_jax.capture.preprocess import preprocess, read_face_model
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.capture.sources import open_recordings, recording_paths
from gphm_jax.data import images
from gphm_jax.data.files import listed, natural_key
from gphm_jax.data.layout import (
    Dataset,
    Frame,
    is_dataset,
    load_face,
    load_nonface,
    open_dataset,
    select,
    view_intrinsics,
)
from gphm_jax.errors import InputError

_FPS = 25.0  # of a prepared folder that does not know


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Driver:
    """A recording of one face by one camera; `shown` says which of the frames with a face each moment shows."""

    dataset: Dataset
    frames: tuple[Frame, ...]  # with a face, in time
    views: tuple[int, ...]  # of each frame, the camera that sees the face
    shown: tuple[int, ...]  # by moment: a row of `frames`; without a face, that of the moment before
    held: int  # moments without a face
    fps: float
    video: pathlib.Path | None  # the file, where there is one, for its sound

    def image(self, row: int, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """The whole picture, its background as it was filmed."""
        frame, view = self.frames[row], self.views[row]
        return images.read_square(frame.views[view].image, size)

    def face(self, row: int, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """The cut-out face over white."""
        return load_face(self.dataset, self.frames[row], self.views[row], size=size)

    def nonface(self, row: int, size: int) -> UInt8[np.ndarray, "s s 3"]:
        """The picture over white without the face."""
        return load_nonface(self.dataset, self.frames[row], self.views[row], size=size)

    @property
    def rotation(self) -> Float[np.ndarray, "n 3"]:
        """Head rotations by row, axis-angle."""
        return np.stack([frame.rotation for frame in self.frames])

    @property
    def translation(self) -> Float[np.ndarray, "n 3"]:
        """Head positions by row."""
        return np.stack([frame.translation for frame in self.frames])

    @property
    def scale(self) -> Float[np.ndarray, "n"]:
        """Head sizes by row."""
        return np.array([frame.scale for frame in self.frames], np.float32)

    @property
    def world_to_camera(self) -> Float[np.ndarray, "n 4 4"]:
        """Cameras by row."""
        pairs = zip(self.frames, self.views, strict=True)
        return np.stack([frame.world_to_camera[view] for frame, view in pairs])

    def intrinsics(self, size: int) -> Float[np.ndarray, "n 3 3"]:
        """Lenses by row, for square pictures of `size` pixels."""
        return np.stack(
            [view_intrinsics(frame, view, size) for frame, view in zip(self.frames, self.views, strict=True)]
        )


def open_driver(path: pathlib.Path, work: pathlib.Path, settings: CaptureSettings, fps: float) -> Driver:
    """The driver at `path`: raw footage of one person, prepared in the folder `work` first, or a prepared folder.

    `fps` is that of a prepared folder; 0 takes what its quality.json says, or 25. `InputError` where nothing can be
    read or no frame shows a face.
    """
    if not path.exists():
        raise InputError(f"no driver at {path}: name a video or a prepared identity folder with --drive")
    if path.is_dir() and is_dataset(path):
        return _read(path, fps, None)
    clips = recording_paths(path)
    if len(clips) > 1:
        raise InputError(f"{path} holds {len(clips)} clips: name one with --drive, as {clips[0]}")
    (recording,) = open_recordings(path, fps=settings.fps, max_frames=settings.max_frames or None)
    if not recording.moving:
        raise InputError(f"{path} holds photos, which do not move: name a video with --drive")
    preprocess(recording, work, settings, read_face_model(settings))
    return _read(work, 1.0 / recording.interval, path if path.is_file() else None)


def _read(folder: pathlib.Path, fps: float, video: pathlib.Path | None) -> Driver:
    dataset = open_dataset(folder)
    if len(dataset.identities) > 1:
        raise InputError(
            f"{folder} has {len(dataset.identities)} identities: name one's folder with --drive, "
            f"of {listed(dataset.identities)}"
        )
    items = select(dataset, identities=dataset.identities, views="all", frames="all")
    view = items[0].frame.views[items[0].views[0]].name
    frames, views = [], []
    for item in items:
        names = [record.name for record in item.frame.views]
        if view in names and item.frame.shows_face[names.index(view)]:
            frames.append(item.frame)
            views.append(names.index(view))
    if not frames:
        raise InputError(
            f"no frame of {folder} shows a face to camera {view}: film the driver from the front"
        )
    names = [frame.name for frame in frames]
    dropped, filmed = _quality(dataset)
    moments = sorted({item.frame.name for item in items} | dropped, key=natural_key)
    return Driver(
        dataset=dataset,
        frames=tuple(frames),
        views=tuple(views),
        shown=_latest(names, moments),
        held=len(moments) - len(names),
        fps=fps or filmed or _FPS,
        video=video,
    )


def _quality(dataset: Dataset) -> tuple[set[str], float]:
    """The frames that preprocessing found no use for, and its frames a second; none, and 0, where nothing says."""
    folders = (dataset.path, dataset.path / dataset.identities[0])
    path = next((folder / DONE for folder in folders if (folder / DONE).is_file()), None)
    if path is None:
        return set(), 0.0
    try:
        quality = json.loads(path.read_text(encoding="utf-8"))
        return {str(item["frame"]) for item in quality["dropped"]}, float(quality.get("fps") or 0.0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not what preprocessing wrote: restore it, or prepare the footage again"
        ) from error


def _latest(names: Sequence[str], moments: Sequence[str]) -> tuple[int, ...]:
    """For each moment the row of its name, or of the last name before it; before the first, the first's."""
    rows = {name: row for row, name in enumerate(names)}
    shown, last = [], 0
    for moment in moments:
        last = rows.get(moment, last)
        shown.append(last)
    return tuple(shown)
