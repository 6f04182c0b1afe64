"""Skin textures: a coarse photo-based tone, if there is one, plus procedural detail in 3D rest position.

Detail is a function of the place on the rest mesh, so it has the same scale everywhere although the
texture layout stretches; pores, freckles, wrinkles, lips and stubble are darkenings of the albedo.
"""

from __future__ import annotations

import dataclasses
import functools

import cv2
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from gphm_jax import assets
from gphm_jax.data.synthetic import base, kernels, proxies
from gphm_jax.data.synthetic.identity import HAIR_COLOURS, Identity
from gphm_jax.errors import InputError

# u, v (v up) rectangle of the head in the base layout, with a margin, and its texels per unit at full detail.
HEAD_BOX = (0.636, 0.145, 1.0, 0.822)
_HEAD_TEXELS = 2900.0
_BODY_TEXELS = 1024.0
_MASKS = "data/mpfb2/textures/mpfb_{}.jpg"
_PLAIN_TONES = {"african": (0.47, 0.33, 0.26), "asian": (0.86, 0.70, 0.58), "caucasian": (0.87, 0.69, 0.60)}
_TONE_FILES = {"african": "darkskinned", "asian": "lightskinned", "caucasian": "lightskinned"}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Rest position of every texel of one rectangle of the base layout."""

    positions: Float[np.ndarray, "h w 3"]
    filled: Bool[np.ndarray, "h w"]
    box: tuple[float, float, float, float]

    def to_local(self, uvs: Float[np.ndarray, "u 2"]) -> Float[np.ndarray, "u 2"]:
        """Base texture coordinates in this rectangle's own [0, 1] square."""
        low, size = np.array(self.box[:2]), np.array(self.box[2:]) - np.array(self.box[:2])
        return ((uvs - low) / size).astype(np.float32)

    def crop(self, image: np.ndarray, interpolation: int) -> np.ndarray:
        """The rectangle of an image in the whole layout, resampled to this layout's texels."""
        height, width = self.filled.shape
        rows, columns = image.shape[:2]
        # Centre of texel (x, y) -> position in the source, both with pixel centres at +0.5.
        scale_x = (self.box[2] - self.box[0]) * columns / width
        scale_y = (self.box[3] - self.box[1]) * rows / height
        shift_x = self.box[0] * columns + 0.5 * scale_x - 0.5
        shift_y = (1.0 - self.box[3]) * rows + 0.5 * scale_y - 0.5
        matrix = np.array([[scale_x, 0, shift_x], [0, scale_y, shift_y]])
        flags = interpolation | cv2.WARP_INVERSE_MAP
        return cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REPLICATE)


def in_head_box(uv_quads: Int[np.ndarray, "f 4"]) -> Bool[np.ndarray, "f"]:
    """Faces whose texture lies on the head's island."""
    uvs = base.load().uvs[uv_quads]
    low, high = np.array(HEAD_BOX[:2]), np.array(HEAD_BOX[2:])
    return np.all((uvs > low) & (uvs < high), axis=(1, 2))


@functools.lru_cache(maxsize=4)
def layout(region: str, detail: float) -> Layout:
    """The position map of "head" or "body" at a fraction of full detail."""
    mesh = base.load()
    quads = mesh.faces["body"]
    on_head = in_head_box(quads[:, :, 1])
    quads = quads[on_head if region == "head" else ~on_head]
    box = HEAD_BOX if region == "head" else (0.0, 0.0, 1.0, 1.0)
    texels = detail * (_HEAD_TEXELS if region == "head" else _BODY_TEXELS)
    width, height = round((box[2] - box[0]) * texels), round((box[3] - box[1]) * texels)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    uvs = mesh.uvs[triangles[:, :, 1]]
    pixels = np.empty_like(uvs)
    pixels[..., 0] = (uvs[..., 0] - box[0]) / (box[2] - box[0]) * width
    pixels[..., 1] = (box[3] - uvs[..., 1]) / (box[3] - box[1]) * height
    positions, filled = np.zeros((height, width, 3), np.float32), np.zeros((height, width), bool)
    corners = np.ascontiguousarray(triangles[:, :, 0])
    kernels.paint_attribute(pixels.astype(np.float32), corners, mesh.vertices, positions, filled)
    return Layout(positions=positions, filled=filled, box=box)


