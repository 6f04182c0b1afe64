"""A run's folder: its resolved config, what is finished, and its final figures."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from typing import Any

from gphm_jax.errors import InputError
from gphm_jax.files import write_json
from gphm_jax.settings import Settings

# Keys that may change between a run and its resumption without making it another run.
_FREE = ("log", "backend", "fsdp")


@dataclasses.dataclass(frozen=True)
class Workdir:
    """Paths of a run."""

    path: pathlib.Path

    @classmethod
    def open(cls, path: pathlib.Path, settings: Settings) -> Workdir:
        """Creates the folder, or finds it again with the same settings.

        Raises `InputError` when it cannot be written, or belongs to a run with other settings.
        """
        config = path / "config.json"
        wanted = json.loads(json.dumps(dataclasses.asdict(settings)))
        if config.exists():
            try:
                found = json.loads(config.read_text())
            except json.JSONDecodeError as error:
                raise InputError(
                    f"{config} is not JSON ({error}): restore it or use another --workdir"
                ) from error
            key = _difference(found, wanted)
            if key is not None:
                raise InputError(
                    f"{path} holds a run with another config.{key}: use another --workdir, or the same config to resume"
                )
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_json(config, wanted)
        except OSError as error:
            raise InputError(
                f"cannot write {path} ({error.strerror}): choose a writable --workdir"
            ) from error
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


def _difference(found: Any, wanted: Any, prefix: str = "") -> str | None:
    """The name of the first key in which two configs differ, those in `_FREE` aside."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return None if found == wanted else prefix
    for key in sorted(found.keys() | wanted.keys()):
        if not prefix and key in _FREE:
            continue
        inner = _difference(found.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else key)
        if inner is not None:
            return inner
    return None
