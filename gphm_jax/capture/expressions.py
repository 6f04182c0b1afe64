"""Expression images: the same expression on other people, from which the expression encoder learns nothing else."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.data import images
from gphm_jax.data.synthetic import identity, person
from gphm_jax.data.synthetic.portrait import portrait
from gphm_jax.errors import InputError

_PEOPLE = 8  # synthetic people to choose from
_SEED = 20260101  # of these people: not those of a training set
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@runtime_checkable
class ExpressionImages(Protocol):
    """Where a frame's expression images come from."""

    def of(
        self, frame: str, row: int, scores: Float[np.ndarray, "52"]
    ) -> Iterable[UInt8[np.ndarray, "s s 3"]]:
        """The images of frame number `row` with these ARKit scores."""
        ...


class Synthetic:
    """Renders synthetic people with the frame's 52 scores, `count` a frame."""

    def __init__(self, count: int, size: int) -> None:
        self._count, self._size = count, size

    def of(
        self, frame: str, row: int, scores: Float[np.ndarray, "52"]
    ) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
        """See `ExpressionImages.of`."""
        del frame
        for n in range(self._count):
            rng = np.random.default_rng([_SEED, row, n])
            yield portrait(_person((row * self._count + n) % _PEOPLE), np.clip(scores, 0, 1), rng, self._size)


class Folder:
    """Images made elsewhere, by LivePortrait for example: FOLDER/<frame>/*.jpg, or FOLDER/<frame>*.jpg."""

    def __init__(self, folder: pathlib.Path, size: int) -> None:
        self._folder, self._size = folder, size
        if not folder.is_dir():
            raise InputError(
                f"no folder of expression images at {folder}: name one with --expressions, or leave it at 'synthetic'"
            )

    def of(
        self, frame: str, row: int, scores: Float[np.ndarray, "52"]
    ) -> Iterator[UInt8[np.ndarray, "s s 3"]]:
        """See `ExpressionImages.of`."""
        del row, scores
        home = self._folder / frame
        paths = home.iterdir() if home.is_dir() else self._folder.glob(f"{frame}*")
        for path in sorted(path for path in paths if path.suffix.lower() in _SUFFIXES):
            yield images.fit_square(images.read_rgb(path), self._size, fill=255)


def expression_images(source: str, count: int, size: int) -> ExpressionImages:
    """`synthetic`, or a folder's."""
    if source == "synthetic":
        return Synthetic(count, size)
    return Folder(pathlib.Path(source).expanduser(), size)


@functools.lru_cache(maxsize=_PEOPLE)
def _person(index: int) -> person.Person:
    return person.build(identity.sample(seed=_SEED, index=index), detail=0.5)