@functools.lru_cache(maxsize=16)
def _mask(name: str, region: str, detail: float) -> np.ndarray:
    path = base.find(_MASKS.format(name))
    image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise InputError(f"{path} is not a readable image: refetch the assets with `{assets.FETCH_COMMAND}`")
    return layout(region, detail).crop(image, cv2.INTER_LINEAR).astype(np.float32) / 255.0


def _noise(place: Layout, frequency: tuple[float, float, float] | float, seed: int) -> np.ndarray:
    scale = np.broadcast_to(np.asarray(frequency, np.float32), (3,)).copy()
    shift = (np.random.default_rng(seed).uniform(0, 500, 3)).astype(np.float32)
    out = np.zeros(place.filled.shape, np.float32)
    kernels.value_noise(place.positions, place.filled, scale, shift, out)
    return out


def _blob(
    place: Layout, centre: tuple[float, float, float], radius: tuple[float, float, float]
) -> np.ndarray:
    """A Gaussian around a rest position, mirrored to both sides of the face."""
    p = place.positions
    across = (np.abs(p[..., 0]) - centre[0]) / radius[0]
    return np.exp(
        -0.5
        * (
            across**2
            + ((p[..., 1] - centre[1]) / radius[1]) ** 2
            + ((p[..., 2] - centre[2]) / radius[2]) ** 2
        )
    )


