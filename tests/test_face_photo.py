"""The face of a real photograph, cut out for the expression encoder."""

import contextlib

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from skimage import data

from gphm_jax.capture import face_photo
from gphm_jax.capture.face_photo import FaceReader, turned
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.errors import InputError
from gphm_jax.files import write_image


@pytest.fixture(scope="module")
def reader():
    with contextlib.closing(FaceReader()) as opened:
        yield opened


def test_a_photos_face_fills_its_cut_out(reader, tmp_path):
    write_image(tmp_path / "photo.png", data.astronaut())
    face = reader.read_file(tmp_path / "photo.png", 96)
    assert face.image.shape == (96, 96, 3)
    assert face.scores["mouthSmileLeft"] > 0.5 and face.scores["jawOpen"] < 0.3  # she smiles, and shows her teeth
    with open_landmarker("mediapipe") as finder:
        (found,) = finder.detect(face.image)
    left, top, right, bottom = np.array(found.box) / face.image.shape[0]
    assert 0.6 < right - left < 1.0 and abs((left + right) / 2 - 0.5) < 0.1
    assert 0.6 < bottom - top < 1.0 and abs((top + bottom) / 2 - 0.5) < 0.15


@pytest.mark.parametrize("degrees", [0.0, -30.0, 60.0])
def test_how_far_a_face_is_turned(degrees):
    points = np.zeros((478, 3))
    points[[1, 234, 454]] = [[0, -0.3, 1.0], [-1, 0, 0], [1, 0, 0]]
    turn = Rotation.from_euler("zy", [20.0, degrees], degrees=True)
    assert abs(turned((points @ turn.as_matrix())[:, :2]) - abs(degrees)) < 6.0


def test_a_profile_is_named(reader, tmp_path, monkeypatch):
    write_image(tmp_path / "side.png", data.astronaut())
    monkeypatch.setattr(face_photo, "turned", lambda points: 80.0)
    with pytest.raises(InputError, match=r"the face in .*side\.png is turned too far"):
        reader.read_file(tmp_path / "side.png", 96)


def test_what_shows_no_face_is_named(reader, tmp_path):
    write_image(tmp_path / "wall.png", np.full((64, 64, 3), 120, np.uint8))
    (tmp_path / "text.png").write_text("no picture")
    problems = {"wall": "no face found in .*wall", "text": "text.png", "gone": "gone.png"}
    for name, problem in problems.items():
        with pytest.raises(InputError, match=problem):
            reader.read_file(tmp_path / f"{name}.png", 96)
