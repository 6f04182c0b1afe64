"""A driver's recording moves an avatar: what is played, what is written, and what is refused."""

import dataclasses
import json
import shutil
import subprocess
import sys

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from dataset_fixture import write_dataset
from prior_fixture import make_prior, toy_spec

from gphm_jax import Avatar, driver, reenactment, video
from gphm_jax.avatar import Habits
from gphm_jax.avatar_model import bake
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.data import layout
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.driver import open_driver
from gphm_jax.errors import InputError
from gphm_jax.face_distance import FaceEmbedder, mean_distance
from gphm_jax.provenance import COMPOSITE, RENDERED, Statement, read_marks
from gphm_jax.reenactment import Direction, follows, perform, read_scores
from gphm_jax.tools import reenact as tool
from gphm_jax.types import Camera

CAMERA = Camera(
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[58.0, 0, 16], [0, 58, 16], [0, 0, 1]]),
)
PLAIN = Direction(calibrate=False, smooth=False)


@pytest.fixture(scope="module")
def avatar(tmp_path_factory):
    prior, _ = make_prior()
    spec = toy_spec(prior)
    model = bake(prior, prior.subjects.codes[...][1], spec, seed=0)
    codes = np.random.default_rng(1).standard_normal((2, spec.networks.expression_dim)).astype(np.float32)
    made = Avatar(
        model, spec, Habits(expression=jnp.asarray(codes[0]), motion=jnp.asarray(codes[1]), camera=CAMERA)
    )
    made.save(tmp_path_factory.mktemp("fit") / "avatar")
    return made


