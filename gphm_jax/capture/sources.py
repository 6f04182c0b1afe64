"""What lies at a path, told by its content, and the reader for it.

In this order:

    a file named like a picture                                    photo
    transforms*.json                                               its folder
    any other file                                                 video
    a folder with calibration/camera_params.json, or whose folders have it      NeRSemble
    a folder with transforms.json or transforms_train.json ...     INSTA by its keys, else VHAP or nerfstudio
    a folder with ten or more pictures numbered like frames        a clip
    a folder with other pictures                                   photos
    a folder with video files, or folders of such frames           clips (VFHQ)
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

from gphm_jax.capture.insta import is_insta, open_insta
from gphm_jax.capture.nerfstudio import open_nerfstudio
from gphm_jax.capture.nersemble import open_nersemble, participants_in
from gphm_jax.capture.options import ReadOptions, chosen
from gphm_jax.capture.photos import open_photos, pictures_in
from gphm_jax.capture.pictures import is_picture
from gphm_jax.capture.recording import Recording
from gphm_jax.capture.transforms import camera_files
from gphm_jax.capture.vfhq import clips_in, is_clip, open_vfhq, videos_in
from gphm_jax.capture.video import open_video
from gphm_jax.data.layout import is_dataset
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

UNDERSTOOD = (
    "a video, a photo, a folder of photos, frames, videos or clips (VFHQ), a NeRSemble folder, "
    "or a folder with transforms.json (nerfstudio, VHAP, INSTA)"
)


def open_recordings(path: str | pathlib.Path, **options: Any) -> tuple[Recording, ...]:
    """The recordings at a path, with the fields of `ReadOptions` as keywords; rules in the module's docstring.

    Names of the recordings differ. `InputError` when nothing at the path is understood, or it is at fault; of a folder
    of many clips, the first that is at fault (`recording_paths` lets each fail by itself).
    """
    settings = ReadOptions(**options)
    root = _existing(path)
    if root.is_file():
        return (open_photos(root, settings) if is_picture(root) else open_video(root, settings),)
    _check_not_prepared(root)
    if participants_in(root):
        return open_nersemble(root, settings)
    if camera_files(root):
        return (open_insta(root, settings) if is_insta(root) else open_nerfstudio(root, settings),)
    if is_clip(root):
        return open_vfhq(root, settings)
    pictures, videos = pictures_in(root), videos_in(root)
    if pictures and videos:
        raise InputError(
            f"{root} holds photos ({pictures[0].name}) and videos ({videos[0].name}): give one kind a folder of its own"
        )
    if pictures:
        return (open_photos(root, settings),)
    if videos or clips_in(root):
        return open_vfhq(root, settings)
    raise InputError(f"nothing to read in {root}: give {UNDERSTOOD}")


def recording_paths(
    path: str | pathlib.Path, *, participants: tuple[str, ...] | None = None
) -> tuple[pathlib.Path, ...]:
    """Paths that together hold the recordings of `path`, each of which `open_recordings` opens as one of them.

    Opens no file, so that a broken clip among thousands fails alone, in its own job.
    """
    root = _existing(path)
    if root.is_file():
        return (root,)
    _check_not_prepared(root)
    people = participants_in(root)
    if people and people[0] != root:
        names = chosen([item.name for item in people], participants, "participant", root)
        return tuple(item for item in people if item.name in names)
    if people or camera_files(root) or pictures_in(root):
        return (root,)
    return (*clips_in(root), *videos_in(root)) or (root,)


def _existing(path: str | pathlib.Path) -> pathlib.Path:
    root = expanded(path)
    if not root.exists():
        raise InputError(f"nothing at {root}: give {UNDERSTOOD}")
    if root.is_file() and root.suffix == ".json" and root.name.startswith("transforms"):
        root = root.parent
    if root.is_dir() and not os.access(root, os.R_OK | os.X_OK):
        raise InputError(f"cannot read the folder {root}: check its permissions")
    return root


def _check_not_prepared(root: pathlib.Path) -> None:
    if is_dataset(root):
        raise InputError(f"{root} is prepared already: train on it or fit it as it is")
