"""All settings of a training run as frozen dataclasses, and their way from an ml_collections config."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any, Protocol, TypeVar

from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianConfig
from gphm_jax.guide import GuideConfig
from gphm_jax.nets import NetworkConfig
from gphm_jax.optim import Rates, Schedule
from gphm_jax.step import LossWeights

BACKENDS = ("auto", "native", "xla", "callback", "triton", "nvdiffrast")  # as gphm_kernels.backends.NAMES
SMALLEST_IMAGE = 32  # pixels a side that every figure can be taken of; LPIPS with AlexNet asks for 31
SMALLEST_CROP = 16  # that LPIPS with VGG16 can compare


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """The embedded dataset, made on first use when `data.path` is empty (arguments of `tools.synthesize`)."""

    identities: int = 8
    expressions: int = 6
    views: int = 10
    heldout_views: int = 6
    expression_images: int = 4
    size: int = 512
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where images come from and how large they enter the networks."""

    path: str = ""  # a dataset folder, plain or packed; empty: the embedded synthetic heads
    image_size: int = 512
    face_size: int = 128  # input of E_exp, inferred
    nonface_size: int = 128  # input of E_nf, inferred
    synthesized_probability: float = 0.5  # face image drawn from another identity, same expression
    cache_gb: float = 2.0  # decoded images kept in memory (of each process); 0: none
    processes: int = 0  # make the batches, through Grain; 0: a thread of the training process


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """One stage's length, batch, rates and losses."""

    steps: int = 1
    identities: int = 8  # i of a batch, over all devices
    frames: int = 1  # f, expressions of each identity
    views: int = 1  # v, cameras of each frame
    downscale: int = 1  # trains on pictures of image_size / downscale, without LPIPS: larger batches
    downscale_steps: int = 0  # so many steps from the first; the rest see whole pictures
    rates: Rates = Rates()
    schedule: Schedule = Schedule()
    losses: LossWeights = LossWeights()


