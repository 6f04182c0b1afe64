"""What `fit.py --input` may name, and what becomes of raw footage."""

import pathlib

import pytest
from dataset_fixture import write_dataset

from gphm_jax.capture import preprocess
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.errors import InputError
from gphm_jax.fit_input import prepared

SETTINGS = CaptureSettings()


def test_prepared_folders_are_taken_as_they_are(tmp_path):
    people = write_dataset(tmp_path / "people", identities=1, frames=1, views=("0",))
    (person,) = (child for child in people.iterdir() if child.is_dir())
    for path in (people, person):
        assert prepared(path, tmp_path / "out", SETTINGS) == path
    assert not (tmp_path / "out").exists()


def test_raw_footage_is_prepared_in_the_fits_folder(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(preprocess, "preprocess_all", lambda *arguments: asked.append(arguments))
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"0")
    assert prepared(clip, tmp_path / "out", SETTINGS) == tmp_path / "out" / "footage"
    assert asked == [(clip, tmp_path / "out" / "footage", SETTINGS)]


def test_what_cannot_be_fitted_is_named(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no input at .*nothing: name a video, photos"):
        prepared(tmp_path / "nothing", tmp_path / "out", SETTINGS)
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"0")
    with pytest.raises(InputError, match=r"clip\.mp4"):
        prepared(clip, tmp_path / "out", SETTINGS)
    (tmp_path / "second.mp4").write_bytes(b"0")
    with pytest.raises(InputError, match="holds 2 clips: name one person's"):
        prepared(tmp_path, tmp_path / "out", SETTINGS)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(pathlib.Path, "iterdir", refuse)  # the tests may run as root, whom no mode keeps out
    with pytest.raises(InputError, match="cannot read .*Permission denied"):
        prepared(tmp_path, tmp_path / "out", SETTINGS)
