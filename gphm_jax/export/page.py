"""One HTML file that plays an avatar: its splats, a few expressions, a clip, and the renderer, with no network."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from gphm_jax import assets
from gphm_jax.export.cloud import SplatCloud
from gphm_jax.export.coarse import CoarseStatement
from gphm_jax.types import Camera

_HERE = pathlib.Path(__file__).parent
_NEEDED_BY = "the HTML page"
# Import name -> (asset package, file), each importing the others by these names.
_LIBRARIES = {
    "three-core": ("three", "build/three.core.min.js"),
    "three": ("three", "build/three.module.min.js"),
    "three/addons/controls/OrbitControls.js": ("three", "examples/jsm/controls/OrbitControls.js"),
    "three/addons/postprocessing/Pass.js": ("three", "examples/jsm/postprocessing/Pass.js"),
    "@sparkjsdev/spark": ("sparkjsdev-spark", "dist/spark.module.min.js"),
}
_FAINT = 1.0 / 255.0  # a splat that never gets more opaque draws nothing
_LEAST_MOVE = 1e-4  # head lengths: below a hundredth of a pixel
LEAST_SHOWN = 0.01  # head lengths: an expression that moves no splat further gets no slider


@dataclasses.dataclass(frozen=True, kw_only=True)
class Performance:
    """What the page plays: the head at rest, expressions with a slider each, and the frames of a clip."""

    rest: SplatCloud
    named: Mapping[str, SplatCloud]
    clip: Sequence[SplatCloud]
    fps: float

    def telling(self) -> Performance:
        """Without the expressions that this avatar's head does not make."""

        def reach(other: SplatCloud) -> float:
            return float(np.linalg.norm(other.means - self.rest.means, axis=-1).max())

        kept = {name: other for name, other in self.named.items() if reach(other) >= LEAST_SHOWN}
        return dataclasses.replace(self, named=kept)


def page(performance: Performance, camera: Camera, size: int, statement: CoarseStatement) -> str:
    """The page; `camera` is the one it opens with, for square pictures of `size` pixels."""
    arrays, data = _packed(performance)
    rest = performance.rest
    scene = {
        "count": len(rest),
        "targets": list(performance.named),
        "clip": {"frames": len(performance.clip), "fps": performance.fps},
        "camera": _camera(camera, size),
        "arrays": arrays,
        "provenance": statement.fields,
    }
    texts = {
        "title": "Avatar",
        "subtitle": _subtitle(performance),
        "generator": statement.generator,
        "description": "; ".join(statement.lines),
        "notes": "",
    }
    parts = {name: html.escape(text) for name, text in texts.items()} | {
        "notes": _notes(statement),
        "style": _read("page.css"),
        "scene": json.dumps(scene, separators=(",", ":")).replace("<", "\\u003c"),
        "data": _compressed(data),
        "libraries": "\n".join(
            f'<script type="text/plain" data-module="{name}" id="library-{k}">{_compressed(_library(name))}</script>'
            for k, name in enumerate(_LIBRARIES)
        ),
        "program": _read("page.js"),
        "loader": _read("page_loader.js"),
        "licences": "\n".join(_licence(package) for package in ("three", "sparkjsdev-spark")),
    }
    text = _read("page.html")
    for name, part in parts.items():
        text = text.replace(f"{{{name}}}", part)
    return text


def _subtitle(performance: Performance) -> str:
    count = f"{len(performance.rest):,} splats"
    parts = [count.replace(",", "\N{NARROW NO-BREAK SPACE}")]
    if performance.clip:
        parts.append(f"a clip of {len(performance.clip)} frames")
    return ", ".join(parts) + ". Drag to turn, scroll or pinch to come closer."


def _notes(statement: CoarseStatement) -> str:
    shown = (
        "A synthetic rendering of a person by a computed 3D avatar, not a photograph. It shows the coarse colour of "
        "the splats, without the avatar's refine network."
    )
    cost = (
        f"Leaving that out costs {statement.cost}."
        if statement.cost_db is not None
        else (f"What leaving that out costs is {statement.cost}.")
    )
    made = f"Made by {statement.generator} on {statement.date}. Licence: {statement.licence}."
    drawn = "Drawn by Spark and three.js (MIT)."
    return f"<p>{html.escape(f'{shown} {cost}')}</p>\n<p>{html.escape(f'{made} {drawn}')}</p>"


