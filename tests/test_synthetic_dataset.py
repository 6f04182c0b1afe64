"""The synthetic dataset as it lies on disk: read back, the same bytes however it is made, and bad flags."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from gphm_jax.data import layout
from gphm_jax.data.synthetic import cameras, proxies, sequence, writer
from gphm_jax.data.synthetic.dataset import describe, synthesize
from gphm_jax.errors import InputError

SEED = 3
REQUEST = writer.Request(
    out=pathlib.Path("unset"), first_identity=0, identities=2, expressions=2, frames=2, views=2, heldout_views=1,
    expression_images=1, size=64, seed=SEED, capture="multiview",
)  # fmt: skip


def tree(folder: pathlib.Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("heads") / "one"
    assert synthesize(dataclasses.replace(REQUEST, out=out), 1) == 12
    return out


def test_dataset_reads_back(dataset):
    read = layout.open_dataset(dataset)
    assert read.identities == ("0000", "0001") and len(read.frames) == 4 and read.landmark_count == 68
    assert read.held_out_views == {"2"} and read.white_background
    frame = read.frames[3]
    assert frame.shows_face[0] and not frame.shows_face[1], "view 1 sees the back of the head"
    image, mask = layout.load_view(read, frame, 0, size=64)
    assert (image[mask == 0] >= 250).mean() > 0.98 and (mask == 255).mean() > 0.2
    face = cv2.imread(str(dataset / "0001/images/0001/face_0.jpg"))
    assert face.shape == (32, 32, 3)
    params = np.load(dataset / "0001/params/0001/params.npz")
    assert (
        params["pose"].shape == (6,)
        and params["exp_coeff"].shape == (52,)
        and float(params["scale"][0]) == 1.0
    )
    black = cv2.imread(str(dataset / "0001/images/0001/nonface_0.jpg")).max(-1) < 12
    picture = cv2.imread(str(dataset / "0001/images/0001/image_0.jpg")).max(-1) < 12
    assert 0.04 < (black & ~picture).mean() < 0.5
    assert cv2.imread(str(dataset / "0001/expressions/0001/0.jpg")).shape == (32, 32, 3)
    assert not [p for p in dataset.iterdir() if p.name.startswith(".")]


def test_two_workers_other_count_and_resuming_give_the_same_bytes(dataset, tmp_path):
    request = dataclasses.replace(REQUEST, out=tmp_path / "two", identities=1, first_identity=1)
    assert synthesize(request, 2) == 6
    expected = {k: v for k, v in tree(dataset).items() if k.startswith("0001/")}
    found = {k: v for k, v in tree(request.out).items() if k.startswith("0001/")}
    assert len(expected) > 20 and found == expected
    kept = request.out / "0001/images/0001/image_0.jpg"
    stamp = kept.stat().st_mtime_ns
    for path in (request.out / "0001/images/0000").iterdir():
        path.unlink()
    (request.out / "0001/images/0000").rmdir()
    (request.out / ".frame-stale").mkdir()
    assert synthesize(request, 1) == 3
    assert {k: v for k, v in tree(request.out).items() if k.startswith("0001/")} == expected
    assert kept.stat().st_mtime_ns == stamp, "a finished frame is not touched"
    assert synthesize(request, 1) == 0
    with pytest.raises(InputError, match="another size|another image_size"):
        synthesize(dataclasses.replace(request, size=32), 1)


def test_plain_heads_are_described_as_such(monkeypatch):
    monkeypatch.setattr(proxies, "available", lambda: False)
    described = describe(REQUEST)
    assert "plain" in str(described["heads"]) and len(described["sources"]) == 1


def test_expression_images_are_of_other_people():
    for index in (0, 5, 11):
        for frame in range(4):
            others = writer._expression_people(index, frame, 4, SEED)
            assert len(set(others)) == 4 and index not in others


def test_monocular_capture(tmp_path):
    request = dataclasses.replace(
        REQUEST,
        out=tmp_path / "mono",
        identities=1,
        expressions=2,
        frames=4,
        expression_images=0,
        size=32,
        capture="monocular",
    )
    assert synthesize(request, 1) == 4 + 4
    read = layout.open_dataset(request.out)
    assert read.held_out_frames == {("0000", "0003")}
    assert [len(frame.views) for frame in read.frames] == [1, 1, 1, 5]
    described = json.loads((request.out / "dataset.json").read_text())
    assert described["held_out_views"] == ["1", "2", "3", "4"]
    last = read.frames[3]
    centres = [-w[:3, :3].T @ w[:3, 3] - cameras.TARGET for w in last.world_to_camera]
    yaws = np.degrees([np.arctan2(c[0], c[2]) for c in centres])
    np.testing.assert_allclose(yaws[1:] - yaws[0], [35, -35, 60, -60], atol=0.01)
    sweep = [sequence.monocular_angle(k, 40)[0] for k in range(40)]
    assert max(sweep) == pytest.approx(40, abs=1) and min(sweep) == pytest.approx(-40, abs=1)


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--size=3", "--size=3"), ("--out=/proc/nowhere/x", "cannot write"), ("--views=ten", "views")],
)
def test_bad_flags_end_with_status_2_and_one_line(flag, says, tmp_path):
    command = [sys.executable, "-m", "gphm_jax.tools.synthesize", f"--out={tmp_path / 'x'}", flag]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and says in done.stderr
