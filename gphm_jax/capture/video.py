"""A video file -> a recording by one camera: even time steps, upright pictures."""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

from gphm_jax.capture.ffmpeg import VideoIndex, decode_video, index_video
from gphm_jax.capture.names import safe_name
from gphm_jax.capture.options import DEFAULTS, ReadOptions
from gphm_jax.capture.recording import INTERVAL, Picture, Recording, Unreadable
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

# A frame belongs to the step it falls in, counted from this part of a step before the first frame. Well inside (0, 1),
# so that a frame's time may jitter by a quarter of a step; and no simple fraction, so that no ratio of rates puts
# frames on the border between steps, where rounding would decide.
PHASE = 0.2371
REPEATS = 100  # steps for each frame of a file beyond which its time stamps are taken for damaged


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoPlan:
    """Which frames of a video are kept: the first in each step of 1 / rate seconds."""

    path: pathlib.Path
    rate: float  # steps a second
    # For each kept frame the step whose picture it shows: its own, or one before a pause; None after the file's end.
    steps: tuple[int | None, ...]

    def step(self, time: float) -> int:
        """The step that a time, in seconds since the first frame, falls in."""
        return math.floor(time * self.rate + PHASE)


def open_video(path: str | pathlib.Path, options: ReadOptions = DEFAULTS) -> Recording:
    """One recording of a video file, view "0", frames "0000", "0001", ... at even time steps.

    `options.fps` frames a second, or the video's own rate if that is lower; a moment without a frame (variable frame
    rate, a pause) repeats the one before. Raises `InputError` when the file is no video that can be decoded.
    """
    (plan,) = plan_videos([expanded(path)], options)
    frames = numbered(len(plan.steps))
    return Recording(
        name=safe_name(plan.path.stem),
        source=plan.path,
        frames=frames,
        views=("0",),
        read=functools.partial(_read, plan, frames, options),
        interval=1 / plan.rate if plan.rate > 0 else INTERVAL,  # a single frame has no rate
    )


def plan_videos(paths: Sequence[pathlib.Path], options: ReadOptions) -> tuple[VideoPlan, ...]:
    """The frames to keep of videos that were filmed together: the same times in each; `InputError` as `index_video`."""
    indices = [index_video(path) for path in paths]
    rate = min(_rate(index, options) for index in indices)
    return tuple(_plan(path, index, rate) for path, index in zip(paths, indices, strict=True))


def _rate(index: VideoIndex, options: ReadOptions) -> float:
    own = options.fps if index.rate is None else index.rate
    # Containers round times to milliseconds: a rate just above the limit is the limit.
    rate = own if own <= 1.02 * options.fps else options.fps
    end = index.times[-1] if index.end is None else index.end
    if options.max_frames is not None and end > 0.0:
        rate = min(rate, (options.max_frames - 1) / end)
    return rate


def _plan(path: pathlib.Path, index: VideoIndex, rate: float) -> VideoPlan:
    plan = VideoPlan(path=path, rate=rate, steps=())
    if plan.step(index.times[-1]) > REPEATS * len(index.times):
        last, count = index.times[-1], len(index.times)
        raise InputError(
            f"{path} lasts {last:.0f} s by its time stamps but has {count} frames: export it again"
        )
    shown: list[int | None] = []
    for step in sorted({plan.step(time) for time in index.times}):
        shown += [shown[-1] if shown else step] * (step - len(shown)) + [step]
    if index.end is not None:
        shown += [None] * (plan.step(index.end) - len(shown))
    return dataclasses.replace(plan, steps=tuple(shown))


def read_video(
    plan: VideoPlan, options: ReadOptions
) -> Iterator[tuple[int, UInt8[np.ndarray, "h w 3"] | str]]:
    """Every kept frame of a video in order: (number, picture), or why there is none, in a line that names the file."""
    frames = decode_video(plan.path, rate=plan.rate, phase=PHASE, max_side=options.max_side)
    decoded = ((plan.step(time), image) for time, image in frames)
    step, image = next(decoded, (math.inf, None))
    shown: tuple[float, np.ndarray | None] = (-1, None)
    for number, wanted in enumerate(plan.steps):
        while wanted is not None and step <= wanted:
            shown = (step, image)
            step, image = next(decoded, (math.inf, None))
        if wanted is None:
            yield number, f"{plan.path} ends before frame {number}: it was cut off; copy it again"
        elif shown[0] != wanted or shown[1] is None:
            yield number, f"frame {number} of {plan.path} is damaged and cannot be decoded"
        else:
            yield number, shown[1]


def numbered(count: int) -> tuple[str, ...]:
    """Names of `count` frames: their numbers, as wide as the last and at least four digits."""
    width = max(4, len(str(count - 1)))
    return tuple(f"{number:0{width}d}" for number in range(count))


def _read(plan: VideoPlan, frames: tuple[str, ...], options: ReadOptions) -> Iterator[Picture | Unreadable]:
    for number, result in read_video(plan, options):
        if isinstance(result, str):
            yield Unreadable(frame=frames[number], view="0", reason=result)
        else:
            yield Picture(frame=frames[number], view="0", image=result)
