"""The 1 euro filter: still at rest, quick in movement, without lag, and the same for any axes."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gphm_jax.smoothing import smoothed, smoothed_rotations

FILTER = {"fps": 30.0, "cutoff": 1.5, "gain": 5.0}
NOISE = 0.01 * np.random.default_rng(0).standard_normal((90, 3))
STEP = np.repeat([[0.0], [1.0]], 45, axis=0) * [1.0, 0.5, 0.0]


def textbook(values, fps, cutoff, gain):
    """The authors' pseudocode, for one column."""

    def alpha(frequency):
        tau = 1.0 / (2.0 * np.pi * frequency)
        return 1.0 / (1.0 + tau * fps)

    last, speed, out = values[0], 0.0, [values[0]]
    for before, value in zip(values[:-1], values[1:], strict=True):
        speed = alpha(1.0) * (value - before) * fps + (1.0 - alpha(1.0)) * speed
        a = alpha(cutoff + gain * abs(speed))
        last = a * value + (1.0 - a) * last
        out.append(last)
    return np.array(out)


def test_it_is_the_filter_of_the_paper_both_ways():
    column = (STEP + NOISE)[:, 0]
    expected = textbook(column, **FILTER) + textbook(column[::-1], **FILTER)[::-1]
    np.testing.assert_allclose(smoothed(column[:, None], **FILTER)[:, 0], expected / 2, atol=1e-12)


def test_rest_is_still_and_steps_are_kept():
    rest = smoothed(NOISE, **FILTER)
    assert np.abs(np.diff(rest, axis=0)).mean() < 0.3 * np.abs(np.diff(NOISE, axis=0)).mean()
    moved = smoothed(STEP + NOISE, **FILTER)
    assert np.abs(moved - STEP)[[38, 51]].max() < 0.06  # a fifth of a second from the step, on either side
    # No lag: the step is as far behind as ahead.
    assert np.abs((moved - 0.5 * STEP[-1])[:45] + (moved - 0.5 * STEP[-1])[:44:-1]).mean() < 0.02
    np.testing.assert_array_equal(smoothed(STEP[:1], **FILTER), STEP[:1])


def test_rotations_are_filtered_the_same_about_any_axes():
    turns = Rotation.from_rotvec(0.3 * STEP + NOISE)
    plain = Rotation.from_rotvec(smoothed_rotations(turns.as_rotvec(), **FILTER))
    assert (plain * turns.inv()).magnitude().max() < 0.2
    world = Rotation.from_rotvec([0.0, 3.1, 0.0])  # its axis-angles jump at the half turn
    other = Rotation.from_rotvec(smoothed_rotations((world * turns).as_rotvec(), **FILTER))
    assert (world * plain * other.inv()).magnitude().max() == pytest.approx(0.0, abs=1e-6)
