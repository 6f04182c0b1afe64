"""A recording -> an identity folder: faces found, head and cameras tracked, pictures cropped, matted and written.

Stages, each resumable: `sightings` (one pass over the pictures), `tracking` (one fit over all), then the frames, a
folder at a time. A picture that cannot be used is dropped and named with its reason; a frame goes when no view of it
shows the face.
"""

from __future__ import annotations

import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from tqdm import tqdm

from gphm_jax import jobs
from gphm_jax.capture import quality
from gphm_jax.capture.cutting import write_frames
from gphm_jax.capture.expressions import expression_images
from gphm_jax.capture.framing import Square, frame_view
from gphm_jax.capture.identity_folder import DONE, GENERATOR, claim, describe, is_done, source_of
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.capture.mattes import open_matter
from gphm_jax.capture.names import unique_names
from gphm_jax.capture.recording import Recording
from gphm_jax.capture.settings import CaptureSettings, ScanSettings
from gphm_jax.capture.sightings import Sighting, find_faces
from gphm_jax.capture.sources import open_recordings, recording_paths
from gphm_jax.capture.tracking import Track, TrackedFrame, track
from gphm_jax.errors import InputError
from gphm_jax.files import write_json
from gphm_jax.morphable import MorphableModel, embedded
from gphm_jax.morphable_files import load
from gphm_jax.paths import expanded

_MOST_MISS = (
    0.05  # of the face's extent: a median distance beyond it means that the model is not where the face is
)
_SIGHTINGS = ".sightings.npz"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """What became of a recording's pictures."""

    track: Track
    squares: Mapping[tuple[str, str], Square]  # (frame, view)
    sightings: tuple[Sighting, ...]
    dropped: Mapping[tuple[str, str], str]  # (frame, view) -> why
    seconds: Mapping[str, float]  # of each stage, of this run


