"""Planned cells of a batch to arrays: a cache of decoded pixels, and the stacking into a `Batch`."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax.data import layout
from gphm_jax.data.layout import Dataset, Frame
from gphm_jax.types import Batch, Camera, Pose


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FramePlan:
    """What one (identity, frame) cell of a batch shows, before any pixel is read."""

    frame: Frame
    views: tuple[int, ...]
    face_view: int | None  # None: `synthesized` instead
    synthesized: int | None
    nonface_view: int


class PixelSource:
    """Decoded uint8 pixels of a dataset at fixed sizes, kept in memory up to a limit (least recent out first).

    Safe to share between threads, and between the training and the evaluation batches.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        image_size: int,
        face_size: int,
        nonface_size: int,
        cache_bytes: int = 2 << 30,
    ) -> None:
        self.dataset = dataset
        self.image_size = image_size
        self.face_size = face_size
        self.nonface_size = nonface_size
        self.cache_bytes = cache_bytes
        self._held = 0
        self._entries: OrderedDict[tuple[str, int, int], tuple[np.ndarray, ...]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process starts with an empty cache."""
        return self.__dict__ | {"_lock": None, "_entries": OrderedDict(), "_held": 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"_lock": threading.Lock()}

    @property
    def cached_bytes(self) -> int:
        """Bytes of pixels held now."""
        return self._held

    def view(self, frame: Frame, view: int) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "h w"]]:
        """Image over white and mask."""
        image, mask = self._get(
            ("view", frame.row, view),
            lambda: layout.load_view(self.dataset, frame, view, size=self.image_size),
        )
        return image, mask

    def face(self, frame: Frame, view: int) -> UInt8[np.ndarray, "s s 3"]:
        """The face image of a view that shows the face."""
        key = ("face", frame.row, view)
        return self._get(key, lambda: (layout.load_face(self.dataset, frame, view, size=self.face_size),))[0]

    def synthesized(self, frame: Frame, index: int) -> UInt8[np.ndarray, "s s 3"]:
        """One of the frame's synthesized expression images."""
        key = ("synthesized", frame.row, index)
        return self._get(key, lambda: (layout.load_synthesized(frame, index, size=self.face_size),))[0]

    def nonface(self, frame: Frame, view: int) -> UInt8[np.ndarray, "t t 3"]:
        """The whole image of a view, the face box black."""
        key = ("nonface", frame.row, view)
        return self._get(
            key, lambda: (layout.load_nonface(self.dataset, frame, view, size=self.nonface_size),)
        )[0]

    def _get(
        self, key: tuple[str, int, int], load: Callable[[], tuple[np.ndarray, ...]]
    ) -> tuple[np.ndarray, ...]:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        entry = (
            load()
        )  # outside the lock: two threads may decode the same picture once each, which is harmless
        with self._lock:
            if key not in self._entries:
                self._entries[key] = entry
                self._held += sum(array.nbytes for array in entry)
                while self._held > self.cache_bytes:
                    _, dropped = self._entries.popitem(last=False)
                    self._held -= sum(array.nbytes for array in dropped)
        return entry


def assemble(plans: Sequence[Sequence[FramePlan]], pixels: PixelSource) -> Batch:
    """Reads the pixels of planned cells [identity][frame] and stacks everything into a `Batch` of NumPy arrays."""
    flat = [plan for row in plans for plan in row]
    lead = (len(plans), len(plans[0]))
    views, size = len(flat[0].views), pixels.image_size
    image = np.empty((len(flat), views, size, size, 3), np.float32)
    mask = np.empty((len(flat), views, size, size), np.float32)
    face = np.empty((len(flat), pixels.face_size, pixels.face_size, 3), np.float32)
    nonface = np.empty((len(flat), pixels.nonface_size, pixels.nonface_size, 3), np.float32)
    for cell, plan in enumerate(flat):
        for column, view in enumerate(plan.views):
            colors, coverage = pixels.view(plan.frame, view)
            _to_unit(colors, out=image[cell, column])
            _to_unit(coverage, out=mask[cell, column])
        face[cell] = _face_image(plan, pixels)
        _to_unit(pixels.nonface(plan.frame, plan.nonface_view), out=nonface[cell])
    world_to_camera = np.stack([plan.frame.world_to_camera[list(plan.views)] for plan in flat])
    intrinsics = np.stack([[layout.view_intrinsics(p.frame, view, size) for view in p.views] for p in flat])
    recorded = np.stack([[layout.view_recorded(p.frame, view, size) for view in p.views] for p in flat])

    def shaped(array: np.ndarray) -> Any:
        return layout.host(array.reshape(*lead, *array.shape[1:]))

    return Batch(
        identity=layout.host(np.array([row[0].frame.identity_row for row in plans], np.int32)),
        frame=shaped(np.array([plan.frame.row for plan in flat], np.int32)),
        camera=Camera(world_to_camera=shaped(world_to_camera), intrinsics=shaped(intrinsics)),
        image=shaped(image),
        mask=shaped(mask),
        recorded=shaped(recorded),
        pose=Pose(
            rotation=shaped(np.stack([plan.frame.rotation for plan in flat])),
            translation=shaped(np.stack([plan.frame.translation for plan in flat])),
            scale=shaped(np.array([plan.frame.scale for plan in flat], np.float32)),
        ),
        landmarks=shaped(np.stack([plan.frame.landmarks for plan in flat])),
        face_image=shaped(face),
        nonface_image=shaped(nonface),
    )


def _face_image(plan: FramePlan, pixels: PixelSource) -> Float[np.ndarray, "s s 3"]:
    if plan.synthesized is not None:
        stored = pixels.synthesized(plan.frame, plan.synthesized)
    else:
        assert plan.face_view is not None  # a plan names one of the two
        stored = pixels.face(plan.frame, plan.face_view)
    image = np.empty(stored.shape, np.float32)
    _to_unit(stored, out=image)
    return image


def _to_unit(pixels: np.ndarray, *, out: np.ndarray) -> None:
    np.multiply(pixels, np.float32(1.0 / 255.0), out=out)
