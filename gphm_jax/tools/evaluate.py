"""Measures a head model or an avatar on pictures that it never saw, now or on other data.

    python -m gphm_jax.tools.evaluate --avatar=DIR --out=DIR [--input=IDENTITY_FOLDER]
    python -m gphm_jax.tools.evaluate --prior=WORKDIR --out=DIR [--input=DATASET]

Without `--input`, the run's own data and its held-out part. An avatar may be measured on another recording of the same
person: all of its frames count then. A head model draws the people that it was trained on. `metrics.json`,
`report.html` and every picture (`heldout/`) go to `--out`. Face distances need the extra package `identity`.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags, logging
from flax import nnx
from jaxtyping import Array, UInt8
from tqdm import tqdm

from gphm_jax import fit_results, report, runtime
from gphm_jax.avatar import Avatar
from gphm_jax.data import images
from gphm_jax.data.files import listed
from gphm_jax.data.layout import Selection
from gphm_jax.errors import InputError, run_main
from gphm_jax.evaluation import evaluate, keep_picture
from gphm_jax.face_distance import FaceEmbedder, pair_distances
from gphm_jax.files import to_bytes, write_json
from gphm_jax.fit_footage import open_fit_footage
from gphm_jax.fit_region import head_footage
from gphm_jax.fit_settings import FitSettings
from gphm_jax.fitting import encode_frames
from gphm_jax.footage import Footage, open_footage
from gphm_jax.gaussians import GaussianModel
from gphm_jax.paths import expanded
from gphm_jax.perceptual import load_lpips
from gphm_jax.settings import DataSettings, Settings, from_mapping
from gphm_jax.stages import GAUSSIANS, load_prior, make_renderer
from gphm_jax.state import TrainState, split_model
from gphm_jax.training_report import held_out_section
from gphm_jax.types import Batch, Render

_DIVIDING = ("subject", "view", "held_out_fraction", "region")  # what of a fit's settings picks its pictures


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What to measure, checked."""

    avatar: pathlib.Path | None
    prior: pathlib.Path | None
    data: pathlib.Path | None  # None: the run's own
    out: pathlib.Path
    subject: str
    lpips: tuple[str, ...]
    identity: bool  # face distances


def main(argv: Sequence[str]) -> None:
    """Reads the flags and starts up."""
    del argv
    request = make_request()
    runtime.start()
    measure(request)


def make_request() -> Request:
    """The flags, checked as far as no work is needed for it."""
    given = flags.FLAGS
    if bool(given.avatar) == bool(given.prior):
        raise InputError(
            "give one of --avatar=DIR, a fitted avatar, and --prior=WORKDIR, a trained head model"
        )
    if not given.out:
        raise InputError("--out is missing: give the folder for metrics.json, report.html and the pictures")
    out, measured = expanded(given.out), expanded(given.avatar or given.prior)
    if (out / "config.json").exists() or out.resolve() == measured.resolve():
        raise InputError(f"--out={out} holds a run or an avatar: give a folder of its own")
    return Request(
        avatar=measured if given.avatar else None,
        prior=measured if given.prior else None,
        data=expanded(given.input) if given.input else None,
        out=out,
        subject=given.subject,
        lpips=tuple(given.lpips),
        identity=given.identity,
    )


def measure(request: Request) -> dict[str, Any]:
    """Writes the figures, the pictures and the report; returns the figures."""
    embed = FaceEmbedder().pair if request.identity else None  # fails early where a package is missing
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {request.out} ({error.strerror}): give another --out") from error
    folder = request.out / "heldout"
    figures, data = _avatar(request, folder) if request.avatar else _prior(request, folder)
    held_out = figures["heldout_views"]
    if embed is not None:
        held_out["face_distance"] = pair_distances(kept_pictures(folder), embed)
    figures = {
        "measured": str(request.avatar or request.prior),
        "data": data,
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        **figures,
    }
    sections = [held_out_section(folder, held_out), *_further(figures)]
    report.write_report(
        request.out / "report.html",
        title="Evaluation",
        subtitle=f"{figures['measured']} on {data}",
        sections=sections,
    )
    write_json(request.out / "metrics.json", figures)
    logging.info("done: %s and %s", request.out / "metrics.json", request.out / "report.html")
    return figures