def _camera(camera: Camera, size: int) -> dict[str, Any]:
    """The camera as three.js has it, looking at the point of its axis that is nearest to the head's origin."""
    matrix = np.asarray(camera.world_to_camera, np.float64)
    position = -matrix[:3, :3].T @ matrix[:3, 3]
    forward = matrix[2, :3]
    focal = float(np.asarray(camera.intrinsics)[1, 1])
    return {
        "position": position.tolist(),
        "target": (position - forward * (forward @ position)).tolist(),
        "fov": math.degrees(2.0 * math.atan(size / (2.0 * focal))),
        "size": size,
    }


def _packed(performance: Performance) -> tuple[dict[str, Any], bytes]:
    """The head at rest in floats, and every other moment as rounded differences from it: positions of the splats
    that move in 16 bits, all else in 8. The description of each array, and their bytes."""
    others = [*performance.named.values(), *performance.clip]
    seen = np.max([cloud.opacities for cloud in (performance.rest, *others)], axis=0) >= _FAINT
    rest = _columns(performance.rest, seen)
    moments = [_columns(cloud, seen) for cloud in others]
    for moment in moments:  # of a quaternion and its negative, the nearer to the one at rest
        moment["quats"] = np.where(
            np.sum(moment["quats"] * rest["quats"], axis=1, keepdims=True) < 0,
            -moment["quats"],
            moment["quats"],
        )
    buffer = _Arrays()
    for name, values in rest.items():
        buffer.add(name, values.astype(np.float32))
    deltas = {
        name: np.stack([moment[name] - values for moment in moments])
        if moments
        else np.zeros((0, *values.shape), np.float32)
        for name, values in rest.items()
    }
    moved = np.flatnonzero(np.abs(deltas["means"]).max(axis=(0, 2), initial=0.0) > _LEAST_MOVE)
    buffer.add("moved", moved.astype(np.uint32))
    for name, delta in deltas.items():
        shift = delta[:, moved] if name == "means" else delta
        buffer.add_rounded(f"{name}Delta", shift, np.int16 if name == "means" else np.int8)
    return buffer.described, bytes(buffer.data)


def _columns(cloud: SplatCloud, seen: np.ndarray) -> dict[str, Float[np.ndarray, "n *c"]]:
    return {
        "means": cloud.means[seen],
        "quats": cloud.quats[seen],
        "logScales": cloud.log_scales[seen],
        "logits": cloud.opacity_logits[seen],
        "colors": cloud.colors[seen],
    }


class _Arrays:
    """Arrays one after another, each at an offset that its type can be read from."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.described: dict[str, dict[str, Any]] = {}

    def add(self, name: str, values: np.ndarray, step: float = 1.0) -> None:
        self.data += bytes(-len(self.data) % 4)
        self.described[name] = {
            "type": values.dtype.name, "offset": len(self.data), "length": values.size, "step": step,
        }  # fmt: skip
        self.data += values.astype(values.dtype.newbyteorder("<")).tobytes()

    def add_rounded(self, name: str, values: np.ndarray, kind: type[np.integer[Any]]) -> None:
        """Values as integers times one step for the whole array."""
        step = max(float(np.abs(values).max(initial=0.0)) / np.iinfo(kind).max, 1e-12)
        self.add(name, np.rint(values / step).astype(kind), step)


def _library(name: str) -> bytes:
    package, path = _LIBRARIES[name]
    text = assets.find(package, path, needed_by=_NEEDED_BY).read_text(encoding="utf-8")
    # A module without a place of its own cannot import its neighbour by a relative path.
    return text.replace('from"./three.core.min.js"', 'from"three-core"').encode()


def _licence(package: str) -> str:
    """The notice that a copy of the package has to carry."""
    text = assets.find(package, "LICENSE", needed_by=_NEEDED_BY).read_text(encoding="utf-8")
    return f"{package}\n{text.replace('--', '- -')}"  # two dashes may end a comment


def _compressed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, compresslevel=9, mtime=0)).decode("ascii")


def _read(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")
