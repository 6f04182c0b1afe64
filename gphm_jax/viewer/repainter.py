"""A thread that keeps a picture up to date: of many changes it draws the last."""

from __future__ import annotations

import threading
from collections.abc import Callable

from absl import logging


class Repainter:
    """Once started, calls `draw` after each `touch`; touches that come while it draws are one.

    `draw(settled)` learns whether nothing has changed since it last drew, and returns after how many seconds it wants
    to be called again without a change (None: not before the next). What it raises is logged, and it goes on.
    """

    def __init__(self, draw: Callable[[bool], float | None]) -> None:
        self._draw = draw
        self._changes = threading.Condition()
        self._touched = self._closed = False
        self._thread = threading.Thread(target=self._run, name="repainter", daemon=True)

    def start(self) -> None:
        """Begins with what was touched before."""
        self._thread.start()

    def touch(self) -> None:
        """Something has changed."""
        with self._changes:
            self._touched = True
            self._changes.notify()

    def close(self) -> None:
        """Draws no more; returns when the thread has ended."""
        with self._changes:
            self._closed = True
            self._changes.notify()
        self._thread.join()

    def _run(self) -> None:
        pause: float | None = None
        while True:
            with self._changes:
                self._changes.wait_for(lambda: self._touched or self._closed, pause)
                if self._closed:
                    return
                settled, self._touched = not self._touched, False
            try:
                pause = self._draw(settled)
            except Exception:
                logging.exception("a picture could not be drawn")
                pause = None