@pytest.fixture(scope="module")
def folder(avatar, tmp_path_factory):
    path = tmp_path_factory.mktemp("person") / "avatar"
    avatar.save(path)
    return path


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A prepared driver of six frames; the second and the last were dropped, and so was one before the first."""
    path = write_dataset(tmp_path_factory.mktemp("driver") / "data", identities=1, frames=8, views=("0", "2"))
    for name in ("0000", "0002", "0007"):
        for part in ("images", "cameras", "params", "expressions"):
            (path / "000" / part / name).rename(path / f"{part}_{name}")
    dropped = [{"frame": name, "view": "0", "reason": "no face found"} for name in ("0000", "0002", "0007")]
    (path / "000" / "quality.json").write_text(json.dumps({"dropped": dropped}))
    return path / "000"


@pytest.fixture(scope="module")
def driven(prepared):
    return open_driver(prepared, prepared, CaptureSettings(), 12.0)


def test_moments_without_a_face_hold_the_one_before(driven):
    assert [frame.name for frame in driven.frames] == ["0001", "0003", "0004", "0005", "0006"]
    assert driven.shown == (0, 0, 0, 1, 2, 3, 4, 4)
    assert driven.held == 3 and driven.fps == 12.0 and driven.video is None
    assert driven.image(2, 16).shape == (16, 16, 3) and driven.face(2, 16).shape == (16, 16, 3)


def test_a_dataset_of_one_drives_as_its_identity_does(prepared, driven):
    whole = open_driver(prepared.parent, prepared, CaptureSettings(), 12.0)
    assert whole.shown == driven.shown and whole.held == driven.held


def test_a_prepared_film_plays_at_its_own_rate(prepared, tmp_path):
    def rate(wanted, **told):
        (tmp_path / "000" / "quality.json").write_text(json.dumps({"dropped": [], **told}))
        return open_driver(tmp_path / "000", tmp_path, CaptureSettings(), wanted).fps

    shutil.copytree(prepared, tmp_path / "000")
    assert rate(0.0, fps=15.0) == 15.0 and rate(12.0, fps=15.0) == 12.0
    assert rate(0.0, fps=None) == rate(0.0) == 25.0


def test_an_avatar_plays_the_drivers_codes_poses_and_cameras(avatar, driven):
    performance = perform(avatar, driven, PLAIN)
    rows = list(driven.shown)
    faces = np.stack([driven.face(row, 16) for row in rows])
    np.testing.assert_allclose(performance.expression, avatar.encode(faces), atol=1e-5)
    others = np.stack([driven.nonface(row, 16) for row in rows])
    np.testing.assert_allclose(performance.motion, avatar.encode_motion(others), atol=1e-5)
    np.testing.assert_allclose(performance.rotation, driven.rotation[rows], atol=1e-6)
    frame = driven.frames[rows[5]]
    expected, _ = avatar.render(
        avatar.encode(faces[5]),
        motion=avatar.encode_motion(others[5]),
        pose=reenactment._pose(frame.rotation, frame.translation, np.float32(frame.scale)),
        camera=Camera(
            world_to_camera=frame.world_to_camera[0], intrinsics=layout.view_intrinsics(frame, 0, 32)
        ),
    )
    shown = performance.pictures(avatar, 5, ["avatar"])["avatar"]
    assert shown.std() > 10
    np.testing.assert_allclose(shown, np.round(np.clip(expected, 0, 1) * 255), atol=1)
    first, held = (performance.pictures(avatar, moment, ["avatar"])["avatar"] for moment in (0, 2))
    np.testing.assert_array_equal(first, held)


def test_a_moment_moves_its_splats_once_for_all_cameras(avatar, driven, monkeypatch):
    performance, moved, splats = perform(avatar, driven, PLAIN), [], avatar.splats
    monkeypatch.setattr(avatar, "splats", lambda *given, **named: moved.append(1) or splats(*given, **named))
    both = performance.pictures(avatar, 3, ["side", "avatar"])
    assert list(both) == ["side", "avatar"] and len(moved) == 1
    assert np.abs(both["side"].astype(int) - both["avatar"]).max() > 10
    for name, picture in both.items():
        np.testing.assert_array_equal(performance.pictures(avatar, 3, [name])[name], picture)


def test_the_side_camera_sees_the_heads_left_from_as_far(avatar, driven):
    cameras = perform(avatar, driven, dataclasses.replace(PLAIN, angle=90.0)).cameras
    place = driven.translation.mean(axis=0)

    def centre(camera):
        matrix = camera.world_to_camera[3]
        return -matrix[:3, :3].T @ matrix[:3, 3] - place

    front, side = centre(cameras["avatar"]), centre(cameras["side"])
    assert np.linalg.norm(side) == pytest.approx(np.linalg.norm(front), rel=1e-5)
    assert side[0] > 0.9 * np.linalg.norm(side)  # +x is the head's left
    local = cameras["side"].world_to_camera[3] @ np.append(place, 1.0)
    ahead = cameras["avatar"].world_to_camera[3] @ np.append(place, 1.0)
    np.testing.assert_allclose(local, ahead, atol=1e-5)  # the head stays where it was in the picture


def test_poses_and_necks_can_be_held(avatar, driven):
    still = perform(avatar, driven, dataclasses.replace(PLAIN, pose="still", neck="held"))
    assert not still.rotation.any() and not still.translation.any() and (still.scale == 1).all()
    np.testing.assert_allclose(still.motion, np.broadcast_to(avatar.habits.motion, still.motion.shape))
    np.testing.assert_allclose(still.cameras["avatar"].world_to_camera[4], CAMERA.world_to_camera, atol=1e-6)
    aside = avatar.orbit_camera(np.radians(PLAIN.angle))
    np.testing.assert_allclose(still.cameras["side"].world_to_camera[4], aside.world_to_camera, atol=1e-6)
    assert np.ptp(still.expression, axis=0).max() > 0


def test_smoothing_calms_poses_and_codes(avatar, driven):
    rough, calm = perform(avatar, driven, PLAIN), perform(avatar, driven, Direction(calibrate=False))
    for name in ("rotation", "translation", "expression", "motion"):
        before, after = getattr(rough, name), getattr(calm, name)
        jerk = [np.abs(np.diff(values, n=2, axis=0)).sum() for values in (before, after)]
        assert 0 < jerk[1] < jerk[0]
        assert np.linalg.norm(after - before) < 0.5 * np.linalg.norm(before - before.mean(axis=0)) + 1e-6


def test_calibrated_codes_lie_about_the_avatars_own(avatar, driven):
    raw, own = (
        perform(avatar, driven, PLAIN),
        perform(avatar, driven, dataclasses.replace(PLAIN, calibrate=True)),
    )
    np.testing.assert_allclose(np.median(own.expression, axis=0), avatar.habits.expression, atol=1e-5)
    shift = own.expression - raw.expression
    np.testing.assert_allclose(shift, np.broadcast_to(shift[0], shift.shape), atol=1e-5)
    assert np.abs(shift).max() > 0.01
    np.testing.assert_array_equal(own.motion, raw.motion)


class Regressor:
    """Scores to codes as the tests can foresee."""

    def code(self, scores):
        return scores[..., :8] * 2.0


def test_scores_drive_an_avatar_that_has_a_map_for_them(avatar, driven, monkeypatch):
    monkeypatch.setattr(avatar, "scores", Regressor())
    scores = np.random.default_rng(3).random((5, 52)).astype(np.float32)
    performance = perform(avatar, driven, dataclasses.replace(PLAIN, expression="scores"), scores)
    np.testing.assert_allclose(performance.expression, 2.0 * scores[list(driven.shown)][:, :8])
    foreign = type("Foreign", (), {"code": lambda self, scores: scores[..., :5]})()
    monkeypatch.setattr(avatar, "scores", foreign)
    with pytest.raises(InputError, match="codes of 5 numbers, its networks take 8"):
        perform(avatar, driven, dataclasses.replace(PLAIN, expression="scores"), scores)


class Landmarker:
    """Reads a picture's grey as its first score."""

    scheme = "mediapipe478"

    def detect(self, image):
        if image.mean() < 10:
            return []
        scores = np.zeros(52, np.float32)
        scores[0] = image.mean() / 255
        return [type("Face", (), {"expression": scores})()]

    def close(self):
        pass