def _prior(request: Request, folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """A head model on held-out cameras, or on all where none is held out."""
    assert request.prior is not None
    model, settings, meta = load_prior(request.prior)
    if request.data is not None:
        data = dataclasses.replace(settings.data, path=str(request.data))
        settings = dataclasses.replace(settings, data=data)
    footage = open_footage(settings, request.prior.parent / "data")
    training = _known(footage.training, meta["identities"], footage)
    held_out = _known(footage.held_out, meta["identities"], footage) if footage.held_out else training
    figures = evaluate(
        _renderer(model, meta, footage, settings.backend),
        footage.pixels,
        held_out,
        training,
        lpips_weights={net: load_lpips(net) for net in request.lpips},
        lpips_every=settings.evaluation.lpips_every,
        baselines=bool(footage.held_out),
        folder=folder,
        progress=lambda items, total: tqdm(items, desc="pictures", total=total, unit="frame"),
    )
    kind = "held-out cameras" if footage.held_out else "all cameras: dataset.json holds none out"
    return {"heldout_views": figures}, f"{footage.dataset.path}, {kind}"


def _known(
    selection: Sequence[Selection], identities: Sequence[str], footage: Footage
) -> tuple[Selection, ...]:
    """The frames of people that the model has a code for."""
    known = tuple(item for item in selection if item.frame.identity in identities)
    if not known:
        raise InputError(
            f"the head model knows none of the people in {footage.dataset.path} "
            f"({listed(footage.dataset.identities)}), only {listed(identities)}: fit avatars of others instead"
        )
    if strangers := sorted({item.frame.identity for item in selection} - set(identities)):
        logging.warning("left out, unknown to the head model: %s", listed(strangers))
    return known


def _renderer(
    model: GaussianModel, meta: dict[str, Any], footage: Footage, backend: str
) -> Callable[[Batch], Render]:
    """Draws batches of the footage, whose people and frames may have other rows than those of the training."""
    names, dataset = meta["identities"], footage.dataset
    if list(dataset.identities) == names and len(dataset.frames) == meta["num_frames"]:
        frames = np.arange(meta["num_frames"])
    else:  # frames without a learnt correction of their pose: a row of zeros more
        corrections = model.subjects.pose_corrections[...]
        model.subjects.pose_corrections = nnx.Param(jnp.concatenate([corrections, jnp.zeros((1, 6))]))
        frames = np.full(len(dataset.frames), meta["num_frames"])
    people = np.array([names.index(name) if name in names else 0 for name in dataset.identities])
    graphdef, params, fixed = split_model(model)
    state = TrainState(step=jnp.zeros((), jnp.int32), params=params, fixed=fixed, optimizer=())
    draw = make_renderer(GAUSSIANS, graphdef, state, backend=backend)

    def rows(table: np.ndarray, index: Any) -> Array:
        return jnp.asarray(table[np.asarray(index)], jnp.int32)

    return lambda batch: draw(
        dataclasses.replace(batch, identity=rows(people, batch.identity), frame=rows(frames, batch.frame))
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fit:
    """What an avatar's folder says of its fit."""

    settings: FitSettings = FitSettings()  # those that pick pictures
    footage: pathlib.Path | None = None  # prepared
    prior: pathlib.Path | None = None
    corrected: bool = False  # with cameras and head poses that it learnt


def _avatar(request: Request, folder: pathlib.Path) -> tuple[dict[str, Any], str]:
    """An avatar on its own held-out frames, or on every frame of another recording."""
    assert request.avatar is not None
    avatar, fit = Avatar.load(request.avatar), _read_fit(request.avatar)
    path = request.data or fit.footage
    if path is None:
        raise InputError(
            f"{request.avatar} does not say what it was fitted on: name a recording with --input"
        )
    other = fit.footage is None or path.resolve() != fit.footage.resolve()
    settings = dataclasses.replace(fit.settings, subject=request.subject or fit.settings.subject)
    footage = open_fit_footage(path, settings, _sizes(avatar))
    if other:
        footage = dataclasses.replace(footage, training=(), held_out=footage.driven)
    codes = encode_frames(avatar.model.networks, footage.pixels, footage.driven)
    if settings.region == "head":
        if fit.prior is None or not fit.prior.is_dir():
            raise InputError(
                f"{request.avatar} is a head without a trunk: its prior, at {fit.prior}, cuts pictures so"
            )
        footage = head_footage(footage, load_prior(fit.prior)[0], codes, backend=avatar.backend)
    shown, side = (footage.held_out, "heldout") if footage.held_out else (footage.training, "train")
    few = 1 if footage.held_out else len(shown)  # training frames, where they are not what is asked for
    evaluation = dataclasses.replace(settings.evaluation, lpips=request.lpips, training_frames=few)
    found = fit_results.evaluate_fit(
        avatar,
        codes,
        footage,
        dataclasses.replace(settings, evaluation=evaluation),
        lambda items, text: tqdm(items, desc=text, unit="frame"),
    )
    if other:
        found[side].pop("best_training_frame_psnr", None)  # there is no training frame
    for item in tqdm(shown, desc="pictures", unit="frame"):
        truth, mask = footage.pixels.view(item.frame, item.views[0])
        render = to_bytes(fit_results.render_frame(avatar, codes, item.frame, item.views[0]))
        keep_picture(folder, item.frame, item.views[0], truth, render, mask)
    figures = {"heldout_views": found[side], "side_views": found.get("side_views", {})}
    if fit.corrected and not other:
        figures["note"] = (
            "The fit learnt corrections of its camera and head poses: they are not applied here."
        )
    if other:
        return figures, f"{path}, every frame"
    return (
        figures,
        f"{path}, {'held-out frames' if footage.held_out else 'training frames: none is held out'}",
    )


def _read_fit(avatar: pathlib.Path) -> _Fit:
    home = avatar.parent if avatar.resolve().name == "avatar" else avatar
    config, metrics = (_read_json(home / name) for name in ("config.json", "metrics.json"))
    if "input" not in config:
        return _Fit()  # the avatar's folder alone, moved elsewhere
    values = {key: config[key] for key in _DIVIDING if key in config}
    return _Fit(
        settings=from_mapping(FitSettings, values, where=str(home / "config.json")),
        footage=home / "footage" if (home / "footage").is_dir() else pathlib.Path(config["input"]),
        prior=pathlib.Path(config["prior"]),
        corrected=bool(metrics.get("corrected_cameras")),
    )


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _sizes(avatar: Avatar) -> Settings:
    """What opening footage asks of a head model's settings."""
    spec = avatar.spec
    data = DataSettings(image_size=spec.image_size, face_size=spec.face_size, nonface_size=spec.nonface_size)
    return Settings(data=data, networks=spec.networks)


def kept_pictures(
    folder: pathlib.Path,
) -> Iterator[tuple[str, UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w 3"]]]:
    """(identity, truth, render) of every picture that was kept."""
    for truth in sorted(folder.glob("*_truth.png")):
        stem = truth.name.removesuffix("_truth.png")
        render = images.read_rgb(folder / f"{stem}_render.png")
        yield stem.rsplit("_", 2)[0], images.read_rgb(truth), render


def _further(figures: dict[str, Any]) -> Iterable[report.Section]:
    if "note" in figures:
        yield report.Section(heading="Note", items=[report.Note(text=figures["note"])])
    distance = figures["heldout_views"].get("face_distance")
    if distance:
        keys = ("p10", "p50", "p90", "mean", "count")
        compared = {
            "Render and truth of a picture": distance,
            "Truths of two people": distance["between_people"],
        }
        table = report.Table(
            header=("Face distance", "10 %", "median", "90 %", "mean", "count"),
            rows=[(text, *(row[key] for key in keys)) for text, row in compared.items() if row],
        )
        yield report.Section(heading="Identity", items=[table])
    if figures.get("side_views"):
        table = report.Table(
            header=("Camera, degrees aside", "PSNR (dB)", "head only (dB)", "count"),
            rows=[
                (degrees, row["psnr"], row["psnr_mask"], row["count"])
                for degrees, row in figures["side_views"].items()
            ],
        )
        yield report.Section(heading="Cameras aside", items=[table])


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("avatar", None, "A fitted avatar: the folder of a fit, or `avatar` in it.")
    flags.DEFINE_string("prior", None, "The workdir of a trained head model.")
    flags.DEFINE_string("input", None, "A dataset or identity folder; none: the run's own.")
    flags.DEFINE_string("subject", "", "Which identity of --input, for an avatar.")
    flags.DEFINE_string("out", None, "Folder for the figures, the report and the pictures.")
    flags.DEFINE_multi_enum("lpips", ["vgg"], ["vgg", "alex"], "Networks of the perceptual distance.")
    flags.DEFINE_bool("identity", False, "Face distances too (needs the extra package `identity`).")


if __name__ == "__main__":
    define_flags()
    run_main(main)
