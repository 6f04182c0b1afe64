"""Trains a head model: the guide, the transfer, the Gaussians, and what they are worth on held-out cameras.

python train.py --config=configs/gaussian.py[:PRESET] [--config.KEY=VALUE ...] [--workdir=DIR]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import flags, logging
from flax import nnx
from ml_collections import config_flags
from tqdm import tqdm

from gphm_jax import loop, results, runtime
from gphm_jax.data.loading import training_batches
from gphm_jax.data.sampler import BatchSampler, evaluation_batches
from gphm_jax.errors import run_main
from gphm_jax.footage import batch_options, first_frames, open_footage, rest_poses
from gphm_jax.guide import GuideModel
from gphm_jax.guide_start import initialize_codes, initialize_sdf
from gphm_jax.logs import RunLog
from gphm_jax.losses import check_eyes
from gphm_jax.nets import use_fused_points
from gphm_jax.optim import adam
from gphm_jax.paths import expanded
from gphm_jax.perceptual import load_lpips
from gphm_jax.run import Run
from gphm_jax.settings import Settings, StageSettings, read_flag
from gphm_jax.sharding import check_batch, device_mesh, global_batch, state_sharding
from gphm_jax.stages import (
    GAUSSIANS,
    GUIDE,
    Stage,
    build_gaussians,
    build_guide,
    describe,
    rebuild,
    start_surface,
)
from gphm_jax.state import Checkpoints, TrainState, abstract_like, create_state
from gphm_jax.step import StepContext, compile_step, make_step
from gphm_jax.workdir import Workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/gaussian.py[:PRESET] or configs/mesh.py[:PRESET]"
)
_WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives; default runs/<config>-<preset>")


def main(argv: Sequence[str]) -> None:
    """The order of events."""
    del argv
    settings = read_flag(Settings, _CONFIG)
    runtime.start()
    path = expanded(_WORKDIR.value or f"runs/{settings.name}-{settings.preset}")
    workdir = Workdir.open(path, settings)
    if workdir.metrics.exists():
        logging.info("done already: %s and %s", workdir.metrics, path / "report.html")
        return
    devices = device_mesh(settings.fsdp)
    footage = open_footage(settings, path.parent / "data")
    stages = {"stage1": settings.stage1} | ({"stage2": settings.stage2} if settings.gaussian_stage else {})
    for name, stage in stages.items():
        check_batch(devices, stage.identities, key=f"config.{name}.identities")
        gain, count = stage.losses.eye_gain, footage.dataset.landmark_count
        check_eyes(gain, count, name=f"config.{name}.losses.eye_gain")
    asks = any(stage.losses.perceptual for stage in stages.values())
    nets = ("vgg", "alex") if footage.held_out else ("vgg",) if asks else ()
    with RunLog(path) as log:
        run = Run(
            settings=settings,
            workdir=workdir,
            footage=footage,
            log=log,
            devices=devices,
            lpips={net: load_lpips(net) for net in nets},
        )
        guide, state = train_stage(run, GUIDE, settings.stage1, lambda: first_guide(run))
        figures = {"stage1": results.stage_figures(run, GUIDE, guide, state)}
        last = (GUIDE, guide, state)
        if settings.gaussian_stage:
            trained = nnx.merge(guide, state.params, state.fixed)
            gaussians, state = train_stage(
                run, GAUSSIANS, settings.stage2, lambda: build_gaussians(trained, settings)
            )
            figures["stage2"] = results.stage_figures(run, GAUSSIANS, gaussians, state)
            last = (GAUSSIANS, gaussians, state)
        results.conclude(run, *last, figures)
    logging.info("done: %s and %s", workdir.metrics, path / "report.html")


def first_guide(run: Run) -> GuideModel:
    """A guide with its first surface, whose expressions and motion follow landmarks and head poses."""
    footage, settings = run.footage, run.settings
    guide = build_guide(settings, footage.subject)
    masks = (batch for _, batch in evaluation_batches(footage.pixels, first_frames(footage.training)))
    sdf = start_surface(guide, settings, masks)
    error = initialize_sdf(guide, sdf, steps=settings.start.sdf_steps, seed=settings.seed)
    logging.info("first surface: %s, mean SDF error %.4f", settings.start.sdf, error)
    if settings.start.code_steps:
        first_codes(run, guide, sdf)
    return guide


def first_codes(run: Run, guide: GuideModel, sdf: jax.Array) -> None:
    """Has a guide read expression and motion off landmarks and head poses, before it draws a picture."""
    settings, footage = run.settings, run.footage
    start, stage = settings.start, settings.stage1
    options = dataclasses.replace(
        batch_options(settings, stage),
        identities_per_batch=start.code_identities,
        frames_per_identity=start.code_frames,
    )
    # Every process takes the whole batch: the same start everywhere, and nothing to exchange.
    sampler = BatchSampler(
        footage.dataset, options, seed=settings.seed, selection=footage.training, pixels=footage.pixels
    )
    batches = tqdm(
        training_batches(
            sampler, start_step=0, stop_step=start.code_steps, processes=settings.data.processes
        ),
        desc="codes",
        total=start.code_steps,
        unit="step",
    )
    optimizer = adam(stage.rates, stage.schedule, steps=start.code_steps)
    errors = initialize_codes(
        guide,
        sdf,
        rest_poses(footage),
        batches,
        optimizer,
        seed=settings.seed,
        eye_gain=stage.losses.eye_gain,
    )
    logging.info(
        "first codes: landmarks %.4f and motion %.4f head lengths off", errors.landmarks, errors.motion
    )


def train_stage(
    run: Run, stage: Stage, options: StageSettings, build: Callable[[], nnx.Module]
) -> tuple[Any, TrainState]:
    """Trains a stage to its end, from its last checkpoint if there is one: (graph definition, state)."""
    checkpoints = Checkpoints(run.workdir.checkpoints(stage.name))
    found = checkpoints.latest() is not None
    model = rebuild(stage, checkpoints.meta()) if found else build()
    if run.devices.size == 1:
        use_fused_points(model, run.settings.backend)
    meta = describe(model, run.settings, run.footage.subject)
    optimizer = adam(options.rates, options.schedule, steps=options.steps)
    graphdef, state = create_state(model, optimizer)
    placed = state_sharding(run.devices, state)
    state = checkpoints.restore(abstract_like(state, placed)) if found else jax.device_put(state, placed)
    context = StepContext(weights=options.losses, devices=run.devices, backend=run.settings.backend)

    def step_at(downscale: int) -> Callable[..., Any]:
        # LPIPS asks for detail that small pictures have lost, and for a third of their step.
        weights = dataclasses.replace(options.losses, perceptual=0.0) if downscale > 1 else options.losses
        scaled = dataclasses.replace(context, downscale=downscale, weights=weights)
        step = make_step(graphdef, optimizer, stage.losses, scaled, seed=run.settings.seed)
        return compile_step(step, state, run.devices)

    small, whole = step_at(options.downscale), step_at(1)
    sampler = BatchSampler(
        run.footage.dataset,
        batch_options(run.settings, options),
        seed=run.settings.seed,
        selection=run.footage.training,
        pixels=run.footage.pixels,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = training_batches(
        sampler,
        start_step=int(state.step),
        stop_step=options.steps,
        processes=run.settings.data.processes,
    )
    observer = loop.Observer(
        stage=stage.name,
        log=run.log,
        settings=run.settings.log,
        checkpoints=checkpoints,
        meta=meta,
        draw=results.sample_drawer(run, stage, graphdef),
    )
    state = loop.run(
        lambda step: small if step < options.downscale_steps else whole,
        state,
        map(global_batch(run.devices), batches),
        run.lpips.get("vgg"),
        steps=options.steps,
        observer=observer,
    )
    checkpoints.close()
    return graphdef, state


if __name__ == "__main__":
    run_main(main)
