"""A fit against the clock: how much of its time is left, and how many steps that makes."""

from __future__ import annotations

import math
import time
from types import TracebackType

import jax


class Clock:
    """The seconds that a fit has worked, over all interruptions, and those that it may.

    It stands still while JAX compiles: that is needed once for each head model, and an avatar should not be the worse
    for being the first. To be used as a context.
    """

    def __init__(self, seconds: float | None = None, *, used: float = 0.0):
        self.seconds = seconds
        self.compiling = 0.0
        self._start = time.monotonic() - used

    def __enter__(self) -> Clock:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event.startswith("/jax/core/compile/"):  # tracing, lowering and XLA; an inner function's is in its caller's
            self.compiling += duration_secs

    def elapsed(self) -> float:
        """Seconds of work so far."""
        return time.monotonic() - self._start - self.compiling

    def left(self) -> float:
        """Seconds to come; infinite without a budget, negative once it is overdrawn."""
        return math.inf if self.seconds is None else self.seconds - self.elapsed()


class Pace:
    """How many steps one part of a fit takes: `length`, which a budget of time cuts or stretches as it goes.

    The part may use `share` of what is left on the clock when it begins, and takes `most` steps at most. Until its
    steps have been timed, `length` is a guess: `steps`, and one more where an interrupted part has done that already.
    """

    def __init__(self, clock: Clock, *, steps: int, share: float = 1.0, most: int | None = None):
        self.timed = clock.seconds is not None
        self.length = steps
        self._clock = clock
        self._end = clock.elapsed() + share * clock.left()
        self._most = math.inf if most is None else most
        self._begun = 0, 0.0

    def begin(self, done: int) -> int:
        """The first of the steps after `done` begins now; without time for any, `length` is `done`."""
        self._begun = done, self._clock.elapsed()
        if self.timed:
            over = self._begun[1] >= self._end or done >= self._most
            self.length = done if over else int(min(max(self.length, done + 1), self._most))
        return self.length

    def __call__(self, done: int) -> int:
        """The length by what steps have cost so far; `done` of them are over, all work finished."""
        if self.timed:
            first, since = self._begun
            now = self._clock.elapsed()
            each = (now - since) / (done - first)
            more = max(0.0, (self._end - now) / each)
            self.length = int(min(done + more, max(done, self._most)))
        return self.length
