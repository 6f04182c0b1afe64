"""Fits one person's avatar: identity, fine-tuning, and what it is worth on frames and cameras it never saw.

    python fit.py --config=configs/fit.py --prior=WORKDIR --input=VIDEO_OR_IMAGES --out=DIR

`--input` is a video, a photo, a folder of photos, a prepared identity folder, or a dataset (`--config.subject` picks
its person). Raw footage is prepared in DIR/footage first.
"""

from __future__ import annotations

import math
import pathlib
import shutil
from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags
from tqdm import tqdm

from gphm_jax import fit_results, runtime
from gphm_jax.avatar import Avatar
from gphm_jax.avatar_model import AvatarModel, bake, spec_of
from gphm_jax.errors import InputError, run_main
from gphm_jax.files import write_json
from gphm_jax.fit_footage import open_fit_footage
from gphm_jax.fit_input import prepared
from gphm_jax.fit_pace import Clock
from gphm_jax.fit_region import head_footage, head_model
from gphm_jax.fit_run import (
    Fit,
    corrected,
    find_identity,
    finetune,
    is_done,
    seconds_used,
    step_figures,
)
from gphm_jax.fit_settings import FitSettings
from gphm_jax.fitting import FrameCodes, IdentityFit, encode_frames, steady
from gphm_jax.gaussians import GaussianModel
from gphm_jax.logs import RunLog
from gphm_jax.losses import check_eyes
from gphm_jax.nets import use_fused_points
from gphm_jax.paths import expanded
from gphm_jax.perceptual import load_lpips
from gphm_jax.provenance import COMPOSITE, Statement
from gphm_jax.scores import ScoreRegressor, load_scores
from gphm_jax.settings import read_flag
from gphm_jax.stages import load_prior
from gphm_jax.video import write_video

_CONFIG = config_flags.DEFINE_config_file("config", None, "configs/fit.py[:PRESET]")
_PRIOR = flags.DEFINE_string("prior", None, "the workdir of a trained head model")
_INPUT = flags.DEFINE_string("input", None, "a video, photos, a prepared identity folder, or a dataset")
_OUT = flags.DEFINE_string("out", None, "where the avatar and its figures go")
_SECONDS = flags.DEFINE_float(
    "seconds",
    None,
    "the best avatar in that time: from footage and head model in memory to the last step. Preparing raw footage, "
    "compiling (once for each head model), writing the avatar, figures, preview and report come on top",
    lower_bound=0.0,
)
flags.register_validator("seconds", lambda seconds: seconds is None or math.isfinite(seconds), "it must be finite")


def main(argv: Sequence[str]) -> None:
    """Reads the flags and starts up."""
    del argv
    settings, prior_path, input_path, out = read_flags()
    runtime.start()
    fit_person(settings, prior_path, input_path, out, seconds=_SECONDS.value)


def fit_person(
    settings: FitSettings,
    prior_path: pathlib.Path,
    input_path: pathlib.Path,
    out: pathlib.Path,
    *,
    seconds: float | None = None,
) -> None:
    """The order of events."""
    prior, prior_settings, _ = load_prior(prior_path)
    scores = load_scores(prior_path)
    settings.check_sizes(prior_settings)
    use_fused_points(prior, settings.backend)
    footage = open_fit_footage(prepared(input_path, out, settings.capture), settings, prior_settings)
    count = len(footage.training[0].frame.landmarks)
    for name, step in (("identity", settings.identity), ("finetune", settings.finetune)):
        check_eyes(step.losses.eye_gain, count, name=f"config.{name}.losses.eye_gain")
    if is_done(out, settings, prior_path, input_path, seconds):
        logging.info("done already: %s and %s", out / "avatar", out / "report.html")
        return
    asks = settings.identity.losses.perceptual or settings.finetune.losses.perceptual
    perceptual = load_lpips("vgg") if asks else None
    with RunLog(out) as log, Clock(seconds, used=seconds_used(out)) as clock:
        codes = encode_frames(prior.networks, footage.pixels, footage.driven)
        _, latitude = settings.by_images.row(len(footage.training))
        codes = steady(prior.networks, codes, footage.training, latitude.sway)
        if settings.region == "head":
            footage = head_footage(footage, prior, codes, backend=settings.backend)
            prior = head_model(prior)
        fit = Fit(
            settings=settings,
            prior=prior_settings,
            out=out,
            footage=footage,
            log=log,
            perceptual=perceptual,
            clock=clock,
        )
        fit, avatar, figures = fit_avatar(fit, prior, codes, scores)
        conclude(fit, avatar, codes, figures)
    logging.info("done: %s and %s", out / "avatar", out / "report.html")


