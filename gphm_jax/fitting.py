"""The two steps of fitting (paper 3.5): a fresh z_id against the frozen head model, then the baked avatar itself.

One camera says little about the sides of a head. What it says nothing about stays as the head model knows it:
splats move at a rate that grows with how many pixels they fill, are pulled to where they started and never
leave a box about it, and alpha is held to the mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax.avatar_model import AvatarModel
from gphm_jax.data.layout import Selection
from gphm_jax.data.pixels import PixelSource
from gphm_jax.data.sampler import evaluation_batches
from gphm_jax.fit_settings import FinetuneSettings, FitWeights, IdentitySettings, Limits
from gphm_jax.gaussians import Fixed, GaussianModel
from gphm_jax.geometry import refocused
from gphm_jax.losses import recorded_pixels, weighted_mean
from gphm_jax.nets import HeadNetworks, bounded_code
from gphm_jax.optim import adam
from gphm_jax.render import render_splats
from gphm_jax.state import TrainState
from gphm_jax.step import StepContext, image_losses, make_step
from gphm_jax.types import Batch, Pose, Render, Splats, pytree

# Variables of the points: their name, and the field of `Limits` that bounds them.
_POINTS = {
    "positions": "position",
    "colors": "color",
    "log_scales": "log_scale",
    "quats": "quat",
    "opacity_logits": "opacity_logit",
}
# Where the networks of `fit_settings.NETWORKS` are.
_PLACES: dict[str, tuple[str, ...]] = {
    "expression": ("avatar", "networks", "expression"),
    "motion": ("avatar", "networks", "motion"),
    "refine": ("avatar", "networks", "refine"),
    "dynamics": ("avatar", "dynamics"),
}
_MEASURED_FRAMES = 32  # visibility is a mean over at most so many training frames
_TABLE_ROWS = 1024  # tables of frames grow by so many rows: a program for any number of them


@pytree
class FrameCodes:
    """z_exp and z_nf of a dataset's frames by frame row, r of `_TABLE_ROWS`; the encoders are frozen, so once is
    enough."""

    expression: Float[Array, "r z"]
    motion: Float[Array, "r z"]


class IdentityFit(nnx.Module):
    """Step 1: a frozen head model and one free z_id, which starts at the mean of the model's own."""

    def __init__(self, prior: GaussianModel, codes: FrameCodes):
        self.prior = prior
        self.identity_code = nnx.Param(jnp.mean(bounded_code(prior.subjects.codes[...]), axis=0))
        self.expression_codes, self.motion_codes = Fixed(codes.expression), Fixed(codes.motion)

    def code(self) -> Float[Array, "z"]:
        """z_id in the unit ball."""
        return bounded_code(self.identity_code[...])

    def picture(self, batch: Batch, backend: str) -> Render:
        """The head model's picture of a batch [1 f v] with the free code."""
        output = self.prior.animate(
            self.prior.neutral(self.code()[None]),
            self.expression_codes[...][batch.frame],
            self.motion_codes[...][batch.frame],
            batch.pose,
        )
        return _drawn(output.splats, self.prior.networks, batch, backend)


