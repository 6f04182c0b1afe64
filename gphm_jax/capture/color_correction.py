"""NeRSemble's colour corrections: polynomials in linear light (version 2), affine maps of the values (version 1)."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.errors import InputError

# Cheung, Westland, Connah and Ripamonti (2004): the monomials by their number, in the order of colour-science's
# `matrix_augmented_Cheung2004`, for which the data's matrices were computed.
_CUBIC = "R G B RG RB GB RR GG BB RGB RRG GGB BBR"
_FULL = f"{_CUBIC} RRB GGR BBG RRR GGG BBB"
MONOMIALS = {
    3: "R G B",
    4: "R G B 1",
    5: "R G B RGB 1",
    7: "R G B RG RB GB 1",
    8: "R G B RG RB GB RGB 1",
    10: "R G B RG RB GB RR GG BB 1",
    11: "R G B RG RB GB RR GG BB RGB 1",
    14: "R G B RG RB GB RR GG BB RGB RRR GGG BBB 1",
    16: f"{_CUBIC} RRR GGG BBB",
    17: f"{_CUBIC} RRR GGG BBB 1",
    19: _FULL,
    20: f"{_FULL} 1",
    22: f"{_FULL} RRGB RGGB RGBB",
    35: (f"{_FULL} RRRG RRRB GGGR GGGB BBBR BBBG RRGB RGGB RGBB RRGG RRBB GGBB RRRR GGGG BBBB 1"),
}
ROWS = 128  # corrected at a time, so that the monomials of a whole picture are never in memory

_LINEAR = np.linspace(0.0, 1.0, 256)
_LINEAR = np.where(_LINEAR <= 0.04045, _LINEAR / 12.92, ((_LINEAR + 0.055) / 1.055) ** 2.4).astype(np.float32)
_STEPS = 2**16 - 1  # of linear light: a twentieth of a byte's step where the curve is steepest
_ENCODED = np.arange(_STEPS + 1) / _STEPS
_ENCODED = np.where(_ENCODED <= 0.0031308, 12.92 * _ENCODED, 1.055 * _ENCODED ** (1.0 / 2.4) - 0.055)
_ENCODED = np.rint(255.0 * _ENCODED).astype(np.uint8)


def correct_polynomial(
    image: UInt8[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "3 terms"]
) -> UInt8[np.ndarray, "h w 3"]:
    """An sRGB picture with matrix @ monomials(linear RGB) for its linear colours, clipped to what bytes hold."""
    names = MONOMIALS[matrix.shape[1]].split()
    columns = matrix.T.astype(np.float32)
    result = np.empty_like(image)
    for row in range(0, len(image), ROWS):
        linear = _LINEAR[image[row : row + ROWS]]
        channels = dict(zip("RGB", np.moveaxis(linear, -1, 0), strict=True))
        total = np.zeros_like(linear)
        for name, column in zip(names, columns, strict=True):
            term = np.ones_like(linear[..., 0])
            for letter in name.replace("1", ""):
                term = term * channels[letter]
            total += term[..., None] * column
        result[row : row + ROWS] = _ENCODED[np.rint(np.clip(total, 0.0, 1.0) * _STEPS).astype(np.int32)]
    return result


def correct_affine(
    image: UInt8[np.ndarray, "h w 3"], matrix: Float[np.ndarray, "rows 4"]
) -> UInt8[np.ndarray, "h w 3"]:
    """A picture with values v (rows in [0, 1]) replaced by v @ matrix[:3, :3] + matrix[:3, 3], clipped."""
    turn, shift = matrix[:3, :3].astype(np.float32), 255.0 * matrix[:3, 3].astype(np.float32)
    return np.rint(np.clip(image.astype(np.float32) @ turn + shift, 0.0, 255.0)).astype(np.uint8)


def check_matrix(matrix: np.ndarray, source: object, *, polynomial: bool) -> Float[np.ndarray, "rows terms"]:
    """The matrix itself when it has a shape that can be applied; else `InputError` naming its file."""
    fits = matrix.ndim == 2 and (
        (len(matrix) == 3 and matrix.shape[1] in MONOMIALS)
        if polynomial
        else matrix.shape in ((3, 4), (4, 4))
    )
    if not fits or not np.isfinite(matrix).all():
        expected = "3 rows of 3 to 35 finite terms" if polynomial else "3x4 finite numbers"
        raise InputError(
            f"colour correction in {source} has shape {matrix.shape}: expected {expected}; restore the file"
        )
    return matrix
