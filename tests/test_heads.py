"""A head model as something to draw: what training leaves of its frames, known and sampled people, wrong folders."""

import jax.numpy as jnp
import numpy as np
import pytest
from prior_fixture import SETTINGS, save_prior
from test_scores import scored_dataset

from gphm_jax.data.layout import select
from gphm_jax.errors import InputError
from gphm_jax.heads import FILE, load_heads, save_frames
from gphm_jax.score_fit import fit_to_footage
from gphm_jax.scores import FILE as SCORES_FILE


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A finished run: three people, four frames each."""
    path = tmp_path_factory.mktemp("run")
    prior = save_prior(path)
    pixels = scored_dataset(path / "data")
    items = select(pixels.dataset)
    scores = fit_to_footage(prior, pixels, items)
    scores.save(path / SCORES_FILE)
    save_frames(path / FILE, prior.networks, pixels, items, scores)
    return path


@pytest.fixture(scope="module")
def heads(workdir):
    return load_heads(workdir)


def test_a_known_person_is_drawn_with_a_training_frames_expression(workdir, heads):
    assert heads.identities == ("a", "b", "c") and heads.frames[5] == "001/0001"
    assert heads.expressions.shape == (12, 8)
    face = scored_dataset(workdir / "again")  # the same pictures
    frame = face.dataset.frames[5]
    avatar = heads.avatar(heads.codes[1])
    frontal = int(np.argmax(frame.facing))
    np.testing.assert_allclose(avatar.encode(face.face(frame, frontal)), heads.expressions[5], atol=1e-4)
    image, alpha = avatar.render(heads.expressions[5])
    assert image.shape == (SETTINGS.data.image_size,) * 2 + (3,) and float(alpha.max()) > 0.9
    assert np.abs(image - avatar.render(heads.expressions[0])[0]).max() > 1e-4
    assert np.abs(image - heads.avatar(heads.codes[0]).render(heads.expressions[5])[0]).max() > 1e-3
    np.testing.assert_allclose(avatar.habits.expression, heads.scores.neutral)
    np.testing.assert_array_equal(avatar.scores.code(np.ones(52)), heads.scores.code(np.ones(52)))


def test_the_habitual_camera_is_frontal(heads):
    matrix = np.asarray(heads.habits.camera.world_to_camera, np.float64)
    eye = -matrix[:3, :3].T @ matrix[:3, 3]
    assert eye[2] / np.linalg.norm(eye) > 0.9


def test_samples_have_the_known_codes_distribution(heads):
    np.testing.assert_array_equal(heads.sample(3), heads.sample(3))
    samples = np.stack([heads.sample(seed) for seed in range(400)])
    assert np.linalg.norm(samples, axis=1).max() < 1.0 + 1e-5
    # In the plane through three codes, unless the ball cuts them off.
    inside = samples[np.linalg.norm(samples, axis=1) < 0.999]
    offsets = heads.codes[1:] - heads.codes[0]
    solved = np.linalg.lstsq(offsets.T, (inside - heads.codes[0]).T, rcond=None)[0]
    np.testing.assert_allclose(offsets.T @ solved, (inside - heads.codes[0]).T, atol=1e-5)
    assert len(inside) > 100 and np.abs(inside - inside[0]).max() > 0.1


def test_codes_outside_the_ball_are_taken_to_it(heads):
    far = 5.0 * heads.codes[1] / np.linalg.norm(heads.codes[1])
    one = heads.avatar(far).render(heads.expressions[0])[0]
    np.testing.assert_allclose(
        one, heads.avatar(jnp.asarray(far / 5.0)).render(heads.expressions[0])[0], atol=1e-5
    )


def test_different_expressions_differ(heads):
    rows = heads.different_expressions(5, seed=1)
    assert len(set(rows)) == 5 and rows == heads.different_expressions(5, seed=1)
    assert len(heads.different_expressions(99, seed=0)) == 12
    codes = heads.expressions
    second = np.linalg.norm(codes - codes[rows[0]], axis=1)
    assert second[rows[1]] == second.max()


def test_wrong_and_unfinished_folders_are_named(workdir, tmp_path):
    with pytest.raises(InputError, match="no trained prior in"):
        load_heads(tmp_path / "nothing")
    save_prior(tmp_path / "cut")
    with pytest.raises(InputError, match="training in .*cut has not come to its end"):
        load_heads(tmp_path / "cut")
    (tmp_path / "cut" / "metrics.json").write_text("{}")
    with pytest.raises(InputError, match=r"cut has no heads\.npz.*remove metrics\.json"):
        load_heads(tmp_path / "cut")
    (tmp_path / "fit" / "avatar").mkdir(parents=True)
    with pytest.raises(InputError, match="holds an avatar, not a head model"):
        load_heads(tmp_path / "fit")
    (tmp_path / "cut" / FILE).write_bytes((workdir / FILE).read_bytes()[:300])
    with pytest.raises(InputError, match=r"cannot read .*heads\.npz"):
        load_heads(tmp_path / "cut")
