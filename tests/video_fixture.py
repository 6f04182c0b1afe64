"""Writes small videos with the ffmpeg program: exact, timed, rotated, damaged."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LOSSLESS = ("-c:v", "libx264rgb", "-crf", "0", "-preset", "ultrafast")  # the pictures come back bit for bit
LEVEL = 8  # of grey, by which the pictures of `ramp` differ


def ffmpeg(*arguments: str | Path, data: bytes = b"") -> None:
    """Runs the program, which must succeed."""
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-v", "error", *map(str, arguments)]
    subprocess.run(command, input=data, check=True)


def write_frames(path: Path, pictures: Sequence[np.ndarray], fps: float, *options: str | Path) -> Path:
    """Encodes RGB pictures, without loss where `options` do not say otherwise; returns `path`."""
    height, width = pictures[0].shape[:2]
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "-")
    data = b"".join(picture.tobytes() for picture in pictures)
    ffmpeg(*raw, *(options or LOSSLESS), path, data=data)
    return path


def ramp(count: int, size: tuple[int, int] = (48, 64)) -> list[np.ndarray]:
    """Pictures that tell their number by their grey, and up from down and left from right by a white corner."""
    pictures = []
    for number in range(count):
        picture = np.full((*size, 3), LEVEL * number, np.uint8)
        picture[: size[0] // 4, : size[1] // 4] = 255
        pictures.append(picture)
    return pictures


def number_of(picture: np.ndarray) -> int:
    """The number of a picture of `ramp`, however turned."""
    return round(float(np.median(picture)) / LEVEL)
