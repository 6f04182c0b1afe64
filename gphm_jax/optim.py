"""Adam with one rate per group of parameters, under a common schedule."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, ArrayLike, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """Adam's rate for each group; a group absent from a model is ignored. Defaults: stage 2 of the paper."""

    networks: float = 1e-4
    encoders: float = 1e-4  # of images; their first dense layer sees thousands of inputs, and a high rate kills it
    refine: float = 1e-4
    codes: float = 1e-4
    landmarks: float = 1e-5
    pose_corrections: float = 1e-6
    positions: float = 1e-5
    features: float = 1e-4
    log_scales: float = 3e-4
    quats: float = 1e-4
    opacity_logits: float = 1e-3
    color: float = 1e-3  # of a fitted avatar, whose colours are variables
    focal: float = 1e-4  # of a fit's footage: the logarithm of a factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up, constant, then cosine decay; 1 throughout by default (the paper names no schedule)."""

    warmup_steps: int = 0
    hold_fraction: float = 1.0  # of all steps, warm-up included
    final_fraction: float = 1.0  # of the rate, at the last step

    def at(self, step: Int[ArrayLike, ""], steps: Int[ArrayLike, ""]) -> Float[Array, ""]:
        """The multiplier of all rates at a step of `steps`; both may be traced."""
        length = jnp.asarray(steps, jnp.float32)
        hold = jnp.maximum(jnp.round(self.hold_fraction * length), self.warmup_steps)
        part = jnp.clip((step - hold) / jnp.maximum(length - hold, 1.0), 0.0, 1.0)
        decay = self.final_fraction + (1.0 - self.final_fraction) * 0.5 * (1.0 + jnp.cos(jnp.pi * part))
        return jnp.minimum((step + 1.0) / (self.warmup_steps + 1.0), 1.0) * decay


# Parameter names that form a group of their own; landmark features move with point features.
_GROUPS = {
    "expression_encoder": "encoders",
    "motion_encoder": "encoders",
    "codes": "codes",
    "identity_code": "codes",
    "pose_corrections": "pose_corrections",
    "landmarks": "landmarks",
    "positions": "positions",
    "features": "features",
    "landmark_features": "features",
    "log_scales": "log_scales",
    "quats": "quats",
    "opacity_logits": "opacity_logits",
    "colors": "color",
    "log_focal": "focal",
    "refine": "refine",
}


def group_of(path: tuple[Any, ...]) -> str:
    """The rate group of a parameter, by the names on its path; the other networks are the default group."""
    for key in path:
        name = str(getattr(key, "key", getattr(key, "name", "")))
        if name in _GROUPS:
            return _GROUPS[name]
    return "networks"


def adam(rates: Rates, schedule: Schedule, *, steps: int | None = None) -> optax.GradientTransformationExtraArgs:
    """Adam whose update each group scales by its own rate, under the common schedule over `steps`.

    Without `steps` every update takes them as an argument: `update(gradients, state, params, steps=n)`. A schedule
    can then be stretched while it runs, and runs of other lengths are the same program.

    One Adam for all groups: a transformation per group would keep a masked copy of the whole tree for each,
    which costs a tenth of a second a step to pass through `jit`.
    """
    def rate_of(path: tuple[Any, ...], _: Any) -> float:
        return -getattr(rates, group_of(path))

    def scale(updates: Any, _: Any = None) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, update: rate_of(path, update) * update, updates)

    # 1e-15: gradients of single splats are tiny, and Adam's usual 1e-8 would damp them (3DGS).
    return optax.chain(optax.scale_by_adam(eps=1e-15), optax.stateless(scale), _scheduled(schedule, steps))


def _scheduled(schedule: Schedule, steps: int | None) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_schedule` for a schedule whose length may come with each update."""

    def init(_: Any) -> optax.ScaleByScheduleState:
        return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

    def update(
        updates: Any, state: Any, params: Any = None, *, steps: Any = steps, **_: Any
    ) -> tuple[Any, optax.ScaleByScheduleState]:
        del params
        multiplier = schedule.at(state.count, steps)
        return jax.tree.map(lambda u: multiplier * u, updates), optax.ScaleByScheduleState(state.count + 1)

    return optax.GradientTransformationExtraArgs(init, update)