class FinetuneFit(nnx.Module):
    """Step 2: an avatar, corrections of the tracked head poses and focal length, and where the splats started."""

    def __init__(self, avatar: AvatarModel, codes: FrameCodes, limits: Limits, *, freedom: float = 1.0):
        self.avatar = avatar
        self.pose_corrections = nnx.Param(jnp.zeros((codes.expression.shape[0], 6)))
        self.log_focal = nnx.Param(jnp.zeros(()))
        self.expression_codes, self.motion_codes = Fixed(codes.expression), Fixed(codes.motion)
        self.limits, self.freedom = limits, Fixed(jnp.asarray(freedom, jnp.float32))
        self.start = nnx.Dict({name: Fixed(getattr(avatar, name)[...]) for name in _POINTS})
        self.trust = Fixed(jnp.ones(avatar.positions.shape[0]))

    def corrected(self, batch: Batch) -> Batch:
        """A batch with what was learnt of its head poses (added to axis-angle and translation) and cameras."""
        delta = self.pose_corrections[...][batch.frame]
        pose = Pose(
            rotation=batch.pose.rotation + delta[..., :3],
            translation=batch.pose.translation + delta[..., 3:],
            scale=batch.pose.scale,
        )
        camera = refocused(batch.camera, pose.translation[:, :, None], self.log_focal[...])
        return dataclasses.replace(batch, pose=pose, camera=camera)

    def correction(self, batch: Batch) -> Float[Array, "1 f"]:
        """The mean square of what was learnt of each frame's head pose, and that of the focal length."""
        delta = self.pose_corrections[...][batch.frame]
        return jnp.mean(delta**2, axis=-1) + self.log_focal[...] ** 2

    def splats(self, batch: Batch) -> Splats:
        """The Gaussians of a batch's frames, [1 f], as its own pose has them."""
        return self.avatar(
            self.expression_codes[...][batch.frame], self.motion_codes[...][batch.frame], batch.pose
        )

    def picture(self, batch: Batch, backend: str) -> Render:
        """The avatar's picture of a batch [1 f v], corrected."""
        batch = self.corrected(batch)
        return _drawn(self.splats(batch), self.avatar.networks, batch, backend)

    def departure(self) -> Float[Array, ""]:
        """Mean squared distance of the points' variables to their start, each in units of its bound."""
        terms = []
        for name in _POINTS:
            difference = getattr(self.avatar, name)[...] - self.start[name][...]
            terms.append(jnp.mean((difference / self._bound(name)) ** 2))
        return jnp.sum(jnp.stack(terms))

    def trust_what_is_seen(self, filled: Float[Array, "n"], half: float) -> None:
        """Lets each splat move at filled / (filled + half) of its rate; `filled` is its `visibility`.

        Adam divides each gradient by its own size, so that a splat of which a hundredth of a pixel is seen moves as
        far as one in full view: that is what tears the sides of a head fitted to its front.
        """
        if half:
            self.trust[...] = filled / (filled + half)

    def restrain(self, before: FinetuneFit) -> None:
        """Takes back what an update of `before` did to the points beyond their trust and the box about their start."""
        for name in _POINTS:
            start, bound = self.start[name][...], self._bound(name)
            variable, old = getattr(self.avatar, name), getattr(before.avatar, name)[...]
            trust = self.trust[...].reshape(-1, *[1] * (old.ndim - 1))
            variable[...] = jnp.clip(old + trust * (variable[...] - old), start - bound, start + bound)

    def _bound(self, name: str) -> Float[Array, ""]:
        limit = jnp.asarray(getattr(self.limits, _POINTS[name]), jnp.float32)
        # Each photo tells colours; shape is what several of them agree on.
        return limit if name == "colors" else limit * self.freedom[...]


Fittable = IdentityFit | FinetuneFit


def _drawn(splats: Splats, networks: HeadNetworks, batch: Batch, backend: str) -> Render:
    height, width = batch.image.shape[-3:-1]
    features, alpha = render_splats(splats, batch.camera, height=height, width=width, backend=backend)
    return Render(features=features, alpha=alpha, fine=networks.refine(features))


def encode_frames(networks: HeadNetworks, pixels: PixelSource, items: Sequence[Selection]) -> FrameCodes:
    """z_exp and z_nf of each selected frame, from its selected camera; rows of other frames mean nothing."""
    encode = nnx.jit(
        lambda nets, batch: (
            nets.expression_encoder(batch.face_image),
            nets.motion_encoder(batch.nonface_image),
        )
    )
    tables: tuple[np.ndarray, np.ndarray] | None = None
    for plan, batch in evaluation_batches(pixels, items, references=items):
        codes = jax.device_get(encode(networks, batch))
        if tables is None:
            rows = _TABLE_ROWS * -(-len(pixels.dataset.frames) // _TABLE_ROWS)
            shape = (rows, codes[0].shape[-1])
            tables = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for table, code in zip(tables, codes, strict=True):
            table[plan.frame.row] = code[0, 0]
    assert tables is not None  # a selection is never empty
    return FrameCodes(expression=jnp.asarray(tables[0]), motion=jnp.asarray(tables[1]))


def steady(
    networks: HeadNetworks, codes: FrameCodes, items: Sequence[Selection], share: float
) -> FrameCodes:
    """Leaves motion codes `share` of their way from the items' mean, in the codes and in E_nf itself (in place).

    E_nf ends in a linear layer, so that for any picture its code is exactly as far as these from the mean.
    """
    mean = jnp.mean(codes.motion[np.array([item.frame.row for item in items])], axis=0)
    last = networks.motion_encoder.head[-1]
    last.kernel[...] = share * last.kernel[...]
    assert last.bias is not None
    last.bias[...] = share * last.bias[...] + (1.0 - share) * mean
    return dataclasses.replace(codes, motion=share * codes.motion + (1.0 - share) * mean[None])


def visibility(
    fit: FinetuneFit, pixels: PixelSource, items: Sequence[Selection], *, backend: str
) -> Float[Array, "n"]:
    """How many recorded pixels each splat fills in a mean picture of the items: the sum of its blending weights.

    The picture is linear in the features, so that the weights' sum is its derivative by one channel of them.
    """

    @nnx.jit
    def filled(fit: FinetuneFit, batch: Batch) -> Array:
        splats = fit.splats(batch)
        height, width = batch.image.shape[-3:-1]
        seen = recorded_pixels(batch.recorded, height=height, width=width)

        def total(features: Array) -> Array:
            painted, _ = render_splats(
                dataclasses.replace(splats, features=features),
                batch.camera,
                height=height,
                width=width,
                backend=backend,
            )
            return jnp.sum(painted[..., 0] * seen)

        return jax.grad(total)(splats.features)[0, 0, :, 0]

    picked = [items[n] for n in sorted({round(x) for x in np.linspace(0, len(items) - 1, _MEASURED_FRAMES)})]
    batches = evaluation_batches(pixels, picked, references=picked)
    return jnp.mean(jnp.stack([filled(fit, batch) for _, batch in batches]), axis=0)


# (state, batch, perceptual weights, steps=the schedule's length) -> (state, scalars). All that belongs to one avatar is
# among these, nothing in the function: avatars of one head model are one compiled program.
Advance = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitStep:
    """One step, ready to run."""

    name: str  # "identity" or "finetune"
    graphdef: Any
    state: TrainState
    advance: Advance


def identity_step(fit: IdentityFit, settings: IdentitySettings, *, backend: str, seed: int) -> FitStep:
    """Step 1: nothing moves but z_id."""
    graphdef, params, fixed = nnx.split(  # type: ignore[misc]  # the stubs lose the count
        fit, lambda path, _: path[0] == "identity_code", ...
    )
    optimizer = adam(settings.rates, settings.schedule)
    context = StepContext(weights=settings.losses, backend=backend, downscale=settings.downscale)
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, fixed=fixed, optimizer=optimizer.init(params)
    )
    return FitStep(
        name="identity",
        graphdef=graphdef,
        state=state,
        advance=make_step(graphdef, optimizer, _picture_losses, context, seed=seed),
    )


