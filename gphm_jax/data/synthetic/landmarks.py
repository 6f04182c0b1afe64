"""Vertices of the base mesh that stand for the 68 iBUG landmarks."""

from __future__ import annotations

import numpy as np

# Placed on a frontal render of the neutral mean head, snapped to vertices, mirrored to the left side.
# Order: jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, outer lips 48-59, inner lips 60-67, each from
# the picture's left, which is the person's right.
LANDMARKS = np.array(
    [
        5738, 5715, 5204, 910, 5240, 915, 891, 921, 747, 7623, 7593, 7617, 11849, 7612, 11815,
        12312, 12335, 261, 225, 204, 180, 209, 6984, 6956, 6979, 6999, 7030, 133, 131, 201, 294,
        344, 313, 317, 7076, 7105, 21, 4849, 54, 6765, 4862, 1067, 13361, 6838, 11467, 6805, 7759,
        11480, 500, 5351, 450, 466, 7210, 11953, 7249, 7235, 7241, 492, 486, 480, 437, 472, 474,
        7228, 7197, 7264, 493, 517,
    ],
    np.int32,
)  # fmt: skip
