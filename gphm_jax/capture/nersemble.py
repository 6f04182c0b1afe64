"""NeRSemble (version 2): people filmed by 16 calibrated cameras.

    ROOT/<participant>/calibration/camera_params.json
        world_2_cam: {serial: 4x4, OpenCV axes}; intrinsics: 3x3, one for all, of pictures 3208 high and 2200 wide
    ROOT/<participant>/calibration/color_calibration.json                        {serial: 3xN}, applied where it is
    ROOT/<participant>/annotations/[<sequence>/]color_correction/<serial>.npy    3x4, version 1's, applied where it is
    ROOT/<participant>/sequences/<sequence>/images/cam_<serial>.mp4
    ROOT/<participant>/sequences/BACKGROUND/image_<serial>.jpg    the empty stage: not read

A participant's own folder opens as well.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.capture.color_correction import check_matrix, correct_affine, correct_polynomial
from gphm_jax.capture.names import safe_name
from gphm_jax.capture.options import DEFAULTS, ReadOptions, chosen
from gphm_jax.capture.recording import INTERVAL, Picture, Recording, Unreadable
from gphm_jax.capture.shots import calibrated
from gphm_jax.capture.transforms import is_rigid, read_json
from gphm_jax.capture.video import VideoPlan, numbered, plan_videos, read_video
from gphm_jax.data.files import listed, natural_key
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

CALIBRATION = pathlib.PurePath("calibration", "camera_params.json")
CALIBRATED_SIZE = (3208, 2200)  # height, width: where camera_params.json does not say


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Rig:
    """The cameras of one participant."""

    world_to_camera: dict[str, Float[np.ndarray, "4 4"]]  # by serial
    intrinsics: dict[str, Float[np.ndarray, "3 3"]]
    size: tuple[int, int]  # height and width that the intrinsics are for


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Take:
    """One sequence as one camera filmed it."""

    serial: str
    frames: tuple[str, ...]  # all that the sequence has; this camera may have fewer
    plan: VideoPlan
    color: Float[np.ndarray, "rows terms"] | None
    polynomial: bool  # what `color` is


def participants_in(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of participants under a dataset's folder, or the folder itself if it is one."""
    if (root / CALIBRATION).is_file():
        return [root]
    found = [item for item in root.iterdir() if (item / CALIBRATION).is_file()]
    return sorted(found, key=lambda item: natural_key(item.name))


