"""What every reader of footage may be told."""

from __future__ import annotations

import dataclasses

from gphm_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How footage is read. Readers ignore what their source does not have."""

    # At most so many frames a second of a video. 30 keeps every frame of ordinary cameras and phones.
    fps: float = 30.0
    max_frames: int | None = None  # at most so many frames of each video, sequence or dataset, spread evenly
    # Bigger pictures are read scaled, shorter side to so many pixels: a head that fills a third of it still gives a
    # 512-pixel crop its full resolution, and a 4K frame is 11 MB instead of 25.
    max_side: int = 1440
    participants: tuple[str, ...] | None = None  # of a dataset of many people; None: all
    sequences: tuple[str, ...] | None = None  # of each participant; None: all
    views: tuple[str, ...] | None = None  # names of cameras; None: all

    def __post_init__(self) -> None:
        for name, value in (("fps", self.fps), ("max_frames", self.max_frames), ("max_side", self.max_side)):
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}: give a positive number")


DEFAULTS = ReadOptions()


def spread(count: int, limit: int | None) -> list[int]:
    """Which of `count` things to keep so that at most `limit` remain, spread evenly over all."""
    if limit is None or count <= limit:
        return list(range(count))
    if limit == 1:
        return [0]
    return [round(index * (count - 1) / (limit - 1)) for index in range(limit)]


def thinned(interval: float, count: int, kept: int) -> float:
    """Seconds between neighbours when `kept` of `count` frames are left that were `interval` apart."""
    return interval * (count - 1) / max(kept - 1, 1) if kept < count else interval


def chosen(names: list[str], wanted: tuple[str, ...] | None, what: str, where: object) -> list[str]:
    """The names that were asked for, in the order of `names`; `InputError` when one of them does not exist."""
    if wanted is None:
        return names
    for name in wanted:
        if name not in names:
            shown = ", ".join(names[:6]) + (" ..." if len(names) > 6 else "")
            raise InputError(f"no {what} '{name}' in {where}: it has {shown or 'none'}")
    return [name for name in names if name in wanted]
