"""A driving clip that plays: what each of its frames makes the head do, and which one is on."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float

from gphm_jax.types import Pose
from gphm_jax.viewer.painter import Moment


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Clip:
    """The frames of a performance, in order."""

    expression: Float[np.ndarray, "t z"]
    motion: Float[np.ndarray, "t z"]
    pose: Pose  # [t]
    fps: float

    def __len__(self) -> int:
        return len(self.expression)

    def moment(self, frame: int) -> Moment:
        """What the head does in a frame."""
        pose = jax.tree.map(lambda x: x[frame], self.pose)
        return Moment(expression=self.expression[frame], motion=self.motion[frame], pose=pose)


class Playback:
    """Where a clip is: off, on a frame, or playing over and over. Any thread may call it."""

    def __init__(self, clip: Clip, clock: Callable[[], float] = time.monotonic) -> None:
        self.clip = clip
        self._clock = clock
        self._lock = threading.Lock()
        self._on = self._playing = False
        self._speed = 1.0
        self._start = 0.0  # frames, at the time `_since`
        self._since = 0.0

    @property
    def playing(self) -> bool:
        """Whether the frame changes by itself."""
        return self._playing

    @property
    def period(self) -> float:
        """Seconds from one frame to the next."""
        return 1.0 / (self.clip.fps * self._speed)

    def frame(self) -> int | None:
        """The frame that is on now; None while the clip is off."""
        with self._lock:
            return int(self._place()) if self._on else None

    def play(self) -> None:
        """Goes on from where it is."""
        self._go_on(self._place(), playing=True)

    def pause(self) -> None:
        """Stays where it is."""
        self._go_on(self._place(), playing=False)

    def seek(self, frame: int) -> None:
        """Shows a frame, and goes on from there if it plays."""
        self._go_on(frame, playing=self._playing)

    def set_speed(self, speed: float) -> None:
        """Plays at so many times the clip's own speed from now on."""
        with self._lock:
            self._start, self._since, self._speed = self._place(), self._clock(), speed

    def stop(self) -> None:
        """Off: the head is the sliders' again."""
        with self._lock:
            self._on = self._playing = False
            self._start = 0.0

    def _go_on(self, frame: float, *, playing: bool) -> None:
        with self._lock:
            self._start, self._since = frame, self._clock()
            self._on, self._playing = True, playing

    def _place(self) -> float:
        passed = (self._clock() - self._since) * self.clip.fps * self._speed if self._playing else 0.0
        return (self._start + passed) % len(self.clip)
