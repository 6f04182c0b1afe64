"""Pictures of held-out cameras against the truth, beside the baselines that need no model."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gphm_jax import losses, metrics
from gphm_jax.data.layout import Frame, Selection, directions
from gphm_jax.data.pixels import FramePlan, PixelSource
from gphm_jax.data.sampler import evaluation_batches, evaluation_plans, spread
from gphm_jax.files import Picture, write_image
from gphm_jax.perceptual import lpips
from gphm_jax.provenance import Statement, save_image
from gphm_jax.types import Batch, Render

RenderFunction = Callable[[Batch], Render]


def mean_picture(pixels: PixelSource, selection: Sequence[Selection]) -> Float[np.ndarray, "h w 3"]:
    """The mean training picture, of at most 512 frames spread evenly over the selection."""
    chosen = spread(selection, 512)
    total, count = np.zeros((pixels.image_size, pixels.image_size, 3), np.float64), 0
    for item in chosen:
        for view in item.views:
            total += pixels.view(item.frame, view)[0]
            count += 1
    return (total / (255.0 * count)).astype(np.float32)


def evaluate(
    render: RenderFunction,
    pixels: PixelSource,
    held_out: Sequence[Selection],
    training: Sequence[Selection],
    *,
    lpips_weights: dict[str, Any],
    lpips_every: int = 1,
    baselines: bool = True,
    folder: pathlib.Path | None = None,
    progress: Callable[[Any, int], Any] = lambda items, total: items,
) -> dict[str, float | None]:
    """Means over all held-out pictures: PSNR of fine, coarse and baselines, SSIM, LPIPS, and the code test.

    Every PSNR is of the pixels that were recorded; SSIM and LPIPS are shown the truth beyond them.
    `psnr_face_right` and `psnr_face_wrong` are the PSNR inside the face box with this frame's expression and
    with another frame's of the same identity. LPIPS is taken of every `lpips_every`-th frame's pictures
    (`lpips_count`). Baselines take pictures of `training` as predictions; without them `training` may be `held_out`
    itself, and gives the face images alone. With `folder`, every truth, render and mask is kept as PNG.
    """
    mean = mean_picture(pixels, training) if baselines else None
    views_of = {item.frame.row: item for item in training}
    plans = {plan.frame.row: plan for plan in evaluation_plans(pixels.dataset, held_out, references=training)}
    measure = jax.jit(_measure)
    rows: list[dict[str, np.ndarray]] = []
    pairs = evaluation_batches(pixels, held_out, references=training)
    for n, ((plan, batch), item) in enumerate(zip(progress(pairs, len(held_out)), held_out, strict=True)):
        picture = render(batch)
        weights = {} if n % lpips_every else lpips_weights
        row = {k: np.asarray(v) for k, v in measure(picture, batch, weights).items()}
        if mean is not None:
            row |= _baseline_psnr(mean, pixels, views_of[item.frame.row], item, batch)
        wrong = _other_expression(plan, plans, pixels)
        if wrong is not None and plan.frame.shows_face[list(plan.views)].any():
            swapped = render(dataclasses.replace(batch, face_image=wrong))
            seen = plan.frame.shows_face[list(plan.views)]
            row["psnr_face_right"] = row["psnr_face"][seen]
            row["psnr_face_wrong"] = np.asarray(measure(swapped, batch, {})["psnr_face"])[seen]
        del row["psnr_face"]
        rows.append(row)
        if folder is not None:
            _keep(folder, plan, batch, picture)
    names = sorted({name for row in rows for name in row})
    values = {name: np.concatenate([row[name] for row in rows if name in row]) for name in names}
    counts = {"count": len(values["psnr"])}
    if lpips_weights:
        counts["lpips_count"] = len(values[f"lpips_{next(iter(lpips_weights))}"])
    return {name: metrics.mean_of(name, value) for name, value in values.items()} | counts


def _measure(picture: Render, batch: Batch, lpips_weights: dict[str, Any]) -> dict[str, Float[Array, "v"]]:
    """Per-image figures of a batch [1 1 v]."""
    fine, coarse, truth, mask = (x[0, 0] for x in (picture.fine, picture.coarse, batch.image, batch.mask))
    views = truth.shape[0]
    height, width = truth.shape[1:3]
    face = losses.face_weight(
        jnp.broadcast_to(batch.landmarks[0, 0], (views, *batch.landmarks.shape[-2:])),
        jax.tree.map(lambda x: x[0, 0], batch.camera),
        jax.tree.map(lambda x: x[0], batch.pose),
        height=height,
        width=width,
        gain=2.0,
    )
    seen = losses.recorded_pixels(batch.recorded[0, 0], height=height, width=width)
    return picture_figures(fine, coarse, truth, mask, seen, lpips_weights) | {
        "psnr_face": metrics.psnr(fine, truth, (face - 1.0) * seen)
    }


def picture_figures(
    fine: Float[Array, "*v h w 3"],
    coarse: Float[Array, "*v h w 3"],
    truth: Float[Array, "*v h w 3"],
    mask: Float[Array, "*v h w"],
    seen: Float[Array, "*v h w"],
    lpips_weights: dict[str, Any],
) -> dict[str, Float[Array, "*v"]]:
    """PSNR, SSIM and LPIPS of pictures where the truth was `seen` (1); SSIM and LPIPS are shown the truth elsewhere."""
    shown = jnp.where(seen[..., None] > 0, fine, truth)
    return {
        "psnr": metrics.psnr(fine, truth, seen),
        "psnr_mask": metrics.psnr(fine, truth, mask * seen),
        "psnr_coarse": metrics.psnr(jnp.clip(coarse, 0.0, 1.0), truth, seen),
        "ssim": metrics.ssim(shown, truth),
        **{f"lpips_{net}": lpips(weights, shown, truth) for net, weights in lpips_weights.items()},
    }


def _baseline_psnr(
    mean: Float[np.ndarray, "h w 3"], pixels: PixelSource, training: Selection, item: Selection, batch: Batch
) -> dict[str, np.ndarray]:
    """Training pictures as predictions: the nearest camera's of the same frame, and the mean of all."""
    nearest = np.argmax(
        directions(item.frame, item.views) @ directions(training.frame, training.views).T, axis=1
    )
    images = [pixels.view(training.frame, training.views[n])[0].astype(np.float32) / 255.0 for n in nearest]
    truth = batch.image[0, 0]
    seen = losses.recorded_pixels(batch.recorded[0, 0], height=truth.shape[1], width=truth.shape[2])
    return {
        "nearest_view_psnr": np.asarray(metrics.psnr(np.stack(images), truth, seen)),
        "mean_image_psnr": np.asarray(metrics.psnr(np.broadcast_to(mean, truth.shape), truth, seen)),
    }


