"""From recordings to identity folders: synthetic people filmed by one camera or by several, and bad footage."""

import dataclasses
import json
import pathlib
import shutil

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from gphm_jax.capture import preprocess as preprocessing
from gphm_jax.capture.preprocess import preprocess, preprocess_all, read_face_model
from gphm_jax.capture.recording import Calibration, Picture, Recording, Unreadable
from gphm_jax.capture.settings import CaptureSettings, ScanSettings
from gphm_jax.data import images, layout
from gphm_jax.data.synthetic.dataset import synthesize
from gphm_jax.data.synthetic.writer import Request
from gphm_jax.errors import InputError, TrainingError

SETTINGS = CaptureSettings(size=128, expression_images=0)
UNIT = 0.23  # metres a head length, in the calibrated recording
SIZE = 256


@pytest.fixture(scope="module")
def model():
    return read_face_model(SETTINGS)


def synthetic(folder: pathlib.Path, capture: str, frames: int, views: int) -> layout.Dataset:
    synthesize(
        Request(
            out=folder, first_identity=50, identities=1, expressions=frames, frames=frames, views=views,
            heldout_views=0, expression_images=0, size=SIZE, seed=7, capture=capture,
        ),
        1,
    )  # fmt: skip
    return layout.open_dataset(folder)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """One moving camera."""
    return synthetic(tmp_path_factory.mktemp("film") / "data", "monocular", 6, 1)


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """Cameras in front, at both sides and behind."""
    return synthetic(tmp_path_factory.mktemp("studio") / "data", "multiview", 2, 6)


def in_a_room(frame: layout.Frame, view: int) -> np.ndarray:
    """The picture in front of a coloured wall, as a camera would have it."""
    record = frame.views[view]
    mask = images.read_gray(record.mask)[..., None] / 255.0
    wall = np.array([120, 150, 110]) + 40 * np.sin(np.arange(SIZE) / 20)[:, None, None]
    white = images.read_rgb(record.image).astype(np.float64)
    return np.rint(np.clip(white - (1 - mask) * 255 + (1 - mask) * wall, 0, 255)).astype(np.uint8)


def recorded(dataset, views, *, calibrated=False, moving=True, spoil=()):
    """The dataset's pictures as raw footage; `spoil` are frames to replace by a wall or a fault."""

    def read():
        for number, frame in enumerate(dataset.frames):
            for view in views:
                name = frame.views[view].name
                if number in spoil:
                    if number % 2:
                        yield Unreadable(frame=frame.name, view=name, reason=f"{frame.name}.jpg is truncated")
                    else:
                        yield Picture(
                            frame=frame.name, view=name, image=np.full((SIZE, SIZE, 3), 90, np.uint8)
                        )
                    continue
                camera = None
                if calibrated:
                    matrix = frame.world_to_camera[view].astype(np.float64).copy()
                    matrix[:3, 3] = UNIT * (matrix[:3, 3] + matrix[:3, :3] @ [3.0, 1.0, -2.0])
                    camera = Calibration(world_to_camera=matrix, intrinsics=frame.intrinsics[view])
                yield Picture(frame=frame.name, view=name, image=in_a_room(frame, view), calibration=camera)

    return Recording(
        name="person",
        source=dataset.path,
        frames=tuple(frame.name for frame in dataset.frames),
        views=tuple(dataset.frames[0].views[view].name for view in views),
        read=read,
        moving=moving,
        interval=1.0,  # few frames of a long film
    )


def in_camera(frame: layout.Frame, view: int) -> np.ndarray:
    """The head's rotation as the camera sees it."""
    return frame.world_to_camera[view][:3, :3] @ cv2.Rodrigues(frame.rotation.astype(np.float64))[0]


def degrees_between(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.degrees(np.linalg.norm(cv2.Rodrigues(first.T @ second)[0])))


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file but those that hold dates and times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("dataset.json", "quality.json", "quality.html")
    }


