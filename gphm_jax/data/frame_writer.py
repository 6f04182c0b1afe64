"""The files of one frame in the dataset layout, written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import cv2
import numpy as np
from jaxtyping import Float, UInt8

JPEG_QUALITY = 97
CROP_QUALITY = 95
STAGING = ".frame-"  # prefix of folders in which frames are made; those of a run that was cut short are left
_FACE_MARGIN = 1.25  # the face crop's side over the landmarks' extent
_FACE_VISIBLE = float(np.cos(np.radians(75.0)))  # a face turned further away counts as hidden
_FOLDERS = ("cameras", "params", "expressions", "images")  # images last: their presence means done


def is_written(identity: pathlib.Path, frame: str) -> bool:
    """Whether a frame of an identity's folder is completely written."""
    return (identity / "images" / frame).is_dir()


@contextlib.contextmanager
def new_frame(identity: pathlib.Path, frame: str) -> Iterator[pathlib.Path]:
    """A folder with `images`, `cameras`, `params` and `expressions` that become the frame's when the block ends."""
    identity.mkdir(parents=True, exist_ok=True)
    staging = pathlib.Path(tempfile.mkdtemp(prefix=STAGING, dir=identity.parent))
    try:
        for name in _FOLDERS:
            (staging / name).mkdir()
        yield staging
        for name in _FOLDERS:
            final = identity / name / frame
            final.parent.mkdir(exist_ok=True)
            if final.exists():  # left by a run that stopped between two renames
                shutil.rmtree(final)
            os.replace(staging / name, final)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def remove_leftovers(dataset: pathlib.Path) -> None:
    """Removes the unfinished frames of runs that were cut short."""
    for leftover in dataset.glob(f"{STAGING}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_view(
    folder: pathlib.Path,
    view: str,
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    world_to_camera: Float[np.ndarray, "3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    recorded: Float[np.ndarray, "4"] | None = None,
) -> None:
    """A picture over white, its coverage and its camera; `recorded` is the box (left, top, right, bottom in pixels) of
    what the camera saw, all of the picture if not given."""
    whole = np.array([0, 0, image.shape[1], image.shape[0]])
    write_jpeg(folder / "images" / f"image_{view}.jpg", image)
    write_mask(folder / "images" / f"mask_{view}.png", mask)
    np.savez(
        folder / "cameras" / f"camera_{view}.npz",
        extrinsic=world_to_camera.astype(np.float32),
        intrinsic=intrinsics.astype(np.float32),
        recorded=(whole if recorded is None else recorded).astype(np.float32),
    )


def write_face(
    folder: pathlib.Path, view: str, image: UInt8[np.ndarray, "h w 3"], box: tuple[float, float, float]
) -> None:
    """The face inside the square `box`, and the picture without it: a view that shows the face has both."""
    face = crop_face(image, box, max(16, image.shape[0] // 2))
    write_jpeg(folder / "images" / f"face_{view}.jpg", face, CROP_QUALITY)
    write_jpeg(folder / "images" / f"nonface_{view}.jpg", black_out(image, box), CROP_QUALITY)


def write_params(
    folder: pathlib.Path,
    *,
    rotation: Float[np.ndarray, "3"],
    translation: Float[np.ndarray, "3"],
    identity: Float[np.ndarray, "ki"],
    expression: Float[np.ndarray, "ke"],
    landmarks: Float[np.ndarray, "68 3"],
) -> None:
    """The tracked pose in head lengths, the face model's coefficients and its landmarks in the world."""
    np.savez(
        folder / "params" / "params.npz",
        pose=np.concatenate([rotation, translation]).astype(np.float32),
        scale=np.ones(1, np.float32),
        id_coeff=identity.astype(np.float32),
        exp_coeff=expression.astype(np.float32),
    )
    np.save(folder / "params" / "lmk_3d.npy", landmarks.astype(np.float32))


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


def face_box(
    landmarks: Float[np.ndarray, "68 3"],
    world_to_camera: Float[np.ndarray, "3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
) -> tuple[float, float, float]:
    """Left, top and side in pixels of the square around the landmarks as a camera sees them."""
    local = landmarks.astype(np.float64) @ world_to_camera[:, :3].T + world_to_camera[:, 3]
    return square_about(local[:, :2] / local[:, 2:] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2])


def square_about(pixels: Float[np.ndarray, "k 2"]) -> tuple[float, float, float]:
    """Left, top and side of the square around a face's landmarks, from the brows to the chin."""
    low, high = pixels.min(0), pixels.max(0)
    side = _FACE_MARGIN * float((high - low).max())
    # The landmarks end at the brows: the box reaches up to take in the forehead.
    centre = 0.5 * (low + high) - np.array([0.0, 0.06 * side])
    return float(centre[0] - side / 2), float(centre[1] - side / 2), side


def shows_face(
    rotation: Float[np.ndarray, "3"], landmarks: Float[np.ndarray, "68 3"], centre: Float[np.ndarray, "3"]
) -> bool:
    """Whether the face is turned less than 75 degrees away from a camera at `centre`."""
    forward = cv2.Rodrigues(np.asarray(rotation, np.float64).reshape(3, 1))[0][:, 2]
    towards = centre - landmarks.mean(0)
    return bool(forward @ towards / np.linalg.norm(towards) > _FACE_VISIBLE)


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