def test_correlation_is_over_pictures_in_which_both_show_a_face():
    grey = [np.full((4, 4, 3), level, np.uint8) for level in (0, 50, 100, 150, 200)]
    true = read_scores(Landmarker(), grey)
    assert np.isnan(true[0]).all() and true[2, 0] == pytest.approx(100 / 255)
    rng = np.random.default_rng(0)
    made = 0.5 * true + 0.2
    made[4] = np.nan
    told = follows(true, made)
    assert told["pictures"] == 3 and told["correlation"] == pytest.approx(1.0)
    assert told["scores"] == {ARKIT[0]: pytest.approx(1.0)} and told["mean_correlation"] == pytest.approx(1.0)
    first, second = rng.random((50, 52)), rng.random((50, 52))
    expected = np.corrcoef((first - first.mean(0)).ravel(), (second - second.mean(0)).ravel())[0, 1]
    assert follows(first, second)["correlation"] == pytest.approx(expected)
    assert follows(first, -first)["correlation"] == pytest.approx(-1.0)
    nothing = follows(true[:1], made[:1])
    assert nothing == {"pictures": 0, "correlation": None, "mean_correlation": None, "scores": {}}
    still = follows(true, np.nan_to_num(0 * made))
    assert still["correlation"] is None and still["mean_correlation"] == 0.0


def played(path):
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        there, picture = capture.read()
        if not there:
            return pictures, capture.get(cv2.CAP_PROP_FPS)
        pictures.append(picture[..., ::-1])


def test_the_video_shows_driver_and_avatar_and_the_figures_lie_beside_it(
    avatar, folder, prepared, driven, tmp_path
):
    request = tool.Request(
        avatar=folder, drive=prepared, out=tmp_path / "out.mp4", direction=PLAIN, fps=12.0, figures=False
    )
    figures = tool.reenact(request)
    pictures, fps = played(request.out)
    assert fps == 12.0 and [picture.shape for picture in pictures] == [(32, 96, 3)] * 8
    performance = perform(avatar, driven, PLAIN)
    for moment in (0, 6):
        seen = performance.pictures(avatar, moment, ["avatar", "side"])
        expected = np.concatenate(
            [driven.image(driven.shown[moment], 32), seen["avatar"], seen["side"]], axis=1
        )
        assert np.abs(pictures[moment].astype(int) - expected).mean() < 8
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.json", "out.mp4"]
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["frames"] == figures["frames"] == 8 and told["held_frames"] == 3 and told["fps"] == 12.0
    assert told["layout"] == ["driver", "avatar", "side"] and told["sound"] is False
    assert set(told["seconds"]) == {"tracking", "drawing", "figures"}
    assert read_marks(request.out).source == COMPOSITE


def test_one_panel_alone_is_marked_as_rendered(folder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "open_landmarker", None)  # no figures, no landmarks
    request = tool.Request(
        avatar=folder,
        drive=prepared,
        out=tmp_path / "a.mp4",
        direction=PLAIN,
        layout=("avatar",),
        figures=False,
    )
    assert tool.reenact(request)["fps"] == 25.0
    assert played(request.out)[0][0].shape == (32, 32, 3)
    assert read_marks(request.out).source == RENDERED


