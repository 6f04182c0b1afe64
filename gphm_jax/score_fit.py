"""How `scores.ScoreRegressor` is fitted: a head model's codes of frames whose ARKit scores are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from flax import nnx
from jaxtyping import Float, Int

from gphm_jax.data.files import read_npz
from gphm_jax.data.layout import Dataset, Selection
from gphm_jax.data.pixels import PixelSource
from gphm_jax.data.sampler import spread
from gphm_jax.data.synthetic.landmarks import LANDMARKS
from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianModel
from gphm_jax.morphable import embedded
from gphm_jax.nets import Encoder
from gphm_jax.score_landmarks import follow_landmarks
from gphm_jax.scores import NAMES, ScoreRegressor

_MOST_FRAMES = 4096  # of a large dataset: 52 directions need no more
_MOST_FACES = 8  # of one frame
_AT_ONCE = 64  # faces encoded together
_CALM = 0.05  # a frame whose scores sum to so little more than the calmest one's counts as neutral
_RIDGES = tuple(10.0 ** (half / 2) for half in range(-6, 5))
_FOLDS = 5  # where one person alone was filmed


def fit_to_footage(
    model: GaussianModel, pixels: PixelSource, training: Sequence[Selection]
) -> ScoreRegressor | None:
    """The map from the scores of training frames to the codes that the head model reads off their faces.

    Where the landmarks are those of the embedded face model it is tuned until they move as that says. None, with a
    line in the log, where dataset.json does not say that its params hold the 52 scores.
    """
    items = spread(training, _MOST_FRAMES)
    try:
        scores = known_scores(pixels.dataset, items)
    except InputError as error:
        logging.info("no map from expression scores: %s", error)
        return None
    faces = encode_faces(model.networks.expression_encoder, pixels, items)
    codes = np.stack([found.mean(axis=0) for found in faces])
    people = np.array([item.frame.identity_row for item in items])
    metadata = pixels.dataset.metadata
    source = {
        "generator": str(metadata.get("generator", "")),
        "seed": metadata.get("seed"),
        "identities": len(set(people.tolist())),
        "frames": len(items),
    }
    regressor = fit_ridge(scores, codes, people, source)
    basis = known_movements(model)
    if basis is not None:
        regressor = follow_landmarks(model, regressor, np.concatenate(faces), basis)
    logging.info("map from expression scores: %s", regressor.provenance)
    return regressor


def known_scores(dataset: Dataset, items: Sequence[Selection]) -> Float[np.ndarray, "n 52"]:
    """The ARKit scores of frames in the order of `NAMES`; `InputError` where the dataset does not have them."""
    listed = dataset.metadata.get("expression_names")
    if not isinstance(listed, list) or not set(NAMES) <= set(listed):
        raise InputError(f"{dataset.path} does not list the 52 ARKit scores as its expression_names")
    columns = [listed.index(name) for name in NAMES]
    rows = []
    for item in items:
        row = read_npz(item.frame.params, ("exp_coeff",))["exp_coeff"].astype(np.float32).ravel()
        if row.size != len(listed) or not np.isfinite(row).all():
            raise InputError(f"{item.frame.params} does not hold {len(listed)} finite scores")
        rows.append(row[columns])
    return np.stack(rows)


def known_movements(model: GaussianModel) -> Float[np.ndarray, "k 3 52"] | None:
    """How each score moves the landmarks of a face, where these are the 68 of the embedded face model."""
    if model.landmarks.shape[0] != len(LANDMARKS):
        return None
    try:
        return np.asarray(embedded().landmark_part("ibug68").expression_basis)
    except InputError as error:  # a dataset made elsewhere needs no assets
        logging.info("expression scores are not tuned by landmarks: %s", error)
        return None


def encode_faces(
    encoder: Encoder, pixels: PixelSource, items: Sequence[Selection]
) -> list[Float[np.ndarray, "m z"]]:
    """The codes of each frame's face images: views that show the face, and other people with its expression."""
    faces, counts = [], []
    for item in items:
        frame = item.frame
        own = [pixels.face(frame, view) for view in item.views if frame.shows_face[view]]
        others = [pixels.synthesized(frame, index) for index in range(len(frame.synthesized))]
        chosen = spread(own + others, _MOST_FACES)
        faces += chosen
        counts.append(len(chosen))
    encode = nnx.jit(lambda network, images: network(images.astype(np.float32) / 255.0))
    codes = []
    for start in range(0, len(faces), _AT_ONCE):
        chunk = np.stack(faces[start : start + _AT_ONCE])
        short = _AT_ONCE - len(chunk)  # one shape, one compilation
        codes.append(np.asarray(encode(encoder, np.pad(chunk, [(0, short), *[(0, 0)] * 3])))[: len(chunk)])
    return np.split(np.concatenate(codes), np.cumsum(counts)[:-1])


def fit_ridge(
    scores: Float[np.ndarray, "n 52"],
    codes: Float[np.ndarray, "n z"],
    people: Int[np.ndarray, "n"],
    source: Mapping[str, Any],
) -> ScoreRegressor:
    """Ridge regression of codes on scores about the mean code of the calmest frames.

    The ridge is the one that predicts best the codes of people left out (of frames, where there is one person);
    `held_out_r2` is what it reaches there, over all code dimensions together, None where nothing can be left out.
    """
    folds = people if len(set(people.tolist())) > 1 else np.arange(len(people)) % _FOLDS
    names = sorted(set(folds.tolist()))
    quality: dict[float, float | None] = dict.fromkeys(_RIDGES)
    if len(names) > 1:
        squares = dict.fromkeys(_RIDGES, 0.0)
        total = 0.0
        for name in names:
            inside, outside = folds != name, folds == name
            total += float(np.sum((codes[outside] - codes[inside].mean(axis=0)) ** 2))
            for ridge in _RIDGES:
                neutral, directions = _solve(scores[inside], codes[inside], ridge)
                squares[ridge] += float(
                    np.sum((codes[outside] - neutral - scores[outside] @ directions) ** 2)
                )
        quality = {ridge: 1.0 - squares[ridge] / total if total else None for ridge in _RIDGES}
    best = max(_RIDGES, key=lambda ridge: quality[ridge] or -np.inf)
    neutral, directions = _solve(scores, codes, best)
    fit = {"method": "ridge", "ridge": best, "held_out_r2": quality[best], "folds": len(names)}
    return ScoreRegressor(neutral=neutral, directions=directions, provenance={**source, **fit})


def _solve(
    scores: Float[np.ndarray, "n 52"], codes: Float[np.ndarray, "n z"], ridge: float
) -> tuple[Float[np.ndarray, "z"], Float[np.ndarray, "52 z"]]:
    """(neutral code, directions) of ridge regression."""
    amount = scores.sum(axis=1)
    neutral = codes[amount <= amount.min() + _CALM].mean(axis=0)
    gram = scores.T @ scores + ridge * np.eye(scores.shape[1], dtype=scores.dtype)
    return neutral, np.linalg.solve(gram, scores.T @ (codes - neutral))
