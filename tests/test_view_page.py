"""The viewer's page in a browser: a head, controls that move it, and messages for what goes wrong.

Left out where there is no Chromium (Debian: `apt-get install chromium`).
"""

import contextlib
import io
import pathlib
import shutil
import socket
import time

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from prior_fixture import make_prior, toy_spec

from gphm_jax.avatar import Avatar, Habits
from gphm_jax.avatar_model import bake
from gphm_jax.capture.face_photo import Face, FaceReader
from gphm_jax.errors import InputError
from gphm_jax.export.coarse import CoarseStatement
from gphm_jax.provenance import RENDERED, read_marks
from gphm_jax.types import Camera, Pose
from gphm_jax.viewer import frames, sliders
from gphm_jax.viewer.exhibit import Exhibit, People
from gphm_jax.viewer.playback import Clip

viser = pytest.importorskip("viser")
playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
CAMERA = Camera(
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[58.0, 0, 16], [0, 58, 16], [0, 0, 1]]),
)
PATIENCE = 120  # seconds: each new kind of picture is compiled first, on cores that others use
STAGE = {"x": 20, "y": 560, "width": 520, "height": 230}  # beside controls and notices


def open_somewhere(name, start):
    """A server at a port that is free: between the look and the opening others may take it."""
    from gphm_jax.viewer import server

    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        with contextlib.suppress(InputError):
            return server.open_server("127.0.0.1", port, name, start)


class AnyPicture(FaceReader):
    """Takes every picture for a face."""

    def read(self, content, name, size):
        if name != "camera.png":
            return super().read(content, name, size)
        with Image.open(io.BytesIO(content)) as picture:
            assert min(picture.size) > 16
        noise = np.random.default_rng(0).integers(
            0, 256, (size, size, 3), np.uint8
        )  # not what the camera saw first
        return Face(image=noise, scores={"Twist": 1.0})


@pytest.fixture(scope="module")
def address():
    """A page that shows a toy avatar with one slider."""
    from gphm_jax.viewer import page, server

    prior = make_prior()[0]
    spec = toy_spec(prior)
    code = jnp.asarray(np.random.default_rng(1).standard_normal(spec.networks.expression_dim), jnp.float32)
    habits = Habits(expression=code, motion=code, camera=CAMERA)
    heads = [
        Avatar(bake(prior, prior.subjects.codes[...][row], spec, seed=0), spec, habits) for row in (1, 2)
    ]
    people = People(
        names=("first", "second"),
        codes=np.eye(2, dtype=np.float32),
        sample=lambda seed: np.array([0.0, 1.0]),
        sliders=sliders.of_codes("", {}),
    )
    shown = Exhibit(
        name="toy",
        head=lambda person: heads[int(person[1])],
        people=people,
        expressions=sliders.of_codes("Face", {"Twist": -4 * code}),
        rest=code,
        start=frames.start(CAMERA, spec.image_size),
        statement=lambda avatar: CoarseStatement(cost="nothing", cost_db=0.0),
        scored=True,
        clip=Clip(
            expression=np.stack([np.asarray(code) * w for w in np.linspace(1, -3, 20)]),
            motion=np.tile(code, (20, 1)),
            pose=Pose(rotation=np.zeros((20, 3)), translation=np.zeros((20, 3)), scale=np.ones(20)),
            fps=5.0,
        ),
        faces=AnyPicture(),
    )
    opened = open_somewhere(shown.name, shown.start)
    server.serve(opened, lambda client: page.Page(client, shown).close)
    yield f"http://127.0.0.1:{opened.get_port()}"
    opened.stop()


@pytest.fixture(scope="module")
def page(address):
    """The page in headless Chromium, once it shows a head."""
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        options += ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 900, "height": 800})
        page.set_default_timeout(1000 * PATIENCE)
        page.complaints = []
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.goto(address)
        until(page, lambda stage: stage.std() > 5)
        yield page
        browser.close()


def stage(page) -> np.ndarray:
    data = page.screenshot(clip=STAGE)
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.float32)


