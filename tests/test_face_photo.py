"""The face of a real photograph, cut out for the expression encoder."""

import numpy as np
import pytest
from skimage import data

from gphm_jax.capture import face_photo
from gphm_jax.capture.face_photo import face_of
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.errors import InputError
from gphm_jax.files import write_image


def test_a_photos_face_fills_its_cut_out(tmp_path):
    write_image(tmp_path / "photo.png", data.astronaut())
    face = face_of(tmp_path / "photo.png")
    with open_landmarker("mediapipe") as finder:
        (found,) = finder.detect(face)
    left, top, right, bottom = np.array(found.box) / face.shape[0]
    assert 0.6 < right - left < 1.0 and abs((left + right) / 2 - 0.5) < 0.1
    assert 0.6 < bottom - top < 1.0 and abs((top + bottom) / 2 - 0.5) < 0.15


def test_a_photo_without_a_face_is_named(tmp_path):
    write_image(tmp_path / "wall.png", np.full((64, 64, 3), 120, np.uint8))
    with pytest.raises(InputError, match=r"wall\.png"):
        face_of(tmp_path / "wall.png")


def test_a_face_turned_too_far_is_named(tmp_path, monkeypatch):
    """Preparing writes no face image of a profile."""
    monkeypatch.setattr(face_photo, "preprocess_all", lambda photo, out, settings: None)
    with pytest.raises(InputError, match=r"the face in .*side\.png is turned too far"):
        face_of(tmp_path / "side.png")
