"""What a visitor takes home: a picture, or the head as other programs read it; each says that it is synthetic."""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8

from gphm_jax import files
from gphm_jax.avatar import Avatar
from gphm_jax.export import cloud, gltf, ply, spz
from gphm_jax.export.cloud import SplatCloud
from gphm_jax.export.coarse import CoarseStatement
from gphm_jax.provenance import Statement, image_bytes
from gphm_jax.viewer.painter import Moment

# A head's file by what it is called: its suffix, and what encodes it. Axes are those that programs for it expect.
_FILES: dict[str, tuple[str, Callable[[SplatCloud, CoarseStatement], bytes]]] = {
    "PLY, splats": (".ply", lambda head, statement: ply.splats(head.y_down(), _lines(statement, "y down"))),
    "SPZ, splats": (".spz", lambda head, statement: spz.splats(head)),
    "glTF, splats": (".glb", lambda head, statement: gltf.splats([head], statement, fps=1.0)),
    "PLY, points": (".ply", lambda head, statement: ply.points(head, _lines(statement, "y up"))),
}
HEADS = tuple(_FILES)


def picture(pixels: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """A PNG file of a rendering."""
    return image_bytes(pixels, ".png", Statement())


def head(kind: str, avatar: Avatar, moment: Moment, statement: CoarseStatement) -> dict[str, bytes]:
    """The files of one of `HEADS` by suffix: the splats at one moment, without head pose; beside SPZ what it is."""
    suffix, encode = _FILES[kind]
    splats = avatar.splats(moment.expression, motion=moment.motion)
    saved = {suffix: encode(cloud.cloud(splats), statement)}
    if suffix == ".spz":  # has no room for words
        saved[".spz.json"] = json.dumps(files.plain(statement.fields), indent=2).encode()
    return saved


def _lines(statement: CoarseStatement, axes: str) -> tuple[str, ...]:
    return (*statement.lines, f"axes: {axes}, right-handed; lengths in head lengths")
