"""A run's pictures: the dataset (made on first use when none is named), its split, and its pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from gphm_jax import runtime
from gphm_jax.data.layout import (
    Dataset,
    Selection,
    host,
    mean_canonical_landmarks,
    open_dataset,
    select,
)
from gphm_jax.data.pixels import PixelSource
from gphm_jax.data.sampler import BatchOptions, pixel_source, showing_faces
from gphm_jax.data.synthetic.dataset import synthesize
from gphm_jax.data.synthetic.writer import Request
from gphm_jax.settings import Settings, StageSettings
from gphm_jax.stages import Subject
from gphm_jax.types import Pose


@dataclasses.dataclass(frozen=True, kw_only=True)
class Footage:
    """An opened dataset, divided, with one cache of decoded pixels for all its readers."""

    dataset: Dataset
    training: tuple[Selection, ...]
    held_out: tuple[Selection, ...]  # held-out cameras of the training frames; empty when there are none
    pixels: PixelSource

    @property
    def subject(self) -> Subject:
        """What of this footage shapes a model."""
        return Subject(
            identities=self.dataset.identities,
            num_frames=len(self.dataset.frames),
            landmarks=mean_canonical_landmarks(self.training),
        )


def open_footage(settings: Settings, cache: pathlib.Path) -> Footage:
    """Opens `settings.data.path`, or the embedded synthetic heads, kept in `cache` and finished there if cut short."""
    path = pathlib.Path(settings.data.path) if settings.data.path else embedded_heads(settings, cache)
    dataset = open_dataset(path)
    options = batch_options(settings, settings.stage1)
    training = tuple(showing_faces(select(dataset), options, dataset))
    rows = {item.frame.row for item in training}
    held_out = select(dataset, views="held_out") if dataset.held_out_views else ()
    return Footage(
        dataset=dataset,
        training=training,
        held_out=tuple(item for item in held_out if item.frame.row in rows),
        pixels=pixel_source(dataset, options, cache_bytes=int(settings.data.cache_gb * 2**30)),
    )


def embedded_heads(settings: Settings, cache: pathlib.Path) -> pathlib.Path:
    """Makes the synthetic heads of `settings.synthetic`, once for each distinct setting."""
    heads = settings.synthetic
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(heads), sort_keys=True).encode()).hexdigest()[:8]
    out = cache / f"synthetic-{digest}"
    request = Request(
        out=out.resolve(),
        first_identity=0,
        identities=heads.identities,
        expressions=heads.expressions,
        frames=heads.expressions,
        views=heads.views,
        heldout_views=heads.heldout_views,
        expression_images=heads.expression_images,
        size=heads.size,
        seed=heads.seed,
        capture="multiview",
    )
    if runtime.is_leader():
        logging.info("synthetic heads in %s", out)
        synthesize(request)
    runtime.wait_for_all("synthetic heads")
    return out


def first_frames(selection: Sequence[Selection]) -> list[Selection]:
    """Each identity's first frame."""
    first: dict[str, Selection] = {}
    for item in selection:
        first.setdefault(item.frame.identity, item)
    return list(first.values())


def batch_options(settings: Settings, stage: StageSettings) -> BatchOptions:
    """The sampler's options for a stage."""
    data = settings.data
    return BatchOptions(
        identities_per_batch=stage.identities,
        frames_per_identity=stage.frames,
        views_per_frame=stage.views,
        image_size=data.image_size,
        face_size=data.face_size,
        nonface_size=data.nonface_size,
        synthesized_probability=data.synthesized_probability,
    )


def rest_poses(footage: Footage) -> Pose:
    """Each identity's head pose in its first training frame, from which the hull is taken; arrays [identities].

    The identity pose for somebody who has no training frame.
    """
    count = len(footage.dataset.identities)
    rotation, translation = np.zeros((2, count, 3), np.float32)
    scale = np.ones(count, np.float32)
    for item in first_frames(footage.training):
        frame, row = item.frame, item.frame.identity_row
        rotation[row], translation[row], scale[row] = frame.rotation, frame.translation, frame.scale
    return Pose(rotation=host(rotation), translation=host(translation), scale=host(scale))
