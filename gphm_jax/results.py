"""What a run shows of itself: sample grids while it trains; figures and the report at its end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from gphm_jax import runtime
from gphm_jax.data.sampler import evaluation_batches, spread
from gphm_jax.evaluation import evaluate
from gphm_jax.heads import FILE as HEADS_FILE
from gphm_jax.heads import save_frames
from gphm_jax.logs import read_metrics
from gphm_jax.run import Run
from gphm_jax.score_fit import fit_to_footage
from gphm_jax.scores import FILE as SCORES_FILE
from gphm_jax.stages import GAUSSIANS, Stage, host_values, make_renderer
from gphm_jax.state import TrainState
from gphm_jax.training_report import write_training_report

GRID_ROWS = 6  # samples of a grid
QUICK_FRAMES = 8  # frames behind the quick figures of a stage


def sample_drawer(run: Run, stage: Stage, graphdef: Any) -> Callable[[TrainState, int], None]:
    """Draws truth, coarse, fine and alpha of a few fixed training and held-out pictures."""

    def draw(state: TrainState, step: int) -> None:
        render = renderer(run, stage, graphdef, state)
        if not runtime.is_leader():
            return
        columns: dict[str, list[np.ndarray]] = {"truth": [], "coarse": [], "fine": [], "alpha": []}
        for picks in (
            spread(run.footage.training, GRID_ROWS // 2),
            spread(run.footage.held_out, GRID_ROWS // 2),
        ):
            # One view of each frame, another for each row, so that the rows show all sides.
            chosen = [
                dataclasses.replace(item, views=(item.views[(2 * n + 1) % len(item.views)],))
                for n, item in enumerate(picks)
            ]
            for _, batch in evaluation_batches(run.footage.pixels, chosen, references=run.footage.training):
                picture = render(batch)
                for name, image in zip(
                    columns, (batch.image, picture.coarse, picture.fine, picture.alpha), strict=True
                ):
                    columns[name].append(np.clip(np.asarray(image)[0, 0, 0], 0.0, 1.0))
        run.log.images(stage.name, step, {name: np.stack(images) for name, images in columns.items()})

    return draw


def stage_figures(run: Run, stage: Stage, graphdef: Any, state: TrainState) -> dict[str, float]:
    """Steps, training seconds (over all interruptions) and PSNR of a finished stage, over a few frames.

    Seen by held-out cameras, or by training cameras where there are no others.
    """
    rows = [row for row in read_metrics(run.workdir.path) if row["stage"] == stage.name]
    figures = {"steps": int(state.step), "seconds": sum(row["seconds"] for row in rows)}
    side = spread(run.footage.held_out or run.footage.training, QUICK_FRAMES)
    render = renderer(run, stage, graphdef, state)
    if not runtime.is_leader():
        return figures
    values = evaluate(
        render,
        run.footage.pixels,
        side,
        run.footage.training,
        lpips_weights={},
    )
    return figures | {"psnr": values["psnr"], "psnr_coarse": values["psnr_coarse"]}


def conclude(run: Run, stage: Stage, graphdef: Any, state: TrainState, figures: dict[str, Any]) -> None:
    """Fits the map from expression scores and evaluates all held-out cameras.

    Writes scores.npz, heads.npz, heldout/, report.html and, last, metrics.json.
    """
    render = renderer(run, stage, graphdef, state)
    model = nnx.merge(graphdef, *host_values((state.params, state.fixed)))
    if not runtime.is_leader():
        return
    figures = {
        "config": f"{run.settings.name}:{run.settings.preset}",
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **figures,
    }
    if stage is GAUSSIANS:
        footage = run.footage
        scores = fit_to_footage(model, footage.pixels, footage.training)
        if scores is not None:
            scores.save(run.workdir.path / SCORES_FILE)
            figures["expression_scores"] = scores.provenance
        heads = run.workdir.path / HEADS_FILE
        save_frames(heads, model.networks, footage.pixels, footage.training, scores)
    if run.footage.held_out:
        figures["heldout_views"] = evaluate(
            render,
            run.footage.pixels,
            run.footage.held_out,
            run.footage.training,
            lpips_weights=run.lpips,
            lpips_every=run.settings.evaluation.lpips_every,
            folder=run.workdir.path / "heldout",
            progress=lambda items, total: tqdm(items, desc="held-out cameras", total=total, unit="frame"),
        )
    figures["peak_memory_bytes"] = runtime.peak_memory_bytes()
    dataset = run.footage.dataset
    data = f"{len(dataset.identities)} identities, {dataset.num_images} images"
    write_training_report(run.workdir.path, figures, data=data)
    run.workdir.finish(figures)


def renderer(run: Run, stage: Stage, graphdef: Any, state: TrainState) -> Callable[..., Any]:
    """A compiled renderer of the state as it is now; every process of a cluster run must ask for it together."""
    return make_renderer(stage, graphdef, state, backend=run.settings.backend)
