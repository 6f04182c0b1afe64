"""The two stages as things to run: how each is built, described on disk, and rebuilt from there."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from jaxtyping import Array, Float

from gphm_jax.errors import InputError
from gphm_jax.gaussians import GaussianModel, MotionRegions, Points, transfer
from gphm_jax.guide import GuideModel, ellipsoid_mesh, ellipsoid_sdf, head_ellipsoid
from gphm_jax.hull import visual_hull
from gphm_jax.settings import Settings, from_mapping
from gphm_jax.state import Checkpoints, TrainState, split_model
from gphm_jax.step import (
    LossFunction,
    LossWeights,
    StepContext,
    gaussian_losses,
    guide_losses,
    render_gaussians,
    render_guide,
)
from gphm_jax.types import Batch, Render
from gphm_jax.workdir import refuse_avatar


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """What distinguishes the stages to the loop."""

    name: str  # "stage1" or "stage2"
    losses: LossFunction
    render: Callable[[Any, Batch, StepContext], tuple[Render, Any]]


GUIDE = Stage(name="stage1", losses=guide_losses, render=render_guide)
GAUSSIANS = Stage(name="stage2", losses=gaussian_losses, render=render_gaussians)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """The part of a dataset that shapes a model."""

    identities: tuple[str, ...]
    num_frames: int
    landmarks: Float[np.ndarray, "k 3"]  # mean, canonical


def build_guide(settings: Settings, subject: Subject) -> GuideModel:
    """An untrained guide."""
    return GuideModel(
        settings.guide,
        settings.networks,
        num_identities=len(subject.identities),
        num_frames=subject.num_frames,
        landmarks=jnp.asarray(subject.landmarks),
        face_size=settings.data.face_size,
        nonface_size=settings.data.nonface_size,
        rngs=nnx.Rngs(settings.seed),
    )


def start_surface(guide: GuideModel, settings: Settings, mask_batches: Iterable[Batch]) -> Float[Array, "g"]:
    """The SDF of f_mean's first surface on the guide's grid (`settings.start.sdf`).

    `mask_batches` [i f v] are read for the hull only.
    """
    grid = guide.grid()
    if settings.start.sdf == "ellipsoid":
        center, radii = head_ellipsoid(np.asarray(guide.landmarks[...]))
        sdf = ellipsoid_sdf(grid, jnp.asarray(center), jnp.asarray(radii))
    else:  # "hull"
        shape = tuple(n + 1 for n in settings.guide.resolution)
        sdf = jnp.asarray(visual_hull(mask_batches, np.asarray(grid).reshape(*shape, 3)).reshape(-1))
        if not (jnp.any(sdf > 0) and jnp.any(sdf < 0)):
            raise InputError(
                "the masks' visual hull is empty: check masks and cameras, or set start.sdf=ellipsoid"
            )
    return sdf


def build_gaussians(guide: GuideModel, settings: Settings) -> GaussianModel:
    """The Gaussian model that a trained guide starts (`settings.start.gaussians` picks its surface)."""
    surface = None
    if settings.start.gaussians == "ellipsoid":
        surface = ellipsoid_mesh(*head_ellipsoid(np.asarray(guide.landmarks[...])))
    return transfer(
        guide,
        settings.gaussian,
        settings.networks,
        face_size=settings.data.face_size,
        nonface_size=settings.data.nonface_size,
        seed=settings.seed,
        surface=surface,
    )


def describe(model: GuideModel | GaussianModel, settings: Settings, subject: Subject) -> dict[str, Any]:
    """All that is needed to rebuild a model's structure, as JSON."""
    meta: dict[str, Any] = {
        "settings": dataclasses.asdict(settings),
        "identities": list(subject.identities),
        "num_frames": subject.num_frames,
        "num_landmarks": len(subject.landmarks),
    }
    if isinstance(model, GaussianModel):
        meta |= {"num_splats": model.positions.shape[0], "regions": dataclasses.asdict(model.regions)}
    return meta


