"""What a fitted avatar is worth: figures on its own and on other cameras, pictures, the preview and the report."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import metrics, report
from gphm_jax.avatar import Avatar
from gphm_jax.avatar_model import AvatarModel, AvatarSpec
from gphm_jax.curves import Chart
from gphm_jax.data.layout import Frame, Selection, directions, view_intrinsics, view_recorded
from gphm_jax.data.sampler import evaluation_batches, spread
from gphm_jax.evaluation import picture_figures
from gphm_jax.files import to_bytes
from gphm_jax.fit_footage import FitFootage
from gphm_jax.fit_settings import FitSettings
from gphm_jax.fitting import FrameCodes
from gphm_jax.habits import habits_of
from gphm_jax.logs import image_grid, read_metrics
from gphm_jax.losses import recorded_pixels
from gphm_jax.perceptual import load_lpips
from gphm_jax.provenance import COMPOSITE, Statement
from gphm_jax.scores import ScoreRegressor
from gphm_jax.types import Batch, Camera, Pose, Render

Progress = Callable[[Sequence[Any], str], Iterable[Any]]  # items and a label -> the items, with a bar
ANGLE_STEP = 5  # degrees: cameras aside are counted with the nearest multiple
_GRID_ROWS = 3
_PROGRESS_FRAMES = 6


def make_avatar(
    model: AvatarModel,
    spec: AvatarSpec,
    codes: FrameCodes,
    footage: FitFootage,
    *,
    scores: ScoreRegressor | None = None,
    backend: str,
) -> Avatar:
    """The avatar of a fitted model, with the habits of its training footage."""
    habits = habits_of(codes, footage.training, spec.image_size)
    return Avatar(model, spec, habits, scores=scores, backend=backend)


def render_frame(avatar: Avatar, codes: FrameCodes, frame: Frame, view: int) -> Float[np.ndarray, "h w 3"]:
    """The avatar driven by a frame's codes and head pose, seen by one of its cameras."""
    return np.asarray(_draw_frame(avatar, codes, frame, view).fine)


def _draw_frame(avatar: Avatar, codes: FrameCodes, frame: Frame, view: int) -> Render:
    camera = Camera(
        world_to_camera=jnp.asarray(frame.world_to_camera[view]),
        intrinsics=jnp.asarray(view_intrinsics(frame, view, avatar.spec.image_size)),
    )
    return avatar.draw(
        codes.expression[frame.row], camera=camera, pose=_pose(frame), motion=codes.motion[frame.row]
    )


def _pose(frame: Frame) -> Pose:
    return Pose(
        rotation=jnp.asarray(frame.rotation),
        translation=jnp.asarray(frame.translation),
        scale=jnp.asarray(frame.scale, jnp.float32),
    )


def evaluate_fit(
    avatar: Avatar, codes: FrameCodes, footage: FitFootage, settings: FitSettings, progress: Progress
) -> dict[str, Any]:
    """`train`, `heldout` and `side_views` of metrics.json.

    `best_training_frame_psnr` takes, for each held-out picture, the training picture most like it, as a
    prediction. `side_views` holds a PSNR for each angle between a camera aside and the fitted one of that frame.
    Every PSNR is of the pixels that were recorded.
    `psnr_mask` is None where no picture's mask shows anything; `psnr_coarse` is that of the splats alone.
    """
    options = settings.evaluation
    weights = {net: load_lpips(net) for net in options.lpips}
    measure = jax.jit(picture_figures)
    figures: dict[str, Any] = {}
    sides = {"train": spread(footage.training, options.training_frames), "heldout": footage.held_out}
    for side, items in sides.items():
        rows = []
        for item in progress(items, f"{side} frames") if items else ():
            picture = _draw_frame(avatar, codes, item.frame, item.views[0])
            shown = _truth(footage, item.frame, item.views[0])
            rows.append(jax.device_get(measure(picture.fine, picture.coarse, *shown, weights)))
        if rows:
            figures[side] = {
                name: metrics.mean_of(name, np.array([row[name] for row in rows])) for name in rows[0]
            }
            figures[side]["count"] = len(rows)
    if footage.held_out:
        figures["heldout"]["best_training_frame_psnr"] = best_training_frame_psnr(footage)
    if footage.aside:
        figures["side_views"] = _side_figures(avatar, codes, footage, settings, progress)
    return figures


