"""52 ARKit expression scores -> an expression code, by a small map that a head model's training leaves behind."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Array, Float

from gphm_jax.data.files import read_npz
from gphm_jax.data.synthetic.base import ARKIT as NAMES
from gphm_jax.errors import InputError
from gphm_jax.files import atomic_path, plain

FILE = "scores.npz"  # in a workdir, and in an avatar's folder
# mouthSmile for mouthSmileLeft and mouthSmileRight; mouthLeft and jawLeft have no such name.
PAIRS = tuple(
    name.removesuffix("Left")
    for name in NAMES
    if name.endswith("Left") and name not in ("mouthLeft", "jawLeft")
)
_ARRAYS = ("neutral", "directions", "names", "provenance")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ScoreRegressor:
    """z_exp = neutral + scores @ directions: each score moves the neutral code its own way."""

    neutral: Float[np.ndarray, "z"]
    directions: Float[np.ndarray, "52 z"]  # rows in the order of NAMES
    provenance: Mapping[str, Any]  # what it was fitted to, and how well it does where it was not

    def code(self, scores: Float[Array | np.ndarray, "*b 52"]) -> Float[np.ndarray, "*b z"]:
        """The expression code of scores in the order of `NAMES`; all zero gives the neutral code itself."""
        return self.neutral + np.einsum("...k,kz->...z", np.asarray(scores, np.float32), self.directions)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one .npz file without pickle, whole or not at all."""
        with atomic_path(path) as partial:
            np.savez(
                partial,
                neutral=self.neutral.astype(np.float32),
                directions=self.directions.astype(np.float32),
                names=np.array(NAMES),
                provenance=np.array(json.dumps(plain(self.provenance))),
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ScoreRegressor:
        """Reads what `save` wrote; anything else is an `InputError`."""
        path = pathlib.Path(path)
        arrays = read_npz(path, _ARRAYS)
        neutral, directions = arrays["neutral"], arrays["directions"]
        if tuple(arrays["names"]) != NAMES or directions.shape != (len(NAMES), *neutral.shape):
            raise InputError(
                f"{path} is not for the 52 ARKit scores: train the head model again, or remove it"
            )
        return cls(neutral=neutral, directions=directions, provenance=json.loads(str(arrays["provenance"])))


def load_scores(folder: pathlib.Path) -> ScoreRegressor | None:
    """The map of a workdir's or an avatar's folder; None where it has none."""
    path = folder / FILE
    return ScoreRegressor.load(path) if path.is_file() else None


def score_vector(values: Mapping[str, Any]) -> Float[np.ndarray, "52"]:
    """Named scores as a vector, the others zero; a name without Left or Right sets both sides.

    Raises `InputError` for a name that there is not, with the nearest one, and for what is no number or far too large.
    """
    vector = np.zeros(len(NAMES), np.float32)
    for name, value in values.items():
        sides = ("Left", "Right") if name in PAIRS else ("",)
        rows = [NAMES.index(name + side) for side in sides if name + side in NAMES]
        if not rows:
            close = difflib.get_close_matches(name, (*PAIRS, *NAMES), n=1, cutoff=0.0)
            raise InputError(f"no expression score '{name}': did you mean {close[0]}?")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 2:
            raise InputError(
                f"the score of {name} is {value!r}: give a number between -1 and 2; 1 is all that a face can do"
            )
        vector[rows] = value
    return vector


def read_scores(given: str) -> dict[str, Any]:
    """Scores as a user writes them: jawOpen=0.7,mouthSmile=0.5, or the name of a JSON file {"jawOpen": 0.7}.

    Raises `InputError` for what is neither; names are checked by `score_vector`.
    """
    if "=" not in given:
        return _read_file(pathlib.Path(given).expanduser())
    values = {}
    for part in filter(None, given.split(",")):
        name, _, number = part.partition("=")
        try:
            values[name.strip()] = float(number)
        except ValueError as error:
            raise InputError(f"'{part}' is no score: write name=number, as jawOpen=0.7") from error
    return values


def _read_file(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"no scores in '{path}' ({error.strerror}): write jawOpen=0.7,mouthSmile=0.5 or name a JSON file"
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(f'{path} holds no named scores: write {{"jawOpen": 0.7}}')
    return found
