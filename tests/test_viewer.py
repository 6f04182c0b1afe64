"""The viewer without a browser: what is drawn for a canvas, what sliders do, and that the last change wins."""

import math
import os
import pathlib
import socket
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags
from dataset_fixture import write_dataset
from prior_fixture import make_prior, toy_spec
from scipy.spatial.transform import Rotation

from gphm_jax.avatar import Avatar, Habits
from gphm_jax.avatar_model import bake
from gphm_jax.capture.identity_folder import DONE
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.errors import InputError
from gphm_jax.export.coarse import CoarseStatement
from gphm_jax.files import to_bytes
from gphm_jax.geometry import to_pixels
from gphm_jax.heads import Heads
from gphm_jax.nets import bounded_code
from gphm_jax.reenactment import Performance
from gphm_jax.types import Camera, Pose
from gphm_jax.viewer import clips, exhibit, frames, saving, sliders
from gphm_jax.viewer.dial import Dial
from gphm_jax.viewer.drawing import Drawing
from gphm_jax.viewer.frames import View
from gphm_jax.viewer.painter import Moment, Painter
from gphm_jax.viewer.playback import Clip, Playback
from gphm_jax.viewer.repainter import Repainter
from gphm_jax.viewer.session import Session

CAMERA = Camera(  # its picture's middle lies beside the head's
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[58.0, 0, 18], [0, 58, 13], [0, 0, 1]]),
)
ROOT = pathlib.Path(__file__).parent.parent
FRONT = np.diag([1.0, -1.0, -1.0])


@pytest.fixture(scope="module")
def avatar() -> Avatar:
    prior = make_prior()[0]
    spec = toy_spec(prior)
    codes = np.random.default_rng(1).standard_normal((2, spec.networks.expression_dim)).astype(np.float32)
    habits = Habits(expression=jnp.asarray(codes[0]), motion=jnp.asarray(codes[1]), camera=CAMERA)
    return Avatar(bake(prior, prior.subjects.codes[...][1], spec, seed=0), spec, habits)


def view(canvas: tuple[int, int] = (64, 64)) -> View:
    return View(
        position=np.array([0.0, 0.0, 3.0]),
        camera_to_world=FRONT,
        fov=2 * math.atan(32 / (2 * 58)),
        canvas=canvas,
    )


def test_the_first_view_has_the_habitual_cameras_middle_in_the_middle():
    start = frames.start(CAMERA, 32)
    np.testing.assert_allclose(start.position, [0, 0, 3], atol=1e-6)
    np.testing.assert_allclose(
        to_pixels(jnp.asarray(start.target[None], jnp.float32), CAMERA)[0], [16, 16], atol=1e-4
    )
    assert abs(float(start.target @ (start.position - start.target))) < 1e-6, (
        "the nearest point to the head's middle"
    )
    assert start.fov == pytest.approx(2 * math.atan(32 / (2 * 58)))


def test_pictures_have_few_shapes_and_the_head_one_size():
    assert frames.picture_size((600, 600), 32, 4) == (32, 32)
    assert frames.picture_size((600, 800), 32, 4) == (32, 48)
    assert frames.picture_size((720, 1280), 32, 4) == (32, 64)
    assert frames.picture_size((900, 400), 32, 4) == (64, 32)
    assert frames.picture_size((1, 5000), 250, 4) == (250, 512)
    assert frames.picture_size((200, 300), 224, 32) == (224, 352)
    for canvas in ((600, 600), (720, 1280), (900, 400)):
        size = frames.picture_size(canvas, 32, 4)
        intrinsics = np.asarray(frames.camera(view(canvas), size).intrinsics)
        np.testing.assert_allclose(
            intrinsics, [[58, 0, size[1] / 2], [0, 58, size[0] / 2], [0, 0, 1]], rtol=1e-6
        )
    matrix = np.asarray(frames.camera(view(), (32, 32)).world_to_camera)
    np.testing.assert_allclose(matrix, CAMERA.world_to_camera, atol=1e-6)


