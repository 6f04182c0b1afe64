"""INSTA's folders of one person, as its scripts make them from the Metrical Photometric Tracker's output.

    ROOT/transforms.json, transforms_train.json, _test.json, _val.json (the last 20 frames, in _test as well)
        fl_x fl_y cx cy w h; frames[]: file_path, transform_matrix, mesh_path, exp_path, depth_path, seg_mask_path
    ROOT/images/00001.png      RGBA, clothes cut away; ROOT/matted/00001.png the same, softer
    ROOT/seg_mask/  ROOT/depth/  ROOT/meshes/  ROOT/flame/exp/    not read

The matrices are inverses of OpenCV's world-to-camera: their axes are OpenCV's, not OpenGL's as the file's name
suggests. The head stands still in the world and the camera moves around it.
"""

from __future__ import annotations

import pathlib

import numpy as np

from gphm_jax.capture.names import safe_name, unique_names
from gphm_jax.capture.options import DEFAULTS, ReadOptions
from gphm_jax.capture.pictures import has_alpha
from gphm_jax.capture.recording import Recording
from gphm_jax.capture.shots import Shot, shots_recording
from gphm_jax.capture.transforms import camera_files, camera_to_world, image_path, lens, read_entries
from gphm_jax.paths import expanded

KEYS = ("exp_path", "mesh_path", "seg_mask_path")  # which nobody else's entries have, with no time step


def is_insta(folder: pathlib.Path) -> bool:
    """Whether a folder's camera file is INSTA's."""
    if not camera_files(folder):
        return False
    _, entry = read_entries(folder)[0]
    return any(key in entry for key in KEYS) and "timestep_index" not in entry


def open_insta(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> Recording:
    """One calibrated recording, view "0", frames named after the files; masks are the pictures' alpha channels.

    Where pictures are opaque, those of the folder `matted` give the mask. `InputError` when the file is at fault.
    """
    root = expanded(path)
    entries = sorted(read_entries(root), key=lambda item: item[1]["file_path"])  # written in no order
    frames = unique_names(pathlib.PurePosixPath(entry["file_path"]).stem for _, entry in entries)
    shots = []
    for (file, entry), frame in zip(entries, frames, strict=True):
        image = image_path(root, entry)
        intrinsics, size = lens(file, image, entry)
        shots.append(
            Shot(
                frame=frame,
                view="0",
                image=image,
                mask=_matte(root, image),
                world_to_camera=np.linalg.inv(camera_to_world(file, entry)),
                intrinsics=intrinsics,
                size=size,
            )
        )
    return shots_recording(safe_name(root.resolve().name), root, shots, options, moving=True)


def _matte(root: pathlib.Path, image: pathlib.Path) -> pathlib.Path | None:
    matted = root / "matted" / image.name
    return matted if not has_alpha(image) and matted.is_file() else None
