"""What happens in each frame: expression, motion and cameras, for both kinds of capture."""

from __future__ import annotations

import dataclasses
import functools
import typing

import numpy as np
from jaxtyping import Float

from gphm_jax.data.synthetic import cameras, expression, motion, person

if typing.TYPE_CHECKING:
    from gphm_jax.data.synthetic.writer import Request

# Monocular capture: side cameras beside the moving one, degrees of yaw, as views 1..4.
SIDE_ANGLES = (35.0, -35.0, 60.0, -60.0)
SIDE_EVERY = 4  # frames
HELD_OUT_EVERY = 4  # every fourth frame, the last of its four
_SWEEP = 40.0  # degrees either way
_STILL = 0.35  # a monocular sitter moves this share of the multi-view motion


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameState:
    """One frame: scores, motion, and its numbered cameras."""

    scores: Float[np.ndarray, "52"]
    motion: motion.Motion
    views: tuple[tuple[int, cameras.View], ...]


@functools.cache
def multiview_angles(
    views: int, heldout_views: int
) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Training and held-out (yaw, pitch); views are numbered through both lists."""
    training = cameras.training_angles(views)
    return training, cameras.held_out_angles(training, heldout_views)


def monocular_angle(frame: int, frames: int) -> tuple[float, float]:
    """The moving camera's yaw and pitch: one sweep there and back, a slow nod."""
    phase = 2 * np.pi * frame / max(1, frames)
    return float(_SWEEP * np.sin(phase)), float(5.0 * np.sin(3 * phase + 0.5))


def is_held_out_frame(frame: int) -> bool:
    """Whether a monocular frame is kept for evaluation."""
    return frame % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def has_side_views(frame: int) -> bool:
    """Whether a monocular frame has the side cameras; these are held-out frames, so training never sees them."""
    return frame % SIDE_EVERY == SIDE_EVERY - 1


def _blend(frame: int, frames: int, keys: int) -> tuple[int, int, float]:
    """Neighbouring key expressions of a frame and the smooth weight of the second."""
    place = frame * keys / max(1, frames)
    first = int(place)
    t = place - first
    return first, (first + 1) % keys, float(t * t * (3 - 2 * t))


def _monocular(request: Request, subject: person.Person, index: int, frame: int) -> FrameState:
    a, b, weight = _blend(frame, request.frames, request.expressions)
    scores = [expression.sample(seed=request.seed, identity=index, frame=k) for k in (a, b)]
    moves = [
        motion.sample(subject.pivot, seed=request.seed, identity=index, frame=k, amount=_STILL)
        for k in (a, b)
    ]
    yaw, pitch = monocular_angle(frame, request.frames)
    angles = [(yaw, pitch)]
    if has_side_views(frame):
        angles += [(yaw + side, pitch) for side in SIDE_ANGLES]
    return FrameState(
        scores=((1 - weight) * scores[0] + weight * scores[1]).astype(np.float32),
        motion=motion.between(moves[0], moves[1], weight, subject.pivot),
        views=tuple((n, cameras.place(*angle, request.size)) for n, angle in enumerate(angles)),
    )


def frame_state(request: Request, subject: person.Person, index: int, frame: int) -> FrameState:
    """The state of one frame; depends on the seed, the identity and the frame, not on other people."""
    if request.capture == "monocular":
        return _monocular(request, subject, index, frame)
    training, held_out = multiview_angles(request.views, request.heldout_views)
    return FrameState(
        scores=expression.sample(seed=request.seed, identity=index, frame=frame),
        motion=motion.sample(subject.pivot, seed=request.seed, identity=index, frame=frame),
        views=tuple(
            (n, cameras.place(*angle, request.size)) for n, angle in enumerate([*training, *held_out])
        ),
    )


def check(request: Request) -> None:
    """Raises `InputError` where the cameras cannot be placed."""
    if request.capture == "multiview":
        multiview_angles(request.views, request.heldout_views)


def count_views(request: Request, frame: int) -> int:
    """Pictures of one frame."""
    if request.capture == "monocular":
        return 1 + len(SIDE_ANGLES) * has_side_views(frame)
    return request.views + request.heldout_views
