"""The folder of an identity made from footage or scans: what it was made of, and whether it may be gone on with."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gphm_jax
from gphm_jax.capture.settings import CaptureSettings, ScanSettings
from gphm_jax.data import frame_writer
from gphm_jax.data.synthetic.base import ARKIT
from gphm_jax.errors import InputError
from gphm_jax.files import write_json

DONE = "quality.json"  # written last
GENERATOR = "gphm_jax.tools.preprocess"  # as dataset.json names it where footage was prepared
_VERSION = 2  # of what is written; 2: cameras say what was recorded
_PACKAGES = ("mediapipe", "opencv-python-headless", "numpy", "jax", "optimistix", "trimesh")


def claim(out: pathlib.Path, described: Mapping[str, Any]) -> None:
    """Makes the folder with its dataset.json, or goes on with one of the same sources and settings.

    `InputError` where it cannot be written, or holds something else.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out}: {error.strerror}; give another --out") from error
    path = out / "dataset.json"
    if path.exists():
        found = _read(path)
        others = {"settings": "other settings", "sources": "other sources", "version": "another version"}
        for key, other in others.items():
            if found.get(key) != described[key]:
                raise InputError(f"{out} was made with {other}: remove it or give another --out")
    elif any(out.iterdir()):
        raise InputError(f"{out} is not empty, and not an identity folder: give another --out")
    frame_writer.remove_leftovers(out)
    write_json(path, described)


def describe(
    generator: str,
    settings: CaptureSettings | ScanSettings,
    sources: Sequence[Mapping[str, str]],
    **facts: Any,
) -> dict[str, Any]:
    """The content of dataset.json: made by which program, with which settings, of what, and further `facts`."""
    return {
        "version": _VERSION,
        "generator": generator,
        "gphm_jax": gphm_jax.__version__,
        "packages": {name: _version_of(name) for name in _PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "image_size": settings.size,
        "landmark_count": 68,
        "face_model": settings.face_model or "embedded",
        **({} if settings.face_model else {"expression_names": list(ARKIT)}),
        "settings": {key: value for key, value in dataclasses.asdict(settings).items() if value != ""},
        "sources": list(sources),
        "licences": "as the sources'; this program adds none",
        **facts,
    }


def source_of(path: pathlib.Path, folders: Sequence[pathlib.Path] = ()) -> dict[str, str]:
    """Where footage lay, and a sum by which it is known again: over `folders` alone, where only these matter."""
    return {"path": str(path), "sha256": _digest(path, folders or [path])}


def is_done(out: pathlib.Path) -> bool:
    """Whether `out` is a finished identity folder."""
    return (out / DONE).is_file()


def _read(path: pathlib.Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): remove the folder or give another --out") from error
    return found if isinstance(found, dict) else {}


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _digest(source: pathlib.Path, parts: Sequence[pathlib.Path]) -> str:
    """SHA-256 of a file, or of names and sizes of what lies in `parts` of a folder."""
    digest = hashlib.sha256()
    for path in sorted({path for part in parts for path in _files(part)}):
        if source.is_dir():
            digest.update(f"{path.relative_to(source)} {path.stat().st_size}\n".encode())
        else:
            with path.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
    return digest.hexdigest()


def _files(source: pathlib.Path) -> Iterator[pathlib.Path]:
    yield from (path for path in source.rglob("*") if path.is_file()) if source.is_dir() else [source]
