"""Scans made of synthetic heads: as the file formats of scanners have them, in any unit and any axes."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from unittest import mock

import cv2
import numpy as np
import trimesh
from PIL import Image
from scipy.spatial.transform import Rotation

from gphm_jax.capture.scans import UNMOVED, Similarity
from gphm_jax.data.synthetic import base, identity, motion, person, proxies, renderer
from gphm_jax.data.synthetic.cameras import View
from gphm_jax.data.synthetic.renderer import Part

_TILE = 256  # pixels of a part's texture in an atlas


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Head:
    """A lit head in canonical space, and its landmarks."""

    parts: tuple[Part, ...]
    light: tuple[np.ndarray, ...]  # display values at the parts' vertices
    landmarks: np.ndarray


@functools.lru_cache(maxsize=4)
def head(index: int = 1, jaw: float = 0.0) -> Head:
    """A synthetic person, all of whose parts are opaque, with an open mouth or without."""
    with mock.patch.object(proxies, "available", return_value=False):
        subject = person.build(identity.sample(seed=11, index=index), detail=0.5, light_quality=0.5)
    scores = np.zeros(52, np.float32)
    scores[base.ARKIT.index("jawOpen")] = jaw
    still = motion.still(subject.pivot)
    lit = renderer.light(person.frame_parts(subject, scores, still), subject.lights, shadow_size=256)
    solid = lit.opaque
    spans = zip(solid.first_vertex[:-1], solid.first_vertex[1:], strict=True)
    return Head(
        parts=solid.parts,
        # What the renderer makes of a texture is the square root of light times its square, about.
        light=tuple(np.sqrt(np.clip(solid.irradiance[first:last], 0, 1)) for first, last in spans),
        landmarks=person.landmarks(subject, scores, still),
    )


def elsewhere(*, unit: float, turn: str, degrees: float, shift: tuple[float, float, float]) -> Similarity:
    """Canonical space to a scanner's."""
    rotation = Rotation.from_euler(turn, degrees, degrees=True).as_matrix()
    return Similarity(scale=unit, rotation=rotation, shift=np.array(shift, float))


def write_obj(path: pathlib.Path, shown: Head, place: Similarity) -> pathlib.Path:
    """A file with a material and a picture for every part, as scanning programs write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines, materials, first_vertex, first_uv = [f"mtllib {path.stem}.mtl"], [], 1, 1
    for number, part in enumerate(shown.parts):
        name = f"{path.stem}_{number}"
        Image.fromarray(part.material.texture[..., :3]).save(path.parent / f"{name}.png")
        materials.append(f"newmtl {name}\nKd 1 1 1\nmap_Kd {name}.png\n")
        lines += ["v {:.6f} {:.6f} {:.6f}".format(*vertex) for vertex in place(part.vertices.astype(float))]
        lines += ["vt {:.6f} {:.6f}".format(*uv) for uv in part.uvs]
        lines.append(f"usemtl {name}")
        corners = np.stack([part.faces + first_vertex, part.uv_faces + first_uv], -1).reshape(-1, 6)
        lines += ["f {}/{} {}/{} {}/{}".format(*face) for face in corners]
        first_vertex, first_uv = first_vertex + len(part.vertices), first_uv + len(part.uvs)
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text("\n".join(materials))
    return path


def write_glb(path: pathlib.Path, shown: Head, place: Similarity) -> pathlib.Path:
    """One file with all pictures inside; the scene's graph holds the place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = place.scale * place.rotation, place.shift
    scene = trimesh.Scene()
    for part in shown.parts:
        pairs = np.stack([part.faces, part.uv_faces], -1).reshape(-1, 2)
        corners, faces = np.unique(pairs, axis=0, return_inverse=True)
        picture = Image.fromarray(part.material.texture[..., :3])
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=picture)
        visual = trimesh.visual.TextureVisuals(uv=part.uvs[corners[:, 1]], material=material)
        mesh = trimesh.Trimesh(
            part.vertices[corners[:, 0]], faces.reshape(-1, 3), visual=visual, process=False
        )
        scene.add_geometry(mesh, transform=matrix)
    path.write_bytes(scene.export(file_type="glb"))
    return path