def until(page, holds) -> np.ndarray:
    """The stage once it fulfils a condition."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if holds(picture := stage(page)):
            return picture
        page.wait_for_timeout(100)
    raise AssertionError("the page never showed that")


def at_rest(page) -> np.ndarray:
    """The stage once it has not changed for a while."""
    last, same, deadline = stage(page), 0, time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        page.wait_for_timeout(200)
        current = stage(page)
        same = same + 1 if like(last)(current) else 0
        if same == 5:
            return current
        last = current
    raise AssertionError("the page never came to rest")


def differs(picture):
    return lambda other: np.abs(other - picture).mean() > 8


def like(picture):
    """viser draws fewer pixels where the machine is slow: the same, but for edges."""
    return lambda other: np.abs(other - picture).mean() < 4


def test_a_slider_moves_the_head_and_relax_takes_it_back(page):
    before = at_rest(page)
    thumb = page.get_by_role("slider").first
    thumb.focus()
    page.keyboard.press("End")
    until(page, differs(before))
    page.get_by_role("button", name="Relax").click()
    until(page, like(before))
    assert thumb.get_attribute("aria-valuenow") == "0"


def test_dragging_turns_the_head_and_a_button_turns_it_back(page):
    before = at_rest(page)
    page.mouse.move(200, 650)
    page.mouse.down()
    page.mouse.move(320, 650, steps=5)
    page.mouse.up()
    until(page, differs(before))
    at_rest(page)
    page.get_by_role("button", name="From the front").click()
    until(page, like(before))


def test_a_clip_plays_and_its_slider_follows(page):
    before = at_rest(page)
    frame = page.get_by_role("slider").nth(1)  # below the one of the expression
    page.get_by_role("button", name="Play").click()
    until(page, differs(before))
    playwright.expect(frame).not_to_have_attribute("aria-valuenow", "0", timeout=1000 * PATIENCE)
    page.get_by_role("button", name="Pause").click()
    at_rest(page)
    frame.focus()
    page.keyboard.press("End")  # the visitor's own choice of a frame
    last = until(page, differs(before))
    page.keyboard.press("Home")
    until(page, like(before))
    page.keyboard.press("End")
    until(page, like(last))
    page.get_by_role("button", name="Back to the sliders").click()
    until(page, like(before))


def choose(page, menu: int, option: str) -> None:
    page.locator(".mantine-Select-input:visible").nth(menu).click()
    page.get_by_role("option", name=option).filter(visible=True).click()


def test_modes_and_the_saved_picture(page):
    before = at_rest(page)
    choose(page, 0, "Alpha")
    matte = until(page, lambda picture: np.ptp(picture, axis=-1).max() < 8)
    assert matte.std() > 5
    choose(page, 0, "Fine")
    until(page, like(before))
    page.get_by_text("Save", exact=True).click()
    with page.expect_download() as download:
        page.get_by_role("button", name="The picture").click()
    assert read_marks(download.value.path()).source == RENDERED
    saved = np.asarray(Image.open(download.value.path()))
    assert saved.shape[1:] == (32, 3) and 40 <= saved.shape[0] <= 48 and saved.std() > 5
    with page.expect_download() as download:
        page.get_by_role("button", name="The head").click()
    assert (
        pathlib.Path(download.value.path()).read_bytes().startswith(b"ply\nformat binary_little_endian 1.0\n")
    )
    assert not page.complaints


def test_another_person_is_another_head(page):
    before = at_rest(page)
    page.get_by_role("button", name="Somebody new").click()
    other = until(page, differs(before))
    choose(page, 1, "second")
    assert like(other)(at_rest(page))
    choose(page, 1, "first")
    until(page, like(before))


def test_the_cameras_picture_gives_an_expression_and_what_is_no_picture_is_told(page):
    before = at_rest(page)
    page.get_by_text("Expression of a picture", exact=True).click()
    page.locator("input[type=file]").set_input_files(
        {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no picture"}
    )
    page.get_by_text("notes.txt is no picture that can be read").wait_for()
    assert like(before)(at_rest(page))
    camera = page.frame_locator("iframe")
    camera.get_by_role("button", name="Use the camera").click()
    camera.get_by_role("button", name="Take a picture").click()
    until(page, differs(before))
    choose(page, 2, "Scores")
    camera.get_by_role("button", name="Take a picture").click()
    slider = page.get_by_role("slider").first
    playwright.expect(slider).to_have_attribute("aria-valuenow", "1", timeout=1000 * PATIENCE)
    page.get_by_role("button", name="Relax").click()
    until(page, like(before))
    assert not page.complaints


def test_another_servers_page_is_shown_nothing(page, address):
    other = open_somewhere("other", frames.start(CAMERA, 32))
    visitor = page.context.browser.new_page()
    visitor.goto(f"http://127.0.0.1:{other.get_port()}/?websocket={address.replace('http', 'ws')}")
    visitor.get_by_text("toy", exact=True).wait_for()  # it is connected to the first server
    visitor.wait_for_timeout(1500)
    assert visitor.get_by_role("button").count() and not visitor.get_by_role("button", name="Relax").count()
    visitor.close()
    other.stop()
