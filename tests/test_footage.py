"""A run's pictures: what is left of a dataset to train on, and the poses at rest."""

import dataclasses

import numpy as np
import pytest

from gphm_jax.errors import InputError
from gphm_jax.evaluation import mean_picture
from gphm_jax.footage import open_footage, rest_poses
from gphm_jax.settings import DataSettings, Settings
from tests.dataset_fixture import write_dataset


def settings(path, **data):
    return Settings(data=DataSettings(path=str(path), image_size=32, face_size=16, nonface_size=16, **data))


def test_frames_without_a_face_are_left_out_of_every_part(tmp_path):
    path = write_dataset(tmp_path / "data", synthesized=0, metadata={"held_out_views": ["2"]})
    (path / "001" / "images" / "0001" / "face_0.jpg").unlink()
    footage = open_footage(settings(path), tmp_path)
    assert len(footage.training) == len(footage.held_out) == 5
    rows = {item.frame.row for item in footage.training}
    assert {item.frame.row for item in footage.held_out} == rows


def test_no_face_at_all_is_an_input_error(tmp_path):
    path = write_dataset(tmp_path / "data", views=("10", "0"), synthesized=0, metadata={"held_out_views": ["0"]})
    with pytest.raises(InputError, match="face_<view>.jpg"):
        open_footage(settings(path), tmp_path)


def test_rest_poses_are_rows_of_the_whole_dataset(tmp_path):
    footage = open_footage(settings(write_dataset(tmp_path / "data")), tmp_path)
    others = tuple(item for item in footage.training if item.frame.identity_row == 1)
    rest = rest_poses(dataclasses.replace(footage, training=others))
    first = others[0].frame
    np.testing.assert_array_equal(rest.rotation, [np.zeros(3), first.rotation])
    np.testing.assert_array_equal(rest.translation, [np.zeros(3), first.translation])
    np.testing.assert_allclose(rest.scale, [1.0, first.scale])


def test_mean_picture(tmp_path):
    footage = open_footage(settings(write_dataset(tmp_path / "data", identities=1, frames=2)), tmp_path)
    pictures = [footage.pixels.view(item.frame, view)[0] for item in footage.training for view in item.views]
    np.testing.assert_allclose(
        mean_picture(footage.pixels, footage.training), np.mean(pictures, axis=0) / 255.0, atol=1e-6
    )
