"""One photo, or a folder of them -> a recording without motion."""

from __future__ import annotations

import functools
import pathlib
import re
from collections.abc import Iterator

from gphm_jax.capture.names import safe_name, unique_names
from gphm_jax.capture.options import DEFAULTS, ReadOptions, spread, thinned
from gphm_jax.capture.pictures import is_picture, read_picture
from gphm_jax.capture.recording import INTERVAL, Picture, Recording, Unreadable
from gphm_jax.data.files import natural_key
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

MANY = 10  # numbered pictures with one prefix, from which on they look like the frames of a video


def open_photos(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> Recording:
    """One recording of a photo or of a folder's photos: view "0", frames named after the files.

    Photos follow one another in no order of time. A photo that cannot be read is an `Unreadable` among others and an
    `InputError` when it is the only one. EXIF focal lengths are not used: the fit finds one for all photos.
    """
    root = expanded(path)
    if root.is_dir():
        found = _listed(root)
        _check_one_subject(root, found)
    elif root.is_file():
        found = [root]
    else:
        raise InputError(f"no photo or folder at {root}: check the path")
    if len(found) == 1:
        read_picture(found[0], max_side=options.max_side)  # its fault is the user's first answer
    return picture_recording(safe_name(root.name if root.is_dir() else root.stem), root, found, options)


def picture_recording(
    name: str,
    source: pathlib.Path,
    files: list[pathlib.Path],
    options: ReadOptions,
    *,
    moving: bool = False,
) -> Recording:
    """A recording of picture files by one camera, view "0", in the order given; frames have the files' names."""
    kept = [files[index] for index in spread(len(files), options.max_frames)]
    frames = tuple(unique_names(file.stem for file in kept))
    return Recording(
        name=name,
        source=source,
        frames=frames,
        views=("0",),
        read=functools.partial(_read, kept, frames, options.max_side),
        moving=moving,
        interval=thinned(INTERVAL, len(files), len(kept)),
    )


def pictures_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """The picture files of a folder itself, in natural order of their names."""
    try:
        found = [item for item in folder.iterdir() if is_picture(item) and item.is_file()]
    except OSError as error:
        raise InputError(f"cannot read {folder} ({error.strerror}): check its permissions") from error
    return sorted(found, key=lambda item: natural_key(item.name))


def frame_prefix(stem: str) -> str | None:
    """What stands before the number at the end of a name; None when there is no number."""
    match = re.fullmatch(r"(.*?)\d+", stem)
    return match[1] if match else None


def _listed(folder: pathlib.Path) -> list[pathlib.Path]:
    found = pictures_in(folder)
    if not found:
        below = sorted(item.name for item in folder.iterdir() if item.is_dir() and pictures_in(item))
        hint = (
            f"give a folder inside it, such as {folder / below[0]}"
            if below
            else "put JPEG or PNG files there"
        )
        raise InputError(f"no pictures in {folder}: {hint}")
    return found


def _check_one_subject(folder: pathlib.Path, found: list[pathlib.Path]) -> None:
    counts: dict[str, int] = {}
    for file in found:
        prefix = frame_prefix(file.stem)
        if prefix is not None:
            counts[prefix] = counts.get(prefix, 0) + 1
    videos = sorted(prefix for prefix, count in counts.items() if count >= MANY)
    if len(videos) > 1:
        raise InputError(
            f"{folder} holds numbered pictures of several videos ({videos[0]}*, {videos[1]}*): "
            "give each video a folder of its own"
        )


def _read(
    files: list[pathlib.Path], frames: tuple[str, ...], max_side: int
) -> Iterator[Picture | Unreadable]:
    for file, frame in zip(files, frames, strict=True):
        try:
            image, mask = read_picture(file, max_side=max_side)
        except InputError as error:
            yield Unreadable(frame=frame, view="0", reason=str(error))
        else:
            yield Picture(frame=frame, view="0", image=image, mask=mask)
