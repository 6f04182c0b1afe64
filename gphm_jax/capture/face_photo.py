"""The face of one photo, cut out as training and fitting cut theirs, for an expression encoder to read."""

from __future__ import annotations

import pathlib
import tempfile

import numpy as np
from jaxtyping import UInt8

from gphm_jax.capture.preprocess import preprocess_all
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.data import images
from gphm_jax.errors import InputError


def face_of(photo: pathlib.Path) -> UInt8[np.ndarray, "s s 3"]:
    """The largest face of a photo, over white; `InputError` where there is no photo or no face."""
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder) / "face"
        preprocess_all(photo, out, CaptureSettings(expression_images=0))
        faces = [*out.glob("images/*/face_*")]
        if not faces:  # the head was found, and is turned too far
            raise InputError(f"the face in {photo} is turned too far from the camera: give a photo from the front")
        return images.read_rgb(faces[0])
