"""The files of a dataset one by one: read, checked, and each fault an `InputError` in one line."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from gphm_jax.data import images
from gphm_jax.data.images import Source
from gphm_jax.errors import InputError

IMAGE_SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")  # the first that exists wins: lossless before lossy
METADATA_KINDS: dict[str, tuple[type, ...]] = {
    "image_size": (int, list),
    "landmark_count": (int,),
    "background": (str,),
    "held_out_views": (list,),
    "held_out_identities": (list,),
    "held_out_frames": (list, dict),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The files of one picture, or a packed dataset's records of them; None where there is none."""

    name: str
    image: Source
    mask: Source | None  # None: the image's alpha channel
    face: Source | None
    nonface: Source | None
    size: tuple[int, int]  # height, width


def read_views(folder: Path) -> tuple[View, ...]:
    """The views of one frame's image folder in natural order, sizes from the files' headers."""
    found = {path.stem: path for suffix in reversed(IMAGE_SUFFIXES) for path in folder.glob(f"*{suffix}")}
    names = [stem.removeprefix("image_") for stem in found if stem.startswith("image_")]
    names = sorted((name for name in names if not name.startswith("lowres_")), key=natural_key)
    if not names:
        raise InputError(
            f"frame without images: {folder} has no image_<view>.jpg: add one or remove the folder"
        )
    views = []
    for name in names:
        image, mask = found[f"image_{name}"], found.get(f"mask_{name}")
        size = images.image_size(image)
        if mask is None and image.suffix in (".jpg", ".jpeg"):
            raise InputError(f"missing mask {folder / f'mask_{name}.png'}: write it, or remove {image.name}")
        if mask is not None and (mask_size := images.image_size(mask)) != size:
            raise InputError(
                f"{mask} is {size_text(mask_size)} but {image.name} is {size_text(size)}: "
                "write the mask at the image's size"
            )
        others = {kind: found.get(f"{kind}_{name}") for kind in ("face", "nonface")}
        views.append(View(name=name, image=image, mask=mask, size=size, **others))
    return tuple(views)


def read_synthesized(folder: Path) -> tuple[Path, ...]:
    """The expression images of one frame; none when the folder is missing."""
    if not folder.is_dir():
        return ()
    found = (path for path in folder.iterdir() if path.suffix in IMAGE_SUFFIXES)
    return tuple(sorted(found, key=lambda path: natural_key(path.name)))


def read_metadata(root: Path) -> dict[str, Any]:
    """dataset.json as it is; empty when there is none (plain Gaussian Head Avatar data)."""
    path = root / "dataset.json"
    if not path.exists():
        return {}
    try:
        metadata = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path} ({error}): repair or delete it") from error
    if not isinstance(metadata, dict):
        raise InputError(f"{path} holds no JSON object: repair or delete it")
    for key, kinds in METADATA_KINDS.items():
        if key in metadata and not isinstance(metadata[key], kinds):
            names = " or ".join(kind.__name__ for kind in kinds)
            raise InputError(f"{path}: {key} is {json.dumps(metadata[key])[:40]}: expected {names}")
    size = metadata.get("image_size", 1)
    if isinstance(size, list) and (len(size) != 2 or not all(isinstance(side, int) for side in size)):
        raise InputError(f"{path}: image_size is {size}: expected one number or [height, width]")
    return metadata