def rebuild_guide(meta: dict[str, Any]) -> GuideModel:
    """A guide of the structure that `describe` recorded; its values are to be restored."""
    settings = from_mapping(Settings, meta["settings"])
    return build_guide(settings, _subject(meta))


def rebuild_gaussians(meta: dict[str, Any]) -> GaussianModel:
    """A Gaussian model of the structure that `describe` recorded; its values are to be restored."""
    settings = from_mapping(Settings, meta["settings"])
    n, k, d = meta["num_splats"], meta["num_landmarks"], settings.networks.feature_dim
    points = Points(
        positions=jnp.zeros((n, 3)),
        features=jnp.zeros((n, d)),
        log_scales=jnp.zeros((n, 3)),
        quats=jnp.zeros((n, 4)),
        opacity_logits=jnp.zeros((n,)),
        weight=jnp.zeros((n,)),
        landmarks=jnp.zeros((k, 3)),
        landmark_features=jnp.zeros((k, d)),
    )
    return GaussianModel(
        points,
        MotionRegions(**meta["regions"]),
        settings.networks,
        num_identities=len(meta["identities"]),
        num_frames=meta["num_frames"],
        face_size=settings.data.face_size,
        nonface_size=settings.data.nonface_size,
        rngs=nnx.Rngs(0),
    )


def rebuild(stage: Stage, meta: dict[str, Any]) -> GuideModel | GaussianModel:
    """The model of a stage, in the structure that `describe` recorded."""
    return rebuild_guide(meta) if stage is GUIDE else rebuild_gaussians(meta)


def _subject(meta: dict[str, Any]) -> Subject:
    landmarks = np.zeros((meta["num_landmarks"], 3), np.float32)
    return Subject(identities=tuple(meta["identities"]), num_frames=meta["num_frames"], landmarks=landmarks)


def load_prior(workdir: pathlib.Path) -> tuple[GaussianModel, Settings, dict[str, Any]]:
    """The trained Gaussian model of a workdir, with its settings and description."""
    model, meta = _trained(GAUSSIANS, workdir)
    return model, from_mapping(Settings, meta["settings"]), meta


def load_guide(workdir: pathlib.Path) -> GuideModel:
    """The trained guide of a workdir."""
    return _trained(GUIDE, workdir)[0]


def _trained(stage: Stage, workdir: pathlib.Path) -> tuple[Any, dict[str, Any]]:
    folder = workdir / "checkpoints" / stage.name
    if not folder.is_dir():
        refuse_avatar(workdir)
        raise InputError(
            f"no trained prior in {workdir}: run `python train.py --config=configs/gaussian.py` first"
        )
    checkpoints = Checkpoints(folder)
    meta = checkpoints.meta()
    graphdef, params, fixed = split_model(nnx.eval_shape(lambda: rebuild(stage, meta)))
    restored = checkpoints.restore_model(params, fixed)
    checkpoints.close()
    return nnx.merge(graphdef, *restored), meta


def make_renderer(
    stage: Stage, graphdef: Any, state: TrainState, *, backend: str
) -> Callable[[Batch], Render]:
    """A renderer of batches on one device, with the state's values of now; compiled once a stage."""
    render = _compiled_renderer(stage, graphdef, backend)
    params, fixed = jax.device_put(host_values((state.params, state.fixed)), jax.local_devices()[0])
    return lambda batch: render(params, fixed, batch)


@functools.lru_cache(maxsize=2)
def _compiled_renderer(stage: Stage, graphdef: Any, backend: str) -> Callable[[Any, Any, Batch], Render]:
    context = StepContext(weights=LossWeights(), backend=backend)

    @jax.jit
    def render(params: Any, fixed: Any, batch: Batch) -> Render:
        return stage.render(nnx.merge(graphdef, params, fixed), batch, context)[0]

    return render


def host_values(tree: Any) -> Any:
    """Arrays of all devices as NumPy arrays; every process of a cluster run must call it together."""
    if all(leaf.is_fully_addressable for leaf in jax.tree.leaves(tree)):
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)
