"""What preprocessing may be told; everything that decides the bytes of an identity folder, besides its sources."""

from __future__ import annotations

import dataclasses

from gphm_jax.errors import InputError

LANDMARKS = ("mediapipe", "dlib", "face_alignment")
MATTINGS = ("mediapipe", "rvm")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptureSettings:
    """See `python -m gphm_jax.tools.preprocess --help`."""

    size: int = 512  # side of the written pictures, pixels
    fps: float = 30.0  # at most so many frames a second of a video
    max_frames: int = 0  # at most so many frames of a recording, spread evenly; 0: all
    landmarks: str = "mediapipe"  # who finds faces: one of LANDMARKS
    landmark_model: str = ""  # its weight file, where one's own
    matting: str = "mediapipe"  # who cuts people out: one of MATTINGS
    matting_model: str = ""  # its weight file, where one's own
    face_model: str = ""  # a BFM (.mat, .h5) or FLAME (.npz) file; empty: the embedded face model
    expressions: str = "synthetic"  # where expression images come from: this, or a folder
    expression_images: int = 1  # a frame, where they are rendered

    def check(self, prefix: str) -> None:
        """Raises `InputError` naming `prefix` and the key for a value that cannot be."""
        _check_ranges(self, prefix, size=(64, 4096), expression_images=(0, 64), max_frames=(0, 10**9))
        if not self.fps > 0:
            raise InputError(f"{prefix}fps={self.fps}: must be positive")
        for key, known in (("landmarks", LANDMARKS), ("matting", MATTINGS)):
            _check_known(self, prefix, key, known)
        _check_scores(self, prefix)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanSettings:
    """See `python -m gphm_jax.tools.render_scans --help`."""

    size: int = 512  # side of the pictures, pixels
    views: int = 80  # pictures of a scan, as in the paper
    landmarks: str = "mediapipe"  # who finds faces: one of LANDMARKS
    landmark_model: str = ""  # its weight file, where one's own
    face_model: str = ""  # a BFM (.mat, .h5) or FLAME (.npz) file; empty: the embedded face model
    expressions: str = "synthetic"  # where expression images come from: this, or a folder
    expression_images: int = 1  # a scan, where they are rendered

    def check(self, prefix: str) -> None:
        """Raises `InputError` naming `prefix` and the key for a value that cannot be."""
        _check_ranges(self, prefix, size=(64, 4096), views=(1, 400), expression_images=(0, 64))
        _check_known(self, prefix, "landmarks", LANDMARKS)
        _check_scores(self, prefix)


def _check_ranges(settings: object, prefix: str, **ranges: tuple[int, int]) -> None:
    for key, (low, high) in ranges.items():
        value = getattr(settings, key)
        if not low <= value <= high:
            raise InputError(f"{prefix}{key}={value}: must be between {low} and {high}")


def _check_known(settings: object, prefix: str, key: str, known: tuple[str, ...]) -> None:
    if getattr(settings, key) not in known:
        raise InputError(f"{prefix}{key}={getattr(settings, key)}: must be one of {', '.join(known)}")


def _check_scores(settings: CaptureSettings | ScanSettings, prefix: str) -> None:
    """Expression images are rendered from ARKit scores, which mediapipe gives, or the embedded face model."""
    rendered = settings.expressions == "synthetic" and settings.expression_images
    if rendered and settings.face_model and settings.landmarks != "mediapipe":
        raise InputError(
            f"{prefix}expression_images={settings.expression_images}: neither {settings.landmarks} nor a face model of "
            f"one's own tells the 52 scores they are rendered from; use {prefix}landmarks=mediapipe, a folder in "
            f"{prefix}expressions, or {prefix}expression_images=0"
        )
