"""Renders textured head scans into a dataset that training reads: many views of each, with cameras and landmarks.

    python -m gphm_jax.tools.render_scans --input=SCAN_OR_FOLDER --out=DATASET [--views=80] [--size=512] [--workers=N]

Scans are OBJ with MTL and picture, PLY with vertex colours or a picture, or GLB, in any unit and any axes. NPHM's and
FaceVerse's folders are read as they are; of others, a folder of scans is one person's. quality.html in each identity's
folder shows what was found. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags, logging

from gphm_jax.capture.scan_rendering import render_all
from gphm_jax.capture.settings import LANDMARKS, ScanSettings
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded


def main(argv: Sequence[str]) -> None:
    """Renders what `--input` holds."""
    del argv
    for name in ("input", "out"):
        if not flags.FLAGS[name].value:
            raise InputError(f"--{name} is missing: see python -m gphm_jax.tools.render_scans --help")
    named: dict[str, Any] = {
        field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(ScanSettings)
    }
    settings = ScanSettings(**named)
    settings.check("--")
    out = expanded(flags.FLAGS.out)
    render_all(expanded(flags.FLAGS.input), out, settings, workers=flags.FLAGS.workers)
    logging.info("done: %s", out)


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    defaults = ScanSettings()
    flags.DEFINE_string("input", None, "A scan, a folder of scans, or of folders of one person's scans each.")
    flags.DEFINE_string("out", None, "Folder of the dataset.")
    flags.DEFINE_integer("views", defaults.views, "Pictures of each scan, from all around it.")
    flags.DEFINE_integer("size", defaults.size, "Side of the square pictures, pixels.")
    flags.DEFINE_enum("landmarks", defaults.landmarks, LANDMARKS, "Who finds faces.")
    flags.DEFINE_string("landmark_model", defaults.landmark_model, "Its weights, where they lie elsewhere.")
    flags.DEFINE_string("face_model", defaults.face_model, "BFM (.mat, .h5) or FLAME (.npz) file.")
    flags.DEFINE_string(
        "expressions", defaults.expressions, "'synthetic', or a folder of LivePortrait's images."
    )
    flags.DEFINE_integer("expression_images", defaults.expression_images, "Synthetic ones a scan.")
    flags.DEFINE_integer("workers", 0, "People at once; 0 takes one for each core.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
