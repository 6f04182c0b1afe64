"""Sliders for the codes of a head: what each is called, and what all of them together add to a code."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Which ARKit scores belong together, by the beginnings of their names, in the order of a face.
_PARTS = {
    "Eyes": ("eye",),
    "Brows": ("brow",),
    "Jaw": ("jaw",),
    "Mouth": ("mouth", "tongue"),
    "Cheeks and nose": ("cheek", "nose"),
}
_STANDS_ALONE = ("Cheeks and nose",)  # whose names keep their beginnings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slider:
    """One slider; at 0 it changes nothing."""

    name: str
    label: str
    low: float = 0.0
    high: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sliders:
    """Grouped sliders, and the change of the code for their values in the order of the groups."""

    groups: Mapping[str, Sequence[Slider]]
    change: Callable[[Float[np.ndarray, "s"]], Float[Array | np.ndarray, "z"]]

    @property
    def all(self) -> tuple[Slider, ...]:
        """Every slider, group by group."""
        return tuple(slider for group in self.groups.values() for slider in group)


def of_scores(
    names: Sequence[str], code: Callable[[Float[np.ndarray, "s"]], Float[Array | np.ndarray, "z"]]
) -> Sliders:
    """A slider for each ARKit score; `code` gives the expression code of scores in the order of `names`."""
    groups = {
        part: [
            Slider(name=name, label=_label(name, beginning if part not in _STANDS_ALONE else ""))
            for beginning in beginnings
            for name in names
            if name.startswith(beginning)
        ]
        for part, beginnings in _PARTS.items()
    }
    order = [names.index(slider.name) for group in groups.values() for slider in group]
    neutral = jnp.asarray(code(np.zeros(len(names), np.float32)))

    def change(values: Float[np.ndarray, "s"]) -> Float[Array | np.ndarray, "z"]:
        scores = np.zeros(len(names), np.float32)
        scores[order] = values
        return code(scores) - neutral

    return Sliders(groups=groups, change=change)


def of_codes(title: str, changes: Mapping[str, Float[Array | np.ndarray, "z"]], low: float = 0.0) -> Sliders:
    """A slider for each named change of the code, from `low` to 1 times it; they add up."""
    if not changes:
        return Sliders(groups={}, change=lambda values: np.zeros(1, np.float32))
    matrix = jnp.stack([jnp.asarray(change, jnp.float32) for change in changes.values()])
    sliders = [Slider(name=name, label=name, low=low) for name in changes]
    return Sliders(groups={title: sliders}, change=lambda values: jnp.asarray(values, jnp.float32) @ matrix)


def principal_directions(codes: Float[Array | np.ndarray, "n z"], most: int) -> Float[np.ndarray, "d z"]:
    """The main directions in which codes differ from their mean, each two standard deviations long."""
    centered = np.asarray(codes, np.float64) - np.mean(codes, axis=0)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=False)
    kept = min(most, int(np.sum(lengths > 1e-6 * max(float(lengths[0]), 1e-12))))
    deviations = lengths[:kept, None] / np.sqrt(max(1, len(centered) - 1))
    return (2.0 * deviations * directions[:kept]).astype(np.float32)


def _label(name: str, beginning: str) -> str:
    """The words of a score's name: `eyeBlinkLeft` among the eyes is `Blink left`."""
    rest = name.removeprefix(beginning) if name != "tongueOut" else name
    return " ".join(re.findall(r"[A-Z]?[a-z]+", rest)).lower().capitalize()