def read_camera(
    path: Path, size: tuple[int, int]
) -> tuple[Float[np.ndarray, "4 4"], Float[np.ndarray, "3 3"], Float[np.ndarray, "4"]]:
    """(world_to_camera, intrinsics, recorded) of one view, whose picture has (height, width) = `size`.

    `recorded` is the box (left, top, right, bottom) of what the camera saw: all of the picture, unless the file says
    that the rest is padding.
    """
    if not path.exists():
        raise InputError(f"missing camera {path}: write it, or remove the view's images")
    arrays = read_npz(path, ("extrinsic", "intrinsic"))
    extrinsic, intrinsic = arrays["extrinsic"], arrays["intrinsic"]
    if extrinsic.shape not in ((3, 4), (4, 4)) or intrinsic.shape != (3, 3):
        raise InputError(
            f"{path}: extrinsic is {extrinsic.shape} and intrinsic {intrinsic.shape}: expected (3, 4) and (3, 3)"
        )
    if not np.isfinite(intrinsic).all() or not np.isfinite(extrinsic).all():
        raise InputError(f"{path} holds NaN or infinite values: calibrate this view again or remove it")
    if min(intrinsic[0, 0], intrinsic[1, 1]) <= 0.0 or abs(np.linalg.det(intrinsic)) < 1e-6:
        raise InputError(
            f"{path}: the intrinsic matrix is not invertible with positive focal lengths: calibrate this view again"
        )
    rotation = extrinsic[:3, :3].astype(np.float64)
    # 1e-2 lets float16 files and hand-written matrices pass and stops scaled or mirrored ones.
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-2 or np.linalg.det(rotation) < 0.0:
        raise InputError(
            f"{path}: the extrinsic's 3x3 part is no rotation: write world-to-camera in OpenCV axes"
        )
    matrix = np.eye(4, dtype=np.float32)
    matrix[:3] = extrinsic[:3]
    whole = np.array([0, 0, size[1], size[0]], np.float32)
    recorded = arrays.get("recorded", whole)
    if recorded.shape == (4,):
        recorded = np.clip(recorded.astype(np.float32), 0, whole[[2, 3, 2, 3]])
    if recorded.shape != (4,) or not (recorded[:2] < recorded[2:]).all():
        raise InputError(
            f"{path}: recorded is {recorded.tolist()}: write (left, top, right, bottom) of what the camera saw"
        )
    return matrix, intrinsic.astype(np.float32), recorded


def read_pose(path: Path) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"], float]:
    """(rotation as axis-angle, translation, scale) of a params.npz; the scale is 1 where it has none."""
    if not path.exists():
        raise InputError(f"frame without params: {path} is missing: track this frame or remove its images")
    arrays = read_npz(path, ("pose",))
    pose = arrays["pose"].astype(np.float32).ravel()
    scale = arrays.get("scale", np.ones(1)).astype(np.float32).ravel()
    if pose.size != 6 or scale.size != 1:
        raise InputError(
            f"{path}: pose has {pose.size} values and scale {scale.size}: expected 6 (axis-angle, translation) and 1"
        )
    if not np.isfinite(pose).all() or not np.isfinite(scale).all() or scale[0] <= 0.0:
        raise InputError(
            f"{path}: the pose is not finite or the scale not positive: track this frame again or remove it"
        )
    return pose[:3], pose[3:], float(scale[0])


def read_landmarks(path: Path) -> Float[np.ndarray, "k 3"]:
    """The fitted 3D landmarks of one frame, world space."""
    if not path.exists():
        raise InputError(f"frame without landmarks: {path} is missing: track this frame or remove its images")
    try:
        landmarks = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(
            f"cannot read {path} ({_reason(error)}): track this frame again or remove it"
        ) from error
    if landmarks.ndim != 2 or landmarks.shape[-1] != 3 or len(landmarks) == 0:
        raise InputError(f"{path} has shape {landmarks.shape}: expected (K, 3), K landmarks in world space")
    if not np.isfinite(landmarks).all():
        raise InputError(f"{path} holds NaN or infinite values: track this frame again or remove it")
    return landmarks.astype(np.float32)


def read_npz(path: Source, required: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Every array of an npz file, never unpickling; `required` names those that must be there."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key]) for key in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"cannot read {path} ({_reason(error)}): write it again") from error
    for key in required:
        if key not in arrays:
            raise InputError(f"{path} has no array '{key}' (it has {listed(sorted(arrays))}): write it again")
    return arrays


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def size_text(size: tuple[int, int]) -> str:
    """(height, width) as people write it, width first."""
    return f"{size[1]}x{size[0]}"


def listed(names: Sequence[str], limit: int = 6) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key under which digits compare as numbers: view_2 before view_10."""
    return tuple(
        (0, int(part), part) if part.isdecimal() else (1, 0, part)
        for part in re.split(r"(\d+)", name)
        if part
    )
