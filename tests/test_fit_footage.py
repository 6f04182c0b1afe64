"""What a fit may correct in its footage, and what it cuts away: cameras and head poses, the trunk."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from dataset_fixture import LANDMARKS, write_dataset
from fit_fixture import finetune_fit, first_batch, make_toy, run_steps
from flax import nnx

from gphm_jax.fit_region import BELOW_CHIN, head_footage, head_model
from gphm_jax.fit_settings import FinetuneSettings, FitWeights
from gphm_jax.fitting import finetune_step
from gphm_jax.optim import Rates

STILL = Rates(**{field.name: 0.0 for field in dataclasses.fields(Rates)})


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = write_dataset(tmp_path_factory.mktemp("footage"), identities=1, frames=4)
    return make_toy(path)


def shown(fit, batch):
    return nnx.jit(lambda fit, batch: fit.picture(batch, "auto"))(fit, batch)


def test_a_wrong_head_pose_is_corrected(toy):
    footage = toy[0]
    fit, batch = finetune_fit(toy), first_batch(toy[0])
    seen = dataclasses.replace(batch, image=np.asarray(shown(fit, batch).fine))
    off = np.array([0.0, 0.0, 0.0, 0.03, -0.02, 0.0], np.float32)
    wrong = dataclasses.replace(
        seen, pose=dataclasses.replace(seen.pose, translation=seen.pose.translation + off[3:])
    )
    settings = FinetuneSettings(
        losses=FitWeights(perceptual=0.0, correction=0.01),
        rates=dataclasses.replace(STILL, pose_corrections=3e-3),
    )
    step = finetune_step(fit, settings, networks=(), cameras=True, backend="auto", seed=0)
    fitted, rows = run_steps(step, footage, 30, wrong)
    assert rows[-1]["fine"] < 0.4 * rows[0]["fine"]
    learnt = np.asarray(fitted.pose_corrections[...])
    row = int(batch.frame[0, 0])
    np.testing.assert_allclose(learnt[row, 3:5], -off[3:5], atol=0.01)
    assert np.abs(np.delete(learnt, row, axis=0)).max() == 0.0  # the other frames have said nothing
    held = finetune_step(fit, settings, networks=(), cameras=False, backend="auto", seed=0)
    assert "correction" not in run_steps(held, footage, 1, wrong)[1][0]


def test_corrected_footage_shows_what_the_fit_saw(toy):
    footage = toy[0]
    fit, batch = finetune_fit(toy), first_batch(toy[0])
    item = footage.training[0]
    delta = np.array([0.02, -0.05, 0.03, 0.01, 0.02, -0.03], np.float32)
    fit.pose_corrections[...] = fit.pose_corrections[...].at[item.frame.row].set(delta)
    fit.log_focal[...] = jnp.float32(0.2)
    poses = np.asarray(fit.pose_corrections[...])
    corrected = footage.corrected(poses, 0.2)
    plain = finetune_fit(toy)
    expected = np.asarray(shown(fit, batch).fine)
    np.testing.assert_allclose(shown(plain, first_batch(corrected)).fine, expected, atol=2e-4)
    assert np.abs(np.asarray(shown(plain, batch).fine) - expected).max() > 0.05
    # A frame without a correction keeps its pose, and gets the focal length.
    other, before = corrected.training[1].frame, footage.training[1].frame
    np.testing.assert_array_equal(other.rotation, before.rotation)
    np.testing.assert_allclose(other.intrinsics[:, 0, 0], before.intrinsics[:, 0, 0] * np.exp(0.2), rtol=1e-5)


def test_the_head_alone_has_no_trunk(toy):
    footage, prior, codes = toy
    chin = LANDMARKS[:, 1].min()
    whole = np.asarray(prior.positions[...])
    kept = whole[:, 1] > chin - BELOW_CHIN
    head = head_model(prior)
    np.testing.assert_array_equal(head.positions[...], whole[kept])
    assert 50 < kept.sum() < 250 and len(prior.positions[...]) == 300
    # Rows stay sorted by the weight of expression, and the regions end where theirs do.
    weight = np.asarray(head.weight[...])
    assert np.all(weight[: head.regions.expression_end] > 0) and not np.any(weight[head.regions.expression_end :])
    assert np.all(weight[head.regions.motion_start :] < 1)
    cut = head_footage(footage, prior, codes, backend="auto")
    frame = footage.training[0].frame
    (image, mask), (old_image, old_mask) = cut.pixels.view(frame, 0), footage.pixels.view(frame, 0)
    assert mask.dtype == old_mask.dtype == np.uint8 and image.dtype == np.uint8
    top, bottom = np.s_[:12], np.s_[24:]
    assert old_mask[bottom].max() == 255 and mask[bottom].mean() < 0.3 * old_mask[bottom].mean()
    assert mask[top].mean() > 0.4 * old_mask[top].mean() > 10  # random networks shake the ball
    inside = old_mask == 255
    share = mask[inside][:, None] / 255
    assert share.min() < 0.1 and share.max() > 0.9
    np.testing.assert_allclose(image[inside], old_image[inside] * share + 255 * (1 - share), atol=1.01)
