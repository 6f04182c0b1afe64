"""Batches as a pure function of (seed, step), training and evaluation order, and prefetching.

The order is nested streams. Identities come round in shuffled turns; each visit to an identity takes its next
frames, each visit to a frame its next views, so that after a whole number of turns every identity, every
frame of an identity and every view of a frame has been seen equally often. No state: step n is computed
from n alone, so a run resumes exactly by its step count.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
from absl import logging
from jaxtyping import Int

from gphm_jax.data import layout
from gphm_jax.data.layout import Dataset, Selection
from gphm_jax.data.pixels import FramePlan, PixelSource, assemble
from gphm_jax.errors import InputError
from gphm_jax.types import Batch

T = TypeVar("T")

# Names of the independent random streams under one seed.
IDENTITIES, FRAMES, VIEWS, FACE = range(4)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Sizes of a batch and how face images are drawn."""

    identities_per_batch: int = 8  # of the whole batch, over all processes
    frames_per_identity: int = 1
    views_per_frame: int = 1
    image_size: int = 512
    face_size: int = 64
    nonface_size: int = 64
    synthesized_probability: float = 0.5  # where a frame has synthesized images at all

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1:
                raise InputError(f"{field.name}={value}: it must be at least 1")
        if not 0.0 <= self.synthesized_probability <= 1.0:
            raise InputError(f"synthesized_probability={self.synthesized_probability}: it must lie in [0, 1]")


class BatchSampler:
    """Training batches of a selection of a dataset, deterministic in (seed, step).

    Frames of one identity differ within a batch, and so do the views of a frame, whenever there are enough of
    them. With `process_count` > 1 each process makes its own contiguous rows of the identity axis; together
    they are the batch that one process makes. Face and non-face images come from the selected views alone.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: BatchOptions,
        *,
        seed: int = 0,
        selection: Sequence[Selection] | None = None,
        pixels: PixelSource | None = None,
        process_index: int = 0,
        process_count: int = 1,
    ) -> None:
        if options.identities_per_batch % process_count:
            raise InputError(
                f"identities_per_batch={options.identities_per_batch} does not divide over {process_count} processes: "
                f"make it a multiple of {process_count}"
            )
        if seed < 0:
            raise InputError(f"seed={seed}: it must not be negative")
        self.dataset = dataset
        self.options = options
        self.seed = seed
        self.pixels = pixels or pixel_source(dataset, options)
        self._groups = _group_by_identity(
            showing_faces(selection or layout.select(dataset), options, dataset)
        )
        rows = options.identities_per_batch // process_count
        self._slots = range(process_index * rows, (process_index + 1) * rows)

    def plan(self, step: int) -> tuple[tuple[FramePlan, ...], ...]:
        """What this process's rows of batch `step` show: [identity][frame]. Reads no pixels."""
        options = self.options
        chosen = _turns((self.seed, IDENTITIES), len(self._groups), options.identities_per_batch, step)
        return tuple(self._plan_identity(step, slot, *chosen[slot]) for slot in self._slots)

    def batch(self, step: int) -> Batch:
        """Batch `step`, as NumPy arrays in the shapes of `Batch`."""
        return assemble(self.plan(step), self.pixels)

    def _plan_identity(self, step: int, slot: int, group: int, visit: int) -> tuple[FramePlan, ...]:
        options, frames = self.options, self._groups[group]
        identity = frames[0].frame.identity_row
        chosen = _turns((self.seed, FRAMES, identity), len(frames), options.frames_per_identity, visit)
        plans = []
        for column, (index, frame_visit) in enumerate(chosen):
            item = frames[index]
            key = (self.seed, VIEWS, item.frame.row)
            views = tuple(
                item.views[n] for n, _ in _turns(key, len(item.views), options.views_per_frame, frame_visit)
            )
            plans.append(self._plan_frame((step, slot, column), item, views))
        return tuple(plans)

    def _plan_frame(self, cell: tuple[int, int, int], item: Selection, views: tuple[int, ...]) -> FramePlan:
        frame, options = item.frame, self.options
        with_face = [view for view in item.views if frame.shows_face[view]]
        # A view that is not rendered, where there is one; a monocular frame serves as its own other view.
        others = [view for view in with_face if view not in views] or with_face
        first, second, third = _uniforms((self.seed, FACE, *cell), 3)
        uses_synthesized = bool(frame.synthesized) and (not others or first < options.synthesized_probability)
        nonface_pool = with_face or list(item.views)
        return FramePlan(
            frame=frame,
            views=views,
            face_view=None if uses_synthesized else others[int(second * len(others))],
            synthesized=int(second * len(frame.synthesized)) if uses_synthesized else None,
            nonface_view=nonface_pool[int(third * len(nonface_pool))],
        )


def pixel_source(dataset: Dataset, options: BatchOptions, *, cache_bytes: int = 2 << 30) -> PixelSource:
    """Pixels at the sizes of `options`, to share between samplers."""
    return PixelSource(
        dataset,
        image_size=options.image_size,
        face_size=options.face_size,
        nonface_size=options.nonface_size,
        cache_bytes=cache_bytes,
    )


