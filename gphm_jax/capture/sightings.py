"""First pass over a recording: whose face is where in each picture, kept on disk so that a long run resumes."""

from __future__ import annotations

import dataclasses
import pathlib
import zipfile
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Float

from gphm_jax.capture.landmarks import Detection, Landmarker
from gphm_jax.capture.recording import Calibration, Picture, Recording, Unreadable
from gphm_jax.files import atomic_path

_SAVE_EVERY = 200  # pictures
_LEAST_SCORE = 0.2
_LEAST_EXTENT = 24.0  # pixels of a face: below it landmarks are guesses
_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Sighting:
    """What one picture showed. `reason` says why it shows no usable face; it is empty where `points` counts."""

    frame: str
    view: str
    size: tuple[int, int]  # height, width; zeros where the picture could not be read
    score: float
    reason: str
    others: int = 0  # further faces in the picture
    points: Float[np.ndarray, "k 2"] | None = None
    expression: Float[np.ndarray, "52"] | None = None
    calibration: Calibration | None = None


def find_faces(
    recording: Recording, landmarker: Landmarker, kept: pathlib.Path, tick: Callable[[], object]
) -> list[Sighting]:
    """One sighting a picture, in the order of reading; resumes from the file `kept` and calls `tick` a picture."""
    found = _restore(kept, landmarker.scheme)
    chooser = _Chooser()
    for index, picture in enumerate(recording.read()):
        if index >= len(found):
            found.append(_look(picture, landmarker, chooser))
            if len(found) % _SAVE_EVERY == 0:
                _store(kept, landmarker.scheme, found)
        chooser.remember(found[index])
        tick()
    _store(kept, landmarker.scheme, found)
    return found


class _Chooser:
    """The same person in all pictures of a view: the face nearest to where it was, first the largest."""

    def __init__(self) -> None:
        self._last: dict[str, Float[np.ndarray, "2"]] = {}

    def choose(self, view: str, faces: list[Detection]) -> Detection:
        place = self._last.get(view)
        if place is None:
            return faces[0]
        return min(faces, key=lambda face: float(np.linalg.norm(face.points.mean(0) - place)) / face.extent)

    def remember(self, sighting: Sighting) -> None:
        if sighting.points is not None:
            self._last[sighting.view] = sighting.points.mean(0)


def _look(picture: Picture | Unreadable, landmarker: Landmarker, chooser: _Chooser) -> Sighting:
    if isinstance(picture, Unreadable):
        return Sighting(frame=picture.frame, view=picture.view, size=(0, 0), score=0.0, reason=picture.reason)
    faces = landmarker.detect(picture.image)
    sure = [face for face in faces if face.score >= _LEAST_SCORE]
    seen = Sighting(
        frame=picture.frame,
        view=picture.view,
        size=picture.image.shape[:2],
        score=max((face.score for face in faces), default=0.0),
        reason="no face found",
        calibration=picture.calibration,
    )
    if not sure:
        doubtful = f"only a doubtful face found (score {seen.score:.2f}, {_LEAST_SCORE:g} is asked)"
        return dataclasses.replace(seen, reason=doubtful) if faces else seen
    face = chooser.choose(picture.view, sure)
    if face.extent < _LEAST_EXTENT:
        small = f"the face is {face.extent:.0f} pixels large ({_LEAST_EXTENT:g} are asked): film closer"
        return dataclasses.replace(seen, reason=small)
    return dataclasses.replace(
        seen,
        score=face.score,
        reason="",
        others=len(sure) - 1,
        points=face.points,
        expression=face.expression,
    )


def _store(path: pathlib.Path, scheme: str, found: list[Sighting]) -> None:
    if not found:
        return
    shown = [item for item in found if item.points is not None]
    calibrated = [item.calibration for item in found if item.calibration is not None]
    with atomic_path(path) as partial:
        np.savez(
            partial,
            format=_FORMAT,
            scheme=scheme,
            frame=[item.frame for item in found],
            view=[item.view for item in found],
            size=np.array([item.size for item in found], np.int32),
            score=np.array([item.score for item in found], np.float64),
            reason=[item.reason for item in found],
            others=np.array([item.others for item in found], np.int32),
            points=np.array([item.points for item in shown], np.float32),
            has_expression=bool(shown and shown[0].expression is not None),
            expression=np.array(
                [item.expression for item in shown if item.expression is not None], np.float32
            ),
            calibrated=np.array([item.calibration is not None for item in found]),
            world_to_camera=np.array([item.world_to_camera for item in calibrated], np.float64),
            intrinsics=np.array([item.intrinsics for item in calibrated], np.float64),
        )


def _restore(path: pathlib.Path, scheme: str) -> list[Sighting]:
    """The sightings of a run that was cut short; none where the file is another landmarker's, or damaged."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            kept = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile):
        return []
    if kept.get("format") != _FORMAT or kept["scheme"] != scheme:
        return []
    return list(_restored(kept))


def _restored(kept: dict[str, np.ndarray]) -> Iterator[Sighting]:
    cameras = iter(zip(kept["world_to_camera"], kept["intrinsics"], strict=True))
    points, expressions = iter(kept["points"]), iter(kept["expression"])
    for row, reason in enumerate(kept["reason"]):
        calibration = None
        if kept["calibrated"][row]:
            world_to_camera, intrinsics = next(cameras)
            calibration = Calibration(world_to_camera=world_to_camera, intrinsics=intrinsics)
        yield Sighting(
            frame=str(kept["frame"][row]),
            view=str(kept["view"][row]),
            size=(int(kept["size"][row, 0]), int(kept["size"][row, 1])),
            score=float(kept["score"][row]),
            reason=str(reason),
            others=int(kept["others"][row]),
            points=None if reason else next(points),
            expression=next(expressions) if not reason and kept["has_expression"] else None,
            calibration=calibration,
        )
