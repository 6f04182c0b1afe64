"""Renders a dataset of synthetic heads in the layout that training and fitting read.

    python -m gphm_jax.tools.synthesize --out=DIR --identities=10 --expressions=8 --views=10 --size=256

`--capture=monocular` makes one moving camera and side views for evaluation instead. The same seed gives
the same bytes for any number of workers; run again, finished frames are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags

from gphm_jax.data.synthetic import dataset, writer
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded

_LARGEST = 4096


def make_request() -> writer.Request:
    """The flags, checked."""
    if not flags.FLAGS.out:
        raise InputError("--out is missing: give the folder to write the dataset into")
    limits = {
        "identities": (1, 100_000), "expressions": (1, 9999), "views": (1, 400), "size": (16, _LARGEST),
        "seed": (0, 2**31 - 1), "workers": (0, 1024), "heldout_views": (0, 64), "expression_images": (0, 64),
        "first_identity": (0, 1_000_000), "frames": (0, 9999),
    }  # fmt: skip
    for name, (low, high) in limits.items():
        value = getattr(flags.FLAGS, name)
        if not low <= value <= high:
            raise InputError(f"--{name}={value}: must be between {low} and {high}")
    frames = flags.FLAGS.expressions
    if flags.FLAGS.capture == "monocular":
        frames = flags.FLAGS.frames or 4 * flags.FLAGS.expressions
        if frames < 2:
            raise InputError(f"--frames={frames}: a monocular capture needs at least 2")
    elif flags.FLAGS.frames:
        raise InputError("--frames belongs to --capture=monocular; use --expressions")
    return writer.Request(
        out=expanded(flags.FLAGS.out).resolve(),
        first_identity=flags.FLAGS.first_identity,
        identities=flags.FLAGS.identities,
        expressions=flags.FLAGS.expressions,
        frames=frames,
        views=flags.FLAGS.views,
        heldout_views=flags.FLAGS.heldout_views,
        expression_images=flags.FLAGS.expression_images,
        size=flags.FLAGS.size,
        seed=flags.FLAGS.seed,
        capture=flags.FLAGS.capture,
    )


def main(argv: Sequence[str]) -> None:
    """Renders what the flags ask for."""
    del argv
    request = make_request()
    dataset.synthesize(request, flags.FLAGS.workers)


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("out", None, "Folder of the dataset.")
    flags.DEFINE_integer("identities", 8, "People.")
    flags.DEFINE_integer("expressions", 6, "Expressions of each person (multiview: frames).")
    flags.DEFINE_integer("views", 10, "Training cameras (multiview).")
    flags.DEFINE_integer("size", 256, "Side of the square pictures, pixels.")
    flags.DEFINE_integer("seed", 0, "Seed of everything.")
    flags.DEFINE_integer("workers", 0, "Processes; 0 takes one for each core.")
    flags.DEFINE_integer(
        "heldout_views", 6, "Held-out cameras, numbered after the training ones (multiview)."
    )
    flags.DEFINE_integer("expression_images", 4, "Crops of other people with each expression.")
    flags.DEFINE_enum("capture", "multiview", ["multiview", "monocular"], "Many cameras, or one moving one.")
    flags.DEFINE_integer(
        "first_identity", 0, "Index of the first person; person k of a seed is always the same."
    )
    flags.DEFINE_integer("frames", 0, "Frames of a monocular capture; 0 makes four for each expression.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
