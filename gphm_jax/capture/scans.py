"""Textured head scans: whose they are, and one file -> surfaces that the head renderer draws.

    ROOT/<person>/<expression>/scan.ply       NPHM: numbers of three digits; flame.ply and registration.ply are not read
    ROOT/<person>_<expression>/<same>.obj     FaceVerse: numbers of three and two digits
    ROOT/<person>/*.{obj,ply,glb,gltf}        any other scans, a folder a person and a file an expression
    ROOT/*.{obj,ply,glb,gltf}                 a person a file

A person's NPHM folder opens as well, and a single file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from gphm_jax.capture.names import unique_names
from gphm_jax.data.files import natural_key
from gphm_jax.data.synthetic import kernels
from gphm_jax.data.synthetic.renderer import Lit, Material, Part, unlit
from gphm_jax.errors import InputError
from gphm_jax.paths import expanded

SUFFIXES = (".obj", ".ply", ".glb", ".gltf")
_NPHM_FILE = "scan.ply"
_UNDERSTOOD = f"a scan ({', '.join(SUFFIXES)}), a folder of scans, or of folders of one person's scans each"
_WHITE = np.full((1, 1, 4), 255, np.uint8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Person:
    """Somebody's scans, of one unit of length: frames by name, in order."""

    name: str
    source: pathlib.Path
    scans: tuple[tuple[str, pathlib.Path], ...]

    @property
    def folders(self) -> tuple[pathlib.Path, ...]:
        """What is read for this person: scans lie beside their textures. Empty where `source` is a file."""
        return () if self.source.is_file() else tuple(sorted({path.parent for _, path in self.scans}))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Surface:
    """One mesh of a scan; the texture times the colours, in display values, is what it looks like."""

    vertices: Float[np.ndarray, "n 3"]
    faces: np.ndarray
    uvs: Float[np.ndarray, "n 2"]
    texture: UInt8[np.ndarray, "h w 4"]
    colours: Float[np.ndarray, "n 3"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Similarity:
    """x -> scale * rotation x + shift."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    shift: Float[np.ndarray, "3"]

    def __call__(self, points: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """The points moved."""
        return self.scale * points @ self.rotation.T + self.shift

    @property
    def matrix(self) -> Float[np.ndarray, "4 4"]:
        """The same for homogeneous points."""
        whole = np.eye(4)
        whole[:3, :3], whole[:3, 3] = self.scale * self.rotation, self.shift
        return whole

    def after(self, first: Similarity) -> Similarity:
        """`first`, then this."""
        return Similarity(
            scale=self.scale * first.scale, rotation=self.rotation @ first.rotation, shift=self(first.shift)
        )

    def inverse(self) -> Similarity:
        """The way back."""
        return Similarity(
            scale=1 / self.scale,
            rotation=self.rotation.T,
            shift=-(self.rotation.T @ self.shift) / self.scale,
        )


UNMOVED = Similarity(scale=1.0, rotation=np.eye(3), shift=np.zeros(3))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Scan:
    """A scan as its file has it: any unit, any axes."""

    surfaces: tuple[Surface, ...]

    @property
    def vertices(self) -> Float[np.ndarray, "n 3"]:
        """All vertices."""
        return np.concatenate([surface.vertices for surface in self.surfaces])

    def to_unit_ball(self) -> Similarity:
        """Moves the scan into the ball of radius 1 around the origin, without turning it."""
        points = self.vertices
        centre = 0.5 * (points.min(0) + points.max(0))
        radius = float(np.linalg.norm(points - centre, axis=1).max())
        return Similarity(scale=1 / radius, rotation=np.eye(3), shift=-centre / radius)

    def placed(self, place: Similarity, *, pixels: float) -> Lit:
        """The scan after a similarity, ready for pictures with so many pixels a unit of length."""
        parts = [_part(surface, place, pixels) for surface in self.surfaces]
        return unlit(parts, [surface.colours for surface in self.surfaces])


def people_in(path: str | pathlib.Path) -> tuple[Person, ...]:
    """Whose scans lie at a path, by names alone: no file is opened. `InputError` where there are none."""
    root = expanded(path)
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise InputError(f"{root} is no scan: give {_UNDERSTOOD}")
        return tuple(_each([root]))
    if not root.is_dir():
        raise InputError(f"nothing at {root}: give {_UNDERSTOOD}")
    for layout in (_nphm, _faceverse, _loose):
        people = layout(root)
        if people:
            names = unique_names(person.name for person in people)
            return tuple(
                dataclasses.replace(person, name=name) for person, name in zip(people, names, strict=True)
            )
    raise InputError(f"no scans in {root}: give {_UNDERSTOOD}")


def read_scan(path: pathlib.Path) -> Scan:
    """Reads a scan with its colours; `InputError` in one line where it is broken, empty or has none."""
    import trimesh

    try:
        with _quiet(trimesh.util.log):
            scene = trimesh.load_scene(path, process=False)
            nodes = [scene.graph[node] for node in scene.graph.nodes_geometry]
            meshes = [(scene.geometry[name], np.asarray(matrix)) for matrix, name in nodes]
    except Exception as error:  # a reader of foreign files raises whatever its next line does
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read {path} ({reason}): export the scan again") from error
    meshes = [item for item in meshes if len(getattr(item[0], "faces", ()))]
    if not meshes:
        raise InputError(f"{path} has no faces: export the scan as a mesh, not as points")
    if not any(_is_coloured(mesh) for mesh, _ in meshes):
        raise InputError(
            f"{path} has no texture that can be read and no vertex colours: put its MTL and picture beside it, or "
            "export it as GLB or as PLY with vertex colours"
        )
    for mesh, _ in meshes:
        if mesh.faces.min() < 0 or mesh.faces.max() >= len(mesh.vertices):
            raise InputError(f"{path} has faces with corners that it does not hold: export the scan again")
    surfaces = tuple(_surface(mesh, matrix) for mesh, matrix in meshes)
    for surface in surfaces:
        if len(surface.uvs) != len(surface.vertices):
            raise InputError(f"{path} has vertices without texture coordinates: export the scan again")
        if not (np.isfinite(surface.vertices).all() and np.isfinite(surface.uvs).all()):
            raise InputError(
                f"{path} has vertices or texture coordinates that are not finite: export the scan again"
            )
    scan = Scan(surfaces=surfaces)
    if not np.ptp(scan.vertices, axis=0).min() > 0:
        raise InputError(f"{path} is flat: export the scan again")
    return scan


def _nphm(root: pathlib.Path) -> list[Person]:
    def is_person(folder: pathlib.Path) -> bool:
        return any(
            re.fullmatch(r"\d{3}", item.name) and (item / _NPHM_FILE).is_file() for item in _folders(folder)
        )

    folders = [root] if is_person(root) else [item for item in _folders(root) if is_person(item)]
    return [
        Person(
            name=folder.name,
            source=folder,
            scans=tuple(
                (item.name, item / _NPHM_FILE) for item in _folders(folder) if (item / _NPHM_FILE).is_file()
            ),
        )
        for folder in folders
    ]


def _faceverse(root: pathlib.Path) -> list[Person]:
    scans: dict[str, list[tuple[str, pathlib.Path]]] = {}
    for folder in _folders(root):
        named = re.fullmatch(r"(\d{3})_(\d{2})", folder.name)
        file = folder / f"{folder.name}.obj"
        if named and file.is_file():
            scans.setdefault(named[1], []).append((named[2], file))
    return [Person(name=name, source=root, scans=tuple(found)) for name, found in scans.items()]


def _loose(root: pathlib.Path) -> list[Person]:
    people = list(_each(_files(root)))
    for folder in _folders(root):
        files = _files(folder)
        names = unique_names(file.stem for file in files)
        if files:
            scans = tuple(zip(names, files, strict=True))
            people.append(Person(name=folder.name, source=folder, scans=scans))
    return people


def _each(files: Iterable[pathlib.Path]) -> Iterator[Person]:
    """A person a file."""
    for file in files:
        (name,) = unique_names([file.stem])
        yield Person(name=name, source=file, scans=((name, file),))


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return [item for item in _content(folder) if item.suffix.lower() in SUFFIXES and item.is_file()]


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return [item for item in _content(folder) if item.is_dir() and not item.name.startswith(".")]


def _content(folder: pathlib.Path) -> list[pathlib.Path]:
    try:
        return sorted(folder.iterdir(), key=lambda item: natural_key(item.name))
    except OSError as error:
        raise InputError(f"cannot read {folder}: {error.strerror}; check its permissions") from error


@contextlib.contextmanager
def _quiet(log: logging.Logger) -> Iterator[None]:
    """Keeps a library's warnings off the terminal: what is wrong with a scan is said in one line."""
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _picture(mesh: Any) -> Image.Image | None:
    """The mesh's texture; trimesh puts a grey one of its own, which is of no file format, where it finds none."""
    if getattr(mesh.visual, "uv", None) is None:
        return None
    material = mesh.visual.material
    picture = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return picture if picture is not None and picture.format else None


def _is_coloured(mesh: Any) -> bool:
    return _picture(mesh) is not None or getattr(mesh.visual, "kind", None) in ("vertex", "face")


def _surface(mesh: Any, matrix: Float[np.ndarray, "4 4"]) -> Surface:
    vertices = np.asarray(mesh.vertices, np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
    faces = np.asarray(mesh.faces, np.int32)
    colours: np.ndarray = np.ones((len(vertices), 3), np.float32)
    uvs, texture = np.zeros((len(vertices), 2), np.float32), _WHITE
    picture = _picture(mesh)
    if picture is not None:
        uvs, texture = np.asarray(mesh.visual.uv, np.float32), np.array(picture.convert("RGBA"))
    elif mesh.visual.kind == "vertex":
        colours = np.asarray(mesh.visual.vertex_colors)[:, :3].astype(np.float32) / 255
    elif mesh.visual.kind == "face":  # corners of their own
        colours = np.repeat(np.asarray(mesh.visual.face_colors)[:, :3].astype(np.float32) / 255, 3, axis=0)
        vertices, faces = vertices[faces.ravel()], np.arange(faces.size, dtype=np.int32).reshape(-1, 3)
        uvs = np.zeros((len(vertices), 2), np.float32)
    elif getattr(mesh.visual, "material", None) is not None:  # one colour, beside surfaces with pictures
        colours[:] = np.asarray(mesh.visual.material.main_color)[:3].astype(np.float32) / 255
    return Surface(vertices=vertices, faces=faces, uvs=uvs, texture=texture, colours=colours)


def _part(surface: Surface, place: Similarity, pixels: float) -> Part:
    vertices = np.ascontiguousarray(place(surface.vertices).astype(np.float32))
    return Part(
        vertices=vertices,
        faces=surface.faces,
        uv_faces=surface.faces,
        uvs=surface.uvs,
        material=Material(texture=_reduced(surface, vertices, pixels), unlit=True),
        normals=np.zeros_like(vertices),  # nothing lights it
    )


def _reduced(
    surface: Surface, vertices: Float[np.ndarray, "n 3"], pixels: float
) -> UInt8[np.ndarray, "h w 4"]:
    """The texture with about a texel a pixel: finer ones would glitter."""
    size = np.array(surface.texture.shape[1::-1], np.float64)
    area = _areas(vertices[surface.faces]).sum()
    texels = _areas(surface.uvs[surface.faces] * size).sum()
    ratio = float(np.sqrt(texels / max(area, 1e-12))) / pixels
    if ratio < 1.5:
        return surface.texture
    target = np.maximum(np.rint(size / ratio), 1).astype(int)
    return cv2.resize(_filled(surface), target.tolist(), interpolation=cv2.INTER_AREA).reshape(
        target[1], target[0], 4
    )


def _areas(triangles: Float[np.ndarray, "f 3 d"]) -> Float[np.ndarray, "f"]:
    a, b = triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0]
    squared = (a * a).sum(1) * (b * b).sum(1) - (a * b).sum(1) ** 2
    return 0.5 * np.sqrt(np.maximum(squared, 0.0))


def _filled(surface: Surface) -> UInt8[np.ndarray, "h w 4"]:
    """The texture with what no face uses in the nearest used colour, so that none of it is mixed in."""
    height, width = surface.texture.shape[:2]
    corners = (surface.uvs - np.floor(surface.uvs.min(0))) * [width, -height] + [0, height]
    used = np.zeros((height, width), bool)
    nothing = np.zeros((height, width, 0), np.float32)
    kernels.paint_attribute(
        corners.astype(np.float32)[surface.faces],
        surface.faces,
        np.zeros((len(corners), 0), np.float32),
        nothing,
        used,
    )
    if used.all() or not used.any():
        return surface.texture
    _, nearest = cv2.distanceTransformWithLabels(
        (~used).astype(np.uint8), cv2.DIST_L2, 3, labelType=cv2.DIST_LABEL_PIXEL
    )
    colours = np.zeros((int(nearest.max()) + 1, 4), np.uint8)
    colours[nearest[used]] = surface.texture[used]
    return colours[nearest]
