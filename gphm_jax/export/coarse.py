"""What exported files lack: the refine network, and what leaving it out costs."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_jax import metrics
from gphm_jax.avatar import Avatar
from gphm_jax.provenance import NO_LICENCE, Statement

_VIEWS = (0.0, -20.0, 20.0)  # degrees aside of the habitual camera


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoarseStatement(Statement):
    """A statement about a head that is drawn without its refine network. ASCII, as far as the licence is."""

    cost: str  # of leaving the refine network out, in dB
    cost_db: float | None  # None where only the distance between the two pictures is known

    @property
    def lines(self) -> tuple[str, ...]:
        """See `Statement.lines`."""
        return (
            *super().lines,
            "colour: the coarse colour of the splats, without the avatar's refine network",
            f"cost of leaving the refine network out: {self.cost}",
        )

    @property
    def fields(self) -> dict[str, Any]:
        """See `Statement.fields`."""
        return super().fields | {
            "colour": "coarse, without the avatar's refine network",
            "refineNetworkCost": self.cost,
            "refineNetworkCostDb": self.cost_db,
        }


def coarse_statement(avatar: Avatar, folder: pathlib.Path, licence: str) -> CoarseStatement:
    """The statement about an avatar that was loaded from `folder`."""
    text, decibels = _cost(avatar, folder)
    # A comment is one line.
    return CoarseStatement(cost=text, cost_db=decibels, licence=" ".join(licence.split()) or NO_LICENCE)


def _cost(avatar: Avatar, folder: pathlib.Path) -> tuple[str, float | None]:
    """From the fit's metrics.json beside the avatar where that knows both pictures, else measured here."""
    for side, name in (("heldout", "held-out frames"), ("train", "training frames")):
        row = _figures(folder).get(side) or {}
        if "psnr_coarse" in row:
            lost = row["psnr"] - row["psnr_coarse"]
            both = f"PSNR on {name} ({row['psnr']:.2f} dB with it, {row['psnr_coarse']:.2f} without)"
            return (f"{lost:.2f} dB {both}" if lost > 0 else f"sharpness, and no {both}"), lost
    distance = coarse_to_fine_psnr(avatar, avatar.habits.expression)
    return f"not measured on footage; its pictures are {distance:.2f} dB PSNR from the refined ones", None


def _figures(folder: pathlib.Path) -> dict[str, Any]:
    try:
        figures = json.loads((folder.parent / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures if isinstance(figures, dict) else {}


def coarse_to_fine_psnr(avatar: Avatar, expression: Float[Array, "z"]) -> float:
    """The mean PSNR of an avatar's coarse pictures against its own refined ones, from the front and a little aside."""
    figures = []
    for angle in _VIEWS:
        picture = avatar.draw(expression, camera=avatar.orbit_camera(float(np.radians(angle))))
        figures.append(metrics.psnr(jnp.clip(picture.coarse, 0.0, 1.0), picture.fine))
    return float(np.mean(figures))
