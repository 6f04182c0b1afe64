"""Packs a dataset into shards (`packed` says how they are read): whole or not at all, resumed where it stopped."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import io
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gphm_jax import files, jobs
from gphm_jax.data import images, packed
from gphm_jax.data.images import Source
from gphm_jax.data.layout import Dataset, Frame, open_dataset
from gphm_jax.errors import InputError

_PACKAGES = ("gphm_jax", "array_record", "pillow", "opencv-python-headless")


class Entry(NamedTuple):
    """One record to write."""

    column: str  # of the index, where its number goes
    source: Source | None  # the file that it is made of; None: there is none
    form: str  # "file", "picture", "mask", "alpha" or "small"
    size: int = 0  # of "small"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sides of the second records of face and expression images, and of non-face images; 0: none."""

    face: int = 128
    nonface: int = 128


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """Frames that go into one file."""

    path: Path
    frames: tuple[Frame, ...]
    sizes: Sizes
    key: str  # of the names, sizes and dates of its files: another key is another content

    @property
    def note(self) -> Path:
        """Written after the shard: its key, bytes, SHA-256 and the encodings of its records."""
        return self.path.with_suffix(".json")


def pack(
    source: Path,
    out: Path,
    *,
    shards: int = 0,
    shard_bytes: int = 512 << 20,
    sizes: Sizes = Sizes(),
    workers: int = 0,
    backend: str = "loky",
) -> Path:
    """Packs the plain dataset at `source` into the new folder `out`, in `shards` files or (0) as many as it takes.

    Every picture is decoded once on the way, so that none in a packed dataset is damaged. Two packings differ in
    their date alone. Shards are written beside `out`, which appears when all are there; run again, finished ones are
    kept. Raises `InputError` for bad input and `TrainingError` when shards failed, after all others are written.
    """
    packed.import_array_record()
    if packed.is_packed(out):
        raise InputError(f"{out} holds a packed dataset: remove it or give another --out")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is not an empty folder: give another --out")
    if packed.is_packed(source):
        raise InputError(f"{source} is packed already: give the plain dataset")
    dataset = open_dataset(source)
    staging = out.parent / f".{out.name}.packing"
    try:
        staging.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {out.parent}: {error.strerror}; give another --out") from error
    planned = plan_shards(dataset, staging, sizes=sizes, shards=shards, shard_bytes=shard_bytes)
    _remove_others(staging, planned)
    outcome = jobs.run_jobs(
        pack_shard,
        planned,
        done=is_done,
        name=lambda shard: shard.path.name,
        size=lambda shard: sum(len(frame.views) for frame in shard.frames),
        workers=workers,
        backend=backend,
        description=out.name,
        unit="image",
    )
    outcome.conclude(out.parent / f"{out.name}.failed.json")
    _finish(dataset, sizes, planned, staging)
    if out.is_dir():
        out.rmdir()
    os.replace(staging, out)
    return out


