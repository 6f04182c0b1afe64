"""Parts, lights and cameras to pictures: soft light per vertex once a frame, then cheap views.

All diffuse light (a sky, a large key light, a fill and two rims, every one with shadows) is summed at the
vertices, so it does not depend on the camera and its cost is shared by a frame's views. A view is then
a visibility buffer, a texture look-up and a little gloss, with 2x2 supersampling and exact coverage.
"""

from __future__ import annotations

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from gphm_jax.data.synthetic import kernels

SUPERSAMPLING = 2
_SHADOW_RADIUS = 1.75  # head lengths around the neck that the shadow maps cover
_SHADOW_CENTRE = np.array([0.0, -0.35, 0.0])
# Transparent faces this much behind the surface still show (relative depth): brows and beards hug the skin.
_HUG = np.float32(1.0015)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """How a part answers light. `texture` is RGBA display values; its alpha is coverage on a transparent
    part and gloss on an opaque one. An unlit part shows its texture as it is."""

    texture: UInt8[np.ndarray, "h w 4"]
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)
    grey: float = 0.0  # how far the texture's own hue is taken out before tinting
    transparent: bool = False
    two_sided: bool = True
    specular: float = 0.0
    gloss: float = 20.0
    wrap: tuple[float, float, float] = (0.0, 0.0, 0.0)  # light that bleeds past the shadow line, per channel
    unlit: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """One mesh with its material. `casters` are the faces that throw shadows."""

    vertices: Float[np.ndarray, "n 3"]
    faces: Int[np.ndarray, "f 3"]
    uv_faces: Int[np.ndarray, "f 3"]
    uvs: Float[np.ndarray, "u 2"]
    material: Material
    casters: Int[np.ndarray, "g 3"] | None = None
    normals: Float[np.ndarray, "n 3"] | None = None  # None: from its own faces


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lights:
    """Distant lights: unit directions towards them and linear colours; highlights are (direction, strength)."""

    directions: Float[np.ndarray, "l 3"]
    colours: Float[np.ndarray, "l 3"]
    highlights: Float[np.ndarray, "h 4"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lit:
    """A frame ready to be seen: opaque parts joined in one vertex array, transparent ones in another."""

    opaque: _Joined
    transparent: _Joined
    highlights: Float[np.ndarray, "h 4"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Joined:
    parts: tuple[Part, ...]
    vertices: np.ndarray
    faces: np.ndarray
    uv_faces: np.ndarray
    cull: Bool[np.ndarray, "f"]
    normals: np.ndarray
    irradiance: np.ndarray
    first_vertex: tuple[int, ...]
    first_face: tuple[int, ...]


def _sphere(count: int) -> np.ndarray:
    """Fibonacci directions, evenly over the sphere."""
    k = np.arange(count) + 0.5
    y = 1.0 - 2.0 * k / count
    angle = np.pi * (1.0 + 5.0**0.5) * k
    ring = np.sqrt(1.0 - y * y)
    return np.stack([ring * np.cos(angle), y, ring * np.sin(angle)], 1)


def _disc(axis: np.ndarray, degrees: float, count: int) -> np.ndarray:
    """Directions spread over a cone: a light with a size, hence soft shadows."""
    axis = axis / np.linalg.norm(axis)
    side = np.cross(axis, [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    other = np.cross(axis, side)
    k = np.arange(count)
    radius, angle = np.tan(np.radians(degrees)) * np.sqrt((k + 0.5) / count), k * 2.399963
    spread = axis + radius[:, None] * (np.cos(angle)[:, None] * side + np.sin(angle)[:, None] * other)
    return spread / np.linalg.norm(spread, axis=1, keepdims=True)


def make_lights(rng: np.random.Generator, *, quality: float = 1.0) -> Lights:
    """A studio: sky dome, a broad key, a fill and two rims, slightly different for each person.

    `quality` scales the number of lights that stand for each area (and with it cost and shadow grain).
    """
    flip = -1.0 if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-0.12, 0.12)
    warmth = rng.uniform(-0.03, 0.03)
    key = (np.array([flip * (0.45 + turn), 0.60, 0.85]), 14.0, 8, 0.72, (1.05, 1.0, 0.94))
    fill = (np.array([-flip * 0.85, 0.15, 0.65]), 22.0, 4, 0.30, (0.95, 1.0, 1.06))
    rims = [
        (np.array([-flip * 0.7, 0.5, -0.75]), 20.0, 3, 0.30, (1.0, 1.0, 1.0)),
        (np.array([flip * 0.7, 0.45, -0.8]), 20.0, 3, 0.34, (1.0, 1.0, 1.0)),
    ]
    dome = _sphere(max(8, int(16 * quality)))
    # The sky is brighter than the floor; the factor 2 because half of a dome is behind any surface.
    dome_share = 2.0 * 1.05 / len(dome) * (0.72 + 0.28 * dome[:, 1])
    directions, colours = [dome], [dome_share[:, None] * np.array([0.97, 1.0, 1.05])]
    for axis, degrees, count, power, colour in (key, fill, *rims):
        spread = _disc(axis, degrees, max(2, int(count * quality)))
        directions.append(spread)
        colours.append(np.full((len(spread), 1), power / len(spread)) * np.array(colour))
    tone = np.array([1 + warmth, 1, 1 - warmth])
    highlights = [
        [*(axis / np.linalg.norm(axis)), strength] for (axis, *_), strength in ((key, 1.0), (fill, 0.35))
    ]
    return Lights(
        directions=np.concatenate(directions).astype(np.float32),
        colours=(np.concatenate(colours) * tone).astype(np.float32),
        highlights=np.array(highlights, np.float32),
    )


def _join(parts: tuple[Part, ...]) -> _Joined:
    vertices, faces, uv_faces, cull, normals, first_vertex, first_face = [], [], [], [], [], [0], [0]
    for part in parts:
        normal = part.normals
        if normal is None:
            normal = np.empty_like(part.vertices)
            kernels.vertex_normals(part.vertices, part.faces, normal)
        normals.append(normal)
        vertices.append(part.vertices)
        faces.append(part.faces + first_vertex[-1])
        uv_faces.append(part.uv_faces)
        cull.append(np.full(len(part.faces), not part.material.two_sided))
        first_vertex.append(first_vertex[-1] + len(part.vertices))
        first_face.append(first_face[-1] + len(part.faces))
    empty = not parts
    return _Joined(
        parts=parts,
        vertices=np.zeros((0, 3), np.float32) if empty else np.concatenate(vertices),
        faces=np.zeros((0, 3), np.int32) if empty else np.concatenate(faces).astype(np.int32),
        uv_faces=np.zeros((0, 3), np.int32) if empty else np.concatenate(uv_faces).astype(np.int32),
        cull=np.zeros(0, bool) if empty else np.concatenate(cull),
        normals=np.zeros((0, 3), np.float32) if empty else np.concatenate(normals),
        irradiance=np.zeros((first_vertex[-1], 3), np.float32),
        first_vertex=tuple(first_vertex),
        first_face=tuple(first_face),
    )


def light(parts: list[Part], lights: Lights, *, shadow_size: int = 384) -> Lit:
    """Sums all lights, with shadows, at every vertex of every part."""
    opaque = _join(tuple(p for p in parts if not p.material.transparent))
    transparent = _join(tuple(p for p in parts if p.material.transparent))
    scale = np.float32(shadow_size / (2 * _SHADOW_RADIUS))
    buffer = np.empty((shadow_size, shadow_size), np.float32)
    # One and a half texels: less lets a surface shade itself, more loses the shadow under lip and lids.
    bias = np.float32(1.5 / scale)
    for direction, colour in zip(lights.directions, lights.colours, strict=True):
        side = np.cross(direction, [0.0, 1.0, 0.05])
        side /= np.linalg.norm(side)
        basis = np.stack([side, np.cross(side, direction), -direction]).astype(np.float32)
        placed = []
        for joined in (opaque, transparent):
            local = (joined.vertices - _SHADOW_CENTRE.astype(np.float32)) @ basis.T
            flat = np.ascontiguousarray(local[:, :2] * scale + shadow_size / 2)
            placed.append((flat, np.ascontiguousarray(local[:, 2])))
        buffer[:] = 1e9
        for joined, (flat, depth) in zip((opaque, transparent), placed, strict=True):
            for k, part in enumerate(joined.parts):
                if part.casters is not None:
                    span = slice(joined.first_vertex[k], joined.first_vertex[k + 1])
                    kernels.depth_pass(flat[span], depth[span], part.casters, buffer)
        for joined, (flat, depth) in zip((opaque, transparent), placed, strict=True):
            facing = joined.normals @ direction.astype(np.float32)
            for k, part in enumerate(joined.parts):
                span = slice(joined.first_vertex[k], joined.first_vertex[k + 1])
                turned = np.abs(facing[span]) if part.material.transparent else facing[span]
                reach = bias * (
                    4.0 if part.material.transparent else 1.0
                )  # layers of one wig must not black out
                wrap = np.array(part.material.wrap, np.float32)
                kernels.light_vertices(
                    flat[span], depth[span], turned, buffer, colour, wrap,
                    np.float32(reach), joined.irradiance[span],
                )  # fmt: skip
    return Lit(opaque=opaque, transparent=transparent, highlights=lights.highlights)


def unlit(parts: list[Part], colours: list[Float[np.ndarray, "_ 3"]]) -> Lit:
    """Opaque, unlit parts ready to be seen; `colours` at their vertices multiply the textures, in display values."""
    joined = _join(tuple(parts))
    joined.irradiance[:] = np.concatenate(colours)
    return Lit(opaque=joined, transparent=_join(()), highlights=np.zeros((0, 4), np.float32))


def _project(
    joined: _Joined, world_to_camera: np.ndarray, intrinsics: np.ndarray, factor: int
) -> tuple[np.ndarray, np.ndarray]:
    local = joined.vertices.astype(np.float64) @ world_to_camera[:, :3].T + world_to_camera[:, 3]
    inverse = 1.0 / np.maximum(local[:, 2], 1e-3)
    pixels = local[:, :2] * inverse[:, None] * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2]
    return (pixels * factor).astype(np.float32), inverse.astype(np.float32)


def _box(points: np.ndarray, size: int) -> np.ndarray:
    low, high = np.floor(points.min(0)), np.ceil(points.max(0)) + 1
    return np.clip([low[0], low[1], high[0], high[1]], 0, size).astype(np.int64)


def render(
    lit: Lit,
    world_to_camera: Float[np.ndarray, "3 4"],
    intrinsics: Float[np.ndarray, "3 3"],
    size: int,
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """One view over white: image and coverage. The image is coverage x foreground + (1 - coverage) x white
    in display values, which is how splats are composited."""
    wide = size * SUPERSAMPLING
    nearest = np.zeros((wide, wide), np.float32)
    owner = np.full((wide, wide), -1, np.int32)
    image = np.ones((wide, wide, 4), np.float32)
    image[..., 3] = 0.0
    eye = (-world_to_camera[:, :3].T @ world_to_camera[:, 3]).astype(np.float32)
    solid = lit.opaque
    points, inverse = _project(solid, world_to_camera, intrinsics, SUPERSAMPLING)
    kernels.visibility_pass(points, inverse, solid.faces, solid.cull, nearest, owner)
    for k, part in enumerate(solid.parts):
        material = part.material
        span = slice(solid.first_vertex[k], solid.first_vertex[k + 1])
        first, last = solid.first_face[k], solid.first_face[k + 1]
        if material.unlit:
            kernels.paint_opaque(
                owner, first, last, solid.faces, part.uv_faces, points, inverse, solid.irradiance, part.uvs,
                material.texture, image, _box(points[span], wide),
            )  # fmt: skip
            continue
        kernels.shade_opaque(
            owner, first, last, solid.faces, part.uv_faces, points, inverse, solid.vertices, solid.normals,
            solid.irradiance, part.uvs, material.texture, np.array(material.tint, np.float32), eye,
            lit.highlights, np.float32(material.specular), np.float32(material.gloss), image,
            _box(points[span], wide),
        )  # fmt: skip
    _blend(lit.transparent, world_to_camera, intrinsics, nearest, image)
    small = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA)
    values = np.rint(np.clip(small, 0.0, 1.0) * 255.0).astype(np.uint8)
    return np.ascontiguousarray(values[..., :3]), np.ascontiguousarray(values[..., 3])


def front_share(
    lit: Lit, world_to_camera: Float[np.ndarray, "3 4"], intrinsics: Float[np.ndarray, "3 3"], size: int
) -> float:
    """How much of what a view shows of the opaque parts turns its front to the camera, by the faces' winding."""
    solid = lit.opaque
    points, inverse = _project(solid, world_to_camera, intrinsics, 1)
    nearest, owner = np.zeros((size, size), np.float32), np.full((size, size), -1, np.int32)
    kernels.visibility_pass(points, inverse, solid.faces, np.zeros(len(solid.faces), bool), nearest, owner)
    a, b, c = points[solid.faces[owner[owner >= 0]]].transpose(1, 2, 0)
    # The image's y runs down, so a face seen from outside has a negative area.
    fronts = (b[0] - a[0]) * (c[1] - a[1]) < (c[0] - a[0]) * (b[1] - a[1])
    return float(fronts.mean()) if fronts.size else 1.0


def _blend(
    clear: _Joined,
    world_to_camera: np.ndarray,
    intrinsics: np.ndarray,
    nearest: np.ndarray,
    image: np.ndarray,
) -> None:
    """Transparent parts in the order given (skin-hugging ones first, hair last), each far to near."""
    if not clear.parts:
        return
    points, inverse = _project(clear, world_to_camera, intrinsics, SUPERSAMPLING)
    for k, part in enumerate(clear.parts):
        first, last = clear.first_face[k], clear.first_face[k + 1]
        order = np.argsort(inverse[clear.faces[first:last]].sum(1), kind="stable").astype(np.int32) + first
        kernels.blend_transparent(
            order.astype(np.int32), clear.faces, clear.uv_faces, points, inverse, clear.irradiance, part.uvs,
            part.material.texture, np.array(part.material.tint, np.float32), np.float32(part.material.grey),
            nearest, _HUG, image,
        )  # fmt: skip


def shadow_size(size: int) -> int:
    """Texels of a shadow map for a picture size."""
    return 384 if size >= 384 else 256


def thin(lights: Lights, step: int = 2) -> Lights:
    """Every other light at twice the power: coarser shadows for small crops."""
    return dataclasses.replace(
        lights, directions=lights.directions[::step], colours=lights.colours[::step] * np.float32(step)
    )
