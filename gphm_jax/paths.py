"""Paths as users give them."""

from __future__ import annotations

import os
import pathlib


def expanded(given: str | os.PathLike[str]) -> pathlib.Path:
    """The path, with a leading ~ as the user's home: shells leave that of --out=~/me to the program."""
    return pathlib.Path(os.path.expanduser(given))  # pathlib's own raises for a user that does not exist


def cache_folder() -> pathlib.Path:
    """Where this project keeps what it can make or fetch again: `$XDG_CACHE_HOME/gphm_jax`, else in ~/.cache."""
    # A variable set to nothing counts as not set (XDG base directory specification).
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "gphm_jax"
