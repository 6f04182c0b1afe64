"""What a server shows, the same to all its visitors: a head, its sliders, where to look from first."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from absl import logging
from jaxtyping import Array

from gphm_jax.avatar import Avatar
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.export.coarse import CoarseStatement, coarse_statement
from gphm_jax.viewer import frames, sliders
from gphm_jax.viewer.dial import Code, Dial
from gphm_jax.viewer.faces import FaceReader
from gphm_jax.viewer.frames import Start
from gphm_jax.viewer.playback import Clip, Playback
from gphm_jax.viewer.session import Session
from gphm_jax.viewer.sliders import Sliders

_DIRECTIONS = 8  # of a clip's expressions: the rest is noise


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A head, or the heads of a prior."""

    name: str  # of the page
    head: Callable[[Array | None], Avatar]  # of a person's code; None where there is one person
    expressions: Sliders
    rest: Code  # the expression that sliders start from
    start: Start
    statement: Callable[[Avatar], CoarseStatement]  # what saved heads say of themselves
    clip: Clip | None = None  # what drives the head when it is played
    faces: FaceReader = dataclasses.field(default_factory=FaceReader)

    def session(self) -> Session:
        """A new visitor's."""
        return Session(
            expression=Dial(self.expressions, self.rest),
            playback=None if self.clip is None else Playback(self.clip),
        )


def of_avatar(folder: pathlib.Path, drive: pathlib.Path | None) -> Exhibit:
    """The avatar in a folder, or in its fit's, and footage that drives it; `InputError` where there is none."""
    avatar = Avatar.load(folder)
    clip = None if drive is None else _clip(drive, avatar)
    controls, rest = _expressions(avatar, clip)
    home = folder / "avatar" if (folder / "avatar" / "arrays.npz").is_file() else folder
    return Exhibit(
        name=folder.resolve().name,
        head=lambda person: avatar,
        expressions=controls,
        rest=rest,
        start=frames.start(avatar.habits.camera, avatar.spec.image_size),
        statement=functools.cache(lambda shown: coarse_statement(shown, home.resolve(), "")),
        clip=clip,
    )


def _clip(drive: pathlib.Path, avatar: Avatar) -> Clip:
    from gphm_jax.viewer.clips import read_clip  # brings all of preprocessing, which takes seconds to import

    return read_clip(drive, avatar)


def _expressions(avatar: Avatar, clip: Clip | None) -> tuple[Sliders, Code]:
    """Sliders, and the expression they start from: for the 52 scores where the avatar knows what they mean to it, else
    along what its clip does most.
    """
    scores = getattr(avatar, "scores", None)
    if scores is not None:
        return sliders.of_scores(ARKIT, scores.code), scores.neutral
    rest = avatar.habits.expression
    if clip is None:
        logging.warning(
            "no sliders for expressions: the avatar has no scores. Fit it again with a prior that has scores.npz, or "
            "--drive it, for sliders of what the driver does"
        )
        return sliders.of_codes("", {}), rest
    directions = sliders.principal_directions(clip.expression, _DIRECTIONS)
    named = {f"Direction {number}": direction for number, direction in enumerate(directions, 1)}
    return sliders.of_codes("Directions of the clip", named, low=-1.0), rest
