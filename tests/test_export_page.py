"""The exported page in a browser: no network, no complaint, a head, and controls that move it.

Left out where there is no Chromium (Debian: `apt-get install chromium`), or without the page's scripts.
"""

import io
import pathlib
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from gphm_jax import assets
from gphm_jax.export import page
from gphm_jax.export.cloud import SplatCloud
from gphm_jax.export.coarse import CoarseStatement
from gphm_jax.types import Camera

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LIBRARIES = all(assets.has(package, path) for package, path in page._LIBRARIES.values())
RED, BLUE = np.float32([0.9, 0.1, 0.1]), np.float32([0.1, 0.1, 0.9])
CAMERA = Camera(
    world_to_camera=jnp.asarray([[1.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, -1, 3], [0, 0, 0, 1]]),
    intrinsics=jnp.asarray([[116.0, 0, 32], [0, 116, 32], [0, 0, 1]]),
)
STATEMENT = CoarseStatement(
    cost="0.25 dB PSNR on held-out frames",
    cost_db=0.25,
    licence="<CC0>",
    date="2026-01-01",
    generator="gphm_jax test",
)
pytestmark = pytest.mark.skipif(not LIBRARIES, reason="the page's scripts are not fetched: make assets")


def ball(center: tuple[float, float, float], color: np.ndarray) -> SplatCloud:
    """Sixty splats about a point."""
    rng = np.random.default_rng(0)
    quats = np.tile(np.float32([1, 0, 0, 0]), (60, 1))
    return SplatCloud(
        means=np.float32(center) + 0.15 * rng.standard_normal((60, 3)).astype(np.float32),
        quats=quats,
        scales=np.full((60, 3), 0.06, np.float32),
        opacities=np.full(60, 0.95, np.float32),
        colors=np.tile(color, (60, 1)),
    )


def performance() -> page.Performance:
    """Red in the middle; one expression goes left and turns blue, one does nothing, a clip goes up."""
    rest = ball((0, 0, 0), RED)
    clip = [ball((0, y, 0), RED) for y in (0.0, 0.3, 0.6)]
    return page.Performance(
        rest=rest, named={"Left": ball((-0.7, 0, 0), BLUE), "Nothing": rest}, clip=clip, fps=1.0
    ).telling()


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("page") / "head.html"
    path.write_text(page.page(performance(), CAMERA, 64, STATEMENT), encoding="utf-8")
    return path


def test_the_page_is_one_file_that_says_what_it_shows(path):
    text = path.read_text(encoding="utf-8")
    own = re.sub(r'<script type="text/plain".*?</script>|<!--.*?-->', "", text, flags=re.DOTALL)
    assert not re.search(r"https?://|@import|url\(", own)
    assert not re.search(r"\{(title|notes|data|scene|style|loader|licences)\}", own)
    assert (
        "without the avatar&#x27;s refine network" in own and "costs 0.25 dB PSNR on held-out frames" in own
    )
    assert "&lt;CC0&gt;" in own and "not a photograph" in own and "gphm_jax test" in own
    assert text.count("Permission is hereby granted") >= 2, "both libraries' notices"
    assert list(performance().named) == ["Left"], "a slider that moves nothing is left out"


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium that draws WebGL in software."""
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


class Visit:
    """A page that has been opened, and everything it said and asked for."""

    def __init__(self, browser, path: pathlib.Path, **options):
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(viewport={"width": 900, "height": 600}, **options)
        self.page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_function("window.head && window.head.drawn() > 0", timeout=60_000)

    def still(self) -> np.ndarray:
        """The stage's pixels once nothing is drawn any more."""
        self.page.wait_for_function(
            "new Promise(done => { const n = head.drawn(); setTimeout(() => done(head.drawn() === n), 300); })",
            timeout=60_000,
        )
        data = self.page.locator("#stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(np.float32) / 255


def center(picture: np.ndarray, color: np.ndarray) -> tuple[float, float]:
    """Where a colour lies, in parts of the picture's height from its middle: right, and down."""
    near = np.abs(picture - color).max(axis=-1) < 0.25
    assert near.mean() > 0.002, "the colour is there"
    y, x = np.nonzero(near)
    height, width = near.shape
    return (x.mean() - width / 2) / height, (y.mean() - height / 2) / height


def test_the_head_is_drawn_and_its_slider_moves_it(browser, path):
    visit = Visit(browser, path)
    x, y = center(visit.still(), RED)
    assert abs(x) < 0.03 and abs(y) < 0.03
    slider = visit.page.locator("#sliders input")
    assert slider.count() == 1 and visit.page.locator("#sliders label").inner_text().startswith("Left")
    slider.focus()
    visit.page.keyboard.press("End")
    x, y = center(visit.still(), BLUE)
    # 0.7 head lengths at distance 3: 116 * 0.7 / 3 of 64 pixels.
    assert abs(x + 116 * 0.7 / 3 / 64) < 0.03 and abs(y) < 0.03
    assert visit.page.locator("#sliders output").inner_text() == "100 %"
    visit.page.click("#rest")
    assert abs(center(visit.still(), RED)[0]) < 0.03
    elsewhere = [url for url in visit.asked if not url.startswith(("blob:", "data:"))]
    assert elsewhere == [path.as_uri()]
    assert not visit.said
    visit.context.close()


def test_the_clip_plays_and_dragging_turns(browser, path):
    visit = Visit(browser, path, color_scheme="dark")
    start = center(visit.still(), RED)
    visit.page.locator("#time").focus()
    visit.page.keyboard.press("End")
    up = center(visit.still(), RED)
    assert abs(up[1] - start[1] + 116 * 0.6 / 3 / 64) < 0.04
    visit.page.click("#play")
    visit.page.wait_for_function(
        "head.weights[1] + head.weights[2] > 0.99 && head.weights[2] > 0.2", timeout=60_000
    )
    visit.page.click("#play")
    assert visit.page.locator("#play").inner_text() == "Play"
    visit.page.click("#rest")
    visit.page.locator("#sliders input").focus()
    visit.page.keyboard.press("End")
    box = visit.page.locator("#stage").bounding_box()
    left = center(visit.still(), BLUE)
    visit.page.mouse.move(box["x"] + 300, box["y"] + 100)
    visit.page.mouse.down()
    visit.page.mouse.move(box["x"] + 420, box["y"] + 100, steps=5)
    visit.page.mouse.up()
    turned = center(visit.still(), BLUE)
    assert abs(turned[0] - left[0]) > 0.05
    visit.page.click("#front")
    again = center(visit.still(), BLUE)
    assert abs(again[0] - left[0]) < 0.01
    assert not visit.said
    visit.context.close()
