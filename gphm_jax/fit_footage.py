"""The pictures of a fit: one person, one camera to fit, the frames kept back, and the cameras aside."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import logging
from jaxtyping import Float

from gphm_jax.data.files import listed
from gphm_jax.data.layout import Dataset, Selection, directions, open_dataset, rotation_matrix, select
from gphm_jax.data.pixels import PixelSource
from gphm_jax.data.sampler import BatchOptions
from gphm_jax.errors import InputError
from gphm_jax.fit_settings import FitSettings
from gphm_jax.geometry import refocused
from gphm_jax.settings import Settings
from gphm_jax.types import Camera

_FEWEST_TO_DIVIDE = 10  # frames: fewer are all trained on where dataset.json holds none out


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitFootage:
    """One person's frames. `aside` selects the fitted camera first and all others after it."""

    dataset: Dataset
    pixels: PixelSource
    training: tuple[Selection, ...]
    held_out: tuple[Selection, ...]
    aside: tuple[Selection, ...]  # of held-out frames if any, else of training frames: cameras never fitted

    @property
    def driven(self) -> tuple[Selection, ...]:
        """All frames in order, each with the fitted camera."""
        return tuple(sorted((*self.training, *self.held_out), key=lambda item: item.frame.row))

    def corrected(self, poses: Float[np.ndarray, "r 6"], log_focal: float) -> FitFootage:
        """The footage with what a fit learnt of it: head poses by frame row, and the focal length of all cameras.

        A frame without a correction of its own keeps its head pose.
        """

        def one(item: Selection) -> Selection:
            frame, delta = item.frame, poses[item.frame.row]
            translation = frame.translation + delta[3:]
            cameras = refocused(
                Camera(
                    world_to_camera=jnp.asarray(frame.world_to_camera),
                    intrinsics=jnp.asarray(frame.intrinsics, jnp.float32),
                ),
                jnp.asarray(translation)[None],
                jnp.float32(log_focal),
            )
            frame = dataclasses.replace(
                frame,
                rotation=frame.rotation + delta[:3],
                translation=translation,
                world_to_camera=np.asarray(cameras.world_to_camera),
                intrinsics=np.asarray(cameras.intrinsics),
            )
            return Selection(frame=frame, views=item.views)

        return dataclasses.replace(
            self,
            training=tuple(map(one, self.training)),
            held_out=tuple(map(one, self.held_out)),
            aside=tuple(map(one, self.aside)),
        )


def open_fit_footage(path: pathlib.Path, settings: FitSettings, prior: Settings) -> FitFootage:
    """Opens a prepared identity folder, or a dataset, and divides its frames.

    Raises `InputError` for an unknown person or camera, and frames without a face.
    """
    dataset = open_dataset(path)
    person = _person(dataset, settings.subject)
    items = _with_camera(select(dataset, identities=[person], views="all", frames="all"), settings.view, path)
    items = [item for item in items if item.frame.shows_face[item.views[0]]]
    if not items:
        raise InputError(
            f"no frame of {person} in {path} shows a face to the fitted camera: put a face_<view>.jpg, the cut-out "
            "face, beside its image_<view>.jpg, or choose another --config.view"
        )
    training, held_out = _divide(dataset, items, settings.held_out_fraction)
    if not training:
        raise InputError(
            f"every frame of {person} in {path} is held out: correct dataset.json's held_out_frames, or lower "
            "--config.held_out_fraction"
        )
    if settings.images:
        training = _most_different(training, settings.images)
    data = prior.data
    return FitFootage(
        dataset=dataset,
        pixels=PixelSource(
            dataset,
            image_size=data.image_size,
            face_size=data.face_size,
            nonface_size=data.nonface_size,
            cache_bytes=int(settings.cache_gb * 2**30),
        ),
        training=_fitted(training),
        held_out=_fitted(held_out),
        aside=_others(held_out) or _others(training),
    )


def fit_batches(frames: int, prior: Settings) -> BatchOptions:
    """The sampler's options: `frames` of the one person, the fitted camera, no synthesized face images."""
    data = prior.data
    return BatchOptions(
        identities_per_batch=1,
        frames_per_identity=frames,
        views_per_frame=1,
        image_size=data.image_size,
        face_size=data.face_size,
        nonface_size=data.nonface_size,
        synthesized_probability=0.0,
    )


def _person(dataset: Dataset, name: str) -> str:
    if name and name not in dataset.identities:
        raise InputError(f"no identity '{name}' in {dataset.path}: it has {listed(dataset.identities)}")
    if not name and len(dataset.identities) > 1:
        raise InputError(
            f"{dataset.path} has {len(dataset.identities)} identities: choose one with --config.subject, "
            f"of {listed(dataset.identities)}"
        )
    return name or dataset.identities[0]


def _with_camera(items: Sequence[Selection], view: str, path: pathlib.Path) -> list[Selection]:
    """The frames that have the fitted camera, with it first among their views."""
    name = view or items[0].frame.views[0].name
    found = []
    for item in items:
        names = [item.frame.views[index].name for index in item.views]
        if name in names:
            first = item.views[names.index(name)]
            rest = tuple(index for index in item.views if index != first)
            found.append(Selection(frame=item.frame, views=(first, *rest)))
    if not found:
        known = listed([record.name for record in items[0].frame.views])
        raise InputError(f"no camera '{name}' in {path}: --config.view must be one of {known}")
    return found


def _divide(
    dataset: Dataset, items: Sequence[Selection], fraction: float
) -> tuple[tuple[Selection, ...], tuple[Selection, ...]]:
    """(training, held out): as dataset.json says; the last `fraction` where it says nothing and there are enough."""
    kept = [(item.frame.identity, item.frame.name) in dataset.held_out_frames for item in items]
    if not any(kept) and len(items) >= _FEWEST_TO_DIVIDE:
        count = round(fraction * len(items))
        kept = [index >= len(items) - count for index in range(len(items))]
        logging.info("no held-out frames named: the last %d of %d are kept back", count, len(items))
    pairs = list(zip(items, kept, strict=True))
    return tuple(item for item, out in pairs if not out), tuple(item for item, out in pairs if out)


def _most_different(items: Sequence[Selection], count: int) -> tuple[Selection, ...]:
    """At most `count` frames, in order: the one that sees most of the face, then those that see the head most anew."""
    rays = np.stack(
        [rotation_matrix(item.frame.rotation).T @ directions(item.frame, item.views[:1])[0] for item in items]
    )
    chosen = [int(np.argmax(rays[:, 2]))]  # the face looks along +z
    nearest = rays @ rays[chosen[0]]
    while len(chosen) < min(count, len(items)):
        nearest[chosen[-1]] = np.inf
        chosen.append(int(np.argmin(nearest)))
        nearest = np.maximum(nearest, rays @ rays[chosen[-1]])
    return tuple(items[n] for n in sorted(chosen))


def _fitted(items: Sequence[Selection]) -> tuple[Selection, ...]:
    """The fitted camera alone."""
    return tuple(Selection(frame=item.frame, views=item.views[:1]) for item in items)


def _others(items: Sequence[Selection]) -> tuple[Selection, ...]:
    """Those with cameras besides the fitted one."""
    return tuple(item for item in items if len(item.views) > 1)