def read_flags() -> tuple[FitSettings, pathlib.Path, pathlib.Path, pathlib.Path]:
    """The settings and the three paths (prior, input, out); what is missing is an `InputError`."""

    def path_of(flag: flags.FlagHolder, example: str) -> pathlib.Path:
        if not flag.value:
            raise InputError(f"--{flag.name} is missing: add --{flag.name}={example}")
        return expanded(flag.value)

    paths = path_of(_PRIOR, "WORKDIR"), path_of(_INPUT, "DIR"), path_of(_OUT, "DIR")
    return read_flag(FitSettings, _CONFIG), *paths


def fit_avatar(
    fit: Fit, prior: GaussianModel, codes: FrameCodes, scores: ScoreRegressor | None
) -> tuple[Fit, Avatar, dict[str, Any]]:
    """Both steps, and the saved avatar: (the fit with its footage corrected, avatar, figures so far)."""
    settings = fit.settings
    spec = spec_of(prior, fit.prior)
    identities = find_identity(fit, prior, codes)

    def baked(identity: IdentityFit) -> AvatarModel:
        return bake(prior, identity.code(), spec, seed=settings.seed)

    fits = finetune(fit, baked(identities[-1].module), codes)
    fit = corrected(fit, fits[-1].module)

    def avatar_of(model: AvatarModel) -> Avatar:
        return fit_results.make_avatar(
            model, spec, codes, fit.footage, scores=scores, backend=settings.backend
        )

    avatar_of(fits[-1].module.avatar).save(fit.out / "avatar")
    seconds = fit.clock.elapsed()
    course = [(point.seconds, baked(point.module)) for point in identities[:-1]]
    course += [(point.seconds, point.module.avatar) for point in fits]
    figures = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "training_frames": len(fit.footage.training),
        "by_images": settings.by_images.row(len(fit.footage.training))[0],
        "seconds": seconds,
        "compiling_seconds": fit.clock.compiling,
        "identity": step_figures(fit, "identity"),
        "finetune": step_figures(fit, "finetune"),
        "progress": fit_results.progress(((t, avatar_of(model)) for t, model in course), codes, fit.footage),
    }
    # What is evaluated is what lies on disk.
    return fit, Avatar.load(fit.out / "avatar", backend=settings.backend), figures


def conclude(fit: Fit, avatar: Avatar, codes: FrameCodes, figures: dict[str, Any]) -> None:
    """Figures, preview and report; metrics.json last, since it says that the fit is done."""
    figures |= fit_results.evaluate_fit(
        avatar, codes, fit.footage, fit.settings, lambda items, text: tqdm(items, desc=text, unit="frame")
    )
    pictures = fit_results.preview_pictures(avatar, codes, fit.footage, fit.settings)
    shown = iter(tqdm(pictures, desc="preview", unit="frame"))
    write_video(
        fit.out / "preview.mp4",
        shown,
        fps=fit.settings.preview.fps,
        statement=Statement(source=COMPOSITE),
    )
    figures["peak_memory_bytes"] = runtime.peak_memory_bytes()
    fit_results.write_fit_report(fit.out, figures, avatar, codes, fit.footage)
    write_json(fit.out / "metrics.json", figures)
    shutil.rmtree(fit.out / "checkpoints")  # the avatar holds all that is needed


if __name__ == "__main__":
    run_main(main)
