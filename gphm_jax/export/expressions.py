"""Expression codes to export: an avatar's habit, encoded face images, and a few named expressions for sliders."""

from __future__ import annotations

import pathlib

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from gphm_jax.avatar import Avatar
from gphm_jax.data import images
from gphm_jax.data.sampler import spread
from gphm_jax.data.synthetic import identity, person
from gphm_jax.data.synthetic.portrait import portrait
from gphm_jax.errors import InputError
from gphm_jax.scores import score_vector

_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
_SEED = 20260101  # of the synthetic person whose face makes the named expressions
_PEOPLE = 3  # averaged: what remains is the expression
# ARKit scores; a name without Left or Right sets both sides.
NAMED: dict[str, dict[str, float]] = {
    "Smile": {"mouthSmile": 0.9, "cheekSquint": 0.5, "mouthDimple": 0.2},
    "Open mouth": {"jawOpen": 0.85, "mouthLowerDown": 0.2},
    "Pucker": {"mouthPucker": 0.9},
    "Frown": {"mouthFrown": 0.8, "browDown": 0.8},
    "Brows up": {"browInnerUp": 0.9, "browOuterUp": 0.8, "eyeWide": 0.5},
    "Close eyes": {"eyeBlink": 1.0},
}


def encoded(avatar: Avatar, source: pathlib.Path, frames: int) -> Float[Array, "t z"]:
    """The codes of a face image, or of a folder of them in the order of their names, `frames` of them
    spread evenly (0: all).

    A folder may also be a prepared identity: the first face of each of its frames.
    """
    found = _faces(source)
    paths = spread(found, frames or len(found))
    return jnp.stack([avatar.encode(images.read_rgb(path)) for path in paths])


def _faces(source: pathlib.Path) -> list[pathlib.Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise InputError(f"no face image or folder at {source}: correct --expression")
    prepared = source / "images"
    if prepared.is_dir():
        found = [min(frame.glob("face_*"), default=None) for frame in sorted(prepared.iterdir())]
        paths = [path for path in found if path is not None]
    else:
        paths = sorted(path for path in source.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise InputError(
            f"no face image in {source}: --expression takes cut-out faces ({', '.join(_SUFFIXES)}), or a prepared "
            "identity folder with images/<frame>/face_<view>.jpg"
        )
    return paths


def named(avatar: Avatar) -> dict[str, Float[Array, "z"]]:
    """The codes of `NAMED` about the avatar's habitual one.

    The encoder has learnt to read expressions from other people's faces, so synthetic people make them: what their
    code changes by from a neutral face is added to the avatar's own. Needs the assets of the synthetic heads.
    """
    people = [person.build(identity.sample(seed=_SEED, index=index), detail=0.5) for index in range(_PEOPLE)]

    def code(scores: dict[str, float]) -> Float[Array, "z"]:
        faces = [_portrait(subject, scores, avatar.spec.face_size) for subject in people]
        return jnp.mean(avatar.encode(np.stack(faces)), axis=0)

    neutral = code({})
    return {name: avatar.habits.expression + code(scores) - neutral for name, scores in NAMED.items()}


def _portrait(subject: person.Person, scores: dict[str, float], size: int) -> UInt8[np.ndarray, "s s 3"]:
    """A face with these scores; pose, light and camera are the same for all scores."""
    return portrait(subject, score_vector(scores), np.random.default_rng(_SEED), size)