def preprocess(
    recording: Recording, out: pathlib.Path, settings: CaptureSettings, model: MorphableModel
) -> Outcome:
    """Writes `recording` to the identity folder `out`, with `dataset.json` and `quality.html`.

    Run again, it goes on where it stopped. `InputError` where the folder holds other footage or settings, or nothing
    of the footage can be used.
    """
    claim(out, _described(settings, source_of(recording.source)))
    seconds: dict[str, float] = {}
    with (
        _timed(seconds, "faces"),
        open_landmarker(settings.landmarks, settings.landmark_model or None) as finder,
    ):
        total = len(recording.frames) * len(recording.views)
        with tqdm(total=total, unit="image", desc=f"{recording.name}: faces", smoothing=0.1) as bar:
            sightings = tuple(find_faces(recording, finder, out / _SIGHTINGS, lambda: bar.update(1)))
        scheme = finder.scheme
    with _timed(seconds, "tracking"):
        tracked, dropped = _judge(track(recording, sightings, model, scheme), sightings)
        if not tracked.frames:
            raise InputError(
                f"the face model fits no picture of {recording.source} (the nearest is off by "
                f"more than {_MOST_MISS:.0%} of the face): look at the footage, or try other --landmarks"
            )
        squares = _frame(recording, tracked)
    with _timed(seconds, "pictures"), open_matter(settings.matting, settings.matting_model or None) as matter:
        shown = expression_images(
            settings.expressions, settings.expression_images, max(16, settings.size // 2)
        )
        detected = {item.frame: item.expression for item in sightings if item.expression is not None}
        write_frames(recording, out, settings.size, tracked, squares, matter, shown, detected)
    outcome = Outcome(
        track=tracked, squares=squares, sightings=sightings, dropped=dropped, seconds=dict(seconds)
    )
    quality.write_quality(out, recording, outcome, settings.size)
    (out / _SIGHTINGS).unlink(missing_ok=True)
    figures = quality.figures(recording, outcome)
    for text in quality.advice(figures):
        logging.warning("%s: %s %s shows it", recording.name, text, out / "quality.html")
    write_json(out / DONE, figures)
    return outcome


def preprocess_all(
    path: pathlib.Path, out: pathlib.Path, settings: CaptureSettings, *, workers: int = 0
) -> None:
    """Preprocesses everything at `path`: one person's footage to the identity folder `out`, several clips to a dataset.

    Of several, finished ones are skipped, and what fails is listed at the end and in `out`/failed.json
    (`TrainingError`). Each clip runs in a process of its own.
    """
    clips = recording_paths(path)
    if len(clips) == 1:
        if not is_done(out):
            preprocess(_open(clips[0], settings), out, settings, read_face_model(settings))
        return
    read_face_model(settings)  # builds it once, before many would
    names = unique_names(clip.stem if clip.is_file() else clip.name for clip in clips)
    done = jobs.run_jobs(
        functools.partial(_preprocess_clip, settings=settings),
        [(clip, out / name) for clip, name in zip(clips, names, strict=True)],
        done=lambda job: is_done(job[1]),
        name=lambda job: job[0].name,
        workers=workers,
        description=path.name,
        unit="clip",
    )
    made = sorted(folder.parent.name for folder in out.glob("*/quality.json"))
    write_json(out / "dataset.json", {**_described(settings, {"path": str(path)}), "identities": made})
    done.conclude(out / "failed.json")


def read_face_model(settings: CaptureSettings | ScanSettings) -> MorphableModel:
    """The embedded face model, or that of the settings' file."""
    return load(expanded(settings.face_model)) if settings.face_model else embedded()


def _described(settings: CaptureSettings, source: Mapping[str, str]) -> dict[str, Any]:
    return describe(GENERATOR, settings, [source])


def _preprocess_clip(job: tuple[pathlib.Path, pathlib.Path], settings: CaptureSettings) -> None:
    clip, out = job
    preprocess(_open(clip, settings), out, settings, read_face_model(settings))


def _open(clip: pathlib.Path, settings: CaptureSettings) -> Recording:
    (recording,) = open_recordings(clip, fps=settings.fps, max_frames=settings.max_frames or None)
    return recording


def _judge(tracked: Track, sightings: tuple[Sighting, ...]) -> tuple[Track, dict[tuple[str, str], str]]:
    """The track without what the face model cannot explain, and why each dropped picture went."""
    dropped = {(item.frame, item.view): item.reason for item in sightings if item.reason}
    frames: dict[str, TrackedFrame] = {}
    for name, frame in tracked.frames.items():
        views = {}
        for view, seen in frame.views.items():
            if seen.points is None or seen.misses is None:
                views[view] = seen
                continue
            extent = float(np.ptp(seen.points, axis=0).max())
            miss = float(np.median(seen.misses))
            if miss <= _MOST_MISS * extent:
                views[view] = seen
            else:
                dropped[name, view] = f"the face model is off by {miss:.1f} pixels of a face of {extent:.0f}"
        if any(seen.points is not None for seen in views.values()):
            frames[name] = dataclasses.replace(frame, views=views)
    for name in tracked.frames.keys() - frames.keys():
        for view in tracked.frames[name].views:
            dropped.setdefault((name, view), "no view of this frame shows the face")
    # A view without a face stays where another view of the frame found the head.
    kept = {(name, view) for name, frame in frames.items() for view in frame.views}
    dropped = {place: reason for place, reason in dropped.items() if place not in kept}
    return dataclasses.replace(tracked, frames=frames), dropped


def _frame(recording: Recording, tracked: Track) -> dict[tuple[str, str], Square]:
    """The square of every picture: one for a whole view of a film, each photo its own."""
    squares: dict[tuple[str, str], Square] = {}
    for view in recording.views:
        shown = {name: frame for name, frame in tracked.frames.items() if view in frame.views}
        groups = [shown] if recording.moving else [{name: frame} for name, frame in shown.items()]
        for group in groups:
            if group:
                square = frame_view(list(group.values()), view)
                squares |= {(name, view): square for name in group}
    return squares


class _timed:
    """Adds the time of a block to a table."""

    def __init__(self, table: dict[str, float], name: str) -> None:
        self._table, self._name = table, name

    def __enter__(self) -> None:
        self._start = time.monotonic()

    def __exit__(self, *failure: object) -> None:
        self._table[self._name] = time.monotonic() - self._start