def write_coloured_ply(path: pathlib.Path, shown: Head, place: Similarity) -> pathlib.Path:
    """One mesh whose vertices have colours, light and all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    vertices, faces, colours, first = [], [], [], 0
    for part, light in zip(shown.parts, shown.light, strict=True):
        vertices.append(place(part.vertices.astype(float)))
        faces.append(part.faces + first)
        colours.append(255 * light * at_vertices(part))
        first += len(part.vertices)
    trimesh.Trimesh(
        np.concatenate(vertices),
        np.concatenate(faces),
        vertex_colors=np.rint(np.concatenate(colours)).astype(np.uint8),
        process=False,
    ).export(path)
    return path


def write_textured_ply(path: pathlib.Path, shown: Head, place: Similarity) -> pathlib.Path:
    """One mesh with one picture, texture coordinates at the corners of its faces: as NPHM has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(shown.parts)
    tiles = [cv2.resize(part.material.texture[..., :3], (_TILE, _TILE)) for part in shown.parts]
    Image.fromarray(np.hstack(tiles)).save(path.with_suffix(".png"))
    vertices, rows, first = [], [], 0
    for number, part in enumerate(shown.parts):
        vertices.append(place(part.vertices.astype(float)))
        inside = np.clip(part.uvs, 0.5 / _TILE, 1 - 0.5 / _TILE)
        corners = ((inside + [number, 0]) / [count, 1])[part.uv_faces].reshape(-1, 6)
        for face, corner in zip(part.faces + first, corners, strict=True):
            rows.append("3 {} {} {} 6 {:.6f} {:.6f} {:.6f} {:.6f} {:.6f} {:.6f}".format(*face, *corner))
        first += len(part.vertices)
    points = np.concatenate(vertices)
    header = (
        f"ply\nformat ascii 1.0\ncomment TextureFile {path.stem}.png\nelement vertex {len(points)}\n"
        "property float x\nproperty float y\nproperty float z\n"
        f"element face {len(rows)}\nproperty list uchar int vertex_indices\n"
        "property list uchar float texcoord\nend_header\n"
    )
    body = "\n".join(["{:.6f} {:.6f} {:.6f}".format(*point) for point in points] + rows)
    path.write_text(header + body + "\n")
    return path


def at_vertices(part: Part) -> np.ndarray:
    """The texture's colour at each vertex, in [0, 1]."""
    height, width = part.material.texture.shape[:2]
    uvs = np.zeros((len(part.vertices), 2))
    uvs[part.faces.ravel()] = part.uvs[part.uv_faces.ravel()]
    rows = np.clip(((1 - uvs[:, 1]) * height).astype(int), 0, height - 1)
    columns = np.clip((uvs[:, 0] * width).astype(int), 0, width - 1)
    return part.material.texture[rows, columns, :3] / 255


def drawn(
    shown: Head, view: View, size: int, *, light: bool, place: Similarity = UNMOVED
) -> tuple[np.ndarray, np.ndarray]:
    """The head itself, moved, with the colours that a scan of it has: of its textures, or of its vertices."""
    parts, colours = [], []
    for part, values in zip(shown.parts, shown.light, strict=True):
        texture = np.full((1, 1, 4), 255, np.uint8) if light else part.material.texture
        material = dataclasses.replace(part.material, texture=texture, unlit=True, two_sided=True)
        vertices = np.float32(place(part.vertices.astype(float)))
        parts.append(dataclasses.replace(part, vertices=vertices, material=material))
        colours.append(np.float32(values * at_vertices(part)) if light else np.ones_like(part.vertices))
    lit = renderer.unlit(parts, colours)
    return renderer.render(lit, view.world_to_camera, view.intrinsics, size)
