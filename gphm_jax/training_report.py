"""The report of a training run, made from what its workdir holds."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from gphm_jax import report
from gphm_jax.data.sampler import spread
from gphm_jax.logs import image_grid, read_metrics
from gphm_jax.provenance import COMPOSITE, Statement

_HELD_OUT_PICTURES = 6
_STAGES = {"stage1": "Stage 1: guiding geometry model", "stage2": "Stage 2: Gaussian model"}
_FIGURES = ("psnr", "psnr_mask", "ssim", "lpips_vgg", "lpips_alex")
_DECIBELS = {
    "psnr": "Refined picture",
    "psnr_mask": "Refined picture, head only",
    "psnr_coarse": "Splats before refinement",
    "nearest_view_psnr": "Baseline: the nearest training camera's picture",
    "mean_image_psnr": "Baseline: the mean of all training pictures",
    "best_training_frame_psnr": "Baseline: the training picture most like it",
    "psnr_face_right": "Face box, with this frame's expression",
    "psnr_face_wrong": "Face box, with another frame's expression",
}


def write_training_report(
    workdir: str | os.PathLike[str], summary: Mapping[str, Any] | None = None, *, data: str = ""
) -> pathlib.Path:
    """Writes WORKDIR/report.html from config.json, metrics.jsonl, images/, heldout/ and `summary`.

    `summary` is what metrics.json holds, and is read from there by default; `data` says in a few words what the
    run was trained on. Whatever is missing is left out, so that an unfinished run has a report as well.
    """
    workdir = pathlib.Path(workdir)
    summary = _read(workdir / "metrics.json") if summary is None else summary
    config, rows = _read(workdir / "config.json"), read_metrics(workdir)
    stages = list(dict.fromkeys(str(row["stage"]) for row in rows))
    sections = [held_out_section(workdir / "heldout", summary.get("heldout_views") or {})]
    for stage in stages:
        sections += _stage(workdir, stage, [row for row in rows if row["stage"] == stage], summary)
    if config:
        settings = report.Section(heading="Configuration", items=[report.settings_table(config)], folded=True)
        sections.append(settings)
    path = workdir / "report.html"
    title = f"Head model: {summary.get('config') or workdir.name}"
    subtitle = ", ".join(part for part in (data, *_facts(summary, stages)) if part)
    report.write_report(path, title=title, subtitle=subtitle, sections=sections)
    return path


def _facts(summary: Mapping[str, Any], stages: Sequence[str]) -> list[str]:
    if not summary:
        return ["unfinished run"]
    parts = [str(summary["device"])] if summary.get("device") else []
    for stage in stages:
        seconds = summary.get(stage, {}).get("seconds")
        if seconds is not None:
            parts.append(f"{_STAGES.get(stage, stage).split(':')[0].lower()} in {report.duration(seconds)}")
    if summary.get("peak_memory_bytes"):
        parts.append(f"peak memory {report.size_in_bytes(summary['peak_memory_bytes'])}")
    return parts


def held_out_section(folder: pathlib.Path, held_out: Mapping[str, Any]) -> report.Section:
    """Figures of pictures that a model never saw, and some of them out of `folder`."""
    items: list[Any] = []
    figures = [
        (_figure(name, held_out[name]), report.readable(name))
        for name in _FIGURES
        if held_out.get(name) is not None
    ]
    if figures:
        items.append(report.Figures(items=figures))
    grid = _held_out_grid(folder)
    if grid is not None:
        items.append(
            report.Picture(
                image=grid,
                caption="Held-out pictures: the truth above, the model's picture below.",
                statement=Statement(source=COMPOSITE),
            )
        )
    rows = [
        (text, f"{held_out[name]:.2f} dB")
        for name, text in _DECIBELS.items()
        if held_out.get(name) is not None
    ]
    if rows:
        count = held_out.get("count")
        caption = f"Means over {count:,} held-out pictures." if count else "Means over the held-out pictures."
        items.append(
            report.Table(header=("Picture compared with the truth", "PSNR"), rows=rows, caption=caption)
        )
    return report.Section(heading="Held-out pictures", items=items)


def _stage(
    workdir: pathlib.Path, stage: str, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> list[report.Section]:
    heading = _STAGES.get(stage, stage)
    grids = sorted((workdir / "images").glob(f"{stage}_*.png"))
    items: list[Any] = []
    done = summary.get(stage) or {}
    figures = [(f"{int(rows[-1]['step']):,}", "steps")]
    if done.get("seconds"):
        figures.append((report.duration(done["seconds"]), "training time"))
    if done.get("psnr") is not None:
        figures.append((f"{done['psnr']:.2f} dB", "PSNR, held-out views"))
    items.append(report.Figures(items=figures))
    if grids:
        caption = f"Step {_step(grids[-1]):,}. Upper half: training pictures; lower half: held-out cameras."
        items.append(report.Picture(image=grids[-1], caption=caption))
    items.append(report.Charts(charts=report.charts_of(rows)))
    sections = [report.Section(heading=heading, items=items)]
    if len(grids) > 1:
        earlier = [
            report.Picture(image=path, caption=f"Step {_step(path):,}.") for path in spread(grids[:-1], 6)
        ]
        sections.append(report.Section(heading=f"{heading}, earlier samples", items=earlier, folded=True))
    return sections


def _held_out_grid(folder: pathlib.Path) -> np.ndarray | None:
    """Two rows, truth and render, of a few held-out pictures spread over all."""
    stems = sorted(path.name.removesuffix("_truth.png") for path in folder.glob("*_truth.png"))
    stems = [stem for stem in stems if (folder / f"{stem}_render.png").exists()]
    if not stems:
        return None
    columns = {}
    for stem in spread(stems, _HELD_OUT_PICTURES):
        pair = []
        for kind in ("truth", "render"):
            with Image.open(folder / f"{stem}_{kind}.png") as picture:
                pair.append(np.asarray(picture.convert("RGB")))
        columns[stem.replace("_", " ")] = np.stack(pair)
    return image_grid(columns)


def _figure(name: str, value: float) -> str:
    return f"{value:.2f} dB" if "psnr" in name else f"{value:.3f}"


def _step(path: pathlib.Path) -> int:
    return int(path.stem.rpartition("_")[2])


def _read(path: pathlib.Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