@pytest.mark.parametrize(
    "canvas", [(600, 600), (600, 700), (720, 1280), (900, 400), (200, 1000), (1000, 200), (0, 1200)]
)
def test_a_picture_fills_its_canvas(canvas):
    size = frames.picture_size(canvas, 32, 4)
    picture = np.zeros((*size, 3), np.uint8)
    picture[size[0] // 2 - 1 : size[0] // 2 + 1, size[1] // 2 - 1 : size[1] // 2 + 1] = (
        100  # a dot in the middle
    )
    whole = frames.fitted(picture, canvas, 255)
    assert (
        min(whole.shape[:2]) == 32
        and abs(whole.shape[1] / whole.shape[0] / (canvas[1] / max(canvas[0], canvas[1] / 8)) - 1) < 0.02
    )
    np.testing.assert_allclose(
        np.argwhere(whole[..., 0] == 100).mean(axis=0) + 0.5, np.array(whole.shape[:2]) / 2, atol=1
    )
    assert (whole == 255).any() == (max(canvas) > 2 * min(canvas)), "filled where no picture reaches"


def test_the_painter_draws_what_the_avatar_draws_and_moves_the_splats_once(avatar, monkeypatch):
    moved = []
    splats = Avatar.splats
    monkeypatch.setattr(Avatar, "splats", lambda *a, **k: moved.append(1) or splats(*a, **k))
    painter, moment = Painter(avatar), Moment(expression=avatar.habits.expression)
    expected = avatar.draw(moment.expression, camera=CAMERA)

    def paint(mode, moment=moment):
        return painter.paint(moment, CAMERA, size=(32, 32), mode=mode)

    for mode, picture in (
        ("fine", expected.fine),
        ("coarse", expected.coarse),
        ("alpha", jnp.broadcast_to(expected.alpha[..., None], (32, 32, 3))),
    ):
        wanted = to_bytes(np.asarray(picture)).astype(int)
        assert np.abs(paint(mode) - wanted).max() <= 1 and wanted.std() > 5
    dots = paint("points")
    assert dots.std() > 5 and np.abs(dots.astype(int) - paint("coarse")).max() > 30
    assert len(moved) == 1
    other = paint("fine", Moment(expression=-3 * avatar.habits.expression))
    assert np.abs(other.astype(int) - paint("fine")).max() > 3 and len(moved) == 3


def two_sliders(z: int = 8) -> sliders.Sliders:
    return sliders.of_codes("Face", {"one": np.eye(z)[0], "two": 2 * np.eye(z)[1]})


def test_sliders_change_the_code_that_a_dial_has_taken():
    dial = Dial(two_sliders(), np.zeros(8, np.float32))
    rest = dial.value()
    dial.set("two", 0.0)
    assert dial.value() is rest, "an unchanged code is the same object"
    dial.set("two", 0.5)
    np.testing.assert_allclose(dial.value(), np.eye(8)[1])
    np.testing.assert_allclose(dial.change(), np.eye(8)[1])
    assert dial.value() is dial.value()
    dial.take(np.full(8, 3.0, np.float32))
    np.testing.assert_allclose(dial.value(), 3)
    dial.set("one", 1.0)
    np.testing.assert_allclose(dial.value(), 3 + np.eye(8)[0])
    dial.relax()
    np.testing.assert_array_equal(dial.value(), rest)
    dial.set("one", 1.0)
    dial.set_all({"two": 0.25, "unknown": 1.0})
    np.testing.assert_allclose(dial.value(), 0.5 * np.eye(8)[1])


