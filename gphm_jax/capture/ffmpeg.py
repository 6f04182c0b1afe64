"""The ffmpeg program as a decoder: which frames a video has, and their pictures, upright.

The program and not OpenCV's decoder: it honours every display matrix (rotations and mirrors), colour matrices and edit
lists, tells each frame's presentation time, decodes AV1, and says what is wrong with a file.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from typing import IO

import numpy as np
from jaxtyping import UInt8

from gphm_jax.errors import InputError

_NO_TIME = -(2**63)
_DISCARDED = 0x4  # a packet that an edit list cuts away: decoded for others, never shown


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoIndex:
    """The frames of a file's first video stream, from its packets; nothing but the first frame was decoded."""

    times: tuple[float, ...]  # seconds since the first frame, ascending: when each is shown
    rate: float | None  # frames a second, pauses aside; None for a single frame
    end: float | None  # seconds since the first frame, by the header, of a file that stops before its end


def index_video(path: pathlib.Path) -> VideoIndex:
    """Reads a video's packets (no decoding: a pass over the file) and decodes its first frame.

    `InputError` when the file is missing, empty, no video, has no video stream, no frames, or an unknown codec.
    """
    _check_file(path)
    streams = ("-map", "0:V:0", "-c", "copy", "-f", "framecrc", "pipe:1")  # V: no cover pictures
    first = ("-map", "0:V:0", "-frames:v", "1", "-f", "null", "-")
    done = subprocess.run(
        [*_program(path), *streams, *first], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    log = done.stderr.decode(errors="replace")
    times = _packet_times(done.stdout.decode(errors="replace"))
    if times and (done.returncode or "Output file is empty" in log):
        raise InputError(
            f"no frame of {path} can be decoded ({_telling_error(log)}): export it again as H.264"
        )
    if done.returncode:
        raise InputError(_refusal(path, log))
    if not times:
        raise InputError(f"{path} holds no video frames: record or export it again")
    steps = np.diff(times)
    # Pauses and lost frames are no part of the rate; the mean of the rest, since containers round times.
    steps = steps[steps <= 1.5 * np.median(steps)] if len(steps) else steps
    rate = 1.0 / float(steps.mean()) if steps.sum() > 0.0 else None
    return VideoIndex(
        times=tuple(time - times[0] for time in times), rate=rate, end=_promised_end(log, times, rate)
    )


def decode_video(
    path: pathlib.Path, *, rate: float, phase: float, max_side: int
) -> Iterator[tuple[float, UInt8[np.ndarray, "h w 3"]]]:
    """(time, RGB picture) of the first frame in each step of 1 / `rate` seconds, upright, square pixels.

    Times are seconds since the first frame; steps are counted from `phase` of a step before it. Pictures whose shorter
    side exceeds `max_side` are scaled to it. Frames that cannot be decoded are left out; the iterator ends early where
    the decoder gives up.
    """
    step = f"floor((t-start_t)*{rate!r}+{phase!r})+1"
    ratio = f"min(1,{max_side}/min(iw*sar,ih))"
    filters = (
        f"select='if(gt({step},ld(1)),st(1,{step}))',"
        f"scale=w='max(1,round(iw*sar*{ratio}))':h='max(1,round(ih*{ratio}))'"
        ":flags=area+accurate_rnd+full_chroma_int,setsar=1,showinfo=checksum=0"
    )
    output = ("-map", "0:V:0", "-vf", filters, "-fps_mode", "passthrough", "-pix_fmt", "rgb24")
    # The log goes to a file: a pipe that nobody reads would stop the program.
    with tempfile.NamedTemporaryFile() as log, open(log.name, "rb") as lines:
        process = subprocess.Popen(
            [*_program(path), *output, "-c:v", "ppm", "-f", "image2pipe", "pipe:1"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        assert process.stdout is not None  # a pipe
        try:
            times = _shown_times(lines)
            start = None
            while (image := _read_ppm(process.stdout)) is not None:
                time = next(times)
                start = time if start is None else start
                yield time - start, image
        finally:
            process.stdout.close()
            process.kill()
            process.wait()


def _program(path: pathlib.Path) -> list[str]:
    try:
        import imageio_ffmpeg  # optional: it carries a program of another licence
    except ImportError as error:
        raise InputError(
            f"reading {path} needs the package imageio-ffmpeg: pip install 'gphm_jax[video]'"
        ) from error
    # As a URL, a path may hold colons or begin with a dash.
    return [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostats", "-copyts", "-i", f"file:{path}"]


def _check_file(path: pathlib.Path) -> None:
    if not path.is_file():
        raise InputError(f"no video file at {path}: check the path")
    try:
        with path.open("rb") as file:
            empty = not file.read(1)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check its permissions") from error
    if empty:
        raise InputError(f"{path} is empty: copy or record it again")


def _refusal(path: pathlib.Path, log: str) -> str:
    if "matches no streams" in log:
        return f"{path} has no video stream: give a file with pictures, not sound alone"
    if match := re.search(r"Video: (\S+)(?: \((\w+))?.*[\s\S]*no decoder found", log):
        name = match[2] if match[1] == "none" else match[1]
        return f"{path} is coded in '{name}', which cannot be decoded here: export it again as H.264"
    return (
        f"{path} is no video that can be read ({_telling_error(log)}): give a video file, or export it again"
    )


def _telling_error(log: str) -> str:
    """The most telling line of a log: the first that speaks of the file's content."""
    lines = [re.sub(r"^\[[^\]]*\]\s*", "", line).strip() for line in log.splitlines()]
    telling = [line for line in lines if re.search(r"not found|nvalid|rror|damaged|corrupt|EOF", line)]
    return telling[0].removesuffix(".") if telling else "unknown reason"


def _packet_times(table: str) -> list[float]:
    """Times of presentation, ascending, of a framecrc table.

    Its lines are: stream, time of decoding, time of presentation, duration, size, checksum, flags where unusual.
    """
    base = Fraction(1)
    packets = []
    for line in table.splitlines():
        if line.startswith("#tb 0:"):
            base = Fraction(line.split(":", 1)[1].strip())
        elif not line.startswith("#"):
            fields = [field.strip() for field in line.split(",")]
            flags = next((int(field[2:], 16) for field in fields[6:] if field.startswith("F=")), 0)
            if not flags & _DISCARDED:
                packets.append((int(fields[1]), int(fields[2])))
    # In AVI files some packets lack the second time; the first differs from it by whole frames.
    column = 0 if any(shown == _NO_TIME for _, shown in packets) else 1
    return [float(time * base) for time in sorted(packet[column] for packet in packets)]


def _promised_end(log: str, times: list[float], rate: float | None) -> float | None:
    """Where a cut-off video should have ended: by the file's header if it says "partial file", or by Matroska's tag."""
    stream = re.search(r"Stream #0:\d+[^\n]*: Video:(?:(?!Stream #)[\s\S])*?DURATION\s*: ([\d:.]+)", log)
    header = re.search(r"Duration: ([\d:.]+)", log) if "partial file" in log else None
    match = header or stream
    if match is None:
        return None
    hours, minutes, seconds = match[1].split(":")
    end = 3600.0 * int(hours) + 60.0 * int(minutes) + float(seconds)
    # Headers round, and durations include the last frame's own: two frames short is not cut off.
    return end - times[0] if end > times[-1] + max(2.5 / (rate or 1.0), 0.1) else None


def _shown_times(log: IO[bytes]) -> Iterator[float]:
    """Presentation times of the frames that have left the filters, from the program's log as it grows.

    The program writes a frame's line before its picture: once a picture is read, its line is there.
    """
    base, rest = Fraction(1), b""
    while chunk := log.read():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if match := re.search(rb"showinfo.*config in time_base: (\d+/\d+)", line):
                base = Fraction(match[1].decode())
            elif match := re.search(rb"showinfo.* n: *\d+ pts: *(-?\d+)", line):
                yield float(int(match[1]) * base)
    raise RuntimeError("the decoder gave a picture without its time")


def _read_ppm(stream: IO[bytes]) -> UInt8[np.ndarray, "h w 3"] | None:
    """The next picture of a stream of binary PPM files; None at its end, or where it is cut off."""
    if stream.readline() != b"P6\n":
        return None
    width, height = (int(word) for word in stream.readline().split())
    stream.readline()  # the largest value, 255 in this pixel format
    pixels = bytearray(width * height * 3)
    view = memoryview(pixels)
    while view:
        count = stream.readinto(view)  # type: ignore[attr-defined]
        if not count:
            return None
        view = view[count:]
    return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)
