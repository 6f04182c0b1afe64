"""All settings of a fit as frozen dataclasses."""

from __future__ import annotations

import dataclasses
import math

from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.optim import Rates, Schedule
from gphm_jax.settings import (
    BACKENDS,
    LogSettings,
    Settings,
    check_choices,
    check_crop,
    check_gains,
    check_least,
    require,
)
from gphm_jax.step import LossWeights

NETWORKS = ("expression", "motion", "refine", "dynamics")  # of an avatar, that fine-tuning may move


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitWeights(LossWeights):
    """Weights of a fit's losses: the photometric and perceptual ones of the paper, and two against holes in the
    evidence of one camera."""

    landmarks: float = 0.0  # not in fitting
    displacement: float = 0.0  # not in fitting
    alpha: float = 0.0  # mean |alpha - mask|: without it, white splats explain what lies outside the head
    anchor: float = 0.0  # squared distance to the identity step's result, in units of `Limits`
    correction: float = 1.0  # mean square of what is learnt about a frame's head pose, and of the focal length's log


@dataclasses.dataclass(frozen=True, kw_only=True)
class IdentitySettings:
    """Step 1: a fresh z_id against a frozen head model."""

    steps: int = 100
    share: float = 0.4  # of a time budget, at most: fewer steps are then taken
    frames: int = 1  # of a batch
    downscale: int = 1  # pictures are compared at 1 / downscale of their size
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
    """Step 2: the baked points, and the networks that `ByImages` lets move."""

    steps: int = 2000
    frames: int = 1
    rates: Rates = Rates(
        networks=1e-4, refine=1e-4, pose_corrections=1e-3, focal=1e-3, positions=1e-3, color=1e-3, log_scales=1e-3,
        quats=1e-3, opacity_logits=1e-3,
    )  # fmt: skip  # nets 1e-4: paper; one rate for the variables, 1e-3: inferred, also for cameras
    schedule: Schedule = Schedule()
    losses: FitWeights = FitWeights()
    limits: Limits = Limits()
    trust_pixels: float = (
        0.0  # a splat moves at half its rate where it fills so many pixels of a mean training frame
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latitude:
    """What so many training images let fine-tuning do."""

    up_to: int  # images; 0: any number
    length: float = 1.0  # of finetune.steps
    moves: tuple[str, ...] = NETWORKS
    freedom: float = 1.0  # times finetune.limits of all but colour; the anchor pulls by its inverse square
    sway: float = 1.0  # of how far motion codes go from their mean: less where E_nf cannot read strangers


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByImages:
    """The table of few and many images: its first row that reaches their number holds.

    With few images most networks stay as they are and steps are fewer (paper 3.5, which gives no numbers). f_nf moves
    with any number, unlike in the paper: 85 % of the error of three images lay in the place of the trunk, which the
    encoder reads off clothes that it never saw.
    """

    one: Latitude = Latitude(up_to=1, length=0.25, moves=("motion",), freedom=0.3)
    three: Latitude = Latitude(up_to=5, length=0.4, moves=("motion",), freedom=0.4)
    ten: Latitude = Latitude(up_to=15, length=0.6, moves=("motion", "dynamics"), freedom=0.6)
    many: Latitude = Latitude(up_to=0)

    def row(self, images: int) -> tuple[str, Latitude]:
        """The name of the row for so many images, and the row."""
        rows = [(field.name, getattr(self, field.name)) for field in dataclasses.fields(self)]
        return next(((name, row) for name, row in rows if images <= row.up_to or not row.up_to), rows[-1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewSettings:
    """The preview video."""

    frames: int = 100  # at most
    fewest: int = 24
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
    region: str = "shoulders"  # or "head": without the trunk
    # Learn each training frame's head pose and the focal length. Not by default: on a tracked clip of 48 frames
    # held-out ones, which keep their tracked poses, lost 2.1 dB of 23.3 by it (training frames gained 0.3).
    correct_cameras: bool = False
    images: int = 0  # at most so many training frames, of the most different views; 0: all
    cache_gb: float = 2.0  # decoded images kept in memory
    capture: CaptureSettings = CaptureSettings(expression_images=0)  # of raw footage
    identity: IdentitySettings = IdentitySettings()
    finetune: FinetuneSettings = FinetuneSettings()
    by_images: ByImages = ByImages()
    evaluation: EvaluationSettings = EvaluationSettings()
    preview: PreviewSettings = PreviewSettings()
    log: LogSettings = LogSettings(every=10, grid_every=500, checkpoint_every=200)

    def check(self) -> None:
        """Raises `InputError`, with the key's name, for a value that a fit would not survive."""
        check_least(self, _LEAST)
        self.capture.check("config.capture.")
        check_choices(self, _CHOICES)
        check_gains(self.identity.losses, "identity.losses")
        check_gains(self.finetune.losses, "finetune.losses")
        share = self.identity.share
        require(0.0 <= share <= 1.0, "identity.share", share, "it must lie between 0 and 1")
        fraction = self.held_out_fraction
        require(0.0 <= fraction < 1.0, "held_out_fraction", fraction, "it must lie in [0, 1), 1 not included")
        for field in dataclasses.fields(self.finetune.limits):
            limit = getattr(self.finetune.limits, field.name)
            require(limit > 0.0, f"finetune.limits.{field.name}", limit, "it must be positive")
        for field in dataclasses.fields(self.by_images):
            row, where = getattr(self.by_images, field.name), f"by_images.{field.name}"
            require(row.up_to >= 0, f"{where}.up_to", row.up_to, "it must be at least 0")
            require(0.0 < row.length < math.inf, f"{where}.length", row.length, "it must be positive and finite")
            require(0.0 <= row.sway <= 1.0, f"{where}.sway", row.sway, "it must lie in [0, 1]")
            require(0.0 < row.freedom < math.inf, f"{where}.freedom", row.freedom, "it must be positive and finite")
            require(set(row.moves) <= set(NETWORKS), f"{where}.moves", row.moves, f"choose of {', '.join(NETWORKS)}")
        for net in self.evaluation.lpips:
            require(net in ("vgg", "alex"), "evaluation.lpips", self.evaluation.lpips, "choose of vgg and alex")

    def check_sizes(self, prior: Settings) -> None:
        """The same for what must fit the size of the head model's pictures."""
        size, unit = prior.data.image_size, 4 * prior.networks.refine_patch
        factor = self.identity.downscale
        rule = f"it must divide the head model's pictures of {size} pixels into multiples of {unit}"
        require(size % (unit * factor) == 0, "identity.downscale", factor, rule)
        check_crop(self.identity.losses, size // factor, "identity.losses")
        check_crop(self.finetune.losses, size, "finetune.losses")


_CHOICES = {"backend": BACKENDS, "region": ("shoulders", "head")}
# The least value of each key.
_LEAST = {
    "seed": 0,
    "images": 0,
    "cache_gb": 0,
    "identity.steps": 1,
    "identity.frames": 1,
    "identity.downscale": 1,
    "identity.schedule.warmup_steps": 0,
    "finetune.steps": 1,
    "finetune.frames": 1,
    "finetune.schedule.warmup_steps": 0,
    "finetune.trust_pixels": 0,
    "evaluation.training_frames": 1,
    "evaluation.side_frames": 0,
    "preview.frames": 1,
    "preview.fewest": 1,
    "preview.fps": 1,
    "log.every": 1,
    "log.grid_every": 1,
    "log.checkpoint_every": 1,
}
