"""One training step of either stage: forward, losses, gradients, update; one compilation, no read-back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float

from gphm_jax import losses
from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianModel
from gphm_jax.guide import GuideModel
from gphm_jax.perceptual import lpips
from gphm_jax.render import render_mesh, render_splats
from gphm_jax.sharding import batch_sharding, replicated, state_sharding
from gphm_jax.state import TrainState
from gphm_jax.types import Batch, Render

Scalars = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossWeights:
    """Weights of eq. 17 and 18; defaults: stage 2.

    0 switches a term off; one that compares pictures, or the Laplacian, is then not computed.
    """

    fine: float = 1.0
    coarse: float = 1.0
    silhouette: float = 0.0
    landmarks: float = 1.0
    displacement: float = 0.01
    laplacian: float = 0.0
    perceptual: float = 0.1
    perceptual_crop: int = 128  # pixels a side, of the pictures compared
    face_gain: float = 1.0  # photometric weight inside the face box; 1 is the paper's
    eye_gain: float = 1.0  # weight of the eyes' landmarks; their pixels weigh face_gain * eye_gain; 1 is the paper's


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a loss needs besides model and batch: constants of the run."""

    weights: LossWeights
    devices: jax.sharding.Mesh | None = None
    backend: str = "auto"
    downscale: int = 1  # pictures are compared at 1 / downscale of their size


LossFunction = Callable[[Any, Batch, Any, jax.Array, StepContext], dict[str, jax.Array]]


def render_guide(model: GuideModel, batch: Batch, context: StepContext) -> tuple[Render, Any]:
    """The guide's picture of a batch, and its output before rendering."""
    output = model(batch)
    height, width = batch.image.shape[-3:-1]
    features, alpha = render_mesh(
        output.mesh,
        batch.camera,
        height=height,
        width=width,
        backend=context.backend,
        devices=context.devices,
    )
    return Render(features=features, alpha=alpha, fine=model.networks.refine(features)), output


def render_gaussians(model: GaussianModel, batch: Batch, context: StepContext) -> tuple[Render, Any]:
    """The Gaussian model's picture of a batch, and its output before rendering."""
    output = model(batch)
    height, width = batch.image.shape[-3:-1]
    features, alpha = render_splats(
        output.splats,
        batch.camera,
        height=height,
        width=width,
        backend=context.backend,
        devices=context.devices,
    )
    return Render(features=features, alpha=alpha, fine=model.networks.refine(features)), output


def guide_losses(
    model: GuideModel, batch: Batch, perceptual: Any, key: jax.Array, context: StepContext
) -> dict[str, jax.Array]:
    """The terms of stage 1, per image or per frame; `surface_*` are for the log and the loop's checks."""
    render, output = render_guide(model, batch, context)
    terms = image_losses(render, batch, perceptual, key, context.weights)
    terms["landmarks"] = losses.landmark_distance(
        output.landmarks, batch.landmarks, eye_gain=context.weights.eye_gain
    )
    terms["displacement"] = output.displacement
    if context.weights.laplacian:
        terms["laplacian"] = losses.laplacian(output.canonical, output.mesh.faces)
    terms["surface_vertices"] = output.vertex_count
    terms["surface_overflow"] = output.overflow
    return terms


def gaussian_losses(
    model: GaussianModel, batch: Batch, perceptual: Any, key: jax.Array, context: StepContext
) -> dict[str, jax.Array]:
    """The terms of stage 2, per image or per frame."""
    render, output = render_gaussians(model, batch, context)
    terms = image_losses(render, batch, perceptual, key, context.weights)
    terms["landmarks"] = losses.landmark_distance(
        output.landmarks, batch.landmarks, eye_gain=context.weights.eye_gain
    )
    terms["displacement"] = output.displacement
    return terms