@pytest.fixture(scope="module")
def filmed(film, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("filmed") / "person"
    return out, preprocess(recorded(film, (0,)), out, SETTINGS, model)


def test_a_film_becomes_an_identity_folder(film, filmed):
    out, outcome = filmed
    made = layout.open_dataset(out)
    assert [frame.name for frame in made.frames] == [frame.name for frame in film.frames]
    assert made.image_size == (128, 128) and made.landmark_count == 68 and not outcome.dropped
    # The face model's idea of straight ahead is its own, once for the whole film.
    offsets = [
        in_camera(true, 0).T @ in_camera(found, 0)
        for found, true in zip(made.frames, film.frames, strict=True)
    ]
    middle = Rotation.from_matrix(offsets).mean().as_matrix()
    assert degrees_between(np.eye(3), middle) < 6.0
    assert np.median([degrees_between(middle, offset) for offset in offsets]) < 4.0  # faces of 80 pixels
    assert all(frame.shows_face[0] and frame.scale == 1 for frame in made.frames)
    kept = {tuple(frame.intrinsics[0].ravel()) for frame in made.frames}
    assert len(kept) == 1  # the camera stands still
    quality = json.loads((out / "quality.json").read_text())
    assert quality["kept_frames"] == quality["frames"] == 6
    assert quality["reprojection_px_at_512"]["median"] < 4
    assert quality["fps"] == 1.0


def test_pictures_masks_and_landmarks_lie_on_each_other(film, filmed):
    out, outcome = filmed
    made = layout.open_dataset(out)
    for found, true in zip(made.frames, film.frames, strict=True):
        square = outcome.squares[found.name, "0"]
        recorded = square.recorded(images.read_gray(true.views[0].mask).shape, 128)
        np.testing.assert_allclose(found.recorded[0], recorded, rtol=1e-6)
        mask = images.read_gray(found.views[0].mask) > 127
        truth = square.crop_mask(images.read_gray(true.views[0].mask), 128) > 127
        assert (mask & truth).sum() / (mask | truth).sum() > 0.93
        there = images.project(true.landmarks, true.world_to_camera[0], true.intrinsics[0])
        here = images.project(found.landmarks, found.world_to_camera[0], found.intrinsics[0])
        assert np.median(np.linalg.norm(square.points(there, 128) - here, axis=1)) < 2.5
        assert images.read_rgb(found.views[0].face).shape == (64, 64, 3)
        hidden = images.read_rgb(found.views[0].nonface)
        assert (hidden[~mask & ~truth] > 200).all(-1).mean() > 0.7  # over white
        assert (hidden == 0).all(-1).mean() > 0.05  # and without the face


def test_running_again_goes_on(film, filmed, model, tmp_path, monkeypatch):
    whole, _ = filmed
    cut = tmp_path / "person"
    written, real = [], preprocessing.write_frames

    def stop_after_three(recording, *rest):
        def read():
            for picture in recording.read():
                if len(written) == 3:
                    raise KeyboardInterrupt
                written.append(picture.frame)
                yield picture

        return real(dataclasses.replace(recording, read=read), *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(preprocessing, "write_frames", stop_after_three)
        preprocess(recorded(film, (0,)), cut, SETTINGS, model)
    assert len(list((cut / "images").iterdir())) == 2 and not (cut / "quality.json").exists()
    before = (cut / "images" / film.frames[0].name / "image_0.jpg").stat().st_mtime_ns
    preprocess(recorded(film, (0,)), cut, SETTINGS, model)
    assert (cut / "images" / film.frames[0].name / "image_0.jpg").stat().st_mtime_ns == before
    assert tree(cut) == tree(whole) and not list(cut.glob(".*"))
    with pytest.raises(InputError, match="was made with other settings"):
        preprocess(recorded(film, (0,)), cut, dataclasses.replace(SETTINGS, size=64), model)


def test_pictures_that_cannot_be_used_are_dropped_and_named(film, model, tmp_path, caplog):
    caplog.set_level("WARNING")
    settings = dataclasses.replace(SETTINGS, expression_images=1)
    outcome = preprocess(recorded(film, (0,), spoil=(1, 2)), tmp_path / "person", settings, model)
    assert "More than a tenth of the frames was dropped" in caplog.text and "quality.html" in caplog.text
    names = [frame.name for frame in film.frames]
    assert outcome.dropped == {
        (names[1], "0"): f"{names[1]}.jpg is truncated",
        (names[2], "0"): "no face found",
    }
    made = layout.open_dataset(tmp_path / "person")
    assert [frame.name for frame in made.frames] == [names[0], *names[3:]]
    assert all(len(frame.synthesized) == 1 for frame in made.frames)
    page = (tmp_path / "person" / "quality.html").read_text()
    assert f"{names[1]}.jpg is truncated" in page and "4 of 6" in page


def test_a_studio_in_metres_becomes_a_world_of_head_lengths(studio, model, tmp_path):
    views = tuple(range(6))
    behind = [view for view in views if studio.frames[0].facing[view] < -0.5]
    assert behind
    preprocess(recorded(studio, views, calibrated=True), tmp_path / "person", SETTINGS, model)
    made = layout.open_dataset(tmp_path / "person")
    ratio = SIZE / 128
    for found, true in zip(made.frames, studio.frames, strict=True):
        assert not found.shows_face[behind].any() and found.shows_face[0]
        for view in (0, *behind):
            # Cameras keep their place around the head, in head lengths.
            assert degrees_between(in_camera(found, view), in_camera(true, view)) < 6.0
            far = np.linalg.norm(np.linalg.inv(found.world_to_camera[view])[:3, 3] - found.translation)
            truth = np.linalg.norm(np.linalg.inv(true.world_to_camera[view])[:3, 3] - true.translation)
            assert abs(far / truth - 1) < 0.06
            there = images.project(true.landmarks, true.world_to_camera[view], true.intrinsics[view])
            here = images.project(found.landmarks, found.world_to_camera[view], found.intrinsics[view])
            assert np.ptp(here[:, 1]) == pytest.approx(np.ptp(there[:, 1]) / ratio, rel=0.35)
    assert abs(np.mean([frame.translation for frame in made.frames])) < 0.1


def test_footage_without_a_face_and_folders_in_the_way(film, model, tmp_path):
    nothing = recorded(film, (0,), spoil=range(6))
    with pytest.raises(InputError, match=r"no usable face in the 6 pictures of .* \(mostly: "):
        preprocess(nothing, tmp_path / "none", SETTINGS, model)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("")
    with pytest.raises(InputError, match="is not empty, and not an identity folder"):
        preprocess(recorded(film, (0,)), tmp_path / "full", SETTINGS, model)
    with pytest.raises(InputError, match=r"cannot write to .*thesis\.tex"):
        preprocess(recorded(film, (0,)), tmp_path / "full" / "thesis.tex" / "x", SETTINGS, model)
    with pytest.raises(InputError, match="2 cameras and no calibration"):
        preprocess(recorded(film, (0, 0)), tmp_path / "two", SETTINGS, model)


def test_many_clips_make_a_dataset_and_the_broken_one_is_listed(film, tmp_path):
    clips = tmp_path / "clips"
    for name in ("a", "b"):
        folder = clips / name
        folder.mkdir(parents=True)
        for number in range(10):
            shutil.copy(film.frames[number % 2].views[0].image, folder / f"{number:08d}.jpg")
    for path in sorted((clips / "b").iterdir()):
        cv2.imwrite(str(path), np.full((64, 64, 3), 128, np.uint8))
    with pytest.raises(TrainingError, match="1 of 2 failed, listed in"):
        preprocess_all(clips, tmp_path / "out", SETTINGS, workers=1)
    (failure,) = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert failure["item"] == "b" and "no usable face" in failure["reason"]
    made = layout.open_dataset(tmp_path / "out")
    assert made.identities == ("a",) and len(made.frames) == 10


@pytest.mark.parametrize("settings", [CaptureSettings, ScanSettings])
def test_expression_images_need_somebody_who_tells_the_scores(settings):
    settings(face_model="bfm.mat").check("--")
    settings(face_model="bfm.mat", landmarks="dlib", expression_images=0).check("--")
    with pytest.raises(InputError, match="--expression_images=1: neither dlib nor a face model of one's own"):
        settings(face_model="bfm.mat", landmarks="dlib").check("--")
