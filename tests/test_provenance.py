"""Marks of synthetic media: written into pictures and videos, read back, and no obstacle to players."""

import base64
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from gphm_jax import files, provenance, report, video
from gphm_jax.provenance import COMPOSITE, RENDERED, Statement, read_marks

STATEMENT = Statement(
    source=COMPOSITE, licence="CC BY 4.0 <Ä & B>", date="2026-01-01", generator="gphm_jax test"
)
PICTURES = [np.full((33, 48, 3), level, np.uint8) for level in (40, 120, 200)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp"])
def test_pictures_carry_their_marks(tmp_path, suffix):
    path = tmp_path / f"picture{suffix}"
    provenance.save_image(path, PICTURES[1], STATEMENT)
    assert read_marks(path) == STATEMENT
    assert read_marks(path).content.startswith("footage beside")
    with Image.open(path) as opened:
        np.testing.assert_allclose(np.asarray(opened), PICTURES[1], atol=2)
    assert b"http://cv.iptc.org/newscodes/digitalsourcetype/composite" in path.read_bytes()
    assert path.read_bytes() == provenance.image_bytes(PICTURES[1], suffix, STATEMENT)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_a_render_is_marked_without_being_asked(tmp_path):
    provenance.save_image(tmp_path / "render.png", PICTURES[0] / np.float32(255), Statement())
    marks = read_marks(tmp_path / "render.png")
    assert (
        marks.source == RENDERED and marks.generator.startswith("gphm_jax ") and "synthetic" in marks.content
    )
    assert marks.fields["digitalSourceType"] == "trainedAlgorithmicMedia"


def packets(path):
    """What a decoder makes of a file: frames and their size."""
    capture = cv2.VideoCapture(str(path))
    found = []
    while True:
        there, picture = capture.read()
        if not there:
            return found
        found.append(picture)


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_videos_carry_their_marks_and_play(tmp_path, monkeypatch, codec):
    path = tmp_path / "video.mp4"
    if codec == "mpeg4":  # without the optional package
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert video.write_video(path, iter(PICTURES), fps=10.0, statement=STATEMENT) == codec
    assert read_marks(path) == STATEMENT
    shown = packets(path)
    assert [picture.shape for picture in shown] == [(32, 48, 3)] * 3
    for picture, truth in zip(shown, PICTURES, strict=True):
        assert abs(float(picture.mean()) - float(truth.mean())) < 6
    assert [item.name for item in tmp_path.iterdir()] == ["video.mp4"]


def test_players_find_the_words_and_the_index_first(tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "video.mp4"
    video.write_video(path, iter(PICTURES), fps=10.0, statement=STATEMENT)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    done = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-i", str(path), "-f", "null", "-"],
        capture_output=True,
        check=True,
    )
    log = done.stderr.decode()
    assert "comment         : generator: gphm_jax test; date: 2026-01-01" in log and "yuv420p" in log


def test_files_without_marks_have_none(tmp_path):
    files.write_image(tmp_path / "plain.png", PICTURES[0])
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "short.mp4").write_bytes(b"\0\0\0\x10ftypisom\0\0\0\x03\0\0\0\0")
    foreign = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><broken"
    (tmp_path / "broken.jpg").write_bytes(files.encode_image(PICTURES[0], ".jpg", xmp=foreign))
    for path in tmp_path.iterdir():
        assert read_marks(path) is None


def test_marks_may_be_elements_as_other_programs_write_them(tmp_path):
    packet = (
        b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF xmlns:rdf='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>"
        b"<rdf:Description xmlns:Iptc4xmpExt='http://iptc.org/std/Iptc4xmpExt/2008-02-29/'>"
        b"<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/digitalsourcetype/digitalCapture"
        b"</Iptc4xmpExt:DigitalSourceType></rdf:Description></rdf:RDF></x:xmpmeta>"
    )
    (tmp_path / "photo.jpg").write_bytes(files.encode_image(PICTURES[0], ".jpg", xmp=packet))
    assert read_marks(tmp_path / "photo.jpg").source == "digitalCapture"


def test_reports_keep_the_marks_of_what_they_show(tmp_path):
    provenance.save_image(tmp_path / "grid.png", PICTURES[0], STATEMENT)
    shown = [
        report.Picture(image=tmp_path / "grid.png", caption="from a file"),
        report.Picture(image=PICTURES[1], caption="an array", statement=STATEMENT),
        report.Picture(image=PICTURES[2], caption="footage"),
    ]
    path = tmp_path / "report.html"
    report.write_report(path, title="t", subtitle="s", sections=[report.Section(heading="h", items=shown)])
    data = re.findall(r"data:image/jpeg;base64,([^\"]+)", path.read_text())
    for index, expected in enumerate((STATEMENT, STATEMENT, None)):
        (tmp_path / "one.jpg").write_bytes(base64.b64decode(data[index]))
        assert read_marks(tmp_path / "one.jpg") == expected
