"""Second pass over a recording: squares cut out of the pictures, people out of the squares, frames written."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from gphm_jax.capture.expressions import ExpressionImages
from gphm_jax.capture.framing import Square
from gphm_jax.capture.mattes import Matter, of_person
from gphm_jax.capture.recording import Picture, Recording
from gphm_jax.capture.tracking import Track, TrackedFrame
from gphm_jax.data import frame_writer, images
from gphm_jax.errors import InputError


def write_frames(
    recording: Recording,
    out: pathlib.Path,
    size: int,
    tracked: Track,
    squares: Mapping[tuple[str, str], Square],
    matter: Matter,
    shown: ExpressionImages,
    detected: Mapping[str, Float[np.ndarray, "52"]],
) -> None:
    """Reads the recording once more and writes every tracked frame that is not in the folder `out` yet.

    `squares` by (frame, view); `detected` are the ARKit scores of frames, where the landmarker gives them.
    """
    rows = {name: row for row, name in enumerate(recording.frames)}
    missing = {name for name in tracked.frames if not frame_writer.is_written(out, name)}
    written = len(tracked.frames) - len(missing)
    with tqdm(
        total=len(tracked.frames),
        initial=written,
        unit="frame",
        desc=f"{recording.name}: pictures",
        smoothing=0.1,
    ) as bar:
        for name, group in itertools.groupby(
            recording.read() if missing else (), lambda picture: picture.frame
        ):
            if name not in missing:
                continue
            frame = tracked.frames[name]
            cut = {
                picture.view: _cut(picture, squares[name, picture.view], frame, size, matter)
                for picture in group
                if isinstance(picture, Picture) and picture.view in frame.views
            }
            if len(cut) < len(frame.views):
                raise InputError(
                    f"{recording.source} changed while it was read: frame {name} has lost a view; run again"
                )
            with frame_writer.new_frame(out, name) as folder:
                for view, (image, mask, recorded) in cut.items():
                    _write_view(folder, view, image, mask, recorded, frame, squares[name, view])
                frame_writer.write_params(
                    folder,
                    rotation=frame.rotation,
                    translation=frame.translation,
                    identity=tracked.identity,
                    expression=frame.expression,
                    landmarks=frame.landmarks,
                )
                # The embedded face model's coefficients are scores too; of another, settings ask for detected ones.
                for n, image in enumerate(shown.of(name, rows[name], detected.get(name, frame.expression))):
                    frame_writer.write_jpeg(
                        folder / "expressions" / f"{n}.jpg", image, frame_writer.CROP_QUALITY
                    )
            missing.remove(name)
            bar.update(1)
    if missing:
        raise InputError(
            f"{recording.source} changed while it was read: frame {min(missing)} is no longer there; run again"
        )


def _cut(
    picture: Picture, square: Square, frame: TrackedFrame, size: int, matter: Matter
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A picture's square, the person's coverage in it, and the box of what of it was recorded."""
    image, recorded = square.crop(picture.image, size), square.recorded(picture.image.shape[:2], size)
    inside = square.crop_mask(np.full(picture.image.shape[:2], 255, np.uint8), size)
    if picture.mask is not None:
        return image, square.crop_mask(picture.mask, size), recorded
    view = frame.views[picture.view]
    pixels = images.project(frame.landmarks, _four(view.world_to_camera), view.intrinsics)
    points = square.points(pixels, size)
    low, high = points.min(0), points.max(0)
    mask = np.minimum(matter.matte(image, picture.view), inside)
    person = of_person(mask, (float(low[0]), float(low[1]), float(high[0]), float(high[1])))
    return image, person, recorded


def _write_view(
    folder: pathlib.Path,
    view: str,
    image: UInt8[np.ndarray, "s s 3"],
    mask: UInt8[np.ndarray, "s s"],
    recorded: Float[np.ndarray, "4"],
    frame: TrackedFrame,
    square: Square,
) -> None:
    seen, size = frame.views[view], image.shape[0]
    intrinsics = square.intrinsics(seen.intrinsics, size)
    frame_writer.write_view(folder, view, image, mask, seen.world_to_camera, intrinsics, recorded)
    centre = -seen.world_to_camera[:, :3].T @ seen.world_to_camera[:, 3]
    if seen.points is not None and frame_writer.shows_face(frame.rotation, frame.landmarks, centre):
        box = frame_writer.face_box(frame.landmarks, seen.world_to_camera, intrinsics)
        frame_writer.write_face(folder, view, images.over_white(image, mask), box)


def _four(world_to_camera: np.ndarray) -> np.ndarray:
    return np.concatenate([world_to_camera, np.array([[0.0, 0.0, 0.0, 1.0]])])
