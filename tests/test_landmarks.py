"""Finding faces: mediapipe on real pictures, the other landmarkers on stand-ins with their real signatures."""

import sys
import types
import warnings

import cv2
import numpy as np
import pytest
from footage_fixture import clip, talking_face

from gphm_jax.capture import landmarks
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.errors import InputError

EYE_OUTER = (33, 263)  # of mediapipe's points: the outer eye corners, the picture's left first
CHIN = 152


@pytest.fixture(scope="module")
def mediapipe():
    with open_landmarker("mediapipe") as landmarker:
        yield landmarker


@pytest.fixture(scope="module")
def seen(mediapipe):
    (face,) = mediapipe.detect(talking_face())
    return face


def test_a_talking_face(seen):
    assert seen.points.shape == (478, 2) and seen.score > 0.8
    left, right = seen.points[list(EYE_OUTER)]
    assert left[0] < right[0] and seen.points[CHIN, 1] > max(left[1], right[1]) + 40
    assert 160 < seen.extent < 230
    assert seen.expression.shape == (52,) and seen.expression.min() >= 0 and seen.expression.max() <= 1
    assert seen.expression[ARKIT.index("jawOpen")] < 0.2


def test_scores_follow_the_face(mediapipe, seen):
    reader = cv2.VideoCapture(str(clip("single_face.mp4")))
    reader.set(cv2.CAP_PROP_POS_FRAMES, 36)
    _, picture = reader.read()
    reader.release()
    (smiling,) = mediapipe.detect(picture[..., ::-1])
    smile = ARKIT.index("mouthSmileLeft")
    assert smiling.expression[smile] > seen.expression[smile] + 0.3


@pytest.mark.parametrize("ratio", [0.25, 3.0])
def test_faces_of_any_size_in_large_pictures(mediapipe, seen, ratio):
    small = cv2.resize(talking_face(), None, fx=ratio, fy=ratio, interpolation=cv2.INTER_AREA)
    height, width = small.shape[:2]
    picture = np.full((max(height, 700), max(width, 1100), 3), 200, np.uint8)
    top, left = picture.shape[0] - height, picture.shape[1] - width
    picture[top:, left:] = small
    (face,) = mediapipe.detect(picture)
    back = (face.points - (left, top)) / ratio
    assert np.abs(back - seen.points).mean() < 0.02 * seen.extent
    assert face.score > 0.5


def test_a_face_that_fills_the_picture_and_leaves_it(mediapipe, seen):
    left, top, right, bottom = (round(edge) for edge in seen.box)
    close = talking_face()[top + 5 : bottom - 5, left + 5 : right - 5]
    (face,) = mediapipe.detect(cv2.resize(close, None, fx=3, fy=3))
    back = face.points / 3 + (left + 5, top + 5)
    assert np.abs(back - seen.points).mean() < 0.03 * seen.extent


def test_no_face_and_several(mediapipe):
    reader = cv2.VideoCapture(str(clip("no_face.mp4")))
    _, picture = reader.read()
    reader.release()
    assert mediapipe.detect(picture[..., ::-1]) == []
    faces = mediapipe.detect(cv2.imread(str(clip("multi_face.jpg")))[..., ::-1])
    assert len(faces) >= 2
    assert [face.extent for face in faces] == sorted((face.extent for face in faces), reverse=True)


def test_what_a_closer_look_does_not_find_scores_zero(mediapipe, seen, monkeypatch):
    monkeypatch.setattr(mediapipe, "_look_closely", lambda image, points: [])
    (face,) = mediapipe.detect(talking_face())
    assert face.score == 0
    moved = seen.points + 0.1 * seen.extent
    monkeypatch.setattr(mediapipe, "_look_closely", lambda image, points: [(moved, seen.expression)] * 2)
    (face,) = mediapipe.detect(talking_face())
    assert face.score == pytest.approx(1.0)  # the third look agrees with the second


def test_dlib_stand_in(monkeypatch):
    """The signatures of dlib 20: `run` of the face detector, `parts()` of what the predictor gives."""
    boxes = [types.SimpleNamespace(size=60), types.SimpleNamespace(size=90)]

    class Detector:
        def run(self, image, upsample_num_times=0, adjust_threshold=0.0):
            assert image.flags.c_contiguous and image.dtype == np.uint8
            return boxes, [0.5, 2.0], [0, 0]

    class Predictor:
        def __init__(self, path):
            assert path.endswith("own.dat")

        def __call__(self, image, box):
            parts = [types.SimpleNamespace(x=box.size * n // 67, y=n) for n in range(68)]
            return types.SimpleNamespace(parts=lambda: parts)

    module = types.ModuleType("dlib")
    module.get_frontal_face_detector = Detector
    module.shape_predictor = Predictor
    monkeypatch.setitem(sys.modules, "dlib", module)
    monkeypatch.setattr(landmarks.assets, "find", lambda *names, user_path, **_: user_path)
    with open_landmarker("dlib", "own.dat") as landmarker:
        first, second = landmarker.detect(np.zeros((8, 8, 3), np.uint8)[:, ::-1])
    assert landmarker.scheme == "ibug68"
    assert first.points.shape == (68, 2) and first.points[0].tolist() == [0.5, 0.5]
    assert first.extent == 90 and second.extent == 67
    assert 0.8 < first.score < 1 and first.score > second.score and first.expression is None


class FaceAlignmentStandIn:
    """face-alignment 1.5 as far as it is called: None instead of lists, and a warning, without a face."""

    found = 2

    def __init__(self, landmarks_type, device="cuda"):
        assert landmarks_type == "2D" and device == "cpu"

    def get_landmarks_from_image(
        self, image_or_path, detected_faces=None, return_bboxes=False, return_landmark_score=False
    ):
        assert return_bboxes and return_landmark_score
        if not self.found:
            warnings.warn("No faces were detected.", stacklevel=2)
            return None, None, None
        grid = np.stack([np.arange(68.0), np.arange(68.0)[::-1]], -1).astype(np.float32)
        return [grid, 2 * grid], [np.full(68, 0.9, np.float32)] * 2, [np.zeros(5)] * 2


def test_face_alignment_stand_in(monkeypatch):
    module = types.ModuleType("face_alignment")
    module.FaceAlignment = FaceAlignmentStandIn
    module.LandmarksType = types.SimpleNamespace(TWO_D="2D")
    torch = types.ModuleType("torch")
    torch.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, "face_alignment", module)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with open_landmarker("face_alignment") as landmarker:
        larger, smaller = landmarker.detect(np.zeros((8, 8, 3), np.uint8))
        assert larger.extent == 134 and smaller.extent == 67 and larger.score == pytest.approx(0.9)
        assert smaller.points[3].tolist() == [3.5, 64.5]
        monkeypatch.setattr(FaceAlignmentStandIn, "found", 0)
        assert landmarker.detect(np.zeros((8, 8, 3), np.uint8)) == []
    with pytest.raises(InputError, match="finds its own weights"), open_landmarker("face_alignment", "x"):
        pass


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "dlib", None)
    with pytest.raises(InputError, match=r"gphm_jax\[identity\]"), open_landmarker("dlib"):
        pass
    monkeypatch.setenv("GPHM_ASSETS", str(tmp_path))
    monkeypatch.setattr(landmarks.assets, "_installed_folder", lambda module: None)
    with pytest.raises(InputError, match=r"face_landmarker_v2\.task"), open_landmarker("mediapipe"):
        pass
