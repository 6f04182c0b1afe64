"""glTF 2.0 as one .glb: splats by KHR_gaussian_splatting (as ratified by Khronos in 2026), and meshes."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gphm_jax.export.cloud import SplatCloud
from gphm_jax.export.surface import Surface
from gphm_jax.provenance import Statement

EXTENSION = "KHR_gaussian_splatting"
_POINTS, _TRIANGLES = 0, 4  # modes of a primitive
_COMPONENT = {"u1": 5121, "u4": 5125, "f4": 5126}
_SHAPE = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_VERTICES, _INDICES = 34962, 34963  # targets of a buffer view


class _Buffer:
    """The binary chunk as it grows, with the views and accessors into it."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(
        self,
        array: np.ndarray,
        *,
        target: int | None = _VERTICES,
        bounds: bool = False,
        normalized: bool = False,
    ) -> int:
        """Appends an array [n] or [n c]; the accessor's index."""
        values = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<")))
        self.views.append({"buffer": 0, "byteOffset": len(self.data), "byteLength": values.nbytes})
        if target is not None:
            self.views[-1]["target"] = target
        self.data += values.tobytes() + bytes(-values.nbytes % 4)
        width = 1 if values.ndim == 1 else values.shape[1]
        accessor: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": _COMPONENT[values.dtype.str[1:]],
            "count": len(values),
            "type": _SHAPE[width],
        }
        if bounds:
            rows = values.reshape(len(values), width)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        if normalized:
            accessor["normalized"] = True
        self.accessors.append(accessor)
        return len(self.accessors) - 1


def splats(frames: Sequence[SplatCloud], statement: Statement, *, fps: float) -> bytes:
    """One splat primitive; programs without the extension show it as coloured points.

    Further frames are morph targets of the positions, played by an animation: the extension names no way to move
    scales, rotations and colours, which stay those of the first frame.
    """
    first, buffer = frames[0], _Buffer()
    primitive: dict[str, Any] = {
        "mode": _POINTS,
        "attributes": {
            "POSITION": buffer.add(first.means, bounds=True),
            "COLOR_0": buffer.add(_point_colors(first), normalized=True),
            f"{EXTENSION}:ROTATION": buffer.add(np.roll(first.quats, -1, axis=1)),  # xyzw
            f"{EXTENSION}:SCALE": buffer.add(first.scales),
            f"{EXTENSION}:OPACITY": buffer.add(np.clip(first.opacities, 0.0, 1.0)),
            f"{EXTENSION}:SH_DEGREE_0_COEF_0": buffer.add(first.coefficients),
        },
        "extensions": {EXTENSION: {"kernel": "ellipse", "colorSpace": "srgb_rec709_display"}},
    }
    content: dict[str, Any] = {
        "extensionsUsed": [EXTENSION],
        "meshes": [{"name": "head", "primitives": [primitive]}],
    }
    if len(frames) > 1:
        primitive["targets"] = [
            {"POSITION": buffer.add(frame.means - first.means, bounds=True)} for frame in frames[1:]
        ]
        content["meshes"][0]["weights"] = [0.0] * (len(frames) - 1)
        content["animations"] = [_animation(buffer, len(frames), fps)]
    return _glb(content, buffer, statement)


def mesh(surface: Surface, statement: Statement) -> bytes:
    """A triangle mesh with vertex normals and colours."""
    buffer = _Buffer()
    primitive = {
        "mode": _TRIANGLES,
        "attributes": {
            "POSITION": buffer.add(surface.vertices, bounds=True),
            "NORMAL": buffer.add(surface.normals),
            "COLOR_0": buffer.add(_linear(surface.colors)),
        },
        "indices": buffer.add(surface.faces.astype(np.uint32).reshape(-1), target=_INDICES),
        "material": 0,
    }
    material = {"pbrMetallicRoughness": {"metallicFactor": 0.0, "roughnessFactor": 0.8}, "doubleSided": True}
    content = {"meshes": [{"name": "head", "primitives": [primitive]}], "materials": [material]}
    return _glb(content, buffer, statement)


def _animation(buffer: _Buffer, frames: int, fps: float) -> dict[str, Any]:
    """Each target's weight is 1 at its own frame and 0 at all others: linear in between."""
    times = buffer.add((np.arange(frames) / fps).astype(np.float32), target=None, bounds=True)
    weights = buffer.add(np.eye(frames, dtype=np.float32)[:, 1:].reshape(-1), target=None)
    return {
        "name": "expressions",
        "samplers": [{"input": times, "output": weights, "interpolation": "LINEAR"}],
        "channels": [{"sampler": 0, "target": {"node": 0, "path": "weights"}}],
    }


def _point_colors(cloud: SplatCloud) -> np.ndarray:
    """What a program without the extension draws: linear RGB and opacity, as core glTF has COLOR_0."""
    rgba = np.concatenate([_linear(cloud.colors), cloud.opacities[:, None]], axis=1)
    return np.rint(255.0 * np.clip(rgba, 0.0, 1.0)).astype(np.uint8)


def _linear(srgb: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """The inverse of sRGB's transfer curve (IEC 61966-2-1)."""
    c = np.clip(srgb, 0.0, 1.0)
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4).astype(np.float32)


def _glb(content: dict[str, Any], buffer: _Buffer, statement: Statement) -> bytes:
    asset = {"version": "2.0", "generator": statement.generator, "copyright": statement.licence}
    document = {
        "asset": asset | {"extras": statement.fields},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        "nodes": [{"name": "head", "mesh": 0}],
        **content,
        "buffers": [{"byteLength": len(buffer.data)}],
        "bufferViews": buffer.views,
        "accessors": buffer.accessors,
    }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(buffer.data)
    return b"".join(
        (
            struct.pack("<4sII", b"glTF", 2, length),
            struct.pack("<I4s", len(text), b"JSON"),
            text,
            struct.pack("<I4s", len(buffer.data), b"BIN\0"),
            bytes(buffer.data),
        )
    )