def _ramp(x: np.ndarray, low: float | np.ndarray, high: float | np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _source_tone(person: Identity, place: Layout) -> np.ndarray:
    """Display-space RGB in [0, 1] from the skin photo, or a flat tone by race without one."""
    if not proxies.available():
        tone = np.empty((*place.filled.shape, 3), np.float32)
        tone[:] = _PLAIN_TONES[person.race]
        return tone
    folder = proxies.find(f"skins/{person.age}_{person.race}_{person.sex}/textures")
    choices = sorted(p for p in folder.glob(f"*{_TONE_FILES[person.race]}*_diffuse*.png"))
    photo = proxies.read_texture(choices[int(person.skin_pick * len(choices))])[..., :3]
    return np.clip(place.crop(photo, cv2.INTER_CUBIC).astype(np.float32) / 255.0, 0.0, 1.0)


def _scalp(place: Layout, seed: int, lower: float = 0.0) -> np.ndarray:
    """Where hair grows: above and behind a hairline (or a line `lower` than it), with a ragged edge."""
    p = place.positions
    front = 7.99 - 0.10 * np.abs(p[..., 0]) * 3  # forehead hairline, lower at the temples
    line = np.where(p[..., 2] > 0.75, front, 7.62 - 0.45 * _ramp(-p[..., 2], -0.75, 0.2))
    line = np.where(p[..., 2] < 0.30, 6.75, line)
    blurred = (p[..., 1] - line) + lower + 0.05 * _noise(place, 14.0, seed)
    return _ramp(blurred, -0.06, 0.12) * (p[..., 1] > 6.4)


def _wrinkles(place: Layout, seed: int) -> np.ndarray:
    """Forehead furrows, crow's feet and the fold from nose to mouth, in [0, 1]."""
    p = place.positions
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    wave = _noise(place, 2.5, seed)
    furrow = np.clip(np.sin((y + 0.09 * wave - 0.03 * x) * 48.0) - 0.4, 0, 1) / 0.6
    furrow *= (
        _ramp(y, 7.50, 7.62) * (1 - _ramp(y, 7.85, 7.97)) * _ramp(z, 1.0, 1.2) * (1 - _ramp(x, 0.42, 0.62))
    )
    angle = np.arctan2(y - 7.27, x - 0.42)
    radius = np.hypot(y - 7.27, x - 0.42)
    crow = np.clip(np.sin(angle * 16.0 + 1.5 * wave) - 0.5, 0, 1) * 2
    crow *= (
        _ramp(radius, 0.09, 0.13)
        * (1 - _ramp(radius, 0.17, 0.26))
        * (np.abs(angle) < 0.7)
        * _ramp(z, 0.6, 0.8)
    )
    along = _ramp(y, 6.68, 6.75) * (1 - _ramp(y, 6.90, 7.02))
    fold = np.exp(-(((x - (0.215 + 0.55 * np.clip(6.98 - y, 0, 0.4))) / 0.018) ** 2)) * along * (z > 1.2)
    return np.clip(0.8 * furrow + 0.7 * crow + 0.9 * fold, 0, 1)


def _lips(place: Layout, detail: float, region: str) -> np.ndarray:
    mask = _mask("lips", region, detail)
    return _ramp(cv2.GaussianBlur(mask, (0, 0), max(0.8, 3.0 * detail)), 0.35, 0.75)


def _hair_growth(
    tone: np.ndarray, person: Identity, place: Layout, noise: dict[str, np.ndarray]
) -> np.ndarray:
    """Scalp and beard shadow: short hair is dots of the hair's colour over the skin."""
    seed = person.texture_seed
    colour = np.array(HAIR_COLOURS[person.hair_colour], np.float32) * np.float32(0.55)
    scalp = _scalp(place, seed + 20)
    cover = 0.10 if person.hair is None else 0.6
    dots = 0.75 + 0.25 * noise["fine"] + 0.2 * noise["pore"]
    # The photo's own painted scalp goes first: skin of the forehead's tone, then our hair.
    p = place.positions
    forehead = (
        (np.abs(p[..., 0]) < 0.35)
        & (p[..., 1] > 7.45)
        & (p[..., 1] < 7.75)
        & (p[..., 2] > 1.2)
        & place.filled
    )
    skin = np.median(tone[forehead], axis=0) if forehead.any() else np.median(tone[place.filled], axis=0)
    tone = tone + (_scalp(place, seed + 20, lower=0.3) * 0.97)[..., None] * (
        skin * (1 + 0.03 * noise["broad"][..., None]) - tone
    )
    tone = tone + (scalp * cover * np.clip(dots, 0, 1))[..., None] * (colour - tone)
    if person.stubble > 0:
        x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
        jaw = (
            1 - _ramp(y, 6.62 + 0.42 * np.clip(x - 0.25, 0, 0.4), 6.80 + 0.42 * np.clip(x - 0.25, 0, 0.4))
        ) * _ramp(y, 5.95, 6.2)
        lip = _ramp(y, 6.66, 6.70) * (1 - _ramp(y, 6.75, 6.82)) * (1 - _ramp(x, 0.20, 0.36)) * (z > 1.2)
        grown = np.clip(jaw * _ramp(z, 0.35, 0.75) + lip, 0, 1) * np.clip(0.6 + 0.9 * noise["pore"], 0, 1)
        tone = tone + (0.42 * person.stubble * grown)[..., None] * (colour * np.float32(0.9) + 0.06 - tone)
    return tone


def bake(person: Identity, region: str, detail: float) -> UInt8[np.ndarray, "h w 4"]:
    """RGBA texture of "head" or "body": albedo as display values, alpha the strength of the skin's sheen."""
    place, seed = layout(region, detail), person.texture_seed
    p = place.positions
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    frequencies = {
        "broad": 2.2,
        "blotch": 8.0,
        "patch": 24.0,
        "fine": 60.0,
        "pore": 120.0,
    }  # cells a decimetre
    noise = {
        name: _noise(place, frequency, seed + k) for k, (name, frequency) in enumerate(frequencies.items())
    }
    tone = _source_tone(person, place) * np.array(person.skin_tone, np.float32)
    mouth = _mask("inside-mouth", region, detail) > 0.5
    if region == "head":
        tone = _hair_growth(tone, person, place, noise)
        lips = _lips(place, detail, region)
    else:
        lips = np.zeros_like(x)
    face = _ramp(z, 0.5, 0.9) * _ramp(y, 6.0, 6.3) if region == "head" else np.zeros_like(x)
    grain = 0.022 * noise["fine"] + 0.020 * noise["pore"] + 0.022 * noise["patch"] + 0.02 * noise["broad"]
    tone = tone * (1 + grain)[..., None]
    red = 0.022 * noise["blotch"] + face * (
        0.06 * _blob(place, (0.42, 6.98, 1.2), (0.20, 0.16, 0.4))
        + 0.05 * _blob(place, (0.0, 6.97, 1.75), (0.12, 0.12, 0.2))
    )
    tone = tone * (1 + red[..., None] * np.array([0.45, -0.75, -0.6], np.float32))
    bags = (
        _blob(place, (0.30, 7.16, 1.3), (0.13, 0.035, 0.2))
        * face
        * {"young": 0.05, "middleage": 0.10, "old": 0.14}[person.age]
    )
    tone = tone * (1 - bags[..., None] * np.array([0.8, 1.0, 0.8], np.float32))
    if person.freckles > 0:
        spots = (
            _ramp(noise["patch"] + 0.5 * noise["blotch"], 0.45, 0.75)
            * face
            * (y > 6.6)
            * min(1.0, person.freckles)
        )
        tone = tone * (1 - spots[..., None] * np.array([0.10, 0.20, 0.24], np.float32))
    creases = _wrinkles(place, seed + 7) * face * {"young": 0.0, "middleage": 0.05, "old": 0.12}[person.age]
    tone = tone * (1 - creases[..., None] * np.array([0.9, 1.0, 1.0], np.float32))
    streaks = 0.05 * _noise(place, (90.0, 8.0, 30.0), seed + 9)
    deepen = 1.0 if proxies.available() else 0.8
    redness = deepen * np.array(
        [0.98, 0.74, 0.76] if person.sex == "female" else [0.95, 0.80, 0.80], np.float32
    )
    tone = tone * (1 - lips[..., None] * (1 - redness * (1 + streaks[..., None])))
    if not proxies.available():
        tone = _plain_details(tone, person, place, region)
    tone[mouth] = np.array([0.50, 0.16, 0.16], np.float32) * (1 + 0.05 * noise["blotch"][mouth][:, None])
    oily = 0.55 + 0.25 * _blob(place, (0.0, 7.3, 1.5), (0.25, 0.5, 0.4)) + 0.35 * lips + 0.25 * noise["pore"]
    oily = np.where(mouth, 0.6, oily * (1 - 0.8 * (_scalp(place, seed + 20) if region == "head" else 0.0)))
    rgba = np.dstack([tone, oily])
    return np.ascontiguousarray(np.rint(np.clip(rgba, 0.0, 1.0) * 255.0).astype(np.uint8))


def _plain_details(tone: np.ndarray, person: Identity, place: Layout, region: str) -> np.ndarray:
    """What a skin photo would bring: redder lips and painted brows."""
    if region != "head":
        return tone
    p = place.positions
    x, y, z = np.abs(p[..., 0]), p[..., 1], p[..., 2]
    arch = 7.455 + 0.07 * np.sin(np.clip((x - 0.10) / 0.45, 0, 1) * np.pi * 0.75)
    width = 0.030 - 0.020 * _ramp(x, 0.30, 0.55)
    hairs = 0.8 + 0.3 * _noise(place, (70.0, 25.0, 25.0), person.texture_seed + 30)
    brow = (
        np.exp(-(((y - arch) / width) ** 2))
        * _ramp(x, 0.08, 0.13)
        * (1 - _ramp(x, 0.50, 0.58))
        * (z > 1.0)
        * hairs
    )
    colour = np.array(HAIR_COLOURS[person.hair_colour], np.float32) * np.float32(0.45)
    return tone + np.clip(brow * person.brow_darkness * 1.2, 0, 0.9)[..., None] * (colour - tone)
