"""Datasets on disk in the layout of Gaussian Head Avatar and Multiview-3DMM-Fitting.

    DATASET/dataset.json                                 optional
    DATASET/<identity>/images/<frame>/image_<view>.{jpg,png,webp}, mask_<view>
                                      face_<view>, nonface_<view>: optional; visible_<view> is not read
    DATASET/<identity>/cameras/<frame>/camera_<view>.npz   extrinsic 3x4 world to camera, intrinsic 3x3 pixels;
                                      recorded (left, top, right, bottom): optional, where the rest is padding
    DATASET/<identity>/params/<frame>/params.npz, lmk_3d.npy
    DATASET/<identity>/expressions/<frame>/<n>.jpg       other identities with this frame's expression

An identity's own folder opens as a dataset of one. Keys of dataset.json read here, all optional:
`image_size` (int or [height, width]), `landmark_count`, `identities` (names), `background` ("white": the
images are composited already), `held_out_views` (names), `held_out_identities` (names), `held_out_frames`
(names, or {identity: names}). Everything is ordered naturally (view 2 before view 10).

Where no view of a whole dataset has a `face_<view>` file (plain Gaussian Head Avatar data), face and
non-face images are cut around the projected landmarks in the views that the face looks towards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Bool, Float, UInt8

from gphm_jax.data import files, images
from gphm_jax.data.files import View
from gphm_jax.data.images import Source
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

FACING = 0.26  # cosine of 75 degrees: a face turned further away counts as hidden where no face file says so


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One instant of one identity: its views, cameras, tracked pose and landmarks."""

    row: int  # in the dataset's frame order: addresses the pose table
    identity_row: int
    identity: str
    name: str
    views: tuple[View, ...]
    world_to_camera: Float[np.ndarray, "v 4 4"]
    intrinsics: Float[np.ndarray, "v 3 3"]  # of the image as stored
    recorded: Float[np.ndarray, "v 4"]  # left, top, right, bottom in that image: beyond it is padding
    rotation: Float[np.ndarray, "3"]
    translation: Float[np.ndarray, "3"]
    scale: float
    landmarks: Float[np.ndarray, "k 3"]  # world space
    facing: Float[np.ndarray, "v"]  # cosine between the face's direction and the direction to the camera
    shows_face: Bool[np.ndarray, "v"]
    synthesized: tuple[Source, ...]
    params: Source  # params.npz


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Dataset:
    """The validated index of a dataset; no pixels."""

    path: Path
    identities: tuple[str, ...]  # row i of the code table belongs to identities[i]
    frames: tuple[Frame, ...]  # by identity, then frame
    landmark_count: int
    image_size: tuple[int, int]  # height, width of the first image, and of all where dataset.json says so
    white_background: bool
    held_out_views: frozenset[str]
    held_out_frames: frozenset[tuple[str, str]]  # (identity, frame)
    held_out_identities: frozenset[str]
    metadata: Mapping[str, Any]  # dataset.json as it is

    @property
    def num_images(self) -> int:
        """Pictures in all frames and views."""
        return sum(len(frame.views) for frame in self.frames)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """A frame and those of its views that may be drawn."""

    frame: Frame
    views: tuple[int, ...]


def is_dataset(path: Path) -> bool:
    """Whether a folder is meant as a dataset or an identity's folder, packed or plain; checks nothing else."""
    from gphm_jax.data import packed  # which builds on this module

    def holds_frames(folder: Path) -> bool:
        return (folder / "images").is_dir() and (folder / "cameras").is_dir()

    if packed.is_packed(path) or (path / "dataset.json").is_file() or holds_frames(path):
        return True
    return any(holds_frames(child) for child in path.iterdir() if child.is_dir())


def open_dataset(path: str | Path, *, workers: int = 1) -> Dataset:
    """Indexes a dataset, plain or packed, or one identity's folder, and checks everything but the pixels.

    Reads every camera, every params file, every landmark file and every image's header. Each fault is an
    `InputError` that names the file and what to do. Pixels are checked when they are decoded. A leading ~ is the
    user's home. Costs under a millisecond an image; more `workers` pay on network disks alone, where the wait is
    not Python's.
    """
    root = expanded(path)
    try:
        return _index(root, workers)
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or root} ({error.strerror}): check its permissions"
        ) from error


