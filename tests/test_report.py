import base64
import io
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from gphm_jax import files, report
from gphm_jax.curves import HEIGHT, WIDTH, Chart, chart_svg
from gphm_jax.logs import RunLog
from gphm_jax.training_report import write_training_report


class Balanced(HTMLParser):
    """Fails on a tag that is not closed in order."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}

    def handle_starttag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.count[tag] = self.count.get(tag, 0) + 1

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parse(text: str) -> Balanced:
    parser = Balanced()
    parser.feed(text)
    assert not parser.open
    return parser


def path_points(svg: str) -> list[np.ndarray]:
    """The coordinates of each curve."""
    paths = re.findall(r'class="curve"[^>]* d="([^"]*)"', svg)
    return [np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", path), float).reshape(-1, 2) for path in paths]


def test_a_curve_goes_where_its_values_are():
    svg = chart_svg(Chart(title="Loss <1>", curves={"loss": ([0, 50, 100], [1.0, 0.5, 0.0])}, x_label="step"))
    ElementTree.fromstring(svg)
    (points,) = path_points(svg)
    assert (np.diff(points[:, 0]) > 0).all() and (np.diff(points[:, 1]) > 0).all()  # y grows downwards
    np.testing.assert_allclose(points[1], (points[0] + points[2]) / 2, atol=0.1)
    assert points.min() >= 0 and points[:, 0].max() <= WIDTH and points[:, 1].max() <= HEIGHT
    assert "step" in svg and "Loss &lt;1&gt;" in svg


def test_a_log_axis_makes_decay_straight_and_skips_what_it_cannot_show():
    steps = list(range(6))
    values = [10.0**-k for k in range(6)]
    svg = chart_svg(Chart(title="x", curves={"a": (steps, values)}, x_label="step", log_y=True))
    (points,) = path_points(svg)
    np.testing.assert_allclose(np.diff(points[:, 1]), np.diff(points[:, 1])[0], atol=0.2)
    broken = chart_svg(
        Chart(title="x", curves={"a": ([0, 1, 2, 3], [1.0, 0.0, float("nan"), 0.1])}, x_label="", log_y=True)
    )
    (points,) = path_points(broken)
    assert (
        len(points) == 2 and broken.split('class="curve"')[1].split("/>")[0].count("M") == 2
    )  # a gap between them


@pytest.mark.parametrize(
    "values", [[], [3.0], [0.0, 0.0], [None, None], [1e-9, 1e9], [-5.0, 5.0], [1e5, 1e5 + 1e-3]]
)
@pytest.mark.parametrize("log_y", [False, True])
def test_every_curve_can_be_drawn(values, log_y):
    svg = chart_svg(
        Chart(title="x", curves={"a": (list(range(len(values))), values)}, x_label="step", log_y=log_y)
    )
    ElementTree.fromstring(svg)
    assert "nan" not in svg and "inf" not in svg


def test_long_curves_are_thinned_and_keep_their_end():
    count = 100_000
    svg = chart_svg(
        Chart(title="x", curves={"a": (range(count), np.linspace(0, 1, count).tolist())}, x_label="step")
    )
    (points,) = path_points(svg)
    assert 200 < len(points) <= 400
    assert points[-1, 0] == WIDTH - 12  # the last step, at the right end


def test_a_report_is_one_file_with_everything_inside(tmp_path):
    image = np.zeros((6, 9, 3), np.float32)
    image[..., 0] = 1.0
    report.write_report(
        tmp_path / "r.html",
        title="A & B",
        subtitle="<script>",
        sections=[
            report.Section(
                heading="One",
                items=[
                    report.Figures(items=[("1.5 dB", "PSNR")]),
                    report.Table(header=("name", "n"), rows=[("a<b", 1234), ("c", None)], caption="Cap"),
                    report.Picture(image=image, caption='Say "hi"'),
                    report.Note(text="plain"),
                ],
            ),
            report.Section(
                heading="Two", folded=True, items=[report.settings_table({"a": {"b": 1, "c": {}}})]
            ),
            report.Section(heading="Left out", items=[]),
        ],
    )
    text = (tmp_path / "r.html").read_text()
    assert parse(text).count["img"] == 1
    assert "<script>" not in text and "http" not in text and "Left out" not in text
    assert "a&lt;b" in text and "1,234" in text and "a.b" in text and "a.c" in text
    data = re.search(r"data:image/jpeg;base64,([^\"]+)", text)
    assert data
    with Image.open(io.BytesIO(base64.b64decode(data[1]))) as opened:
        assert opened.size == (9, 6)
        assert np.asarray(opened)[..., 0].min() > 240


def test_a_finished_run_has_its_numbers_pictures_and_curves(tmp_path):
    tile = np.random.default_rng(0).uniform(size=(2, 16, 16, 3))
    with RunLog(tmp_path) as log:
        for stage in ("stage1", "stage2"):
            for step in (10, 20):
                log.scalars(stage, step, {"loss": 1.0 / step, "psnr": float(step), "seconds": 1.0})
                log.images(stage, step, {"truth": tile, "fine": tile})
    for name in ("a_0_1", "b_0_1"):
        files.write_image(tmp_path / "heldout" / f"{name}_truth.png", tile[0])
        files.write_image(tmp_path / "heldout" / f"{name}_render.png", tile[1])
    files.write_json(tmp_path / "config.json", {"stage1": {"steps": 20}})
    held_out = {"psnr": 25.25, "ssim": 0.875, "count": 2, "nearest_view_psnr": 18.5}
    summary = {"config": "tiny", "device": "cpu", "stage2": {"steps": 20, "seconds": 75, "psnr": 27.5}}
    files.write_json(
        tmp_path / "metrics.json", summary | {"heldout_views": held_out, "peak_memory_bytes": 2.5e9}
    )
    text = write_training_report(tmp_path).read_text()
    page = parse(text)
    assert (
        page.count["img"] == 5 and page.count["svg"] == 4
    )  # held-out, 2 + 2 grids; loss and PSNR of each stage
    for piece in (
        "25.25 dB",
        "0.875",
        "18.50 dB",
        "27.50 dB",
        "1 min 15 s",
        "2.5 GB",
        "stage1.steps",
        "tiny",
    ):
        assert piece in text


def test_an_unfinished_run_has_a_report_too(tmp_path):
    with RunLog(tmp_path) as log:
        log.scalars("stage1", 10, {"loss": 1.0})
    text = write_training_report(tmp_path).read_text()
    assert "unfinished" in text and parse(text).count["svg"] == 1
    given = write_training_report(tmp_path, {"stage1": {"seconds": 60.0}}, data="3 heads").read_text()
    assert "3 heads, stage 1 in 1 min" in given


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.24 s"),
        (59.97, "1 min"),
        (60, "1 min"),
        (203, "3 min 23 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_durations_are_readable(seconds, text):
    assert report.duration(seconds) == text
