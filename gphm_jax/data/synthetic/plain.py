"""What a head wears without the proxies' package: eyes, teeth, hair cap and garment of the base mesh.

Each is a `Proxy` that binds to single base vertices, so expression and motion treat it like the real ones.
"""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Float, Int, UInt8

from gphm_jax.data.synthetic import base, kernels
from gphm_jax.data.synthetic.identity import HAIR_COLOURS, Identity
from gphm_jax.data.synthetic.proxies import Proxy

_IRIS = {
    "brown": (0.30, 0.17, 0.10), "brownlight": (0.45, 0.28, 0.16), "blue": (0.35, 0.50, 0.68),
    "green": (0.38, 0.48, 0.30),
    "grey": (0.48, 0.52, 0.56), "lightblue": (0.50, 0.66, 0.78), "bluegreen": (0.32, 0.52, 0.54),
}  # fmt: skip
_CAP_THICKNESS = {"short": 0.10, "full": 0.20}  # decimetres


def _bound(
    quads: Int[np.ndarray, "q 4"],
    offsets: np.ndarray,
    uvs: np.ndarray,
    texture: UInt8[np.ndarray, "h w 4"],
    hides: np.ndarray,
) -> Proxy:
    """A proxy over some base quads; `offsets` and `uvs` are per base vertex."""
    used, local = np.unique(quads, return_inverse=True)
    local = local.reshape(-1, 4).astype(np.int32)
    faces = np.ascontiguousarray(np.concatenate([local[:, [0, 1, 2]], local[:, [0, 2, 3]]]))
    return Proxy(
        faces=faces,
        uv_faces=faces,
        uvs=uvs[used].astype(np.float32),
        reference=np.repeat(used[:, None], 3, 1).astype(np.int32),
        weights=np.tile(np.array([1.0, 0.0, 0.0], np.float32), (len(used), 1)),
        offsets=offsets[used].astype(np.float32),
        hides=hides,
        texture=texture,
        folder=pathlib.Path(),
    )


def _flat(colour: tuple[float, float, float]) -> UInt8[np.ndarray, "4 4 4"]:
    texture = np.full((4, 4, 4), 255, np.uint8)
    texture[..., :3] = np.rint(np.clip(np.array(colour), 0, 1) * 255)
    return texture


def _normals(vertices: Float[np.ndarray, "v 3"]) -> Float[np.ndarray, "v 3"]:
    quads = base.load().faces["body"][:, :, 0]
    normals = np.empty_like(vertices)
    kernels.vertex_normals(
        vertices, np.ascontiguousarray(np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])), normals
    )
    return normals


def _nothing() -> np.ndarray:
    return np.zeros(len(base.load().vertices), bool)


def eyes(person: Identity) -> Proxy:
    """Both eyeballs, with a painted iris and pupil that turn with the gaze units."""
    mesh = base.load()
    uvs = np.zeros((len(mesh.vertices), 2))
    for side in "lr":
        index = mesh.groups[f"helper-{side}-eye"]
        local = mesh.vertices[index] - mesh.vertices[index].mean(0)
        away = np.arccos(np.clip(local[:, 2] / np.linalg.norm(local, axis=1), -1, 1)) / np.pi
        around = np.arctan2(local[:, 1], local[:, 0])
        uvs[index] = 0.5 + 0.5 * away[:, None] * np.stack([np.cos(around), np.sin(around)], 1)
    size = 512
    y, x = np.mgrid[:size, :size] + 0.5
    radius = np.hypot(x / size - 0.5, y / size - 0.5) * 2.0  # angle from the axis over 180 degrees
    spokes = 1.0 + 0.15 * np.sin(23 * np.arctan2(y - size / 2, x - size / 2)) * np.sin(60 * radius)
    texture = np.empty((size, size, 4), np.float32)
    texture[...] = (0.90, 0.87, 0.85, 1.0)
    iris = np.array(_IRIS.get(person.eye, _IRIS["brown"]))
    inside = radius < 0.16
    texture[inside, :3] = iris * (spokes * np.where(radius > 0.14, 0.5, 1.0))[inside][:, None]
    texture[radius < 0.06, :3] = 0.02
    quads = np.concatenate([mesh.faces[f"helper-{side}-eye"][:, :, 0] for side in "lr"])
    pixels = np.rint(np.clip(texture, 0, 1) * 255).astype(np.uint8)
    return _bound(quads, np.zeros_like(mesh.vertices), uvs, pixels, _nothing())