def open_nersemble(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> tuple[Recording, ...]:
    """One recording per participant: views are serials, frames "<sequence>_<number>", calibrated.

    Every camera of a sequence is read at the same even time steps; `options.max_frames` counts for each sequence.
    `InputError` when calibration, sequences or videos are missing or at fault.
    """
    root = expanded(path)
    people = participants_in(root)
    if not people:
        raise InputError(f"no participants in {root}: expected {root}/<participant>/{CALIBRATION}")
    if len(people) > 1 or people[0] != root:
        names = chosen([item.name for item in people], options.participants, "participant", root)
        people = [item for item in people if item.name in names]
    return tuple(_participant(folder, options) for folder in people)


def read_rig(path: pathlib.Path, serials: list[str]) -> Rig:
    """The calibration of cameras; `InputError` naming file and serial when one has no pose or no intrinsics."""
    document = read_json(path)
    poses, lenses = document.get("world_2_cam"), document.get("intrinsics")
    world_to_camera, intrinsics = {}, {}
    for serial in serials:
        pose = _matrix(poses.get(serial) if isinstance(poses, dict) else None, (4, 4))
        if not pose.size or not is_rigid(pose):
            raise InputError(
                f"{path} has no world_2_cam for camera {serial}: restore it, or remove its videos"
            )
        # One matrix for all cameras; calibrations of one's own may have one for each.
        lens = _matrix(lenses.get(serial) if isinstance(lenses, dict) else lenses, (3, 3))
        if not lens.size or min(lens[0, 0], lens[1, 1]) <= 0.0:
            raise InputError(f'{path} has no intrinsics for camera {serial}: add the 3x3 matrix "intrinsics"')
        world_to_camera[serial], intrinsics[serial] = pose, lens
    size = (document.get("height", CALIBRATED_SIZE[0]), document.get("width", CALIBRATED_SIZE[1]))
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise InputError(f"{path}: height and width are {size}: expected pixels")
    return Rig(world_to_camera=world_to_camera, intrinsics=intrinsics, size=size)


def _participant(folder: pathlib.Path, options: ReadOptions) -> Recording:
    videos = _videos(folder, options)
    serials = sorted({serial for files in videos.values() for serial in files}, key=natural_key)
    rig = read_rig(folder / CALIBRATION, serials)
    sequences: list[list[Take]] = []
    frames: list[str] = []
    rate = 1 / INTERVAL
    for sequence, files in videos.items():
        plans = plan_videos(list(files.values()), options)
        rate = min(rate, plans[0].rate or rate)
        numbers = numbered(max(len(plan.steps) for plan in plans))
        names = tuple(f"{safe_name(sequence)}_{number}" for number in numbers)
        frames += names
        sequences.append(
            [
                Take(serial=serial, frames=names, plan=plan, **_color(folder, sequence, serial))
                for serial, plan in zip(files, plans, strict=True)
            ]
        )
    return Recording(
        name=safe_name(folder.resolve().name),
        source=folder,
        frames=tuple(frames),
        views=tuple(serials),
        read=functools.partial(_read, sequences, rig, options),
        interval=1 / rate,
    )


def _videos(folder: pathlib.Path, options: ReadOptions) -> dict[str, dict[str, pathlib.Path]]:
    """{sequence: {serial: file}} of what was asked for, in natural order."""
    found: dict[str, dict[str, pathlib.Path]] = {}
    for file in (folder / "sequences").glob("*/images/cam_*.mp4"):
        found.setdefault(file.parent.parent.name, {})[file.stem.removeprefix("cam_")] = file
    if not found:
        raise InputError(
            f"no videos in {folder}: expected {folder}/sequences/<sequence>/images/cam_<serial>.mp4"
        )
    serials = sorted({serial for files in found.values() for serial in files}, key=natural_key)
    kept = chosen(serials, options.views, "camera", folder)
    names = chosen(sorted(found, key=natural_key), options.sequences, "sequence", folder / "sequences")
    return {name: {serial: found[name][serial] for serial in kept if serial in found[name]} for name in names}


def _color(folder: pathlib.Path, sequence: str, serial: str) -> dict[str, Any]:
    path = folder / "calibration" / "color_calibration.json"
    if path.is_file():
        matrices = read_json(path)
        if serial not in matrices:
            raise InputError(
                f"{path} has no camera {serial} (it has {listed(sorted(matrices))}): restore the file"
            )
        matrix = check_matrix(_matrix(matrices[serial]), path, polynomial=True)
        return {"color": matrix, "polynomial": True}
    for place in (folder / "annotations" / sequence, folder / "annotations"):
        path = place / "color_correction" / f"{serial}.npy"
        if path.is_file():
            try:
                matrix = np.load(path, allow_pickle=False).astype(np.float64)
            except (OSError, ValueError, EOFError) as error:
                raise InputError(f"cannot read {path} ({error}): restore the file") from error
            return {"color": check_matrix(matrix, path, polynomial=False), "polynomial": False}
    return {"color": None, "polynomial": False}


def _read(sequences: list[list[Take]], rig: Rig, options: ReadOptions) -> Iterator[Picture | Unreadable]:
    for takes in sequences:  # all cameras of a sequence at once, so that a frame's views come together
        for views in zip(*(_read_take(take, rig, options) for take in takes), strict=True):
            yield from views


def _read_take(take: Take, rig: Rig, options: ReadOptions) -> Iterator[Picture | Unreadable]:
    """Every frame of a camera's sequence, in order."""
    for number, result in read_video(take.plan, options):
        frame = take.frames[number]
        if isinstance(result, str):
            yield Unreadable(frame=frame, view=take.serial, reason=result)
        else:
            yield _picture(take, frame, result, rig)
    for frame in take.frames[len(take.plan.steps) :]:
        reason = f"{take.plan.path} ends before frame {frame}: other cameras filmed longer"
        yield Unreadable(frame=frame, view=take.serial, reason=reason)


def _picture(take: Take, frame: str, image: UInt8[np.ndarray, "h w 3"], rig: Rig) -> Picture | Unreadable:
    try:
        calibration = calibrated(
            take.plan.path,
            (image.shape[0], image.shape[1]),
            world_to_camera=rig.world_to_camera[take.serial],
            intrinsics=rig.intrinsics[take.serial],
            calibrated_size=rig.size,
        )
    except InputError as error:
        return Unreadable(frame=frame, view=take.serial, reason=str(error))
    if take.color is not None:
        image = (
            correct_polynomial(image, take.color) if take.polynomial else correct_affine(image, take.color)
        )
    return Picture(frame=frame, view=take.serial, image=image, calibration=calibration)


def _matrix(value: Any, shape: tuple[int, int] | None = None) -> np.ndarray:
    """An array of what a file holds: numbers of that shape, or an empty array for anything else."""
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return np.zeros(0)
    return array if shape is None or (array.shape == shape and np.isfinite(array).all()) else np.zeros(0)
