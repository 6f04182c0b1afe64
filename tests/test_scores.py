"""From 52 expression scores to codes: names, the fit and what it is worth, and the file that keeps it."""

import dataclasses
import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from dataset_fixture import write_dataset
from prior_fixture import make_prior, toy_spec

from gphm_jax.avatar import Avatar, Habits
from gphm_jax.avatar_model import bake
from gphm_jax.data.layout import open_dataset, select
from gphm_jax.data.pixels import PixelSource
from gphm_jax.errors import InputError
from gphm_jax.score_fit import encode_faces, fit_ridge, fit_to_footage
from gphm_jax.score_landmarks import examples as score_examples
from gphm_jax.score_landmarks import follow_landmarks
from gphm_jax.scores import FILE, NAMES, ScoreRegressor, load_scores, score_vector
from gphm_jax.types import Camera


def examples(noise: float, *, people: int = 6, frames: int = 30):
    """Scores, and codes that follow them up to noise."""
    rng = np.random.default_rng(0)
    scores = (rng.random((people * frames, 52)) * (rng.random((people * frames, 52)) < 0.3)).astype(
        np.float32
    )
    scores[::frames] = 0.0  # everybody's first frame is neutral
    directions = rng.standard_normal((52, 8)).astype(np.float32)
    codes = 3.0 + scores @ directions + noise * rng.standard_normal((len(scores), 8)).astype(np.float32)
    return scores, codes.astype(np.float32), np.repeat(np.arange(people), frames), directions


def test_names_become_a_vector():
    vector = score_vector({"jawOpen": 0.7, "mouthSmile": 0.5, "eyeBlinkLeft": 1})
    assert {name: float(value) for name, value in zip(NAMES, vector, strict=True) if value} == pytest.approx(
        {"jawOpen": 0.7, "mouthSmileLeft": 0.5, "mouthSmileRight": 0.5, "eyeBlinkLeft": 1.0}
    )
    with pytest.raises(InputError, match="no expression score 'jawOpne': did you mean jawOpen"):
        score_vector({"jawOpne": 0.5})
    for value in ("much", float("nan"), True):
        with pytest.raises(InputError, match="the score of jawOpen is"):
            score_vector({"jawOpen": value})


def test_the_fit_finds_the_map_and_says_what_it_is_worth():
    scores, codes, people, directions = examples(noise=0.05)
    exact = fit_ridge(scores, codes, people, {"seed": 7})
    assert exact.provenance["held_out_r2"] > 0.98 and exact.provenance["seed"] == 7
    np.testing.assert_allclose(exact.directions, directions, atol=0.15)
    np.testing.assert_allclose(exact.code(np.zeros(52)), exact.neutral)
    np.testing.assert_allclose(exact.neutral, codes[people == 0][0], atol=0.2)
    np.testing.assert_allclose(exact.code(scores[None])[0], codes, atol=0.6)
    noisy = fit_ridge(scores, examples(noise=2.0)[1], people, {})
    assert noisy.provenance["ridge"] > exact.provenance["ridge"]
    assert noisy.provenance["held_out_r2"] < 0.9 * exact.provenance["held_out_r2"]
    unrelated = fit_ridge(np.random.default_rng(1).permutation(scores), codes, people, {})
    assert unrelated.provenance["held_out_r2"] < 0.1
    assert fit_ridge(scores[:1], codes[:1], people[:1], {}).provenance["held_out_r2"] is None


def test_the_file_keeps_it_all(tmp_path):
    regressor = fit_ridge(*examples(noise=0.1)[:3], {"generator": "made up", "seed": 7})
    assert load_scores(tmp_path) is None
    regressor.save(tmp_path / FILE)
    found = load_scores(tmp_path)
    np.testing.assert_array_equal(found.code(np.ones(52)), regressor.code(np.ones(52)))
    assert found.provenance == json.loads(json.dumps(regressor.provenance))
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:500])
    with pytest.raises(InputError, match=r"cannot read .*scores\.npz"):
        load_scores(tmp_path)
    np.savez(
        tmp_path / FILE,
        neutral=np.zeros(8),
        directions=np.zeros((3, 8)),
        names=["a", "b", "c"],
        provenance="{}",
    )
    with pytest.raises(InputError, match="not for the 52 ARKit scores"):
        load_scores(tmp_path)


@pytest.fixture(scope="module")
def prior():
    return make_prior()[0]