def evaluation_plans(
    dataset: Dataset, selection: Sequence[Selection], *, references: Sequence[Selection] | None = None
) -> Iterator[FramePlan]:
    """Every frame of a selection in order, with all its selected views.

    The face and non-face images come from `references` (default: the training views of all frames, and of the
    identities selected): of the frame's views there that show the face, the one the face looks at most
    directly; the first synthesized image when none does. Raises `InputError` for a frame with neither.
    """
    names = {item.frame.identity for item in selection}
    if references is None:
        references = layout.select(dataset, identities=names, frames="all")
    allowed = {item.frame.row: item.views for item in references}
    for item in selection:
        frame = item.frame
        views = allowed.get(frame.row, ())
        with_face = [view for view in views if frame.shows_face[view]]
        frontal = max(with_face, key=lambda view: frame.facing[view], default=None)
        if frontal is None and not frame.synthesized:
            raise InputError(
                f"no face image for frame {frame.name} of {frame.identity}: none of its training views shows the face "
                "and it has no synthesized images; leave this frame out"
            )
        yield FramePlan(
            frame=frame,
            views=item.views,
            face_view=frontal,
            synthesized=0 if frontal is None else None,
            nonface_view=frontal if frontal is not None else (views or item.views)[0],
        )


def evaluation_batches(
    pixels: PixelSource, selection: Sequence[Selection], *, references: Sequence[Selection] | None = None
) -> Iterator[tuple[FramePlan, Batch]]:
    """One batch [i=1, f=1, v=selected views] for each frame of a selection, in a fixed order, with its plan.

    `plan.frame` and `plan.views` name what the batch shows. Batches share one shape when every frame selects
    the same number of views. Face images are chosen as in `evaluation_plans`.
    """
    for plan in evaluation_plans(pixels.dataset, selection, references=references):
        yield plan, assemble(((plan,),), pixels)


def prefetch(
    sampler: BatchSampler,
    *,
    start_step: int = 0,
    stop_step: int | None = None,
    depth: int = 2,
    workers: int = 1,
) -> Generator[Batch, None, None]:
    """Batches `start_step`, `start_step + 1`, ... made up to `depth` ahead in background threads, in order.

    An error in a worker is raised here, at the batch it belongs to. Close the iterator (or drop it) to stop
    the threads; nothing runs before the first batch is asked for.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
    pending: OrderedDict[int, Future[Batch]] = OrderedDict()
    try:
        step = start_step
        while stop_step is None or step < stop_step:
            for ahead in range(step, step + depth + 1):
                if ahead not in pending and (stop_step is None or ahead < stop_step):
                    pending[ahead] = pool.submit(sampler.batch, ahead)
            yield pending.pop(step).result()
            step += 1
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def showing_faces(selection: Sequence[Selection], options: BatchOptions, dataset: Dataset) -> list[Selection]:
    """The frames that can be trained on: those with some input for the expression encoder."""
    usable = [
        item
        for item in selection
        if any(item.frame.shows_face[list(item.views)])
        or (item.frame.synthesized and options.synthesized_probability > 0.0)
    ]
    if not usable:
        raise InputError(
            f"no frame of {dataset.path} shows a face in the selected views: each frame needs a face_<view>.jpg "
            "beside its image_<view>.jpg, of one view at least"
        )
    if len(usable) < len(selection):
        logging.warning(
            "%d of %d frames show no face and are left out", len(selection) - len(usable), len(selection)
        )
    return usable


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of the items, evenly spaced: of different identities and expressions, where sorted by them."""
    if not items:
        return []
    return [
        items[n] for n in sorted({round(x) for x in np.linspace(0, len(items) - 1, min(count, len(items)))})
    ]


def _group_by_identity(selection: Sequence[Selection]) -> list[list[Selection]]:
    groups: dict[int, list[Selection]] = {}
    for item in selection:
        groups.setdefault(item.frame.identity_row, []).append(item)
    return [groups[row] for row in sorted(groups)]


def _turns(key: tuple[int, ...], items: int, count: int, chunk: int) -> list[tuple[int, int]]:
    """Chunk number `chunk` of `count` items of an endless even stream: (item, its visits before this one).

    The stream walks round one permutation until whole turns and whole chunks meet, after lcm(items, count)
    draws, then takes a new one. So a chunk never repeats an item while count <= items, and visits stay even.
    """
    period = math.lcm(items, count)
    lap, offset = divmod(chunk * count, period)
    order = _permutation((*key, lap), items)
    positions = range(offset, offset + count)
    return [(int(order[n % items]), lap * (period // items) + n // items) for n in positions]


@functools.lru_cache(maxsize=8192)
def _permutation(key: tuple[int, ...], items: int) -> Int[np.ndarray, "n"]:
    # Raw bits and argsort, because NumPy keeps bit generators the same across versions, but not `permutation`.
    return np.argsort(np.random.Philox(np.random.SeedSequence(key)).random_raw(items), kind="stable")


def _uniforms(key: tuple[int, ...], count: int) -> tuple[float, ...]:
    bits = np.random.Philox(np.random.SeedSequence(key)).random_raw(count)
    return tuple((bits >> np.uint64(11)) * 2.0**-53)
