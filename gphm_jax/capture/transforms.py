"""transforms.json, the camera file of NeRF data: what nerfstudio, VHAP and INSTA have in common."""

from __future__ import annotations

import json
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from gphm_jax.data.files import listed
from gphm_jax.data.images import image_size
from gphm_jax.errors import InputError

SPLITS = ("train", "val", "test")
DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order
PINHOLES = ("OPENCV", "FULL_OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "PERSPECTIVE", "SIMPLE_RADIAL", "RADIAL")
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's camera axes (y up, z backward) to OpenCV's, and back

Entry = Mapping[str, Any]  # one picture of the file


def camera_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """`transforms.json`, which holds all pictures; without it those of transforms_train, _val and _test."""
    whole = folder / "transforms.json"
    if whole.is_file():
        return [whole]
    parts = (folder / f"transforms_{split}.json" for split in SPLITS)
    return [path for path in parts if path.is_file()]


def read_entries(folder: pathlib.Path) -> list[tuple[pathlib.Path, Entry]]:
    """(camera file, entry) of every picture, once each: the keys of its frame, over those of the whole file."""
    entries: dict[str, tuple[pathlib.Path, Entry]] = {}
    files = camera_files(folder)
    if not files:
        raise InputError(f"no transforms.json in {folder}: give the folder that holds it")
    for path in files:
        document = read_json(path)
        frames = document.get("frames")
        if not isinstance(frames, list):
            raise InputError(
                f'{path} has no list "frames" (it has {listed(sorted(document))}): export it again'
            )
        shared = {key: value for key, value in document.items() if key != "frames"}
        for frame in frames:
            if not isinstance(frame, dict) or not isinstance(frame.get("file_path"), str):
                raise InputError(f"{path} lists a frame without file_path: export it again")
            entries.setdefault(frame["file_path"], (path, {**shared, **frame}))
    if not entries:
        raise InputError(f"{files[0]} lists no frames: export it again")
    return list(entries.values())


def image_path(folder: pathlib.Path, entry: Entry) -> pathlib.Path:
    """The picture of an entry; Blender's files name it without a suffix, which is .png then."""
    path = folder / entry["file_path"]
    return path if path.suffix else path.with_suffix(".png")


def mask_path(folder: pathlib.Path, entry: Entry) -> pathlib.Path | None:
    """The mask of an entry, where it names one."""
    name = entry.get("fg_mask_path", entry.get("mask_path"))
    return folder / name if isinstance(name, str) else None


def camera_to_world(path: pathlib.Path, entry: Entry) -> Float[np.ndarray, "4 4"]:
    """The matrix of an entry in the file's own axes, checked to be a rotation and a translation."""
    try:
        value = np.asarray(entry["transform_matrix"], np.float64)
    except (KeyError, TypeError, ValueError):
        value = np.zeros(0)
    if value.shape == (3, 4):
        value = np.concatenate([value, [[0.0, 0.0, 0.0, 1.0]]])
    if value.shape != (4, 4):
        raise InputError(f"{path}: {entry['file_path']} has no 4x4 transform_matrix: export it again")
    if not is_rigid(value):
        raise InputError(
            f"{path}: transform_matrix of {entry['file_path']} is no rotation and translation: export it again"
        )
    return value


def lens(
    path: pathlib.Path, image: pathlib.Path, entry: Entry
) -> tuple[Float[np.ndarray, "3 3"], tuple[int, int]]:
    """(intrinsics, (height, width) that they are for) of an entry: fl_x, fl_y, cx, cy, w, h, or camera_angle_x."""
    height, width = number(path, entry, "h"), number(path, entry, "w")
    size = image_size(image) if height is None or width is None else (round(height), round(width))
    focal_x, angle = number(path, entry, "fl_x"), number(path, entry, "camera_angle_x")
    if focal_x is None and angle is not None and 0.0 < angle < math.pi:
        focal_x = 0.5 * size[1] / math.tan(0.5 * angle)
    if focal_x is None:
        raise InputError(
            f"{path}: {entry['file_path']} has no intrinsics: add fl_x, fl_y, cx, cy, w and h, or camera_angle_x"
        )
    focal_y, center_x, center_y = (number(path, entry, key) for key in ("fl_y", "cx", "cy"))
    intrinsics = np.array(
        [
            [focal_x, 0.0, 0.5 * size[1] if center_x is None else center_x],
            [0.0, focal_x if focal_y is None else focal_y, 0.5 * size[0] if center_y is None else center_y],
            [0.0, 0.0, 1.0],
        ]
    )
    if min(intrinsics[0, 0], intrinsics[1, 1], *size) <= 0.0:
        raise InputError(
            f"{path}: focal length or size of {entry['file_path']} is not positive: export it again"
        )
    return intrinsics, size


def distortion(path: pathlib.Path, entry: Entry) -> tuple[float, ...]:
    """OpenCV's distortion coefficients of an entry, empty when all are zero; other models are an `InputError`."""
    model = str(entry.get("camera_model", "OPENCV")).upper()
    if model not in PINHOLES:
        raise InputError(f"{path} has cameras of model {model}: undistort the pictures to a pinhole camera")
    values = tuple(number(path, entry, key) or 0.0 for key in DISTORTION)
    return values if any(values) else ()


def number(path: pathlib.Path, entry: Entry, key: str) -> float | None:
    """A number of an entry; None when it has none, `InputError` when it is something else."""
    value = entry.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{path}: {key} of {entry['file_path']} is {value!r}: expected a number")
    return float(value)


def is_rigid(matrix: Float[np.ndarray, "4 4"]) -> bool:
    """Whether a matrix is a rotation and a translation, to the few digits that files keep."""
    turn = matrix[:3, :3]
    return bool(
        np.isfinite(matrix).all()
        and np.abs(turn @ turn.T - np.eye(3)).max() < 1e-2
        and np.linalg.det(turn) > 0.0
        and np.abs(matrix[3] - [0.0, 0.0, 0.0, 1.0]).max() < 1e-6
    )


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object; `InputError` when the file holds none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({str(error).splitlines()[0]}): export it again") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no JSON object: export it again")
    return document
