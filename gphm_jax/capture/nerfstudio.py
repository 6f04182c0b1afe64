"""transforms.json of nerfstudio and of VHAP's export.

    ROOT/transforms.json           or transforms_train.json, _val.json, _test.json (VHAP's joined sequences)
        frames[]: file_path, fg_mask_path or mask_path, transform_matrix (camera to world, OpenGL axes),
                  fl_x fl_y cx cy w h (of the frame or of the file), k1 k2 p1 p2,
                  timestep_index and camera_index (VHAP), time (moving scenes)
    ROOT/images/00000_08.png  ROOT/fg_masks/00000_08.png    VHAP: <timestep>_<camera>

VHAP turns OpenCV's cameras into OpenGL's and measures cy from the bottom of the picture with them; everyone else
measures it from the top. Its `transforms_backup*.json` have other worlds and are not read.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from gphm_jax.capture.names import safe_name, unique_names
from gphm_jax.capture.options import DEFAULTS, ReadOptions
from gphm_jax.capture.recording import Recording
from gphm_jax.capture.shots import Shot, shots_recording
from gphm_jax.capture.transforms import (
    FLIP,
    Entry,
    camera_to_world,
    distortion,
    image_path,
    lens,
    mask_path,
    number,
    read_entries,
)
from gphm_jax.capture.video import numbered
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded


def open_nerfstudio(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> Recording:
    """One calibrated recording of a folder with transforms.json.

    Frames and views are VHAP's time steps and cameras; where pictures have a `time`, there is one frame for each time;
    otherwise the scene stands still, and every picture is a view of the one frame "0000". `InputError` when the file
    is at fault.
    """
    root = expanded(path)
    entries = read_entries(root)
    tracked = "timestep_index" in entries[0][1]
    places = _tracked(entries) if tracked else _timed(entries) if "time" in entries[0][1] else _still(entries)
    shots = []
    for (file, entry), (frame, view) in zip(entries, places, strict=True):
        image = image_path(root, entry)
        intrinsics, size = lens(file, image, entry)
        if tracked:
            intrinsics[1, 2] = size[0] - intrinsics[1, 2]
        shots.append(
            Shot(
                frame=frame,
                view=view,
                image=image,
                mask=mask_path(root, entry),
                world_to_camera=np.linalg.inv(camera_to_world(file, entry) @ FLIP),
                intrinsics=intrinsics,
                size=size,
                distortion=distortion(file, entry),
            )
        )
    moving = tracked or "time" in entries[0][1]
    return shots_recording(safe_name(root.resolve().name), root, shots, options, moving=moving)


Entries = Sequence[tuple[pathlib.Path, Entry]]


def _tracked(entries: Entries) -> list[tuple[str, str]]:
    """(frame, view) by VHAP's indices."""
    steps = [_required(file, entry, "timestep_index") for file, entry in entries]
    names = numbered(int(max(steps)) + 1)
    cameras = [_required(file, entry, "camera_index") for file, entry in entries]
    return [(names[int(step)], str(int(camera))) for step, camera in zip(steps, cameras, strict=True)]


def _timed(entries: Entries) -> list[tuple[str, str]]:
    """(frame, view) by time; the pictures of one time are its views, in the file's order."""
    times = [_required(file, entry, "time") for file, entry in entries]
    order = {time: index for index, time in enumerate(sorted(set(times)))}
    names = numbered(len(order))
    count: dict[float, int] = {}
    places = []
    for time in times:
        count[time] = count.get(time, -1) + 1
        places.append((names[order[time]], str(count[time])))
    return places


def _still(entries: Entries) -> list[tuple[str, str]]:
    views = unique_names(pathlib.PurePosixPath(entry["file_path"]).stem for _, entry in entries)
    return [("0000", view) for view in views]


def _required(file: pathlib.Path, entry: Entry, key: str) -> float:
    value = number(file, entry, key)
    if value is None or value < 0.0:
        raise InputError(f"{file}: {entry['file_path']} has no {key}: export it again")
    return value
