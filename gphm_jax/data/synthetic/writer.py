"""Writes frames in the dataset layout: whole or not at all, the same bytes for any worker."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import numpy as np

from gphm_jax.data import frame_writer
from gphm_jax.data.synthetic import identity, person, renderer, sequence
from gphm_jax.data.synthetic.portrait import portrait

GENERATOR_VERSION = 1
FULL_DETAIL_SIZE = 512
_GROUP = 8  # expression images come from the eight people around an identity, however many are made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What one dataset holds; everything that decides its bytes."""

    out: pathlib.Path
    first_identity: int
    identities: int
    expressions: int
    frames: int
    views: int
    heldout_views: int
    expression_images: int
    size: int
    seed: int
    capture: str  # "multiview" or "monocular"


def _detail(size: int) -> float:
    """Texture resolution for a picture size; beyond the full one there is nothing more to resolve."""
    return float(np.clip(round(2.0 * size / FULL_DETAIL_SIZE * 4) / 8, 0.25, 1.5))


@functools.lru_cache(maxsize=_GROUP + 2)
def _person(seed: int, index: int, size: int) -> person.Person:
    return person.build(identity.sample(seed=seed, index=index), detail=_detail(size))


def _write_views(
    folder: pathlib.Path, request: Request, posed: sequence.FrameState, subject: person.Person, parts: list
) -> None:
    lit = renderer.light(parts, subject.lights, shadow_size=renderer.shadow_size(request.size))
    points = person.landmarks(subject, posed.scores, posed.motion)
    for number, view in posed.views:
        image, mask = renderer.render(lit, view.world_to_camera, view.intrinsics, request.size)
        frame_writer.write_view(folder, str(number), image, mask, view.world_to_camera, view.intrinsics)
        if frame_writer.shows_face(posed.motion.rotation, points, view.centre):
            box = frame_writer.face_box(points, view.world_to_camera, view.intrinsics)
            frame_writer.write_face(folder, str(number), image, box)


def _write_params(folder: pathlib.Path, subject: person.Person, posed: sequence.FrameState) -> None:
    frame_writer.write_params(
        folder,
        rotation=posed.motion.rotation,
        translation=posed.motion.translation,
        identity=subject.identity.coefficients,
        expression=posed.scores,
        landmarks=person.landmarks(subject, posed.scores, posed.motion),
    )


def _expression_people(index: int, frame: int, count: int, seed: int) -> list[int]:
    first = index // _GROUP * _GROUP
    others = [k for k in range(first, first + _GROUP) if k != index]
    order = np.random.default_rng([seed, 41, index, frame]).permutation(len(others))
    return [others[order[k % len(others)]] for k in range(count)]


def _write_expressions(
    folder: pathlib.Path, request: Request, index: int, frame: int, scores: np.ndarray
) -> None:
    """Face crops of other people with exactly this expression, in their own light, pose and camera."""
    size = max(16, request.size // 2)
    for n, other in enumerate(_expression_people(index, frame, request.expression_images, request.seed)):
        rng = np.random.default_rng([request.seed, 42, index, frame, n])
        image = portrait(_person(request.seed, other, request.size), scores, rng, size)
        frame_writer.write_jpeg(folder / "expressions" / f"{n}.jpg", image, frame_writer.CROP_QUALITY)


def frame_name(frame: int) -> str:
    """The folder name of a frame."""
    return f"{frame:04d}"


def identity_name(index: int) -> str:
    """The folder name of an identity."""
    return f"{index:04d}"


def is_done(request: Request, index: int, frame: int) -> bool:
    """Whether a frame is completely written."""
    return frame_writer.is_written(request.out / identity_name(index), frame_name(frame))


def write_frame(request: Request, index: int, frame: int) -> int:
    """Renders one frame of one identity with all its files; returns the number of pictures (views)."""
    with frame_writer.new_frame(request.out / identity_name(index), frame_name(frame)) as staging:
        subject = _person(request.seed, index, request.size)
        posed = sequence.frame_state(request, subject, index, frame)
        _write_views(
            staging, request, posed, subject, person.frame_parts(subject, posed.scores, posed.motion)
        )
        _write_params(staging, subject, posed)
        _write_expressions(staging, request, index, frame, posed.scores)
    return len(posed.views)
