"""Turns a video, photos or a dataset's clips into identity folders that `fit.py` and `train.py` read.

    python -m gphm_jax.tools.preprocess --input=VIDEO_OR_IMAGES --out=DIR [--landmarks=mediapipe] [--matting=mediapipe]

One person's footage makes DIR an identity folder; a folder of clips makes DIR a dataset, an identity a clip, several
at once. quality.html in each shows what was found and dropped. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from gphm_jax.capture.preprocess import preprocess_all
from gphm_jax.capture.settings import LANDMARKS, MATTINGS, CaptureSettings
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded


def main(argv: Sequence[str]) -> None:
    """Preprocesses what `--input` holds."""
    del argv
    for name in ("input", "out"):
        if not flags.FLAGS[name].value:
            raise InputError(f"--{name} is missing: see python -m gphm_jax.tools.preprocess --help")
    named: dict[str, Any] = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(CaptureSettings)
    }
    settings = CaptureSettings(**named)
    settings.check("--")
    out = expanded(flags.FLAGS.out)
    preprocess_all(expanded(flags.FLAGS.input), out, settings, workers=flags.FLAGS.workers)
    logging.info("done: %s", out)


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    defaults = CaptureSettings()
    flags.DEFINE_string("input", None, "A video, a photo, a folder of photos, or a dataset.")
    flags.DEFINE_string("out", None, "The identity's folder; for several people the dataset's.")
    flags.DEFINE_integer("size", defaults.size, "Side of the square pictures, pixels.")
    flags.DEFINE_float("fps", defaults.fps, "At most so many frames a second of a video.")
    flags.DEFINE_integer("max_frames", defaults.max_frames, "At most so many frames of a clip; 0 takes all.")
    flags.DEFINE_enum("landmarks", defaults.landmarks, LANDMARKS, "Who finds faces.")
    flags.DEFINE_string("landmark_model", defaults.landmark_model, "Its weights, where they lie elsewhere.")
    flags.DEFINE_enum("matting", defaults.matting, MATTINGS, "Who cuts people out.")
    flags.DEFINE_string("matting_model", defaults.matting_model, "Its weights, where they lie elsewhere.")
    flags.DEFINE_string("face_model", defaults.face_model, "BFM (.mat, .h5) or FLAME (.npz) file.")
    flags.DEFINE_string(
        "expressions", defaults.expressions, "'synthetic', or a folder of LivePortrait's images."
    )
    flags.DEFINE_integer("expression_images", defaults.expression_images, "Synthetic ones a frame.")
    flags.DEFINE_integer("workers", 0, "Clips at once; 0 takes one for each core.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