def scored_dataset(root: pathlib.Path, *, listed: tuple[str, ...] = NAMES) -> PixelSource:
    """A dataset whose params hold scores: frame n of everybody has score n alone."""
    write_dataset(root, identities=3, frames=4, metadata={"expression_names": list(listed), "seed": 5})
    for path in root.glob("*/params/*/params.npz"):
        arrays = dict(np.load(path))
        frame = int(path.parent.name)
        arrays["exp_coeff"] = np.eye(52)[frame] * (frame > 0)
        np.savez(path, **arrays)
    return PixelSource(open_dataset(root), image_size=32, face_size=16, nonface_size=16)


def test_the_codes_are_those_of_the_frames_faces(prior, tmp_path):
    pixels = scored_dataset(tmp_path)
    items = select(pixels.dataset)
    encoder = prior.networks.expression_encoder
    codes = encode_faces(encoder, pixels, items)
    assert [len(found) for found in codes] == [3] * 12  # two views that show the face, one synthesized image
    frame = items[5].frame
    shown = np.stack([pixels.face(frame, 0), pixels.face(frame, 1), pixels.synthesized(frame, 0)])
    np.testing.assert_allclose(codes[5], encoder(jnp.asarray(shown / np.float32(255))), atol=1e-4)
    regressor = fit_to_footage(prior, pixels, items)
    neutral = np.mean([codes[n].mean(axis=0) for n in (0, 4, 8)], axis=0)
    np.testing.assert_allclose(regressor.neutral, neutral, atol=1e-4)
    assert regressor.provenance["frames"] == 12 and regressor.provenance["seed"] == 5
    assert np.abs(regressor.directions[1:4]).max() > 0.0 and not regressor.directions[4:].any()


@pytest.mark.parametrize("listed", [(), NAMES[:-1]])
def test_footage_without_scores_is_passed_over_with_a_word(prior, tmp_path, caplog, listed):
    caplog.set_level("INFO", logger="absl")
    pixels = scored_dataset(tmp_path, listed=listed)
    assert fit_to_footage(prior, pixels, select(pixels.dataset)) is None
    assert "does not list the 52 ARKit scores" in caplog.text


def test_an_avatar_takes_its_map_along(prior, tmp_path):
    spec = toy_spec(prior)
    z = np.zeros(spec.networks.expression_dim, np.float32)
    camera = Camera(world_to_camera=np.eye(4, dtype=np.float32), intrinsics=np.eye(3, dtype=np.float32))
    scores = fit_ridge(*examples(noise=0.1)[:3], {})
    avatar = Avatar(
        bake(prior, prior.subjects.codes[...][0], spec, seed=0),
        spec,
        Habits(expression=z, motion=z, camera=camera),
        scores=scores,
    )
    avatar.save(tmp_path / "avatar")
    loaded = Avatar.load(tmp_path / "avatar")
    np.testing.assert_array_equal(loaded.scores.code(np.ones(52)), scores.code(np.ones(52)))
    shutil.copytree(tmp_path / "avatar", tmp_path / "older")
    (tmp_path / "older" / FILE).unlink()
    assert Avatar.load(tmp_path / "older").scores is None
    assert isinstance(loaded.scores, ScoreRegressor)


def test_landmarks_are_made_to_follow_the_scores(prior):
    """The movements of the codes that some map gives are learnt anew from a map that knows nothing."""
    scores, codes, people, _ = examples(noise=0.0)
    ridge = fit_ridge(scores, codes, people, {"seed": 7})
    true = dataclasses.replace(ridge, directions=ridge.directions / 30.0)
    features = prior.networks.inject(prior.landmark_features[...], prior.subjects.codes[...][:1])
    shifts = prior.networks.expression(
        features[:, None],
        jnp.asarray(true.neutral + np.concatenate([np.zeros((1, 8)), true.directions]))[None],
    )
    basis = np.moveaxis(np.asarray(shifts[0, 1:] - shifts[0, :1]), 0, -1)
    faces = true.code(score_examples(64, seed=3))
    blank = dataclasses.replace(true, directions=np.zeros_like(true.directions))
    tuned = follow_landmarks(prior, blank, faces, basis, steps=60)
    assert tuned.provenance["landmarks_r2_at_first"] == pytest.approx(0.0, abs=1e-5)
    assert tuned.provenance["landmarks_r2"] > 0.5 and tuned.provenance["seed"] == 7
    np.testing.assert_array_equal(tuned.neutral, true.neutral)
    # What follows stays among the faces' codes: no worse than twice as far from their mean.
    far = np.linalg.norm(tuned.code(score_examples(64, seed=4)) - faces.mean(axis=0), axis=1)
    assert far.mean() < 2.0 * np.linalg.norm(faces - faces.mean(axis=0), axis=1).mean()