def test_each_score_has_one_slider_that_moves_it_alone():
    matrix = np.random.default_rng(0).standard_normal((52, 8)).astype(np.float32)
    controls = sliders.of_scores(ARKIT, lambda scores: 1 + scores @ matrix)
    names = [slider.name for slider in controls.all]
    assert sorted(names) == sorted(ARKIT)
    assert len({(group, slider.label) for group, all in controls.groups.items() for slider in all}) == 52
    labels = {slider.name: slider.label for slider in controls.all}
    assert labels["eyeBlinkLeft"] == "Blink left" and labels["tongueOut"] == "Tongue out"
    assert labels["cheekPuff"] == "Cheek puff" and labels["jawOpen"] == "Open"
    values = np.zeros(52, np.float32)
    values[names.index("jawOpen")] = 0.5
    np.testing.assert_allclose(controls.change(values), 0.5 * matrix[ARKIT.index("jawOpen")], rtol=1e-5)


def test_principal_directions_are_two_deviations_long():
    rng = np.random.default_rng(0)
    codes = 5 + rng.standard_normal((4000, 2)) @ np.array([[3.0, 0, 0], [0, 1.0, 0]])
    directions = sliders.principal_directions(codes, 5)
    assert directions.shape == (2, 3)
    np.testing.assert_allclose(np.abs(directions), [[6, 0, 0], [0, 2, 0]], atol=0.3)
    assert sliders.principal_directions(codes[:1], 5).shape == (0, 3)


def test_of_many_changes_the_last_is_drawn_and_rest_is_told():
    calls, entered, go = [], threading.Event(), threading.Event()

    def draw(settled: bool) -> float | None:
        calls.append(settled)
        entered.set()
        assert go.wait(10)
        if len(calls) == 1:
            raise ValueError("what goes wrong once")
        return None if settled else 0.01

    repainter = Repainter(draw)
    repainter.touch()
    assert not calls, "it has not been started"
    repainter.start()
    assert entered.wait(10)
    for _ in range(100):
        repainter.touch()
    go.set()
    for _ in range(1000):
        if len(calls) == 3:
            break
        threading.Event().wait(0.01)
    repainter.close()
    assert calls == [False, False, True]


def test_moving_pictures_are_quick_ones_and_resting_ones_the_best(avatar, monkeypatch):
    class Slow(Painter):
        """Takes too long for refined pictures."""

        def paint(self, moment, camera, *, size, mode):
            drawn.append((mode, size))
            if mode == "fine":
                threading.Event().wait(0.1)
            return np.zeros((*size, 3), np.uint8)

    monkeypatch.setattr("gphm_jax.viewer.drawing.Painter", Slow)
    drawn, shown = [], []
    session = Session(expression=Dial(two_sliders(), np.zeros(8, np.float32)))
    drawing = Drawing(session, lambda person: avatar, lambda picture, best: shown.append(best))
    assert drawing.draw(False) is None and not drawn, (
        "nothing before the browser has said where it looks from"
    )
    session.view = view((60, 90))
    for settled in (True, True, False, True):
        drawing.draw(settled)
    assert [mode for mode, _ in drawn] == ["fine", "fine", "coarse", "fine"] and shown == [
        True,
        True,
        False,
        True,
    ]
    assert drawn[0][1] == (32, 48)
    session.mode = "alpha"
    assert drawing.draw(False) is None and drawn[-1] == ("alpha", (32, 48))


def test_another_person_is_another_head_and_the_same_one_is_not_made_again(avatar):
    made = []
    person = Dial(two_sliders(4), np.zeros(4, np.float32))
    session = Session(expression=Dial(two_sliders(), avatar.habits.expression), person=person, view=view())
    drawing = Drawing(
        session, lambda code: made.append(np.asarray(code)) or avatar, lambda picture, best: None
    )
    head, moment = drawing.head()
    assert head is avatar and drawing.head()[1] is moment
    session.expression.set("one", 1.0)
    assert drawing.head()[1] is not moment and len(made) == 1
    person.set("one", 0.5)
    drawing.head()
    np.testing.assert_allclose(made, [np.zeros(4), 0.5 * np.eye(4)[0]])