def _other_expression(
    plan: FramePlan, plans: dict[int, FramePlan], pixels: PixelSource
) -> Float[np.ndarray, "1 1 s s 3"] | None:
    """The face image of the identity's next frame (the first after the last), or None when there is one frame."""
    same = [row for row, other in plans.items() if other.frame.identity == plan.frame.identity]
    if len(same) < 2:
        return None
    other = plans[same[(same.index(plan.frame.row) + 1) % len(same)]]
    if other.face_view is not None:
        image = pixels.face(other.frame, other.face_view)
    else:
        image = pixels.synthesized(other.frame, 0)
    return (image.astype(np.float32) / 255.0)[None, None]


def _keep(folder: pathlib.Path, plan: FramePlan, batch: Batch, picture: Render) -> None:
    for index, view in enumerate(plan.views):
        fine = np.asarray(picture.fine[0, 0, index])
        keep_picture(folder, plan.frame, view, batch.image[0, 0, index], fine, batch.mask[0, 0, index])


def keep_picture(
    folder: pathlib.Path, frame: Frame, view: int, truth: Picture, render: Picture, mask: Picture
) -> None:
    """Writes a held-out picture as <identity>_<frame>_<view>_{truth,render,mask}.png."""
    stem = f"{frame.identity}_{frame.name}_{frame.views[view].name}"
    write_image(folder / f"{stem}_truth.png", truth)
    save_image(folder / f"{stem}_render.png", render, Statement())
    write_image(folder / f"{stem}_mask.png", mask)