def test_a_videos_sound_comes_along(folder, prepared, tmp_path, monkeypatch):
    ffmpeg = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()
    film = tmp_path / "film.mp4"
    silent = tmp_path / "silent.mp4"
    pictures = [np.full((64, 64, 3), 30 * n, np.uint8) for n in range(8)]
    video.write_video(silent, iter(pictures), fps=8.0, statement=Statement())
    sine = ("-f", "lavfi", "-i", "sine=frequency=440:duration=0.5")
    subprocess.run(
        [ffmpeg, "-v", "error", "-i", str(silent), *sine, "-c:v", "copy", "-c:a", "aac", str(film)],
        check=True,
    )
    assert video.has_sound(film) and not video.has_sound(silent)

    def prepare(recording, work, settings, model):
        assert len(recording.frames) == 8 and settings.size == 512
        write_dataset(work.parent / "made", identities=1, frames=8, views=("0",))
        (work.parent / "made" / "000").rename(work)

    monkeypatch.setattr(driver, "preprocess", prepare)
    monkeypatch.setattr(driver, "read_face_model", lambda settings: None)
    request = tool.Request(
        avatar=folder, drive=film, out=tmp_path / "out.mp4", direction=PLAIN, figures=False
    )
    figures = tool.reenact(request)
    assert figures["sound"] and figures["held_frames"] == 0 and figures["fps"] == pytest.approx(8.0, rel=1e-3)
    done = subprocess.run(
        [ffmpeg, "-hide_banner", "-i", str(request.out), "-f", "null", "-"], capture_output=True, check=True
    )
    log = done.stderr.decode()
    assert "Video: h264" in log and "yuv420p" in log and "Audio: aac" in log
    assert "Duration: 00:00:01.0" in log  # the pictures', though the sound ends earlier
    assert len(played(request.out)[0]) == 8
    assert not list(tmp_path.glob(".*"))


def test_figures_are_taken_of_the_pictures_shown(avatar, folder, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(tool, "open_landmarker", lambda name: Opened())
    monkeypatch.setitem(sys.modules, "dlib", None)  # not installed
    request = tool.Request(avatar=folder, drive=prepared, out=tmp_path / "out.mp4", direction=PLAIN)
    told = tool.reenact(request)
    assert told["following"]["pictures"] == 8 and told["identity"] is None


class Embedder(FaceEmbedder):
    """A picture's mean colour for its face."""

    def __init__(self):
        pass

    def embeddings(self, pictures):
        return np.stack([np.pad(picture.mean(axis=(0, 1)), (0, 125)) for picture in pictures])


def test_distances_are_from_the_result_to_its_person_and_to_the_driver(
    avatar, folder, prepared, driven, tmp_path, monkeypatch
):
    monkeypatch.setattr(tool, "open_landmarker", lambda name: Opened())
    monkeypatch.setattr(tool, "FaceEmbedder", Embedder)
    own = tmp_path / "own"
    own.mkdir()
    for level in (20, 60):
        cv2.imwrite(str(own / f"{level}.png"), np.full((8, 8, 3), level, np.uint8))

    def distances(source):
        request = tool.Request(
            avatar=folder, drive=prepared, out=tmp_path / "out.mp4", direction=PLAIN, source=source
        )
        return tool.reenact(request)["identity"]

    performance = perform(avatar, driven, PLAIN)
    result = [performance.pictures(avatar, moment, ["avatar"])["avatar"].mean((0, 1)) for moment in range(8)]
    drove = [driven.image(row, 512).mean((0, 1)) for row in driven.shown]
    portrait = 255 * np.asarray(avatar.render(avatar.habits.expression)[0]).mean((0, 1))

    def mean(first, second):
        return np.mean([np.linalg.norm(one - other) for one in first for other in second])

    told = distances(own)
    assert told["source"] == "2 pictures"
    assert told["to_source"] == pytest.approx(mean(result, [np.full(3, 20), np.full(3, 60)]))
    assert told["to_driver"] == pytest.approx(mean(result, drove))
    assert abs(told["to_source"] - told["to_driver"]) > 1
    told = distances(None)
    assert told["source"] == "the avatar's own portrait"
    assert told["to_source"] == pytest.approx(mean(result, [portrait]), abs=0.5)


def test_a_persons_pictures_are_a_file_a_folder_or_a_prepared_identity(prepared, tmp_path):
    for name in ("b.png", "a.jpg"):
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "notes.txt").write_text("no picture")
    assert tool._pictures_of(tmp_path / "b.png") == [tmp_path / "b.png"]
    assert tool._pictures_of(tmp_path) == [tmp_path / "a.jpg", tmp_path / "b.png"]
    rows = tool._pictures_of(prepared)
    assert [(path.parent.name, path.name) for path in rows] == [
        (name, "image_0.png") for name in ("0001", "0003", "0004", "0005", "0006")
    ]


