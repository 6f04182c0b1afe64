"""VFHQ, and any other clips kept as folders of numbered frames or as video files.

    ROOT/Clip+<video id>+P<person>+C<clip>+F<first>-<last>/00000001.png ...    one folder a clip
    ROOT/Clip+<video id>+P<person>+C<clip>+F<first>-<last>.mp4                 or one file a clip

No calibration: one camera that stands still. A clip's own folder opens as well.
"""

from __future__ import annotations

import dataclasses
import pathlib

from gphm_jax.capture.names import safe_name, unique_names
from gphm_jax.capture.options import DEFAULTS, ReadOptions
from gphm_jax.capture.photos import MANY, frame_prefix, picture_recording, pictures_in
from gphm_jax.capture.recording import Recording
from gphm_jax.capture.video import open_video
from gphm_jax.data.files import natural_key
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

VIDEO_SUFFIXES = frozenset(
    (
        ".mp4",
        ".mov",
        ".m4v",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
    )
)


def open_vfhq(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> tuple[Recording, ...]:
    """One recording per clip of a folder of clips, or of one clip's folder; view "0", frames named after the files.

    Frames in folders have no times: all are kept, or `options.max_frames` of them. Clips in video files are read as
    `open_video` reads them. `InputError` when there is no clip.
    """
    root = expanded(path)
    if is_clip(root):
        return (_clip(safe_name(root.name), root, options),)
    folders, files = clips_in(root), videos_in(root)
    if not folders and not files:
        raise InputError(f"no clips in {root}: expected folders of numbered frames, or video files")
    names = unique_names([*(item.name for item in folders), *(item.stem for item in files)])
    clips = [_clip(name, folder, options) for name, folder in zip(names, folders, strict=False)]
    videos = [
        dataclasses.replace(open_video(file, options), name=name)
        for name, file in zip(names[len(folders) :], files, strict=True)
    ]
    return (*clips, *videos)


def is_clip(folder: pathlib.Path) -> bool:
    """Whether a folder's pictures are the frames of one clip: many, named by numbers alone or as "frame" and number."""
    found = pictures_in(folder) if folder.is_dir() else []
    prefixes = {frame_prefix(item.stem) for item in found}
    if len(found) < MANY or len(prefixes) != 1:
        return False
    prefix = prefixes.pop()
    return prefix is not None and prefix.strip("_- ").lower() in ("", "frame", "f")


def clips_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The folders inside a folder that hold the frames of a clip, in natural order."""
    return sorted(
        (item for item in folder.iterdir() if item.is_dir() and is_clip(item)),
        key=lambda item: natural_key(item.name),
    )


def videos_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files in a folder that are named like videos, in natural order."""
    found = (
        item
        for item in folder.iterdir()
        if item.suffix.lower() in VIDEO_SUFFIXES and item.is_file() and not item.name.startswith(".")
    )
    return sorted(found, key=lambda item: natural_key(item.name))


def _clip(name: str, folder: pathlib.Path, options: ReadOptions) -> Recording:
    return picture_recording(name, folder, pictures_in(folder), options, moving=True)
