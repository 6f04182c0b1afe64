"""Lets a driver's face move an avatar: a video of both, side by side, and figures of how well it follows.

    python -m gphm_jax.tools.reenact --avatar=DIR --drive=VIDEO --out=FILE.mp4
        [--expression=encoder|scores] [--pose=driver|still] [--neck=driven|held] [--layout=driver,avatar,side]

The driver is a video of one person, or a prepared identity folder. A video's sound comes along. Frames without a face
hold the one before. FILE.json says how many those were, and how the avatar's expressions follow the driver's.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shutil
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags, logging
from jaxtyping import Float, UInt8
from tqdm import tqdm

from gphm_jax import files, provenance, runtime
from gphm_jax.avatar import Avatar
from gphm_jax.capture.landmarks import open_landmarker
from gphm_jax.capture.photos import pictures_in
from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.data import images
from gphm_jax.data.images import Source
from gphm_jax.data.layout import is_dataset, open_dataset
from gphm_jax.data.sampler import spread
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.driver import Driver, open_driver
from gphm_jax.errors import InputError, run_main
from gphm_jax.face_distance import FaceEmbedder, mean_distance
from gphm_jax.paths import expanded
from gphm_jax.provenance import Statement
from gphm_jax.reenactment import Direction, follows, perform, read_scores
from gphm_jax.video import Sound, has_sound, write_video

_PANELS = ("driver", "avatar", "side")
_LOOKED_AT = 512  # pixels of the driver's picture in which its expression is read
_MEASURED = 300  # moments at most whose expressions are compared
_COMPARED = 24  # pictures at most whose faces are


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to film, checked."""

    avatar: pathlib.Path
    drive: pathlib.Path
    out: pathlib.Path
    direction: Direction
    layout: tuple[str, ...] = _PANELS
    fps: float = 0.0  # at most, of a video (0: 30); a prepared folder's own (0: as it says, or 25)
    max_frames: int = 0  # of a video, spread evenly; 0: all
    source: pathlib.Path | None = None  # a picture of the avatar's person, or a folder of them
    figures: bool = True


def reenact(request: Request) -> dict[str, Any]:
    """Writes the video and the figures beside it, each whole or not at all; the figures."""
    started = time.monotonic()
    paths = [] if request.source is None else spread(_pictures_of(request.source), _COMPARED)
    avatar = Avatar.load(request.avatar)
    if request.direction.expression == "scores" and avatar.scores is None:
        raise InputError(
            f"{request.avatar} has no scores.npz: fit it again with a prior that has one, or use --expression=encoder"
        )
    embedder, own = _embedder(request), None
    if embedder is not None and paths:
        own = embedder.embeddings(images.read_rgb(path) for path in paths)
    work = request.out.with_name(f".{request.out.stem}.footage")
    settings = CaptureSettings(
        size=max(_LOOKED_AT, avatar.spec.image_size),
        fps=request.fps or CaptureSettings.fps,
        max_frames=request.max_frames,
        expression_images=0,
    )
    try:
        driver = open_driver(request.drive, work, settings, request.fps)
        tracked = time.monotonic()
        with files.atomic_path(request.out) as film:
            figures = _film(request, film, avatar, driver, embedder, own)
            figures["seconds"] = {"tracking": tracked - started} | figures["seconds"]
            files.write_json(request.out.with_suffix(".json"), figures)
    except InputError:
        # Nobody knows of the folder. What an interrupt leaves is gone on with.
        shutil.rmtree(work, ignore_errors=True)
        raise
    shutil.rmtree(work, ignore_errors=True)
    return figures


