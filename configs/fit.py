"""One person's avatar from a trained head model.

    python fit.py --config=configs/fit.py --prior=WORKDIR --input=DIR --out=DIR        # preset small
    python fit.py --config=configs/fit.py:paper --prior=WORKDIR --input=DIR --out=DIR

tiny   a few steps, for tests.
small  for a head model of configs/gaussian.py:small; two to three minutes on 2 CPU cores.
paper  the paper's step counts: about five minutes on one GPU.

--seconds=S asks for the best avatar in that time instead: schedules are stretched or cut to it.
--config.region=head leaves the trunk out; --config.images=N fits the N most different frames of a longer video;
--config.by_images.ROW.KEY changes what few images allow (the table `fit_settings.ByImages`); and
--config.correct_cameras learns the training frames' head poses and the focal length too.

OUT/metrics.json holds PSNR, SSIM and LPIPS of training and held-out frames, and PSNR of cameras aside.
"""

import dataclasses

import ml_collections

from gphm_jax.errors import InputError
from gphm_jax.fit_settings import FitSettings


def get_config(preset: str = "small") -> ml_collections.ConfigDict:
    """The resolved settings of a preset; every field can be overridden by --config.KEY=VALUE."""
    presets = {"tiny": _tiny, "small": _small, "paper": _paper}
    if preset not in presets:
        raise InputError(f"unknown preset '{preset}' of configs/fit.py: choose one of {', '.join(presets)}")
    config = ml_collections.ConfigDict(dataclasses.asdict(FitSettings()))
    config.preset = preset
    presets[preset](config)
    return config.lock()


def _paper(c: ml_collections.ConfigDict) -> None:
    _careful(c)
    c.finetune.steps = 2000


def _careful(c: ml_collections.ConfigDict) -> None:
    """What one camera needs (the paper names none of it): alpha, the anchor, limits and trust."""
    c.finetune.losses.update(alpha=0.5, anchor=0.01)
    c.finetune.limits.update(position=0.05, log_scale=1.0, color=0.5, quat=0.5, opacity_logit=4.0)
    c.finetune.trust_pixels = 0.25


def _small(c: ml_collections.ConfigDict) -> None:
    _careful(c)
    c.identity.update(steps=100, frames=2, downscale=2)
    c.identity.rates.codes = 2e-2
    c.identity.schedule.update(hold_fraction=0.5, final_fraction=0.1)
    c.identity.losses.update(perceptual=0.0)
    c.finetune.update(steps=600, frames=1)
    # For a few hundred steps; the paper's rates are for 2000.
    c.finetune.rates.update(
        networks=1e-3,
        refine=1e-3,
        positions=5e-4,
        color=2e-2,
        log_scales=1e-2,
        quats=5e-3,
        opacity_logits=4e-2,
    )
    c.finetune.schedule.update(warmup_steps=10, hold_fraction=0.5, final_fraction=0.05)
    c.finetune.losses.update(perceptual=0.1, perceptual_crop=64, face_gain=2.0, eye_gain=3.0)
    # Eight people taught E_nf little about the trunks of others: its codes follow these by a correlation of 0.2.
    c.by_images.one.sway = c.by_images.three.sway = 0.25
    c.by_images.ten.sway = 0.5


def _tiny(c: ml_collections.ConfigDict) -> None:
    _small(c)
    c.identity.steps = 6
    c.finetune.steps = 12
    c.finetune.losses.perceptual = 0.0
    c.evaluation.update(training_frames=2, side_frames=2, lpips=())
    c.preview.frames = 3
    c.log.update(every=2, grid_every=100, checkpoint_every=6)