def plan_shards(
    dataset: Dataset, folder: Path, *, sizes: Sizes = Sizes(), shards: int = 0, shard_bytes: int = 512 << 20
) -> list[Shard]:
    """Consecutive frames in files of about equal size: `shards` of them, or (0) as `shard_bytes` asks."""
    stats = [[_stat(source) for source in _sources(frame)] for frame in dataset.frames]
    lengths = np.array([sum(length for length, _ in found) for found in stats], np.int64)
    total = int(lengths.sum())
    count = min(shards or max(1, round(total / shard_bytes)), len(lengths))
    # A frame belongs to the shard in which its middle byte falls.
    owner = ((np.cumsum(lengths) - lengths / 2) * count // total).astype(int)
    groups = [np.flatnonzero(owner == number) for number in range(count)]
    groups = [group for group in groups if len(group)]
    planned = []
    for number, group in enumerate(groups):
        frames = tuple(dataset.frames[row] for row in group)
        name = f"shard-{number:05d}-of-{len(groups):05d}.array_record"
        contents = [([str(source) for source in _sources(dataset.frames[row])], stats[row]) for row in group]
        text = json.dumps([packed.VERSION, dataclasses.astuple(sizes), contents])
        key = hashlib.sha256(text.encode()).hexdigest()
        planned.append(Shard(path=folder / name, frames=frames, sizes=sizes, key=key))
    return planned


def is_done(shard: Shard) -> bool:
    """Whether a shard of the same content is written."""
    if not shard.path.exists() or not shard.note.exists():
        return False
    note = json.loads(shard.note.read_text())
    return note["key"] == shard.key and note["bytes"] == shard.path.stat().st_size


def pack_shard(shard: Shard) -> None:
    """Writes a shard, then its note."""
    module = packed.import_array_record().array_record_module
    encodings = []
    with files.atomic_path(shard.path) as partial:
        # One record a chunk, so that a picture is read alone; no compression, which JPEG leaves nothing to.
        writer = module.ArrayRecordWriter(str(partial), "group_size:1,uncompressed")
        try:
            for frame in shard.frames:
                for entry in entries(frame, shard.sizes):
                    if entry.source is not None:
                        content, encoding = _record(entry.source, entry)
                        writer.write(content)
                        encodings.append(encoding)
        finally:
            writer.close()
        size, digest = partial.stat().st_size, _sha256(partial)
    note = {"key": shard.key, "bytes": size, "sha256": digest, "encodings": encodings}
    files.write_text(shard.note, json.dumps(note))


def entries(frame: Frame, sizes: Sizes) -> list[Entry]:
    """A frame's records in order."""
    found = [Entry("params", frame.params, "file")]
    for source in frame.synthesized:
        found += _twice("synthesized", source, sizes.face)
    for view in frame.views:
        # An image that is its own mask: the mask becomes a record like any other.
        mask = Entry("mask", view.mask or view.image, "mask" if view.mask else "alpha")
        found += [Entry("image", view.image, "picture"), mask]
        found += _twice("face", view.face, sizes.face) + _twice("nonface", view.nonface, sizes.nonface)
    return found


def _twice(column: str, source: Source | None, size: int) -> list[Entry]:
    return [
        Entry(column, source, "picture"),
        Entry(f"{column}_small", source if size else None, "small", size),
    ]


def _sources(frame: Frame) -> list[Source]:
    """A frame's files, each once."""
    return list(dict.fromkeys(entry.source for entry in entries(frame, Sizes()) if entry.source is not None))


def _record(source: Source, entry: Entry) -> tuple[bytes, int]:
    if entry.form == "small":
        return packed.encode_pixels(images.read_square(source, entry.size)), packed.PIXELS
    if entry.form == "mask":
        return packed.encode_pixels(images.read_gray(source)), packed.PIXELS
    if entry.form == "alpha":
        return packed.encode_pixels(images.read_alpha(source)), packed.PIXELS
    content = source.read_bytes()
    return content, packed.FILE if entry.form == "file" else _encoding(content, source)


def _encoding(content: bytes, source: Source) -> int:
    exact = images.decode(io.BytesIO(content), "RGB", name=str(source))
    fast = packed.decode_fast(content)
    return packed.FAST if fast is not None and np.array_equal(fast, exact) else packed.FILE


def _finish(dataset: Dataset, sizes: Sizes, planned: Sequence[Shard], staging: Path) -> None:
    """The index and the manifest; removes the notes."""
    notes = [json.loads(shard.note.read_text()) for shard in planned]
    encodings = np.concatenate([np.array(note["encodings"], np.uint8) for note in notes])
    np.savez(staging / packed.INDEX, **_index(dataset, sizes), encodings=encodings)
    listed = [
        {
            "name": shard.path.name,
            "records": len(note["encodings"]),
            "bytes": note["bytes"],
            "sha256": note["sha256"],
        }
        for shard, note in zip(planned, notes, strict=True)
    ]
    manifest = {
        "version": packed.VERSION,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "name": dataset.path.resolve().name,
        "made_with": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "frames": len(dataset.frames),
        "images": dataset.num_images,
        "face_size": sizes.face,
        "nonface_size": sizes.nonface,
        "shards": listed,
        "index_sha256": _sha256(staging / packed.INDEX),
        "dataset": dataset.metadata,
    }
    files.write_json(staging / packed.MANIFEST, manifest)
    for shard in planned:
        shard.note.unlink()


def _index(dataset: Dataset, sizes: Sizes) -> dict[str, Any]:
    frames = dataset.frames
    views = [view for frame in frames for view in frame.views]
    return {
        "identities": np.array(dataset.identities),
        "frame_identity": np.array([frame.identity_row for frame in frames], np.int32),
        "frame_name": np.array([frame.name for frame in frames]),
        "rotation": np.stack([frame.rotation for frame in frames]),
        "translation": np.stack([frame.translation for frame in frames]),
        "scale": np.array([frame.scale for frame in frames], np.float64),
        "landmarks": np.stack([frame.landmarks for frame in frames]),
        "view_counts": np.array([len(frame.views) for frame in frames], np.int32),
        "view_name": np.array([view.name for view in views]),
        "view_size": np.array([view.size for view in views], np.int32),
        "world_to_camera": np.concatenate([frame.world_to_camera for frame in frames]),
        "intrinsics": np.concatenate([frame.intrinsics for frame in frames]),
        "recorded": np.concatenate([frame.recorded for frame in frames]),
        "facing": np.concatenate([frame.facing for frame in frames]),
        "shows_face": np.concatenate([frame.shows_face for frame in frames]),
        "synthesized_counts": np.array([len(frame.synthesized) for frame in frames], np.int32),
        **_numbers(frames, sizes),
    }


def _numbers(frames: Sequence[Frame], sizes: Sizes) -> dict[str, np.ndarray]:
    """The record of every file by column; -1 where there is none."""
    columns = ("params", "image", "mask", "face", "nonface", "synthesized")
    numbers: dict[str, list[int]] = {
        name: [] for name in (*columns, *(f"{name}_small" for name in columns[3:]))
    }
    count = 0
    for frame in frames:
        for entry in entries(frame, sizes):
            numbers[entry.column].append(count if entry.source is not None else -1)
            count += entry.source is not None
    return {name: np.array(values, np.int64) for name, values in numbers.items()}


def _stat(source: Source) -> tuple[int, int]:
    """(bytes, modification time in ns) of a file."""
    assert isinstance(source, Path)  # `pack` takes plain datasets alone
    found = source.stat()
    return found.st_size, found.st_mtime_ns


def _remove_others(staging: Path, planned: Sequence[Shard]) -> None:
    """What an earlier packing left that was planned otherwise, or was cut short."""
    wanted = {path.name for shard in planned for path in (shard.path, shard.note)}
    for path in staging.iterdir():
        if path.name not in wanted:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(out: Path) -> str:
    """What a packed folder holds, in one line."""
    manifest: dict[str, Any] = json.loads((out / packed.MANIFEST).read_text())
    shards = manifest["shards"]
    size = sum(shard["bytes"] for shard in shards) / 2**20
    return (
        f"{manifest['images']} images of {manifest['frames']} frames in {len(shards)} shards, {size:.1f} MB"
    )