def progress(
    avatars: Iterable[tuple[float, Avatar]], codes: FrameCodes, footage: FitFootage
) -> list[dict[str, float]]:
    """What the avatars of a fit's course were worth: mean PSNR of some held-out frames, else of training frames."""
    items = spread(footage.held_out or footage.training, _PROGRESS_FRAMES)
    rows = []
    for seconds, avatar in avatars:
        values = []
        for item in items:
            truth, _, seen = _truth(footage, item.frame, item.views[0])
            picture = render_frame(avatar, codes, item.frame, item.views[0])
            values.append(metrics.psnr(picture, truth, seen))
        rows.append({"seconds": seconds, "psnr": float(np.mean(values))})
    return rows


def _side_figures(
    avatar: Avatar, codes: FrameCodes, footage: FitFootage, settings: FitSettings, progress: Progress
) -> dict[str, dict[str, float | None]]:
    buckets: dict[int, list[dict[str, float]]] = {}
    for item in progress(spread(footage.aside, settings.evaluation.side_frames), "cameras aside"):
        angles = angles_aside(item)
        for view, angle in zip(item.views[1:], angles, strict=True):
            truth, mask, seen = _truth(footage, item.frame, view)
            picture = render_frame(avatar, codes, item.frame, view)
            values = {
                "psnr": float(metrics.psnr(picture, truth, seen)),
                "psnr_mask": float(metrics.psnr(picture, truth, mask * seen)),
                "mean_angle": float(angle),
            }
            buckets.setdefault(ANGLE_STEP * round(float(angle) / ANGLE_STEP), []).append(values)
    figures = {}
    for degrees, rows in sorted(buckets.items()):
        means = {name: metrics.mean_of(name, np.array([row[name] for row in rows])) for name in rows[0]}
        figures[str(degrees)] = means | {"count": len(rows)}
    return figures


def angles_aside(item: Selection) -> Float[np.ndarray, "v"]:
    """Degrees between the first camera of a selection and each of the others, about the head."""
    rays = directions(item.frame, item.views)
    return np.degrees(np.arccos(np.clip(rays[1:] @ rays[0], -1.0, 1.0)))


def best_training_frame_psnr(footage: FitFootage) -> float:
    """The mean over held-out pictures of the highest PSNR that any one training picture reaches as a prediction."""

    shown = [_truth(footage, item.frame, item.views[0]) for item in footage.held_out]
    wanted, seen = np.stack([truth for truth, _, _ in shown]), np.stack([recorded for _, _, recorded in shown])
    best = np.full(len(wanted), -np.inf)
    for item in footage.training:
        candidate, _, _ = _truth(footage, item.frame, item.views[0])
        best = np.maximum(best, metrics.psnr(np.broadcast_to(candidate, wanted.shape), wanted, seen))
    return float(np.mean(best))


def _truth(
    footage: FitFootage, frame: Frame, view: int
) -> tuple[Float[np.ndarray, "h w 3"], Float[np.ndarray, "h w"], Float[np.ndarray, "h w"]]:
    """(picture, mask, 1 where it was recorded)."""
    image, mask = footage.pixels.view(frame, view)
    height, width = mask.shape
    seen = recorded_pixels(view_recorded(frame, view, width), height=height, width=width)
    return image.astype(np.float32) / 255.0, mask.astype(np.float32) / 255.0, np.asarray(seen)


def sample_columns(
    draw: Callable[[Batch], Render], footage: FitFootage
) -> dict[str, Float[np.ndarray, "n h w *c"]]:
    """Truth, coarse, fine and alpha of a few training, held-out and aside pictures, for a grid."""
    columns: dict[str, list[np.ndarray]] = {"truth": [], "coarse": [], "fine": [], "alpha": []}
    aside = [_outermost(item) for item in spread(footage.aside, _GRID_ROWS)]
    picked = (*spread(footage.training, _GRID_ROWS), *spread(footage.held_out, _GRID_ROWS), *aside)
    for _, batch in evaluation_batches(footage.pixels, picked, references=footage.driven):
        picture = draw(batch)
        for name, image in zip(
            columns, (batch.image, picture.coarse, picture.fine, picture.alpha), strict=True
        ):
            columns[name].append(np.clip(np.asarray(image)[0, 0, 0], 0.0, 1.0))
    return {name: np.stack(images) for name, images in columns.items()}


def _outermost(item: Selection) -> Selection:
    furthest = item.views[1 + int(np.argmax(angles_aside(item)))]
    return Selection(frame=item.frame, views=(furthest,))


