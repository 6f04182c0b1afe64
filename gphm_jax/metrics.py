"""Figures of merit of a picture against the truth, one value an image."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

SSIM_WINDOW = 11  # pixels a side
SSIM_SIGMA = 1.5  # pixels
MAX_PSNR = 100.0  # dB, what equal pictures get


def psnr(
    image: Float[Array | np.ndarray, "*b h w c"],
    truth: Float[Array | np.ndarray, "*b h w c"],
    mask: Float[Array | np.ndarray, "*b h w"] | None = None,
) -> Float[Array, "*b"]:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: -10 log10(mean squared error), at most 100.

    With `mask`, the mean is weighted by it; an image whose mask is empty has no value and gives NaN, which the
    caller leaves out of its mean (`mean_of`).
    """
    error = jnp.mean((jnp.asarray(image) - truth) ** 2, axis=-1)
    if mask is None:
        mean = jnp.mean(error, axis=(-2, -1))
    else:
        mean = jnp.sum(error * mask, axis=(-2, -1)) / jnp.sum(jnp.asarray(mask), axis=(-2, -1))
    return -10.0 * jnp.log10(jnp.maximum(mean, 10.0 ** (-MAX_PSNR / 10.0)))


def mean_of(name: str, values: Float[np.ndarray, "n"]) -> float | None:
    """The mean of a named figure over pictures.

    That of a PSNR inside a part of the picture leaves pictures without that part out; None when all are. Any other
    figure that is NaN stays so: it tells of a broken picture.
    """
    known = values.astype(np.float64)
    if name in ("psnr_mask", "psnr_face_right", "psnr_face_wrong"):
        known = known[~np.isnan(known)]
    return float(np.mean(known)) if known.size else None


def ssim(
    image: Float[Array | np.ndarray, "*b h w c"], truth: Float[Array | np.ndarray, "*b h w c"]
) -> Float[Array, "*b"]:
    """Structural similarity of images in [0, 1] (Wang et al. 2004), the mean over pixels and channels.

    (2 mx my + C1)(2 sxy + C2) / ((mx^2 + my^2 + C1)(sx^2 + sy^2 + C2)), C1 = 0.01^2, C2 = 0.03^2, with moments
    under an 11 x 11 Gaussian window of sigma 1.5 that lies wholly inside the image (no padding), population
    (not sample) variances: the definition of the original code, and of scikit-image with `gaussian_weights=True`
    and `use_sample_covariance=False`. Raises ValueError for an image smaller than the window.
    """
    height, width = image.shape[-3:-1]
    if min(height, width) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs images of at least {SSIM_WINDOW} pixels a side, not {height}x{width}")
    image, truth = jnp.asarray(image), jnp.asarray(truth)
    mean_image, mean_truth = _smooth(image), _smooth(truth)
    variance_image = _smooth(image**2) - mean_image**2
    variance_truth = _smooth(truth**2) - mean_truth**2
    covariance = _smooth(image * truth) - mean_image * mean_truth
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2.0 * mean_image * mean_truth + c1) / (mean_image**2 + mean_truth**2 + c1)
    structure = (2.0 * covariance + c2) / (variance_image + variance_truth + c2)
    return jnp.mean(luminance * structure, axis=(-3, -2, -1))


def _smooth(x: Float[Array, "*b h w c"]) -> Float[Array, "*b h2 w2 c"]:
    """The window's weighted mean wherever it fits: two one-dimensional passes of shifted sums, which XLA fuses."""
    offsets = np.arange(SSIM_WINDOW) - SSIM_WINDOW // 2
    window = np.exp(-0.5 * (offsets / SSIM_SIGMA) ** 2)
    window = (window / window.sum()).tolist()  # Python floats: they take the image's precision
    rows, columns = x.shape[-3] - SSIM_WINDOW + 1, x.shape[-2] - SSIM_WINDOW + 1
    x = sum(window[i] * x[..., i : i + rows, :, :] for i in range(SSIM_WINDOW))
    return sum(window[i] * x[..., :, i : i + columns, :] for i in range(SSIM_WINDOW))
