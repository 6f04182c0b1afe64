"""Which picture a session gets next: quick ones while it changes, the best one when it rests."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, UInt8

from gphm_jax.avatar import Avatar
from gphm_jax.viewer import frames
from gphm_jax.viewer.painter import Mode, Moment, Painter
from gphm_jax.viewer.session import Session

_SMOOTH = 1 / 15  # seconds that a picture may take while something moves
_REST = 0.15  # seconds without a change before the best picture is worth its time
_FILL = {"fine": 255, "coarse": 255, "points": 255, "alpha": 0}


class Drawing:
    """Draws a session's pictures and shows them; `head` gives the avatar of a person's code, or of none."""

    def __init__(
        self,
        session: Session,
        head: Callable[[Array | None], Avatar],
        show: Callable[[UInt8[np.ndarray, "h w 3"], bool], None],
    ) -> None:
        self._session, self._head, self._show = session, head, show
        self._lock = threading.Lock()
        self._person: Array | None = None
        self._painter: Painter | None = None
        self._frame: int | None = None
        self._expression = session.expression.value()
        self._moment = Moment(expression=self._expression)
        self._seconds: dict[tuple[Mode, tuple[int, int]], float] = {}  # that the last picture of a kind took

    def draw(self, settled: bool) -> float | None:
        """A `Repainter`'s work: shows a picture that is quick enough, or the best one once nothing changes."""
        if self._session.view is None:
            return None
        mode, playback, start = self._session.mode, self._session.playback, time.monotonic()
        playing = playback is not None and playback.playing
        with self._lock:
            way = (mode, 1.0) if settled and not playing else self._quick_enough(mode)
            picture = self._paint(*way)
        self._show(picture, way == (mode, 1.0))
        if playback is not None and playing:
            return max(0.0, start + playback.period - time.monotonic())
        return None if way == (mode, 1.0) else _REST

    def best(self) -> UInt8[np.ndarray, "h w 3"]:
        """The session's picture as well as it can be drawn."""
        with self._lock:
            return self._paint(self._session.mode, 1.0)

    def head(self) -> tuple[Avatar, Moment]:
        """Who is shown, and what it does."""
        with self._lock:
            return self._current_painter().avatar, self._current_moment()

    def _quick_enough(self, mode: Mode) -> tuple[Mode, float]:
        quick: Mode = "coarse" if mode == "fine" else mode
        for way in ((mode, 1.0), (quick, 1.0)):
            if self._seconds.get((way[0], self._size(way[1])), 0.0) <= _SMOOTH:
                return way
        return quick, 0.5

    def _paint(self, mode: Mode, scale: float) -> UInt8[np.ndarray, "h w 3"]:
        size, view = self._size(scale), self._session.view
        assert view is not None  # `draw` asks
        start = time.perf_counter()
        moment = self._current_moment()
        picture = self._current_painter().paint(moment, frames.camera(view, size), size=size, mode=mode)
        # The first of a kind was compiled: its time says nothing of the next.
        known = (mode, size) in self._seconds
        self._seconds[mode, size] = time.perf_counter() - start if known else 0.0
        return frames.fitted(picture, view.canvas, _FILL[mode])

    def _current_painter(self) -> Painter:
        person = None if self._session.person is None else self._session.person.value()
        if self._painter is None or person is not self._person:
            self._person, self._painter = person, Painter(self._head(person))
        return self._painter

    def _current_moment(self) -> Moment:
        playback, expression = self._session.playback, self._session.expression.value()
        frame = None if playback is None else playback.frame()
        if expression is not self._expression or frame != self._frame:
            self._expression, self._frame = expression, frame
            if playback is None or frame is None:
                self._moment = Moment(expression=expression)
            else:
                driven = playback.clip.moment(frame)
                changed = driven.expression + np.asarray(self._session.expression.change())
                self._moment = dataclasses.replace(driven, expression=changed)
        return self._moment

    def _size(self, scale: float) -> tuple[int, int]:
        assert self._session.view is not None
        spec = self._current_painter().avatar.spec
        return frames.picture_size(
            self._session.view.canvas, round(spec.image_size * scale), 4 * spec.networks.refine_patch
        )
