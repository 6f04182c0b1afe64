"""Sightings of a face -> heads and cameras in one world, measured in head lengths.

The face model is fitted to all frames and views at once. A recording without calibration has one camera that stands
still; its pictures are placed on a square canvas first, so that photos of several sizes share one focal length. The
world that comes out has its origin at the middle of the head's ways. Its axes are those of the camera that was found
(+y up, +z towards it), or of the mean head where cameras were known, whose world may lie any way.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from gphm_jax.capture.recording import Recording
from gphm_jax.capture.sightings import Sighting
from gphm_jax.errors import InputError
from gphm_jax.face_fit import FaceFit, Observations, fit_face
from gphm_jax.morphable import MorphableModel

CANVAS = 1000.0  # pixels: the longer side of every picture of an uncalibrated recording
_TO_CAMERA = np.diag([1.0, -1.0, -1.0])  # world axes to those of the camera that was found


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackedView:
    """One picture's camera, and how well its landmarks are explained."""

    world_to_camera: Float[np.ndarray, "3 4"]
    intrinsics: Float[np.ndarray, "3 3"]  # of the picture as read
    size: tuple[int, int]
    points: Float[np.ndarray, "k 2"] | None  # observed; None where the picture shows no face
    misses: Float[np.ndarray, "k"] | None  # pixels between observed and fitted


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackedFrame:
    """One instant: the head and its views."""

    rotation: Float[np.ndarray, "3"]
    translation: Float[np.ndarray, "3"]
    expression: Float[np.ndarray, "ke"]
    landmarks: Float[np.ndarray, "68 3"]
    views: Mapping[str, TrackedView]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track:
    """A person through a recording."""

    identity: Float[np.ndarray, "ki"]
    frames: Mapping[str, TrackedFrame]  # those in which a view shows the face, in the recording's order


def track(recording: Recording, sightings: Sequence[Sighting], model: MorphableModel, scheme: str) -> Track:
    """Fits `model` to the sightings; `InputError` where no picture shows a face, or cameras are known only in part."""
    table = {(item.frame, item.view): item for item in sightings}
    shown = {item.frame for item in sightings if item.points is not None}
    if not shown:
        raise InputError(_no_face(recording, sightings))
    # A film keeps the frames without a face, as nothing seen: its neighbours in time stay neighbours.
    frames = [name for name in recording.frames if recording.moving or name in shown]
    calibrated = _calibrated(recording, sightings)
    if not calibrated and len(recording.views) > 1:
        raise InputError(
            f"{recording.source} has {len(recording.views)} cameras and no calibration: give their intrinsics and "
            "extrinsics in the dataset's own format, or preprocess one camera at a time"
        )
    seen = _observe(recording, frames, table, scheme, calibrated)
    return _assemble(recording, frames, table, fit_face(model, seen), calibrated)


def _no_face(recording: Recording, sightings: Sequence[Sighting]) -> str:
    reasons = [item.reason for item in sightings]
    if not reasons:
        return f"{recording.source} holds no picture: give footage of a face"
    common = max(set(reasons), key=reasons.count)
    return (
        f"no usable face in the {len(reasons)} pictures of {recording.source} (mostly: {common}): give footage of one "
        "person whose face is turned less than 60 degrees from the camera and fills a tenth of the picture or more"
    )


def _calibrated(recording: Recording, sightings: Sequence[Sighting]) -> bool:
    known = [item.calibration is not None for item in sightings if item.size[0]]
    if any(known) and not all(known):
        missing = next(item for item in sightings if item.size[0] and item.calibration is None)
        raise InputError(
            f"{recording.source}: frame {missing.frame}, view {missing.view} has no camera while others have: "
            "complete the calibration or remove the view"
        )
    return all(known)


def _to_canvas(size: tuple[int, int]) -> tuple[float, Float[np.ndarray, "2"]]:
    """(ratio, shift): a point of the picture lies at ratio * point + shift on the canvas."""
    ratio = CANVAS / max(size)
    return ratio, 0.5 * (CANVAS - ratio * np.array([size[1], size[0]], np.float64))


def _observe(
    recording: Recording,
    frames: Sequence[str],
    table: Mapping[tuple[str, str], Sighting],
    scheme: str,
    calibrated: bool,
) -> Observations:
    views = recording.views
    count = next(len(item.points) for item in table.values() if item.points is not None)
    points = np.zeros((len(frames), len(views), count, 2), np.float32)
    weights = np.zeros(points.shape[:3], np.float32)
    sizes = np.full((len(views), 2), round(CANVAS), np.int64)
    world_to_camera = np.tile(np.eye(4), (len(frames), len(views), 1, 1))
    intrinsics = np.tile(np.eye(3), (len(views), 1, 1))
    for f, frame in enumerate(frames):
        for v, view in enumerate(views):
            item = table.get((frame, view))
            if item is None or not item.size[0]:
                continue
            if item.calibration is not None:
                world_to_camera[f, v] = item.calibration.world_to_camera
                intrinsics[v], sizes[v] = item.calibration.intrinsics, item.size
            if item.points is not None:
                ratio, shift = (1.0, 0.0) if calibrated else _to_canvas(item.size)
                points[f, v], weights[f, v] = ratio * item.points + shift, item.score
    return Observations(
        points=points,
        weights=weights,
        sizes=sizes,
        scheme=scheme,
        intrinsics=intrinsics if calibrated else None,
        world_to_camera=world_to_camera if calibrated else None,
        moving=recording.moving,
        interval=recording.interval,
    )


def _assemble(
    recording: Recording,
    frames: Sequence[str],
    table: Mapping[tuple[str, str], Sighting],
    fit: FaceFit,
    calibrated: bool,
) -> Track:
    """The fit in the world of head lengths: x_old = scale * axes x_new + origin."""
    scale, origin = float(fit.scale), np.median(fit.translation, axis=0).astype(np.float64)
    heads = Rotation.from_rotvec(fit.rotation)
    axes = heads.mean().as_matrix() if calibrated else _TO_CAMERA
    turned = (Rotation.from_matrix(axes.T) * heads).as_rotvec()
    moved = (fit.translation - origin) @ axes / scale
    landmarks = (fit.landmarks - origin) @ axes / scale
    tracked = {}
    shown = {item.frame for item in table.values() if item.points is not None}
    for f, frame in enumerate(frames):
        if frame not in shown:
            continue
        views = {}
        for v, view in enumerate(recording.views):
            item = table.get((frame, view))
            if item is None or not item.size[0]:
                continue
            known = item.calibration
            old = np.eye(4) if known is None else known.world_to_camera
            rotation = old[:3, :3] @ axes
            shift = (old[:3, :3] @ origin + old[:3, 3]) / scale
            ratio = 1.0 if calibrated else _to_canvas(item.size)[0]
            views[view] = TrackedView(
                world_to_camera=np.concatenate([rotation, shift[:, None]], 1),
                intrinsics=_from_canvas(fit.intrinsics[v], item.size) if known is None else known.intrinsics,
                size=item.size,
                points=item.points,
                misses=None if item.points is None else fit.reprojection[f, v] / ratio,
            )
        tracked[frame] = TrackedFrame(
            rotation=turned[f],
            translation=moved[f],
            expression=fit.expression[f],
            landmarks=landmarks[f],
            views=views,
        )
    return Track(identity=fit.identity, frames=tracked)


def _from_canvas(intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int]) -> Float[np.ndarray, "3 3"]:
    ratio, shift = _to_canvas(size)
    back = np.array([[1 / ratio, 0, -shift[0] / ratio], [0, 1 / ratio, -shift[1] / ratio], [0, 0, 1]])
    return back @ intrinsics
