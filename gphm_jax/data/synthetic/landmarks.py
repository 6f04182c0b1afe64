"""Vertices of the base mesh that stand for the 68 iBUG landmarks."""

from __future__ import annotations

import numpy as np

LANDMARKS = np.array([732] * 68, np.int32)
