"""A run's folder: its resolved config, what is finished, and its final figures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gphm_jax.errors import InputError
from gphm_jax.files import plain, write_json
from gphm_jax.settings import Settings

# Settings that may change between a run and its resumption: they say how it is run, shown and measured, not what it
# learns. A key names itself and all that is below it.
FREE = ("log", "backend", "fsdp", "data.cache_gb", "data.processes", "evaluation")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of a run."""

    path: pathlib.Path

    @classmethod
    def open(cls, path: pathlib.Path, settings: Settings) -> Workdir:
        """Creates the folder, or finds it again with the same settings; raises as `claim` does."""
        claim(path, settings, free=FREE, flag="--workdir")
        return cls(path)

    def checkpoints(self, stage: str) -> pathlib.Path:
        """Where a stage's checkpoints lie."""
        return self.path / "checkpoints" / stage

    @property
    def metrics(self) -> pathlib.Path:
        """The final figures: their presence says that the run is done."""
        return self.path / "metrics.json"

    def finish(self, figures: dict[str, Any]) -> None:
        """Writes the final figures."""
        write_json(self.metrics, figures)


def claim(
    path: pathlib.Path,
    settings: Any,
    *,
    free: Sequence[str],
    flag: str,
    sources: Mapping[str, str] | None = None,
) -> bool:
    """Makes a run's folder and its config.json, or finds it again with the same settings; True if it is finished.

    `settings` is a dataclass, `free` the dotted keys that may differ, `flag` the one that names the folder, and
    `sources` the values of further flags that must stay. A folder without figures and checkpoints has nothing to
    lose: its config is replaced. That of a finished run stays as it is, and settings that only one of it and this
    version know do not matter to it. Raises `InputError` when the folder cannot be read or written, or belongs to a
    run with other settings.
    """
    sources = sources or {}
    config = path / "config.json"
    wanted = plain({**sources, **dataclasses.asdict(settings)})
    try:
        finished = (path / "metrics.json").exists()
        # Orbax names a complete checkpoint by its step alone.
        started = finished or any(found.name.isdigit() for found in path.glob("checkpoints/*/*"))
        if started and config.exists():
            found = {**dict.fromkeys(sources, ""), **_read(config, flag)}  # a flag that was not given has no value
            key = _difference(found, wanted, free, shared_only=finished)
            if key is not None:
                name = f"--{key}" if key in sources else f"config.{key}"
                raise InputError(
                    f"{path} holds a run with another {name}: use another {flag}, or the same to resume"
                )
        if not finished:
            path.mkdir(parents=True, exist_ok=True)
            write_json(config, wanted)
    except OSError as error:
        raise InputError(
            f"cannot use {path} ({error.strerror}): choose a folder to read and write with {flag}"
        ) from error
    return finished


def refuse_avatar(workdir: pathlib.Path) -> None:
    """Raises `InputError` where a folder that should be a run's is an avatar's, or that of its fit."""
    if (workdir / "avatar").is_dir() or (workdir / "arrays.npz").is_file():
        raise InputError(f"{workdir} holds an avatar, not a head model: name the workdir of train.py")


def _read(config: pathlib.Path, flag: str) -> dict[str, Any]:
    try:
        found = json.loads(config.read_text(encoding="utf-8"))
    except ValueError as error:  # no UTF-8, or no JSON
        raise InputError(f"{config} is not JSON ({error}): restore it or use another {flag}") from error
    if not isinstance(found, dict):
        raise InputError(f"{config} holds no settings: restore it or use another {flag}")
    return found


def _difference(
    found: Any, wanted: Any, free: Sequence[str], key: str = "", *, shared_only: bool
) -> str | None:
    """The first dotted key in which two configs differ, those in `free` and below them aside; with `shared_only` also
    those that one of the two lacks."""
    if key in free:
        return None
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return None if found == wanted else key
    for name in sorted(found.keys() & wanted.keys() if shared_only else found.keys() | wanted.keys()):
        at = f"{key}.{name}" if key else name
        inner = _difference(found.get(name), wanted.get(name), free, at, shared_only=shared_only)
        if inner is not None:
            return inner
    return None