def finetune_step(
    fit: FinetuneFit,
    settings: FinetuneSettings,
    *,
    networks: Sequence[str],
    cameras: bool,
    backend: str,
    seed: int,
) -> FitStep:
    """Step 2: the points, those of f_exp, f_nf, the refine network and f_dyn that `networks` names (`NETWORKS`), and
    with `cameras` the corrections of head poses and focal length."""
    free = {("avatar", name) for name in _POINTS} | {_PLACES[name] for name in networks}
    if cameras:
        free |= {("pose_corrections",), ("log_focal",)}

    def moves(path: tuple[Any, ...], _: Any) -> bool:
        return any(tuple(path[: len(prefix)]) == prefix for prefix in free)

    graphdef, params, fixed = nnx.split(fit, moves, ...)  # type: ignore[misc]  # the stubs lose the count
    optimizer = adam(settings.rates, settings.schedule)
    weights = settings.losses if cameras else dataclasses.replace(settings.losses, correction=0.0)
    context = StepContext(weights=weights, backend=backend)
    unbounded = make_step(graphdef, optimizer, _finetune_losses, context, seed=seed)

    def advance(
        state: TrainState, batch: Batch, perceptual: Any, *, steps: Any
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        moved, scalars = unbounded(state, batch, perceptual, steps=steps)
        after = nnx.merge(graphdef, moved.params, moved.fixed, copy=True)
        after.restrain(nnx.merge(graphdef, state.params, state.fixed))
        return dataclasses.replace(moved, params=nnx.split(after, moves, ...)[1]), scalars

    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, fixed=fixed, optimizer=optimizer.init(params)
    )
    return FitStep(name="finetune", graphdef=graphdef, state=state, advance=advance)


def _picture_losses(
    model: Fittable, batch: Batch, perceptual: Any, key: jax.Array, context: StepContext
) -> dict[str, jax.Array]:
    """The photometric and perceptual terms, and alpha against the mask."""
    render = model.picture(batch, context.backend)
    terms = image_losses(render, batch, perceptual, key, context.weights)
    if _weights(context).alpha:
        height, width = batch.mask.shape[-2:]
        seen = recorded_pixels(batch.recorded, height=height, width=width)
        terms["alpha"] = weighted_mean(jnp.abs(render.alpha - batch.mask), seen)
    return terms


def _finetune_losses(
    model: FinetuneFit, batch: Batch, perceptual: Any, key: jax.Array, context: StepContext
) -> dict[str, jax.Array]:
    terms = _picture_losses(model, batch, perceptual, key, context)
    if _weights(context).anchor:
        terms["anchor"] = model.departure()
    if _weights(context).correction:
        terms["correction"] = model.correction(batch)
    return terms


def _weights(context: StepContext) -> FitWeights:
    assert isinstance(context.weights, FitWeights)  # both steps' contexts are made above
    return context.weights
