"""A code that a visitor sets: one that was taken, and what sliders add to it."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_jax.viewer.sliders import Sliders

Code = Float[Array | np.ndarray, "z"]


class Dial:
    """A code and its sliders. Any thread may call it; a value is the same object until it changes."""

    def __init__(self, sliders: Sliders, rest: Code) -> None:
        self.sliders = sliders
        self._rest = self._base = jnp.asarray(rest, jnp.float32)
        self._rows = {slider.name: row for row, slider in enumerate(sliders.all)}
        self._values = np.zeros(len(self._rows), np.float32)
        self._value: Array | None = self._base
        self._lock = threading.Lock()

    def set(self, slider: str, value: float) -> None:
        """Moves one slider."""
        with self._lock:
            if self._values[self._rows[slider]] != np.float32(value):
                self._values[self._rows[slider]] = value
                self._value = None

    def set_all(self, values: Mapping[str, float]) -> None:
        """The resting code with these sliders moved, the others at zero."""
        self.relax()
        for slider in self._rows.keys() & values.keys():
            self.set(slider, values[slider])

    def take(self, code: Code) -> None:
        """Takes a code, with all sliders at zero."""
        with self._lock:
            self._base = self._value = jnp.asarray(code, jnp.float32)
            self._values[:] = 0.0

    def relax(self) -> None:
        """Takes the resting code."""
        self.take(self._rest)

    def value(self) -> Array:
        """The code that was taken, changed by the sliders."""
        with self._lock:
            if self._value is None:
                self._value = self._base + self._change()
            return self._value

    def change(self) -> Array:
        """What the sliders add."""
        with self._lock:
            return self._change()

    def _change(self) -> Array:
        return jnp.asarray(self.sliders.change(self._values), jnp.float32)