def _index(root: Path, workers: int) -> Dataset:
    if not root.is_dir():
        raise InputError(
            f"no dataset at {root}: give a folder in the layout that README shows, or one written by "
            "`python -m gphm_jax.tools.synthesize --out=DIR`"
        )
    from gphm_jax.data import packed  # which builds on this module

    if packed.is_packed(root):
        return packed.read_dataset(root)
    metadata = files.read_metadata(root)
    folders = [root.resolve()] if (root / "images").is_dir() else _identity_folders(root, metadata)
    jobs: list[tuple[int, Path, str]] = []
    for row, folder in enumerate(folders):
        names = _child_folders(folder / "images")
        if not names:
            raise InputError(
                f"identity without frames: {folder / 'images'} has no frame folders: add them or remove {folder}"
            )
        jobs += [(row, folder, name) for name in names]
    with ThreadPoolExecutor(workers) as pool:
        frames = tuple(pool.map(lambda item: _read_frame(*item), enumerate(jobs)))
    if not any(view.face for frame in frames for view in frame.views):
        frames = tuple(dataclasses.replace(frame, shows_face=frame.facing > FACING) for frame in frames)
    identities = tuple(folder.name for folder in folders)
    _check_sizes(root, frames, metadata)
    return Dataset(
        path=root,
        identities=identities,
        frames=frames,
        landmark_count=_check_landmarks(frames, metadata),
        image_size=frames[0].views[0].size,
        white_background=metadata.get("background") == "white",
        metadata=metadata,
        **held_out(root, metadata, identities, frames),
    )


def select(
    dataset: Dataset,
    *,
    identities: Iterable[str] | None = None,
    views: str = "train",
    frames: str = "train",
) -> tuple[Selection, ...]:
    """The frames and views of one side of the split, in the dataset's order.

    `views` and `frames` are each "train", "held_out" or "all". `identities` None means all, less the
    held-out identities; name these to get them. Raises `InputError` when nothing is left.
    """
    for side in (views, frames):
        if side not in ("train", "held_out", "all"):
            raise InputError(f"no such side of the split: '{side}': use train, held_out or all")
    wanted = set(dataset.identities) - dataset.held_out_identities if identities is None else set(identities)
    unknown = sorted(wanted - set(dataset.identities))
    if unknown:
        raise InputError(
            f"no identity '{unknown[0]}' in {dataset.path}: it has {files.listed(dataset.identities)}"
        )
    chosen = []
    for frame in dataset.frames:
        if frame.identity not in wanted or not _on_side(
            (frame.identity, frame.name) in dataset.held_out_frames, frames
        ):
            continue
        kept = tuple(
            n for n, view in enumerate(frame.views) if _on_side(view.name in dataset.held_out_views, views)
        )
        if kept:
            chosen.append(Selection(frame=frame, views=kept))
    if not chosen:
        raise InputError(
            f"{dataset.path} has no images with views={views}, frames={frames}: check dataset.json's held-out lists"
        )
    return tuple(chosen)


def canonical_landmarks(frame: Frame) -> Float[np.ndarray, "k 3"]:
    """A frame's landmarks in canonical space, float64: mapped there by the inverse tracked pose."""
    local = (frame.landmarks.astype(np.float64) - frame.translation) @ rotation_matrix(frame.rotation)
    return local / frame.scale


def mean_canonical_landmarks(selection: Sequence[Selection]) -> Float[np.ndarray, "k 3"]:
    """The mean of all frames' landmarks in canonical space."""
    total = np.zeros(selection[0].frame.landmarks.shape)
    for item in selection:
        total += canonical_landmarks(item.frame)
    return (total / len(selection)).astype(np.float32)


def directions(frame: Frame, views: Sequence[int]) -> Float[np.ndarray, "v 3"]:
    """Unit vectors from the head to cameras of a frame, in the world."""
    return _towards(frame.world_to_camera[list(views)], frame.translation)


