"""Running the steps of a fit in its folder: resuming, logging, and the figures of each."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from gphm_jax import fit_results, loop
from gphm_jax.data.loading import training_batches
from gphm_jax.data.sampler import BatchSampler
from gphm_jax.fit_footage import FitFootage, fit_batches
from gphm_jax.fit_settings import FitSettings
from gphm_jax.fitting import FitStep
from gphm_jax.logs import RunLog, read_metrics
from gphm_jax.settings import Settings
from gphm_jax.state import Checkpoints, TrainState, abstract_like
from gphm_jax.types import Batch, Render
from gphm_jax.workdir import claim

FREE = ("log", "backend", "cache_gb", "evaluation", "preview")  # as `gphm_jax.workdir.FREE`
_RATES = {"identity": "codes", "finetune": "networks"}  # the group of each step that diverges first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What the steps share."""

    settings: FitSettings
    prior: Settings
    out: pathlib.Path
    footage: FitFootage
    log: RunLog
    perceptual: Any


def is_done(out: pathlib.Path, settings: FitSettings, prior: pathlib.Path, footage: pathlib.Path) -> bool:
    """Makes the folder of a fit, or finds it again; True when its figures are there already.

    Raises `InputError` as `workdir.claim` does.
    """
    sources = {"prior": str(prior.resolve()), "input": str(footage.resolve())}
    return claim(out, settings, free=FREE, flag="--out", sources=sources)


def run_step(fit: Fit, step: FitStep, frames: int) -> Any:
    """Runs a step to its end, from its last checkpoint if there is one; returns the fitted module."""
    checkpoints = Checkpoints(fit.out / "checkpoints" / step.name)
    found = checkpoints.latest() is not None
    # A copy: the compiled step reuses its state's buffers, and some are the head model's own.
    state = checkpoints.restore(abstract_like(step.state)) if found else jax.tree.map(jnp.copy, step.state)
    sampler = BatchSampler(
        fit.footage.dataset,
        fit_batches(frames, fit.prior),
        seed=fit.settings.seed,
        selection=fit.footage.training,
        pixels=fit.footage.pixels,
    )

    @jax.jit
    def picture(params: Any, fixed: Any, batch: Batch) -> Render:
        return nnx.merge(step.graphdef, params, fixed).picture(batch, fit.settings.backend)

    def draw(state: TrainState, done: int) -> None:
        columns = fit_results.sample_columns(
            lambda batch: picture(state.params, state.fixed, batch), fit.footage
        )
        fit.log.images(step.name, done, columns)

    observer = loop.Observer(
        stage=step.name,
        log=fit.log,
        settings=fit.settings.log,
        checkpoints=checkpoints,
        meta={},
        draw=draw,
        rates=_RATES[step.name],
        folder_flag="--out",
    )
    advance = jax.jit(step.advance, donate_argnums=0)
    state = loop.run(
        lambda _: advance,
        state,
        training_batches(sampler, start_step=int(state.step), stop_step=step.steps),
        fit.perceptual,
        steps=step.steps,
        observer=observer,
    )
    checkpoints.close()
    return nnx.merge(step.graphdef, state.params, state.fixed)


def step_figures(fit: Fit, name: str) -> dict[str, float]:
    """Steps, seconds (over all interruptions) and the last logged training PSNR."""
    rows = [row for row in read_metrics(fit.out) if row["stage"] == name]
    return {
        "steps": rows[-1]["step"],
        "seconds": sum(row["seconds"] for row in rows),
        "psnr": rows[-1]["psnr"],
    }