def mouth(kind: str) -> Proxy:
    """ "teeth" (both rows) or "tongue"."""
    mesh = base.load()
    groups = ("helper-upper-teeth", "helper-lower-teeth") if kind == "teeth" else ("helper-tongue",)
    quads = np.concatenate([mesh.faces[name][:, :, 0] for name in groups])
    colour = (0.93, 0.90, 0.84) if kind == "teeth" else (0.66, 0.33, 0.32)
    zero = np.zeros_like(mesh.vertices)
    return _bound(quads, zero, zero[:, :2] + 0.5, _flat(colour), _nothing())


def hair_cap(person: Identity) -> Proxy:
    """The scalp raised along its normals, with streaks; short or full as the chosen style."""
    mesh = base.load()
    x, y, z = np.abs(mesh.vertices[:, 0]), mesh.vertices[:, 1], mesh.vertices[:, 2]
    line = np.where(z > 0.75, 7.90 - 0.35 * x, np.where(z > 0.3, 7.45, 6.80))
    rise = np.clip((y - line) / 0.22, 0.0, 1.0)
    short = person.sex == "male" or (person.hair or "").startswith("short")
    thickness = _CAP_THICKNESS["short" if short else "full"]
    ears = np.linalg.norm(np.stack([x - 0.80, y - 7.08, 0.6 * (z - 0.40)], 1), axis=1) < 0.42
    scalp = (y > line) & ~ears
    quads = mesh.faces["body"][:, :, 0]
    chosen = quads[scalp[quads].any(1) & ~ears[quads].any(1) & (mesh.vertices[quads][:, :, 1].min(1) > 6.7)]
    offsets = _normals(mesh.vertices) * (0.012 + thickness * rise)[:, None]
    offsets[:, 1] += np.clip(line - y, 0.0, 0.3)  # the edge's vertices move onto the hairline: no teeth
    uvs = np.stack([np.arctan2(mesh.vertices[:, 0], z - 0.4) / (2 * np.pi) + 0.5, (y - 6.5) / 2.2], 1)
    rng = np.random.default_rng(person.texture_seed)
    streaks = 1.0 + 0.22 * rng.uniform(-1, 1, (1, 512, 1)) + 0.08 * rng.uniform(-1, 1, (64, 512, 1))
    colour = np.array(HAIR_COLOURS[person.hair_colour]) * 0.8
    texture = np.full((64, 512, 4), 255, np.uint8)
    texture[..., :3] = np.rint(np.clip(colour * streaks, 0, 1) * 255)
    return _bound(chosen, offsets, uvs, texture, _nothing())


def garment(person: Identity) -> Proxy:
    """A round-necked shirt: the trunk and arms raised a little, hiding the skin inside."""
    mesh = base.load()
    y, z = mesh.vertices[:, 1], mesh.vertices[:, 2]
    below = 5.78 - 0.42 * np.clip(z - 0.1, -0.6, 0.9) - y  # depth under the neckline
    quads = mesh.faces["body"][:, :, 0]
    chosen = quads[(below[quads] > 0).any(1) & (mesh.vertices[quads][:, :, 1].min(1) > base.LOWEST_KEPT)]
    offsets = _normals(mesh.vertices) * (0.05 + 0.04 * np.clip(below / 0.3, 0, 1))[:, None]
    offsets[:, 1] += np.clip(below, -0.3, 0.0)  # likewise onto the neckline
    colour = tuple(0.75 * c for c in person.clothes_tint)
    return _bound(
        chosen, offsets, np.full((len(y), 2), 0.5), _flat((colour[0], colour[1], colour[2])), below > 0.15
    )
