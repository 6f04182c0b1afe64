"""The synthetic heads as a linear model: principal components over random people, and the 52 ARKit units."""

from __future__ import annotations

import pathlib

import numpy as np
from jaxtyping import Bool, Float, Int

from gphm_jax.data.synthetic import base, identity, landmarks

PEOPLE = 1200
COMPONENTS = 80
SEED = 1_900_000_001  # a seed of its own: people of any data set stay unseen
# Standard deviation of a unit over a talking face: most units rest most of the time.
_UNIT_SPREAD = 0.35
_AT_ONCE = 100  # bodies in memory
_NECK_WEIGHT = 0.1  # of vertices below the skull among the components: a neck is no part of a face


def source_files() -> tuple[pathlib.Path, ...]:
    """The files that decide the model."""
    return (*base.source_files(identity.TARGET_FOLDERS), landmarks.MEDIAPIPE_TABLE)


def build() -> dict[str, np.ndarray]:
    """Arrays of `gphm_jax.morphable.MorphableModel` by name; landmark sets are `<scheme>/vertices` and so on."""
    kept = head_vertices()
    people, head_length = _people(kept)
    mean = people.mean(0)
    arrays = {
        "mean": mean,
        "identity_basis": _components(people - mean, base.load().head_weight[kept] > 0.99),
        "expression_basis": _units(kept) / head_length,
        "expression_spread": np.full(len(base.ARKIT), _UNIT_SPREAD, np.float32),
        "expression_range": np.tile(np.array([0.0, 1.0], np.float32), (len(base.ARKIT), 1)),
        "faces": triangles(kept),
    }
    for scheme, marks in (("ibug68", landmarks.ibug68()), ("mediapipe478", landmarks.mediapipe478())):
        arrays[f"{scheme}/vertices"] = np.searchsorted(kept, marks.vertices).astype(np.int32)
        arrays[f"{scheme}/weights"] = marks.weights
        arrays[f"{scheme}/trust"] = marks.trust
        arrays[f"{scheme}/drift"] = marks.drift
    return arrays


def head_vertices() -> Int[np.ndarray, "n"]:
    """Skin from the neck up, and the eyes."""
    mesh = base.load()
    body = np.arange(len(mesh.vertices)) < base.BODY_VERTICES
    return np.flatnonzero((body & (mesh.head_weight > 0.01)) | mesh.is_eye)


def triangles(kept: Int[np.ndarray, "n"]) -> Int[np.ndarray, "m 3"]:
    """Triangles among the kept vertices, by their place in `kept`."""
    mesh = base.load()
    place = np.full(len(mesh.vertices), -1, np.int32)
    place[kept] = np.arange(len(kept))
    quads = np.concatenate([mesh.faces[name] for name in ("body", "helper-l-eye", "helper-r-eye")])[:, :, 0]
    corners = place[quads]
    corners = corners[(corners >= 0).all(1)]
    return np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])


def _people(kept: Int[np.ndarray, "n"]) -> tuple[Float[np.ndarray, "p n 3"], np.float32]:
    """Neutral heads of random people in canonical space, and their mean length in the mesh's unit."""
    mesh = base.load()
    weights = [
        identity.target_weights(identity.sample(seed=SEED, index=k).coefficients) for k in range(PEOPLE)
    ]
    names = sorted(set().union(*weights))
    table = np.array([[person.get(name, 0.0) for name in names] for person in weights], np.float32)
    offsets = np.zeros((len(names), *mesh.vertices.shape), np.float32)
    for k, name in enumerate(names):
        base.apply(offsets[k], base.target(name), 1.0)
    heads, lengths = np.empty((PEOPLE, len(kept), 3), np.float32), np.empty(PEOPLE, np.float32)
    for first in range(0, PEOPLE, _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        bodies = mesh.vertices + (table[part] @ offsets.reshape(len(names), -1)).reshape(
            -1, *mesh.vertices.shape
        )
        for k, body in enumerate(bodies, first):
            origin, lengths[k] = base.head_frame(body)
            heads[k] = (body[kept] - origin) / lengths[k]
    return heads, lengths.mean()


def _components(
    deviations: Float[np.ndarray, "p n 3"], skull: Bool[np.ndarray, "n"]
) -> Float[np.ndarray, "n 3 ki"]:
    """Principal directions, each as long as its standard deviation."""
    weight = np.where(skull, 1.0, _NECK_WEIGHT).astype(np.float32)[:, None]
    flat = (deviations * weight).reshape(len(deviations), -1)
    values, vectors = np.linalg.eigh((flat @ flat.T).astype(np.float64))  # people are fewer than coordinates
    order = np.argsort(values)[::-1][:COMPONENTS]
    # A person's coefficients are vectors * sqrt(p); the basis is the regression of all vertices on them.
    coefficients = vectors[:, order] * np.sqrt(len(deviations))
    basis = deviations.reshape(len(deviations), -1).T @ coefficients.astype(np.float32) / len(deviations)
    return np.ascontiguousarray(basis.reshape(*deviations.shape[1:], -1))


def _units(kept: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n 3 52"]:
    """The 52 expression units in the mesh's unit."""
    offsets = np.zeros((len(base.ARKIT), *base.load().vertices.shape), np.float32)
    for offset, unit in zip(offsets, base.units(), strict=True):
        base.apply(offset, unit, 1.0)
    return np.ascontiguousarray(np.moveaxis(offsets[:, kept], 0, -1))