@dataclasses.dataclass(frozen=True, kw_only=True)
class StartSettings:
    """What the two stages start from."""

    sdf: str = "ellipsoid"  # f_mean's first surface: "ellipsoid" around the landmarks, or "hull" of the masks
    sdf_steps: int = 400
    code_steps: int = 0  # off landmarks and head poses alone, at stage 1's rates and eye_gain; 0: none, as in the paper
    code_identities: int = 4  # i of such a batch
    code_frames: int = 2  # f
    gaussians: str = "guide"  # "guide": the mean mesh; "ellipsoid": the ablation of the transfer


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogSettings:
    """How often a run speaks and saves, in steps."""

    every: int = 20
    grid_every: int = 1000
    checkpoint_every: int = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the finished model is measured on held-out cameras."""

    lpips_every: int = 1  # LPIPS of every n-th frame: on a CPU it costs more than everything else together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a training run depends on. Defaults: the paper, or what is inferred for it."""

    name: str = "gaussian"
    preset: str = "paper"
    seed: int = 0
    fsdp: int = 1  # devices that share one copy of the weights
    backend: str = "auto"  # kernels: one of BACKENDS
    gaussian_stage: bool = True  # False: stage 1 alone
    data: DataSettings = DataSettings()
    synthetic: SyntheticSettings = SyntheticSettings()
    networks: NetworkConfig = NetworkConfig()
    guide: GuideConfig = GuideConfig()
    gaussian: GaussianConfig = GaussianConfig()
    start: StartSettings = StartSettings()
    stage1: StageSettings = StageSettings()
    stage2: StageSettings = StageSettings()
    log: LogSettings = LogSettings()
    evaluation: EvaluationSettings = EvaluationSettings()

    def check(self) -> None:
        """Raises `InputError`, with the key's name, for a value that a run would not survive."""
        check_least(self, _LEAST)
        check_choices(self, _CHOICES)
        data, networks = self.data, self.networks
        widths = networks.encoder_widths
        require(bool(widths), "networks.encoder_widths", widths, "name one width at least")
        for width in widths:
            require(width > 0 and width % 8 == 0, "networks.encoder_widths", widths, "use multiples of 8")
        unit = 2 ** len(widths)
        for key, size in (("face_size", data.face_size), ("nonface_size", data.nonface_size)):
            rule = f"it must be a multiple of {unit} (each of {len(widths)} networks.encoder_widths halves it)"
            require(size % unit == 0, f"data.{key}", size, rule)
        for low, high in zip(self.guide.box_min, self.guide.box_max, strict=True):
            require(low < high, "guide.box_max", self.guide.box_max, "it must exceed guide.box_min")
        near, far = self.guide.region_near, self.guide.region_far
        require(near < far, "guide.region_far", far, "it must exceed guide.region_near")
        chance, points = data.synthesized_probability, self.gaussian
        require(0.0 <= chance <= 1.0, "data.synthesized_probability", chance, "it must lie in [0, 1]")
        require(points.face_density > 0.0, "gaussian.face_density", points.face_density, "it must be positive")
        rule = "it must lie between 0 and 1, neither included"
        require(0.0 < points.initial_opacity < 1.0, "gaussian.initial_opacity", points.initial_opacity, rule)
        rule = "use 4 or more, or 0 for one a vertex"
        require(not 0 < points.num_splats < 4, "gaussian.num_splats", points.num_splats, rule)
        for name in ("stage1", "stage2") if self.gaussian_stage else ("stage1",):
            self._check_stage(name)

    def _check_stage(self, name: str) -> None:
        stage: StageSettings = getattr(self, name)
        check_least(stage, _STAGE_LEAST, f"{name}.")
        size, unit = self.data.image_size, 4 * self.networks.refine_patch
        rule = f"it must be a multiple of {unit} (4 times networks.refine_patch)"
        if stage.downscale_steps:
            unit *= stage.downscale
            rule = f"it must be a multiple of {unit} (4 times networks.refine_patch times {name}.downscale)"
        require(size % unit == 0, "data.image_size", size, rule)
        check_crop(stage.losses, size, f"{name}.losses")
        check_gains(stage.losses, f"{name}.losses")


# The least value of each key; those of a stage are without the stage's name.
_LEAST = {
    "seed": 0,
    "fsdp": 1,
    "data.image_size": SMALLEST_IMAGE,
    "data.face_size": 1,
    "data.nonface_size": 1,
    "data.cache_gb": 0, "data.processes": 0,
    "synthetic.identities": 1,
    "synthetic.expressions": 1,
    "synthetic.views": 1,
    "synthetic.heldout_views": 0,
    "synthetic.expression_images": 0,
    "synthetic.size": 16,
    "synthetic.seed": 0,
    "networks.width": 1,
    "networks.depth": 1,
    "networks.injection_depth": 1,
    "networks.feature_dim": 1,
    "networks.identity_dim": 1,
    "networks.expression_dim": 1,
    "networks.octaves": 0,
    "networks.refine_widths": 1,
    "networks.refine_patch": 1,
    "networks.dynamics_width": 1,
    "guide.resolution": 1,
    "guide.max_vertices": 1,
    "guide.max_faces": 1,
    "gaussian.num_splats": 0,
    "start.sdf_steps": 1,
    "start.code_steps": 0,
    "start.code_identities": 1,
    "start.code_frames": 1,
    "log.every": 1,
    "log.grid_every": 1,
    "log.checkpoint_every": 1,
    "evaluation.lpips_every": 1,
}
_STAGE_LEAST = {
    "steps": 1,
    "identities": 1,
    "frames": 1,
    "views": 1,
    "downscale": 1,
    "downscale_steps": 0,
    "schedule.warmup_steps": 0,
}
_CHOICES = {"backend": BACKENDS, "start.sdf": ("ellipsoid", "hull"), "start.gaussians": ("guide", "ellipsoid")}


def require(holds: bool, key: str, value: Any, rule: str) -> None:
    """Raises `InputError` with a key's name, its value and the rule that it breaks."""
    if not holds:
        raise InputError(f"config.{key}={value}: {rule}")


