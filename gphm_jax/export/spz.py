"""SPZ version 3 (github.com/nianticlabs/spz): splats in 20 bytes each, gzipped. It has no room for metadata."""

from __future__ import annotations

import gzip
import struct

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.export.cloud import SplatCloud

MAGIC, VERSION = 0x5053474E, 3
FRACTION_BITS = 12  # of a coordinate: what the format's own library writes; 0.0002 head lengths
_LARGEST = 2**23 - 1
_COLOR_GAIN = 0.15  # a byte holds 0.5 + 0.15 f_dc
_COMPONENT = 2**9 - 1  # 9 bits and a sign hold a component of up to sqrt(1/2)


def splats(cloud: SplatCloud) -> bytes:
    """Header, then positions, alphas, colours, scales and rotations, each for all splats. Its axes are ours.

    24-bit fixed point positions, 8-bit alphas, colours and log scales (steps of 1/16), and quaternions by their
    three smallest components in 10 bits each.
    """
    header = struct.pack("<IIIBBBB", MAGIC, VERSION, len(cloud), 0, FRACTION_BITS, 0, 0)
    fixed = np.clip(np.rint(cloud.means * 2.0**FRACTION_BITS), -_LARGEST, _LARGEST).astype("<i4")
    parts = (
        fixed[..., None].view("u1")[..., :3],
        _byte(255.0 * cloud.opacities),
        _byte(255.0 * (0.5 + _COLOR_GAIN * cloud.coefficients)),
        _byte(16.0 * (cloud.log_scales + 10.0)),
        _smallest_three(cloud.quats),
    )
    # No time in gzip's header: the same avatar gives the same bytes.
    return gzip.compress(header + b"".join(part.tobytes() for part in parts), compresslevel=9, mtime=0)


def _byte(values: Float[np.ndarray, "n *c"]) -> UInt8[np.ndarray, "n *c"]:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _smallest_three(quats: Float[np.ndarray, "n 4"]) -> UInt8[np.ndarray, "n 4"]:
    """Index of the largest of xyzw in the top 2 bits, then the others in order: sign and 9-bit magnitude."""
    xyzw = np.roll(quats, -1, axis=1)
    largest = np.argmax(np.abs(xyzw), axis=1)
    # A quaternion and its negative turn alike: with the largest positive, its sign need not be stored.
    xyzw = np.where(np.take_along_axis(xyzw, largest[:, None], axis=1) < 0.0, -xyzw, xyzw)
    rest = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])[largest]
    small = np.take_along_axis(xyzw, rest, axis=1)
    size = np.minimum(np.rint(np.abs(small) * np.sqrt(2.0) * _COMPONENT), _COMPONENT).astype("<u4")
    field = ((small < 0.0).astype("<u4") << 9) | size
    packed = (largest.astype("<u4") << 30) | (field[:, 0] << 20) | (field[:, 1] << 10) | field[:, 2]
    return packed.astype("<u4")[:, None].view("u1")
