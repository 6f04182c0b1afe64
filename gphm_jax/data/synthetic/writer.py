"""Writes frames in the dataset layout: whole or not at all, the same bytes for any worker."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.data.synthetic import cameras, identity, motion, person, renderer, sequence

GENERATOR_VERSION = 1
JPEG_QUALITY = 97
_CROP_QUALITY = 95
FULL_DETAIL_SIZE = 512
_FACE_MARGIN = 1.25  # the face crop's side over the landmarks' extent
_FRAME_FOLDERS = ("cameras", "params", "expressions", "images")  # images last: their presence means done
_GROUP = 8  # expression images come from the eight people around an identity, however many are made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What one dataset holds; everything that decides its bytes."""

    out: pathlib.Path
    first_identity: int
    identities: int
    expressions: int
    frames: int
    views: int
    heldout_views: int
    expression_images: int
    size: int
    seed: int
    capture: str  # "multiview" or "monocular"


def write_jpeg(path: pathlib.Path, image: UInt8[np.ndarray, "h w 3"], quality: int = JPEG_QUALITY) -> None:
    """RGB to JPEG without chroma subsampling: lips and irises keep their colour."""
    options = [
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    ]
    if not cv2.imwrite(str(path), image[..., ::-1], options):
        raise OSError(f"could not write {path}")


def write_mask(path: pathlib.Path, mask: UInt8[np.ndarray, "h w"]) -> None:
    """Coverage to PNG, exact."""
    if not cv2.imwrite(str(path), mask, [cv2.IMWRITE_PNG_COMPRESSION, 3]):
        raise OSError(f"could not write {path}")


def _detail(size: int) -> float:
    """Texture resolution for a picture size; beyond the full one there is nothing more to resolve."""
    return float(np.clip(round(2.0 * size / FULL_DETAIL_SIZE * 4) / 8, 0.25, 1.5))


@functools.lru_cache(maxsize=_GROUP + 2)
def _person(seed: int, index: int, size: int) -> person.Person:
    return person.build(identity.sample(seed=seed, index=index), detail=_detail(size))


