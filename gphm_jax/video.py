"""Pictures to an MP4 file."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import pathlib
import subprocess
import tempfile
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from jaxtyping import UInt8

from gphm_jax.errors import InputError, TrainingError
from gphm_jax.files import atomic_path
from gphm_jax.provenance import Statement, mark_video


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sound:
    """The first seconds of a file's sound, and silence where it ends sooner."""

    path: pathlib.Path
    seconds: float


def write_video(
    path: str | os.PathLike[str],
    pictures: Iterable[UInt8[np.ndarray, "h w 3"]],
    *,
    fps: float,
    statement: Statement,
    sound: Sound | None = None,
) -> str:
    """Writes RGB pictures of one size as a marked .mp4 file, which appears whole or not at all; returns the codec used.

    H.264 through imageio-ffmpeg where that is installed (the optional package `video`), which browsers play;
    MPEG-4 through OpenCV, without sound, elsewhere. Odd sizes lose a row or a column: both codecs want even ones.
    """
    iterator = _even(pictures)
    first = next(iterator, None)
    if first is None:
        raise ValueError(f"no picture to write to {path}")
    try:
        import imageio_ffmpeg  # optional: it carries a program of another licence
    except ImportError:
        encode, codec = _encode_mpeg4, "mpeg4"
    else:
        encode, codec = functools.partial(_encode_h264, imageio_ffmpeg.get_ffmpeg_exe(), sound), "h264"
    with atomic_path(path) as partial:
        encode(partial, first, iterator, fps, statement)
        mark_video(partial, statement)
    return codec


def has_sound(path: pathlib.Path) -> bool:
    """Whether a video file has a sound track that can be decoded; False without the optional package `video`."""
    try:
        import imageio_ffmpeg
    except ImportError:
        return False
    program = imageio_ffmpeg.get_ffmpeg_exe()
    # All of it: a track that breaks off in the middle would cost a film that is half drawn.
    command = [program, "-v", "quiet", "-xerror", "-i", f"file:{path}", "-map", "0:a:0", "-f", "null", "-"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0


def _encode_h264(
    program: str,
    sound: Sound | None,
    path: pathlib.Path,
    first: np.ndarray,
    rest: Iterator[np.ndarray],
    fps: float,
    statement: Statement,
) -> None:
    height, width = first.shape[:2]
    form = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps))
    taken: tuple[str, ...] = (*form, "-i", "-")
    coded = ("-c:v", "libx264", "-preset", "fast", "-crf", "20", "-pix_fmt", "yuv420p")
    heard: tuple[str, ...] = ()
    if sound is not None:
        taken = (*taken, "-i", f"file:{sound.path}")
        heard = ("-map", "0:v", "-map", "1:a:0", "-af", "apad", "-t", f"{sound.seconds:.6f}")
        heard = (*heard, "-c:a", "aac", "-b:a", "128k")
    # The index comes first, so that a browser plays a file that is still on its way.
    told = ("-movflags", "+faststart", "-metadata", f"comment={'; '.join(statement.lines)}")
    # Not imageio's own writer: it forks through Python, which may deadlock under JAX's threads.
    command = [program, "-y", "-v", "error", *taken, *coded, *heard, *told, f"file:{path}"]
    # Its words go to a file: a pipe that nobody reads would fill, and both sides would wait for ever.
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=words) as process:
            assert process.stdin is not None  # it is a pipe
            try:
                for picture in itertools.chain([first], rest):
                    process.stdin.write(picture.tobytes())
                process.stdin.close()
            except BrokenPipeError:
                pass  # the program has given up: its own words follow
        words.seek(0)
        said = words.read().decode(errors="replace").strip()
    if process.returncode:
        reason = said.splitlines()[-1] if said else f"ffmpeg ended with status {process.returncode}"
        raise TrainingError(f"cannot encode the video: {reason}")


def _encode_mpeg4(
    path: pathlib.Path, first: np.ndarray, rest: Iterator[np.ndarray], fps: float, statement: Statement
) -> None:
    del statement  # OpenCV writes no comments
    height, width = first.shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, (width, height))
    if not writer.isOpened():
        raise InputError("OpenCV cannot encode the video: `pip install 'gphm_jax[video]'` brings what can")
    try:
        writer.write(cv2.cvtColor(first, cv2.COLOR_RGB2BGR))
        for picture in rest:
            writer.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    finally:
        writer.release()


def _even(pictures: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for picture in pictures:
        height, width = picture.shape[:2]
        yield np.ascontiguousarray(picture[: height - height % 2, : width - width % 2])
