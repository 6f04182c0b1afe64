"""Pictures of heads under other expressions and identities: sheets, and the way from one to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import cv2
import numpy as np
from jaxtyping import Array, Float, UInt8

from gphm_jax.avatar import Avatar
from gphm_jax.files import to_bytes
from gphm_jax.heads import Heads
from gphm_jax.logs import image_grid

_INSET = 0.28  # of a picture's side: the face that an expression was read from, in its corner
_FRAME = 2  # pixels around it


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Expression:
    """An expression to draw: what to call it, its code, and the face it was read from, if any."""

    label: str
    code: Float[Array | np.ndarray, "z"]
    face: UInt8[np.ndarray, "s s 3"] | None = None


def picture(avatar: Avatar, code: Float[Array | np.ndarray, "z"]) -> UInt8[np.ndarray, "h w 3"]:
    """A head with an expression, seen from the front."""
    return to_bytes(np.asarray(avatar.render(code)[0]))


def sheet(heads: Sequence[Avatar], expressions: Sequence[Expression]) -> UInt8[np.ndarray, "h w 3"]:
    """A row a head, a labelled column an expression; in the lower left corners the faces that codes were read from."""
    columns = [
        np.stack([_with_inset(picture(head, shown.code), shown.face) for head in heads])
        for shown in expressions
    ]
    return image_grid(dict(zip(_unique([shown.label for shown in expressions]), columns, strict=True)))


def gallery(
    people: Mapping[str, Avatar], code: Float[Array | np.ndarray, "z"], *, across: int = 6
) -> UInt8[np.ndarray, "h w 3"]:
    """Many heads with one expression, labelled, `across` of them beside one another."""
    tiles = {name: picture(head, code)[None] for name, head in people.items()}
    names = list(tiles)
    blank = np.full_like(tiles[names[0]], 255)
    rows = []
    for start in range(0, len(names), across):
        row = {name: tiles[name] for name in names[start : start + across]}
        empty = min(across, len(names)) - len(row)
        rows.append(image_grid(row | {" " * (n + 1): blank for n in range(empty)}))
    return np.concatenate(rows)


def strip(
    pictures: Sequence[UInt8[np.ndarray, "h w 3"]], first: str, last: str
) -> UInt8[np.ndarray, "i j 3"]:
    """A transition's pictures beside one another, its two ends labelled."""
    labels = [first, *[""] * (len(pictures) - 2), last]
    return image_grid({label: shown[None] for label, shown in zip(_unique(labels), pictures, strict=True)})


def there(count: int) -> list[float]:
    """Even steps from 0 to 1."""
    return [n / (count - 1) for n in range(count)]


def there_and_back(count: int) -> list[float]:
    """From 0 to 1 and back, slow at both ends, as many steps as a film that starts over shows without a jerk."""
    return [float(0.5 - 0.5 * np.cos(2.0 * np.pi * n / count)) for n in range(count)]


def expression_way(
    avatar: Avatar,
    ends: tuple[Float[Array | np.ndarray, "z"], Float[Array | np.ndarray, "z"]],
    weights: Sequence[float],
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """One head on the straight line between two expression codes."""
    first, last = (np.asarray(end) for end in ends)
    for weight in weights:
        yield picture(avatar, first + np.float32(weight) * (last - first))


def identity_way(
    heads: Heads,
    ends: tuple[Float[np.ndarray, "z"], Float[np.ndarray, "z"]],
    code: Float[Array | np.ndarray, "e"],
    weights: Sequence[float],
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """One expression on heads along the straight line between two identity codes."""
    first, last = ends
    for weight in weights:
        yield picture(heads.avatar(first + np.float32(weight) * (last - first)), code)


def _with_inset(
    image: UInt8[np.ndarray, "h w 3"], face: UInt8[np.ndarray, "s s 3"] | None
) -> UInt8[np.ndarray, "h w 3"]:
    if face is None:
        return image
    side = round(_INSET * image.shape[0])
    framed = np.full((side, side, 3), 200, np.uint8)
    inner = side - _FRAME
    framed[_FRAME:, :inner] = cv2.resize(face, (inner, inner), interpolation=cv2.INTER_AREA)
    shown = image.copy()
    shown[-side:, :side] = framed
    return shown


def _unique(labels: Sequence[str]) -> list[str]:
    """The labels, equal ones told apart by spaces that nobody sees: a grid's columns go by name."""
    return [label + " " * list(labels[:n]).count(label) for n, label in enumerate(labels)]
