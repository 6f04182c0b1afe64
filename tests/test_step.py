"""A step's own work on its batch: smaller pictures under cameras that fit them."""

import numpy as np
import pytest

from gphm_jax.errors import InputError
from gphm_jax.geometry import to_pixels
from gphm_jax.step import downscaled
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


def test_downscale_must_divide():
    with pytest.raises(InputError, match="downscale=3"):
        downscaled(batch(), 3)