def preview_pictures(
    avatar: Avatar, codes: FrameCodes, footage: FitFootage, settings: FitSettings
) -> Iterator[UInt8[np.ndarray, "h w3 3"]]:
    """Frames of the preview: truth, the avatar through the same camera, and from a camera that swings aside.

    A few photos are each shown for a while, so that there is time to swing.
    """
    options = settings.preview
    shown = footage.driven[-options.frames :]
    count = max(len(shown), min(options.frames, options.fewest))
    items = [shown[index * len(shown) // count] for index in range(count)]
    for index, item in enumerate(items):
        frame, view = item.frame, item.views[0]
        swing = np.radians(options.orbit_degrees) * np.sin(2.0 * np.pi * index / len(items))
        aside, _ = avatar.render(
            codes.expression[frame.row],
            camera=avatar.orbit_camera(float(swing)),
            motion=codes.motion[frame.row],
        )
        same = render_frame(avatar, codes, frame, view)
        panels = (footage.pixels.view(frame, view)[0], to_bytes(same), to_bytes(np.asarray(aside)))
        yield np.concatenate(panels, axis=1)


def write_fit_report(
    out: pathlib.Path, figures: dict[str, Any], avatar: Avatar, codes: FrameCodes, footage: FitFootage
) -> None:
    """Writes OUT/report.html from the figures, the log and a few pictures."""
    sections = [report.Section(heading="Result", items=_result(figures))]
    pictures = [
        report.Picture(image=image_grid(columns), caption=caption, statement=Statement(source=COMPOSITE))
        for columns, caption in _comparisons(avatar, codes, footage)
    ]
    sections.append(report.Section(heading="Pictures", items=pictures))
    rows = read_metrics(out)
    for stage, heading in (("identity", "Step 1: identity"), ("finetune", "Step 2: fine-tuning")):
        mine = [row for row in rows if row["stage"] == stage]
        if mine:
            charts: list[Any] = [report.Charts(charts=report.charts_of(mine))]
            sections.append(report.Section(heading=heading, items=charts))
    settings = json.loads((out / "config.json").read_text(encoding="utf-8"))
    table = report.settings_table(settings)
    sections.append(report.Section(heading="Configuration", items=[table], folded=True))
    report.write_report(
        out / "report.html",
        title="Fitted avatar",
        subtitle=f"{figures['training_frames']} training frames, {report.duration(figures['seconds'])} of fitting on "
        f"{figures['device']}",
        sections=sections,
    )


def _result(figures: dict[str, Any]) -> list[Any]:
    items: list[Any] = []
    best = figures.get("heldout") or figures["train"]
    kind = "held-out frames" if "heldout" in figures else "training frames"
    shown = [(f"{best['psnr']:.2f} dB", f"PSNR, {kind}"), (f"{best['ssim']:.3f}", f"SSIM, {kind}")]
    if "lpips_vgg" in best:
        shown.append((f"{best['lpips_vgg']:.3f}", f"LPIPS, {kind}"))
    items.append(report.Figures(items=shown))
    rows = []
    for side, text in (("train", "Training frames"), ("heldout", "Held-out frames")):
        if side in figures:
            row = figures[side]
            rows.append(
                (text, row["psnr"], row["psnr_mask"], row["ssim"], row.get("lpips_vgg"), row["count"])
            )
    if "heldout" in figures:
        baseline = figures["heldout"]["best_training_frame_psnr"]
        rows.append(("Baseline: the training picture most like it", baseline, None, None, None, None))
    for degrees, row in figures.get("side_views", {}).items():
        rows.append(
            (f"Camera {degrees} degrees aside", row["psnr"], row["psnr_mask"], None, None, row["count"])
        )
    header = ("pictures", "PSNR (dB)", "head only (dB)", "SSIM", "LPIPS", "count")
    items.append(report.Table(header=header, rows=rows))
    points = figures["progress"]
    chart = Chart(
        title="Quality against time",
        curves={kind: ([row["seconds"] for row in points], [row["psnr"] for row in points])},
        x_label="seconds",
        y_label="dB",
    )
    items.append(report.Charts(charts=[chart], caption=f"PSNR of {kind} while the avatar was fitted."))
    return items


def _comparisons(
    avatar: Avatar, codes: FrameCodes, footage: FitFootage
) -> Iterator[tuple[dict[str, np.ndarray], str]]:
    groups = [(footage.held_out or footage.training, "The fitted camera: truth above, avatar below.")]
    if footage.aside:
        groups.append((footage.aside, "Cameras aside, never fitted: truth above, avatar below."))
    for items, caption in groups:
        columns = {}
        for item in spread(items, 6 if len(items[0].views) == 1 else 2):
            views = item.views if len(item.views) == 1 else item.views[1:4]
            for view in views:
                truth, _, _ = _truth(footage, item.frame, view)
                picture = render_frame(avatar, codes, item.frame, view)
                columns[f"{item.frame.name} {item.frame.views[view].name}"] = np.stack([truth, picture])
        yield columns, caption
