"""Files that appear whole or not at all: text, JSON and pictures."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import pathlib
import secrets
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gphm_jax.errors import InputError

Picture = (
    Float[Array | np.ndarray, "h w"]
    | Float[Array | np.ndarray, "h w c"]
    | UInt8[np.ndarray, "h w"]
    | UInt8[np.ndarray, "h w c"]
)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
    """A path to write to, with the same suffix, that becomes `path` when the block ends without an error.

    Makes the parent folders. After an error nothing is left, and an older `path` is as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so on the same disk: a rename, no copy.
    partial = path.with_name(f".{path.stem}.{secrets.token_hex(4)}{path.suffix}")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raises `InputError` where no file can be written at a path; for programs whose result comes late.

    Makes no folder: the nearest one that is there is tried.
    """
    path = pathlib.Path(path).absolute()
    try:
        if path.is_dir():
            raise InputError(f"{path} is a folder: name a file")
        with tempfile.TemporaryFile(dir=next(folder for folder in path.parents if folder.exists())):
            pass
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): name another file") from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes indented JSON; arrays become lists, paths text, and NaN and infinities null, which JSON lacks."""
    write_text(path, json.dumps(plain(value), indent=2, allow_nan=False) + "\n")


def write_image(path: str | os.PathLike[str], image: Picture) -> None:
    """Writes a picture in the format of the path's suffix: RGB, RGBA or grey; floats in [0, 1] or bytes."""
    with atomic_path(path) as partial:
        partial.write_bytes(encode_image(image, pathlib.Path(path).suffix))


def encode_image(image: Picture, suffix: str, *, quality: int = 92, xmp: bytes = b"") -> bytes:
    """The bytes of a picture file; `suffix` is ".png", ".jpg" or ".webp", `quality` that of the last two.

    `xmp` is a packet of metadata.
    """
    buffer = io.BytesIO()
    kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(suffix.lower(), suffix[1:].upper())
    options: dict[str, Any] = {"quality": quality, "xmp": xmp}
    if kind == "PNG":
        chunks = PngInfo()
        if xmp:
            chunks.add_itxt("XML:com.adobe.xmp", xmp.decode())
        options = {"pnginfo": chunks}
    Image.fromarray(to_bytes(image)).save(buffer, format=kind, **options)
    return buffer.getvalue()


def to_bytes(image: Picture) -> UInt8[np.ndarray, "h w *c"]:
    """A picture as bytes: floats in [0, 1] are clipped and rounded; a single channel loses its axis."""
    pixels = np.asarray(image)
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.dtype == np.uint8:
        return pixels
    return np.round(np.clip(np.nan_to_num(pixels.astype(np.float32)), 0.0, 1.0) * 255.0).astype(np.uint8)


def plain(value: Any) -> Any:
    """The same value in what JSON knows: dict, list, text, number, bool, None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