def test_a_drivers_head_turns_about_its_mean_pose():
    angles = np.array([-0.3, 0.0, 0.3])
    base = Rotation.from_euler("x", np.pi)  # a camera's axes
    turns = base * Rotation.from_euler("y", angles[:, None])
    performance = Performance(
        expression=np.zeros((3, 8), np.float32),
        motion=np.zeros((3, 8), np.float32),
        rotation=turns.as_rotvec().astype(np.float32),
        translation=np.array([[0, 0, 5], [0, 0.5, 5], [0, 1, 5]], np.float32),
        scale=np.full(3, 2.0, np.float32),
        cameras={},
    )
    pose = clips.about_their_mean(performance)
    np.testing.assert_allclose(pose.rotation, angles[:, None] * [0, 1, 0], atol=1e-6)
    np.testing.assert_allclose(pose.translation, [[0, 0.25, 0], [0, 0, 0], [0, -0.25, 0]], atol=1e-6)
    np.testing.assert_allclose(pose.scale, 1)


def test_an_avatar_and_its_driver_become_an_exhibit(avatar, tmp_path):
    avatar.save(tmp_path / "me" / "avatar")
    drive = write_dataset(tmp_path / "driver", identities=1, frames=3) / "000"
    shown = exhibit.of_avatar(tmp_path / "me", drive)
    session = shown.session()
    assert shown.name == "me" and len(shown.clip) == 3 and shown.clip.fps == 25
    assert 1 <= len(session.expression.sliders.all) <= 2, "three codes differ in two directions"
    session.playback.seek(1)
    np.testing.assert_allclose(np.mean(shown.clip.pose.translation, axis=0), 0, atol=1e-5)
    with pytest.raises(InputError, match="no driver at .*nowhere"):
        exhibit.of_avatar(tmp_path / "me", tmp_path / "nowhere")
    alone = exhibit.of_avatar(tmp_path / "me", None).session()
    assert alone.playback is None
    np.testing.assert_array_equal(alone.expression.value(), avatar.habits.expression)


def test_a_prior_becomes_an_exhibit_of_its_people(avatar, tmp_path, monkeypatch):
    prior, subject = make_prior()
    heads = Heads(
        identities=subject.identities,
        codes=np.asarray(bounded_code(prior.subjects.codes[...])),
        frames=("a/0", "b/0"),
        expressions=np.stack([avatar.habits.expression, -avatar.habits.expression]),
        habits=avatar.habits,
        scores=None,
        prior=prior,
        spec=avatar.spec,
    )
    monkeypatch.setattr(exhibit, "load_heads", lambda workdir: heads)
    shown = exhibit.of_prior(tmp_path, None)
    session = shown.session()
    assert shown.people.names == ("a", "b", "c")
    assert len(session.person.sliders.all) == 2, "three codes differ in two directions"
    assert len(session.expression.sliders.all) == 1
    drawing = Drawing(session, shown.head, lambda picture, best: None)
    session.view = View(
        position=shown.start.position, camera_to_world=FRONT, fov=shown.start.fov, canvas=(64, 64)
    )
    first = drawing.best().astype(int)
    session.person.take(shown.people.codes[1])
    second = drawing.best().astype(int)
    assert np.abs(first - second).max() > 3
    session.person.set("Direction 1", -1.0)
    assert np.abs(drawing.best().astype(int) - second).max() > 3
    session.person.take(shown.people.sample(7))
    assert np.abs(drawing.best().astype(int) - second).max() > 3


@pytest.fixture
def tool():
    """The program, with arguments, in this process."""
    from gphm_jax.tools import view as module

    known = set(flags.FLAGS)
    module.define_flags()

    def run(*arguments: str) -> None:
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["view", *arguments])
        module.main(["view"])

    yield run
    for name in set(flags.FLAGS) - known:
        delattr(flags.FLAGS, name)


def test_the_tool_says_what_is_wrong_with_its_flags(tool, tmp_path):
    pytest.importorskip("viser")
    for arguments in ((), ("--avatar=a", "--prior=b")):
        with pytest.raises(InputError, match="give --avatar, .* or --prior"):
            tool(*arguments)
    with pytest.raises(InputError, match="--host=203.0.113.1 is no address of this machine"):
        tool(f"--avatar={tmp_path}", "--drive=none", "--host=203.0.113.1", "--port=8080")


