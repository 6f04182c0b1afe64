"""A step's own work: smaller pictures under cameras that fit them, and gains that reach its losses."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gphm_jax import step
from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianModel
from gphm_jax.geometry import to_pixels
from gphm_jax.guide import GuideModel
from gphm_jax.step import downscaled
from gphm_jax.types import Render
from tests.tiny_models import batch


def test_downscaled_pictures_fit_their_cameras():
    whole = batch(views=2)
    half = downscaled(whole, 2)
    assert half.image.shape == (2, 2, 2, 8, 8, 3) and half.mask.shape == (2, 2, 2, 8, 8)
    np.testing.assert_allclose(half.image[1, 0, 1, 3, 5], whole.image[1, 0, 1, 6:8, 10:12].mean((0, 1)), atol=1e-6)
    np.testing.assert_allclose(half.mask[0, 1, 0, 2, 4], whole.mask[0, 1, 0, 4:6, 8:10].mean(), atol=1e-6)
    points = whole.landmarks[:, :, None]
    np.testing.assert_allclose(to_pixels(points, half.camera), to_pixels(points, whole.camera) / 2, rtol=1e-5)
    np.testing.assert_array_equal(half.face_image, whole.face_image)
    np.testing.assert_array_equal(half.recorded, whole.recorded / 2)


def test_no_loss_looks_at_what_no_camera_recorded(monkeypatch):
    """Other pixels beyond the recorded box change no term; the same pixels within change each."""
    monkeypatch.setattr(step, "lpips", lambda _, a, b: jnp.mean(jnp.abs(a - b), axis=(-3, -2, -1)))
    data = batch(views=2)
    box = jnp.broadcast_to(jnp.float32([2, 0, 16, 10.5]), data.recorded.shape)
    data = dataclasses.replace(data, recorded=box)
    seen = np.zeros((16, 16), bool)
    seen[:10, 2:] = True
    features = jax.random.uniform(jax.random.key(1), (*data.image.shape[:-1], 32))
    picture = Render(features=features, alpha=features[..., 3], fine=features[..., 4:7])
    weights = step.LossWeights(silhouette=1.0, perceptual=1.0, perceptual_crop=16, face_gain=2.0)

    def terms(where):
        spoilt = jax.tree.map(
            lambda x: jnp.where(where.reshape(1, 1, 1, 16, 16, *[1] * (x.ndim - 5)), 0.5, x), picture
        )
        return step.image_losses(spoilt, data, None, jax.random.key(0), weights)

    none = np.zeros_like(seen)
    plain, beyond, within = (terms(jnp.asarray(where)) for where in (none, ~seen, seen))
    assert plain.keys() == {"fine", "coarse", "silhouette", "perceptual", "psnr"}
    for name, value in plain.items():
        np.testing.assert_array_equal(value, beyond[name])
        assert np.abs(value - within[name]).min() > 1e-4, name
    wanted = np.abs(picture.fine - data.image)[..., :10, 2:, :].mean((-3, -2, -1))
    plain = step.image_losses(picture, data, None, jax.random.key(0), dataclasses.replace(weights, face_gain=1.0))
    np.testing.assert_allclose(plain["fine"], wanted, rtol=1e-5)  # no smaller for the padding


def test_downscale_must_divide():
    with pytest.raises(InputError, match="downscale=3"):
        downscaled(batch(), 3)


def test_gains_reach_both_stages_losses(monkeypatch):
    """The eyes' gain weighs their pixels and their landmarks, the face's the pixels of its box."""
    data = batch(views=2)
    spread = jax.random.uniform(jax.random.key(0), (2, 2, 68, 3), minval=-0.3, maxval=0.3)
    data = dataclasses.replace(data, landmarks=spread)
    features = jax.random.uniform(jax.random.key(1), (*data.image.shape[:-1], 32))
    picture = Render(features=features, alpha=data.mask, fine=features[..., :3])
    off = jnp.zeros((2, 2, 68, 3)).at[..., 40, :].set(0.1)  # one landmark, of an eye
    output = SimpleNamespace(
        landmarks=spread + off, displacement=jnp.zeros((2, 2)), vertex_count=jnp.ones(()), overflow=jnp.zeros(())
    )
    stages = {  # models that are never run
        "render_guide": (step.guide_losses, GuideModel.__new__(GuideModel)),
        "render_gaussians": (step.gaussian_losses, GaussianModel.__new__(GaussianModel)),
    }
    for name, (terms, model) in stages.items():
        monkeypatch.setattr(step, name, lambda *_: (picture, output))

        def weighed(terms=terms, model=model, **gains):
            weights = step.LossWeights(perceptual=0.0, **gains)
            found = terms(model, data, None, jax.random.key(0), step.StepContext(weights=weights))
            return {key: float(jnp.mean(found[key])) for key in ("fine", "coarse", "landmarks")}

        plain, face, eyes = weighed(), weighed(face_gain=4.0), weighed(eye_gain=5.0)
        np.testing.assert_allclose(plain["landmarks"], 0.03 / 68, rtol=1e-4)
        np.testing.assert_allclose(eyes["landmarks"], 5 * plain["landmarks"], rtol=1e-4)
        assert face["landmarks"] == plain["landmarks"]
        for key in ("fine", "coarse"):
            assert len({plain[key], face[key], eyes[key]}) == 3, (name, key)
