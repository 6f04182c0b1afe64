"""Cutting people out: mediapipe on a real picture, RobustVideoMatting's network on a stand-in of its runtime."""

import sys
import types

import cv2
import numpy as np
import pytest
from footage_fixture import talking_face

from gphm_jax.capture import mattes
from gphm_jax.capture.mattes import guided, of_person, open_matter
from gphm_jax.errors import InputError


def test_mediapipe_cuts_a_person_out():
    with open_matter("mediapipe") as matter:
        mask = matter.matte(talking_face(), "0")
    assert mask.shape == (360, 640) and mask.dtype == np.uint8
    assert (mask[100:300, 265:345] > 250).all()  # face and chest
    assert (mask[:, 560:] < 5).all() and (mask[:25] < 5).all()  # the door
    assert ((mask > 5) & (mask < 250)).mean() < 0.04  # an edge, no veil


def test_guided_filter_moves_an_edge_to_the_pictures_own():
    picture = np.zeros((64, 64, 3), np.uint8)
    picture[:, 32:] = 255
    blurred = cv2.GaussianBlur((picture[..., 0] > 0).astype(np.float32), (0, 0), 3)
    sharp = guided(blurred, picture, 4)
    steps = np.abs(np.diff(sharp[32]))
    assert steps.argmax() == 31 and steps[31] > 3 * np.abs(np.diff(blurred[32])).max()


def test_only_the_parts_that_meet_the_face_stay():
    mask = np.zeros((40, 60), np.uint8)
    mask[10:30, 5:20] = 200
    mask[10:30, 30:50] = 255
    kept = of_person(mask, (32.4, 12.0, 40.0, 20.0))
    assert kept[20, 40] == 255 and not kept[:, :25].any()
    assert of_person(mask, (-30.0, -30.0, 10.0, 15.0))[20, 10] == 200
    assert not of_person(mask, (22.0, 0.0, 27.0, 5.0)).any()


class Session:
    """onnxruntime's InferenceSession as RobustVideoMatting's network answers it: two pictures and four states."""

    def __init__(self, path, providers):
        assert path.endswith("own.onnx") and providers == ["CPUExecutionProvider"]

    def run(self, names, inputs):
        assert names is None and set(inputs) == {"src", "r1i", "r2i", "r3i", "r4i", "downsample_ratio"}
        source = inputs["src"]
        assert source.dtype == np.float32 and source.shape[:2] == (1, 3) and source.max() <= 1
        assert inputs["downsample_ratio"] == np.float32(min(1, 512 / max(source.shape)))
        count = inputs["r1i"].max() + 1  # how many pictures of this view came before
        alpha = np.full((1, 1, *source.shape[2:]), count / 10, np.float32)
        return [source, alpha, *[np.full((1, 4, 2, 2), count, np.float32)] * 4]


def test_robust_video_matting_remembers_each_view(monkeypatch):
    runtime = types.ModuleType("onnxruntime")
    runtime.InferenceSession = Session
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.setattr(mattes.assets, "find", lambda *names, user_path, **_: user_path)
    picture = np.full((30, 1024, 3), 255, np.uint8)
    with open_matter("rvm", "own.onnx") as matter:
        assert [matter.matte(picture, view)[0, 0] for view in "aab"] == [26, 51, 26]
        assert matter.matte(picture[:, :40], "a").tolist() == np.full((30, 40), 26).tolist()


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"gphm_jax\[matting\]"), open_matter("rvm"):
        pass
