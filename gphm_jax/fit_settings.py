"""All settings of a fit as frozen dataclasses."""

from __future__ import annotations

import dataclasses

from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.optim import Rates, Schedule
from gphm_jax.settings import (
    BACKENDS,
    LogSettings,
    check_choices,
    check_crop,
    check_gains,
    check_least,
    require,
)
from gphm_jax.step import LossWeights


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitWeights(LossWeights):
    """Weights of a fit's losses: the photometric and perceptual ones of the paper, and two against holes in the
    evidence of one camera."""

    landmarks: float = 0.0  # not in fitting
    displacement: float = 0.0  # not in fitting
    alpha: float = 0.0  # mean |alpha - mask|: without it, white splats explain what lies outside the head
    anchor: float = 0.0  # squared distance to the identity step's result, in units of `Limits`


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentitySettings:
    """Step 1: a fresh z_id against a frozen head model."""

    steps: int = 100
    frames: int = 1  # of a batch
    rates: Rates = Rates(codes=1e-3)  # inferred
    schedule: Schedule = Schedule()
    losses: FitWeights = FitWeights()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """How far fine-tuning may take a splat from the identity step's result; also the anchor's units."""

    position: float = 1e9  # head lengths; the paper names no limit
    log_scale: float = 1e9  # natural log, both ways
    color: float = 1e9  # each channel
    quat: float = 1e9  # each component
    opacity_logit: float = 1e9


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Step 2: the baked points, f_exp, the refine network and f_dyn."""

    steps: int = 2000
    frames: int = 1
    rates: Rates = Rates(
        networks=1e-4, refine=1e-4, pose_corrections=0.0, positions=1e-3, color=1e-3, log_scales=1e-3, quats=1e-3,
        opacity_logits=1e-3,
    )  # fmt: skip  # nets 1e-4: paper; one rate for the variables, 1e-3: inferred
    schedule: Schedule = Schedule()
    losses: FitWeights = FitWeights()
    limits: Limits = Limits()
    trust_pixels: float = (
        0.0  # a splat moves at half its rate where it fills so many pixels of a mean training frame
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FewImages:
    """With fewer training frames than `below`, f_exp and the refine network are frozen and steps cut in proportion."""

    below: int = 20
    fewest_steps: int = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """The preview video."""

    frames: int = 100  # at most
    fps: int = 12
    orbit_degrees: float = 60.0  # how far aside the second camera swings


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """What is measured at the end."""

    training_frames: int = 20  # at most, evenly spaced
    side_frames: int = 12  # frames whose other cameras are compared, at most, evenly spaced
    lpips: tuple[str, ...] = ("vgg",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitSettings:
    """Everything a fit depends on, besides its prior and its input. Defaults: the paper, or inferred for it."""

    name: str = "fit"
    preset: str = "paper"
    seed: int = 0
    backend: str = "auto"  # kernels: one of settings.BACKENDS
    subject: str = ""  # which identity of the input; empty: it has one
    view: str = ""  # which camera to fit; empty: the first
    held_out_fraction: float = (
        0.1  # of the frames, the last ones, where dataset.json names none and there are ten
    )
    cache_gb: float = 2.0  # decoded images kept in memory
    capture: CaptureSettings = CaptureSettings(expression_images=0)  # of raw footage
    identity: IdentitySettings = IdentitySettings()
    finetune: FinetuneSettings = FinetuneSettings()
    few_images: FewImages = FewImages()
    evaluation: EvaluationSettings = EvaluationSettings()
    preview: PreviewSettings = PreviewSettings()
    log: LogSettings = LogSettings(every=10, grid_every=500, checkpoint_every=200)

    def check(self) -> None:
        """Raises `InputError`, with the key's name, for a value that a fit would not survive."""
        check_least(self, _LEAST)
        self.capture.check("config.capture.")
        check_choices(self, {"backend": BACKENDS})
        check_gains(self.identity.losses, "identity.losses")
        check_gains(self.finetune.losses, "finetune.losses")
        fraction = self.held_out_fraction
        require(0.0 <= fraction < 1.0, "held_out_fraction", fraction, "it must lie in [0, 1), 1 not included")
        for field in dataclasses.fields(self.finetune.limits):
            limit = getattr(self.finetune.limits, field.name)
            require(limit > 0.0, f"finetune.limits.{field.name}", limit, "it must be positive")
        for net in self.evaluation.lpips:
            require(net in ("vgg", "alex"), "evaluation.lpips", self.evaluation.lpips, "choose of vgg and alex")

    def check_crops(self, image_size: int) -> None:
        """The same for the perceptual losses, which compare pictures of the head model's size."""
        check_crop(self.identity.losses, image_size, "identity.losses")
        check_crop(self.finetune.losses, image_size, "finetune.losses")


# The least value of each key.
_LEAST = {
    "seed": 0,
    "cache_gb": 0,
    "identity.steps": 1,
    "identity.frames": 1,
    "identity.schedule.warmup_steps": 0,
    "finetune.steps": 1,
    "finetune.frames": 1,
    "finetune.schedule.warmup_steps": 0,
    "finetune.trust_pixels": 0,
    "few_images.fewest_steps": 1,
    "evaluation.training_frames": 1,
    "evaluation.side_frames": 0,
    "preview.frames": 1,
    "preview.fps": 1,
    "log.every": 1,
    "log.grid_every": 1,
    "log.checkpoint_every": 1,
}
