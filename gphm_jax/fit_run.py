"""Running the steps of a fit in its folder: resuming, logging, and the figures of each."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from gphm_jax import fit_results, loop
from gphm_jax.avatar_model import AvatarModel
from gphm_jax.data.loading import training_batches
from gphm_jax.data.sampler import BatchSampler
from gphm_jax.fit_footage import FitFootage, fit_batches
from gphm_jax.fit_pace import Clock, Pace
from gphm_jax.fit_settings import FitSettings
from gphm_jax.fitting import (
    FinetuneFit,
    FitStep,
    FrameCodes,
    IdentityFit,
    finetune_step,
    identity_step,
    visibility,
)
from gphm_jax.gaussians import GaussianModel
from gphm_jax.logs import RunLog, read_metrics
from gphm_jax.nets import use_fused_points
from gphm_jax.settings import Settings
from gphm_jax.state import Checkpoints, TrainState, abstract_like
from gphm_jax.types import Batch, Render
from gphm_jax.workdir import claim

FREE = ("log", "backend", "cache_gb", "evaluation", "preview")  # as `gphm_jax.workdir.FREE`
_ENDLESS = 10**9  # batches; those that are not used are not made
_MARKS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
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
    clock: Clock


def is_done(
    out: pathlib.Path,
    settings: FitSettings,
    prior: pathlib.Path,
    footage: pathlib.Path,
    seconds: float | None = None,
) -> bool:
    """Makes the folder of a fit, or finds it again; True when its figures are there already.

    Raises `InputError` as `workdir.claim` does.
    """
    sources = {
        "prior": str(prior.resolve()),
        "input": str(footage.resolve()),
        "seconds": "" if seconds is None else f"{seconds:g}",
    }
    return claim(out, settings, free=FREE, flag="--out", sources=sources)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Waypoint:
    """What a step had made of its module, and when."""

    seconds: float  # on the fit's clock
    module: Any


def run_step(fit: Fit, step: FitStep, pace: Pace, frames: int) -> list[Waypoint]:
    """Runs a step for as long as its pace says, from its last checkpoint if there is one.

    Returns the module as it began, at `_MARKS` of its length, and as it was in the end. Against the clock no sample
    grids are drawn.
    """
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
        if pace.timed:
            return
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
    waypoints: list[Waypoint] = []
    fixed = jax.tree.map(jnp.copy, state.fixed)  # a checkpoint's own, not `step.state.fixed`

    def keep(state: TrainState) -> None:
        # A copy, since the next step reuses its buffers; waited for, since the clock is read.
        params = jax.block_until_ready(jax.tree.map(jnp.copy, state.params))
        module = nnx.merge(step.graphdef, params, fixed)
        waypoints.append(Waypoint(seconds=fit.clock.elapsed(), module=module))

    def replan(state: TrainState, done: int) -> int:
        if pace.timed:
            jax.block_until_ready(state)
        length = pace(done)
        if length > done and sum(mark * length <= done for mark in _MARKS) >= len(waypoints):
            keep(state)
        return length

    done = int(state.step)
    keep(state)
    if pace.begin(done) > done:
        # Compiled here, and not by its first call, so that the pace is that of steps alone.
        compiled = (
            jax.jit(step.advance, donate_argnums=0)
            .lower(state, sampler.batch(done), fit.perceptual, steps=np.int32(pace.length))
            .compile()
        )
        state = loop.run(
            lambda _: functools.partial(compiled, steps=np.int32(pace.length)),
            state,
            training_batches(sampler, start_step=done, stop_step=_ENDLESS if pace.timed else pace.length),
            fit.perceptual,
            steps=max(pace.begin(done), done + 1),
            observer=observer,
            replan=replan,
        )
        keep(state)
    checkpoints.close()
    return waypoints


def find_identity(fit: Fit, prior: GaussianModel, codes: FrameCodes) -> list[Waypoint]:
    """Step 1, as `run_step` gives it: modules are `IdentityFit`.

    What an interrupted step 2 began from stays.
    """
    settings, options = fit.settings, fit.settings.identity
    step = identity_step(IdentityFit(prior, codes), options, backend=settings.backend, seed=settings.seed)
    most = 0 if _steps_saved(fit.out, "finetune") else options.steps
    pace = Pace(fit.clock, steps=options.steps, share=options.share, most=most)
    return run_step(fit, step, pace, options.frames)


def finetune(fit: Fit, start: AvatarModel, codes: FrameCodes) -> list[Waypoint]:
    """Step 2 from a baked avatar, as `run_step` gives it: modules are `FinetuneFit`."""
    settings, options, footage = fit.settings, fit.settings.finetune, fit.footage
    use_fused_points(start, settings.backend)
    _, latitude = settings.by_images.row(len(footage.training))
    module = FinetuneFit(start, codes, options.limits, freedom=latitude.freedom)
    filled = visibility(module, footage.pixels, footage.training, backend=settings.backend)
    module.trust_what_is_seen(filled, options.trust_pixels)
    step = finetune_step(
        module,
        options,
        networks=latitude.moves,
        cameras=settings.correct_cameras,
        backend=settings.backend,
        seed=settings.seed,
    )
    pace = Pace(fit.clock, steps=max(1, round(latitude.length * options.steps)))
    return run_step(fit, step, pace, options.frames)


def corrected(fit: Fit, fitted: FinetuneFit) -> Fit:
    """The fit with what it learnt of its footage applied to that."""
    if not fit.settings.correct_cameras:
        return fit
    poses, log_focal = np.asarray(fitted.pose_corrections[...]), float(fitted.log_focal[...])
    return dataclasses.replace(fit, footage=fit.footage.corrected(poses, log_focal))


def step_figures(fit: Fit, name: str) -> dict[str, float | None]:
    """Steps, seconds (over all interruptions) and the last logged training PSNR."""
    rows = [row for row in read_metrics(fit.out) if row["stage"] == name]
    if not rows:  # there was no time for it
        return {"steps": 0, "seconds": 0.0, "psnr": None}
    return {
        "steps": rows[-1]["step"],
        "seconds": sum(row["seconds"] for row in rows),
        "psnr": rows[-1]["psnr"],
    }


def seconds_used(out: pathlib.Path) -> float:
    """What the steps of an interrupted fit in `out` took, up to where they go on."""
    saved = {name: _steps_saved(out, name) for name in _RATES}
    return sum(row["seconds"] for row in read_metrics(out) if row["step"] <= saved[row["stage"]])


def _steps_saved(out: pathlib.Path, name: str) -> int:
    """How many steps of a part the last complete checkpoint holds."""
    found = (out / "checkpoints" / name).glob("*")
    return max((int(path.name) for path in found if path.name.isdecimal()), default=0)