def check_least(settings: Any, least: Mapping[str, float], prefix: str = "") -> None:
    """Each dotted key, or each entry of its tuple, must be finite and at least so much."""
    for key, bound in least.items():
        value = _value(settings, key)
        entries = value if isinstance(value, tuple) else (value,)
        require(all(x >= bound for x in entries), prefix + key, value, f"it must be at least {bound}")
        require(all(x < math.inf for x in entries), prefix + key, value, "it must be finite")


def check_choices(settings: Any, choices: Mapping[str, Collection[str]]) -> None:
    """Each dotted key must be one of its words."""
    for key, words in choices.items():
        value = _value(settings, key)
        require(value in words, key, value, f"choose one of {', '.join(words)}")


def check_crop(losses: LossWeights, image_size: int, where: str) -> None:
    """The perceptual loss must find its crop in the picture."""
    if losses.perceptual:
        crop, rule = losses.perceptual_crop, f"it must lie between {SMALLEST_CROP} and {image_size} (the image size)"
        require(SMALLEST_CROP <= crop <= image_size, f"{where}.perceptual_crop", crop, rule)


def check_gains(losses: LossWeights, where: str) -> None:
    """Pixels that weigh nothing, all together, would be a division by zero."""
    for name in ("face_gain", "eye_gain"):
        gain = getattr(losses, name)
        require(0.0 < gain < math.inf, f"{where}.{name}", gain, "it must be positive and finite")


def _value(settings: Any, key: str) -> Any:
    return functools.reduce(getattr, key.split("."), settings)


@typing.runtime_checkable
class Checked(Protocol):
    """Settings that know which of their values a run survives."""

    def check(self) -> None:
        """Raises `InputError` with the first wrong key's name."""


T = TypeVar("T")
C = TypeVar("C", bound=Checked)


def read_flag(cls: type[C], holder: Any) -> C:
    """The checked settings of a `--config` flag; a file that cannot be read is an `InputError`."""
    if holder.value is None:
        raise InputError("no config: add --config=configs/gaussian.py[:PRESET] to train, or configs/fit.py to fit")
    try:
        values = holder.value.to_dict()
    except OSError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Errno" in line] or [str(error).splitlines()[0]]
        raise InputError(f"cannot read --config: {lines[0]}; give configs/NAME.py[:PRESET]") from error
    settings = from_mapping(cls, values)
    settings.check()
    return settings


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """Builds a dataclass from nested mappings. A key without a value takes its default: what was saved before a setting
    existed did what its default does. An unknown key, or a missing one that has no default, is an `InputError`.
    """
    hints = typing.get_type_hints(cls)
    fields_of = dataclasses.fields(cls)  # type: ignore[arg-type]  # T is a dataclass type
    known = {field.name for field in fields_of}
    optional = {
        field.name
        for field in fields_of
        if field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
    }
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean '{where}.{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
            )
            raise InputError(f"unknown key '{where}.{key}': {hint}")
    missing = sorted(known - optional - set(values))
    if missing:
        raise InputError(f"missing key '{where}.{missing[0]}'")
    fields: dict[str, Any] = {}
    for key, value in values.items():
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            fields[key] = from_mapping(typing.cast(type, hint), value, where=f"{where}.{key}")
        else:
            fields[key] = tuple(value) if isinstance(value, list) else value
            _check_type(fields[key], hint, f"{where}.{key}")
    return cls(**fields)


def _check_type(value: Any, hint: Any, where: str) -> None:
    expected = typing.get_origin(hint) or hint
    if expected is float:
        expected = (int, float)
    if not isinstance(value, expected):
        raise InputError(f"'{where}' is {value!r}: it must be of type {getattr(hint, '__name__', hint)}")
    if expected is tuple:
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis:
            kinds = kinds[:1] * len(value)
        if len(kinds) != len(value):
            raise InputError(f"'{where}' is {value!r}: it must have {len(kinds)} entries")
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True)):
            _check_type(item, kind, f"{where}[{index}]")