def _film(
    request: Request,
    out: pathlib.Path,
    avatar: Avatar,
    driver: Driver,
    embedder: FaceEmbedder | None,
    own: Float[np.ndarray, "n 128"] | None,
) -> dict[str, Any]:
    """Drives, draws to `out` and measures; `own` are embeddings of the avatar's person."""
    count = len(driver.shown)
    measured = spread(range(count), _MEASURED) if request.figures else []
    driven = request.direction.expression == "scores"
    rows = range(len(driver.frames)) if driven else [driver.shown[moment] for moment in measured]
    scores = _driver_scores(driver, rows, needed=driven) if rows else None
    started = time.monotonic()
    performance = perform(avatar, driver, request.direction, scores if driven else None)
    cameras = [name for name in request.layout if name != "driver"]
    measured_camera = "avatar" if "avatar" in cameras else "side"
    kept: dict[int, np.ndarray] = {}
    wanted = set(measured)
    statement = Statement(source=provenance.COMPOSITE if "driver" in request.layout else provenance.RENDERED)

    def pictures() -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        for moment in tqdm(range(count), "drawing", unit="frame"):
            panels = performance.pictures(avatar, moment, cameras)
            if moment in wanted:
                kept[moment] = panels[measured_camera]
            if "driver" in request.layout:
                panels["driver"] = driver.image(driver.shown[moment], avatar.spec.image_size)
            yield np.concatenate([panels[name] for name in request.layout], axis=1)

    sound = None
    if driver.video is not None and has_sound(driver.video):
        sound = Sound(path=driver.video, seconds=count / driver.fps)
    codec = write_video(out, pictures(), fps=driver.fps, statement=statement, sound=sound)
    drawn = time.monotonic()
    figures = {
        "avatar": request.avatar,
        "drive": request.drive,
        "statement": statement.fields,
        "codec": codec,
        "sound": sound is not None and codec == "h264",
        "fps": driver.fps,
        "frames": count,
        "held_frames": driver.held,
        "layout": request.layout,
        **dataclasses.asdict(request.direction),
    }
    if request.figures:
        figures["following"] = _following(driver, scores, kept)
        figures["identity"] = None if embedder is None else _identity(embedder, own, avatar, driver, kept)
    figures["seconds"] = {"drawing": drawn - started, "figures": time.monotonic() - drawn}
    return figures


def _driver_scores(driver: Driver, rows: Sequence[int], *, needed: bool) -> Float[np.ndarray, "n 52"] | None:
    """The driver's expression scores, NaN in rows not asked for; None where they cannot be read and need not be."""
    scores = np.full((len(driver.frames), len(ARKIT)), np.nan, np.float32)
    wanted = sorted(set(rows))
    pictures = (driver.image(row, _LOOKED_AT) for row in tqdm(wanted, "driver's expressions", unit="frame"))
    try:
        with open_landmarker("mediapipe") as landmarker:
            scores[wanted] = read_scores(landmarker, pictures)
    except InputError as error:
        if needed:
            raise
        logging.warning("no figures of expressions: %s", error)
        return None
    if needed:
        known = np.flatnonzero(np.isfinite(scores).all(axis=1))
        if not len(known):
            raise InputError(f"no expression can be read in {driver.dataset.path}: use --expression=encoder")
        # A row without scores has those of the nearest one before it, or the first that has any.
        scores = scores[
            known[np.maximum(np.searchsorted(known, np.arange(len(scores)), side="right") - 1, 0)]
        ]
    return scores


def _following(
    driver: Driver, scores: Float[np.ndarray, "n 52"] | None, kept: dict[int, np.ndarray]
) -> dict[str, Any] | None:
    if scores is None:
        return None
    with open_landmarker("mediapipe") as landmarker:
        made = read_scores(landmarker, tqdm(kept.values(), "avatar's expressions", unit="frame"))
    return follows(scores[[driver.shown[moment] for moment in kept]], made)


def _embedder(request: Request) -> FaceEmbedder | None:
    """None where no distances of faces are wanted, or where they cannot be taken and --source does not ask for them."""
    if not request.figures:
        return None
    try:
        return FaceEmbedder()
    except InputError as error:
        if request.source is not None:
            raise
        logging.info("no distances of faces: %s", error)
        return None


def _identity(
    embedder: FaceEmbedder,
    own: Float[np.ndarray, "n 128"] | None,
    avatar: Avatar,
    driver: Driver,
    kept: dict[int, np.ndarray],
) -> dict[str, Any]:
    """Distances of faces from the result to its own person, or without pictures to its portrait, and to the driver."""
    moments = spread(list(kept), _COMPARED)
    result = embedder.embeddings(kept[moment] for moment in moments)
    drove = embedder.embeddings(driver.image(driver.shown[moment], _LOOKED_AT) for moment in moments)
    source = "the avatar's own portrait" if own is None else f"{len(own)} pictures"
    if own is None:
        own = embedder.embeddings([files.to_bytes(avatar.render(avatar.habits.expression)[0])])
    return {
        "source": source,
        "to_source": mean_distance(result, own),
        "to_driver": mean_distance(result, drove),
    }


