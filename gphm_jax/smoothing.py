"""The 1 euro filter (Casiez, Roussel and Vogel 2012): still where a signal rests, quick where it moves."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

_SPEED_CUTOFF = 1.0  # Hz: how much the speed itself is smoothed, as the authors have it


def smoothed(
    values: Float[np.ndarray, "t d"], *, fps: float, cutoff: float, gain: float
) -> Float[np.ndarray, "t d"]:
    """A recorded signal filtered both ways in time and averaged, so that it does not lag behind.

    `cutoff` is that of a signal at rest, in Hz; `gain` raises it by so much for each unit of speed (a second). All
    columns share one speed, the length of their change.
    """
    forwards = _one_euro(values, fps, cutoff, gain)
    backwards = _one_euro(values[::-1], fps, cutoff, gain)[::-1]
    return 0.5 * (forwards + backwards)


def smoothed_rotations(
    rotations: Float[np.ndarray, "t 3"], *, fps: float, cutoff: float, gain: float
) -> Float[np.ndarray, "t 3"]:
    """Axis-angles in radians, filtered about their mean, far from the half turn at which axis-angles jump."""
    turns = Rotation.from_rotvec(rotations)
    mean = turns.mean()
    about = smoothed((mean.inv() * turns).as_rotvec(), fps=fps, cutoff=cutoff, gain=gain)
    return (mean * Rotation.from_rotvec(about)).as_rotvec()


def _one_euro(values: np.ndarray, fps: float, cutoff: float, gain: float) -> np.ndarray:
    shown = np.array(values, np.float64)
    speed = np.zeros(shown.shape[1])
    for t in range(1, len(shown)):
        change = (values[t] - values[t - 1]) * fps
        speed += _weight(_SPEED_CUTOFF, fps) * (change - speed)
        weight = _weight(cutoff + gain * float(np.linalg.norm(speed)), fps)
        shown[t] = shown[t - 1] + weight * (values[t] - shown[t - 1])
    return shown


def _weight(cutoff: float, fps: float) -> float:
    """How much of a new value a low-pass filter of the first order takes."""
    return 1.0 / (1.0 + fps / (2.0 * np.pi * cutoff))
