"""What a server shows, the same to all its visitors: a head, its sliders, where to look from first."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable

import numpy as np
from absl import logging
from jaxtyping import Array, Float

from gphm_jax.avatar import Avatar
from gphm_jax.capture.face_photo import FaceReader
from gphm_jax.export.coarse import CoarseStatement, coarse_statement
from gphm_jax.heads import load_heads
from gphm_jax.scores import NAMES, ScoreRegressor
from gphm_jax.viewer import frames, sliders
from gphm_jax.viewer.dial import Code, Dial
from gphm_jax.viewer.frames import Start
from gphm_jax.viewer.playback import Clip, Playback
from gphm_jax.viewer.session import Session
from gphm_jax.viewer.sliders import Sliders

_DIRECTIONS = 8  # in which many codes differ: the rest is noise


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """The persons of a prior."""

    names: tuple[str, ...]
    codes: Float[np.ndarray, "p z"]  # of the names
    sample: Callable[[int], Code]  # somebody whom nobody knows, by a seed
    sliders: Sliders


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """A head, or the heads of a prior."""

    name: str  # of the page
    head: Callable[[Array | None], Avatar]  # of a person's code; None where there is one person
    expressions: Sliders
    rest: Code  # the expression that sliders start from
    start: Start
    statement: Callable[[Avatar], CoarseStatement]  # what saved heads say of themselves
    scored: bool = (
        False  # whether the expressions' sliders are the 52 scores, which faces in pictures have too
    )
    people: People | None = None  # to choose from
    clip: Clip | None = None  # what drives the head when it is played
    faces: FaceReader = dataclasses.field(default_factory=FaceReader)

    def session(self) -> Session:
        """A new visitor's."""
        return Session(
            expression=Dial(self.expressions, self.rest),
            person=None if self.people is None else Dial(self.people.sliders, self.people.codes[0]),
            playback=None if self.clip is None else Playback(self.clip),
        )


def of_avatar(folder: pathlib.Path, drive: pathlib.Path | None) -> Exhibit:
    """The avatar in a folder, or in its fit's, and footage that drives it; `InputError` where there is none."""
    avatar = Avatar.load(folder)
    clip = None if drive is None else _clip(drive, avatar)
    home = Avatar.home(folder)
    return Exhibit(
        name=folder.resolve().name,
        head=lambda person: avatar,
        expressions=_expressions(avatar.scores, None if clip is None else clip.expression),
        rest=_rest(avatar),
        scored=avatar.scores is not None,
        start=frames.start(avatar.habits.camera, avatar.spec.image_size),
        statement=functools.cache(lambda shown: coarse_statement(shown, home.resolve(), "")),
        clip=clip,
    )


def of_prior(workdir: pathlib.Path, drive: pathlib.Path | None) -> Exhibit:
    """The heads of a training run, and footage that drives them; `InputError` where there are none."""
    heads = load_heads(workdir)
    first = heads.avatar(heads.codes[0])
    directions = sliders.principal_directions(heads.codes, _DIRECTIONS)
    return Exhibit(
        name=workdir.resolve().name,
        head=lambda person: first if person is None else heads.avatar(person),
        expressions=_expressions(heads.scores, heads.expressions),
        rest=_rest(first),
        scored=heads.scores is not None,
        start=frames.start(heads.habits.camera, heads.spec.image_size),
        statement=lambda shown: coarse_statement(shown, workdir.resolve() / "nobody", ""),
        people=People(
            names=heads.identities,
            codes=heads.codes,
            sample=heads.sample,
            sliders=_along(directions, "Directions"),
        ),
        clip=None if drive is None else _clip(drive, first),
    )


def _clip(drive: pathlib.Path, avatar: Avatar) -> Clip:
    from gphm_jax.viewer.clips import read_clip  # brings all of preprocessing, which takes seconds to import

    return read_clip(drive, avatar)


def _rest(avatar: Avatar) -> Code:
    return avatar.habits.expression if avatar.scores is None else avatar.scores.neutral


def _expressions(scores: ScoreRegressor | None, codes: Float[np.ndarray, "n z"] | None) -> Sliders:
    """For the 52 scores where a head knows what they mean to it, else along what it is known to do most."""
    if scores is not None:
        return sliders.of_scores(NAMES, scores.code)
    if codes is not None:
        return _along(sliders.principal_directions(codes, _DIRECTIONS), "Directions")
    logging.warning(
        "no sliders for expressions: the avatar has no scores.npz. Fit it again with a prior that has one, or give "
        "--drive, for sliders of what the driver does"
    )
    return sliders.of_codes("", {})


def _along(directions: Float[np.ndarray, "d z"], title: str) -> Sliders:
    named = {f"Direction {number}": direction for number, direction in enumerate(directions, 1)}
    return sliders.of_codes(title, named, low=-1.0)