def face_box(
    landmarks: Float[np.ndarray, "68 3"],
    world_to_camera: Float[np.ndarray, "3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> tuple[float, float, float]:
    """Left, top and side in pixels of the square around the projected landmarks."""
    local = landmarks.astype(np.float64) @ world_to_camera[:, :3].T + world_to_camera[:, 3]
    pixels = local[:, :2] / local[:, 2:] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
    low, high = pixels.min(0), pixels.max(0)
    side = _FACE_MARGIN * float((high - low).max())
    # The landmarks end at the brows: the box reaches up to take in the forehead.
    centre = 0.5 * (low + high) - np.array([0.0, 0.06 * side])
    return float(centre[0] - side / 2), float(centre[1] - side / 2), side


def crop_face(
    image: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float], size: int
) -> UInt8[np.ndarray, "s s 3"]:
    """The square crop resized to `size`, white outside the picture."""
    left, top, side = box
    scale = side / size
    matrix = np.array([[scale, 0, left + 0.5 * scale - 0.5], [0, scale, top + 0.5 * scale - 0.5]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(255,) * 3
    )


def black_out(
    image: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float]
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with the face square black."""
    left, top, side = box
    out = image.copy()
    out[max(0, round(top)) : max(0, round(top + side)), max(0, round(left)) : max(0, round(left + side))] = 0
    return out


def shows_face(
    rotation: Float[np.ndarray, "3"], landmarks: Float[np.ndarray, "68 3"], centre: Float[np.ndarray, "3"]
) -> bool:
    """Whether the face is turned less than 75 degrees away from a camera at `centre`."""
    forward = motion.rotation_matrix(rotation)[:, 2]
    towards = centre - landmarks.mean(0)
    cosine = forward @ towards / np.linalg.norm(towards)
    return bool(cosine > np.cos(np.radians(cameras.FACE_VISIBLE_ANGLE)))


def _write_views(
    folder: pathlib.Path, request: Request, posed: sequence.FrameState, subject: person.Person, parts: list
) -> None:
    lit = renderer.light(parts, subject.lights, shadow_size=renderer.shadow_size(request.size))
    points = person.landmarks(subject, posed.scores, posed.motion)
    for number, view in posed.views:
        image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, request.size)
        write_jpeg(folder / "images" / f"image_{number}.jpg", image)
        write_mask(folder / "images" / f"mask_{number}.png", mask)
        if shows_face(posed.motion.rotation, points, view.centre):
            box = face_box(points, view.world_to_camera, view.intrinsics)
            face = crop_face(image, box, max(16, request.size // 2))
            write_jpeg(folder / "images" / f"face_{number}.jpg", face, _CROP_QUALITY)
            write_jpeg(folder / "images" / f"nonface_{number}.jpg", black_out(image, box), _CROP_QUALITY)
        np.savez(
            folder / "cameras" / f"camera_{number}.npz",
            extrinsic=view.world_to_camera.astype(np.float32),
            intrinsic=view.intrinsics.astype(np.float32),
        )


def _write_params(folder: pathlib.Path, subject: person.Person, posed: sequence.FrameState) -> None:
    moved = posed.motion
    np.savez(
        folder / "params" / "params.npz",
        pose=np.concatenate([moved.rotation, moved.translation]).astype(np.float32),
        scale=np.ones(1, np.float32),
        id_coeff=subject.identity.coefficients.astype(np.float32),
        exp_coeff=posed.scores.astype(np.float32),
    )
    np.save(folder / "params" / "lmk_3d.npy", person.landmarks(subject, posed.scores, moved))


def _expression_people(index: int, frame: int, count: int, seed: int) -> list[int]:
    first = index // _GROUP * _GROUP
    others = [k for k in range(first, first + _GROUP) if k != index]
    order = np.random.default_rng([seed, 41, index, frame]).permutation(len(others))
    return [others[order[k % len(others)]] for k in range(count)]


def _write_expressions(
    folder: pathlib.Path, request: Request, index: int, frame: int, scores: np.ndarray
) -> None:
    """Face crops of other people with exactly this expression, in their own light, pose and camera."""
    size = max(16, request.size // 2)
    for n, other in enumerate(_expression_people(index, frame, request.expression_images, request.seed)):
        rng = np.random.default_rng([request.seed, 42, index, frame, n])
        subject = _person(request.seed, other, request.size)
        yaw, pitch, roll = np.radians(rng.uniform(-1, 1, 3) * (12, 8, 6))
        moved = motion.compose(
            subject.pivot,
            yaw=yaw,
            pitch=pitch,
            roll=roll,
            nod=np.zeros(3),
            shrug=np.zeros(2),
            sway=np.zeros(3),
        )
        view = cameras.place(float(rng.uniform(-20, 20)), float(rng.uniform(-8, 8)), request.size)
        left, top, side = face_box(
            person.landmarks(subject, scores, moved), view.world_to_camera, view.intrinsics
        )
        zoom = size / side
        close = np.array([[zoom, 0, -zoom * left], [0, zoom, -zoom * top], [0, 0, 1]]) @ view.intrinsics
        parts = person.frame_parts(subject, scores, moved)
        lit = renderer.light(
            parts, renderer.thin(subject.lights), shadow_size=renderer.shadow_size(request.size) // 2
        )
        image, _ = renderer.render(lit, view.world_to_camera, close, size)
        write_jpeg(folder / "expressions" / f"{n}.jpg", image, _CROP_QUALITY)


def frame_name(frame: int) -> str:
    """The folder name of a frame."""
    return f"{frame:04d}"


def identity_name(index: int) -> str:
    """The folder name of an identity."""
    return f"{index:04d}"


def is_done(request: Request, index: int, frame: int) -> bool:
    """Whether a frame is completely written."""
    return (request.out / identity_name(index) / "images" / frame_name(frame)).is_dir()


def write_frame(request: Request, index: int, frame: int) -> int:
    """Renders one frame of one identity with all its files; returns the number of pictures (views)."""
    home = request.out / identity_name(index)
    home.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix=".frame-", dir=request.out))
    try:
        for name in _FRAME_FOLDERS:
            (staging / name).mkdir()
        subject = _person(request.seed, index, request.size)
        posed = sequence.frame_state(request, subject, index, frame)
        _write_views(
            staging, request, posed, subject, person.frame_parts(subject, posed.scores, posed.motion)
        )
        _write_params(staging, subject, posed)
        _write_expressions(staging, request, index, frame, posed.scores)
        for name in _FRAME_FOLDERS:
            final = home / name / frame_name(frame)
            final.parent.mkdir(exist_ok=True)
            if final.exists():  # left by a run that stopped between two renames
                shutil.rmtree(final)
            os.replace(staging / name, final)
        return len(posed.views)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