@pytest.fixture
def visits():
    """A server's part of visits, which is the visitor as well."""
    server = pytest.importorskip("gphm_jax.viewer.server")
    return type("Stand", (Visits, server.Server, server.viser.ClientHandle), {})()


class Visits:
    client_id = 7

    def __init__(self) -> None:
        self.here = {7: self}

    def on_client_connect(self, call):
        self.connect = call

    def on_client_disconnect(self, call):
        self.disconnect = call

    def get_clients(self):
        return self.here

    def leave(self) -> None:
        self.here = {}
        self.disconnect(self)


@pytest.mark.parametrize("early", [False, True])
def test_whoever_leaves_is_let_go_once_even_while_being_welcomed(early, visits, monkeypatch):
    from gphm_jax.viewer import server

    monkeypatch.setattr(server, "_opened_here", lambda *_: True)
    gone = []

    def welcome(client):
        if early:
            visits.leave()
        return lambda: gone.append(client)

    server.serve(visits, welcome)
    visits.connect(visits)
    assert len(gone) == early
    if not early:
        visits.leave()
    assert gone == [visits]


def test_only_pages_of_the_server_itself_are_its_own():
    is_own_page = pytest.importorskip("gphm_jax.viewer.server").is_own_page
    for host in ("127.0.0.1:8080", "localhost:8080", "[::1]:8080"):
        assert is_own_page(f"http://{host}", host, local=True)
    assert is_own_page(None, "localhost:8080", local=True)
    assert not is_own_page("http://localhost:9999", "localhost:8080", local=True)
    assert not is_own_page("http://localhost:8080", None, local=True)
    for host in ("elsewhere.example:8080", "localhost.example:8080"):  # names that now point here
        assert not is_own_page(f"http://{host}", host, local=True)
    assert is_own_page("http://workstation:8080", "workstation:8080", local=False)


def test_a_viser_that_hides_who_connects_lets_nobody_in(visits, monkeypatch):
    from gphm_jax.viewer import server

    welcomed, said = [], []
    monkeypatch.setattr(server.logging, "error", said.append)
    server.serve(visits, welcomed.append)
    visits.connect(visits)
    assert not welcomed and "install viser 1.1" in said[0]


def test_every_saved_head_says_what_it_is(avatar):
    statement = CoarseStatement(cost="nothing", cost_db=0.0)
    moment = Moment(expression=avatar.habits.expression)
    for kind in saving.HEADS:
        saved = saving.head(kind, avatar, moment, statement)
        assert any(b"synthetic" in content for content in saved.values()), kind
    assert set(saving.head("SPZ, splats", avatar, moment, statement)) == {".spz", ".spz.json"}


def test_the_address_that_is_told_can_be_opened():
    address = pytest.importorskip("gphm_jax.viewer.server").address
    assert address("127.0.0.1", 8080) == "http://127.0.0.1:8080"
    assert address("::1", 8080) == "http://[::1]:8080"
    assert address("0.0.0.0", 80) == address("::", 80) == f"http://{socket.gethostname()}:80"


def test_a_driving_video_is_prepared_once_where_it_can_be_gone_on_with(avatar, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    film, opened = tmp_path / "film.mp4", []

    def open_driver(path, work, settings, fps):
        opened.append((path, work))
        raise InputError("no face")

    def look() -> pathlib.Path:
        with pytest.raises(InputError, match="no face"):
            clips.read_clip(film, avatar)
        path, work = opened[-1]
        assert path == (work if work.exists() else film)
        return work

    monkeypatch.setattr(clips, "open_driver", open_driver)
    film.write_text("film")
    work = look()
    assert work.is_relative_to(tmp_path / "cache") and look() == work
    work.mkdir(parents=True)
    (work / DONE).touch()
    assert look() == work
    film.write_text("another film")
    assert look() != work


def test_a_port_that_is_in_use_is_named():
    server = pytest.importorskip("gphm_jax.viewer.server")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port} is in use"):
            server.check_free("127.0.0.1", port)
    server.check_free("127.0.0.1", port)
    with pytest.raises(InputError, match="--host=203.0.113.1 is no address"):
        server.check_free("203.0.113.1", port)
    with pytest.raises(InputError, match="ports are 1 to 65535"):
        server.check_free("127.0.0.1", 70000)


