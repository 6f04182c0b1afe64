"""What a fit's `--input` names, as a prepared folder: raw footage is preprocessed into the fit's own folder first."""

from __future__ import annotations

import pathlib

from absl import logging

from gphm_jax.capture.settings import CaptureSettings
from gphm_jax.data.layout import is_dataset
from gphm_jax.errors import InputError


def prepared(path: pathlib.Path, out: pathlib.Path, settings: CaptureSettings) -> pathlib.Path:
    """`path` itself where it is an identity folder or a dataset, else the one made of its footage in `out`/footage.

    `InputError` for what cannot be read, holds several people's clips, or shows no face.
    """
    try:
        if not path.exists():
            raise InputError(
                f"no input at {path}: name a video, photos, or a prepared identity folder with --input"
            )
        if path.is_dir() and is_dataset(path):
            return path
    except OSError as error:
        raise InputError(
            f"cannot read {error.filename or path} ({error.strerror}): give --input a folder to read"
        ) from error
    # Here: footage that is prepared already does not wait for what it takes to prepare some.
    from gphm_jax.capture import preprocess
    from gphm_jax.capture.sources import recording_paths

    clips = recording_paths(path)
    if len(clips) > 1:
        raise InputError(f"{path} holds {len(clips)} clips: name one person's with --input, as {clips[0]}")
    logging.info("preparing %s in %s", path, out / "footage")
    preprocess.preprocess_all(path, out / "footage", settings)
    return out / "footage"
