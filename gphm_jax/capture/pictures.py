"""One picture file -> RGB bytes, upright, in sRGB, with its alpha channel as a mask."""

from __future__ import annotations

import io
import pathlib
import warnings

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageCms, ImageOps

from gphm_jax.errors import InputError

# What a folder's listing counts as pictures; what a file holds is told from its content.
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".heic", ".heif")
)


def is_picture(path: pathlib.Path) -> bool:
    """Whether a file is named like a picture."""
    return path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")


def read_picture(
    path: pathlib.Path, *, max_side: int | None = None
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    """(RGB, mask) of a picture file of any mode; the mask is None where nothing is transparent.

    EXIF orientation is applied, an embedded colour profile converted to sRGB, grey, CMYK and 16 bits reduced to 8-bit
    RGB. Pictures whose shorter side exceeds `max_side` are scaled to it. A missing, truncated or damaged file is an
    `InputError` in one line that names it.
    """
    try:
        with warnings.catch_warnings():
            # A phone's 108-megapixel photo is no attack; Pillow still refuses twice that.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                if max_side is not None:
                    opened.draft(None, (max_side, max_side))  # JPEG: decodes at a half, quarter or eighth
                image, alpha = _channels(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if max_side is not None:
        size = scaled_size((image.shape[0], image.shape[1]), max_side)
        image, alpha = resized(image, size), None if alpha is None else resized(alpha, size)
    return image, alpha


def read_mask(path: pathlib.Path) -> UInt8[np.ndarray, "h w"]:
    """A mask file as coverage: its alpha channel if something is transparent, else its brightness."""
    image, alpha = read_picture(path)
    return np.ascontiguousarray(image[..., 0]) if alpha is None else alpha


def has_alpha(path: pathlib.Path) -> bool:
    """Whether a picture file can be transparent, by its header; False when it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.has_transparency_data
    except (OSError, ValueError, SyntaxError):
        return False


def scaled_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    """(height, width) with the shorter side at most `max_side`, in the same proportion."""
    ratio = min(1.0, max_side / min(size))
    return max(1, round(size[0] * ratio)), max(1, round(size[1] * ratio))


def resized(image: UInt8[np.ndarray, "a b *c"], size: tuple[int, int]) -> UInt8[np.ndarray, "h w *c"]:
    """A picture at another size: the area filter downwards, bilinear upwards."""
    if image.shape[:2] == size:
        return image
    shrinks = size[0] < image.shape[0]
    return cv2.resize(
        image, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    ).reshape(*size, *image.shape[2:])


def resized_intrinsics(
    intrinsics: Float[np.ndarray, "3 3"], source: tuple[float, float], size: tuple[int, int]
) -> Float[np.ndarray, "3 3"]:
    """Intrinsics of a picture resized from (height, width) = `source` to `size`; pixel centres at +0.5."""
    return np.diag([size[1] / source[1], size[0] / source[0], 1.0]) @ intrinsics


def _channels(image: Image.Image) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"] | None]:
    if image.mode.startswith(("I", "F")):
        return _deep_gray(image), None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        coverage = np.array(image.getchannel("A"))
        alpha = None if (coverage == 255).all() else coverage  # opaque everywhere: it says nothing
    return np.array(_in_srgb(image)), alpha


def _deep_gray(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """16-bit grey, which Pillow's own conversion would clip instead of scale."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        raise ValueError("it holds floating-point values; save it with 8 or 16 bits a channel")
    gray = np.clip(np.rint(values.astype(np.float64) / 257.0), 0, 255).astype(np.uint8)
    return np.repeat(gray[..., None], 3, axis=-1)


def _in_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    if profile and image.mode in ("RGB", "RGBA", "L", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            opaque = image.convert("RGB") if image.mode == "RGBA" else image
            converted = ImageCms.profileToProfile(
                opaque, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
            )
            if converted is not None:
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a broken profile, or one for another mode: the picture is shown without, as viewers do
    return image.convert("RGB")


def _unreadable(path: pathlib.Path, error: Exception) -> InputError:
    if isinstance(error, FileNotFoundError):
        return InputError(f"missing picture {path}: restore the file")
    if path.suffix.lower() in (".heic", ".heif"):
        return InputError(f"cannot decode {path}: HEIC is not read; convert it to JPEG or PNG")
    if path.is_file() and path.stat().st_size == 0:
        return InputError(f"{path} is empty: copy it again")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "cannot identify" in reason:
        reason = "it is no picture of a known kind"
    return InputError(f"cannot decode {path} ({reason}): export it again as JPEG or PNG, or remove it")