def image_losses(
    render: Render, batch: Batch, perceptual: Any, key: jax.Array, weights: LossWeights
) -> dict[str, jax.Array]:
    """The terms that compare pictures, per image [i f v], where their cameras recorded something."""
    height, width = batch.image.shape[-3:-1]
    seen = losses.recorded_pixels(batch.recorded, height=height, width=width)
    views = batch.camera.world_to_camera.shape[:3]
    pixel_weight = losses.face_weight(
        jnp.broadcast_to(batch.landmarks[:, :, None], (*views, *batch.landmarks.shape[-2:])),
        batch.camera,
        jax.tree.map(lambda x: x[:, :, None], batch.pose),
        height=height,
        width=width,
        gain=weights.face_gain,
        eye_gain=weights.eye_gain,
    )
    pixel_weight = pixel_weight * seen
    terms = {}
    if weights.fine:
        terms["fine"] = losses.photometric(render.fine, batch.image, pixel_weight)
    if weights.coarse:
        terms["coarse"] = losses.photometric(render.coarse, batch.image, pixel_weight)
    if weights.silhouette:
        terms["silhouette"] = losses.silhouette(render.alpha * seen, batch.mask * seen)
    if weights.perceptual:
        size = weights.perceptual_crop
        ends = jnp.array([height - size + 1, width - size + 1]).reshape(1, 1, 1, 2)
        corner = jax.random.randint(key, (*views, 2), 0, ends)
        # LPIPS looks at neighbourhoods: beyond the recorded it is shown the same on both sides.
        shown = jnp.where(seen[..., None] > 0, render.fine, batch.image)
        terms["perceptual"] = lpips(
            perceptual, losses.crop(shown, corner, size), losses.crop(batch.image, corner, size)
        )
    # For the log only: PSNR of the refined picture.
    squared = jnp.mean((jnp.clip(render.fine, 0.0, 1.0) - batch.image) ** 2, axis=-1)
    error = losses.weighted_mean(squared, seen)
    terms["psnr"] = jax.lax.stop_gradient(-10.0 * jnp.log10(jnp.maximum(error, 1e-10)))
    return terms


def total_loss(terms: dict[str, jax.Array], weights: LossWeights) -> tuple[jax.Array, Scalars]:
    """The one reducer: means over the batch, weighted sum, and the scalars to log.

    A term without a weight of its name is logged but not optimised.
    """
    scalars = {name: jnp.mean(values.astype(jnp.float32)) for name, values in terms.items()}
    weighted = {name: getattr(weights, name) for name in scalars if hasattr(weights, name)}
    scalars["loss"] = sum((weight * scalars[name] for name, weight in weighted.items()), start=jnp.zeros(()))
    return scalars["loss"], scalars


def downscaled(batch: Batch, factor: int) -> Batch:
    """A batch whose images and masks are means over squares of `factor` pixels; what the encoders see stays."""
    if factor == 1:
        return batch

    def pool(x: Float[Array, "i f v h w *c"]) -> Float[Array, "i f v _h _w *c"]:
        h, w = x.shape[3:5]
        if h % factor or w % factor:
            raise InputError(f"images of {h}x{w} pixels do not divide by downscale={factor}: choose a divisor")
        return x.reshape(*x.shape[:3], h // factor, factor, w // factor, factor, *x.shape[5:]).mean((4, 6))

    # Pixel centres lie at +0.5, so that a smaller picture's focal lengths and centre are exact fractions.
    intrinsics = jnp.asarray(batch.camera.intrinsics).at[..., :2, :].divide(factor)
    camera = dataclasses.replace(batch.camera, intrinsics=intrinsics)
    return dataclasses.replace(
        batch,
        image=pool(batch.image),
        mask=pool(batch.mask),
        recorded=batch.recorded / factor,
        camera=camera,
    )


def make_step(
    graphdef: Any, optimizer: Any, loss_function: LossFunction, context: StepContext, *, seed: int
) -> Callable[..., tuple[TrainState, Scalars]]:
    """`step(state, batch, perceptual_weights) -> (state, scalars)`, not yet compiled.

    Further arguments, by name, are the optimizer's.
    """

    def step(
        state: TrainState, batch: Batch, perceptual: Any, **options: Any
    ) -> tuple[TrainState, Scalars]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = downscaled(batch, context.downscale)

        def loss(params: Any) -> tuple[jax.Array, Scalars]:
            if context.devices is not None:
                # Whole for the time of the step: left to choose, XLA gathers points and divides their networks.
                params = jax.lax.with_sharding_constraint(params, replicated(context.devices))
            model = nnx.merge(graphdef, params, state.fixed)
            return total_loss(loss_function(model, batch, perceptual, key, context), context.weights)

        (_, scalars), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
        scalars["gradient_norm"] = optax.tree.norm(gradients)
        updates, moments = optimizer.update(gradients, state.optimizer, state.params, **options)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, optimizer=moments), scalars

    return step


def compile_step(
    step: Callable[..., Any], state: TrainState, devices: jax.sharding.Mesh | None
) -> Callable[..., Any]:
    """`jax.jit` (pjit) of a step: the state in its shardings and donated, the batch divided over all devices."""
    if devices is None:
        return jax.jit(step, donate_argnums=0)
    placed = state_sharding(devices, state)
    return jax.jit(
        step,
        in_shardings=(placed, batch_sharding(devices), replicated(devices)),
        out_shardings=(placed, replicated(devices)),
        donate_argnums=0,
    )