class Opened(Landmarker):
    def __enter__(self):
        return self

    def __exit__(self, *failure):
        return None


def parsed(*arguments):
    known = set(flags.FLAGS)
    flags.FLAGS.unparse_flags()
    tool.define_flags()
    try:
        flags.FLAGS(["reenact", *arguments])
        return tool.make_request()
    finally:
        for name in set(flags.FLAGS) - known:
            delattr(flags.FLAGS, name)


def test_flags_at_fault_are_refused(folder, prepared, tmp_path):
    good = {"avatar": folder, "drive": prepared, "out": tmp_path / "o.mp4"}

    def request(**changes):
        return parsed(*(f"--{name}={value}" for name, value in (good | changes).items() if value is not None))

    assert request(layout="avatar,driver").layout == ("avatar", "driver")
    assert request(neck="held", angle=10).direction == Direction(neck="held", angle=10.0)
    for changes, words in (
        ({"avatar": None}, "--avatar is missing"),
        ({"drive": tmp_path / "none.mp4"}, "no driver at .*none.mp4"),
        ({"out": tmp_path / "o.avi"}, "an MP4 file"),
        ({"out": tmp_path}, "MP4 file"),
        ({"out": prepared / "quality.json" / "o.mp4"}, "cannot write"),
        ({"layout": "driver"}, "an avatar among them"),
        ({"layout": "avatar,back"}, "--layout=avatar,back"),
        ({"fps": -1}, "must not be negative"),
        ({"fps": "nan"}, "finite"),
        ({"angle": "inf"}, "finite"),
    ):
        with pytest.raises(InputError, match=words):
            request(**changes)
    assert not (tmp_path / "o.mp4").exists()


def test_what_cannot_drive_or_be_driven_is_named(folder, prepared, tmp_path, monkeypatch):
    def fail(words, **changes):
        request = tool.Request(
            **{"avatar": folder, "drive": prepared, "out": tmp_path / "o.mp4", "direction": PLAIN} | changes
        )
        with pytest.raises(InputError, match=words):
            tool.reenact(request)
        assert not list(tmp_path.glob("*o.mp4")) and not list(tmp_path.glob("*o.json"))
        assert not list(tmp_path.glob(".*"))

    fail("no avatar in", avatar=tmp_path)
    fail("no picture at .*nobody", source=tmp_path / "nobody")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "dlib", None)
        fail("dlib", source=prepared)
    config = json.loads((folder / "config.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text(json.dumps(config | {"version": 99}))
    fail("version 99", avatar=old)
    fail("has no scores.npz", direction=Direction(expression="scores"))
    many = write_dataset(tmp_path / "many", identities=2, frames=1)
    fail("has 2 identities", drive=many)
    back = write_dataset(tmp_path / "back", identities=1, frames=2, views=("10",))
    fail("shows a face to camera 10", drive=back / "000")
    (tmp_path / "text.mp4").write_text("no video")
    fail("no video that can be read", drive=tmp_path / "text.mp4")
    cv2.imwrite(str(tmp_path / "photo.png"), np.zeros((8, 8, 3), np.uint8))
    fail("photos, which do not move", drive=tmp_path / "photo.png")

    def prepare(recording, work, settings, model):
        work.mkdir()
        raise InputError("no usable face")

    broken = shutil.copytree(prepared, tmp_path / "broken")
    (broken / "quality.json").write_text("{}")
    fail("broken/quality.json is not what preprocessing wrote", drive=broken)
    monkeypatch.setattr(driver, "preprocess", prepare)
    monkeypatch.setattr(driver, "read_face_model", lambda settings: None)
    film = tmp_path / "film.mp4"
    video.write_video(film, iter([np.zeros((16, 16, 3), np.uint8)] * 2), fps=8.0, statement=Statement())
    fail("no usable face", drive=film)


def test_the_distance_of_faces_is_a_mean_over_pairs():
    here, there = np.zeros((2, 128)), np.zeros((3, 128))
    there[:, 0] = 0.3, 0.6, 0.9
    assert mean_distance(here, there) == pytest.approx(0.6)
    assert mean_distance(here, here) == 0.0
    assert mean_distance(here, there[:0]) is None
