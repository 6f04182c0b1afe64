"""What a server shows, the same to all its visitors: a head, its sliders, where to look from first."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

from absl import logging
from jaxtyping import Array

from gphm_jax.avatar import Avatar
from gphm_jax.errors import InputError
from gphm_jax.export import expressions
from gphm_jax.export.coarse import CoarseStatement, coarse_statement
from gphm_jax.viewer import frames, sliders
from gphm_jax.viewer.dial import Code, Dial
from gphm_jax.viewer.faces import FaceReader
from gphm_jax.viewer.frames import Start
from gphm_jax.viewer.playback import Clip, Playback
from gphm_jax.viewer.session import Session
from gphm_jax.viewer.sliders import Sliders


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A head, or the heads of a prior."""

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


def of_avatar(folder: pathlib.Path) -> Exhibit:
    """The avatar in a folder, or in its fit's; `InputError` where there is none."""
    avatar = Avatar.load(folder)
    home = folder / "avatar" if (folder / "avatar" / "config.json").is_file() else folder
    return Exhibit(
        head=lambda person: avatar,
        expressions=_named(avatar),
        rest=avatar.habits.expression,
        start=frames.start(avatar.habits.camera, avatar.spec.image_size),
        statement=functools.cache(lambda shown: coarse_statement(shown, home.resolve(), "")),
    )


def _named(avatar: Avatar) -> Sliders:
    """A few named expressions, where the assets of the synthetic heads that make them are there."""
    try:
        codes = expressions.named(avatar)
    except InputError as error:
        logging.warning("no sliders for expressions: %s", error)
        codes = {}
    return sliders.of_codes("Face", {name: code - avatar.habits.expression for name, code in codes.items()})
