"""The face in a photo that somebody gives, cut out as an avatar's expression encoder knows faces."""

from __future__ import annotations

import dataclasses
import pathlib
import tempfile
import threading
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.capture.landmarks import Detection, Landmarker, Mediapipe
from gphm_jax.capture.mattes import Matter, of_person
from gphm_jax.capture.mattes import Mediapipe as Segmenter
from gphm_jax.capture.pictures import read_picture
from gphm_jax.data import frame_writer, images
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.errors import InputError

_MOST_PIXELS = 1080  # of a picture's shorter side: phones give more than a face needs
_MOST_DEGREES = 75.0  # of a face that training shows the encoder
_LEAST_SCORE = 0.2  # of a detection that is a face
# Of MediaPipe's 478 points those at the ends of the 68 landmarks that training cut faces by: brows, jaw and chin.
_BROWS_TO_CHIN = (234, 454, 132, 361, 172, 397, 152, 70, 63, 105, 66, 107, 336, 296, 334, 293, 300)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Face:
    """What a picture showed."""

    image: UInt8[np.ndarray, "s s 3"]  # for the encoder, over white
    scores: Mapping[str, float]  # of the 52 ARKit units


class FaceReader:
    """Finds faces with mediapipe, whose detectors open at the first picture. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: tuple[Landmarker, Matter] | None = None

    def read(self, content: bytes, name: str, size: int) -> Face:
        """The largest face of a picture file's content, `size` pixels large; as `read_file`."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "picture"
            path.write_bytes(content)
            try:
                picture = read_picture(path, max_side=_MOST_PIXELS)
            except InputError as error:
                raise InputError(f"{name} is no picture that can be read: give a JPEG or PNG file") from error
        return self._face(*picture, name, size)

    def read_file(self, path: pathlib.Path, size: int) -> Face:
        """The largest face of a picture file, `size` pixels large.

        `InputError` where there is no picture, no face, or one that is turned too far to be read.
        """
        return self._face(*read_picture(path, max_side=_MOST_PIXELS), str(path), size)

    def _face(
        self, image: UInt8[np.ndarray, "h w 3"], mask: UInt8[np.ndarray, "h w"] | None, name: str, size: int
    ) -> Face:
        with self._lock:
            landmarker, matter = self._detectors()
            face = _largest(landmarker.detect(image), name)
            if mask is None:
                mask = of_person(matter.matte(image, ""), face.box)
        if turned(face.points) > _MOST_DEGREES:
            raise InputError(f"the face in {name} is turned too far from the camera: give a picture from the front")
        scores = () if face.expression is None else face.expression.tolist()
        return Face(image=cut(image, mask, face.points, size), scores=dict(zip(ARKIT, scores, strict=False)))

    def close(self) -> None:
        """Frees the detectors."""
        with self._lock:
            for detector in self._opened or ():
                detector.close()
            self._opened = None

    def _detectors(self) -> tuple[Landmarker, Matter]:
        if self._opened is None:
            self._opened = Mediapipe(), Segmenter()
        return self._opened


def cut(
    image: UInt8[np.ndarray, "h w 3"],
    mask: UInt8[np.ndarray, "h w"],
    points: Float[np.ndarray, "478 2"],
    size: int,
) -> UInt8[np.ndarray, "size size 3"]:
    """The face with MediaPipe's landmarks `points`, over white, in the square that training would give it."""
    marks = points[list(_BROWS_TO_CHIN)]
    box = frame_writer.square_about(marks)
    return frame_writer.crop_face(images.over_white(image, mask), box, size)


def turned(points: Float[np.ndarray, "478 2"]) -> float:
    """About how many degrees a face with MediaPipe's landmarks looks to the side.

    Seen from the front the nose's tip lies midway between the cheeks; it stands about as far before them as they are
    from their middle.
    """
    nose, right, left = points[1], points[234], points[454]
    across, aside = left - right, nose - 0.5 * (left + right)
    half = 0.5 * float(across @ across)
    return float(np.degrees(np.arctan2(abs(aside @ across), half)))


def _largest(faces: list[Detection], name: str) -> Detection:
    face = next((face for face in faces if face.score >= _LEAST_SCORE), None)
    if face is None:
        raise InputError(f"no face found in {name}: give a picture of one face from the front")
    return face