def clip(frames: int = 4, fps: float = 10.0) -> Clip:
    """Expression k * ones in frame k."""
    steps = np.arange(frames, dtype=np.float32)[:, None]
    pose = Pose(rotation=np.zeros((frames, 3)), translation=0 * steps + [0, 1, 0], scale=np.ones(frames))
    return Clip(
        expression=steps * np.ones(8, np.float32),
        motion=np.zeros((frames, 8), np.float32),
        pose=pose,
        fps=fps,
    )


def test_a_clip_plays_over_and_over_at_its_speed():
    now = [100.0]
    playback = Playback(clip(), lambda: now[0])
    assert playback.frame() is None and not playback.playing
    playback.play()
    seen = []
    for passed in (0.0, 0.15, 0.1, 0.2):
        now[0] += passed
        seen.append(playback.frame())
    assert seen == [0, 1, 2, 0] and playback.period == 0.1
    playback.set_speed(2.0)
    now[0] += 0.1
    assert playback.frame() == 2 and playback.period == 0.05
    playback.pause()
    now[0] += 5.0
    assert playback.frame() == 2 and not playback.playing
    playback.seek(3)
    assert playback.frame() == 3 and not playback.playing
    playback.stop()
    assert playback.frame() is None


def test_sliders_change_what_a_clip_does(avatar):
    playback = Playback(clip(), lambda: 0.0)
    session = Session(expression=Dial(two_sliders(), np.full(8, 7.0)), playback=playback, view=view())
    drawing = Drawing(session, lambda person: avatar, lambda picture, best: None)
    playback.seek(2)
    driven = drawing.head()[1]
    assert drawing.head()[1] is driven
    np.testing.assert_allclose(driven.expression, 2)
    np.testing.assert_allclose(driven.pose.translation, [0, 1, 0])
    session.expression.set("one", 1.0)
    np.testing.assert_allclose(drawing.head()[1].expression, 2 + np.eye(8)[0])
    playback.stop()
    np.testing.assert_allclose(drawing.head()[1].expression, 7 + np.eye(8)[0])


def test_footage_that_was_not_played_for_long_is_forgotten(tmp_path, avatar, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def open_driver(path, work, settings, fps):
        work.mkdir(parents=True, exist_ok=True)
        (work / DONE).touch()
        return types.SimpleNamespace(fps=5.0)

    monkeypatch.setattr(clips, "open_driver", open_driver)
    code = np.zeros((1, 4), np.float32)
    still = Pose(rotation=jnp.zeros((1, 3)), translation=jnp.zeros((1, 3)), scale=jnp.ones(1))
    monkeypatch.setattr(clips, "perform", lambda *_: types.SimpleNamespace(expression=code, motion=code))
    monkeypatch.setattr(clips, "about_their_mean", lambda _: still)
    films = [tmp_path / f"{n}.mp4" for n in range(10)]
    for film in films:
        film.touch()
        clips.read_clip(film, avatar)
        for age, folder in enumerate(sorted((tmp_path / "gphm_jax" / "footage").iterdir(), key=os.path.getmtime)):
            os.utime(folder, (age, age))  # clocks of file systems are coarse
    kept = {folder.name for folder in (tmp_path / "gphm_jax" / "footage").iterdir()}
    settings = clips.CaptureSettings(size=avatar.spec.image_size, expression_images=0)
    assert kept == {clips._prepared(film, settings).name for film in films[2:]}
