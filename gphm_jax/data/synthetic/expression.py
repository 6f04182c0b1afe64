"""Expression vectors: 52 ARKit scores per frame, stratified so that few frames cover the face's range."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from gphm_jax.data.synthetic import base

_INDEX = {name: k for k, name in enumerate(base.ARKIT)}
CLASSES = ("neutral", "open", "smile", "blink", "surprise", "pucker")

# Scores and their spread; a name without Left/Right sets both sides. Ranges are [low, high].
_PRIMARY: dict[str, tuple[dict[str, tuple[float, float]], ...]] = {
    "neutral": ({},),
    "open": (
        {"jawOpen": (0.75, 1.0), "mouthLowerDown": (0.0, 0.4), "mouthUpperUp": (0.0, 0.3)},
        {"jawOpen": (0.65, 0.9), "mouthFunnel": (0.3, 0.7), "browInnerUp": (0.2, 0.7)},
        {"jawOpen": (0.7, 0.95), "tongueOut": (0.3, 0.9)},
    ),
    "smile": (
        {"mouthSmile": (0.75, 1.0), "cheekSquint": (0.3, 0.8), "eyeSquint": (0.1, 0.5)},
        {
            "mouthSmile": (0.7, 1.0),
            "jawOpen": (0.15, 0.4),
            "mouthUpperUp": (0.2, 0.5),
            "cheekSquint": (0.3, 0.7),
        },
        {"mouthSmile": (0.6, 0.9), "mouthDimple": (0.3, 0.7), "mouthStretch": (0.1, 0.4)},
    ),
    "blink": (
        {"eyeBlink": (0.95, 1.0)},
        {"eyeBlink": (0.9, 1.0), "browDown": (0.3, 0.8), "noseSneer": (0.3, 0.8)},
        {"eyeBlink": (0.95, 1.0), "mouthPress": (0.3, 0.8), "mouthRollLower": (0.0, 0.5)},
    ),
    "surprise": (
        {"eyeWide": (0.6, 1.0), "browInnerUp": (0.6, 1.0), "browOuterUp": (0.6, 1.0)},
        {"eyeWide": (0.5, 1.0), "browInnerUp": (0.7, 1.0), "browOuterUp": (0.3, 1.0), "jawOpen": (0.2, 0.5)},
    ),
    "pucker": (
        {"mouthPucker": (0.7, 1.0), "cheekPuff": (0.0, 0.6)},
        {"mouthFrown": (0.6, 1.0), "browDown": (0.6, 1.0), "mouthShrugLower": (0.2, 0.6)},
        {"mouthFunnel": (0.6, 1.0), "browDown": (0.2, 0.6)},
        {"cheekPuff": (0.6, 1.0), "mouthPress": (0.2, 0.5)},
    ),
}
# Small additions that keep frames of one class apart; they never hide the class's own units.
_SECONDARY = (
    {"jawLeft": 0.5}, {"jawRight": 0.5}, {"mouthLeft": 0.6}, {"mouthRight": 0.6}, {"noseSneer": 0.6},
    {"browDownLeft": 0.6}, {"browOuterUpLeft": 0.8}, {"browOuterUpRight": 0.8}, {"browDown": 0.5},
    {"mouthDimple": 0.5}, {"cheekSquintLeft": 0.6}, {"mouthUpperUpLeft": 0.5}, {"mouthUpperUpRight": 0.5},
    {"mouthLowerDown": 0.4}, {"jawForward": 0.6}, {"mouthSmileLeft": 0.4}, {"mouthSmileRight": 0.4},
    {"eyeSquint": 0.5}, {"mouthFrownLeft": 0.4}, {"mouthRollUpper": 0.4}, {"mouthShrugUpper": 0.5},
)  # fmt: skip


def _set(vector: np.ndarray, name: str, low: float, high: float, rng: np.random.Generator) -> None:
    value = rng.uniform(low, high)
    if name in _INDEX:
        vector[_INDEX[name]] = max(vector[_INDEX[name]], value)
        return
    for side in ("Left", "Right"):  # people are seldom symmetric to the per cent
        score = min(1.0, value * rng.uniform(0.93, 1.0))
        vector[_INDEX[name + side]] = max(vector[_INDEX[name + side]], score)


def _gaze(vector: np.ndarray, yaw: float, pitch: float) -> None:
    """Both eyes look `yaw` to the person's left and `pitch` up, each in [-1, 1]."""
    left, right = ("eyeLookOutLeft", "eyeLookInRight"), ("eyeLookInLeft", "eyeLookOutRight")
    for name in left if yaw > 0 else right:
        vector[_INDEX[name]] = abs(yaw)
    for name in ("eyeLookUpLeft", "eyeLookUpRight") if pitch > 0 else ("eyeLookDownLeft", "eyeLookDownRight"):
        vector[_INDEX[name]] = abs(pitch)


def expression_class(*, seed: int, identity: int, frame: int) -> str:
    """The class of a frame: six consecutive frames always hold all six, frame 0 is neutral."""
    order = np.random.default_rng([seed, 11, identity]).permutation(len(CLASSES) - 1) + 1
    position = frame % len(CLASSES)
    return CLASSES[0] if position == 0 else CLASSES[order[position - 1]]


def sample(*, seed: int, identity: int, frame: int) -> Float[np.ndarray, "52"]:
    """The ARKit scores of one frame, in [0, 1], in the order of `base.ARKIT`.

    Depends on (seed, identity, frame) alone. Frame 0 is exactly neutral; later neutral frames have a
    relaxed face with moving eyes.
    """
    vector = np.zeros(len(base.ARKIT), np.float32)
    if frame == 0:
        return vector
    rng = np.random.default_rng([seed, 12, identity, frame])
    kind = expression_class(seed=seed, identity=identity, frame=frame)
    recipes = _PRIMARY[kind]
    for name, (low, high) in recipes[
        (frame // len(CLASSES) + int(rng.integers(len(recipes)))) % len(recipes)
    ].items():
        _set(vector, name, low, high, rng)
    for k in rng.choice(len(_SECONDARY), size=int(rng.integers(0, 3)), replace=False):
        for name, high in _SECONDARY[k].items():
            _set(vector, name, 0.0, high * (0.4 if kind == "neutral" else 1.0), rng)
    if kind != "blink" and rng.random() < 0.6:
        _gaze(vector, rng.uniform(-0.8, 0.8), rng.uniform(-0.5, 0.5))
    return vector


def displace(neutral: Float[np.ndarray, "v 3"], scores: Float[np.ndarray, "52"]) -> Float[np.ndarray, "v 3"]:
    """The base mesh of a person with an expression: neutral plus weighted units."""
    vertices = neutral.astype(np.float32, copy=True)
    for target, score in zip(base.units(), scores, strict=True):
        if score != 0.0:
            base.apply(vertices, target, float(score))
    return vertices
