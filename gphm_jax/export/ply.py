"""PLY: splats in the layout of the 3DGS trainer, which splat viewers read; and plain coloured points."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gphm_jax.export.cloud import SplatCloud
from gphm_jax.files import to_bytes

SPLAT_PROPERTIES = (
    "x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity",
    "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3",
)  # fmt: skip


def splats(cloud: SplatCloud, comments: Sequence[str]) -> bytes:
    """Binary little-endian floats: position, zero normal, degree-0 coefficient, logit, log scales, wxyz."""
    columns = (
        cloud.means, np.zeros_like(cloud.means), cloud.coefficients, cloud.opacity_logits[:, None],
        cloud.log_scales, cloud.quats,
    )  # fmt: skip
    rows = np.concatenate(columns, axis=1).astype("<f4")
    return _header(len(rows), [f"float {name}" for name in SPLAT_PROPERTIES], comments) + rows.tobytes()


def points(cloud: SplatCloud, comments: Sequence[str], *, least_opacity: float = 0.1) -> bytes:
    """Centres with colours as bytes; splats too faint to be seen are left out."""
    kept = cloud.opacities >= least_opacity
    names = [*(f"float {axis}" for axis in "xyz"), *(f"uchar {name}" for name in ("red", "green", "blue"))]
    rows = np.zeros(int(kept.sum()), np.dtype([("position", "<f4", 3), ("color", "u1", 3)]))
    rows["position"] = cloud.means[kept]
    rows["color"] = to_bytes(cloud.colors[None, kept])[0]
    return _header(len(rows), names, comments) + rows.tobytes()


def _header(count: int, properties: Sequence[str], comments: Sequence[str]) -> bytes:
    lines = [
        "ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in comments),
        f"element vertex {count}", *(f"property {entry}" for entry in properties), "end_header", "",
    ]  # fmt: skip
    return "\n".join(lines).encode("ascii", errors="replace")