def view_intrinsics(frame: Frame, view: int, size: int) -> Float[np.ndarray, "3 3"]:
    """Pixel intrinsics of a view resized to a square of `size` pixels, as `load_view` resizes it."""
    return images.fit_intrinsics(frame.intrinsics[view], frame.views[view].size, size)


def view_recorded(frame: Frame, view: int, size: int) -> Float[np.ndarray, "4"]:
    """The recorded box of a view resized to a square of `size` pixels, as `load_view` resizes it."""
    return images.fit_box(frame.recorded[view], frame.views[view].size, size)


def load_view(
    dataset: Dataset, frame: Frame, view: int, *, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """Image over white and mask, padded to a square and resized to `size` pixels."""
    image, mask = _load_full(dataset, frame, view)
    return images.fit_square(image, size, fill=255), images.fit_square(mask, size, fill=0)


def load_face(dataset: Dataset, frame: Frame, view: int, *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The face image of a view that shows the face."""
    path = frame.views[view].face
    if path is not None:
        return images.read_square(path, size)
    image, _ = _load_full(dataset, frame, view)
    return images.fit_square(images.crop_box(image, _face_box(frame, view)), size, fill=255)


def load_nonface(dataset: Dataset, frame: Frame, view: int, *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """The whole image of a view with the face box black."""
    path = frame.views[view].nonface
    if path is not None:
        return images.read_square(path, size)
    image, _ = _load_full(dataset, frame, view)
    if frame.shows_face[view]:
        image = images.black_out(image, _face_box(frame, view))
    return images.fit_square(image, size, fill=255)


def load_synthesized(frame: Frame, index: int, *, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """One of the frame's synthesized expression images."""
    return images.read_square(frame.synthesized[index], size)


def host(array: np.ndarray) -> Any:
    """The array itself: `Batch` declares JAX arrays, and holds NumPy ones until they are put on a device."""
    return array


def rotation_matrix(axis_angle: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of an axis-angle vector in radians, float64."""
    return cv2.Rodrigues(np.asarray(axis_angle, np.float64).reshape(3, 1))[0]


def _load_full(dataset: Dataset, frame: Frame, view: int) -> tuple[np.ndarray, np.ndarray]:
    record = frame.views[view]
    image = images.read_rgb(record.image)
    mask = images.read_alpha(record.image) if record.mask is None else images.read_gray(record.mask)
    return (image if dataset.white_background else images.over_white(image, mask)), mask


def _face_box(frame: Frame, view: int) -> tuple[int, int, int]:
    return images.face_box(
        images.project(frame.landmarks, frame.world_to_camera[view], frame.intrinsics[view])
    )


# Reading and checking, file by file.


def _identity_folders(root: Path, metadata: Mapping[str, Any]) -> list[Path]:
    listed = metadata.get("identities")
    if isinstance(listed, list) and listed:
        names = []
        for item in listed:
            if isinstance(item, dict) and "name" not in item:
                raise InputError(f'{root / "dataset.json"} lists an identity without a name: add "name"')
            names.append(str(item["name"]) if isinstance(item, dict) else str(item))
        names.sort(key=files.natural_key)
        for name in names:
            if not (root / name).is_dir():
                raise InputError(
                    f"identity '{name}' of {root / 'dataset.json'} has no folder {root / name}: restore it"
                )
    else:
        parts = ("images", "cameras", "params")
        names = [
            name for name in _child_folders(root) if any((root / name / part).is_dir() for part in parts)
        ]
    if not names:
        raise InputError(
            f"no identities in {root}: expected {root}/<identity>/images/<frame>/image_<view>.jpg"
        )
    return [root / name for name in names]


def _read_frame(row: int, job: tuple[int, Path, str]) -> Frame:
    identity_row, folder, name = job
    views = files.read_views(folder / "images" / name)
    cameras = [
        files.read_camera(folder / "cameras" / name / f"camera_{view.name}.npz", view.size) for view in views
    ]
    world_to_camera = np.stack([extrinsic for extrinsic, _, _ in cameras])
    rotation, translation, scale = files.read_pose(folder / "params" / name / "params.npz")
    facing = _facing(world_to_camera, rotation, translation)
    return Frame(
        row=row,
        identity_row=identity_row,
        identity=folder.name,
        name=name,
        views=views,
        world_to_camera=world_to_camera,
        intrinsics=np.stack([intrinsic for _, intrinsic, _ in cameras]),
        recorded=np.stack([recorded for _, _, recorded in cameras]),
        rotation=rotation,
        translation=translation,
        scale=scale,
        landmarks=files.read_landmarks(folder / "params" / name / "lmk_3d.npy"),
        facing=facing,
        shows_face=np.array([view.face is not None for view in views]),
        synthesized=files.read_synthesized(folder / "expressions" / name),
        params=folder / "params" / name / "params.npz",
    )


def _facing(world_to_camera: np.ndarray, rotation: np.ndarray, translation: np.ndarray) -> np.ndarray:
    return (_towards(world_to_camera, translation) @ rotation_matrix(rotation)[:, 2]).astype(np.float32)


def _towards(world_to_camera: np.ndarray, point: np.ndarray) -> np.ndarray:
    centres = -np.einsum("vji,vj->vi", world_to_camera[:, :3, :3], world_to_camera[:, :3, 3])
    offset = centres - point
    # A camera at the point itself has no direction: the floor gives it the zero vector.
    return offset / np.maximum(np.linalg.norm(offset, axis=-1, keepdims=True), 1e-6)


def _check_sizes(root: Path, frames: Sequence[Frame], metadata: Mapping[str, Any]) -> None:
    declared = metadata.get("image_size")
    if declared is None:
        return
    expected = (declared, declared) if isinstance(declared, int) else tuple(declared)
    for frame in frames:
        for view in frame.views:
            if view.size != expected:
                raise InputError(
                    f"{view.image} is {files.size_text(view.size)} but {root / 'dataset.json'} says "
                    f"{files.size_text(expected)}: resize it with its intrinsics"
                )


def _check_landmarks(frames: Sequence[Frame], metadata: Mapping[str, Any]) -> int:
    count = int(metadata.get("landmark_count", len(frames[0].landmarks)))
    for frame in frames:
        if len(frame.landmarks) != count:
            path = Path(str(frame.params)).with_name("lmk_3d.npy")
            raise InputError(
                f"{path} has shape {frame.landmarks.shape}: expected ({count}, 3) as in the rest of the dataset"
            )
    return count


def held_out(
    root: Path, metadata: Mapping[str, Any], identities: Sequence[str], frames: Sequence[Frame]
) -> dict[str, frozenset]:
    """The held-out fields of a `Dataset` from dataset.json's content; raises where it names what is not there."""
    listed = metadata.get("held_out_frames", [])
    pairs = {(frame.identity, frame.name) for frame in frames}
    if isinstance(listed, dict):
        for identity, names in listed.items():
            if not isinstance(names, list):
                raise InputError(
                    f"{root / 'dataset.json'}: held_out_frames of {identity} is {names!r}: expected a list of names"
                )
        held = {(str(identity), str(name)) for identity, names in listed.items() for name in names}
        unknown = held - pairs
    else:
        wanted = {str(name) for name in listed}
        held = {pair for pair in pairs if pair[1] in wanted}
        unknown = {("any identity", name) for name in wanted - {pair[1] for pair in pairs}}
    views = frozenset(str(name) for name in metadata.get("held_out_views", []))
    people = frozenset(str(name) for name in metadata.get("held_out_identities", []))
    for kind, missing in (
        ("frame", sorted(f"{name} of {identity}" for identity, name in unknown)),
        ("view", sorted(views - {view.name for frame in frames for view in frame.views})),
        ("identity", sorted(people - set(identities))),
    ):
        if missing:
            raise InputError(
                f"{root / 'dataset.json'} holds out {kind} {missing[0]}, which does not exist: correct the list"
            )
    return {"held_out_views": views, "held_out_frames": frozenset(held), "held_out_identities": people}


def _child_folders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(
        (item.name for item in folder.iterdir() if item.is_dir() and item.name[0] != "."),
        key=files.natural_key,
    )


def _on_side(held_out: bool, side: str) -> bool:
    return side == "all" or held_out == (side == "held_out")
