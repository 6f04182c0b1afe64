"""All settings of a training run as frozen dataclasses, and their way from an ml_collections config."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianConfig
from gphm_jax.guide import GuideConfig
from gphm_jax.nets import NetworkConfig
from gphm_jax.optim import Rates, Schedule
from gphm_jax.step import LossWeights

T = TypeVar("T")


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

    path: str = ""  # a dataset folder; empty: the embedded synthetic heads
    image_size: int = 512
    face_size: int = 128  # input of E_exp, inferred
    nonface_size: int = 128  # input of E_nf, inferred
    synthesized_probability: float = 0.5  # face image drawn from another identity, same expression
    cache_gb: float = 2.0  # decoded images kept in memory


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
    code_steps: int = 400  # off landmarks and head poses alone, at stage 1's rates; 0: none, as in the paper
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
    backend: str = "auto"  # kernels: auto, native, xla, callback
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


def read_flag(cls: type[T], holder: Any) -> T:
    """The settings of a `--config` flag; a file that cannot be read is an `InputError`."""
    if holder.value is None:
        raise InputError("no config: add --config=configs/NAME.py[:PRESET], for example configs/gaussian.py")
    try:
        values = holder.value.to_dict()
    except OSError as error:
        lines = [line.strip() for line in str(error).splitlines() if "Errno" in line] or [str(error).splitlines()[0]]
        raise InputError(f"cannot read --config: {lines[0]}; give configs/NAME.py[:PRESET]") from error
    return from_mapping(cls, values)


def from_mapping(cls: type[T], values: Mapping[str, Any], *, where: str = "config") -> T:
    """Builds a dataclass from nested mappings; an unknown or missing key is an `InputError` with its name."""
    hints = typing.get_type_hints(cls)
    known = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]  # T is a dataclass type
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = (
                f"did you mean '{where}.{close[0]}'?" if close else f"known keys: {', '.join(sorted(known))}"
            )
            raise InputError(f"unknown key '{where}.{key}': {hint}")
    missing = sorted(known - set(values))
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
    if isinstance(expected, types.UnionType) or isinstance(value, expected):
        return
    raise InputError(f"'{where}' is {value!r}: it must be of type {getattr(hint, '__name__', hint)}")
