"""One person ready to be posed: cached shape, textures and worn parts, and the meshes of a frame."""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
import scipy.spatial
from jaxtyping import Float, Int, UInt8

from gphm_jax.data.synthetic import base, expression, identity, plain, proxies, refine, skin
from gphm_jax.data.synthetic.identity import HAIR_COLOURS, Identity
from gphm_jax.data.synthetic.landmarks import LANDMARKS
from gphm_jax.data.synthetic.motion import Motion, pose_vertices, rotation_matrix
from gphm_jax.data.synthetic.renderer import Lights, Material, Part, make_lights

_ARM_DOWN = np.radians(24.0)  # the base mesh stands with its arms half raised
_UNDER_CLOTH = 0.35  # mesh units (decimetres) from skin to the nearest vertex of the garment over it
_SKIN_WRAP = (0.30, 0.14, 0.10)  # red light scatters furthest under the skin
_CLOTH_WRAP = (0.08, 0.08, 0.08)
_HAIR_WRAP = (0.35, 0.35, 0.35)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Worn:
    """A proxy with its material and its weights towards the head and the arms."""

    proxy: proxies.Proxy
    faces: Int[np.ndarray, "f 3"]
    uv_faces: Int[np.ndarray, "f 3"]
    material: Material
    casters: Int[np.ndarray, "g 3"] | None
    head_weight: Float[np.ndarray, "n"]
    arm_weight: Float[np.ndarray, "n 2"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Person:
    """Everything about a person that does not change from frame to frame."""

    identity: Identity
    neutral: Float[np.ndarray, "v 3"]  # the mesh's own unit
    origin: Float[np.ndarray, "3"]  # between the ears
    head_length: float  # mesh units
    lights: Lights
    pivot: Float[np.ndarray, "3"]  # canonical: the neck joint the head turns about
    chest: Float[np.ndarray, "3"]  # canonical
    shoulders: Float[np.ndarray, "2 3"]  # canonical: left, right
    skin_parts: tuple[
        tuple[Int[np.ndarray, "_ 3"], Int[np.ndarray, "_ 3"], Float[np.ndarray, "_ 2"], Material], ...
    ]
    skin_edges: refine.Subdivision
    worn: tuple[_Worn, ...]
    shrunk: Float[np.ndarray, "v"]  # how far covered skin draws back under the clothes, mesh units

    def canonical(self, vertices: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
        """Mesh units to canonical lengths: origin between the ears, chin to crown 1."""
        return ((vertices - self.origin) / self.head_length).astype(np.float32)


def _casters(
    proxy_faces: np.ndarray, uv_faces: np.ndarray, uvs: np.ndarray, texture: np.ndarray
) -> np.ndarray:
    """Faces that are mostly opaque: only these throw shadows."""
    small = cv2.resize(texture[..., 3], (96, 96), interpolation=cv2.INTER_AREA)
    centre = uvs[uv_faces].mean(1)
    centre -= np.floor(centre)
    column = np.clip((centre[:, 0] * 96).astype(int), 0, 95)
    row = np.clip(((1 - centre[:, 1]) * 96).astype(int), 0, 95)
    return np.ascontiguousarray(proxy_faces[small[row, column] > 150])


def _wear(
    proxy: proxies.Proxy,
    material: Material,
    *,
    keep: np.ndarray | None = None,
    casts: bool = True,
    head: bool = False,
) -> _Worn:
    """`keep` drops faces; `head` binds the part rigidly to the skull, whatever it is fitted to."""
    mesh = base.load()
    keep = np.ones(len(proxy.faces), bool) if keep is None else keep
    faces, uv_faces = np.ascontiguousarray(proxy.faces[keep]), np.ascontiguousarray(proxy.uv_faces[keep])
    casters = None
    if casts:
        casters = _casters(faces, uv_faces, proxy.uvs, material.texture) if material.transparent else faces
    head_weight = np.ones(len(proxy.reference), np.float32) if head else proxy.interpolate(mesh.head_weight)
    return _Worn(
        proxy=proxy, faces=faces, uv_faces=uv_faces, material=material, casters=casters,
        head_weight=head_weight, arm_weight=proxy.interpolate(mesh.arm_weight),
    )  # fmt: skip


def _eye_faces(proxy: proxies.Proxy, texture: np.ndarray) -> np.ndarray:
    """Without the clear cornea shell: its texture is transparent."""
    uv = proxy.uvs[proxy.uv_faces].mean(1)
    height, width = texture.shape[:2]
    row = np.clip(((1 - uv[:, 1]) * height).astype(int), 0, height - 1)
    column = np.clip((uv[:, 0] * width).astype(int), 0, width - 1)
    return texture[row, column, 3] > 127


def _scaled(colour: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _evened(texture: np.ndarray) -> np.ndarray:
    """Strand texture with a common mean brightness, so that a hair colour means the same on every style."""
    solid = texture[..., 3] > 60
    grey = texture[..., :3].astype(np.float32).mean(-1)
    level = float(grey[solid].mean()) if solid.any() else 128.0
    out = texture.copy()
    detail = texture[..., :3].astype(np.float32) / max(level, 8.0)
    # Between a third and nearly twice the mean: dark textures are noisy once they are lifted.
    out[..., :3] = np.clip(150.0 * np.clip(detail, 0.3, 1.7) ** 0.8, 0, 255).astype(np.uint8)
    return out


def _worn_parts(person: Identity) -> list[_Worn]:
    """Eyes, teeth, tongue, clothes, then what hugs the skin, then hair: the order they are drawn in."""
    hair = HAIR_COLOURS[person.hair_colour]
    eyes = proxies.load("eyes", "HighPolyEyes")
    iris = proxies.read_texture(eyes.folder / "textures" / f"{person.eye}_eye.png")
    glossy = Material(
        texture=_opaque(iris), tint=(0.86, 0.85, 0.85), specular=0.9, gloss=160.0, wrap=(0.15, 0.15, 0.15)
    )
    worn = [_wear(eyes, glossy, keep=_eye_faces(eyes, iris), casts=False, head=True)]
    for kind, name, tint in (("teeth", "Teeth_Base", 1.04), ("tongue", "tongue01", 0.9)):
        proxy = proxies.load(kind, name)
        wet = Material(texture=_opaque(proxy.texture), tint=(tint, tint, tint), specular=0.12, gloss=30.0)
        worn.append(_wear(proxy, wet, head=True))
    clothes = proxies.load("clothes", person.clothes)
    lowest = base.load().vertices[clothes.reference].mean(1)[:, 1]
    keep = lowest[clothes.faces].max(1) > base.LOWEST_KEPT
    cloth = Material(texture=_opaque(clothes.texture), tint=person.clothes_tint, wrap=_CLOTH_WRAP)
    worn.append(_wear(clothes, cloth, keep=keep))
    for kind, name, colour in (
        ("eyebrows", f"eyebrow{person.brow:03d}", _scaled(hair, person.brow_darkness)),
        ("eyelashes", "eyelashes02", (0.25, 0.22, 0.2)),
    ):
        proxy = proxies.load(kind, name)
        thin = Material(texture=proxy.texture, tint=colour, transparent=True, grey=0.7, wrap=_HAIR_WRAP)
        worn.append(_wear(proxy, thin, casts=False, head=True))
    for style in (person.beard, person.hair):
        if style is not None:
            proxy = proxies.load("hair", style)
            locks = Material(
                texture=_evened(proxy.texture),
                tint=_scaled(hair, 1.25),
                transparent=True,
                grey=0.92,
                wrap=_HAIR_WRAP,
            )
            worn.append(_wear(proxy, locks, head=style == person.beard))
    return worn


def _opaque(texture: UInt8[np.ndarray, "h w 4"]) -> UInt8[np.ndarray, "h w 4"]:
    solid = texture.copy()
    solid[..., 3] = 255
    return solid


def _plain_parts(person: Identity) -> list[_Worn]:
    """The same things made from the base mesh alone."""
    balls = plain.eyes(person)
    worn = [
        _wear(balls, Material(texture=balls.texture, specular=0.9, gloss=160.0), casts=False, head=True),
    ]
    for kind in ("teeth", "tongue"):
        proxy = plain.mouth(kind)
        worn.append(_wear(proxy, Material(texture=proxy.texture, specular=0.12, gloss=30.0), head=True))
    shirt = plain.garment(person)
    worn.append(_wear(shirt, Material(texture=shirt.texture, wrap=_CLOTH_WRAP)))
    if person.hair is not None:
        cap = plain.hair_cap(person)
        worn.append(_wear(cap, Material(texture=cap.texture, wrap=(0.2, 0.2, 0.2)), head=True))
    return worn


def _skin_quads(hidden: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Quads of the skin that is drawn, by texture region."""
    mesh = base.load()
    quads = mesh.faces["body"]
    drawn = (mesh.vertices[quads[:, :, 0]][:, :, 1].min(1) > base.LOWEST_KEPT) & ~hidden[quads[:, :, 0]].all(
        1
    )
    on_head = skin.in_head_box(quads[:, :, 1])
    return [("head", quads[drawn & on_head]), ("body", quads[drawn & ~on_head])]


def build(person: Identity, *, detail: float = 1.0, light_quality: float = 1.0) -> Person:
    """Bakes a person's textures and fits all that they wear. `detail` is the texture resolution, 1 for 512 px."""
    mesh = base.load()
    neutral = identity.base_vertices(person.coefficients)
    origin, head_length = base.head_frame(neutral)
    worn = _worn_parts(person) if proxies.available() else _plain_parts(person)
    hidden = np.any([item.proxy.hides for item in worn if not item.material.transparent], axis=0)
    if proxies.available():
        hidden = hidden | _covered(person.clothes)
    groups = _skin_quads(hidden)
    subdivision = refine.subdivide(
        [quads for _, quads in groups], vertex_count=len(neutral), uv_count=len(mesh.uvs)
    )
    skin_parts = []
    for (region, _), faces, uv_faces in zip(groups, subdivision.faces, subdivision.uv_faces, strict=True):
        uvs = subdivision.uvs(mesh.uvs)
        texture = skin.bake(person, region, detail if region == "head" else min(1.0, detail))
        local = skin.layout(region, detail if region == "head" else min(1.0, detail)).to_local(uvs)
        skin_parts.append(
            (
                faces,
                uv_faces,
                local,
                Material(texture=texture, two_sided=False, specular=0.035, gloss=12.0, wrap=_SKIN_WRAP),
            )
        )

    def canonical(point: np.ndarray) -> np.ndarray:
        return (point - origin) / head_length

    pivot = 0.5 * (mesh.joint("neck", neutral) + mesh.joint("head", neutral))
    return Person(
        identity=person,
        neutral=neutral,
        origin=origin,
        head_length=head_length,
        lights=make_lights(np.random.default_rng([person.texture_seed, 5]), quality=light_quality),
        pivot=canonical(pivot),
        chest=canonical(mesh.joint("spine-2", neutral)),
        shoulders=np.stack([canonical(mesh.joint(f"{side}-shoulder", neutral)) for side in "lr"]),
        skin_parts=tuple(skin_parts),
        skin_edges=subdivision,
        worn=tuple(worn),
        shrunk=_shrink(hidden),
    )


@functools.lru_cache(maxsize=32)
def _covered(clothes: str) -> np.ndarray:
    """Skin that lies well under a garment on the base mesh: the garments' own lists leave sleeves out."""
    mesh = base.load()
    quads = mesh.faces["body"][:, :, 0]
    garment = proxies.load("clothes", clothes).fit(mesh.vertices)
    distance, _ = scipy.spatial.cKDTree(garment).query(mesh.vertices, distance_upper_bound=_UNDER_CLOTH)
    # Shoulders and arms alone: a collar stands off the neck, and skin shows inside it.
    covered = np.isfinite(distance) & (np.abs(mesh.vertices[:, 0]) > 0.9)
    for _ in range(2):  # the rim stays: it is drawn back, not cut
        exposed = (~covered)[quads].any(1)
        covered[quads[exposed].ravel()] = False
    return covered


def _shrink(hidden: np.ndarray) -> np.ndarray:
    """Skin next to covered skin draws back a little, so that it never pokes through the garment's edge."""
    mesh = base.load()
    quads = mesh.faces["body"][:, :, 0]
    near = hidden.astype(np.float32)
    for _ in range(5):
        grown = near.copy()
        strongest = near[quads].max(1)
        for k in range(4):
            np.maximum.at(grown, quads[:, k], 0.8 * strongest)
        near = grown
    return near * 0.12


def _lower_arms(points: np.ndarray, arm_weight: np.ndarray, shoulders: np.ndarray) -> np.ndarray:
    for side, sign in ((0, -1.0), (1, 1.0)):
        angle = sign * _ARM_DOWN * arm_weight[:, side]
        offset = points - shoulders[side]
        cos, sin = np.cos(angle), np.sin(angle)
        turned = np.stack(
            [cos * offset[:, 0] - sin * offset[:, 1], sin * offset[:, 0] + cos * offset[:, 1], offset[:, 2]],
            1,
        )
        points = np.where(arm_weight[:, side : side + 1] > 0, turned + shoulders[side], points)
    return points


def frame_parts(person: Person, scores: Float[np.ndarray, "52"], motion: Motion) -> list[Part]:
    """All meshes of one frame in world space."""
    mesh = base.load()
    expressive = expression.displace(person.neutral, scores)
    hair_scale = person.head_length / 2.33  # of the base mesh: offsets of worn parts grow with the head

    def posed(vertices: np.ndarray, head: np.ndarray, arm: np.ndarray) -> np.ndarray:
        points = _lower_arms(person.canonical(vertices), arm, person.shoulders)
        return pose_vertices(points, head, motion, pivot=person.pivot, chest=person.chest)

    skin_vertices = posed(expressive, mesh.head_weight, mesh.arm_weight)
    skin_vertices = refine.draw_back(
        skin_vertices, mesh.faces["body"][:, :, 0], person.shrunk / person.head_length
    )
    fine, normals = person.skin_edges.refine(skin_vertices)
    parts = [
        Part(
            vertices=fine[k],
            normals=normals[k],
            faces=faces,
            uv_faces=uv_faces,
            uvs=uvs,
            material=material,
            casters=person.skin_edges.coarse[k],
        )  # fmt: skip
        for k, (faces, uv_faces, uvs, material) in enumerate(person.skin_parts)
    ]
    for item in person.worn:
        vertices = posed(item.proxy.fit(expressive, hair_scale), item.head_weight, item.arm_weight)
        parts.append(
            Part(
                vertices=vertices,
                faces=item.faces,
                uv_faces=item.uv_faces,
                uvs=item.proxy.uvs,
                material=item.material,
                casters=item.casters,
            )  # fmt: skip
        )
    return parts


def landmarks(person: Person, scores: Float[np.ndarray, "52"], motion: Motion) -> Float[np.ndarray, "68 3"]:
    """The 68 landmarks of a frame in world space: canonical points moved by exactly the head pose."""
    expressive = expression.displace(person.neutral, scores)
    points = person.canonical(expressive[LANDMARKS]).astype(np.float64)
    return (points @ rotation_matrix(motion.rotation).T + motion.translation).astype(np.float32)