def _pictures_of(source: pathlib.Path) -> list[Source]:
    """A person's pictures: a file, a folder of them, or a prepared identity folder."""
    if source.is_dir() and is_dataset(source):
        return [frame.views[0].image for frame in open_dataset(source).frames if frame.shows_face[0]]
    paths: list[Source] = [source] if source.is_file() else [*pictures_in(source)] if source.is_dir() else []
    if not paths:
        raise InputError(
            f"no picture at {source}: name one of the avatar's person with --source, or a folder of them"
        )
    return paths


def make_request() -> Request:
    """The flags, checked as far as no work is needed for it; `InputError` for what is wrong."""
    options = flags.FLAGS
    for name, what in (
        ("avatar", "the folder of a fitted avatar"),
        ("drive", "a video of the driver, or a prepared identity folder"),
        ("out", "the video to write, FILE.mp4"),
    ):
        if not getattr(options, name):
            raise InputError(f"--{name} is missing: give {what}")
    out = expanded(options.out)
    if out.suffix.lower() != ".mp4":
        raise InputError(f"--out={out}: the video is an MP4 file; name it FILE.mp4")
    layout = tuple(options.layout)
    if not layout or not set(layout) <= set(_PANELS) or set(layout) == {"driver"}:
        raise InputError(
            f"--layout={','.join(layout)}: name panels of {', '.join(_PANELS)}, an avatar among them"
        )
    if options.fps < 0 or options.max_frames < 0:
        raise InputError("--fps and --max_frames must not be negative")
    if not math.isfinite(options.fps) or not math.isfinite(options.angle):
        raise InputError("--fps and --angle must be finite")
    drive = expanded(options.drive)
    if not drive.exists():
        raise InputError(f"no driver at {drive}: name a video or a prepared identity folder with --drive")
    files.check_writable(out)
    return Request(
        avatar=expanded(options.avatar),
        drive=drive,
        out=out,
        direction=Direction(
            expression=options.expression,
            pose=options.pose,
            neck=options.neck,
            angle=options.angle,
            calibrate=options.calibrate,
            smooth=options.smooth,
        ),
        layout=layout,
        fps=options.fps,
        max_frames=options.max_frames,
        source=expanded(options.source) if options.source else None,
        figures=options.figures,
    )


def main(argv: Sequence[str]) -> None:
    """Films what the flags ask for."""
    del argv
    request = make_request()
    runtime.start()
    figures = reenact(request)
    print(f"{request.out}: {figures['frames']} frames, {figures['held_frames']} of them without a face held")
    following, identity = figures.get("following"), figures.get("identity")
    if following and following["correlation"] is not None and following["scores"]:
        print(
            f"expression scores follow the driver's: correlation {following['mean_correlation']:.2f} in the mean of "
            f"those that move, {following['correlation']:.2f} of all together"
        )
    if identity and None not in identity.values():
        print(
            f"distance of faces: {identity['to_source']:.2f} to the avatar's person, "
            f"{identity['to_driver']:.2f} to the driver"
        )


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    defaults = Direction()
    flags.DEFINE_string("avatar", None, "Folder of a fitted avatar, or of its fit.")
    flags.DEFINE_string("drive", None, "A video of one person, or a prepared identity folder.")
    flags.DEFINE_string("out", None, "The video, FILE.mp4; figures go to FILE.json.")
    flags.DEFINE_enum(
        "expression", defaults.expression, ["encoder", "scores"], "What reads the driver's expression."
    )
    flags.DEFINE_enum("pose", defaults.pose, ["driver", "still"], "Whose head pose and camera.")
    flags.DEFINE_enum("neck", defaults.neck, ["driven", "held"], "Whether neck and below move too.")
    flags.DEFINE_list("layout", list(_PANELS), f"Panels from left to right, of {', '.join(_PANELS)}.")
    flags.DEFINE_float("angle", defaults.angle, "Degrees aside from which the side panel looks.")
    flags.DEFINE_boolean(
        "calibrate", defaults.calibrate, "Take the driver's usual expression for the avatar's (encoder)."
    )
    flags.DEFINE_boolean("smooth", defaults.smooth, "Smooth poses and codes in time.")
    flags.DEFINE_float(
        "fps", 0.0, "At most so many frames a second (30); of a prepared folder, its own (as it says, or 25)."
    )
    flags.DEFINE_integer("max_frames", 0, "At most so many frames of a video, spread evenly; 0: all.")
    flags.DEFINE_string("source", None, "Pictures of the avatar's person, for the distance of faces.")
    flags.DEFINE_boolean("figures", True, "Measure how the avatar follows.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
