"""Packs a dataset into ArrayRecord shards, which training reads like the plain folder, with less work a picture.

    python -m gphm_jax.tools.pack --input=DATASET --out=DIR [--shards=N | --shard_size=MB] [--workers=N]

The result gives the same batches bit for bit: `train.py --config.data.path=DIR`. Run again after an interruption, it
keeps the shards that are done; `--backend=ray` packs on all machines of a Ray cluster.
"""

from __future__ import annotations

from collections.abc import Sequence

from absl import flags, logging

from gphm_jax import jobs
from gphm_jax.data import packing
from gphm_jax.errors import InputError, run_main
from gphm_jax.paths import expanded


def main(argv: Sequence[str]) -> None:
    """Packs what the flags ask for."""
    del argv
    given = flags.FLAGS
    for name, says in (("input", "give the dataset's folder"), ("out", "give the folder to write")):
        if not given[name].value:
            raise InputError(f"--{name} is missing: {says}")
    if given.shards and given["shard_size"].present:
        raise InputError("--shards and --shard_size exclude each other: give one")
    logging.set_verbosity(logging.INFO)
    out = packing.pack(
        expanded(given.input),
        expanded(given.out).resolve(),
        shards=given.shards,
        shard_bytes=given.shard_size << 20,
        sizes=packing.Sizes(face=given.face_size, nonface=given.nonface_size),
        workers=given.workers,
        backend=given.backend,
    )
    logging.info("%s: %s", out, packing.describe(out))


def define_flags() -> None:
    """Only when run as a program: two tools may share a flag's name."""
    flags.DEFINE_string("input", None, "The dataset, in the plain layout.")
    flags.DEFINE_string("out", None, "The folder to write; it must not exist or be empty.")
    flags.DEFINE_integer("shards", 0, "Files to make; 0: as --shard_size asks.", lower_bound=0)
    flags.DEFINE_integer("shard_size", 512, "About so many megabytes a file.", lower_bound=1)
    flags.DEFINE_integer(
        "face_size", 128, "Face images are stored at this config.data.face_size too; 0: not.", lower_bound=0
    )
    flags.DEFINE_integer(
        "nonface_size", 128, "Non-face images at this config.data.nonface_size too; 0: not.", lower_bound=0
    )
    flags.DEFINE_integer("workers", 0, "Processes; 0 takes one for each core.", lower_bound=0)
    flags.DEFINE_enum("backend", "loky", jobs.BACKENDS, "This machine, or a Ray cluster.")


if __name__ == "__main__":
    define_flags()
    run_main(main)
