import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.metrics import structural_similarity

from gphm_jax import metrics


def test_psnr_is_that_of_a_known_error():
    truth = np.full((2, 4, 5, 3), 0.5, np.float32)
    image = truth + np.array([0.1, 0.01], np.float32)[:, None, None, None]
    np.testing.assert_allclose(metrics.psnr(image, truth), [20.0, 40.0], rtol=1e-4)
    np.testing.assert_allclose(metrics.psnr(truth, truth), [100.0, 100.0])


def test_psnr_under_a_mask_sees_only_the_mask():
    rng = np.random.default_rng(0)
    truth = rng.uniform(size=(3, 8, 8, 3)).astype(np.float32)
    image = rng.uniform(size=(3, 8, 8, 3)).astype(np.float32)
    mask = np.zeros((3, 8, 8), np.float32)
    mask[:2, 2:5, 1:7] = 1.0
    expected = -10.0 * np.log10(np.mean((image - truth)[:, 2:5, 1:7] ** 2, axis=(1, 2, 3)))
    measured = metrics.psnr(image, truth, mask)
    np.testing.assert_allclose(measured[:2], expected[:2], rtol=1e-5)
    assert np.isnan(measured[2])  # an empty mask has no value
    changed = np.where(mask[..., None] > 0, image, 0.0).astype(np.float32)
    np.testing.assert_array_equal(metrics.psnr(changed, truth, mask)[:2], measured[:2])


def test_ssim_is_scikit_image():
    rng = np.random.default_rng(1)
    truth = rng.uniform(size=(2, 19, 24, 3)).astype(np.float32)
    image = np.clip(truth + 0.2 * rng.normal(size=truth.shape), 0.0, 1.0).astype(np.float32)
    expected = [
        structural_similarity(
            x.astype(np.float64),
            y.astype(np.float64),
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=1.0,
            channel_axis=-1,
        )
        for x, y in zip(image, truth, strict=True)
    ]
    assert 0.1 < min(expected) < max(expected) < 0.95
    np.testing.assert_allclose(metrics.ssim(image, truth), expected, atol=2e-5)  # variances cancel in float32
    np.testing.assert_allclose(metrics.ssim(truth, truth), [1.0, 1.0], atol=1e-5)


def test_ssim_has_a_finite_gradient_at_flat_pictures():
    flat = jnp.ones((12, 12, 3))
    gradient = jax.grad(lambda x: metrics.ssim(x, 0.5 * flat))(flat)
    assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0.0


def test_ssim_refuses_pictures_smaller_than_its_window():
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(np.zeros((10, 32, 3), np.float32), np.zeros((10, 32, 3), np.float32))


def test_means_leave_out_empty_masks_and_show_broken_pictures():
    values = np.array([20.0, np.nan, 30.0], np.float32)
    assert metrics.mean_of("psnr_mask", values) == 25.0
    assert metrics.mean_of("psnr_face_wrong", values[1:2]) is None
    assert np.isnan(metrics.mean_of("psnr", values))
