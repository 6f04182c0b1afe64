"""The embedded face model: its space, its landmarks and its file."""

from __future__ import annotations

import numpy as np
import pytest

from gphm_jax import assets, morphable
from gphm_jax.data.synthetic import base, identity, landmarks, linear
from gphm_jax.errors import InputError
from gphm_jax.paths import cache_folder


@pytest.fixture(scope="module")
def model() -> morphable.MorphableModel:
    return morphable.embedded()


def _person(seed: int, index: int) -> tuple[np.ndarray, np.ndarray, float]:
    vertices = identity.base_vertices(identity.sample(seed=seed, index=index).coefficients)
    origin, length = base.head_frame(vertices)
    return vertices, origin, length


def test_mean_head_lies_in_canonical_space(model):
    points = np.asarray(model.landmarks("ibug68", np.zeros(80), np.zeros(52)))
    crown, chin = model.mean[:, 1].max(), points[8, 1]
    assert crown - chin == pytest.approx(1.0, abs=0.02)
    assert points[30, 2] > 0.3 and abs(points[30, 0]) < 0.01, "the nose points along +z"
    assert points[36:42, 0].mean() < 0 < points[42:48, 0].mean(), "the person's right eye is at -x"


def test_unseen_people_are_explained(model):
    """People of another seed, by coefficients of ordinary size, to a hundredth of a head."""
    kept = linear.head_vertices()
    skull = base.load().head_weight[kept] > 0.99
    for index in range(4):
        vertices, origin, length = _person(5, index)
        deviation = (vertices[kept] - origin) / length - model.mean
        basis = model.identity_basis[skull].reshape(-1, 80)
        coefficients = np.linalg.lstsq(basis, deviation[skull].ravel(), rcond=None)[0]
        left = deviation[skull].ravel() - basis @ coefficients
        assert (
            np.linalg.norm(left.reshape(-1, 3), axis=-1).max()
            < 0.02
            < np.linalg.norm(deviation, axis=-1).max()
        )
        assert 0.5 < np.sqrt((coefficients**2).mean()) < 2.0, "a coefficient of 1 is a standard deviation"


def test_landmarks_are_points_of_the_shape(model):
    rng = np.random.default_rng(0)
    person, face = rng.normal(size=80).astype(np.float32), rng.uniform(size=52).astype(np.float32)
    shape = np.asarray(model.shape(person, face))
    for scheme, count in (("ibug68", 68), ("mediapipe478", 478)):
        marks = model.landmark_sets[scheme]
        expected = np.einsum("kcx,kc->kx", shape[marks.vertices], marks.weights)
        np.testing.assert_allclose(model.landmarks(scheme, person, face), expected, atol=1e-5)
        assert len(expected) == count
        np.testing.assert_allclose(marks.weights.sum(1), 1.0, atol=1e-3)
    batched = model.landmarks("ibug68", np.stack([person, 0 * person]), np.stack([face, face]))
    assert batched.shape == (2, 68, 3) and np.abs(batched[0] - batched[1]).max() > 0.01


def test_units_move_what_they_are_called_after(model):
    kept = linear.head_vertices()
    jaw, blink = (base.ARKIT.index(name) for name in ("jawOpen", "eyeBlinkLeft"))
    assert model.expression_names == base.ARKIT
    at = {name: np.searchsorted(kept, landmarks.LANDMARKS[k]) for name, k in {"chin": 8, "brow": 19}.items()}
    assert model.expression_basis[at["chin"], 1, jaw] < -0.05
    assert abs(model.expression_basis[at["brow"], 1, jaw]) < 0.005
    assert np.abs(model.expression_basis[..., blink]).max() > 0.02


def test_both_detectors_mark_the_same_eyes_and_mouth(model):
    ours, theirs = (morphable_points(model, scheme) for scheme in morphable.SCHEMES)
    # MediaPipe's corners of the eyes and of the mouth, left and right irises.
    for number, mark in ((33, 36), (263, 45), (61, 48), (291, 54), (1, 30)):
        assert np.linalg.norm(theirs[number] - ours[mark]) < 0.04
    assert np.linalg.norm(theirs[468] - ours[36:42].mean(0)) < 0.05
    assert np.linalg.norm(theirs[473] - ours[42:48].mean(0)) < 0.05


def morphable_points(model: morphable.MorphableModel, scheme: str) -> np.ndarray:
    return np.asarray(model.landmark_part(scheme).mean)


def test_an_unknown_scheme_is_named(model):
    with pytest.raises(InputError, match="no landmarks 'pose33', only: ibug68, mediapipe478"):
        model.landmark_part("pose33")


def test_the_file_is_used_until_the_recipe_changes(monkeypatch, tmp_path, model):
    with np.load(cache_folder() / "morphable" / "embedded.npz") as file:
        arrays = {name: file[name] for name in file.files if not name.startswith("recipe/")}
    built: list[int] = []
    monkeypatch.setenv("GPHM_ASSETS", str(assets.default_folder()))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(linear, "build", lambda: built.append(1) or arrays)
    first, again = morphable.embedded(), morphable.embedded()
    assert len(built) == 1
    np.testing.assert_array_equal(again.identity_basis, first.identity_basis)
    monkeypatch.setattr(linear, "SEED", linear.SEED + 1)
    morphable.embedded()
    assert len(built) == 2, "another seed is another model"
    path = tmp_path / "gphm_jax" / "morphable" / "embedded.npz"
    path.write_bytes(path.read_bytes()[:1000])
    np.testing.assert_array_equal(morphable.embedded().mean, model.mean)
    assert len(built) == 3, "a file cut short is made again"
    assert [p.name for p in path.parent.iterdir()] == ["embedded.npz"]
